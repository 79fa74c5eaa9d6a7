//! The programs that a cluster is made of, fetched and built on first use.

mod h2spec;
mod keycloak;
mod kubernetes;
mod node;
mod packages;
mod python;
mod wycheproof;

use std::path::{Path, PathBuf};

use anyhow::Result;

pub use keycloak::Keycloak;
pub use packages::{ensure_bench, ensure_postgres, ensure_profile};

/// Paths of everything that is not on the system's `PATH`.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Folder with etcd, CoreDNS and the Kubernetes programs.
    pub kubernetes: PathBuf,
    /// Folder with `bin/node` and npm.
    pub node: PathBuf,
    /// The helm program.
    pub helm: PathBuf,
}

/// Where real MCP clients and servers are.
#[derive(Clone, Debug)]
pub struct Clients {
    /// The `node` program.
    pub node: PathBuf,
    /// `node_modules` with the clients, the Inspector and the small servers.
    pub npm: PathBuf,
    /// `node_modules` with the reference server.
    pub everything: PathBuf,
    /// Folder for `PYTHONPATH` with the clients.
    pub python: PathBuf,
}

/// A small identity provider, clients that log in, and a server.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The `node` program.
    pub node: PathBuf,
    /// `node_modules` with the provider and the clients.
    pub npm: PathBuf,
    /// `node_modules` with the reference server.
    pub everything: PathBuf,
}

/// What the conformance suite of MCP needs.
#[derive(Clone, Debug)]
pub struct Conformance {
    /// The `node` program.
    pub node: PathBuf,
    /// Folder of the suite: `dist/index.js`, and `requirements` with what each
    /// revision of the specification requires.
    pub suite: PathBuf,
    /// Folder for `PYTHONPATH` with `mcp`, which the fixture server is built on.
    pub python: PathBuf,
}

impl Tools {
    /// Makes sure that all tools are there.
    pub fn ensure(checkout: &Path) -> Result<Self> {
        packages::ensure()?;
        let kubernetes = kubernetes::ensure(&checkout.join("e2e/kubernetes"))?;
        let node = node::ensure(&checkout.join("e2e/node"))?;
        let helm = node::helm(&checkout.join("e2e/node"), &node)?;
        Ok(Self {
            kubernetes,
            node,
            helm,
        })
    }

    /// The helm program alone, without building Kubernetes.
    pub fn helm(checkout: &Path) -> Result<PathBuf> {
        packages::ensure()?;
        let pins = checkout.join("e2e/node");
        node::helm(&pins, &node::ensure(&pins)?)
    }

    /// The conformance test of HTTP/2.
    pub fn h2spec(checkout: &Path) -> Result<PathBuf> {
        h2spec::ensure(&checkout.join("e2e/h2spec"))
    }

    /// Folder with the test vectors of Wycheproof.
    pub fn wycheproof(checkout: &Path) -> Result<PathBuf> {
        wycheproof::ensure(&checkout.join("e2e/wycheproof"))
    }

    /// Node and the script of the reference MCP server, for this machine; no
    /// root is needed where unzip and pip are there.
    pub fn reference_server(checkout: &Path) -> Result<(PathBuf, PathBuf)> {
        packages::ensure_unzip()?;
        let pins = checkout.join("e2e/node");
        let node = node::ensure(&pins)?;
        let folder = node::server_everything(&pins, &node)?;
        let script =
            folder.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
        Ok((node.join("bin/node"), script))
    }

    /// What real MCP clients and servers need, on this machine; no root is
    /// needed where unzip and pip are there.
    pub fn clients(checkout: &Path) -> Result<Clients> {
        packages::ensure_unzip()?;
        let pins = checkout.join("e2e/node");
        let node = node::ensure(&pins)?;
        Ok(Clients {
            npm: node::clients(&pins, &node)?.join("node_modules"),
            everything: node::server_everything(&pins, &node)?.join("node_modules"),
            node: node.join("bin/node"),
            python: python::packages(&checkout.join("e2e/python"))?,
        })
    }

    /// What logins need, on this machine; no root is needed where unzip and pip
    /// are there.
    pub fn identity(checkout: &Path) -> Result<Identity> {
        packages::ensure_unzip()?;
        let pins = checkout.join("e2e/node");
        let node = node::ensure(&pins)?;
        Ok(Identity {
            npm: node::identity(&pins, &node)?.join("node_modules"),
            everything: node::server_everything(&pins, &node)?.join("node_modules"),
            node: node.join("bin/node"),
        })
    }

    /// The conformance suite and what its fixture server needs; no root is
    /// needed where unzip and pip are there.
    pub fn conformance(checkout: &Path) -> Result<Conformance> {
        packages::ensure_unzip()?;
        let pins = checkout.join("e2e/node");
        let node = node::ensure(&pins)?;
        let suite = "node_modules/@modelcontextprotocol/conformance";
        Ok(Conformance {
            suite: node::conformance(&pins, &node)?.join(suite),
            node: node.join("bin/node"),
            python: python::packages(&checkout.join("e2e/python"))?,
        })
    }

    /// Folder for `PYTHONPATH` with what `examples/postgres-rls` needs; no root is
    /// needed where pip is there.
    pub fn postgres_rls(checkout: &Path) -> Result<PathBuf> {
        python::packages(&checkout.join("examples/postgres-rls"))
    }

    /// One of the Kubernetes programs, etcd or coredns.
    pub fn program(&self, name: &str) -> PathBuf {
        self.kubernetes.join(name)
    }

    /// The `node` program.
    pub fn node(&self) -> PathBuf {
        self.node.join("bin/node")
    }

    /// The reference MCP server and what it needs: a folder with `node_modules`.
    pub fn server_everything(&self, checkout: &Path) -> Result<PathBuf> {
        node::server_everything(&checkout.join("e2e/node"), &self.node)
    }
}
