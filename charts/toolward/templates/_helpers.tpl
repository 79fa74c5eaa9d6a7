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

{{/* Reference of an image: (list . .Values.image) */}}
{{- define "toolward.image" -}}
{{- $root := index . 0 }}{{- $image := index . 1 -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}
