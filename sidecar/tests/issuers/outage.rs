//! Issuers that fail in every way, under load.

use std::time::{Duration, Instant};

use policy::{Reason, report::IssuerState};
use serde_json::json;
use sidecar::issuers::Times;

use crate::{
    common::until,
    idp::{Answer, Idp, JWKS, Key, keys_of, set},
    seam::{Seam, quick},
};

/// How long keys are used that cannot be read anew.
const MAX_AGE: Duration = Duration::from_secs(5);

/// A way to fail, and what is said of it.
type Fault = (&'static str, Answer, &'static str);

/// All ways to fail.
fn faults(key: &Key, evil: &Idp) -> Vec<Fault> {
    let mut twice = set([key]).to_string();
    twice.insert_str(1, r#""keys": [], "#);
    let huge = {
        let mut set = set([key]);
        set["padding"] = json!("x".repeat(2 * 1024 * 1024));
        set
    };
    let raw = |status, text: &str| Answer::Raw(status, text.to_owned().into());
    let to_evil = Answer::Redirect(302, evil.jwks_uri());
    let to_evil_for_good = Answer::Redirect(308, evil.jwks_uri());
    vec![
        ("error-500", raw(500, "oops"), "status 500"),
        ("error-404", raw(404, ""), "status 404"),
        ("not-modified", raw(304, ""), "status 304"),
        ("partial", raw(206, &set([key]).to_string()), "status 206"),
        ("hang", Answer::Hang, "not there within"),
        ("half", Answer::Half, "not there within"),
        ("close", Answer::Close, "no answer"),
        ("reset", Answer::Reset, "no answer"),
        ("redirect", to_evil, "redirects are not followed"),
        (
            "redirect-for-good",
            to_evil_for_good,
            "redirects are not followed",
        ),
        (
            "html",
            raw(200, "<html>down for maintenance</html>"),
            "is not JSON",
        ),
        ("nothing", raw(200, ""), "is not JSON"),
        (
            "latin-1",
            Answer::Raw(200, vec![b'"', 0xe4, b'"'].into()),
            "not UTF-8",
        ),
        (
            "cut",
            raw(200, &set([key]).to_string()[..40]),
            "is not JSON",
        ),
        ("twice", raw(200, &twice), "stands twice"),
        (
            "no-set",
            Answer::Json(json!({"error": "none"})),
            "no key set",
        ),
        ("odd-set", Answer::Json(json!({"keys": {}})), "no key set"),
        ("list", Answer::Json(json!([key.jwk()])), "no key set"),
        ("2-mb", Answer::Json(huge), "no answer"),
    ]
}

/// Sets by which an issuer takes back what it published.
fn withdrawals(key: &Key) -> [Fault; 4] {
    let with = |name: &str, value: &str| {
        let mut jwk = key.jwk();
        jwk[name] = json!(value);
        jwk
    };
    let of = |keys: &[serde_json::Value]| Answer::Json(json!({"keys": keys}));
    let secret = json!({"kty": "oct", "k": "AAAA", "kid": "k"});
    [
        ("empty-set", of(&[]), "no key that can be used"),
        (
            "encryption",
            of(&[with("use", "enc")]),
            "no key that can be used",
        ),
        ("symmetric", of(&[secret]), "private or secret key"),
        (
            "private",
            of(&[with("d", "AAAA"), key.jwk()]),
            "private or secret key",
        ),
    ]
}

/// An issuer for each way to fail, of one server.
struct Outage {
    key: Key,
    /// Keys of others, under the same id.
    others: [Key; 2],
    /// Where redirects lead: an issuer with the second of them.
    evil: Idp,
    faults: Vec<Fault>,
    idps: Vec<Idp>,
    seam: Seam,
    /// A token of each issuer that was let in before.
    remembered: Vec<String>,
}

impl Outage {
    /// All is well, yet.
    async fn coming() -> Self {
        let (key, others) = (Key::new("k"), [Key::new("k"), Key::new("k")]);
        let evil = Idp::start(&others[1]).await;
        let faults = faults(&key, &evil);
        let (mut idps, mut issuers) = (Vec::new(), Vec::new());
        for (name, _, _) in &faults {
            let idp = Idp::start(&key).await;
            let mut issuer = idp.issuer(name);
            keys_of(&mut issuer, |keys| {
                keys.jwks_uri = Some(idp.jwks_uri());
                keys.max_age_seconds = MAX_AGE.as_secs();
            });
            issuers.push(issuer);
            idps.push(idp);
        }
        let times = Times {
            document: Duration::from_millis(300),
            ..quick()
        };
        let remembered = idps.iter().map(|idp| key.token(&idp.url)).collect();
        let outage = Self {
            seam: Seam::new(issuers, times),
            key,
            others,
            evil,
            faults,
            idps,
            remembered,
        };
        outage.all_are(IssuerState::Available).await;
        for token in &outage.remembered {
            assert_eq!(outage.who(token).await, Ok(()));
        }
        outage
    }

    async fn who(&self, token: &str) -> Result<(), Reason> {
        self.seam.who(token).await.map(|_| ())
    }

    fn is(&self, state: IssuerState) -> bool {
        let is = |(name, _, _): &Fault| self.seam.report(name).state == state;
        self.faults.iter().all(is)
    }

    async fn all_are(&self, state: IssuerState) {
        until(&format!("all are {state:?}"), async || self.is(state)).await;
    }

    /// Waits until no key was read before now, and says when that was.
    async fn fresh(&self) -> Instant {
        let since = Instant::now();
        let counts: Vec<_> = self.idps.iter().map(|idp| idp.count(JWKS)).collect();
        until("all keys were read since", async || {
            // One attempt may have been under way: of three, the second began since.
            let is_read = |(idp, count): (&Idp, &usize)| idp.count(JWKS) > count + 2;
            self.idps.iter().zip(&counts).all(is_read) && self.is(IssuerState::Available)
        })
        .await;
        since
    }

    /// Good tokens pass and bad ones do not, until keys of this time may be too
    /// old. How many passed.
    async fn endures(&self, since: Instant) -> usize {
        let (mut passed, mut told) = (0, vec![false; self.faults.len()]);
        // Looked at after an answer, so that it was not too late for it.
        let is_over = || since.elapsed() >= MAX_AGE;
        while !is_over() {
            for (index, (name, _, said)) in self.faults.iter().enumerate() {
                let url = &self.idps[index].url;
                for token in [&self.remembered[index], &self.key.token(url)] {
                    let who = self.who(token).await;
                    if !is_over() {
                        assert_eq!(who, Ok(()), "{name}");
                        passed += 1;
                    }
                }
                for other in &self.others {
                    let who = self.who(&other.token(url)).await;
                    let is_too_late = is_over() && who == Err(Reason::IssuerUnavailable);
                    let is_refused = who == Err(Reason::SignatureInvalid);
                    assert!(is_refused || is_too_late, "{name}: {who:?}");
                }
                let report = self.seam.report(name);
                if report.state == IssuerState::Stale {
                    assert!(report.message.contains(said), "{name}: {report:?}");
                    told[index] = true;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (told, (name, _, _)) in told.iter().zip(&self.faults) {
            assert!(*told, "{name} was not told of");
        }
        passed
    }

    /// Nothing can be told any more.
    async fn is_unsure(&self) {
        for (index, (name, _, said)) in self.faults.iter().enumerate() {
            let url = &self.idps[index].url;
            let [other, evil] = &self.others;
            for token in [
                &self.remembered[index],
                &self.key.token(url),
                &other.token(url),
                &evil.token(url),
            ] {
                let who = self.who(token).await;
                assert_eq!(who, Err(Reason::IssuerUnavailable), "{name}");
            }
            let report = self.seam.report(name);
            assert!(report.message.contains(said), "{name}: {report:?}");
        }
    }

    /// All is as it was.
    async fn is_over(&self) {
        for (index, idp) in self.idps.iter().enumerate() {
            let name = self.faults[index].0;
            for token in [&self.remembered[index], &self.key.token(&idp.url)] {
                assert_eq!(self.who(token).await, Ok(()), "{name}");
            }
            for other in &self.others {
                let who = self.who(&other.token(&idp.url)).await;
                assert_eq!(who, Err(Reason::SignatureInvalid), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn keys_stay_while_an_issuer_fails_and_until_they_are_too_old() {
    let outage = Outage::coming().await;
    let since = outage.fresh().await;
    for (idp, (_, fault, _)) in outage.idps.iter().zip(&outage.faults) {
        idp.fault(Some(fault.clone()));
    }
    let passed = outage.endures(since).await;
    println!(
        "{passed} tokens passed while {} issuers failed",
        outage.faults.len()
    );
    outage.all_are(IssuerState::Unavailable).await;
    outage.is_unsure().await;
    assert_eq!(outage.evil.connections(), 0, "a redirect was followed");
    for idp in &outage.idps {
        idp.fault(None);
    }
    outage.all_are(IssuerState::Available).await;
    outage.is_over().await;
}

/// Whoever answers is not down: a key that was leaked is not used for a day more.
#[tokio::test]
async fn keys_that_an_issuer_takes_back_are_not_used_any_more() {
    let key = Key::new("k");
    for (name, answer, said) in withdrawals(&key) {
        let idp = Idp::start(&key).await;
        let mut issuer = idp.issuer(name);
        keys_of(&mut issuer, |keys| keys.jwks_uri = Some(idp.jwks_uri()));
        let seam = Seam::new(vec![issuer], quick());
        let remembered = key.token(&idp.url);
        assert!(seam.who(&remembered).await.is_ok(), "{name}");
        idp.fault(Some(answer));
        until("it is seen", async || {
            seam.report(name).state == IssuerState::Unavailable
        })
        .await;
        for token in [&remembered, &key.token(&idp.url)] {
            let who = seam.who(token).await.map(|_| ());
            assert_eq!(who, Err(Reason::IssuerUnavailable), "{name}");
        }
        let report = seam.report(name);
        assert!(report.message.contains(said), "{name}: {report:?}");
        idp.fault(None);
        until("it is over", async || seam.who(&remembered).await.is_ok()).await;
    }
}
