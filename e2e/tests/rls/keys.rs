//! The public keys in the database: as they are brought, and only whole sets that
//! are right.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kit::{DATABASE, Key, Lab, SYNCER, URL, become_user, literal, thumbprint, with};

const UNKNOWN: &str =
    "28000 plpy.Error: assertion refused: no sidecar of this server has the key of kid";

pub async fn come_and_go() -> Result<()> {
    let lab = Lab::new().await?;
    let second = Key::new()?;
    let said = |key: &Key| lab.server(&become_user(&key.of("alice")?));
    let check = |keys: &str, first: &str, other: &str| {
        let found = (said(&lab.key)?, said(&second)?);
        ensure!(
            found.0 == [first] && found.1 == [other],
            "{keys}: {found:?}"
        );
        anyhow::Ok(())
    };
    check("the first", "ok", UNKNOWN)?;
    lab.set_keys(&[&lab.key.jwk(), &second.jwk()])?;
    check("both", "ok", "ok")?;
    lab.set_keys(&[&second.jwk()])?;
    check("the second", UNKNOWN, "ok")?;
    refused(&lab, &second)?;
    check("bad ones", UNKNOWN, "ok")?;
    lab.set_keys(&[])?;
    check("none", UNKNOWN, UNKNOWN)?;
    // The syncer can do nothing else.
    for script in [
        "SELECT * FROM shop.orders",
        "SELECT * FROM toolward.keys",
        "INSERT INTO toolward.servers VALUES ('https://evil.example', 'toolward_syncer')",
        "SELECT toolward.become('x')",
    ] {
        let said = lab.postgres.script(SYNCER, DATABASE, script)?;
        ensure!(said.errors.contains("permission denied"), "{said:?}");
    }
    Ok(())
}

fn refused(lab: &Lab, known: &Key) -> Result<()> {
    let jwk = Key::new()?.jwk();
    let next = |name: &str| -> Result<String> {
        let text = jwk[name].as_str().context("a text")?;
        let first = if text.starts_with('A') { "B" } else { "A" };
        Ok(format!("{first}{}", &text[1..]))
    };
    // Its thumbprint is right, and it is no point of the curve.
    let x = next("x")?;
    let kid = thumbprint(&x, jwk["y"].as_str().context("a text")?);
    let off = with(&jwk, &json!({"x": x, "kid": kid}));
    let bad = |changes: Value| with(&jwk, &changes);
    for (key, why) in [
        (bad(json!({"kid": next("kid")?})), "thumbprint"),
        (bad(json!({"x": next("x")?})), "thumbprint"),
        (bad(json!({"kid": null})), "KeyError('kid')"),
        (bad(json!({"y": null})), "KeyError('y')"),
        (bad(json!({"kty": "oct"})), "not for ES256"),
        (bad(json!({"crv": "P-384"})), "not for ES256"),
        (bad(json!({"alg": "RS256"})), "not for ES256"),
        (bad(json!({"x": "AAAA"})), "32 bytes"),
        (bad(json!({"x": 1})), "TypeError"),
        (off, "key 1 is not taken"),
        (json!("a text"), "TypeError"),
    ] {
        let error = lab.set_keys(&[&known.jwk(), &key]).err();
        let error = format!("{:#}", error.with_context(|| format!("{key} is taken"))?);
        ensure!(
            error.contains("key 1 is not taken, nor any other") && error.contains(why),
            "{key}: {error}"
        );
    }
    for set in ["{}", "[]", r#"{"keys": 1}"#, "null"] {
        let set = literal(set);
        let script = format!("SELECT toolward.set_keys({}, {set})", literal(URL));
        let said = lab.postgres.script(SYNCER, DATABASE, &script)?;
        ensure!(said.errors.contains("is not taken"), "{set}: {said:?}");
    }
    let script = format!(
        "SELECT toolward.set_keys('https://unknown.example', {})",
        literal(&json!({"keys": [known.jwk()]}).to_string())
    );
    let said = lab.postgres.script(SYNCER, DATABASE, &script)?;
    ensure!(said.errors.contains("foreign key constraint"), "{said:?}");
    Ok(())
}
