//! What is slow to make and the same for every checkout: built once, kept
//! under a name that contains the hash of its inputs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lock::Lock;
use crate::sh;

/// The cache folder: `TOOLWARD_CACHE`, or `toolward` in the user's cache.
pub fn root() -> PathBuf {
    let set = |name| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    set("TOOLWARD_CACHE").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"))
            .join("toolward")
    })
}

/// The folder `key` of the cache, filled by `build` if it is not there yet.
/// `build` gets an empty folder beside it; the finished folder appears by one
/// rename, so a broken build is never mistaken for a result.
pub fn folder(key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let root = root();
    let done = root.join(key);
    if done.is_dir() {
        return Ok(done);
    }
    let _lock = Lock::acquire(&root.join(format!("{key}.lock")))?;
    if done.is_dir() {
        return Ok(done);
    }
    let partial = root.join(format!("{key}.partial"));
    sh::remove_dir(&partial)?;
    sh::create_dir(&partial)?;
    build(&partial)?;
    fs::rename(&partial, &done)
        .with_context(|| format!("cannot move {} into place", partial.display()))?;
    Ok(done)
}
