//! Pods of all kinds that ask for the sidecar, for the tests of this crate and for
//! those that ask a real API server.

mod containers;

use crds::{Document, McpServer, ParseError};
use k8s_openapi::{
    api::core::v1::{
        AppArmorProfile, ConfigMapVolumeSource, DownwardAPIVolumeFile, DownwardAPIVolumeSource,
        EmptyDirVolumeSource, HostAlias, HostPathVolumeSource, LocalObjectReference,
        ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Pod, PodReadinessGate,
        PodSecurityContext, PodSpec, ProjectedVolumeSource, SELinuxOptions, SeccompProfile,
        SecretVolumeSource, ServiceAccountTokenProjection, Sysctl, Toleration,
        TopologySpreadConstraint, Volume, VolumeProjection,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::names::{
    BUNDLE_ANNOTATION, CONTAINER_ANNOTATION, INJECTED_ANNOTATION, RESOURCE_ANNOTATIONS,
    SERVER_ANNOTATION, SERVER_LABEL,
};

/// The servers as [`servers`] reads them.
const SERVERS: &str = "
apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {name: plain}
spec:
  transport: {type: StreamableHttp}
  injected: {}
---
apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {name: full}
spec:
  transport: {type: StreamableHttp, http: {port: 3000, path: /v1/mcp}}
  injected: {ports: [9090]}
  identity: {}
  tls: {secretName: full-tls}
  upstreamCredential: {secretRef: {name: full, key: token}}
  sidecar: {resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 128Mi}}}
---
apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {name: lines}
spec:
  transport: {type: Stdio}
  injected: {}
---
apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {name: users}
spec:
  transport: {type: Stdio, stdio: {process: PerUser}}
  injected: {ports: [9090]}
  identity: {}
";
/// Their names, and where they listen.
const PORTS: [(&str, Option<i32>); 4] = [
    ("plain", Some(8080)),
    ("full", Some(3000)),
    ("lines", None),
    ("users", None),
];
/// Names of the volumes, by their kind; the last is not restricted.
const VOLUMES: [&str; 7] = [
    "scratch", "config", "secret", "token", "labels", "data", "node",
];
/// The volume and the folder of the token that a built-in plugin mounts.
const ACCOUNT: (&str, &str) = (
    "kube-api-access-x7k2p",
    "/var/run/secrets/kubernetes.io/serviceaccount",
);

/// The servers whose sidecar the pods of [`pod`] ask for.
///
/// # Errors
/// Where a manifest is not valid any more.
pub fn servers() -> Result<Vec<McpServer>, ParseError> {
    let documents = crds::documents(SERVERS)?.into_iter();
    let servers = documents.filter_map(|document| match document {
        Document::McpServer(server) => Some(*server),
        Document::McpToolPolicy(_) => None,
    });
    Ok(servers.collect())
}

/// A pod that asks for the sidecar of one of [`servers`]: for each seed the same.
/// It can be injected, and the API server accepts it, where the objects that it
/// mounts need not exist. About half of them are as the Pod Security Standard
/// `restricted` has it.
pub fn pod(seed: u64) -> Pod {
    let mut rng = StdRng::seed_from_u64(seed);
    let (server, port) = PORTS[rng.random_range(0..PORTS.len())];
    let mut maker = Maker {
        restricted: rng.random_bool(0.5),
        port,
        grace: None,
        rng,
    };
    maker.grace = maker.one(&[None, None, Some(0), Some(1), Some(5), Some(30), Some(60)]);
    let spec = maker.spec();
    Pod {
        metadata: maker.metadata(seed, server, &spec),
        spec: Some(spec),
        status: None,
    }
}

/// Draws by lot.
struct Maker {
    rng: StdRng,
    /// Whether the pod is to be as `restricted` has it.
    restricted: bool,
    /// Where the server listens; nowhere, for Stdio.
    port: Option<i32>,
    /// `terminationGracePeriodSeconds`.
    grace: Option<i64>,
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Maker {
    fn is(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability)
    }

