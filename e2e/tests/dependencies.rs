//! Which crate may depend on what: the table of the design, held true.
#![allow(missing_docs)]

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use e2e::checkout;
use e2e::sh::{command, run};

/// Crate, and what it may not depend on, not even indirectly.
const TABLE: [(&str, &[&str]); 4] = [
    ("crds", &["tokio", "hyper", "kube-client", "kube-runtime"]),
    ("policy", &["tokio", "hyper", "kube-client", "kube-runtime"]),
    ("sealed", &["tokio", "hyper", "kube-client", "kube-runtime"]),
    ("sidecar", &["kube-client", "kube-runtime", "rmcp"]),
];
/// In no program that ships.
const NOWHERE: [&str; 4] = ["rsa", "ring", "openssl", "native-tls"];

fn dependencies(package: &str) -> Result<BTreeSet<String>> {
    let mut tree = command("cargo", &["tree", "--edges", "normal", "--prefix", "none"]);
    tree.args([
        "--offline",
        "--locked",
        "--format",
        "{lib}",
        "--package",
        package,
    ]);
    let listing = run(tree.current_dir(checkout::root()?))?;
    Ok(listing
        .lines()
        .map(|name| name.trim().replace('_', "-"))
        .collect())
}

#[test]
fn crates_depend_on_what_the_design_allows() -> Result<()> {
    for (package, forbidden) in TABLE {
        let dependencies = dependencies(package)?;
        ensure!(
            dependencies.contains("serde"),
            "{package}: cargo tree lists {dependencies:?}"
        );
        for name in forbidden {
            ensure!(!dependencies.contains(*name), "{package} depends on {name}");
        }
    }
    Ok(())
}

#[test]
fn programs_that_ship_have_one_cryptography() -> Result<()> {
    for package in ["sidecar", "operator"] {
        let dependencies = dependencies(package)?;
        for name in NOWHERE {
            ensure!(!dependencies.contains(name), "{package} depends on {name}");
        }
    }
    Ok(())
}

/// What tests turn on in a shared dependency makes Cargo build that, and all that
/// is built on it, a second time.
#[test]
fn tests_add_no_feature_to_what_programs_are_built_from() -> Result<()> {
    let features = |edges: &str| -> Result<BTreeSet<String>> {
        let mut tree = command("cargo", &["tree", "--workspace", "--prefix", "none"]);
        tree.args(["--offline", "--locked", "--format", "{p} {f}"]);
        tree.args(["--edges", edges]);
        let listing = run(tree.current_dir(checkout::root()?))?;
        let packages = listing.lines().map(|line| line.trim_end_matches("(*)"));
        Ok(packages.map(|line| line.trim().to_owned()).collect())
    };
    let (programs, tests) = (features("normal,build")?, features("normal,build,dev")?);
    ensure!(programs.len() > 100, "cargo tree lists {programs:?}");
    let differs: Vec<_> = programs.difference(&tests).collect();
    ensure!(
        differs.is_empty(),
        "built with more features for tests; add these to e2e/Cargo.toml: {differs:?}"
    );
    Ok(())
}
