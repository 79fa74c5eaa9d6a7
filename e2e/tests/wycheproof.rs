//! Signatures as the sidecar checks them, by the test vectors of Wycheproof:
//! no false accept, and all that is valid under an algorithm that it knows
//! passes.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use crds::SigningAlgorithm;
use e2e::checkout;
use e2e::tools::Tools;
use policy::Reason;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sidecar::auth::{Keys, verify_signature};

const ALGORITHMS: [SigningAlgorithm; 9] = [
    SigningAlgorithm::RS256,
    SigningAlgorithm::RS384,
    SigningAlgorithm::RS512,
    SigningAlgorithm::PS256,
    SigningAlgorithm::PS384,
    SigningAlgorithm::PS512,
    SigningAlgorithm::ES256,
    SigningAlgorithm::ES384,
    SigningAlgorithm::EdDSA,
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File<Group> {
    number_of_tests: usize,
    test_groups: Vec<Group>,
}

/// Whether a signature is to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    Valid,
    Invalid,
    /// Either way is right.
    Acceptable,
}

/// Tokens by one key or set.
#[derive(Deserialize)]
struct Tokens {
    comment: String,
    public: Option<Value>,
    private: Value,
    tests: Vec<Token>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Token {
    tc_id: usize,
    comment: String,
    /// A text, or an object of the JSON serialization.
    #[serde(alias = "jwe")]
    jws: Value,
    result: Wanted,
}

/// Signatures by one key, of bytes that are no token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signatures {
    public_key: Value,
    tests: Vec<Signature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signature {
    tc_id: usize,
    comment: String,
    msg: String,
    sig: String,
    result: Wanted,
}

/// How many there are of each kind.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    invalid: usize,
    acceptable: usize,
    passed: usize,
    /// Passed as soon as the `alg` of its key, which is another, is left out.
    contradicted: usize,
    /// Encrypted, and so no token.
    encrypted: usize,
    /// Valid under algorithms that the sidecar does not know.
    unsupported: BTreeMap<String, usize>,
}

fn vectors() -> Result<PathBuf> {
    Tools::wycheproof(&checkout::root()?)
}

fn read<Group: DeserializeOwned>(folder: &Path, name: &str) -> Result<File<Group>> {
    let file = folder.join(format!("{name}_test.json"));
    let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot read {}", file.display()))
}

impl Tokens {
    /// What the issuer publishes.
    fn set(&self) -> Value {
        let key = self.public.as_ref().unwrap_or(&self.private);
        match key.get("keys") {
            Some(_) => key.clone(),
            None => json!({"keys": [key]}),
        }
    }

    /// The keys of an issuer that signs with what its keys say, or with all.
    fn pinned(&self) -> Keys {
        let set = self.set();
        let keys = set["keys"].as_array().into_iter().flatten();
        let named = keys.filter_map(|key| serde_json::from_value(key["alg"].clone()).ok());
        let named: Vec<SigningAlgorithm> = named.collect();
        let algorithms = if named.is_empty() {
            &ALGORITHMS[..]
        } else {
            &named
        };
        Keys::read(&set, algorithms).0
    }

    /// The keys, without what they say of algorithms.
    fn without_alg(&self) -> Keys {
        let mut set = self.set();
        let keys = set["keys"].as_array_mut().into_iter().flatten();
        for key in keys.filter_map(Value::as_object_mut) {
            key.remove("alg");
        }
        Keys::read(&set, &ALGORITHMS).0
    }
}

impl Token {
    fn text(&self) -> String {
        let text = self.jws.as_str().map(str::to_owned);
        text.unwrap_or_else(|| self.jws.to_string())
    }

    /// The algorithm that its header names, if it can be read.
    fn algorithm(&self) -> Option<String> {
        let text = self.text();
        let header = URL_SAFE_NO_PAD.decode(text.split('.').next()?).ok()?;
        let header: Value = serde_json::from_slice(&header).ok()?;
        header["alg"].as_str().map(str::to_owned)
    }
}

