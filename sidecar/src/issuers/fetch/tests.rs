use std::cell::Cell;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// A listener, and one connection to it that is answered.
async fn answered(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = [0; 1024];
    assert_ne!(stream.read(&mut head).await.unwrap(), 0);
    let answer =
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncache-control: public, Max-Age=\"7\"\r\n\r\n{}";
    stream.write_all(answer.as_bytes()).await.unwrap();
}

/// A listener that tells at once whether somebody has connected.
fn watched(address: &str) -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn is_untouched(listener: &std::net::TcpListener) -> bool {
    listener
        .accept()
        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn loopback() -> Networks {
    Networks::new(&["127.0.0.0/8".into()])
}

fn fetched<'a>(networks: &'a Networks, times: &'a Times) -> Way<'a> {
    Way {
        authorities: None,
        networks,
        times,
    }
}

async fn never(host: String, _: u16) -> io::Result<Vec<SocketAddr>> {
    panic!("{host} is resolved")
}

#[tokio::test]
async fn a_name_that_is_another_when_it_is_asked_again_is_asked_once() {
    let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let evil = watched("127.0.0.2:0");
    let (first, later) = (good.local_addr().unwrap(), evil.local_addr().unwrap());
    let asked = Cell::new(0);
    let rebinding = |host: String, port: u16| {
        assert_eq!((host.as_str(), port), ("idp.example", 80));
        asked.set(asked.get() + 1);
        let answer = if asked.get() == 1 { first } else { later };
        async move { Ok(vec![answer]) }
    };
    let (networks, times) = (loopback(), Times::default());
    let way = fetched(&networks, &times);
    let fetched = fetch("http://idp.example/jwks", &way, rebinding);
    let (document, ()) = tokio::join!(fetched, answered(good));
    let document = document.unwrap();
    assert_eq!(document.body, "{}");
    assert_eq!(document.max_age, Some(Duration::from_secs(7)));
    assert_eq!(asked.get(), 1);
    assert!(is_untouched(&evil));
}

#[tokio::test]
async fn one_address_that_is_forbidden_forbids_them_all() {
    let listener = watched("127.0.0.1:0");
    let allowed = listener.local_addr().unwrap();
    let forbidden = SocketAddr::from(([10, 0, 0, 1], 80));
    let (networks, times) = (loopback(), Times::default());
    let way = fetched(&networks, &times);
    for addresses in [vec![allowed, forbidden], vec![forbidden, allowed]] {
        let resolve = |_, _| async move { Ok(addresses) };
        let error = fetch("http://idp.example/", &way, resolve)
            .await
            .unwrap_err();
        assert!(
            matches!(error, FetchError::Forbidden(ip) if ip == forbidden.ip()),
            "{error}"
        );
    }
    assert!(is_untouched(&listener));
}

#[tokio::test]
async fn http_is_for_this_host_alone() {
    let (networks, times) = (
        Networks::new(&["0.0.0.0/0".into(), "::/0".into()]),
        Times::default(),
    );
    let way = fetched(&networks, &times);
    for address in [
        "10.0.0.1:80",
        "0.0.0.0:80",
        "[::]:80",
        "1.1.1.1:80",
        "[::ffff:127.0.0.1]:80",
    ] {
        let address: SocketAddr = address.parse().unwrap();
        let resolve = |_, _| async move { Ok(vec![address]) };
        let error = fetch("http://idp.example/", &way, resolve)
            .await
            .unwrap_err();
        assert!(matches!(error, FetchError::Plain), "{address}: {error}");
    }
}

#[tokio::test]
async fn what_is_no_such_url_is_not_even_resolved() {
    let (networks, times) = (loopback(), Times::default());
    let way = fetched(&networks, &times);
    for url in [
        "",
        "/jwks",
        "idp.example",
        "idp.example:443",
        "//idp.example/jwks",
        "https://",
        "https:///jwks",
        "https://a@idp.example/",
        "https://a:b@idp.example/",
        "https://idp.example@127.0.0.1/",
        "https://idp.example:443@127.0.0.1/",
        "https://idp.example/#x",
        "https://idp.example#@127.0.0.1/",
        "https://idp.example:/",
        "https://idp.example:x/",
        "https://idp.example:+443/",
        "https://idp.example:99999/",
        "https://idp.example:443:444/",
        "https://idp.example\\@127.0.0.1/",
        "https:\\\\127.0.0.1/",
        "https://idp example/",
        "https://idp.example/a b",
        "https://[::1/",
        "https://::1/",
        "https://[fe80::1%25lo]/",
        "https://%31%32%37.0.0.1/",
        "ftp://idp.example/",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "jar:http://127.0.0.1!/x",
        "unix:/run/x.sock",
        "unix:///run/x.sock",
        "data:application/json,{}",
        "javascript:0",
        "ldap://127.0.0.1/",
        "dict://127.0.0.1:6379/",
        "ws://127.0.0.1/",
        "httpss://a/",
        "*",
    ] {
        let error = fetch(url, &way, never).await.unwrap_err();
        assert!(matches!(error, FetchError::Url), "{url}: {error}");
    }
}

#[tokio::test]
async fn the_place_is_what_the_url_says() {
    for (url, host, port, is_plain) in [
        ("https://idp.example", "idp.example", 443, false),
        ("HTTPS://idp.example:8443/a?b", "idp.example", 8443, false),
        ("http://[::1]/", "::1", 80, true),
        ("http://[::1]:8080/", "::1", 8080, true),
        ("http://0x7f.1/", "0x7f.1", 80, true),
    ] {
        let uri: Uri = url.parse().unwrap();
        let place = Place::of(&uri).unwrap();
        assert_eq!(
            (place.host, place.port, place.is_plain),
            (host, port, is_plain),
            "{url}"
        );
    }
}
