//! What tests and demonstrations call: a running cluster and its clients.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::checkout;
use crate::cluster::{self, Enforcer, Instance, Plan, State, dns};
use crate::images::{self, Image};
use crate::sh;
use crate::tools::Tools;

/// A running cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    instance: Instance,
    plan: Plan,
    state: State,
    tools: Tools,
    checkout: PathBuf,
}

impl Cluster {
    /// The cluster of this checkout (or of `TOOLWARD_INSTANCE`), started if it
    /// does not run yet. It stays up afterwards.
    pub async fn ensure() -> Result<Self> {
        let instance = cluster::current()?;
        let checkout = checkout::root()?;
        let record = cluster::up(&instance).await?;
        let state = State::of(&instance.id);
        let tools = Tools::ensure(&checkout)?;
        Ok(Self {
            plan: record.plan(),
            instance,
            state,
            tools,
            checkout,
        })
    }

    /// Builds and imports these images; those that did not change cost nothing.
    pub async fn load_images(&self, images: &[Image]) -> Result<()> {
        images::load(&self.state, &self.checkout, images, true).await
    }

    /// Imports these images from the binaries that Cargo has built before.
    pub async fn load_images_as_built(&self, images: &[Image]) -> Result<()> {
        images::load(&self.state, &self.checkout, images, false).await
    }

    /// Which cluster this is.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Its addresses: `node_ip` for NodePorts, `host_ip` for what pods call on
    /// the host.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// The root of the checkout.
    pub fn checkout(&self) -> &Path {
        &self.checkout
    }

    /// The programs that the cluster is made of, and Node.js.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.state.kubeconfig()
    }

    /// The audit log: one JSON event per line, for requests of service accounts.
    pub fn audit_log(&self) -> PathBuf {
        self.state.path("audit.log")
    }

    /// The log of a part of the node, such as `kubelet`.
    pub fn log(&self, part: &str) -> PathBuf {
        self.state.log(part)
    }

    /// A client with the administrator's rights. Belongs to the runtime that
    /// it was made in.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.kubeconfig_path()).await
    }

    /// A client that presents this bearer token and no certificate.
    pub async fn client_with_token(&self, token: &str) -> Result<Client> {
        let mut kubeconfig = Kubeconfig::read_from(self.kubeconfig_path())?;
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = Some(serde_json::from_value(
                serde_json::json!({ "token": token }),
            )?);
        }
        client_from(kubeconfig).await
    }

    /// Runs kubectl; a failure is an error with its output.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        finish("kubectl", args, &self.kubectl_output(args, None).await?)
    }

    /// Runs kubectl with this on its stdin, such as a manifest for `apply -f -`.
    pub async fn kubectl_stdin(&self, args: &[&str], stdin: &str) -> Result<String> {
        finish(
            "kubectl",
            args,
            &self.kubectl_output(args, Some(stdin)).await?,
        )
    }

    /// Runs kubectl; for tests of what it refuses.
    pub async fn kubectl_output(&self, args: &[&str], stdin: Option<&str>) -> Result<Output> {
        let program = self.tools.program("kubectl");
        let output = self.program(&program, args, stdin).await?;
        // Where the machine has no time for 10 s; nothing was asked yet.
        let said = String::from_utf8_lossy(&output.stderr);
        match said.contains("TLS handshake timeout") {
            true => self.program(&program, args, stdin).await,
            false => Ok(output),
        }
    }

    /// Applies a manifest of one or more documents.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_stdin(&["apply", "-f", "-"], manifest).await
    }

    /// Runs helm; a failure is an error with its output.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        finish("helm", args, &self.helm_output(args).await?)
    }

    /// Runs helm; for tests of what it refuses.
    pub async fn helm_output(&self, args: &[&str]) -> Result<Output> {
        self.program(&self.tools.helm, args, None).await
    }

    /// A Service's ClusterIP. It answers from the host.
    pub async fn service_ip(&self, namespace: &str, name: &str) -> Result<Ipv4Addr> {
        let services: Api<Service> = Api::namespaced(self.client().await?, namespace);
        let service = services.get(name).await?;
        let address = service
            .spec
            .and_then(|spec| spec.cluster_ip)
            .unwrap_or_default();
        address
            .parse()
            .with_context(|| format!("{namespace}/{name} has the ClusterIP {address:?}"))
    }

    /// Asks the cluster's DNS for a full name, as a pod would.
    pub async fn resolve(&self, name: &str) -> Result<Ipv4Addr> {
        dns::resolve(self.plan.node_ip(), name).await
    }

    /// Enforces the NetworkPolicies of one namespace, until it is dropped. Without,
    /// the node knows of none.
    pub async fn enforce(&self, namespace: &str) -> Result<Enforcer> {
        let node = self.state.record().and_then(|record| record.node);
        let node = node.context("the node does not run")?;
        Enforcer::start(self.client().await?, node, namespace).await
    }

    async fn program(&self, program: &Path, args: &[&str], stdin: Option<&str>) -> Result<Output> {
        let home = self.state.path("home");
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", self.kubeconfig_path());
        command.env("KUBECACHEDIR", home.join("kube"));
        for kind in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{kind}_HOME"), home.join(kind.to_lowercase()));
        }
        command.stdin(if stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            // A program that ends early closes the pipe; its status tells why.
            let _ = pipe.write_all(text.as_bytes()).await;
        }
        Ok(child.wait_with_output().await?)
    }
}

fn finish(program: &str, args: &[&str], output: &Output) -> Result<String> {
    sh::succeed(&format!("{program} {}", args.join(" ")), output)
}

/// A client from a kubeconfig file.
pub(crate) async fn client_of(kubeconfig: &Path) -> Result<Client> {
    client_from(Kubeconfig::read_from(kubeconfig)?).await
}

async fn client_from(kubeconfig: Kubeconfig) -> Result<Client> {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    Ok(Client::try_from(config)?)
}
