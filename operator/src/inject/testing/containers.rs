//! Containers of generated pods.

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapEnvSource, Container, ContainerPort, EnvFromSource, EnvVar,
        EnvVarSource, ExecAction, GRPCAction, HTTPGetAction, HTTPHeader, Lifecycle,
        LifecycleHandler, ObjectFieldSelector, Probe, ResourceRequirements, SecurityContext,
        SleepAction, TCPSocketAction, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use rand::Rng;

use super::{ACCOUNT, Maker, profile, strings, text};

/// Ports of the app: number, name, protocol.
const PORTS: [(i32, &str, Option<&str>); 5] = [
    (8080, "http", None),
    (3000, "mcp", Some("TCP")),
    (9090, "metrics", None),
    (53, "dns", Some("UDP")),
    (8443, "https", Some("TCP")),
];
/// A port on which no server listens, and which no container declares.
const OTHER: i32 = 9191;
/// Where volumes are mounted: it is not within the folder of the shim.
const FOLDER: &str = "/toolwards";
/// Where probes ask, as people write it.
const PATHS: [&str; 6] = [
    "/",
    "/healthz",
    "healthz",
    "/healthz?full=1&x=$(POD_NAME)",
    "/a%20b",
    "/$HOME/\"x\"",
];

impl Maker {
    pub(super) fn containers(&mut self, volumes: &[Volume]) -> Vec<Container> {
        let names = ["web", "worker", "metrics", "log-shipper"];
        let (first, count) = (self.rng.random_range(0..4), self.rng.random_range(1..=4));
        let names = names.iter().cycle().skip(first).take(count);
        let containers = names.enumerate().map(|(index, name)| {
            let mut container = self.container(name, volumes);
            let ports = container.ports.clone().unwrap_or_default();
            self.probes(&mut container, &ports, false);
            container.lifecycle = self.maybe(0.4, Self::lifecycle);
            // Ports of a node are there once.
            let mut declared = container.ports.iter_mut().flatten();
            if !self.restricted
                && index == 0
                && let Some(port) = declared.find(|port| port.container_port == 9090)
            {
                port.host_port = Some(19_090);
            }
            container
        });
        containers.collect()
    }

    pub(super) fn init_containers(&mut self, volumes: &[Volume]) -> Vec<Container> {
        let mut containers = Vec::new();
        for name in ["prepare", "proxy", "migrate"] {
            if self.is(0.5) {
                let mut container = self.container(name, volumes);
                if name == "proxy" {
                    container.restart_policy = text("Always");
                    let ports = container.ports.clone().unwrap_or_default();
                    self.probes(&mut container, &ports, true);
                    container.lifecycle = self.maybe(0.3, Self::lifecycle);
                }
                containers.push(container);
            }
        }
        containers
    }

    fn container(&mut self, name: &str, volumes: &[Volume]) -> Container {
        let mut mounts = Vec::new();
        for volume in volumes {
            if volume.name == ACCOUNT.0 {
                mounts.push(VolumeMount {
                    name: volume.name.clone(),
                    mount_path: ACCOUNT.1.to_owned(),
                    read_only: Some(true),
                    ..VolumeMount::default()
                });
            } else if self.is(0.4) {
                mounts.push(VolumeMount {
                    name: volume.name.clone(),
                    mount_path: format!("{FOLDER}/{}", volume.name),
                    read_only: self.maybe(0.3, |maker| maker.is(0.5)),
                    ..VolumeMount::default()
                });
            }
        }
        let policies = [None, text("Always"), text("IfNotPresent"), text("Never")];
        // Stdio needs it, in whichever container is named.
        let has_command = self.port.is_none() || self.is(0.5);
        Container {
            name: name.to_owned(),
            image: text("registry.example/orders:1.4"),
            image_pull_policy: self.one(&policies),
            command: has_command.then(|| strings(&["node", "/srv/index.js", "--", "$(NAME)"])),
            args: self.maybe(0.5, |_| strings(&["--verbose", "--"])),
            env: self.maybe(0.5, |_| variables()),
            env_from: self.maybe(0.1, |_| vec![all_of_a_map()]),
            ports: self.maybe(0.7, Self::ports),
            resources: self.maybe(0.5, Self::resources),
            security_context: self.security(),
            volume_mounts: (!mounts.is_empty()).then_some(mounts),
            working_dir: self.maybe(0.1, |_| "/srv".to_owned()),
            stdin: self.maybe(0.1, |maker| maker.is(0.5)),
            tty: self.maybe(0.1, |maker| maker.is(0.5)),
            termination_message_path: self.maybe(0.1, |_| "/dev/termination-log".to_owned()),
            termination_message_policy: self.maybe(0.1, |_| "File".to_owned()),
            ..Container::default()
        }
    }

