//! The commands in README.md name what is there: targets, files, values of the
//! chart, objects of the examples. What they do, the other tests run.
#![allow(missing_docs)]

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::demo::{CALLER, NAMESPACE, SERVERS};
use e2e::release::{CHART, NAMESPACE as SYSTEM, RELEASE, install_args};
use e2e::{checkout, laptop};

/// The lines of all `console` blocks.
fn commands() -> Result<Vec<String>> {
    let readme = fs::read_to_string(checkout::root()?.join("README.md"))?;
    let blocks = readme.split("```console\n").skip(1);
    let lines = blocks.filter_map(|block| block.split("```").next());
    let commands: Vec<_> = lines.flat_map(str::lines).map(str::to_owned).collect();
    ensure!(commands.len() >= 10, "README.md has only {commands:?}");
    Ok(commands)
}

fn command(start: &str) -> Result<String> {
    let found = commands()?.into_iter().find(|line| line.starts_with(start));
    found.with_context(|| format!("README.md has no command that starts with {start:?}"))
}

#[test]
fn targets_and_files_exist() -> Result<()> {
    let root = checkout::root()?;
    let makefile = fs::read_to_string(root.join("Makefile"))?;
    for line in commands()? {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["make", target] = words[..] {
            ensure!(
                makefile.contains(&format!("\n{target}:")),
                "no target {target}"
            );
        }
        for pair in words.windows(2) {
            if ["-f", "--config"].contains(&pair[0]) {
                ensure!(root.join(pair[1]).is_file(), "no file {}", pair[1]);
            }
        }
    }
    Ok(())
}

#[test]
fn helm_installs_as_in_the_tests() -> Result<()> {
    let line = command("helm upgrade")?;
    let tested = install_args(CHART, &[]);
    let values = fs::read_to_string(checkout::root()?.join(CHART).join("values.yaml"))?;
    let mut words = line.split_whitespace().skip(1);
    while let Some(word) = words.next() {
        if word == "--set" {
            let value = words.next().context("--set without a value")?;
            let key = value
                .split('=')
                .next()
                .and_then(|key| key.rsplit('.').next());
            let key = key.context("--set without a key")?;
            ensure!(values.contains(&format!("{key}:")), "no value {value}");
        } else {
            ensure!(tested.contains(&word), "helm is not tested with {word}");
        }
    }
    let uninstall = command("helm uninstall")?;
    ensure!(uninstall == format!("helm uninstall {RELEASE} --namespace {SYSTEM}"));
    Ok(())
}

#[test]
fn calls_name_the_example() -> Result<()> {
    let server = SERVERS[0];
    let token = command("kubectl create token")?;
    let audience = format!("http://{server}.{NAMESPACE}.svc/mcp");
    let (namespace, account) = CALLER;
    ensure!(
        token == format!("kubectl create token {account} -n {namespace} --audience={audience}")
    );
    for start in [
        "kubectl get mcps everything",
        "kubectl logs",
        "kubectl describe",
    ] {
        let line = command(start)?;
        ensure!(
            line.contains(server) && line.contains(&format!("-n {NAMESPACE}")),
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn the_laptop_command_is_one_that_the_sidecar_takes() -> Result<()> {
    let line = command("target/")?;
    let sidecar = laptop::sidecar(&checkout::root()?)?;
    let help = std::process::Command::new(sidecar)
        .args(["run", "--help"])
        .output()?;
    let help = String::from_utf8(help.stdout)?;
    let ours = line
        .split(" -- ")
        .next()
        .context("no command for the server")?;
    let flags: Vec<_> = ours
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .collect();
    ensure!(flags.len() == 2, "{flags:?}");
    for flag in flags {
        ensure!(help.contains(flag), "the sidecar does not know {flag}");
    }
    Ok(())
}
