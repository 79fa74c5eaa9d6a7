//! `McpServer`: one MCP server, how it runs and who may be let in.
#![allow(clippy::duplicated_attributes)] // It takes the arguments of several print columns for one attribute.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    Argument, Audience, ClaimPath, Condition, Duration, EnvName, HeaderName, ImageRef, IssuerUrl,
    ItemName, JwksUrl, KeyName, ObjectName, Quantity, Url, UrlPath,
};

/// An MCP server that Toolward runs, with a sidecar in front that decides on every call.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "toolward.dev",
    version = "v1alpha1",
    kind = "McpServer",
    plural = "mcpservers",
    shortname = "mcps",
    category = "toolward",
    namespaced,
    status = "McpServerStatus",
    derive = "PartialEq",
    doc = "An MCP server that Toolward runs, with a sidecar in front that decides on every call.",
    scale(
        spec_replicas_path = ".spec.deployment.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Tools", type_ = "integer", json_path = ".status.toolCount"),
    printcolumn(name = "Policies", type_ = "integer", json_path = ".status.policyCount"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 52")
        .message("metadata.name must be a DNS-1035 label of at most 52 characters (lower-case letters, digits and -, a letter first), because a Service gets it")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.deployment) != has(self.injected)")
        .message("write exactly one of deployment (Toolward runs the server) and injected (pods of your own run it, annotated with toolward.dev/server: NAME)")
        .field_path(".deployment"),
    validation = Rule::new("self.transport.type != 'Stdio' || !has(self.deployment) || has(self.deployment.command)")
        .message("deployment.command is required for transport type Stdio: the sidecar's shim starts the server, so it cannot use the image's entrypoint")
        .field_path(".deployment.command"),
    validation = Rule::new("!has(self.authentication) || !has(self.authentication.audience) || !self.authentication.audience.matches('^https?://') || !has(self.url) || self.authentication.audience == self.url")
        .message("an audience that is a URL must be equal to spec.url: leave it out, or write the same")
        .field_path(".authentication.audience"),
    validation = Rule::new("!has(self.upstreamCredential) || self.transport.type == 'StreamableHttp'")
        .message("upstreamCredential is a header of requests, which a Stdio server has none of: remove it, and give the server its credential by deployment.env")
        .field_path(".upstreamCredential"),
    validation = Rule::new("!has(self.tls) || !has(self.url) || self.url.startsWith('https://')")
        .message("with tls, the MCP port speaks https only: write an https URL, or leave url out")
        .field_path(".url"),
    validation = Rule::new("!has(self.injected) || !has(self.injected.ports) || self.transport.type != 'StreamableHttp' || !self.injected.ports.exists(p, p == (has(self.transport.http) ? self.transport.http.port : 8080))")
        .message("the server's own port is reached through the sidecar only: list other ports of the pod, or leave ports out")
        .field_path(".injected.ports"),
    validation = Rule::new("!has(self.identity) || !has(self.authentication) || !has(self.authentication.mode) || self.authentication.mode != 'Anonymous'")
        .message("an Anonymous server's callers are nobody, so there is no identity to tell: remove it, or set authentication.mode: Required")
        .field_path(".identity")
)]
pub struct McpServerSpec {
    /// The public URL of the MCP endpoint. Default: `http://NAME.NAMESPACE.svc/mcp`, the Service that Toolward makes; with `tls`, `https://NAME.NAMESPACE.svc/mcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// The Deployment that Toolward makes for the server; this or `injected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentSpec>,
    /// The server runs in pods of your own: Toolward puts the sidecar into each that has the annotation `toolward.dev/server: NAME`, in namespaces with the label `toolward.dev/injection: enabled`; this or `deployment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub injected: Option<Injected>,
    /// The sidecar's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarSpec>,
    /// How the sidecar speaks to the server.
    pub transport: Transport,
    /// How callers prove who they are. Default: a token of the cluster's issuer is required.
    #[serde(default)]
    pub authentication: Authentication,
    /// A credential that the sidecar puts on each request to a StreamableHttp server. Neither the server's container nor callers see the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_credential: Option<UpstreamCredential>,
    /// TLS on the MCP port, for HTTP/1.1 and HTTP/2; the Service then has port 443 in place of 80. Left out, the port speaks plain HTTP, as behind an ingress that ends TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Set (`{}`), the server is told who calls by a signed assertion: the header `Toolward-Identity`, or for Stdio `_meta["toolward.dev/identity"]` of each request. It is a JWT of 60 s (ES256); the public keys are in the ConfigMap `NAME-toolward-identity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "no_fields")]
    pub identity: Option<Identity>,
}

