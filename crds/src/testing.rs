//! The table of manifests that must be refused, for the tests of this crate
//! and for those that ask a real API server.

use serde::Deserialize;
use serde_json::{Value, json};

/// A manifest that must be refused.
#[derive(Debug, Deserialize)]
pub struct InvalidCase {
    /// Kind of the object.
    pub kind: String,
    /// What is wrong with it.
    pub case: String,
    /// Laid over the spec of [`InvalidCase::valid`].
    pub spec: Value,
    /// Where the refusal must point.
    pub path: String,
    /// What it must say.
    pub says: String,
}

impl InvalidCase {
    /// All cases of `testdata/invalid.yaml`.
    ///
    /// # Errors
    /// Where the file is not what it should be.
    pub fn all() -> Result<Vec<Self>, serde_yaml::Error> {
        serde_yaml::from_str(include_str!("../testdata/invalid.yaml"))
    }

    /// A valid manifest of the case's kind.
    pub fn valid(&self) -> Value {
        let spec = match self.kind.as_str() {
            "McpServer" => json!({
                "deployment": {"image": "registry.example/orders:1", "command": ["/orders"]},
                "transport": {"type": "Stdio"},
            }),
            _ => json!({
                "targetRefs": [{"name": "orders"}],
                "rules": [{"name": "all", "effect": "Allow", "from": [{"everyone": true}], "tools": ["*"]}],
            }),
        };
        json!({
            "apiVersion": "toolward.dev/v1alpha1", "kind": self.kind,
            "metadata": {"name": "orders", "namespace": "default"}, "spec": spec,
        })
    }

    /// The manifest that must be refused.
    pub fn manifest(&self) -> Value {
        let mut manifest = self.valid();
        merge(&mut manifest["spec"], &self.spec);
        manifest
    }
}

/// JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().map(|o| o.remove(name));
        } else {
            merge(&mut target[name], value);
        }
    }
}
