//! The authenticator with its issuers, where times are short.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use policy::{
    Caller, Reason,
    bundle::Issuer,
    report::{IssuerReport, IssuerState},
};
use sidecar::{
    auth::Authenticator,
    dev::DevIssuer,
    issuers::{Issuers, Times},
    pipeline::now,
};

use crate::{
    common::until,
    idp::{Idp, JWKS, Key},
    world::{bundle, staff},
};

/// Keys are read about ten times a second; what has to be there is waited for as
/// long as ever.
pub fn quick() -> Times {
    Times {
        fresh: Duration::from_millis(100),
        min_fresh: Duration::from_millis(50),
        max_fresh: Duration::from_millis(200),
        pause: Duration::from_millis(50),
        retry: Duration::from_millis(10),
        wait: Duration::from_secs(20),
        ..Times::default()
    }
}

/// Keys are not read anew by themselves, and may be at once when they are asked
/// for.
pub fn on_demand() -> Times {
    let never = Duration::from_secs(3600);
    Times {
        fresh: never,
        min_fresh: never,
        max_fresh: never,
        ..quick()
    }
}

pub struct Seam {
    pub issuers: Issuers,
    pub authenticator: Authenticator,
}

impl Seam {
    pub fn new(accepted: Vec<Issuer>, times: Times) -> Self {
        let issuers = Issuers::with_times(None, times);
        let authenticator = Self::of(&issuers, accepted);
        Self {
            issuers,
            authenticator,
        }
    }

    fn of(issuers: &Issuers, accepted: Vec<Issuer>) -> Authenticator {
        let dev = DevIssuer::new().unwrap();
        Authenticator::new(&bundle(&dev, staff(), accepted), issuers)
    }

    /// What a new bundle does.
    pub fn renew(&mut self, accepted: Vec<Issuer>) {
        self.authenticator = Self::of(&self.issuers, accepted);
    }

    pub async fn who(&self, token: &str) -> Result<Arc<Caller>, Reason> {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        self.authenticator.authenticate(&headers, now()).await
    }

    pub fn report(&self, name: &str) -> IssuerReport {
        let mut reports = self.authenticator.report().into_iter();
        reports.find(|report| report.name == name).unwrap()
    }

    /// Has the keys of an issuer read from now on.
    pub async fn read_anew(&self, idp: &Idp) {
        let unknown = Key::new("unknown").token(&idp.url);
        let refused = self.who(&unknown).await.map(|_| ());
        assert_eq!(refused, Err(Reason::UnknownKey));
    }
}

#[tokio::test]
async fn who_asks_for_new_keys_while_they_are_read_waits_for_the_next_reading() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let idp = Idp::start(&old).await;
    let seam = Seam::new(vec![idp.issuer("idp")], on_demand());
    assert!(seam.who(&old.token(&idp.url)).await.is_ok());
    // Somebody has the old keys read once more, and the answer is on its way …
    idp.hold(true);
    let unknown = Key::new("unknown").token(&idp.url);
    let later = async {
        until("they are being read", async || idp.count(JWKS) == 2).await;
        // … when another key is made, and its token comes.
        idp.publish([&old, &new]);
        let token = new.token(&idp.url);
        let who = seam.who(&token);
        tokio::pin!(who);
        assert!(futures::poll!(&mut who).is_pending());
        idp.hold(false);
        who.await.map(|_| ())
    };
    // The held answer was made before the new key was.
    let (refused, let_in) = tokio::join!(seam.who(&unknown), later);
    assert_eq!(refused.map(|_| ()), Err(Reason::UnknownKey));
    assert_eq!(let_in, Ok(()));
    assert_eq!(idp.count(JWKS), 3);
}

#[tokio::test]
async fn an_unknown_key_is_not_bad_where_keys_cannot_be_read() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let idp = Idp::start(&old).await;
    let seam = Seam::new(vec![idp.issuer("idp")], on_demand());
    assert!(seam.who(&old.token(&idp.url)).await.is_ok());
    idp.publish([&new]);
    idp.fault(Some(crate::idp::Answer::Close));
    let token = new.token(&idp.url);
    let unsure = seam.who(&token).await.map(|_| ());
    assert_eq!(unsure, Err(Reason::IssuerUnavailable));
    assert_eq!(seam.report("idp").state, IssuerState::Stale);
    idp.fault(None);
    until("it is back", async || seam.who(&token).await.is_ok()).await;
}

