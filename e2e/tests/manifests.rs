//! Generated files are what the types make.
#![allow(missing_docs)]

use anyhow::{Result, ensure};
use e2e::{checkout, manifests};

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
