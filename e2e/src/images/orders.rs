//! `examples/postgres-rls` as an image: Python as this machine has it, the shared
//! libraries that it needs, the packages and the scripts, nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::build::Build;
use super::everything::{copy, parse_ldd};
use super::{Source, full_name};
use crate::cache;
use crate::sh::{self, command, run, say};
use crate::tools::Tools;

/// To be raised when this file changes what is in the image.
const LAYOUT: &str = "1";

const SCRIPTS: [&str; 2] = ["server.py", "sync_keys.py"];

/// What of Python's library a server does not need, by the names of its entries.
const LEFT_OUT: &[&str] = &[
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
];

/// Where this machine's Python is.
#[derive(Deserialize)]
struct Python {
    program: PathBuf,
    library: PathBuf,
    version: String,
    /// Of the folder of its library, such as `python3.11`.
    name: String,
}

impl Python {
    fn find() -> Result<Self> {
        let script = "import json, os, sys, sysconfig; print(json.dumps({\
            'program': os.path.realpath(sys.executable),\
            'library': sysconfig.get_path('stdlib'),\
            'version': sys.version,\
            'name': 'python%d.%d' % sys.version_info[:2]}))";
        let said = run(&mut command("python3", &["-s", "-c", script]))?;
        serde_json::from_str(&said).context("what python3 says of itself")
    }

    /// The shared libraries of it and of all that it can load.
    fn libraries(&self, packages: &Path) -> Result<BTreeSet<PathBuf>> {
        let mut programs = vec![self.program.clone()];
        loadable(&self.library.join("lib-dynload"), &mut programs)?;
        loadable(packages, &mut programs)?;
        let listing = run(command("ldd", &[] as &[&str]).args(&programs))?;
        let mut libraries: BTreeSet<PathBuf> = parse_ldd(&listing).into_iter().collect();
        // The names of the programs are listed too, with colons; what packages
        // bring along, they find by themselves.
        libraries.retain(|path| !path.to_string_lossy().ends_with(':'));
        libraries.retain(|path| !path.starts_with(packages));
        Ok(libraries)
    }
}

/// The extension modules of a folder and those below.
fn loadable(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() {
            loadable(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "so") {
            found.push(path);
        }
    }
    Ok(())
}

/// What is in a folder, but for what is left out, in order.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let shown = || format!("cannot read {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(shown)? {
        let entry = entry.with_context(shown)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let left_out = LEFT_OUT.contains(&name.as_str())
            || name.starts_with("config-")
            || name.starts_with("_tkinter");
        if !left_out {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The archive, from the cache where possible.
pub(super) fn source(checkout: &Path, name: &str) -> Result<Source> {
    let dockerfile = checkout.join("e2e/images/postgres-rls/Dockerfile");
    let example = checkout.join("examples/postgres-rls");
    let packages = Tools::postgres_rls(checkout)?;
    let python = Python::find()?;
    let libraries = python.libraries(&packages)?;
    let mut inputs = vec![LAYOUT.into(), sh::read(&dockerfile)?];
    // The folder of the cache has the hash of its content in its name.
    inputs.push(packages.display().to_string().into_bytes());
    inputs.push(python.version.clone().into_bytes());
    for script in SCRIPTS {
        inputs.push(sh::read(&example.join(script))?);
    }
    for library in &libraries {
        inputs.push(sh::read(library)?);
    }
    let hash = sh::digest(&inputs);
    let reference = full_name(name);
    let key = format!("image-postgres-rls-{}", &hash[..12]);
    let folder = cache::folder(&key, |target| {
        say(format!("building the image {reference} (once)"));
        let context = target.join("context");
        let rootfs = context.join("rootfs");
        python.stage(&rootfs, &libraries)?;
        stage(&rootfs, &example, &packages)?;
        compile(&rootfs)?;
        Build {
            dockerfile: &dockerfile,
            target: None,
            context: &context,
            reference: &reference,
            archive: &target.join("image.tar"),
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

impl Python {
    fn stage(&self, rootfs: &Path, libraries: &BTreeSet<PathBuf>) -> Result<()> {
        copy(&self.program, &rootfs.join("usr/bin/python3"))?;
        copy_folder(&self.library, &rootfs.join("usr/lib").join(&self.name))?;
        for library in libraries {
            copy(library, &rootfs.join(library.strip_prefix("/")?))?;
        }
        Ok(())
    }
}

fn stage(rootfs: &Path, example: &Path, packages: &Path) -> Result<()> {
    for script in SCRIPTS {
        copy(&example.join(script), &rootfs.join("app").join(script))?;
    }
    copy_folder(packages, &rootfs.join("app/packages"))?;
    sh::create_dir(&rootfs.join("tmp"))?;
    sh::write(
        &rootfs.join("etc/passwd"),
        "app:x:65532:65532::/tmp:/sbin/nologin\n",
    )
}

/// Copies a folder without what is left out. Links become what they lead to;
/// some lead nowhere.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    sh::create_dir(to)?;
    for path in entries(from)? {
        let name = path.file_name().context("an entry without a name")?;
        if path.is_dir() {
            copy_folder(&path, &to.join(name))?;
        } else if path.exists() {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// Compiled now, as the pods cannot: a start would take ten times as long. The
/// times of files are not those of the image, so they are not looked at.
fn compile(rootfs: &Path) -> Result<()> {
    let mut compile = command("python3", &["-m", "compileall", "-q"]);
    compile.args(["--invalidation-mode", "unchecked-hash", "-p", "/", "-s"]);
    compile.arg(rootfs);
    run(compile.args(["app", "usr/lib"].map(|folder| rootfs.join(folder)))).map(drop)
}
