use super::*;

#[test]
fn uris_of_real_servers_are_accepted() {
    for uri in [
        "file:///a/b.txt",
        "file:///",
        "file:///reports/",
        "file:///a%20b/%C3%A4.txt",
        "file:///C:/Users/x.txt",
        "file://server/share/x",
        "demo://resource/static/1",
        "demo://resource/dynamic/text/1",
        "test://static-text",
        "test://template/123/data",
        "memo:insights",
        "memo://insights",
        "postgres://host/db/schema",
        "postgres://user:pass@host:5432/db/table/schema",
        "urn:x:y",
        "urn:isbn:0451450523",
        "ui://widget/app.html",
        "config://app",
        "note:///x",
        "github://repo/owner%2Fname",
        "git+ssh://host/a.git",
        "https://example.com/",
        "https://example.com/a?b=c&d=/../e",
        "http://localhost:8080/a",
        "http://127.0.0.1:8080/a",
        "http://[fd00::1]:8080/a",
        "http://[::1]/",
        "screen://localhost",
        "a:",
        "data:text/plain,x",
        "x://h/a;v=1/b@c:d/$&'()*+,=!~",
    ] {
        assert_eq!(check(uri), Ok(()), "{uri}");
    }
}

#[test]
fn other_spellings_are_refused_with_what_to_write() {
    for (uri, says) in [
        ("", "scheme"),
        ("a", "scheme"),
        ("/a", "scheme"),
        ("a/b:c", "scheme"),
        ("?a:b", "scheme"),
        ("1a:b", "lower case"),
        (":b", "lower case"),
        ("FILE:///a", "lower case"),
        ("File:///a", "lower case"),
        ("fi*le:///a", "lower case"),
        ("demo://Resource/a", "host must be in lower case"),
        ("file:///a#b", "fragment"),
        ("file:///a#", "fragment"),
        ("file:///a b", "percent-encoded"),
        ("file:///\u{e4}", "percent-encoded"),
        ("file:///a\\b", "percent-encoded"),
        ("file:///a\0", "percent-encoded"),
        ("file:///{a}", "percent-encoded"),
        ("file:///a%2", "two digits"),
        ("file:///a%", "two digits"),
        ("file:///a%zz", "upper case"),
        ("x:///a%2f", "upper case"),
        ("x:///%61", "not %61"),
        ("x:///%2E%2E/a", "not %61"),
        ("x:///%7E", "not %61"),
        ("x:///a%00b", "control"),
        ("x:///a%0A", "control"),
        ("x:///a%7F", "control"),
        ("x:///a/../b", "segment"),
        ("x:///a/..", "segment"),
        ("x:///./b", "segment"),
        ("x:a/./b", "segment"),
        ("x:..", "segment"),
        ("x:///a/..%2Fb", "segment"),
        ("x:///a/..%5Cb", "segment"),
        ("x:///a%2F..%2Fb", "segment"),
        ("x:///a[1]", "%5B"),
        ("x:///a?b[]=c", "%5B"),
        ("x://a]b[/", "after the ]"),
        ("x://[::1]a/", "after the ]"),
        ("x://[::0001]/", "RFC 5952"),
        ("x://[::FF]/", "RFC 5952"),
        ("x://[v1.a]/", "RFC 5952"),
        ("x://[fe80::1%25eth0]/", "RFC 5952"),
        ("x://h:/", "port"),
        ("x://h:080/", "port"),
        ("x://h:0/", "port"),
        ("x://h:65536/", "port"),
        ("x://h:a/", "port"),
        ("x://h:1:2/", "port"),
        ("x://a@b@c/", "%40"),
        ("http:///a", "no host"),
        ("http:a", "no host"),
        ("http://:81/a", "no host"),
        ("http://h", "write a /"),
        ("http://h?a", "write a /"),
        ("http://h:80/", "scheme's own"),
        ("https://h:443/", "scheme's own"),
        ("ws://h:80/", "scheme's own"),
        ("http://u@h/", "user"),
        ("http://h./", "ends with a dot"),
        ("http://0x7f.1/", "IPv4"),
        ("http://2130706433/", "IPv4"),
        ("http://127.1/", "IPv4"),
        ("http://127.0.0.01/", "IPv4"),
        ("file:/a", "file:///path"),
        ("file:a", "file:///path"),
        ("file://a", "file:///path"),
        ("file://localhost/a", "file:///path"),
        ("file://u@h/a", "file:///path"),
        ("file://h:1/a", "file:///path"),
        ("file:///a?b", "%3F"),
        ("file:///a?", "%3F"),
        ("file:////a", "one / only"),
        ("file:///a//b", "one / only"),
        ("file:///a%2Fb", "%2F"),
        ("file:///a%5Cb", "%2F"),
    ] {
        let refused = check(uri);
        assert!(
            refused.is_err_and(|why| why.contains(says)),
            "{uri}: {refused:?}"
        );
    }
    assert!(check(&format!("x:{}", "a".repeat(MAX_BYTES - 2))).is_ok());
    assert!(check(&format!("x:{}", "a".repeat(MAX_BYTES - 1))).is_err());
}

#[test]
fn patterns_are_held_to_the_same_form() {
    for pattern in [
        "**",
        "*",
        "**/secret/*",
        "**.key",
        "file:///reports/*.csv",
        "file:///reports/**",
        "file:**",
        "file://**",
        "file:///**",
        "demo:**",
        "http://**",
        "http:**",
        "http://localhost:*/**",
        "https://*.example.com/a/*",
        "http://10.0.0.*/a",
        "memo:*",
        "test://*",
        "x://h/*/b",
    ] {
        assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
    }
    for (pattern, says) in [
        ("***", "write **"),
        ("file:///***", "write **"),
        ("", "scheme"),
        ("fi*:///a", "lower case"),
        ("reports/**", "scheme"),
        ("**/../a", "segment"),
        ("**/a/.", "segment"),
        ("**#", "fragment"),
        ("**/a[1]", "%5B"),
        ("https://api.example.com**", "also matches other hosts"),
        ("https://**.example.com/", "also matches other hosts"),
        ("https://*", "write a /"),
        ("https://h:443/**", "scheme's own"),
        ("https://H/**", "lower case"),
        ("file:///a//*", "one / only"),
        ("file:///**?*", "%3F"),
        ("file:///a%2F*", "%2F"),
        ("file:/a/*", "file:///path"),
        ("x:///a%2*", "upper case"),
        ("x://h:*a/", "port"),
    ] {
        let refused = check_pattern(pattern);
        assert!(
            refused.is_err_and(|why| why.contains(says)),
            "{pattern}: {refused:?}"
        );
    }
}
