//! A database with the example's schema and the orders of three people, and
//! assertions that say anything.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::postgres::{Postgres, SUPERUSER, Said};
use e2e::{checkout, sh};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The server that the database knows.
pub const URL: &str = "http://orders.demo.svc/mcp";
/// The issuer of alice and bob.
pub const IDP: &str = "https://idp.example";
/// The issuer of another alice.
pub const OTHER_IDP: &str = "https://other.example";
pub const DATABASE: &str = "orders";
/// The MCP server's role.
pub const SERVER: &str = "orders_server";
pub const SYNCER: &str = "toolward_syncer";

/// What one sees, in one line; nothing is `-`.
pub const SEEN: &str =
    "SELECT coalesce(string_agg(item, ',' ORDER BY item), '-') FROM shop.orders;";

/// Three orders, and a way to try what may fail without an end of the transaction.
const FIXTURE: &str = "
    INSERT INTO shop.orders (owner_iss, owner_sub, item, quantity) VALUES
      ('https://idp.example', 'alice', 'tea', 2),
      ('https://idp.example', 'bob', 'coffee', 7),
      ('https://other.example', 'alice', 'cocoa', 1);
    CREATE SCHEMA test;
    GRANT USAGE ON SCHEMA test TO orders_server;
    CREATE FUNCTION test.become(assertion text) RETURNS text LANGUAGE plpgsql AS $$
      BEGIN
        PERFORM toolward.become(assertion);
        RETURN 'ok';
      EXCEPTION WHEN OTHERS THEN
        RETURN SQLSTATE || ' ' || SQLERRM;
      END $$;";

/// A key of a sidecar.
pub struct Key {
    pair: EcdsaKeyPair,
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The id of a key (RFC 7638).
pub fn thumbprint(x: &str, y: &str) -> String {
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    encode(Sha256::digest(canonical))
}

/// Seconds since 1970.
pub fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

impl Key {
    pub fn new() -> Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let pair = pair.map_err(|_| anyhow!("no key can be made"))?;
        Ok(Self { pair })
    }

    /// The public key.
    pub fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        let (x, y) = (encode(x), encode(y));
        let kid = thumbprint(&x, &y);
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "alg": "ES256", "use": "sig"})
    }

    pub fn header(&self) -> Value {
        json!({"alg": "ES256", "typ": "toolward-identity+jwt", "kid": self.jwk()["kid"]})
    }

    /// The 64 bytes of a signature.
    pub fn sign(&self, message: &str) -> Result<Vec<u8>> {
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes());
        let signature = signature.map_err(|_| anyhow!("no signature can be made"))?;
        Ok(signature.as_ref().to_vec())
    }

    /// An assertion of this header and payload, as they stand.
    pub fn token(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> Result<String> {
        let signed = format!("{}.{}", encode(header), encode(payload));
        let signature = encode(self.sign(&signed)?);
        Ok(format!("{signed}.{signature}"))
    }

    /// What the sidecar would sign.
    pub fn assertion(&self, claims: &Value) -> Result<String> {
        self.token(self.header().to_string(), claims.to_string())
    }

    /// The same for a user of [`IDP`].
    pub fn of(&self, user: &str) -> Result<String> {
        self.assertion(&claims(user)?)
    }
}

/// The claims of an assertion that is made now.
pub fn claims(user: &str) -> Result<Value> {
    let now = now()?;
    Ok(json!({
        "iss": URL, "aud": URL, "iat": now, "nbf": now, "exp": now + 60, "jti": "one",
        "sub_id": {"format": "iss_sub", "iss": IDP, "sub": user},
        "act": {"iss": IDP, "sub": "assistant"},
        "groups": ["staff"],
    }))
}

/// `base` with members that are replaced; null: left out.
pub fn with(base: &Value, changes: &Value) -> Value {
    let mut changed = base.clone();
    let changes = changes.as_object().into_iter().flatten();
    for (name, value) in changes {
        if !value.is_null() {
            changed[name] = value.clone();
        } else if let Some(members) = changed.as_object_mut() {
            members.remove(name);
        }
    }
    changed
}

/// A text as SQL writes it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Makes the user known, and prints `ok` or why not.
pub fn become_user(assertion: &str) -> String {
    format!("SELECT test.become({});", literal(assertion))
}

/// The database, and a key that it knows.
pub struct Lab {
    pub postgres: Postgres,
    pub key: Key,
}

impl Lab {
    pub async fn new() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let create = format!("CREATE DATABASE {DATABASE}");
        postgres.query(SUPERUSER, SUPERUSER, &create)?;
        let mut psql = postgres.psql(SUPERUSER, DATABASE);
        psql.args(["--set", &format!("server_url={URL}"), "--file"]);
        let schema = checkout::root()?.join("examples/postgres-rls/schema.sql");
        sh::run(psql.arg(schema))?;
        let key = Key::new()?;
        let lab = Self { postgres, key };
        lab.superuser(FIXTURE)?;
        lab.set_keys(&[&lab.key.jwk()])?;
        Ok(lab)
    }

    /// What a script of the superuser prints.
    pub fn superuser(&self, script: &str) -> Result<Vec<String>> {
        self.postgres.query(SUPERUSER, DATABASE, script)
    }

    /// What a script of the MCP server prints, in which nothing may fail.
    pub fn server(&self, script: &str) -> Result<Vec<String>> {
        self.postgres.query(SERVER, DATABASE, script)
    }

    /// As the syncer does it.
    pub fn set_keys(&self, jwks: &[&Value]) -> Result<()> {
        let set = literal(&json!({"keys": jwks}).to_string());
        let script = format!("SELECT toolward.set_keys({}, {set}::jsonb)", literal(URL));
        self.postgres.query(SYNCER, DATABASE, &script).map(drop)
    }

    /// Tries assertions, which are expressions of SQL, each in a transaction of its
    /// own: what is said of it, and what is seen afterwards.
    pub fn tries(&self, assertions: &[String]) -> Result<Vec<(String, String)>> {
        let scripts = assertions
            .iter()
            .map(|a| format!("BEGIN;\nSELECT test.become({a});\n{SEEN}\nCOMMIT;\n"));
        let lines = self.server(&scripts.collect::<String>())?;
        ensure!(lines.len() == 2 * assertions.len(), "{lines:?}");
        let pairs = lines.chunks_exact(2);
        Ok(pairs.map(|p| (p[0].clone(), p[1].clone())).collect())
    }

    /// A script with what stands for something: `@seen`, and a user who becomes known
    /// by `@alice` or `@bob`. `@assertion` is one for alice. Each is made now, as it
    /// lives for a minute only.
    fn filled(&self, script: &str) -> Result<String> {
        let script = script.replace("@seen", SEEN);
        let script = script.replace("@assertion", &literal(&self.key.of("alice")?));
        let script = script.replace("@alice", &become_user(&self.key.of("alice")?));
        Ok(script.replace("@bob", &become_user(&self.key.of("bob")?)))
    }

    /// All that a script of the server says, which goes on after errors.
    pub fn says(&self, script: &str) -> Result<Said> {
        let script = self.filled(script)?;
        self.postgres.script(SERVER, DATABASE, &script)
    }

    /// A script of the server prints exactly these lines, and nothing in it fails.
    pub fn prints(&self, script: &str, expected: &[&str]) -> Result<()> {
        let lines = self.server(&self.filled(script)?);
        let lines = lines.with_context(|| script.to_owned())?;
        ensure!(
            lines == expected,
            "{script}\nprinted {lines:#?}\nand should {expected:#?}"
        );
        Ok(())
    }
}
