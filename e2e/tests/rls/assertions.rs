//! A table of assertions, each with what the database has to say of it.

use anyhow::{Result, ensure};
use e2e::postgres::SUPERUSER;
use serde_json::{Value, json};

use crate::kit::{
    DATABASE, IDP, Key, Lab, OTHER_IDP, URL, become_user, claims, encode, literal, now, with,
};

/// The order of the curve's group.
const N: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
const FEWEST: usize = 100;

/// A name, an assertion, and why it is refused; or else what is seen with it.
struct Case {
    name: String,
    assertion: String,
    expected: Result<&'static str, &'static str>,
}

/// The cases, and what they are made from.
struct Table<'a> {
    key: &'a Key,
    claims: Value,
    cases: Vec<Case>,
}

impl Table<'_> {
    fn add(
        &mut self,
        name: impl Into<String>,
        assertion: impl AsRef<str>,
        expected: Result<&'static str, &'static str>,
    ) {
        self.cases.push(Case {
            name: name.into(),
            assertion: literal(assertion.as_ref()),
            expected,
        });
    }

    fn good(&mut self, changes: Value, seen: &'static str) -> Result<()> {
        let assertion = self.key.assertion(&with(&self.claims, &changes))?;
        self.add(changes.to_string(), assertion, Ok(seen));
        Ok(())
    }

    fn bad(&mut self, changes: Value, why: &'static str) -> Result<()> {
        let assertion = self.key.assertion(&with(&self.claims, &changes))?;
        self.add(changes.to_string(), assertion, Err(why));
        Ok(())
    }

    fn bad_header(&mut self, changes: Value, why: &'static str) -> Result<()> {
        let header = with(&self.key.header(), &changes).to_string();
        let assertion = self.key.token(header, self.claims.to_string())?;
        self.add(format!("header {changes}"), assertion, Err(why));
        Ok(())
    }

    fn bad_text(&mut self, header: &[u8], payload: &[u8], why: &'static str) -> Result<()> {
        let assertion = self.key.token(header, payload)?;
        let shown = |part: &[u8]| String::from_utf8_lossy(&part[..part.len().min(60)]).into_owned();
        let name = format!("{} . {}", shown(header), shown(payload));
        self.add(name, assertion, Err(why));
        Ok(())
    }

    /// Assertions that are good.
    fn accepted(&mut self) -> Result<()> {
        let soon = now()? + 3;
        let known = |iss: &str, sub: &str| json!({"format": "iss_sub", "iss": iss, "sub": sub});
        self.good(json!({}), "tea")?;
        self.good(json!({"sub_id": known(IDP, "bob")}), "coffee")?;
        self.good(json!({"sub_id": known(OTHER_IDP, "alice")}), "cocoa")?;
        self.good(json!({"sub_id": known(IDP, "Alice")}), "-")?;
        self.good(json!({"sub_id": known(IDP, "al\u{ed}ce \u{1f600}")}), "-")?;
        self.good(json!({"sub_id": known(IDP, "' OR true --")}), "-")?;
        self.good(json!({"act": null}), "tea")?;
        self.good(json!({"groups": null}), "tea")?;
        self.good(json!({"groups": []}), "tea")?;
        self.good(json!({"groups": ["a,b", "{}", "NULL", "\"", "\\"]}), "tea")?;
        self.good(json!({"jti": null}), "tea")?;
        self.good(json!({"further": {"claims": [1.5]}}), "tea")?;
        // A sidecar whose clock is a little ahead.
        self.good(json!({"iat": soon, "nbf": soon, "exp": soon + 60}), "tea")
    }

    /// What is no assertion at all.
    fn form(&mut self) -> Result<()> {
        let good = self.key.assertion(&self.claims)?;
        let [header, payload, signature] = split(&good);
        self.add("nothing", "", Err("there is none"));
        let three = "it does not have three parts";
        self.add("two parts", format!("{header}.{payload}"), Err(three));
        self.add("four parts", format!("{good}.e30"), Err(three));
        self.add("an object", r#"{"payload":""}"#, Err(three));
        let long = "it is longer than 16384 characters";
        self.add("too long", "a".repeat(16_385), Err(long));
        let header_text = "the header is not base64url";
        self.add("dots", "..", Err(header_text));
        self.add("a scheme", format!("Bearer {good}"), Err(header_text));
        self.add("a space", format!(" {good}"), Err(header_text));
        let padded = format!("{header}=.{payload}.{signature}");
        self.add("padding", padded, Err(header_text));
        self.add("letters", format!("\u{e9}{good}"), Err(header_text));
        let one_more = format!("{header}.{payload}.{signature}AAA");
        self.add("a length", one_more, Err("the signature is not base64url"));
        let line = format!("{good}\n");
        self.add("a line", line, Err("the signature is not base64url"));
        let unsigned = format!("{header}.{payload}.");
        self.add("unsigned", unsigned, Err("the signature is not base64url"));
        Ok(())
    }

    fn signature(&mut self) -> Result<()> {
        let good = self.key.assertion(&self.claims)?;
        let [header, payload, signature] = split(&good);
        let raw = self.key.sign(&format!("{header}.{payload}"))?;
        let forged = "the signature is not of that key";
        let length = "the signature does not have 64 bytes";
        let n: Vec<u8> = (0..32)
            .map(|at| u8::from_str_radix(&N[2 * at..2 * at + 2], 16))
            .collect::<Result<_, _>>()?;
        let mut der = vec![0x30, 68, 2, 32];
        der.extend([&raw[..32], &[2, 32][..], &raw[32..]].concat());
        for (name, bytes, why) in [
            ("zeros", vec![0; 64], forged),
            ("ones", vec![255; 64], forged),
            ("r is 0", [&[0; 32][..], &raw[32..]].concat(), forged),
            ("s is 0", [&raw[..32], &[0; 32][..]].concat(), forged),
            ("r is n", [&n[..], &raw[32..]].concat(), forged),
            ("s is n", [&raw[..32], &n[..]].concat(), forged),
            ("halves", [&raw[32..], &raw[..32]].concat(), forged),
            ("short", raw[..63].to_vec(), length),
            ("long", [&raw[..], &[0][..]].concat(), length),
            ("DER", der, length),
        ] {
            let assertion = format!("{header}.{payload}.{}", encode(bytes));
            self.add(name, assertion, Err(why));
        }
        // Spare bits of the last letter: the same bytes in other letters.
        let last = signature.chars().last().unwrap_or_default();
        let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let at = letters.find(last).unwrap_or_default();
        let next = &letters[at + 1..at + 2];
        let spare = format!("{}{next}", &good[..good.len() - 1]);
        let why = "the signature is not base64url as an encoder writes it";
        self.add("spare bits", spare, Err(why));
        let bob = json!({"sub_id": {"format": "iss_sub", "iss": IDP, "sub": "bob"}});
        let bob = encode(with(&self.claims, &bob).to_string());
        let swapped = format!("{header}.{bob}.{signature}");
        self.add("for another payload", swapped, Err(forged));
        let stranger = Key::new()?;
        let assertion = stranger.assertion(&self.claims)?;
        let unknown = "no sidecar of this server has the key of kid";
        self.add("a stranger", assertion, Err(unknown));
        let posing = stranger.token(self.key.header().to_string(), self.claims.to_string())?;
        self.add("a stranger by a known kid", posing, Err(forged));
        Ok(())
    }

    fn header(&mut self) -> Result<()> {
        let alg = "alg is not ES256";
        for name in ["none", "None", "HS256", "ES384", "RS256", "es256", ""] {
            self.bad_header(json!({"alg": name}), alg)?;
        }
        self.bad_header(json!({"alg": ["ES256"]}), alg)?;
        let typ = "typ is not toolward-identity+jwt";
        for name in ["JWT", "at+jwt", "application/toolward-identity+jwt"] {
            self.bad_header(json!({"typ": name}), typ)?;
        }
        let exactly = "the header does not have exactly the members alg, kid, typ";
        for name in ["alg", "kid", "typ"] {
            self.bad_header(json!({name: null}), exactly)?;
        }
        let own = Key::new()?.jwk();
        self.bad_header(json!({"jwk": own}), exactly)?;
        self.bad_header(json!({"jku": "https://evil.example/keys"}), exactly)?;
        self.bad_header(json!({"crit": ["exp"]}), exactly)?;
        self.bad_header(json!({"b64": false}), exactly)?;
        let unknown = "no sidecar of this server has the key of kid";
        self.bad_header(json!({"kid": "../../../dev/null"}), unknown)?;
        self.bad_header(json!({"kid": "' OR true --"}), unknown)?;
        let text = "kid is not a text of 1 to 1024 characters";
        self.bad_header(json!({"kid": 1}), text)?;
        self.bad_header(json!({"kid": ""}), text)
    }

    fn json(&mut self) -> Result<()> {
        let (header, payload) = (self.key.header().to_string(), self.claims.to_string());
        let not_header = "the header is not JSON, or has a name twice";
        let not_payload = "the payload is not JSON, or has a name twice";
        let twice = header.replacen('{', r#"{"alg":"none","#, 1);
        let (head, body) = (header.as_bytes(), payload.as_bytes());
        self.bad_text(twice.as_bytes(), body, not_header)?;
        self.bad_text(b"alg", body, not_header)?;
        self.bad_text(b"\xff\xfe", body, not_header)?;
        self.bad_text(b"[]", body, "the header is not a JSON object")?;
        let nested = payload.replacen(r#""sub":"#, r#""sub":"bob","sub":"#, 1);
        let twice = payload.replacen('{', r#"{"exp":1,"#, 1);
        let wide: Vec<u8> = payload.bytes().flat_map(|byte| [byte, 0]).collect();
        let marked = [&b"\xef\xbb\xbf"[..], body].concat();
        let constant = payload.replacen('{', r#"{"a":NaN,"#, 1);
        let digits = format!(r#"{{"exp":{}}}"#, "1".repeat(5000));
        let rest = format!("{payload} {{}}");
        for text in [
            nested.as_bytes(),
            twice.as_bytes(),
            &wide[..],
            &marked[..],
            constant.as_bytes(),
            digits.as_bytes(),
            rest.as_bytes(),
            "[".repeat(6000).as_bytes(),
            &b"\""[..],
        ] {
            self.bad_text(head, text, not_payload)?;
        }
        self.bad_text(head, b"null", "the payload is not a JSON object")?;
        let half = payload.replacen("\"alice\"", r#""\ud800""#, 1);
        self.bad_text(head, half.as_bytes(), "sub_id.sub has half of a character")
    }

    fn claims(&mut self) -> Result<()> {
        let now = now()?;
        for name in ["iss", "aud"] {
            let why = match name {
                "iss" => "iss is not the URL of this server",
                _ => "aud is not the URL of this server",
            };
            let slash = format!("{URL}/");
            for value in [json!(null), json!(slash), json!([URL]), json!(IDP)] {
                self.bad(json!({name: value}), why)?;
            }
        }
        self.bad(json!({"exp": now - 1}), "it has expired")?;
        let old = json!({"iat": now - 3600, "nbf": now - 3600, "exp": now - 3540});
        self.bad(old, "it has expired")?;
        self.bad(json!({"nbf": now + 50}), "it is not valid yet")?;
        let ahead = json!({"iat": now + 50, "exp": now + 100});
        self.bad(ahead, "it is of the future")?;
        self.bad(json!({"exp": now + 61}), "it lives longer than 60 s")?;
        self.bad(json!({"iat": now - 30}), "it lives longer than 60 s")?;
        for (name, why) in [
            ("iat", "iat is not a time in seconds"),
            ("nbf", "nbf is not a time in seconds"),
            ("exp", "exp is not a time in seconds"),
        ] {
            self.bad(json!({name: null}), why)?;
            self.bad(json!({name: now.to_string()}), why)?;
        }
        let why = "exp is not a time in seconds";
        self.bad(json!({"exp": true}), why)?;
        self.bad(json!({"exp": now as f64 + 30.5}), why)?;
        self.bad(json!({"exp": 1_u64 << 60}), why)
    }

    fn names(&mut self) -> Result<()> {
        self.bad(json!({"sub_id": null}), "it names no user")?;
        self.bad(json!({"sub_id": null, "sub": "alice"}), "it names no user")?;
        let exactly = "sub_id does not have exactly the members format, iss, sub";
        for value in [
            json!("alice"),
            json!({"format": "email", "email": "alice@idp.example"}),
            json!({"format": "iss_sub", "sub": "alice"}),
            json!({"format": "iss_sub", "iss": IDP, "sub": "alice", "id": "bob"}),
        ] {
            self.bad(json!({"sub_id": value}), exactly)?;
        }
        let opaque = json!({"format": "opaque", "iss": IDP, "sub": "alice"});
        self.bad(json!({"sub_id": opaque}), "sub_id.format is not iss_sub")?;
        let text = "sub_id.sub is not a text of 1 to 1024 characters";
        for sub in [
            json!(""),
            json!(1),
            json!("alice\0"),
            json!("a".repeat(1025)),
        ] {
            let sub_id = json!({"format": "iss_sub", "iss": IDP, "sub": sub});
            self.bad(json!({"sub_id": sub_id}), text)?;
        }
        let exactly = "act does not have exactly the members iss, sub";
        for value in [
            json!("assistant"),
            json!({"sub": "assistant"}),
            json!({"iss": IDP, "sub": "assistant", "act": {}}),
        ] {
            self.bad(json!({"act": value}), exactly)?;
        }
        self.bad(json!({"groups": "staff"}), "groups is not a list")?;
        let text = "a group is not a text of 1 to 1024 characters";
        self.bad(json!({"groups": ["staff", 1]}), text)?;
        self.bad(json!({"groups": [["staff"]]}), text)
    }
}

fn split(assertion: &str) -> [&str; 3] {
    let mut parts = assertion.splitn(3, '.');
    [(); 3].map(|()| parts.next().unwrap_or_default())
}

pub async fn table() -> Result<()> {
    let lab = Lab::new().await?;
    let mut table = Table {
        key: &lab.key,
        claims: claims("alice")?,
        cases: Vec::new(),
    };
    table.accepted()?;
    table.form()?;
    table.signature()?;
    table.header()?;
    table.json()?;
    table.claims()?;
    table.names()?;
    let mut assertions: Vec<String> = table.cases.iter().map(|c| c.assertion.clone()).collect();
    assertions.push("NULL".to_owned());
    let answers = lab.tries(&assertions)?;
    let nothing = "28000 plpy.Error: assertion refused: there is none";
    let last = (nothing.to_owned(), "-".to_owned());
    ensure!(answers.last() == Some(&last), "NULL: {answers:?}");
    let (mut wrong, mut refused) = (Vec::new(), 0);
    for (case, (said, seen)) in table.cases.iter().zip(&answers) {
        let expected = match case.expected {
            Ok(seen) => ("ok".to_owned(), seen),
            Err(why) => (format!("28000 plpy.Error: assertion refused: {why}"), "-"),
        };
        refused += usize::from(case.expected.is_err());
        if (said, seen.as_str()) != (&expected.0, expected.1) {
            let name = &case.name;
            wrong.push(format!("{name}: {said}, and sees {seen}: not {expected:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(refused >= FEWEST, "only {refused} bad ones");
    other_servers(&lab)
}

/// What is good for one server is of no use to the role of another, nor to one that
/// is no server.
fn other_servers(lab: &Lab) -> Result<()> {
    let script = become_user(&lab.key.of("alice")?);
    let said = lab.superuser(&script)?;
    let why = "42501 plpy.Error: this role is no MCP server: it is not in toolward.servers";
    ensure!(said == [why], "{said:?}");
    lab.superuser(
        "CREATE ROLE billing_server LOGIN;
         GRANT CONNECT ON DATABASE orders TO billing_server;
         GRANT USAGE ON SCHEMA toolward, shop, test TO billing_server;
         GRANT SELECT ON shop.orders TO billing_server;
         GRANT EXECUTE ON FUNCTION toolward.become, toolward.identity TO billing_server;
         INSERT INTO toolward.servers VALUES ('http://billing.demo.svc/mcp', 'billing_server');",
    )?;
    let billing = Key::new()?;
    let unknown =
        "28000 plpy.Error: assertion refused: no sidecar of this server has the key of kid";
    let said = lab.postgres.query("billing_server", DATABASE, &script)?;
    ensure!(said == [unknown], "{said:?}");
    // Its own key signs for it, and not for the server of the orders.
    let set = json!({"keys": [billing.jwk()]}).to_string();
    lab.postgres.query(
        SUPERUSER,
        DATABASE,
        &format!(
            "SELECT toolward.set_keys('http://billing.demo.svc/mcp', {}::jsonb)",
            literal(&set)
        ),
    )?;
    let said = lab.server(&become_user(&billing.of("alice")?))?;
    ensure!(said == [unknown], "{said:?}");
    Ok(())
}
