//! The programs of the node and their arguments.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::pki::kubeconfig_path;
use super::plan::Plan;
use super::state::State;
use crate::tools::Tools;

/// What process 1 of the node has to do; `node.json` in the instance's folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The instance's folder.
    pub dir: PathBuf,
    /// The node's host name.
    pub hostname: String,
    /// The node's address with its prefix length.
    pub address: String,
    /// Addresses of Services.
    pub services: String,
    /// Where the cached programs are; bound to `programs` in `dir`, because
    /// the cache may lie in a folder that the node covers.
    pub programs: PathBuf,
    /// What to keep running.
    pub parts: Vec<Part>,
}

/// One program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Its name, also of its log.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What has to answer before it is started.
    pub after: Option<Gate>,
}

/// A condition for starting a part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Gate {
    /// A TCP address takes connections.
    Tcp(String),
    /// A Unix socket takes connections.
    Unix(PathBuf),
}

/// The node of an instance.
pub fn node(state: &State, plan: Plan, node_name: &str, tools: &Tools) -> NodeSpec {
    let maker = Maker {
        state,
        plan,
        node_name,
    };
    NodeSpec {
        dir: state.dir().to_owned(),
        hostname: node_name.to_owned(),
        address: format!("{}/24", plan.node_ip()),
        services: plan.service_cidr(),
        programs: tools.kubernetes.clone(),
        parts: vec![
            maker.etcd(),
            maker.containerd(),
            maker.apiserver(),
            maker.controller_manager(),
            maker.scheduler(),
            maker.kubelet(),
            maker.kube_proxy(),
            maker.coredns(),
        ],
    }
}

struct Maker<'a> {
    state: &'a State,
    plan: Plan,
    node_name: &'a str,
}

impl Maker<'_> {
    fn part(name: &str, program: &Path, after: Option<Gate>, args: Vec<String>) -> Part {
        let mut argv = vec![program.display().to_string()];
        argv.extend(args);
        Part {
            name: name.to_owned(),
            argv,
            after,
        }
    }

    fn kubernetes(&self, name: &str, after: Option<Gate>, args: Vec<String>) -> Part {
        Self::part(name, &self.state.path("programs").join(name), after, args)
    }

    fn file(&self, name: &str) -> String {
        self.state.path(name).display().to_string()
    }

    fn kubeconfig(&self, name: &str) -> String {
        format!(
            "--kubeconfig={}",
            kubeconfig_path(self.state, name).display()
        )
    }

    fn apiserver_up(&self) -> Option<Gate> {
        Some(Gate::Tcp(format!("{}:6443", self.plan.node_ip())))
    }

    fn etcd(&self) -> Part {
        let client = "http://127.0.0.1:2379";
        let peer = "http://127.0.0.1:2380";
        self.kubernetes(
            "etcd",
            None,
            vec![
                format!("--data-dir={}", self.file("etcd")),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                // The data is worth nothing after the run.
                "--unsafe-no-fsync".into(),
            ],
        )
    }

    fn containerd(&self) -> Part {
        let config = format!("--config={}", self.file("etc/containerd.toml"));
        Self::part("containerd", Path::new("containerd"), None, vec![config])
    }

    fn apiserver(&self) -> Part {
        let pki = |name: &str| self.file(&format!("pki/{name}"));
        self.kubernetes(
            "kube-apiserver",
            Some(Gate::Tcp("127.0.0.1:2379".into())),
            vec![
                "--etcd-servers=http://127.0.0.1:2379".into(),
                format!("--advertise-address={}", self.plan.node_ip()),
                format!("--service-cluster-ip-range={}", self.plan.service_cidr()),
                format!("--client-ca-file={}", pki("ca.crt")),
                format!("--tls-cert-file={}", pki("apiserver.crt")),
                format!("--tls-private-key-file={}", pki("apiserver.key")),
                format!("--kubelet-certificate-authority={}", pki("ca.crt")),
                format!(
                    "--kubelet-client-certificate={}",
                    pki("apiserver-kubelet-client.crt")
                ),
                format!(
                    "--kubelet-client-key={}",
                    pki("apiserver-kubelet-client.key")
                ),
                // Else logs and exec look for the node's name in DNS.
                "--kubelet-preferred-address-types=InternalIP".into(),
                format!(
                    "--requestheader-client-ca-file={}",
                    pki("front-proxy-ca.crt")
                ),
                "--requestheader-allowed-names=front-proxy-client".into(),
                "--requestheader-username-headers=X-Remote-User".into(),
                "--requestheader-group-headers=X-Remote-Group".into(),
                "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
                format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
                format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
                format!("--service-account-key-file={}", pki("service-account.key")),
                format!(
                    "--service-account-signing-key-file={}",
                    pki("service-account.key")
                ),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                "--allow-privileged=true".into(),
                format!("--audit-policy-file={}", self.file("etc/audit-policy.yaml")),
                format!("--audit-log-path={}", self.file("audit.log")),
            ],
        )
    }

    fn controller_manager(&self) -> Part {
        let pki = |name: &str| self.file(&format!("pki/{name}"));
        self.kubernetes(
            "kube-controller-manager",
            self.apiserver_up(),
            vec![
                self.kubeconfig("controller-manager"),
                format!("--root-ca-file={}", pki("ca.crt")),
                format!("--cluster-signing-cert-file={}", pki("ca.crt")),
                format!("--cluster-signing-key-file={}", pki("ca.key")),
                format!(
                    "--service-account-private-key-file={}",
                    pki("service-account.key")
                ),
                // Each controller with its own roles, as in real clusters.
                "--use-service-account-credentials=true".into(),
                "--leader-elect=false".into(),
                "--bind-address=127.0.0.1".into(),
                // It creates this folder, elsewhere by default.
                "--flex-volume-plugin-dir=/run/flex-volume-plugins".into(),
                "--kube-api-qps=200".into(),
                "--kube-api-burst=400".into(),
            ],
        )
    }

    fn scheduler(&self) -> Part {
        self.kubernetes(
            "kube-scheduler",
            self.apiserver_up(),
            vec![
                self.kubeconfig("scheduler"),
                "--leader-elect=false".into(),
                "--bind-address=127.0.0.1".into(),
            ],
        )
    }

    fn kubelet(&self) -> Part {
        self.kubernetes(
            "kubelet",
            Some(Gate::Unix(self.state.containerd())),
            vec![
                format!("--config={}", self.file("etc/kubelet.yaml")),
                self.kubeconfig("node"),
                format!("--hostname-override={}", self.node_name),
                format!("--node-ip={}", self.plan.node_ip()),
                "--root-dir=/var/lib/kubelet".into(),
            ],
        )
    }

    fn kube_proxy(&self) -> Part {
        let config = format!("--config={}", self.file("etc/kube-proxy.yaml"));
        self.kubernetes("kube-proxy", self.apiserver_up(), vec![config])
    }

    fn coredns(&self) -> Part {
        let config = vec!["-conf".to_owned(), self.file("etc/Corefile")];
        self.kubernetes("coredns", self.apiserver_up(), config)
    }
}
