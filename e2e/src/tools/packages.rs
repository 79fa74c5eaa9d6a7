//! Debian packages: installed when a program or file of theirs is missing.

use std::env;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::sh::{self, command, run, say};

/// A package and what shows that it is there: a program, or a file when it
/// starts with a slash.
const PACKAGES: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("iproute2", "ip"),
    ("nftables", "nft"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("socat", "socat"),
    ("buildah", "buildah"),
    ("unzip", "unzip"),
    ("util-linux", "unshare"),
    ("python3", "python3"),
];

/// Installs what is missing.
pub fn ensure() -> Result<()> {
    ensure_all(PACKAGES)
}

fn ensure_all(packages: &[(&str, &str)]) -> Result<()> {
    let missing = packages.iter().filter(|(_, proof)| !present(proof));
    let missing: Vec<&str> = missing.map(|(package, _)| *package).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        install(&missing)
    }
}

/// Installs unzip, unless it is there.
pub fn ensure_unzip() -> Result<()> {
    if present("unzip") {
        Ok(())
    } else {
        install(&["unzip"])
    }
}

/// Installs pip, unless some pip is there.
pub fn ensure_pip() -> Result<()> {
    match run(&mut command("python3", &["-m", "pip", "--version"])) {
        Ok(_) => Ok(()),
        Err(_) => install(&["python3-pip"]),
    }
}

/// Installs wrk and nginx, unless they are there. Without wrk there is no
/// measurement; false: there is no nginx to compare with, and why was said.
pub fn ensure_bench() -> Result<bool> {
    if !present("wrk") {
        install(&["wrk"])?;
    }
    if !present("nginx")
        && let Err(error) = install(&["nginx-light"])
    {
        say(format!(
            "no nginx, so the sidecar is compared with nothing in front only: {error:#}"
        ));
    }
    Ok(present("nginx"))
}

/// Installs wrk and perf, unless they are there.
pub fn ensure_profile() -> Result<()> {
    ensure_all(&[("wrk", "wrk"), ("linux-perf", "perf")])
}

/// Installs Java, Maven and unzip, as far as they are not there.
pub fn ensure_java() -> Result<()> {
    ensure_all(&[
        ("openjdk-17-jre-headless", "java"),
        ("maven", "mvn"),
        ("unzip", "unzip"),
    ])
}

/// What starts a database of its own, which nobody asked for, unless this says no.
const NO_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/toolward-e2e.conf";

/// Installs PostgreSQL 15 with PL/Python and Python's cryptography, as far as they
/// are not there.
pub fn ensure_postgres() -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let packages = [
        ("postgresql-15", "/usr/lib/postgresql/15/bin/postgres"),
        (
            "postgresql-plpython3-15",
            "/usr/lib/postgresql/15/lib/plpython3.so",
        ),
        (
            "python3-cryptography",
            "/usr/lib/python3/dist-packages/cryptography",
        ),
    ];
    if packages.iter().all(|(_, proof)| present(proof)) {
        return Ok(());
    }
    let file = Path::new(NO_CLUSTER);
    // Where it cannot be written, nothing can be installed either, which tells more.
    let _ = sh::write(file, "create_main_cluster = false\n");
    let installed = ensure_all(&packages);
    let _ = fs::remove_file(file);
    installed
}

fn install(missing: &[&str]) -> Result<()> {
    say(format!("installing Debian packages: {}", missing.join(" ")));
    apt(&["update", "-qq"])?;
    let mut args = vec!["install", "-qq", "-y", "--no-install-recommends"];
    args.extend(missing);
    apt(&args)
}

fn apt(args: &[&str]) -> Result<()> {
    run(command("apt-get", args).env("DEBIAN_FRONTEND", "noninteractive"))
        .map(drop)
        .context("Debian's packages are needed; install them by hand where apt-get cannot")
}

fn present(proof: &str) -> bool {
    if proof.starts_with('/') {
        return Path::new(proof).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path)
        .chain(usual)
        .any(|folder| folder.join(proof).is_file())
}
