//! Where issuers may not be: whatever the spelling, nothing
//! is connected to.

use std::{io::ErrorKind, net::TcpListener};

use policy::bundle::Issuer;
use serde_json::json;

use crate::{
    common::until,
    idp::{Answer, Idp, Key, PLACES, keys_of, remote},
    world::{World, assert_unavailable, bundle, staff},
};

/// A listener on all addresses of this host, that counts.
struct Trap {
    listener: TcpListener,
    port: u16,
}

impl Trap {
    fn new() -> Self {
        let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0"));
        let listener = listener.unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    /// Connections since the last look. They are there without being accepted.
    fn caught(&self) -> usize {
        let mut caught = 0;
        loop {
            match self.listener.accept() {
                Ok(_) => caught += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return caught,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Ways to write an address that is this host's, or nobody's on the internet.
const HOSTS: [&str; 60] = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "127.000.000.001",
    "0x7f.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "0X7F000001",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "0177.1",
    "0",
    "0.0.0.0",
    "0x0",
    "localhost",
    "LocalHost",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000::0001]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:127.0.0.1]",
    "[::ffff:0.0.0.0]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::169.254.169.254]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2002:7f00:1::1]",
    "[2002:a9fe:a9fe::1]",
    "[2002:a00:1::]",
    "[2001:0:7f00:1::1]",
    "[2001:db8::1]",
    "[fe80::1]",
    "[fec0::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "[100::1]",
    "[3fff::1]",
    "[::ffff:169.254.169.254]",
    "169.254.169.254",
    "169.254.170.2",
    "0xa9fea9fe",
    "2852039166",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "198.18.0.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
];

/// What is no URL that is fetched; `P` stands for the port.
const SHAPES: [&str; 30] = [
    "https://user@127.0.0.1:P/jwks",
    "https://user:pass@127.0.0.1:P/jwks",
    "https://@127.0.0.1:P/jwks",
    "https://idp.example.com@127.0.0.1:P/jwks",
    "https://idp.example.com:443@127.0.0.1:P/jwks",
    "https://127.0.0.1:P@127.0.0.1:P/jwks",
    "https://127.0.0.1:P/jwks#x",
    "https://127.0.0.1:P#@idp.example.com/",
    "https://127.0.0.1:P\\@idp.example.com/",
    "https://idp.example.com\\@127.0.0.1:P/jwks",
    "https:\\\\127.0.0.1:P\\jwks",
    "https:/127.0.0.1:P/jwks",
    "https:127.0.0.1:P/jwks",
    "https:///127.0.0.1:P/jwks",
    "//127.0.0.1:P/jwks",
    "127.0.0.1:P",
    "https://127.0.0.1:P:P/jwks",
    "https://[::1]P/jwks",
    "https://%31%32%37.0.0.1:P/jwks",
    "https://127.0.0.1 :P/jwks",
    "file:///etc/passwd",
    "file://127.0.0.1:P/etc/passwd",
    "ftp://127.0.0.1:P/jwks",
    "gopher://127.0.0.1:P/_jwks",
    "jar:http://127.0.0.1:P!/jwks",
    "unix:///run/containerd.sock",
    "unix:/run/containerd.sock",
    "dict://127.0.0.1:P/x",
    "ws://127.0.0.1:P/jwks",
    "data:application/json,{}",
];

fn at(name: &str, uri: &str) -> Issuer {
    let mut issuer = remote(name, &format!("https://{name}.example.com"));
    keys_of(&mut issuer, |keys| keys.jwks_uri = Some(uri.to_owned()));
    issuer
}

/// Waits until each of these issuers was tried, and says what became of it.
async fn tried(world: &World, count: usize) -> Vec<(String, String)> {
    let mut issuers = Vec::new();
    until("all are tried", async || {
        let status = world.status().await;
        issuers = status["issuers"].as_array().unwrap().clone();
        issuers.len() == count && issuers.iter().all(|issuer| issuer["state"] != "Pending")
    })
    .await;
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let told = issuers.iter().map(|issuer| {
        assert_eq!(issuer["state"], "Unavailable", "{issuer}");
        (text(&issuer["name"]), text(&issuer["message"]))
    });
    told.collect()
}

#[tokio::test]
async fn no_spelling_of_an_address_is_connected_to() {
    let trap = Trap::new();
    let hosts = HOSTS.iter().flat_map(|host| {
        ["http", "https"].map(|scheme| format!("{scheme}://{host}:{}/jwks", trap.port))
    });
    let shapes = SHAPES
        .iter()
        .map(|shape| shape.replace('P', &trap.port.to_string()));
    // http is not for others, wherever they are.
    let plain = [format!("http://1.1.1.1:{}/jwks", trap.port)];
    let urls: Vec<_> = hosts.chain(shapes).chain(plain).collect();
    // Each as the URL of the key set, and as the issuer's own.
    let as_keys = urls
        .iter()
        .enumerate()
        .map(|(index, url)| at(&format!("k{index}"), url));
    let as_issuer = urls
        .iter()
        .enumerate()
        .map(|(index, url)| remote(&format!("i{index}"), url));
    let issuers: Vec<_> = as_keys.chain(as_issuer).collect();
    let count = issuers.len();
    let world = World::start(&[], |dev| {
        let mut bundle = bundle(dev, staff(), issuers);
        bundle.authentication.networks = Vec::new();
        bundle
    })
    .await;
    for (name, message) in tried(&world, count).await {
        let url = &urls[name[1..].parse::<usize>().unwrap()];
        let refusals = [
            "is an address that issuers may not have here",
            "the URL must be https with a host",
            "http is accepted for a loopback address only",
            "is no URL",
        ];
        assert!(
            refusals.iter().any(|said| message.contains(said)),
            "{name} {url}: {message}"
        );
    }
    let key = Key::new("k");
    assert_unavailable(&world.call(&key.token("https://k0.example.com")).await);
    assert_eq!(trap.caught(), 0);
    println!("{} URLs in 2 places: 0 connections", urls.len());

    // Where the network is allowed, the trap does catch.
    let open = format!("http://127.1:{}/jwks", trap.port);
    world.renew(vec![at("open", &open)]).await;
    until("it is connected to", async || trap.caught() > 0).await;
}

#[tokio::test]
async fn redirects_and_metadata_lead_nowhere_else() {
    let (trap, key) = (Trap::new(), Key::new("k"));
    let port = trap.port;
    let mut idps = Vec::new();
    for status in [300, 301, 302, 303, 305, 307, 308] {
        let idp = Idp::start(&key).await;
        let to = format!("http://127.0.0.1:{port}/jwks");
        idp.fault(Some(Answer::Redirect(status, to)));
        idps.push((format!("r{status}"), idp));
    }
    // The metadata can be read, and name a key set where none may be.
    for (index, uri) in [
        format!("http://[::1]:{port}/jwks"),
        format!("https://[::1]:{port}/jwks"),
        format!("http://[::ffff:127.0.0.1]:{port}/jwks"),
        format!("http://0.0.0.0:{port}/jwks"),
        format!("https://0:{port}/jwks"),
        format!("https://[64:ff9b::7f00:1]:{port}/jwks"),
        format!("http://a@127.0.0.1:{port}/jwks"),
        format!("ftp://127.0.0.1:{port}/jwks"),
        "file:///etc/passwd".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        String::new(),
        "/jwks".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let idp = Idp::start(&key).await;
        let metadata = json!({"issuer": idp.url, "jwks_uri": uri});
        idp.answer(PLACES[0], Answer::Json(metadata));
        idps.push((format!("m{index}"), idp));
    }
    let issuers: Vec<_> = idps.iter().map(|(name, idp)| idp.issuer(name)).collect();
    let world = World::of(issuers).await;
    let told = tried(&world, idps.len()).await;
    for (name, message) in &told {
        let is_followed = name.starts_with('r') && !message.contains("redirects are not followed");
        assert!(!is_followed, "{name}: {message}");
    }
    for (name, idp) in &idps {
        let asked = idp.asked();
        assert!(
            asked.iter().all(|path| PLACES.contains(&path.as_str())),
            "{name}: {asked:?}"
        );
    }
    assert_eq!(trap.caught(), 0);
    let (_, first) = &idps[0];
    assert_unavailable(&world.call(&key.token(&first.url)).await);
}
