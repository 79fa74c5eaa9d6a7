//! Generated files are what the types make, and examples compile.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use crds::Document;
use e2e::{checkout, manifests};
use policy::bundle::Issuer;
use policy::{AllowedIssuers, PolicySource, compile};
use serde_json::json;

/// What the API server and etcd take without complaint, and `kubectl apply`
/// fits into an annotation.
const MAX_DEFINITION: usize = 200 * 1024;

#[test]
fn definitions_have_not_drifted() -> Result<()> {
    let checkout = checkout::root()?;
    manifests::definitions()?
        .iter()
        .try_for_each(|file| file.check(&checkout))
}

#[test]
fn definitions_are_small_enough_for_kubectl_apply() -> Result<()> {
    for definition in crds::definitions() {
        let size = serde_json::to_vec(&definition)?.len();
        ensure!(
            size < MAX_DEFINITION,
            "{:?} has {size} bytes",
            definition.metadata.name
        );
    }
    Ok(())
}

/// The server and the policies of an example. Other objects are left out.
fn example(path: &Path) -> Result<policy::Compiled> {
    let text = fs::read_to_string(path)?;
    let documents = text.split("\n---\n");
    let ours: Vec<_> = documents
        .filter(|document| document.contains("apiVersion: toolward.dev/"))
        .collect();
    let (mut server, mut policies) = (None, Vec::new());
    for document in crds::documents(&ours.join("\n---\n"))? {
        match document {
            Document::McpServer(found) => server = Some(found),
            Document::McpToolPolicy(found) => policies.push(found),
        }
    }
    let server = server.context("no McpServer")?;
    let policies: Vec<_> = policies
        .iter()
        .map(|policy| PolicySource::Valid(policy))
        .collect();
    let cluster = Issuer::cluster("https://kubernetes.default.svc", json!({"keys": []}));
    let context = policy::Context {
        default_url: "http://example.demo.svc/mcp".to_owned(),
        cluster: Some(cluster),
        // As in `examples/oidc.yaml`.
        issuers: AllowedIssuers::Listed(vec!["https://idp.example.com/realms/acme".to_owned()]),
        ..policy::Context::default()
    };
    Ok(compile(&server, &policies, &context))
}

/// Beyond what the API server checks: rules name issuers that the server has, and
/// these are allowed.
#[test]
fn examples_compile() -> Result<()> {
    let examples = checkout::root()?.join("examples");
    for (name, issuers) in [
        ("everything-http", &["cluster"][..]),
        ("everything-stdio", &["cluster"]),
        ("injected", &["cluster"]),
        ("laptop", &["cluster"]),
        ("oidc", &["acme", "cluster"]),
    ] {
        let compiled =
            example(&examples.join(format!("{name}.yaml"))).with_context(|| name.to_owned())?;
        let faults = &compiled.diagnostics;
        ensure!(faults.is_empty(), "{name}: {faults:?}");
        let accepted = &compiled.bundle.authentication.issuers;
        let accepted: Vec<_> = accepted.iter().map(|issuer| &*issuer.name).collect();
        ensure!(accepted == issuers, "{name}: {accepted:?}");
    }
    Ok(())
}