    fn one<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.rng.random_range(0..list.len())].clone()
    }

    fn maybe<T>(&mut self, probability: f64, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.is(probability).then(|| make(self))
    }

    fn metadata(&mut self, seed: u64, server: &str, spec: &PodSpec) -> ObjectMeta {
        let mut labels = vec![("app.kubernetes.io/name", "orders")];
        if self.is(0.2) {
            labels.push((SERVER_LABEL, server));
        }
        let mut annotations = vec![(SERVER_ANNOTATION, server)];
        if self.is(0.3) {
            annotations.push(("prometheus.io/port", "9090"));
        }
        if self.is(0.1) {
            annotations.push((INJECTED_ANNOTATION, "of a pod that was copied"));
            annotations.push((BUNDLE_ANNOTATION, "sha256:0"));
        }
        let container = self.one(&spec.containers).name;
        if self.is(0.4) {
            annotations.push((CONTAINER_ANNOTATION, container.as_str()));
        }
        let amounts = ["60m", "200m", "64Mi", "128Mi"];
        for (key, amount) in RESOURCE_ANNOTATIONS.into_iter().zip(amounts) {
            if self.is(0.1) {
                annotations.push((key, amount));
            }
        }
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        ObjectMeta {
            name: Some(format!("pod-{seed}")),
            labels: Some(labels.into_iter().map(owned).collect()),
            annotations: Some(annotations.into_iter().map(owned).collect()),
            ..ObjectMeta::default()
        }
    }

    fn spec(&mut self) -> PodSpec {
        let volumes = self.volumes();
        let init = self.maybe(0.5, |maker| maker.init_containers(&volumes));
        let containers = self.containers(&volumes);
        let spread = || TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(LabelSelector::default()),
            ..TopologySpreadConstraint::default()
        };
        let toleration = || Toleration {
            key: text("example.com/dedicated"),
            operator: text("Exists"),
            ..Toleration::default()
        };
        let alias = || HostAlias {
            ip: "127.0.0.1".to_owned(),
            hostnames: Some(strings(&["orders.internal"])),
        };
        let gate = || PodReadinessGate {
            condition_type: "example.com/ready".to_owned(),
        };
        let secret = || LocalObjectReference {
            name: "registry".to_owned(),
        };
        let policies = [None, text("Always"), text("OnFailure"), text("Never")];
        PodSpec {
            init_containers: init,
            containers,
            volumes: (!volumes.is_empty()).then_some(volumes),
            security_context: self.pod_security(),
            restart_policy: self.one(&policies),
            termination_grace_period_seconds: self.grace,
            active_deadline_seconds: self.maybe(0.1, |_| 3600),
            automount_service_account_token: self.maybe(0.4, |maker| maker.is(0.5)),
            enable_service_links: self.maybe(0.3, |maker| maker.is(0.5)),
            host_ipc: self.maybe(0.1, |maker| !maker.restricted),
            host_network: self.maybe(0.1, |_| false),
            share_process_namespace: self.maybe(0.1, |_| false),
            hostname: self.maybe(0.1, |_| "orders".to_owned()),
            subdomain: self.maybe(0.1, |_| "orders".to_owned()),
            dns_policy: self.maybe(0.2, |_| "ClusterFirst".to_owned()),
            node_selector: self.maybe(0.2, |_| {
                [("kubernetes.io/os".to_owned(), "linux".to_owned())].into()
            }),
            host_aliases: self.maybe(0.1, |_| vec![alias()]),
            image_pull_secrets: self.maybe(0.2, |_| vec![secret()]),
            readiness_gates: self.maybe(0.1, |_| vec![gate()]),
            tolerations: self.maybe(0.2, |_| vec![toleration()]),
            topology_spread_constraints: self.maybe(0.2, |_| vec![spread()]),
            ..PodSpec::default()
        }
    }

    fn pod_security(&mut self) -> Option<PodSecurityContext> {
        let level = |_: &mut Self| SELinuxOptions {
            level: text("s0:c123,c456"),
            ..SELinuxOptions::default()
        };
        let mut context = PodSecurityContext {
            fs_group: self.maybe(0.3, |_| 2000),
            run_as_user: self.maybe(0.4, |_| 1000),
            run_as_group: self.maybe(0.2, |_| 1000),
            supplemental_groups: self.maybe(0.1, |_| vec![3000, 4000]),
            se_linux_options: self.maybe(0.1, level),
            ..PodSecurityContext::default()
        };
        if self.restricted {
            context.run_as_non_root = Some(true);
            context.seccomp_profile = Some(profile("RuntimeDefault"));
            return Some(context);
        }
        context.run_as_non_root = self.maybe(0.2, |_| false);
        context.run_as_user = self.one(&[None, Some(0), Some(1000)]);
        context.seccomp_profile = self.maybe(0.3, |_| profile("Unconfined"));
        context.app_armor_profile = self.maybe(0.2, |_| AppArmorProfile {
            type_: "Unconfined".to_owned(),
            ..AppArmorProfile::default()
        });
        context.sysctls = self.maybe(0.1, |_| {
            let (name, value) = ("net.ipv4.ip_unprivileged_port_start", "0");
            vec![Sysctl {
                name: name.to_owned(),
                value: value.to_owned(),
            }]
        });
        if let Some(options) = &mut context.se_linux_options {
            options.type_ = text("spc_t");
        }
        self.maybe(0.8, |_| context)
    }

    fn volumes(&mut self) -> Vec<Volume> {
        let kinds = VOLUMES.len() - usize::from(self.restricted);
        let names = VOLUMES.iter().take(kinds);
        let mut volumes = Vec::new();
        for name in names {
            if self.is(0.25) {
                volumes.push(volume(name));
            }
        }
        if self.is(0.5) {
            volumes.push(Volume {
                name: ACCOUNT.0.to_owned(),
                ..volume("token")
            });
        }
        volumes
    }
}