/// Checks all tokens of a file; each that fails is named.
fn check(folder: &Path, name: &str) -> Result<Tally> {
    let file: File<Tokens> = read(folder, name)?;
    let (mut tally, mut wrong, mut seen) = (Tally::default(), Vec::new(), 0);
    for group in &file.test_groups {
        let pinned = group.pinned();
        // The least strict issuer that there can be.
        let (all, _) = Keys::read(&group.set(), &ALGORITHMS);
        for token in &group.tests {
            seen += 1;
            let text = token.text();
            let found = verify_signature(&text, &pinned);
            let is_right = match token.result {
                Wanted::Invalid => {
                    tally.invalid += 1;
                    found.is_err() && verify_signature(&text, &all).is_err()
                }
                Wanted::Acceptable => {
                    tally.acceptable += 1;
                    true
                }
                Wanted::Valid => valid(&mut tally, group, token, found),
            };
            if !is_right {
                let Token { tc_id, comment, .. } = token;
                wrong.push(format!("{tc_id} {comment} of {}: {found:?}", group.comment));
            }
        }
    }
    ensure!(seen == file.number_of_tests, "{name}: {seen} vectors");
    ensure!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
    Ok(tally)
}

/// Whether a valid token was found to be what it should be.
fn valid(tally: &mut Tally, group: &Tokens, token: &Token, found: Result<(), Reason>) -> bool {
    if found == Err(Reason::TokenEncrypted) {
        tally.encrypted += 1;
        return true;
    }
    // One has a header that is encoded in a way of its own, which HMAC signs.
    let of_key = || group.private["alg"].as_str().map(str::to_owned);
    let name = token.algorithm().or_else(of_key).unwrap_or_default();
    if serde_json::from_value::<SigningAlgorithm>(json!(name)).is_err() {
        *tally.unsupported.entry(name).or_default() += 1;
        return found.is_err();
    }
    if found.is_ok() {
        tally.passed += 1;
        return true;
    }
    // RFC 7520 §4.2: its key has no `alg`, Wycheproof's has a wrong one.
    tally.contradicted += 1;
    let again = verify_signature(&token.text(), &group.without_alg());
    found == Err(Reason::AlgorithmNotAllowed) && again == Ok(())
}

#[test]
fn json_web_signatures() -> Result<()> {
    let tally = check(&vectors()?, "json_web_signature")?;
    let unsupported = [("ES512", 2), ("HS256", 10)];
    let unsupported = unsupported.map(|(name, count)| (name.to_owned(), count));
    println!("row 4: Wycheproof, JSON Web Signatures: {tally:?}; 0 invalid ones accepted");
    let expected = Tally {
        invalid: 355,
        passed: 32,
        contradicted: 2,
        unsupported: unsupported.into(),
        ..Tally::default()
    };
    ensure!(tally == expected, "{tally:?}");
    Ok(())
}

/// Keys that are too weak, of another kind or for another use; tokens that are
/// encrypted.
#[test]
fn json_web_keys_and_encryption() -> Result<()> {
    let folder = vectors()?;
    let keys = check(&folder, "json_web_key")?;
    let all = check(&folder, "json_web_crypto")?;
    println!("row 4: Wycheproof, JSON Web Keys: {keys:?}; 0 invalid ones accepted");
    println!("row 4: Wycheproof, JSON Web Cryptography: {all:?}; 0 invalid ones accepted");
    ensure!(keys.passed == 1 && keys.contradicted == 0, "{keys:?}");
    ensure!(all.passed == 2 && all.contradicted == 0, "{all:?}");
    ensure!(all.encrypted == 2, "{all:?}");
    Ok(())
}

fn hex(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(str::from_utf8);
    let bytes = pairs.map(|pair| Ok(u8::from_str_radix(pair?, 16)?));
    bytes.collect()
}

