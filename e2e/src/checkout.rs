//! Where the checkout is. Found at run time: a compiled-in path would point
//! into another checkout when a target folder is shared.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

const MARK: &str = "e2e/kubernetes/go.mod";

/// The canonical path of the checkout: above Cargo's manifest, or above the
/// current folder.
pub fn root() -> Result<PathBuf> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let starts = manifest.into_iter().chain(env::current_dir().ok());
    for start in starts {
        if let Some(found) = above(&start) {
            return Ok(found.canonicalize()?);
        }
    }
    Err(anyhow!(
        "no checkout found: neither CARGO_MANIFEST_DIR nor the current folder lies below one \
         that has {MARK}; run this from the checkout"
    ))
}

fn above(start: &Path) -> Option<PathBuf> {
    start
        .ancestors()
        .find(|p| p.join(MARK).is_file())
        .map(Path::to_owned)
}
