//! The policy in front, and the tokens that it lets in.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use crds::{Document, McpServer, McpToolPolicy};
use policy::{Compiled, PolicySource, bundle::DEFAULT_LIFETIME_SECONDS, compile};
use sidecar::dev::DevIssuer;

use super::TOOL;
use crate::sh;

/// Who calls, as `--dev-token` wants it.
pub const USER: &str = "alice:staff";
const URL: &str = "http://bench.test/mcp";

/// One server, and a policy with a limit that is never reached.
pub fn manifests() -> String {
    format!(
        r#"apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {{name: bench}}
spec:
  url: {URL}
  deployment: {{image: bench, command: [bench]}}
  transport: {{type: Stdio}}
---
apiVersion: toolward.dev/v1alpha1
kind: McpToolPolicy
metadata: {{name: bench}}
spec:
  targetRefs: [{{name: bench}}]
  rules:
    - {{name: staff, effect: Allow, from: [{{groups: [staff]}}], tools: [{TOOL}, "get-*"]}}
    - {{name: nobody, effect: Deny, from: [{{everyone: true}}], tools: [get-env]}}
  limits:
    - {{name: each, tools: ["*"], requests: 1000000, per: 1s, by: [User, Tool]}}
"#
    )
}

/// Signs tokens, and has its key in the bundle.
pub struct Issuer(DevIssuer);

impl Issuer {
    /// Makes a key and writes the bundle to a folder, as the operator does.
    ///
    /// # Errors
    /// Where the manifests do not compile.
    pub fn with_bundle(folder: &Path) -> Result<Self> {
        let issuer = DevIssuer::new()?;
        let (server, policy) = parse()?;
        let context = policy::Context {
            default_url: URL.into(),
            dev: Some(issuer.issuer()),
            ..policy::Context::default()
        };
        let Compiled {
            bundle,
            diagnostics,
        } = compile(&server, &[PolicySource::Valid(&policy)], &context);
        ensure!(diagnostics.is_empty(), "{diagnostics:?}");
        sh::write(&folder.join(policy::bundle::FILE), bundle.to_json()?)?;
        Ok(Self(issuer))
    }

    /// Different tokens of one user, valid for an hour.
    ///
    /// # Errors
    /// Where signing fails.
    pub fn tokens(&self, count: usize) -> Result<Vec<String>> {
        let groups = ["staff".to_owned()];
        let now = sidecar::pipeline::now();
        let some = |count: usize| -> Result<Vec<String>> {
            // Signatures of ES256 are random: so no two tokens are equal.
            (0..count)
                .map(|_| {
                    self.0
                        .token("alice", &groups, URL, now, DEFAULT_LIFETIME_SECONDS)
                })
                .collect()
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| some(count / 2));
            let mut tokens = some(count - count / 2)?;
            tokens.extend(other.join().ok().context("a thread panicked")??);
            Ok(tokens)
        })
    }
}

fn parse() -> Result<(McpServer, McpToolPolicy)> {
    let (mut server, mut policy) = (None, None);
    for document in crds::documents(&manifests())? {
        match document {
            Document::McpServer(found) => server = Some(*found),
            Document::McpToolPolicy(found) => policy = Some(*found),
        }
    }
    let (mut server, policy) = server.zip(policy).context("two documents")?;
    server.metadata.namespace = Some("default".into());
    Ok((server, policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_are_valid() -> Result<()> {
        let (server, policy) = parse()?;
        assert_eq!(server.spec.url.map(|url| url.0).as_deref(), Some(URL));
        assert_eq!(policy.spec.limits.map(|limits| limits.len()), Some(1));
        Ok(())
    }
}