/// A public key of Wycheproof as an issuer publishes it.
fn jwk(key: &Value) -> Result<Value> {
    let bytes = |name: &str| {
        hex(key[name]
            .as_str()
            .with_context(|| format!("{name}: {key}"))?)
    };
    // In a certificate, a number has a zero before it where it looks negative.
    let number = |name| -> Result<_> {
        let bytes = bytes(name)?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Ok(URL_SAFE_NO_PAD.encode(&bytes[zeros..]))
    };
    Ok(match key["curve"].as_str() {
        None => json!({"kty": "RSA", "n": number("modulus")?, "e": number("publicExponent")?}),
        Some("edwards25519") => {
            json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(bytes("pk")?)})
        }
        Some(curve) => {
            let point = bytes("uncompressed")?;
            let (x, y) = point[1..].split_at(point.len() / 2);
            let name = if curve == "secp256r1" {
                "P-256"
            } else {
                "P-384"
            };
            let [x, y] = [x, y].map(|number| URL_SAFE_NO_PAD.encode(number));
            json!({"kty": "EC", "crv": name, "x": x, "y": y})
        }
    })
}

/// Signatures of any bytes: there are more of them, for more algorithms.
#[test]
fn signatures() -> Result<()> {
    let files = [
        ("ES256", "ecdsa_secp256r1_sha256_p1363"),
        ("ES384", "ecdsa_secp384r1_sha384_p1363"),
        ("EdDSA", "ed25519"),
        ("RS256", "rsa_signature_2048_sha256"),
        ("RS384", "rsa_signature_2048_sha384"),
        ("RS512", "rsa_signature_2048_sha512"),
        ("RS256", "rsa_signature_3072_sha256"),
        ("RS384", "rsa_signature_3072_sha384"),
        ("RS512", "rsa_signature_3072_sha512"),
        ("RS256", "rsa_signature_4096_sha256"),
        ("RS384", "rsa_signature_4096_sha384"),
        ("RS512", "rsa_signature_4096_sha512"),
        ("PS256", "rsa_pss_2048_sha256_mgf1_32"),
        ("PS256", "rsa_pss_3072_sha256_mgf1_32"),
        ("PS256", "rsa_pss_4096_sha256_mgf1_32"),
        ("PS384", "rsa_pss_2048_sha384_mgf1_48"),
        ("PS384", "rsa_pss_4096_sha384_mgf1_48"),
        ("PS512", "rsa_pss_4096_sha512_mgf1_64"),
    ];
    let folder = vectors()?;
    let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (algorithm, name) in files {
        let file: File<Signatures> = read(&folder, name)?;
        let mut seen = 0;
        for group in &file.test_groups {
            let set = json!({"keys": [jwk(&group.public_key)?]});
            let only: SigningAlgorithm = serde_json::from_value(json!(algorithm))?;
            let (keys, left_out) = Keys::read(&set, &[only]);
            ensure!(left_out == 0, "{name}: a good key is left out: {set}");
            for test in &group.tests {
                seen += 1;
                let signature = URL_SAFE_NO_PAD.encode(hex(&test.sig)?);
                let found = keys.verify(algorithm, None, &hex(&test.msg)?, &signature);
                let is_right = match test.result {
                    Wanted::Valid => found == Ok(()),
                    Wanted::Invalid => found == Err(Reason::SignatureInvalid),
                    Wanted::Acceptable => true,
                };
                counts.entry(algorithm).or_default()[test.result as usize] += 1;
                if !is_right {
                    let Signature { tc_id, comment, .. } = test;
                    wrong.push(format!("{name} {tc_id} {comment}: {found:?}"));
                }
            }
        }
        ensure!(seen == file.number_of_tests, "{name}: {seen} vectors");
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(counts.len() == ALGORITHMS.len(), "{counts:?}");
    for (algorithm, [valid, invalid, acceptable]) in counts {
        println!(
            "row 4: Wycheproof, {algorithm}: {valid} valid ones pass, {invalid} invalid ones do not, {acceptable} either way"
        );
    }
    Ok(())
}
