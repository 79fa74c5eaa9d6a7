#![allow(clippy::unwrap_used)]

use super::*;

fn glob(pattern: &str) -> UriGlob {
    UriGlob(pattern.to_owned())
}

#[test]
fn one_star_stops_at_a_slash_and_two_do_not() {
    for (pattern, uri, fits) in [
        ("**", "", true),
        ("**", "file:///a/b", true),
        ("*", "memo:insights", true),
        ("*", "file:///a", false),
        ("file:///reports/*.csv", "file:///reports/a.csv", true),
        ("file:///reports/*.csv", "file:///reports/.csv", true),
        ("file:///reports/*.csv", "file:///reports/a/b.csv", false),
        ("file:///reports/*.csv", "file:///reports/a.csv.bak", false),
        ("file:///reports/*", "file:///reports/", true),
        ("file:///reports/*", "file:///reports", false),
        ("file:///reports/**", "file:///reports/a/b", true),
        ("file:///reports/**", "file:///reportsx", false),
        ("file:///**/b", "file:///b", false),
        ("file:///**/b", "file:///a/b", true),
        ("file:///**b", "file:///b", true),
        ("file:///a", "file:///a", true),
        ("file:///a", "file:///a/", false),
        ("**/*.key", "file:///a/b.key", true),
        ("**/*.key", "file:///a.key/b", false),
        ("x:*a*/b", "x:cac/b", true),
        ("x:*a*/b", "x:c/ab", false),
        ("x:**a*b", "x:a/ab", true),
        ("***", "a/b", true),
    ] {
        assert_eq!(glob(pattern).matches(uri), fits, "{pattern} {uri}");
    }
}

#[test]
fn long_patterns_do_not_explode() {
    let pattern = glob(&"**a*".repeat(100));
    assert!(!pattern.matches(&"ab/".repeat(50)));
    let template = Template::parse(&format!("x:{}", "{a}/{+b}".repeat(400))).unwrap();
    assert!(pattern.covers(&template) <= pattern.meets(&template));
}

#[test]
fn a_template_is_allowed_where_one_of_its_uris_is() {
    for (template, pattern, meets, covers) in [
        ("file:///{name}", "file:///*", true, true),
        ("file:///{name}", "file:///**", true, true),
        ("file:///{name}", "**", true, true),
        ("file:///{name}", "file:///a.csv", true, false),
        ("file:///{name}", "file:///*.csv", true, false),
        ("file:///{name}", "file:///a/b.csv", false, false),
        ("file:///{+name}", "file:///a/b.csv", true, false),
        ("file:///{+name}", "file:///*", true, false),
        ("file:///{name*}", "file:///a/b.csv", true, false),
        ("file:///{a}/{b}", "file:///x/*", true, false),
        ("file:///{a}/{b}", "file:///*", false, false),
        ("file:///{a}/{b}", "file:///*/*", true, true),
        ("x://h{/path*}", "x://h/a/b", true, false),
        ("x://h{/path*}", "x://h**", true, true),
        ("x://h/a{?q,r}", "x://h/a?q=1", true, false),
        ("x://h/a{?q}", "x://h/b*", false, false),
        ("x://h/a{#part}", "x://h/a", true, true),
        ("x://h/a{.ext}", "x://h/a.csv", true, false),
        ("x://h/{a:3}", "x://h/abc", true, false),
        ("{scheme}://h/a", "x://h/a", true, false),
        ("x://h/\u{e4}/{a}", "x://h/%C3%A4/*", true, true),
        (
            "demo://resource/dynamic/text/{resourceId}",
            "demo://resource/dynamic/text/*",
            true,
            true,
        ),
        (
            "demo://resource/dynamic/text/{resourceId}",
            "demo://resource/static/**",
            false,
            false,
        ),
        ("memo:insights", "memo:*", true, true),
    ] {
        let parsed = Template::parse(template).unwrap();
        let pattern = glob(pattern);
        assert_eq!(
            pattern.meets(&parsed),
            meets,
            "{pattern:?} meets {template}"
        );
        assert_eq!(
            pattern.covers(&parsed),
            covers,
            "{pattern:?} covers {template}"
        );
    }
}

#[test]
fn a_template_that_cannot_be_in_normal_form_is_refused() {
    for template in [
        "file:///{",
        "file:///}",
        "file:///{a}}",
        "file:///{a{b}}",
        "file:///{}",
        "file:///{+}",
        "file:///{a,}",
        "file:///{=a}",
        "file:///{a b}",
        "file:///{a:}",
        "file:///{a:12345}",
        "file:///%{a}",
        "file:///%c3{a}",
        "file:///#{a}",
        "FILE:///{a}",
        "/{a}",
        "demo://Resource/{a}",
        "file:///a/../{b}",
        "file:///a//{b}",
        "file:///a b",
        "FILE:///a",
    ] {
        assert!(Template::parse(template).is_err(), "{template}");
    }
}