    fn ports(&mut self) -> Vec<ContainerPort> {
        let mut ports = Vec::new();
        for (number, name, protocol) in PORTS {
            if self.is(0.4) {
                ports.push(ContainerPort {
                    container_port: number,
                    name: self.maybe(0.7, |_| name.to_owned()),
                    protocol: protocol.map(str::to_owned),
                    ..ContainerPort::default()
                });
            }
        }
        ports
    }

    fn resources(&mut self) -> ResourceRequirements {
        let amount = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
        ResourceRequirements {
            requests: self.maybe(0.6, |_| [amount("cpu", "100m")].into()),
            limits: self.maybe(0.6, |_| {
                [amount("cpu", "1"), amount("memory", "256Mi")].into()
            }),
            ..ResourceRequirements::default()
        }
    }

    fn security(&mut self) -> Option<SecurityContext> {
        let capabilities = |drop: &[&str], add: Option<Vec<String>>| Capabilities {
            drop: Some(strings(drop)),
            add,
        };
        if self.restricted {
            let add = self.maybe(0.2, |_| strings(&["NET_BIND_SERVICE"]));
            return Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(capabilities(&["ALL"], add)),
                run_as_non_root: self.maybe(0.3, |_| true),
                run_as_user: self.maybe(0.3, |_| 10_001),
                read_only_root_filesystem: self.maybe(0.3, |maker| maker.is(0.5)),
                seccomp_profile: self.maybe(0.3, |_| profile("RuntimeDefault")),
                ..SecurityContext::default()
            });
        }
        let privileged = self.is(0.1);
        let add = self.maybe(0.2, |_| strings(&["NET_ADMIN", "CHOWN"]));
        let context = SecurityContext {
            privileged: privileged.then_some(true),
            allow_privilege_escalation: self.maybe(0.2, |_| true),
            capabilities: add.map(|add| capabilities(&["MKNOD"], Some(add))),
            run_as_user: self.one(&[None, Some(0), Some(10_001)]),
            seccomp_profile: self.maybe(0.2, |_| profile("Unconfined")),
            ..SecurityContext::default()
        };
        self.maybe(0.6, |_| context)
    }

    fn lifecycle(&mut self) -> Lifecycle {
        let exec = || LifecycleHandler {
            exec: Some(command(&["/bin/true"])),
            ..LifecycleHandler::default()
        };
        let most = self.grace.unwrap_or(30);
        Lifecycle {
            post_start: self.maybe(0.3, |_| exec()),
            pre_stop: self.maybe(0.6, |maker| match maker.rng.random_range(0..3) {
                0 if most > 0 => LifecycleHandler {
                    sleep: Some(SleepAction {
                        seconds: most.min(3),
                    }),
                    ..LifecycleHandler::default()
                },
                1 => LifecycleHandler {
                    http_get: Some(http(IntOrString::Int(OTHER), "/quit")),
                    ..LifecycleHandler::default()
                },
                _ => exec(),
            }),
            ..Lifecycle::default()
        }
    }

    /// Probes of a container. Of an init container, only that of readiness is of the
    /// server's port.
    fn probes(&mut self, container: &mut Container, ports: &[ContainerPort], is_init: bool) {
        container.liveness_probe = self.maybe(0.4, |maker| {
            let mut probe = maker.probe(ports, !is_init);
            probe.termination_grace_period_seconds = maker.maybe(0.1, |_| 5);
            probe
        });
        container.readiness_probe = self.maybe(0.4, |maker| {
            let mut probe = maker.probe(ports, true);
            probe.success_threshold = maker.maybe(0.2, |_| 2);
            probe
        });
        container.startup_probe = self.maybe(0.3, |maker| maker.probe(ports, !is_init));
    }

    fn probe(&mut self, ports: &[ContainerPort], may_be_of_server: bool) -> Probe {
        let mut probe = Probe {
            initial_delay_seconds: self.maybe(0.3, |_| 5),
            period_seconds: self.maybe(0.3, |_| 7),
            timeout_seconds: self.maybe(0.4, |_| 3),
            failure_threshold: self.maybe(0.3, |_| 4),
            ..Probe::default()
        };
        let kinds = if may_be_of_server { 6 } else { 4 };
        match self.rng.random_range(0..kinds) {
            0 => probe.exec = Some(command(&["/bin/true"])),
            1 => {
                probe.grpc = Some(GRPCAction {
                    port: OTHER,
                    service: self.maybe(0.3, |_| "health".to_owned()),
                });
            }
            2 => {
                let mut get = http(IntOrString::Int(OTHER), "/healthz");
                get.scheme = self.maybe(0.5, |_| "HTTPS".to_owned());
                get.host = self.maybe(0.3, |_| "10.1.2.3".to_owned());
                probe.http_get = Some(get);
            }
            3 => probe.tcp_socket = Some(tcp(IntOrString::Int(OTHER))),
            4 => {
                let path = self.one(&PATHS);
                let mut get = http(self.server_port(ports), path);
                get.path = get.path.filter(|_| self.is(0.9));
                get.scheme = self.maybe(0.2, |_| "HTTP".to_owned());
                get.http_headers = self.maybe(0.3, |_| headers());
                probe.http_get = Some(get);
            }
            _ => probe.tcp_socket = Some(tcp(self.server_port(ports))),
        }
        probe
    }

    /// The server's port by its number, or by its name where it has one.
    fn server_port(&mut self, ports: &[ContainerPort]) -> IntOrString {
        let number = self.port.unwrap_or(OTHER);
        let named = ports.iter().find(|port| port.container_port == number);
        let name = named.and_then(|port| port.name.clone());
        match name {
            Some(name) if self.is(0.5) => IntOrString::String(name),
            _ => IntOrString::Int(number),
        }
    }
}

