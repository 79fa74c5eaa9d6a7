//! Manifests that are wrong: the real API server refuses them, with the place
//! and the advice.

use anyhow::{Result, ensure};
use crds::testing::InvalidCase;
use futures::{StreamExt, stream};

use crate::suite::{Scope, beside};

const AT_ONCE: usize = 3;

#[tokio::test]
async fn wrong_manifests_are_refused_with_path_and_advice() -> Result<()> {
    beside("rejections", async |scope: &Scope| {
        let cases = InvalidCase::all()?;
        let number = cases.len();
        for case in cases.iter().take(1).chain(cases.last()) {
            let (said, success) = dry_run(scope, &case.valid()).await?;
            ensure!(success, "the valid {} is refused: {said}", case.kind);
        }
        let faults: Vec<String> = stream::iter(cases)
            .map(|case| async move { fault(scope, &case).await })
            .buffer_unordered(AT_ONCE)
            .filter_map(async |fault| fault.transpose())
            .map(|fault| fault.unwrap_or_else(|error| format!("{error:#}")))
            .collect()
            .await;
        ensure!(
            faults.is_empty(),
            "{} of {number}:\n{}",
            faults.len(),
            faults.join("\n")
        );
        println!("{number} manifests are refused with path and advice");
        Ok(())
    })
    .await
}

async fn fault(scope: &Scope, case: &InvalidCase) -> Result<Option<String>> {
    let (said, success) = dry_run(scope, &case.manifest()).await?;
    let good = !success && said.contains(&case.path) && said.contains(&case.says);
    Ok((!good).then(|| {
        let InvalidCase {
            kind,
            case,
            path,
            says,
            ..
        } = case;
        format!("{kind}, {case}: should point to {path:?} and say {says:?}: {said}")
    }))
}

async fn dry_run(scope: &Scope, manifest: &serde_json::Value) -> Result<(String, bool)> {
    let args = ["apply", "--dry-run=server", "-f", "-"];
    let output = scope
        .cluster
        .kubectl_output(&args, Some(&manifest.to_string()))
        .await?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((said, output.status.success()))
}
