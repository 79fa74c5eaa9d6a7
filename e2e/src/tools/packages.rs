//! Debian packages: installed when a program or file of theirs is missing.

use std::env;
use std::path::Path;

use anyhow::{Context, Result};

use crate::sh::{command, run, say};

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
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, proof)| !present(proof))
        .map(|(package, _)| *package)
        .collect();
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
    let needed = [("wrk", "wrk"), ("linux-perf", "perf")];
    let missing = needed.into_iter().filter(|(_, proof)| !present(proof));
    let missing: Vec<&str> = missing.map(|(package, _)| package).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        install(&missing)
    }
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
