//! Wycheproof: what is known to go wrong in cryptography, as test vectors from a
//! Go module.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cache;
use crate::sh::{self, command, run, say};

const MODULE: &str = "github.com/c2sp/wycheproof";
/// What is used of it: all of it is 100 MB.
const FILES: &[&str] = &[
    "json_web_signature",
    "json_web_key",
    "json_web_crypto",
    "ecdsa_secp256r1_sha256_p1363",
    "ecdsa_secp384r1_sha384_p1363",
    "ed25519",
    "rsa_signature_2048_sha256",
    "rsa_signature_2048_sha384",
    "rsa_signature_2048_sha512",
    "rsa_signature_3072_sha256",
    "rsa_signature_3072_sha384",
    "rsa_signature_3072_sha512",
    "rsa_signature_4096_sha256",
    "rsa_signature_4096_sha384",
    "rsa_signature_4096_sha512",
    "rsa_pss_2048_sha256_mgf1_32",
    "rsa_pss_3072_sha256_mgf1_32",
    "rsa_pss_4096_sha256_mgf1_32",
    "rsa_pss_2048_sha384_mgf1_48",
    "rsa_pss_4096_sha384_mgf1_48",
    "rsa_pss_4096_sha512_mgf1_64",
];

/// A module in Go's cache, as `go mod download -json` tells it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Download {
    dir: PathBuf,
}

/// Folder with the files as `NAME_test.json`, fetched once per content of the
/// module.
pub fn ensure(module: &Path) -> Result<PathBuf> {
    let inputs = ["go.mod", "go.sum"].map(|name| sh::read(&module.join(name)));
    let mut inputs: Vec<_> = inputs.into_iter().collect::<Result<_>>()?;
    inputs.push(FILES.concat().into_bytes());
    let key = format!("wycheproof-{}", &sh::digest(&inputs)[..12]);
    cache::folder(&key, |target| {
        say("fetching Wycheproof (once)");
        // Go compares it with go.sum.
        let mut download = command("go", &["mod", "download", "-json", MODULE]);
        let said = run(download.current_dir(module))
            .context("Wycheproof is a Go module: Go must be on the PATH")?;
        let Download { dir } = serde_json::from_str(&said)?;
        for name in FILES {
            let name = format!("{name}_test.json");
            let from = dir.join("testvectors_v1").join(&name);
            fs::copy(&from, target.join(&name))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        Ok(())
    })
}
