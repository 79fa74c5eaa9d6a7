//! Whatever bytes `toolward.become` is given: a row is seen only with an assertion
//! that is valid, and then it is that user's.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::kit::{IDP, Key, Lab, OTHER_IDP, URL, claims, encode, now, with};

const TRIES: usize = 800;
/// So many of one session, so that none of them outlives its assertions.
const AT_ONCE: usize = 200;

/// SplitMix64: the same choices each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % bound.max(1) as u64).unwrap_or_default()
    }

    /// A text with another letter at one place.
    fn respell(&mut self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        let at = self.below(text.len());
        text[at] = b"abcdefghijklmnopqrstuvwxyz0123456789"[self.below(36)];
        text
    }

    /// Some bytes, changed in one to three places.
    fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let random = u8::try_from(self.below(256)).unwrap_or_default();
            match self.below(7) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = random,
                2 => bytes.insert(at, random),
                3 => bytes.truncate(at.max(1)),
                4 => bytes.insert(at, b".=-_A{}\":,"[self.below(10)]),
                5 => bytes.extend_from_within(at..),
                _ => drop(bytes.remove(at)),
            }
            if bytes.is_empty() {
                bytes.push(b'.');
            }
        }
        bytes
    }
}

/// What is tried, and what may be seen with it.
struct Try {
    bytes: Vec<u8>,
    may_see: &'static str,
}

/// The order of whoever a payload names, if it is one that may be signed.
fn owner(payload: &[u8]) -> Result<&'static str> {
    let Ok(claims) = serde_json::from_slice::<Value>(payload) else {
        return Ok("-");
    };
    let live = claims["exp"].as_u64() > Some(now()?);
    let ours = claims["iss"] == URL && claims["aud"] == URL;
    let of = |iss: &str, sub: &str| {
        claims["sub_id"] == json!({"format": "iss_sub", "iss": iss, "sub": sub})
    };
    Ok(match live && ours {
        true if of(IDP, "alice") => "tea",
        true if of(IDP, "bob") => "coffee",
        true if of(OTHER_IDP, "alice") => "cocoa",
        _ => "-",
    })
}

fn tries(random: &mut Random, key: &Key) -> Result<Vec<Try>> {
    let elsewhere = json!({"format": "iss_sub", "iss": OTHER_IDP, "sub": "alice"});
    let payloads = [
        claims("alice")?.to_string(),
        claims("bob")?.to_string(),
        with(
            &claims("alice")?,
            &json!({"sub_id": elsewhere, "act": null}),
        )
        .to_string(),
    ];
    let header = key.header().to_string();
    let signed = payloads.iter().map(|payload| key.token(&header, payload));
    let signed: Vec<String> = signed.collect::<Result<_>>()?;
    let mut tries = Vec::new();
    while tries.len() < AT_ONCE {
        let which = random.below(signed.len());
        let (assertion, payload) = (&signed[which], payloads[which].as_bytes());
        let parts: Vec<&str> = assertion.split('.').collect();
        let other = signed[random.below(signed.len())].split('.').nth(2);
        let (bytes, may_see) = match random.below(5) {
            // Changed, but signed all the same: what it then says is true.
            0 => {
                let changed = random.respell(payload);
                let may_see = owner(&changed)?;
                (key.token(&header, &changed)?.into_bytes(), may_see)
            }
            // Read, changed and written again, under the signature that it had.
            1 => {
                let changed = encode(random.change(payload));
                let bytes = format!("{}.{changed}.{}", parts[0], parts[2]);
                (bytes.into_bytes(), "-")
            }
            2 => {
                let bytes = format!("{}.{}.{}", parts[0], parts[1], other.unwrap_or_default());
                (bytes.into_bytes(), "-")
            }
            _ => (random.change(assertion.as_bytes()), "-"),
        };
        // What is as it was is valid.
        let same = signed.iter().position(|good| good.as_bytes() == bytes);
        let may_see = match same {
            Some(which) => owner(payloads[which].as_bytes())?,
            None => may_see,
        };
        tries.push(Try { bytes, may_see });
    }
    Ok(tries)
}

pub async fn show_nothing() -> Result<()> {
    let lab = Lab::new().await?;
    let mut random = Random(7);
    let (mut seen_one, mut refused) = (0, 0);
    for _ in 0..TRIES / AT_ONCE {
        let tries = tries(&mut random, &lab.key)?;
        let answers = lab.tries(&tries.iter().map(expression).collect::<Vec<_>>())?;
        for (tried, (said, seen)) in tries.iter().zip(&answers) {
            let shown = String::from_utf8_lossy(&tried.bytes);
            ensure!(
                seen == "-" || (said == "ok" && seen == tried.may_see),
                "{shown}: {said}, and sees {seen} where {} is right",
                tried.may_see
            );
            ensure!(
                said == "ok" || said.starts_with("28000 plpy.Error: assertion refused: "),
                "{shown}: {said}"
            );
            seen_one += usize::from(seen != "-");
            refused += usize::from(said != "ok");
        }
    }
    // Neither is true of all of them, or nothing is shown by this.
    ensure!(seen_one > 0 && refused > TRIES / 2, "{seen_one}, {refused}");
    Ok(())
}

/// Any bytes as a text, but for 0, which no text of PostgreSQL can have.
fn expression(tried: &Try) -> String {
    let bytes = tried.bytes.iter().map(|byte| (*byte).max(1));
    let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    format!(r"convert_from('\x{hex}', 'LATIN1')")
}
