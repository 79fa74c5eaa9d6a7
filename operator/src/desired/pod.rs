//! The containers of a server's pod.
//!
//! Invariants: the server's container has a UID of its own, no token and none
//! of the sidecar's files but, for Stdio, the shim and its socket. The UIDs of
//! server and sidecar differ, so that the kubelet makes the sidecar's token
//! readable for it without an fsGroup.

use std::collections::BTreeMap;

use crds::{
    Authentication, DeploymentSpec, ItemName, McpServerSpec, ProcessMode, SecretKeyRef,
    StdioTransport, Transport, TransportType,
};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapEnvSource, ConfigMapKeySelector, Container, ContainerPort,
        EnvFromSource, EnvVar, EnvVarSource, ExecAction, HTTPGetAction, Lifecycle,
        LifecycleHandler, ObjectFieldSelector, Probe, ResourceRequirements, SeccompProfile,
        SecretEnvSource, SecretKeySelector, SecurityContext, SleepAction, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use super::SidecarImage;
use crate::names::{
    ADMIN_PORT, INSTALL_CONTAINER, MCP_PORT, PEER_PORT, SERVER_CONTAINER, SIDECAR_CONTAINER,
};

pub(crate) const BUNDLE_VOLUME: &str = "toolward-bundle";
pub(crate) const BIN_VOLUME: &str = "toolward-bin";
pub(crate) const RUN_VOLUME: &str = "toolward-run";
pub(crate) const PEER_VOLUME: &str = "toolward-peer";
pub(crate) const IDENTITY_VOLUME: &str = "toolward-identity";
pub(crate) const TOKEN_FILE: &str = "token";

pub(crate) const AUTHORITIES_VOLUME: &str = "toolward-authorities";
pub(crate) const CREDENTIAL_VOLUME: &str = "toolward-credential";
pub(crate) const CREDENTIAL_FILE: &str = "value";
pub(crate) const TLS_VOLUME: &str = "toolward-tls";

const BUNDLE_DIR: &str = "/etc/toolward/bundle";
const AUTHORITIES_DIR: &str = "/etc/toolward/authorities";
const CREDENTIAL_DIR: &str = "/etc/toolward/credential";
const TLS_DIR: &str = "/etc/toolward/tls";
const PEER_DIR: &str = "/var/run/toolward/peer";
const IDENTITY_DIR: &str = "/var/run/toolward/identity";
const BIN_DIR: &str = "/toolward/bin";
const RUN_DIR: &str = "/toolward/run";
const SOCKET: &str = "/toolward/run/mcp.sock";

/// One that images do not use: 65532 is that of many.
pub(crate) const SIDECAR_UID: i64 = 9440;
const SERVER_UID: i64 = 65533;
/// How long the server outlives the request to drain, so that calls can finish: the
/// sidecar serves for 5 s more, and then finishes calls for 10 s.
pub(crate) const DRAIN_SECONDS: i64 = 15;

pub(crate) fn is_stdio(transport: &Transport) -> bool {
    transport.type_ == TransportType::Stdio
}

/// Copies the shim for the server's container.
pub(crate) fn install(spec: &McpServerSpec, sidecar: &SidecarImage) -> Container {
    Container {
        name: INSTALL_CONTAINER.to_owned(),
        args: Some(strings(&["install", BIN_DIR])),
        volume_mounts: Some(vec![mount(BIN_VOLUME, BIN_DIR, false)]),
        ..sidecar_image(spec, sidecar)
    }
}

