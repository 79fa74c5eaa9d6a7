{{/* Name of the operator's objects. */}}
{{- define "toolward.operator" -}}
toolward-operator
{{- end }}

{{/* Labels of all objects. */}}
{{- define "toolward.labels" -}}
app.kubernetes.io/name: toolward
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels that select the operator's pods. */}}
{{- define "toolward.selector" -}}
app.kubernetes.io/name: toolward
app.kubernetes.io/component: operator
{{- end }}

{{/* Namespaces whose pods can have the sidecar. Whatever their labels say, the operator
must be able to start without itself, and so must what it needs. */}}
{{- define "toolward.optedIn" -}}
matchExpressions:
  - key: toolward.dev/injection
    operator: In
    values: [enabled]
  - key: kubernetes.io/metadata.name
    operator: NotIn
    values: [kube-system, {{ .Release.Namespace }}]
{{- end }}

{{/* Pods that ask for the sidecar. */}}
{{- define "toolward.asks" -}}
- name: asks-for-the-sidecar
  expression: "has(object.metadata.annotations) && 'toolward.dev/server' in object.metadata.annotations"
{{- end }}

{{/* Reference of an image: (list . .Values.image) */}}
{{- define "toolward.image" -}}
{{- $root := index . 0 }}{{- $image := index . 1 -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}