fn profile(type_: &str) -> SeccompProfile {
    SeccompProfile {
        type_: type_.to_owned(),
        ..SeccompProfile::default()
    }
}

fn volume(name: &str) -> Volume {
    let mut volume = Volume {
        name: name.to_owned(),
        ..Volume::default()
    };
    match name {
        "config" => {
            volume.config_map = Some(ConfigMapVolumeSource {
                name: "orders".to_owned(),
                default_mode: Some(0o440),
                ..ConfigMapVolumeSource::default()
            });
        }
        "secret" => {
            volume.secret = Some(SecretVolumeSource {
                secret_name: text("orders"),
                optional: Some(true),
                ..SecretVolumeSource::default()
            });
        }
        "token" => {
            let token = ServiceAccountTokenProjection {
                path: "token".to_owned(),
                expiration_seconds: Some(3607),
                audience: None,
            };
            volume.projected = Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(token),
                    ..VolumeProjection::default()
                }]),
                ..ProjectedVolumeSource::default()
            });
        }
        "labels" => {
            let labels = DownwardAPIVolumeFile {
                path: "labels".to_owned(),
                field_ref: Some(ObjectFieldSelector {
                    field_path: "metadata.labels".to_owned(),
                    ..ObjectFieldSelector::default()
                }),
                ..DownwardAPIVolumeFile::default()
            };
            volume.downward_api = Some(DownwardAPIVolumeSource {
                items: Some(vec![labels]),
                ..DownwardAPIVolumeSource::default()
            });
        }
        "data" => {
            volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name: "orders".to_owned(),
                read_only: None,
            });
        }
        "node" => {
            volume.host_path = Some(HostPathVolumeSource {
                path: "/var/log".to_owned(),
                type_: None,
            });
        }
        _ => volume.empty_dir = Some(EmptyDirVolumeSource::default()),
    }
    volume
}