/// The sidecar in front of the server.
pub(crate) fn sidecar(spec: &McpServerSpec, sidecar: &SidecarImage) -> Container {
    let transport = &spec.transport;
    let port = |name: &str, port| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mut args = strings(&["serve", "--bundle", BUNDLE_DIR]);
    args.extend(strings(&["--replica", "$(POD_NAME)", "--peer-token"]));
    args.push(format!("{PEER_DIR}/{TOKEN_FILE}"));
    let mut mounts = vec![
        mount(BUNDLE_VOLUME, BUNDLE_DIR, true),
        mount(PEER_VOLUME, PEER_DIR, true),
    ];
    if spec.identity.is_some() {
        args.extend(strings(&["--identity-keys", IDENTITY_DIR]));
        args.push("--identity-token".to_owned());
        args.push(format!("{IDENTITY_DIR}/{TOKEN_FILE}"));
        mounts.push(mount(IDENTITY_VOLUME, IDENTITY_DIR, true));
    }
    if authorities(&spec.authentication).next().is_some() {
        args.extend(strings(&["--issuer-authorities", AUTHORITIES_DIR]));
        mounts.push(mount(AUTHORITIES_VOLUME, AUTHORITIES_DIR, true));
    }
    if let Some(credential) = &spec.upstream_credential {
        args.extend(strings(&[
            "--upstream-credential-header",
            &credential.header,
        ]));
        args.push("--upstream-credential".to_owned());
        args.push(format!("{CREDENTIAL_DIR}/{CREDENTIAL_FILE}"));
        mounts.push(mount(CREDENTIAL_VOLUME, CREDENTIAL_DIR, true));
    }
    if spec.tls.is_some() {
        args.extend(strings(&["--tls", TLS_DIR]));
        mounts.push(mount(TLS_VOLUME, TLS_DIR, true));
    }
    if is_stdio(transport) {
        args.extend(strings(&["--socket", SOCKET]));
        args.extend(processes(&transport.stdio.clone().unwrap_or_default()));
        mounts.push(mount(RUN_VOLUME, RUN_DIR, true));
    } else {
        let http = transport.http.clone().unwrap_or_default();
        let upstream = format!("http://127.0.0.1:{}{}", http.port, http.path);
        args.extend(["--upstream".to_owned(), upstream]);
    }
    Container {
        name: SIDECAR_CONTAINER.to_owned(),
        restart_policy: Some("Always".to_owned()),
        args: Some(args),
        env: Some(vec![EnvVar {
            name: "POD_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(field("metadata.name")),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(vec![
            port("mcp", MCP_PORT),
            port("admin", i32::from(ADMIN_PORT)),
            port("peers", PEER_PORT),
        ]),
        startup_probe: Some(probe("/healthz", 1, 120)),
        // A minute: on a node that is out of processors, a sidecar that is started
        // again would cut off calls, and be no faster.
        liveness_probe: Some(probe("/healthz", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 3)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                exec: Some(ExecAction {
                    command: Some(strings(&["/toolward-sidecar", "drain"])),
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        volume_mounts: Some(mounts),
        ..sidecar_image(spec, sidecar)
    }
}

/// Issuers with authorities of their own, and the Secrets that hold these.
pub(crate) fn authorities(
    authentication: &Authentication,
) -> impl Iterator<Item = (&ItemName, &SecretKeyRef)> {
    let issuers = authentication.issuers.iter().flatten();
    issuers.filter_map(|issuer| Some((&issuer.name, issuer.ca_secret_ref.as_ref()?)))
}

/// How the processes of a stdio server live, on the sidecar's command line.
fn processes(stdio: &StdioTransport) -> [String; 8] {
    let StdioTransport {
        process,
        max_processes,
        idle_timeout,
        startup_timeout,
    } = stdio;
    let process = match process {
        ProcessMode::PerSession => "per-session",
        ProcessMode::PerUser => "per-user",
        ProcessMode::Shared => "shared",
    };
    [
        "--process".to_owned(),
        process.to_owned(),
        "--max-processes".to_owned(),
        max_processes.to_string(),
        "--idle-timeout".to_owned(),
        idle_timeout.to_string(),
        "--startup-timeout".to_owned(),
        startup_timeout.to_string(),
    ]
}

/// What all containers of the sidecar's image have in common. A quota asks all of
/// them alike for resources.
fn sidecar_image(spec: &McpServerSpec, sidecar: &SidecarImage) -> Container {
    Container {
        image: Some(sidecar.image.clone()),
        image_pull_policy: Some(sidecar.pull_policy.clone()),
        resources: Some(sidecar_resources(spec)),
        security_context: Some(SecurityContext {
            read_only_root_filesystem: Some(true),
            ..restricted(SIDECAR_UID)
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn sidecar_resources(spec: &McpServerSpec) -> ResourceRequirements {
    let resources = spec.sidecar.as_ref().and_then(|it| it.resources.as_ref());
    resources.map_or_else(default_resources, requirements)
}

fn default_resources() -> ResourceRequirements {
    let quantity = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    ResourceRequirements {
        requests: Some([quantity("cpu", "10m"), quantity("memory", "32Mi")].into()),
        ..ResourceRequirements::default()
    }
}

/// The wrapped server.
pub(crate) fn server(spec: &McpServerSpec, run: &DeploymentSpec) -> Container {
    let DeploymentSpec {
        image,
        command,
        args,
        env,
        env_from,
        resources,
        // Of the pod and the Deployment, not of the container:
        service_account_name: _,
        image_pull_secrets: _,
        replicas: _,
    } = run;
    let stdio = is_stdio(&spec.transport);
    let words = |list: &Option<Vec<crds::Argument>>| -> Option<Vec<String>> {
        list.as_ref()
            .map(|words| words.iter().map(ToString::to_string).collect())
    };
    let (mut command, args) = (words(command), words(args));
    if stdio {
        command = Some(shimmed(command.unwrap_or_default()));
    }
    Container {
        name: SERVER_CONTAINER.to_owned(),
        image: Some(image.to_string()),
        command,
        args,
        env: env.as_ref().map(|list| list.iter().map(variable).collect()),
        env_from: env_from
            .as_ref()
            .map(|list| list.iter().map(variables).collect()),
        resources: resources.as_ref().map(requirements),
        volume_mounts: stdio.then(|| server_mounts().into()),
        security_context: Some(restricted(SERVER_UID)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(outlive_intake()),
            ..Lifecycle::default()
        }),
        ..Container::default()
    }
}

/// The command line of a stdio server, run by the shim.
pub(crate) fn shimmed(command: Vec<String>) -> Vec<String> {
    let mut shim = shim();
    shim.extend(command);
    shim
}

/// What stands before the command of a stdio server.
pub(crate) fn shim() -> Vec<String> {
    let mut shim = strings(&["/toolward/bin/toolward-sidecar", "shim", "--socket", SOCKET]);
    shim.extend(["--peer-uid".to_owned(), SIDECAR_UID.to_string()]);
    shim.push("--".to_owned());
    shim
}

/// What the container of a stdio server shares with the sidecar.
pub(crate) fn server_mounts() -> [VolumeMount; 2] {
    [
        mount(BIN_VOLUME, BIN_DIR, true),
        mount(RUN_VOLUME, RUN_DIR, false),
    ]
}

/// Keeps a server's container until the sidecar's intake has stopped and calls
/// have finished.
pub(crate) fn outlive_intake() -> LifecycleHandler {
    LifecycleHandler {
        sleep: Some(SleepAction {
            seconds: DRAIN_SECONDS,
        }),
        ..LifecycleHandler::default()
    }
}

/// What the Pod Security Standard `restricted` asks for.
fn restricted(uid: i64) -> SecurityContext {
    SecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(uid),
        run_as_group: Some(uid),
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(strings(&["ALL"])),
            ..Capabilities::default()
        }),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..SecurityContext::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(ADMIN_PORT)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn field(path: &str) -> ObjectFieldSelector {
    ObjectFieldSelector {
        field_path: path.to_owned(),
        ..ObjectFieldSelector::default()
    }
}

fn variable(variable: &crds::EnvVar) -> EnvVar {
    let source = |source: &crds::EnvVarSource| EnvVarSource {
        secret_key_ref: source.secret_key_ref.as_ref().map(|key| SecretKeySelector {
            name: key.name.to_string(),
            key: key.key.to_string(),
            optional: key.optional,
        }),
        config_map_key_ref: source
            .config_map_key_ref
            .as_ref()
            .map(|key| ConfigMapKeySelector {
                name: key.name.to_string(),
                key: key.key.to_string(),
                optional: key.optional,
            }),
        field_ref: source.field_ref.as_ref().map(|f| field(&f.field_path)),
        ..EnvVarSource::default()
    };
    EnvVar {
        name: variable.name.to_string(),
        value: variable.value.clone(),
        value_from: variable.value_from.as_ref().map(source),
    }
}

fn variables(source: &crds::EnvFromSource) -> EnvFromSource {
    EnvFromSource {
        prefix: source.prefix.as_ref().map(ToString::to_string),
        secret_ref: source.secret_ref.as_ref().map(|secret| SecretEnvSource {
            name: secret.name.to_string(),
            optional: secret.optional,
        }),
        config_map_ref: source
            .config_map_ref
            .as_ref()
            .map(|map| ConfigMapEnvSource {
                name: map.name.to_string(),
                optional: map.optional,
            }),
    }
}

fn requirements(resources: &crds::Resources) -> ResourceRequirements {
    let amounts = |list: &BTreeMap<String, crds::Quantity>| {
        let amount = |(name, amount): (&String, &crds::Quantity)| {
            (name.clone(), Quantity(amount.to_string()))
        };
        (!list.is_empty()).then(|| list.iter().map(amount).collect())
    };
    ResourceRequirements {
        requests: amounts(&resources.requests),
        limits: amounts(&resources.limits),
        ..ResourceRequirements::default()
    }
}
