//! What comes from PyPI. Versions and hashes are pinned, in `e2e/python` for
//! clients; only wheels are taken, so nothing of theirs runs at installation.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::packages;
use crate::cache;
use crate::sh::{self, command, run, say};

/// The packages of `pins/requirements.txt`: a folder for `PYTHONPATH`. Not a
/// virtual environment, which could not be moved into place.
pub fn packages(pins: &Path) -> Result<PathBuf> {
    packages::ensure_pip()?;
    let requirements = pins.join("requirements.txt");
    // Wheels differ by version of Python.
    let version = run(&mut command("python3", &["--version"]))?;
    let inputs = [sh::read(&requirements)?, version.into_bytes()];
    let key = format!("python-{}", &sh::digest(inputs)[..12]);
    cache::folder(&key, |target| {
        say("fetching Python packages from PyPI (once)");
        run(command("python3", &["-m", "pip", "install", "--quiet"])
            .args(["--no-deps", "--require-hashes", "--only-binary", ":all:"])
            .args(["--no-compile", "--root-user-action", "ignore", "--target"])
            .arg(target)
            .arg("--requirement")
            .arg(&requirements))
        .map(drop)
        .with_context(|| format!("cannot fetch {} with pip", requirements.display()))
    })
}
