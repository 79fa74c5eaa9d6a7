//! The configuration files of the node's parts. Written anew at each start.

use anyhow::Result;

use super::pki::kubeconfig_path;
use super::plan::{Instance, Plan};
use super::state::State;
use crate::sh;

/// The image that holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "docker.io/toolward/pause:dev";

/// Writes all files below `etc/`.
pub fn write(state: &State, instance: &Instance, plan: Plan, node_name: &str) -> Result<()> {
    let files = [
        ("audit-policy.yaml", AUDIT_POLICY.to_owned()),
        ("containerd.toml", containerd(state)),
        ("cni/10-toolward.conflist", cni(plan)),
        ("kubelet.yaml", kubelet(state, instance, plan)),
        ("kube-proxy.yaml", kube_proxy(state, plan, node_name)),
        ("Corefile", corefile(state)),
        // Pods have no way out: no name server but the cluster's.
        ("resolv.conf", String::new()),
    ];
    for (name, content) in files {
        sh::write(&state.path("etc").join(name), content)?;
    }
    Ok(())
}

/// What service accounts ask for, so that a test can compare RBAC rules with
/// their use. The cluster's own controllers are not of interest.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  userGroups: [\"system:serviceaccounts:kube-system\"]
- level: Metadata
  userGroups: [\"system:serviceaccounts\"]
- level: None
";

fn containerd(state: &State) -> String {
    // Without CAP_SYS_RESOURCE nothing may lower its oom_score_adj.
    format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd"

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "/run/containerd-opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
disable_tcp_service = true
stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
"#,
        root = state.path("containerd").display(),
        socket = state.containerd().display(),
        cni = state.path("etc/cni").display(),
    )
}

fn cni(plan: Plan) -> String {
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "toolward",
  "plugins": [
    {{
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {{
        "type": "host-local",
        "dataDir": "/run/cni/networks",
        "ranges": [[{{"subnet": "{}"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#,
        plan.pod_cidr()
    )
}

fn kubelet(state: &State, instance: &Instance, plan: Plan) -> String {
    let pki = state.path("pki");
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {pki}/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: {pki}/kubelet.crt
tlsPrivateKeyFile: {pki}/kubelet.key
containerRuntimeEndpoint: unix://{containerd}
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
clusterDNS: [{dns}]
clusterDomain: cluster.local
resolvConf: {state}/etc/resolv.conf
# Pods may start on the host's cgroup version and memory as they are.
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {{}}
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
# Images are imported, never pulled: none may be collected.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
volumePluginDir: /run/kubelet-volume-plugins
",
        pki = pki.display(),
        containerd = state.containerd().display(),
        cgroup = instance.cgroup(),
        dns = plan.node_ip(),
        state = state.dir().display(),
    )
}

fn kube_proxy(state: &State, plan: Plan, node_name: &str) -> String {
    // nf_conntrack_max and its time-outs cannot be set in a namespace.
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: {kubeconfig}}}
hostnameOverride: {node_name}
clusterCIDR: {pods}
mode: nftables
nftables: {{minSyncPeriod: 100ms}}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
",
        kubeconfig = kubeconfig_path(state, "kube-proxy").display(),
        pods = plan.pod_cidr(),
    )
}

/// There is no upstream: unknown names get NXDOMAIN instead of a time-out.
fn corefile(state: &State) -> String {
    format!(
        "cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {{
  errors
  ready
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {}
  }}
  cache 5
}}
.:53 {{
  errors
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
",
        kubeconfig_path(state, "coredns").display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Every YAML and JSON file parses: a slip in a template shows here and
    /// not as a kubelet that never starts.
    #[test]
    fn files_parse() {
        let state = State::of("0123abcd");
        let instance = Instance::new(Path::new("/checkout"), None);
        let plan = Plan { slot: 3 };
        let kubelet: serde_json::Value =
            serde_yaml::from_str(&kubelet(&state, &instance, plan)).expect("kubelet");
        assert_eq!(kubelet["clusterDNS"][0], "10.98.3.2");
        let proxy: serde_json::Value =
            serde_yaml::from_str(&kube_proxy(&state, plan, "node")).expect("kube-proxy");
        assert_eq!(proxy["clusterCIDR"], "10.99.3.0/24");
        serde_yaml::from_str::<serde_json::Value>(AUDIT_POLICY).expect("audit policy");
        let cni: serde_json::Value = serde_json::from_str(&cni(plan)).expect("cni");
        assert_eq!(
            cni["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
            "10.99.3.0/24"
        );
    }
}
