//! One image from a Dockerfile and a context, with a storage folder of its
//! own and in a mount namespace of its own: neither the host's image storage
//! nor its mount table notices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::sh::{self, command, run};

/// What to build.
pub struct Build<'a> {
    /// The Dockerfile.
    pub dockerfile: &'a Path,
    /// Its target, if it has several.
    pub target: Option<&'a str>,
    /// The folder that COPY sees.
    pub context: &'a Path,
    /// The full name of the image.
    pub reference: &'a str,
    /// Where the OCI archive goes.
    pub archive: &'a Path,
}

impl Build<'_> {
    /// Builds it. Where overlay mounts are refused, files are copied instead.
    pub fn run(&self) -> Result<()> {
        let storage = Storage {
            folder: self.archive.with_extension("storage"),
        };
        let traces = absent_traces();
        let built = self
            .with(&storage, "overlay")
            .or_else(|_| self.with(&storage, "vfs"));
        sh::remove_dir(&storage.folder)?;
        remove_traces(&traces);
        built.with_context(|| format!("cannot build {}", self.reference))
    }

    fn with(&self, storage: &Storage, driver: &str) -> Result<()> {
        storage.prepare()?;
        let mut bud = storage.buildah(driver);
        bud.args([
            "bud",
            "--quiet",
            "--isolation",
            "chroot",
            "--timestamp",
            "0",
        ]);
        bud.arg("--signature-policy").arg(storage.policy());
        bud.args(["--tag", self.reference])
            .arg("--file")
            .arg(self.dockerfile);
        if let Some(target) = self.target {
            bud.args(["--target", target]);
        }
        run(bud.arg(self.context))?;
        let archive = format!("oci-archive:{}:{}", self.archive.display(), self.reference);
        let mut push = storage.buildah(driver);
        push.args(["push", "--quiet", "--disable-compression"]);
        push.arg("--signature-policy").arg(storage.policy());
        run(push.args([self.reference, &archive])).map(drop)
    }
}

/// What buildah creates on the host whatever storage it is given; what is in
/// a folder comes before the folder.
const TRACES: &[&str] = &[
    "/etc/cni/net.d/cni.lock",
    "/etc/cni/net.d",
    "/etc/cni",
    "/etc/containers/networks/netavark.lock",
    "/etc/containers/networks",
    "/etc/containers",
    "/run/containers/networks",
    "/run/containers",
    "/var/lib/containers/cache/blob-info-cache-v1.boltdb",
    "/var/lib/containers/cache",
    "/var/lib/containers",
];

/// The traces that are not there yet.
fn absent_traces() -> Vec<&'static Path> {
    TRACES
        .iter()
        .map(Path::new)
        .filter(|path| !path.exists())
        .collect()
}

/// Removes files and empty folders; a folder that somebody else uses by now
/// is not empty.
fn remove_traces(traces: &[&Path]) {
    for path in traces {
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    }
}

/// buildah's working folder.
struct Storage {
    folder: PathBuf,
}

impl Storage {
    fn prepare(&self) -> Result<()> {
        sh::remove_dir(&self.folder)?;
        sh::create_dir(&self.folder.join("tmp"))?;
        sh::write(
            &self.policy(),
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        )
    }

    fn policy(&self) -> PathBuf {
        self.folder.join("policy.json")
    }

    fn buildah(&self, driver: &str) -> Command {
        let mut buildah = command(
            "unshare",
            &["--mount", "--propagation", "private", "buildah"],
        );
        buildah.arg("--root").arg(self.folder.join("root"));
        buildah.arg("--runroot").arg(self.folder.join("run"));
        buildah.args(["--storage-driver", driver]);
        buildah.env("TMPDIR", self.folder.join("tmp"));
        buildah
    }
}