/// The server runs in pods that Toolward did not make.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.ports) || !self.ports.exists(p, p in [9440, 9441, 9442])")
        .message("ports 9440 to 9442 are the sidecar's: list other ports of the pod")
        .field_path(".ports")
)]
pub struct Injected {
    /// Other TCP ports of the pods that may be reached from outside, for example that of their metrics. All that are not listed are cut off by the NetworkPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), schema_with = "ports")]
    pub ports: Option<Vec<u16>>,
}

fn ports(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 32,
        "x-kubernetes-list-type": "set",
        "items": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535},
    })
}

/// The sidecar's container.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarSpec {
    /// Its compute resources. Default: requests of 10m CPU and 32Mi memory. Annotations of an injected pod (`toolward.dev/cpu-request`, `cpu-limit`, `memory-request`, `memory-limit`) take their place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// How the server is told who calls; there is nothing to choose yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Identity {}

fn no_fields(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object"})
}

/// The certificate of the MCP port.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// A Secret of the same namespace (type `kubernetes.io/tls`) with the certificate and its chain in `tls.crt` and the private key in `tls.key`, in PEM form. It is mounted into the sidecar only, and read again when it changes.
    pub secret_name: ObjectName,
}

/// A credential for the server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.header) || !(self.header.lowerAscii() in ['host', 'connection', 'content-length', 'content-type', 'content-encoding', 'transfer-encoding', 'te', 'trailer', 'upgrade', 'expect', 'keep-alive', 'accept', 'last-event-id', 'traceparent', 'tracestate', 'baggage']) && !self.header.lowerAscii().startsWith('mcp-') && !self.header.lowerAscii().startsWith('toolward-')")
        .message("this header means something else to the server: name the one that carries a credential, for example Authorization or X-Api-Key")
        .field_path(".header")
)]
pub struct UpstreamCredential {
    /// The key of a Secret in the same namespace that holds the header's whole value, for example `Bearer abc` or an API key. It is read again when it changes.
    pub secret_ref: SecretKeyRef,
    /// The header. Default `Authorization`.
    #[serde(default = "default_header")]
    pub header: HeaderName,
}

fn default_header() -> HeaderName {
    HeaderName::from("Authorization")
}

/// A key of a Secret that has to be there.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    pub name: ObjectName,
    /// The key.
    pub key: KeyName,
}

/// The Deployment of a server.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeploymentSpec {
    /// Image of the server.
    pub image: ImageRef,
    /// The server's command line, in place of the image's entrypoint. Required for transport type Stdio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub command: Option<Vec<Argument>>,
    /// Arguments, after `command` or after the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub args: Option<Vec<Argument>>,
    /// Environment variables of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Option<Vec<EnvVar>>,
    /// Secrets and ConfigMaps whose keys become environment variables of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub env_from: Option<Vec<EnvFromSource>>,
    /// Compute resources of the server's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Service account of the pods. Its token is not mounted into the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<ObjectName>,
    /// Secrets with the credentials of the image's registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,
    /// Number of pods. Left out, Toolward does not own the number: `kubectl scale` on the Deployment or an autoscaler may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
}

/// An environment variable.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!(has(self.value) && has(self.valueFrom))")
        .message("write value or valueFrom, not both")
)]
pub struct EnvVar {
    /// Name of the variable.
    pub name: EnvName,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub value: Option<String>,
    /// Where its value comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvVarSource>,
}

/// Where the value of an environment variable comes from: exactly one of its fields.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].exists_one(x, x)")
        .message("write exactly one of secretKeyRef, configMapKeyRef and fieldRef")
)]
pub struct EnvVarSource {
    /// A key of a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
    /// A key of a ConfigMap in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
    /// A field of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field_ref: Option<FieldRef>,
}

/// A key of a Secret or ConfigMap.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRef {
    /// Name of the object.
    pub name: ObjectName,
    /// The key.
    pub key: KeyName,
    /// Whether the pod may start without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// A field of the pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FieldRef {
    /// Path of the field, for example `metadata.name`.
    #[schemars(length(min = 1, max = 253))]
    pub field_path: String,
}

/// An object whose keys become environment variables: exactly one reference.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.secretRef) != has(self.configMapRef)")
        .message("write exactly one of secretRef and configMapRef")
)]
pub struct EnvFromSource {
    /// Put before each name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<KeyName>,
    /// A Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<OptionalObjectReference>,
    /// A ConfigMap in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<OptionalObjectReference>,
}

/// An object of the same namespace that may be absent.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OptionalObjectReference {
    /// Name of the object.
    pub name: ObjectName,
    /// Whether the pod may start without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// An object of the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalObjectReference {
    /// Name of the object.
    pub name: ObjectName,
}

