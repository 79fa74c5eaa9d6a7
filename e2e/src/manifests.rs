//! The manifests that are made from the types and the chart: `make manifests`
//! writes them, tests compare.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::release::{CHART, NAMESPACE, RELEASE};
use crate::sh::{self, command, run};

/// A generated file.
#[derive(Debug)]
pub struct Generated {
    /// Where it belongs, from the checkout's root.
    pub path: &'static str,
    /// What it should be.
    pub content: String,
}

impl Generated {
    /// Writes it into the checkout.
    pub fn write(&self, checkout: &Path) -> Result<()> {
        sh::write(&checkout.join(self.path), &self.content)
    }

    /// An error where the file is not what it should be.
    pub fn check(&self, checkout: &Path) -> Result<()> {
        let found = fs::read_to_string(checkout.join(self.path)).unwrap_or_default();
        ensure!(
            found == self.content,
            "{} is not what the types and the chart make; run `make manifests`",
            self.path
        );
        Ok(())
    }
}

/// The CustomResourceDefinitions: in the chart, and for `kubectl apply`.
pub fn definitions() -> Result<Vec<Generated>> {
    Ok(vec![
        Generated {
            path: "charts/toolward/templates/crds.yaml",
            content: crds::manifest::chart()?,
        },
        Generated {
            path: "manifests/crds.yaml",
            content: crds::manifest::plain()?,
        },
    ])
}

/// All that the chart makes with its default values, for `kubectl apply`.
pub fn install(checkout: &Path, helm: &Path) -> Result<Generated> {
    let chart: PathBuf = checkout.join(CHART);
    let mut template = command(helm, &["template", RELEASE]);
    template
        .arg(&chart)
        .args(["--namespace", NAMESPACE])
        .env("HELM_CACHE_HOME", chart.join(".helm"))
        .env("HELM_CONFIG_HOME", chart.join(".helm"))
        .env("HELM_DATA_HOME", chart.join(".helm"));
    let objects = run(&mut template).context("the chart cannot be rendered")?;
    let namespace = format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n"
    );
    Ok(Generated {
        path: "manifests/install.yaml",
        content: format!(
            "# Made by `make manifests` from the chart; do not edit.\n{namespace}{objects}"
        ),
    })
}
