//! etcd, Kubernetes and CoreDNS, built from one Go module.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::cache;
use crate::sh::{self, command, run, say};

/// Builds the programs once per content of the module.
pub fn ensure(module: &Path) -> Result<PathBuf> {
    let inputs: Vec<u8> = ["go.mod", "go.sum", "coredns/main.go"]
        .iter()
        .map(|name| sh::read(&module.join(name)))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let key = format!("kubernetes-{}", &sh::sha256(&inputs)[..12]);
    cache::folder(&key, |target| build(module, target))
}

fn build(module: &Path, target: &Path) -> Result<()> {
    let go_mod = fs::read_to_string(module.join("go.mod"))?;
    let version = version(&go_mod)?;
    say(format!(
        "building Kubernetes {version}, etcd and CoreDNS (once, about 7 minutes)"
    ));
    run(command(
        "go",
        &["build", "-trimpath", "-ldflags", &ldflags(&version), "-o"],
    )
    .arg(format!("{}/", target.display()))
    .args(["tool", "./coredns"])
    .current_dir(module)
    .env("CGO_ENABLED", "0"))
    .context("Kubernetes is built from source: Go 1.21 or newer must be on the PATH")?;
    // etcd's package is called `server`.
    fs::rename(target.join("server"), target.join("etcd")).context("no etcd was built")
}

/// The version of k8s.io/kubernetes that the module requires.
fn version(go_mod: &str) -> Result<String> {
    go_mod
        .lines()
        .filter_map(|line| {
            line.trim()
                .trim_start_matches("require ")
                .strip_prefix("k8s.io/kubernetes v")
        })
        .filter_map(|rest| rest.split_whitespace().next())
        .map(|version| format!("v{version}"))
        .next()
        .ok_or_else(|| anyhow!("e2e/kubernetes/go.mod does not require k8s.io/kubernetes"))
}

/// Without these the programs would call themselves v0.0.0.
fn ldflags(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("0"), numbers.next().unwrap_or("0"));
    let set = "-X k8s.io/component-base/version";
    format!("-s -w {set}.gitVersion={version} {set}.gitMajor={major} {set}.gitMinor={minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_comes_from_the_requirement() {
        let text = "tool (\n\tk8s.io/kubernetes/cmd/kubectl\n)\nrequire (\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(version(text).expect("version"), "v1.36.3");
        assert_eq!(
            version("require k8s.io/kubernetes v1.37.0 // x").expect("one"),
            "v1.37.0"
        );
        assert!(version("module x").is_err());
    }

    #[test]
    fn ldflags_name_major_and_minor() {
        let flags = ldflags("v1.36.3");
        assert!(
            flags.ends_with("gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"),
            "{flags}"
        );
    }
}