/// Compute resources of a container.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// The most that the container may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
    /// What is set aside for the container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
}

fn quantities(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": Quantity::json_schema(generator),
    })
}

/// How the sidecar speaks to the server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.type == 'StreamableHttp' || !has(self.http)")
        .message("http belongs to type StreamableHttp: remove it, or change the type")
        .field_path(".http"),
    validation = Rule::new("self.type == 'Stdio' || !has(self.stdio)")
        .message("stdio belongs to type Stdio: remove it, or change the type")
        .field_path(".stdio")
)]
pub struct Transport {
    /// `Stdio`: a process that speaks on its standard input and output. `StreamableHttp`: a server that listens on a port.
    #[serde(rename = "type")]
    pub type_: TransportType,
    /// Where a StreamableHttp server listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTransport>,
    /// How the processes of a Stdio server live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdio: Option<StdioTransport>,
}

/// MCP transport of the wrapped server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransportType {
    /// Newline-delimited JSON-RPC on standard input and output.
    Stdio,
    /// Streamable HTTP (revision 2025-03-26 and later).
    StreamableHttp,
}

/// Where a StreamableHttp server listens inside its pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!(self.port in [9440, 9441, 9442])")
        .message("ports 9440 to 9442 are the sidecar's: let the server listen on another port")
        .field_path(".port")
)]
pub struct HttpTransport {
    /// Port, best bound to 127.0.0.1 only. Default 8080.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Path of the MCP endpoint. Default `/mcp`.
    #[serde(default = "default_path")]
    pub path: UrlPath,
}

fn default_port() -> u16 {
    8080
}

fn default_path() -> UrlPath {
    UrlPath::from("/mcp")
}

impl Default for HttpTransport {
    fn default() -> Self {
        Self {
            port: default_port(),
            path: default_path(),
        }
    }
}

/// How the processes of a Stdio server live.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StdioTransport {
    /// Who shares a process: `PerSession` (default) nobody, `PerUser` the sessions of one caller, `Shared` everyone. It separates state and is no security boundary.
    #[serde(default)]
    pub process: ProcessMode,
    /// The most processes of each replica at a time. Default 50.
    #[serde(default = "default_processes")]
    #[schemars(range(min = 1, max = 500))]
    pub max_processes: u32,
    /// A process without a call or a stream for this time is ended. Default `10m`.
    #[serde(default = "default_idle")]
    pub idle_timeout: Duration,
    /// A process that has not answered its handshake after this time has failed. Default `60s`.
    #[serde(default = "default_startup")]
    pub startup_timeout: Duration,
}

/// Who shares a process of a Stdio server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProcessMode {
    /// Each session has a process of its own.
    #[default]
    PerSession,
    /// The sessions of one caller share a process.
    PerUser,
    /// All sessions share one process.
    Shared,
}

fn default_processes() -> u32 {
    50
}

fn default_idle() -> Duration {
    Duration::minutes(10)
}

fn default_startup() -> Duration {
    Duration::minutes(1)
}

impl Default for StdioTransport {
    fn default() -> Self {
        Self {
            process: ProcessMode::default(),
            max_processes: default_processes(),
            idle_timeout: default_idle(),
            startup_timeout: default_startup(),
        }
    }
}

/// How callers prove who they are.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.issuers) || has(self.audience)")
        .message("write the audience that issuers put into tokens for this server: with issuers, it is required")
        .field_path(".audience"),
    validation = Rule::new("!has(self.issuers) || !has(self.mode) || self.mode != 'Anonymous'")
        .message("an Anonymous server asks for no token, so issuers would mean nothing: remove them, or set mode: Required")
        .field_path(".issuers"),
    validation = Rule::new("!has(self.issuers) || self.issuers.all(a, !has(a.issuer) || self.issuers.exists_one(b, has(b.issuer) && b.issuer == a.issuer))")
        .message("two issuers have the same URL: tokens could be read as either's, so write each once")
        .field_path(".issuers")
)]
pub struct Authentication {
    /// `Required`: each request carries a token for this server. `Anonymous` must be allowed by the chart (`allowAnonymous`).
    #[serde(default)]
    pub mode: AuthenticationMode,
    /// The audience (`aud`) that a token must name; required with `issuers`. Default: `status.url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<Audience>,
    /// Who may issue tokens, by name. Default: `[{name: cluster}]`, the cluster's service-account issuer. Others must be allowed by the chart (`allowedIssuers`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub issuers: Option<Vec<Issuer>>,
    /// A token that is valid for longer (`exp` less `iat`) is refused. Default `1h`.
    #[serde(default = "default_lifetime")]
    pub max_token_lifetime: Duration,
}

