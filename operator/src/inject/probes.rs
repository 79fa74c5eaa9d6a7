//! Probes of the server's port. The kubelet makes them from outside the pod, where
//! nothing that listens on loopback is reached: the sidecar makes them in its place.
//!
//! A probe of the kubelet becomes `httpGet` of `/probe/CONTAINER/KIND` on the
//! sidecar's admin port; what it was stands in the sidecar's argument
//! `--app-probes`, from where it is read again when the pod comes again.

use std::{collections::BTreeMap, net::IpAddr};

use http::{HeaderName, HeaderValue, uri::PathAndQuery};
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, HTTPGetAction, Lifecycle, PodSpec, Probe, TCPSocketAction,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Refusal, Target, is_ours};
use crate::names::{ADMIN_PORT, SIDECAR_CONTAINER};

/// The sidecar's argument.
const ARGUMENT: &str = "--app-probes";
/// Where the sidecar's admin port makes probes.
const PATH: &str = "/probe/";
/// Most seconds that the sidecar waits for an answer (`sidecar/src/app_probes.rs`).
const MAX_TIMEOUT: i32 = 60;
/// Longest argument: the kernel takes 128 KiB for one.
const MAX_BYTES: usize = 64 * 1024;

/// What the sidecar is to ask, by `CONTAINER/KIND`.
pub(super) type Asked = BTreeMap<String, Probe>;

/// Points probes of the server's port to the sidecar, and tells what they were.
pub(super) fn rewrite(
    spec: &mut PodSpec,
    target: &Target<'_>,
    refusals: &mut Vec<Refusal>,
) -> Asked {
    let rewriter = Rewriter {
        known: known(spec),
        port: target.port(),
    };
    let is_stdio = target.is_stdio();
    let mut asked = Asked::new();
    let init = spec.init_containers.iter_mut().flatten().enumerate();
    for (index, container) in init.filter(|(_, container)| !is_ours(container, is_stdio)) {
        let path = format!("spec.initContainers[{index}]");
        rewriter.container(&path, container, true, &mut asked, refusals);
    }
    for (index, container) in spec.containers.iter_mut().enumerate() {
        let path = format!("spec.containers[{index}]");
        rewriter.container(&path, container, false, &mut asked, refusals);
    }
    asked
}

/// The sidecar's arguments that tell what to ask; none where there is nothing.
pub(super) fn arguments(asked: &Asked) -> Result<Vec<String>, Refusal> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let refused = |message: String| Refusal::new("spec.containers", message);
    let json = serde_json::to_string(asked).map_err(|error| refused(error.to_string()))?;
    // Kubernetes would put an environment variable in the place of `$(NAME)`.
    let json = json.replace('$', "\\u0024");
    if json.len() > MAX_BYTES {
        let message = format!(
            "the probes of the server's port have {} bytes, and {MAX_BYTES} is the most: write fewer headers",
            json.len()
        );
        return Err(refused(message));
    }
    Ok(vec![ARGUMENT.to_owned(), json])
}

/// What the sidecar that is there was told.
fn known(spec: &PodSpec) -> Asked {
    let mut containers = spec.init_containers.iter().flatten();
    let sidecar = containers.find(|container| container.name == SIDECAR_CONTAINER);
    let args = sidecar.and_then(|sidecar| sidecar.args.as_ref());
    let mut args = args
        .into_iter()
        .flatten()
        .skip_while(|arg| *arg != ARGUMENT);
    let asked = args.nth(1).map(|json| serde_json::from_str(json));
    asked.and_then(Result::ok).unwrap_or_default()
}

struct Rewriter {
    known: Asked,
    /// Where the server listens.
    port: Option<i32>,
}

impl Rewriter {
    fn container(
        &self,
        path: &str,
        container: &mut Container,
        is_init: bool,
        asked: &mut Asked,
        refusals: &mut Vec<Refusal>,
    ) {
        let Container {
            name,
            ports,
            lifecycle,
            liveness_probe,
            readiness_probe,
            startup_probe,
            ..
        } = container;
        let ports = ports.as_deref().unwrap_or_default();
        refusals.extend(self.hooks(path, lifecycle.as_ref(), ports));
        for (kind, probe) in [
            ("liveness", liveness_probe),
            ("readiness", readiness_probe),
            ("startup", startup_probe),
        ] {
            let Some(probe) = probe else { continue };
            let path = format!("{path}.{kind}Probe");
            let name = format!("{name}/{kind}");
            match self.probe(&path, &name, probe, ports) {
                Ok(None) => {}
                // It would have to succeed, at once or for as long as other init
                // containers take, before the sidecar is started.
                Ok(Some(_)) if is_init && kind != "readiness" => {
                    let message = "it is made before the sidecar runs, which alone reaches the server's port: write exec, or run the server in spec.containers";
                    refusals.push(Refusal::new(path, message));
                }
                Ok(Some(original)) => drop(asked.insert(name, original)),
                Err(refusal) => refusals.push(refusal),
            }
        }
    }

