//! The reference MCP server as an image: Node.js, the shared libraries that it
//! needs and the server, nothing else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::build::Build;
use super::{Source, full_name};
use crate::cache;
use crate::sh::{self, command, run, say};
use crate::tools::Tools;

/// To be raised when this file changes what is in the image.
const LAYOUT: &str = "1";

/// The server's program inside the image.
const SCRIPT: &str = "/app/node_modules/@modelcontextprotocol/server-everything/dist/index.js";

/// The archive, from the cache where possible.
pub(super) fn source(checkout: &Path, tools: &Tools, name: &str) -> Result<Source> {
    let dockerfile = checkout.join("e2e/images/server-everything/Dockerfile");
    let server = tools.server_everything(checkout)?;
    let libraries = libraries(&tools.node())?;
    let mut inputs = vec![LAYOUT.into(), sh::read(&dockerfile)?];
    for folder in [&server, &tools.node] {
        // Folders of the cache have the hash of their content in their names.
        inputs.push(folder.display().to_string().into_bytes());
    }
    for library in &libraries {
        inputs.push(sh::read(library)?);
    }
    let hash = sh::digest(&inputs);
    let reference = full_name(name);
    let key = format!("image-server-everything-{}", &hash[..12]);
    let folder = cache::folder(&key, |target| {
        say(format!("building the image {reference} (once)"));
        let context = target.join("context");
        stage(&context.join("rootfs"), &tools.node(), &libraries, &server)?;
        let archive = target.join("image.tar");
        let target = None;
        Build {
            dockerfile: &dockerfile,
            target,
            context: &context,
            reference: &reference,
            archive: &archive,
        }
        .run()?;
        sh::remove_dir(&context)
    })?;
    Ok(Source {
        reference,
        hash,
        archive: folder.join("image.tar"),
    })
}

/// The shared libraries of a program, with the loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listing = run(command("ldd", &[] as &[&str]).arg(program))?;
    Ok(parse_ldd(&listing))
}

/// `name => /path (address)` or `/path (address)`.
pub(super) fn parse_ldd(listing: &str) -> Vec<PathBuf> {
    listing
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn stage(rootfs: &Path, node: &Path, libraries: &[PathBuf], server: &Path) -> Result<()> {
    copy(node, &rootfs.join("usr/bin/node"))?;
    for library in libraries {
        copy(library, &rootfs.join(library.strip_prefix("/")?))?;
    }
    sh::create_dir(&rootfs.join("app"))?;
    run(command("cp", &["--archive"])
        .arg(server.join("node_modules"))
        .arg(rootfs.join("app")))?;
    run(command("chown", &["--recursive", "0:0"]).arg(rootfs.join("app")))?;
    sh::create_dir(&rootfs.join("srv"))?;
    symlink(SCRIPT, rootfs.join("srv/index.js")).context("cannot link /srv/index.js")?;
    sh::create_dir(&rootfs.join("tmp"))?;
    sh::write(
        &rootfs.join("etc/passwd"),
        "app:x:65532:65532::/tmp:/sbin/nologin\n",
    )
}

/// Copies a file, and makes the folders above it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        sh::create_dir(folder)?;
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {}", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lists_paths() {
        let listing =
            "\tlinux-vdso.so.1 (0x0)\n\tlibm.so.6 => /lib/libm.so.6 (0x1)\n\t/lib64/ld.so (0x2)\n";
        assert_eq!(
            parse_ldd(listing),
            [PathBuf::from("/lib/libm.so.6"), "/lib64/ld.so".into()]
        );
    }
}
