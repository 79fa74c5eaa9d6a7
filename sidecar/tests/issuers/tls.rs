//! Issuers with a certificate of a private authority.

use std::{path::Path, sync::Arc};

use policy::bundle::Issuer;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    common::{folder, until},
    idp::{Idp, Key, keys_of, remote},
    world::{PASSED, World, assert_unavailable, bundle, staff, verdict},
};

struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    /// A server's certificate.
    fn acceptor(&self, name: SanType, is_expired: bool) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        if is_expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key))
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn this_host() -> SanType {
    SanType::IpAddress([127, 0, 0, 1].into())
}

fn named(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn private(mut issuer: Issuer) -> Issuer {
    keys_of(&mut issuer, |keys| keys.private_ca = true);
    issuer
}

fn write(folder: &Path, name: &str, pem: &str) {
    let file = folder.join(format!("{name}.pem"));
    std::fs::write(folder.join("new"), pem).unwrap();
    std::fs::rename(folder.join("new"), file).unwrap();
}

async fn in_front_of(folder: &Path, issuers: Vec<Issuer>) -> World {
    let folder = folder.to_str().unwrap();
    World::start(&["--issuer-authorities", folder], |dev| {
        let mut bundle = bundle(dev, staff(), issuers);
        // What `localhost` may be.
        bundle.authentication.networks.push("::1/128".into());
        bundle
    })
    .await
}

#[tokio::test]
async fn only_the_authorities_of_an_issuer_vouch_for_it() {
    let (ours, theirs, key) = (
        Authority::new("ours"),
        Authority::new("theirs"),
        Key::new("k"),
    );
    let start = async |acceptor: TlsAcceptor| Idp::start_tls(&key, acceptor, "127.0.0.1").await;
    let good = async || start(ours.acceptor(this_host(), false)).await;
    let by_name = ours.acceptor(named("localhost"), false);
    let by_name = Idp::start_tls(&key, by_name, "localhost").await;
    let plain = Idp::start(&key).await;
    let plain_url = plain.url.replacen("http", "https", 1);
    let files = folder();
    let both = format!("{}{}", theirs.pem, ours.pem);
    let (empty, garbage) = (
        String::new(),
        "-----BEGIN CERTIFICATE-----\nAAAA\n".to_owned(),
    );
    // Name, the issuer, its file, and what is said of it.
    let mut cases = vec![
        ("good", good().await, Some(&ours.pem), ""),
        ("one-of-two", good().await, Some(&both), ""),
        ("by-name", by_name, Some(&ours.pem), ""),
        ("without", good().await, None, "UnknownIssuer"),
        ("no-file", good().await, None, "cannot be read"),
        ("another", good().await, Some(&theirs.pem), "UnknownIssuer"),
    ];
    cases.push((
        "empty",
        good().await,
        Some(&empty),
        "no certificate in PEM form",
    ));
    cases.push(("garbage", good().await, Some(&garbage), "cannot be read"));
    let wrong = start(ours.acceptor(named("idp.example.com"), false)).await;
    cases.push(("wrong-name", wrong, Some(&ours.pem), "not valid for name"));
    let expired = start(ours.acceptor(this_host(), true)).await;
    cases.push(("expired", expired, Some(&ours.pem), "has expired"));
    cases.push(("plain", plain, Some(&ours.pem), "no connection"));
    let mut issuers = Vec::new();
    for (name, idp, pem, _) in &cases {
        if let Some(pem) = pem {
            write(&files, name, pem);
        }
        let issuer = match *name {
            "plain" => remote(name, &plain_url),
            name => idp.issuer(name),
        };
        issuers.push(match *name {
            "without" => issuer,
            _ => private(issuer),
        });
    }
    let urls: Vec<_> = issuers.iter().map(|issuer| issuer.issuer.clone()).collect();
    let world = in_front_of(&files, issuers).await;
    let tokens: Vec<_> = urls.iter().map(|url| key.token(url)).collect();
    let calls = tokens.iter().map(|token| world.call(token));
    let replies = futures::future::join_all(calls).await;
    for ((name, idp, _, said), reply) in cases.iter().zip(replies) {
        let (state, message) = world.issuer(name).await;
        if said.is_empty() {
            assert_eq!(verdict(&reply), PASSED, "{name}: {message}");
            assert_eq!(state, "Available");
            continue;
        }
        assert_unavailable(&reply);
        assert_eq!(state, "Unavailable");
        assert!(message.contains(said), "{name}: {message}");
        assert_eq!(
            idp.asked(),
            [""; 0],
            "{name}: it was trusted with a request"
        );
    }

    // The file that was missing appears, and one is mended.
    for name in ["no-file", "another"] {
        write(&files, name, &ours.pem);
        let (_, idp, ..) = cases.iter().find(|(other, ..)| *other == name).unwrap();
        until("its tokens pass", async || {
            verdict(&world.call(&key.token(&idp.url)).await) == PASSED
        })
        .await;
    }
    std::fs::remove_dir_all(files).unwrap();
}

#[tokio::test]
async fn without_a_folder_nobody_vouches() {
    let (ours, key) = (Authority::new("ours"), Key::new("k"));
    let idp = Idp::start_tls(&key, ours.acceptor(this_host(), false), "127.0.0.1").await;
    let world = World::of(vec![private(idp.issuer("idp"))]).await;
    assert_unavailable(&world.call(&key.token(&idp.url)).await);
    let (_, message) = world.issuer("idp").await;
    assert!(message.contains("authorities cannot be read"), "{message}");
    assert_eq!(idp.asked(), [""; 0]);
}
