//! h2spec, the conformance test of HTTP/2, built from a Go module.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;
use crate::sh::{self, command, run, say};

/// The program, built once per content of the module.
pub fn ensure(module: &Path) -> Result<PathBuf> {
    let inputs = ["go.mod", "go.sum"].map(|name| sh::read(&module.join(name)));
    let inputs: Vec<_> = inputs.into_iter().collect::<Result<_>>()?;
    let key = format!("h2spec-{}", &sh::digest(&inputs)[..12]);
    let folder = cache::folder(&key, |target| {
        say("building h2spec (once)");
        let mut build = command("go", &["build", "-trimpath", "-ldflags", "-s -w", "-o"]);
        build.arg(format!("{}/", target.display())).arg("tool");
        run(build.current_dir(module).env("CGO_ENABLED", "0"))
            .map(drop)
            .context("h2spec is built from source: Go must be on the PATH")
    })?;
    Ok(folder.join("h2spec"))
}