#[tokio::test]
async fn many_who_ask_at_once_have_keys_read_once() {
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    let seam = Seam::new(vec![idp.issuer("idp")], on_demand());
    assert!(seam.who(&key.token(&idp.url)).await.is_ok());
    let unknown: Vec<_> = (0..200)
        .map(|n| Key::new(&n.to_string()).token(&idp.url))
        .collect();
    idp.hold(true);
    let asked = futures::future::join_all(unknown.iter().map(|token| seam.who(token)));
    let release = async {
        until("they are being read", async || idp.count(JWKS) == 2).await;
        idp.hold(false);
    };
    let (refused, ()) = tokio::join!(asked, release);
    for refused in refused {
        assert_eq!(refused.map(|_| ()), Err(Reason::UnknownKey));
    }
    // Those who came in time waited for one reading; nobody waits for another.
    let count = idp.count(JWKS);
    assert!(count <= 3, "{count}");
    assert!(seam.who(&key.token(&idp.url)).await.is_ok());
    seam.read_anew(&idp).await;
    assert_eq!(
        idp.count(JWKS),
        count + 1,
        "one was asked for that nobody needed"
    );
}

#[tokio::test]
async fn what_is_said_of_callers_is_no_reason_to_read_keys_anew() {
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    let mut issuer = idp.issuer("idp");
    let mut seam = Seam::new(vec![issuer.clone()], on_demand());
    let token = key.token(&idp.url);
    assert!(seam.who(&token).await.is_ok());
    // Not even where it is down just now.
    idp.fault(Some(crate::idp::Answer::Close));
    issuer.claims.groups = Some("roles".into());
    issuer.types.jwt = true;
    seam.renew(vec![issuer.clone()]);
    assert!(seam.who(&token).await.unwrap().groups.is_empty());
    assert_eq!(idp.count(JWKS), 1);
    // What was read stays, also where other keys of it are used, or for longer.
    issuer.algorithms = vec![crds::SigningAlgorithm::ES256];
    crate::idp::keys_of(&mut issuer, |keys| keys.max_age_seconds = 600);
    seam.renew(vec![issuer.clone()]);
    assert!(seam.who(&token).await.is_ok());
    // Of another place, it is another's.
    crate::idp::keys_of(&mut issuer, |keys| keys.jwks_uri = Some(idp.jwks_uri()));
    seam.renew(vec![issuer]);
    let unsure = seam.who(&token).await.map(|_| ());
    assert_eq!(unsure, Err(Reason::IssuerUnavailable));
}

#[tokio::test]
async fn a_key_set_without_a_usable_key_is_tried_again_soon() {
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    idp.publish([]);
    let seam = Seam::new(vec![idp.issuer("idp")], on_demand());
    // By itself: nobody asks.
    until("it is read more than once", async || idp.count(JWKS) > 2).await;
    let report = seam.report("idp");
    assert_eq!(report.state, IssuerState::Unavailable);
    assert!(
        report.message.contains("no key that can be used"),
        "{report:?}"
    );
    idp.publish([&key]);
    until("it is there", async || {
        seam.report("idp").state == IssuerState::Available
    })
    .await;
}

#[tokio::test]
async fn keys_are_read_anew_before_they_are_too_old() {
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    let mut issuer = idp.issuer("idp");
    crate::idp::keys_of(&mut issuer, |keys| keys.max_age_seconds = 2);
    let seam = Seam::new(vec![issuer], on_demand());
    until("keys are there", async || {
        seam.report("idp").state == IssuerState::Available
    })
    .await;
    until("they are read by themselves", async || idp.count(JWKS) >= 3).await;
    let report = seam.report("idp");
    assert_eq!(report.state, IssuerState::Available, "{report:?}");
}

#[tokio::test]
async fn an_issuer_that_is_dropped_is_left_alone_at_once() {
    let (key, other) = (Key::new("k"), Key::new("other"));
    let (kept, dropped, failing) = (
        Idp::start(&key).await,
        Idp::start(&other).await,
        Idp::start(&other).await,
    );
    failing.fault(Some(crate::idp::Answer::Close));
    let mut seam = Seam::new(
        vec![
            kept.issuer("kept"),
            dropped.issuer("dropped"),
            failing.issuer("failing"),
        ],
        quick(),
    );
    until("all are read again and again", async || {
        dropped.count(JWKS) > 1 && failing.asked().len() > 3
    })
    .await;
    // One answer is on its way.
    let count = dropped.count(JWKS);
    dropped.hold(true);
    until("it is being read", async || dropped.count(JWKS) > count).await;
    seam.renew(vec![kept.issuer("kept")]);
    let count = kept.count(JWKS);
    until("what had been sent has arrived", async || {
        kept.count(JWKS) > count + 2
    })
    .await;
    let before = (dropped.asked(), failing.asked());
    dropped.hold(false);
    until("the other is read on", async || {
        kept.count(JWKS) > count + 8
    })
    .await;
    assert_eq!((dropped.asked(), failing.asked()), before);
    let names: Vec<_> = seam
        .authenticator
        .report()
        .into_iter()
        .map(|report| report.name)
        .collect();
    assert_eq!(names, ["kept"]);
    let refused = seam.who(&other.token(&dropped.url)).await.map(|_| ());
    assert_eq!(refused, Err(Reason::UnknownIssuer));
}