    /// What a probe of the server's port was, now that it asks the sidecar; none
    /// where it asks something else.
    fn probe(
        &self,
        path: &str,
        name: &str,
        probe: &mut Probe,
        ports: &[ContainerPort],
    ) -> Result<Option<Probe>, Refusal> {
        let own = format!("{PATH}{name}");
        if let Some(asked) = of_sidecar(probe) {
            let original = self.known.get(name).filter(|_| asked == own);
            return match original {
                Some(original) => Ok(Some(original.clone())),
                None => Err(Refusal::new(
                    format!("{path}.httpGet"),
                    "it asks the sidecar for a probe that is not known: write that of the server, with the server's own port",
                )),
            };
        }
        let mut original = Probe {
            timeout_seconds: probe.timeout_seconds,
            ..Probe::default()
        };
        if let Some(get) = probe
            .http_get
            .as_ref()
            .filter(|it| is_here(it.host.as_deref()) && self.is(&it.port, ports))
        {
            original.http_get = Some(self.get(&format!("{path}.httpGet"), get)?);
        } else if let Some(tcp) = probe.tcp_socket.as_ref()
            && is_here(tcp.host.as_deref())
            && self.is(&tcp.port, ports)
        {
            original.tcp_socket = Some(self.tcp(&format!("{path}.tcpSocket"), tcp)?);
        } else if let Some(grpc) = &probe.grpc
            && self.port == Some(grpc.port)
        {
            let message = "the sidecar, which alone reaches the server's port, makes no gRPC probes: write httpGet, tcpSocket or exec";
            return Err(Refusal::new(format!("{path}.grpc"), message));
        } else {
            return Ok(None);
        }
        if original.timeout_seconds.is_some_and(|it| it > MAX_TIMEOUT) {
            let message =
                format!("the sidecar waits {MAX_TIMEOUT} s for an answer at most: write no more");
            return Err(Refusal::new(format!("{path}.timeoutSeconds"), message));
        }
        probe.tcp_socket = None;
        probe.http_get = Some(HTTPGetAction {
            path: Some(own),
            port: IntOrString::Int(i32::from(ADMIN_PORT)),
            ..HTTPGetAction::default()
        });
        Ok(Some(original))
    }

    /// Whether a port is the server's. A name is one of the container's own ports.
    fn is(&self, port: &IntOrString, ports: &[ContainerPort]) -> bool {
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => {
                let mut named = ports.iter().filter(|port| port.name.as_ref() == Some(name));
                let number = named.next().map(|port| port.container_port);
                number.or_else(|| name.parse().ok())
            }
        };
        self.port.is_some() && number == self.port
    }

    fn number(&self) -> IntOrString {
        IntOrString::Int(self.port.unwrap_or_default())
    }

    fn get(&self, path: &str, get: &HTTPGetAction) -> Result<HTTPGetAction, Refusal> {
        no_host(path, get.host.as_deref())?;
        if get.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
            let message = "the sidecar speaks plain HTTP to the server: remove it, or write exec";
            return Err(Refusal::new(format!("{path}.scheme"), message));
        }
        for (index, header) in get.http_headers.iter().flatten().enumerate() {
            let is_header = HeaderName::from_bytes(header.name.as_bytes()).is_ok()
                && HeaderValue::from_str(&header.value).is_ok();
            if !is_header {
                let message = "it cannot be sent: write a name and a value of visible ASCII characters and blanks";
                let path = format!("{path}.httpHeaders[{index}]");
                return Err(Refusal::new(path, message));
            }
        }
        let asked = get.path.as_deref().unwrap_or("/");
        let asked = match asked.starts_with('/') {
            true => asked.to_owned(),
            false => format!("/{asked}"),
        };
        let is_ascii = asked.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_ascii || asked.parse::<PathAndQuery>().is_err() {
            let message =
                "it cannot be sent: write a path of visible ASCII characters, others as %XX";
            return Err(Refusal::new(format!("{path}.path"), message));
        }
        Ok(HTTPGetAction {
            http_headers: get.http_headers.clone(),
            path: Some(asked),
            port: self.number(),
            ..HTTPGetAction::default()
        })
    }

    fn tcp(&self, path: &str, tcp: &TCPSocketAction) -> Result<TCPSocketAction, Refusal> {
        no_host(path, tcp.host.as_deref())?;
        Ok(TCPSocketAction {
            host: None,
            port: self.number(),
        })
    }

    /// A hook is run once, by the kubelet: the sidecar cannot stand in for it.
    fn hooks(
        &self,
        path: &str,
        lifecycle: Option<&Lifecycle>,
        ports: &[ContainerPort],
    ) -> Vec<Refusal> {
        let hooks = lifecycle.map(|it| [("postStart", &it.post_start), ("preStop", &it.pre_stop)]);
        let hooks = hooks.into_iter().flatten();
        let of_server = hooks.filter(|(_, hook)| {
            let get = hook.as_ref().and_then(|hook| hook.http_get.as_ref());
            get.is_some_and(|get| is_here(get.host.as_deref()) && self.is(&get.port, ports))
        });
        let message = "the kubelet makes it from outside the pod, where the server's port is not reached: write exec";
        of_server
            .map(|(name, _)| Refusal::new(format!("{path}.lifecycle.{name}.httpGet"), message))
            .collect()
    }
}

/// The path that a probe asks the sidecar for, where that is one of the app's.
fn of_sidecar(probe: &Probe) -> Option<&str> {
    let get = probe.http_get.as_ref()?;
    let is_admin = get.port == IntOrString::Int(i32::from(ADMIN_PORT));
    let path = get.path.as_deref().filter(|path| path.starts_with(PATH));
    path.filter(|_| is_admin)
}

/// Whether who asks this host means the pod: none is the pod's address. Loopback is
/// the node's, which nobody means.
fn is_here(host: Option<&str>) -> bool {
    let Some(host) = host else { return true };
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|it| it.is_loopback());
    host.is_empty() || host == "localhost" || is_loopback
}

fn no_host(path: &str, host: Option<&str>) -> Result<(), Refusal> {
    match host {
        None | Some("") => Ok(()),
        Some(_) => {
            let message =
                "the sidecar, which alone reaches the server's port, asks on loopback: remove it";
            Err(Refusal::new(format!("{path}.host"), message))
        }
    }
}