fn command(words: &[&str]) -> ExecAction {
    ExecAction {
        command: Some(strings(words)),
    }
}

fn http(port: IntOrString, path: &str) -> HTTPGetAction {
    HTTPGetAction {
        path: text(path),
        port,
        ..HTTPGetAction::default()
    }
}

fn tcp(port: IntOrString) -> TCPSocketAction {
    TCPSocketAction { host: None, port }
}

fn headers() -> Vec<HTTPHeader> {
    let header = |name: &str, value: &str| HTTPHeader {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    vec![
        header("X-Probe", "$(NAME) \"1\""),
        header("Host", "orders.internal"),
    ]
}

fn variables() -> Vec<EnvVar> {
    let of_field = EnvVarSource {
        field_ref: Some(ObjectFieldSelector {
            field_path: "metadata.name".to_owned(),
            ..ObjectFieldSelector::default()
        }),
        ..EnvVarSource::default()
    };
    vec![
        EnvVar {
            name: "PORT".to_owned(),
            value: text("8080"),
            value_from: None,
        },
        EnvVar {
            name: "NAME".to_owned(),
            value: None,
            value_from: Some(of_field),
        },
    ]
}

fn all_of_a_map() -> EnvFromSource {
    EnvFromSource {
        prefix: text("ORDERS_"),
        config_map_ref: Some(ConfigMapEnvSource {
            name: "orders".to_owned(),
            optional: Some(true),
        }),
        secret_ref: None,
    }
}