fn default_lifetime() -> Duration {
    Duration::minutes(60)
}

impl Default for Authentication {
    fn default() -> Self {
        Self {
            mode: AuthenticationMode::default(),
            audience: None,
            issuers: None,
            max_token_lifetime: default_lifetime(),
        }
    }
}

/// Name of the issuer that is the cluster itself.
pub const CLUSTER_ISSUER: &str = "cluster";

/// An issuer of tokens.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.name != 'cluster' || !(has(self.issuer) || has(self.jwksUri) || has(self.claims) || has(self.tokenTypes) || has(self.algorithms) || has(self.caSecretRef))")
        .message("cluster is the cluster's own issuer, of which all is known: write its name alone, or give this issuer another name"),
    validation = Rule::new("self.name == 'cluster' || has(self.issuer)")
        .message("write the issuer's URL, as it stands in iss of its tokens")
        .field_path(".issuer")
)]
pub struct Issuer {
    /// Name in rules, limits and the audit log. `cluster` is the cluster's service-account issuer.
    pub name: ItemName,
    /// Its URL, exactly as `iss` of its tokens has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<IssuerUrl>,
    /// Where its keys are (RFC 7517). Default: what its metadata says (RFC 8414, OpenID Connect Discovery).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<JwksUrl>,
    /// Which claims say who calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Claims>,
    /// Values of `typ` that its access tokens may have. Default `[at+jwt]` (RFC 9068); add `JWT` where it sends that, or no `typ`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub token_types: Option<Vec<TokenType>>,
    /// Algorithms of its signatures; a key's own `alg` narrows them. Default `[RS256, PS256, ES256, EdDSA]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 9))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub algorithms: Option<Vec<SigningAlgorithm>>,
    /// A Secret of the same namespace with the PEM certificates of the authorities that its TLS certificate may come from, in place of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// How long keys are used that cannot be read anew. Default `24h`.
    #[serde(default = "default_key_age")]
    pub max_key_age: Duration,
}

fn default_key_age() -> Duration {
    Duration::minutes(24 * 60)
}

/// Which claims say who calls. A dot goes into an object (`realm_access.roles`); a name with a `/` or `:` is taken whole.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claims {
    /// The user. Default `sub`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<ClaimPath>,
    /// The agent that acts for the user. Default: `act.sub`, else `azp`, else `client_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<ClaimPath>,
    /// Groups or roles of the user. Default `groups`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<ClaimPath>,
    /// Scopes, a list or text with blanks between them. Default `scope`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<ClaimPath>,
}

/// A value of `typ` of access tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TokenType {
    /// An access token as in RFC 9068.
    #[serde(rename = "at+jwt")]
    AccessToken,
    /// Any JSON Web Token, or one that does not say.
    #[serde(rename = "JWT")]
    Jwt,
}

/// An asymmetric signature algorithm (RFC 7518 §3.1, RFC 8037).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[allow(missing_docs)] // Names of the registry.
pub enum SigningAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// Whether a token is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuthenticationMode {
    /// Each request carries a token for this server.
    #[default]
    Required,
    /// No token is asked for; only rules with `everyone` match.
    Anonymous,
}

/// What is running.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpServerStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// URL of the MCP endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// The audience to ask tokens for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub audience: Option<String>,
    /// Number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the pods, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// Number of tools that the server offers; unset until it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_count: Option<i32>,
    /// Number of policies that target this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_count: Option<i32>,
    /// The bundle that is wanted, and those that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleStatus>,
    /// The tools that the server offers, at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub tools: Vec<ToolStatus>,
    /// Pods of an injected server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub injection: Option<InjectionStatus>,
    /// Whether `tools` leaves tools out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Accepted, Programmed, Ready, Enforced, AuthReady, Isolated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Pods that ask for the sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InjectionStatus {
    /// Those that have it.
    pub injected: i32,
    /// Those that do not: they were there before, or came while their namespace had not opted in. They have to be made anew.
    pub missing: i32,
}

/// Compiled configuration: the wanted one and those that run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BundleStatus {
    /// Hash of the wanted bundle.
    #[schemars(length(max = 80))]
    pub wanted: String,
    /// Bundles in force, by hash.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub running: Vec<RunningBundle>,
}

/// A bundle in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunningBundle {
    /// Its hash.
    #[schemars(length(max = 80))]
    pub hash: String,
    /// Number of pods that have it.
    pub replicas: i32,
}

/// A tool that the server offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolStatus {
    /// Its name.
    #[schemars(length(max = 256))]
    pub name: String,
    /// SHA-256 of its definition (JSON with sorted keys).
    #[schemars(length(max = 80))]
    pub digest: String,
}
