#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    name::{KNOWN, MAX_KNOWN},
    *,
};

fn accepted(body: impl AsRef<[u8]>) -> bool {
    check(body.as_ref()).is_ok()
}

#[track_caller]
fn refused(body: impl AsRef<[u8]>) -> String {
    let body = body.as_ref();
    let shown = String::from_utf8_lossy(body);
    check(body).expect_err(&shown).to_string()
}

fn with_arguments(arguments: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"a","arguments":{arguments}}}}}"#
    )
}

fn with_params(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
}

#[test]
fn ordinary_messages_pass() {
    for body in [
        with_arguments("{}"),
        with_arguments(r#"{"a":[1,-2.5e3,true,false,null,"\ud83d\ude00\u0041\/\n",{}],"A":{}}"#),
        with_arguments(r#"{"n":[0,9007199254740991,-9007199254740991,-0.0,0e5,0.1,1E2,5e-324]}"#),
        with_params(
            r#"{"_meta":{"progressToken":"p","io.modelcontextprotocol/clientInfo":{"name":"n"}}}"#,
        ),
        " \r\n\t[ { } , {\"id\" : 1} ]\n".into(),
        "\"a\"".into(),
        "0".into(),
        with_params(r#"{"größe":1,"naïve":2}"#),
    ] {
        assert_eq!(check(body.as_bytes()), Ok(()), "{body}");
    }
}

#[test]
fn what_is_no_json_is_refused() {
    for body in [
        "",
        " ",
        "{",
        "}",
        "[",
        "]",
        "[1,]",
        "{\"a\":1,}",
        "{,}",
        "[,]",
        "{\"a\"}",
        "{\"a\":}",
        "{a:1}",
        "{'a':1}",
        "{1:1}",
        "[1 2]",
        "1 2",
        "{}{}",
        "{} x",
        "tru",
        "True",
        "nul",
        "NaN",
        "Infinity",
        "-Infinity",
        "-",
        "+1",
        "01",
        "1.",
        ".1",
        "1e",
        "1e+",
        "0x10",
        "1_000",
        "\"",
        "\"\n\"",
        "\"\t\"",
        "\"\u{1f}\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u+123\"",
        "\"\\",
        "// a\n1",
        "/* a */1",
        "1//a",
        "\u{a0}1",
        "\u{2028}1",
        "\u{c}1",
        "1\0",
        "\0",
        "[\"a\"\u{b},1]",
        "{\"a\":1 \"b\":2}",
        "\u{fffe}1",
    ] {
        assert!(refused(body).contains("not JSON at byte"), "{body:?}");
    }
}

#[test]
fn bytes_are_utf8_without_a_mark() {
    for body in [
        &b"\"\xff\""[..],
        b"\"\xc0\xaf\"",
        b"\"\xe2\x82\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf4\x90\x80\x80\"",
        b"\xff\xfe1\0",
    ] {
        assert!(refused(body).contains("not UTF-8"));
    }
    assert!(refused("\u{feff}{}").contains("byte order mark"));
    assert!(refused(" \u{feff}{}").contains("not JSON"));
    assert!(accepted("\"\u{feff}\u{10ffff}\u{7f}\""));
}

#[test]
fn a_name_stands_once_wherever_it_is() {
    for body in [
        r#"{"a":1,"a":1}"#.to_owned(),
        r#"[[{"a":1,"\u0061":1}]]"#.into(),
        r#"{"\ud83d\ude00":1,"😀":1}"#.into(),
        r#"{"":1,"":1}"#.into(),
        r#"{"\/":1,"/":1}"#.into(),
        with_arguments(r#"{"x":{"a":1,"b":2,"a":3}}"#),
        with_arguments(r#"{"x":{"\n":1,"\u000a":3}}"#),
        with_params(r#"{"name":"b","n\u0061me":"a"}"#),
    ] {
        assert!(refused(&body).contains("stands twice"), "{body}");
    }
    assert!(accepted(r#"{"a":{"a":{"a":1}},"b":{"a":1}}"#));
}

#[test]
fn large_objects_are_looked_through_too() {
    let object = |names: &[String]| {
        let members: Vec<_> = names.iter().map(|name| format!("\"{name}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    let mut names: Vec<_> = (0..MAX_MEMBERS - 1).map(|i| format!("n{i}")).collect();
    assert!(accepted(with_arguments(&object(&names))));
    for twice in ["n7", "\\u006e7"] {
        names.push(twice.into());
        assert!(refused(with_arguments(&object(&names))).contains("stands twice"));
        assert!(refused(with_params(&object(&names))).contains("stands twice"));
        names.pop();
    }
    names.push("N7".into());
    assert!(accepted(with_arguments(&object(&names))));
    assert!(refused(with_params(&object(&names))).contains("can be taken for"));
    names.push("n".into());
    assert!(refused(object(&names)).contains("more than 4096 members"));
}

#[test]
fn names_differ_by_more_than_case() {
    let pairs = [
        r#"{"name":"a","Name":"b"}"#,
        r#"{"NAME":"b"}"#,
        r#"{"name":"a","argumentſ":{}}"#,
        r#"{"argument\u017f":{}}"#,
        r#"{"taſk":{}}"#,
        r#"{"tas\u212a":{}}"#,
        r#"{"x":1,"X":1}"#,
        r#"{"straße":1,"STRASSE":1}"#,
        r#"{"σ":1,"ς":1}"#,
        r#"{"_meta":{"a.b/k":1,"a.b/\u212a":2}}"#,
        r#"{"_meta":{"ProgressToken":1}}"#,
        r#"{"_meta":{"IO.modelcontextprotocol/protocolVersion":"x"}}"#,
        r#"{"ref":{"type":"ref/prompt","name":"a","NAME":"b"}}"#,
        r#"{"urı":"a"}"#,
        r#"{"URİ":"a"}"#,
    ];
    for params in pairs {
        let body = with_params(params);
        assert!(refused(&body).contains("can be taken for"), "{params}");
        let batch = format!("[{{}},{body}]");
        assert!(refused(&batch).contains("can be taken for"), "{params}");
        assert!(accepted(with_arguments(params)), "{params}");
        assert!(accepted(with_params(&format!(
            r#"{{"inputResponses":{params}}}"#
        ))));
    }
    for envelope in [
        r#"{"ID":1}"#,
        r#"{"id":1,"\u0049d":2}"#,
        r#"{"Method":"a"}"#,
        r#"{"param\u017f":{}}"#,
        r#"[{"jSONRPC":"2.0"}]"#,
    ] {
        assert!(refused(envelope).contains("can be taken for"), "{envelope}");
    }
    assert!(accepted(with_params(
        r#"{"names":1,"name_":2,"nam":3,"Ämter":1,"amter":2}"#
    )));
    assert!(KNOWN.is_sorted_by_key(|name| name.to_ascii_lowercase()));
    assert!(
        KNOWN
            .iter()
            .all(|name| name.is_ascii() && name.len() <= MAX_KNOWN)
    );
    assert!(alike("Kelvin", "\u{212a}ELVIN") && !alike("a", "b") && !alike("a", "ä"));
}

#[test]
fn half_of_a_pair_is_refused() {
    for text in [
        r"\ud800",
        r"\udfff",
        r"\ud800a",
        r"\ud800\n",
        r"\ud800\u0041",
        r"\udc00\ud800",
        r"\uD83D\uD83D\uDE00",
    ] {
        assert!(
            refused(with_arguments(&format!("[\"{text}\"]"))).contains("surrogate"),
            "{text}"
        );
        assert!(
            refused(with_arguments(&format!("{{\"{text}\":1}}"))).contains("surrogate"),
            "{text}"
        );
    }
    assert!(refused(with_arguments(r#""\ud800\u12""#)).contains("hexadecimal"));
}

#[test]
fn a_nul_passes_only_in_the_values_of_arguments() {
    assert!(accepted(with_arguments(r#"{"a":"\u0000","b":["\u0000"]}"#)));
    assert!(accepted(with_arguments(r#"{"a":"\\u0000"}"#)));
    for body in [
        with_arguments(r#"{"a\u0000":1}"#),
        with_params(r#"{"name":"a\u0000b"}"#),
        with_params(r#"{"_meta":{"a":"\u0000"}}"#),
        with_params(r#"{"ref":{"type":"ref/prompt","name":"a\u0000"}}"#),
        with_params(r#"{"a":[{"b":["\u0000"]}]}"#),
        r#"{"method":"a\u0000"}"#.into(),
    ] {
        assert!(refused(&body).contains(r"\u0000"), "{body}");
    }
}

#[test]
fn numbers_are_the_same_to_all() {
    let long = "0.".to_owned() + &"1".repeat(63);
    for (number, why) in [
        ("9007199254740992", "send it as a string"),
        ("-9007199254740992", "send it as a string"),
        ("18446744073709551616", "send it as a string"),
        ("100000000000000000000", "send it as a string"),
        ("1e309", "range of a double"),
        ("-1E+400", "range of a double"),
        ("1e999999", "range of a double"),
        ("1e99999999999999999999", "range of a double"),
        ("0.1e-330", "range of a double"),
        ("1e-99999999999999999999", "range of a double"),
        ("-0", "-0"),
        ("-01", "-0"),
        (&long, "64 bytes"),
        (&"1".repeat(100_000), "64 bytes"),
    ] {
        assert!(
            refused(with_arguments(&format!("[{number}]"))).contains(why),
            "{number}"
        );
        assert!(refused(number).contains(why), "{number}");
    }
    for number in [
        "0",
        "-1",
        "1.7976931348623157e308",
        "4.9e-324",
        "0.0e-400",
        "-0e0",
        "1e22",
        "9007199254740993.0",
    ] {
        assert!(accepted(number), "{number}");
    }
}

#[test]
fn depth_is_bounded() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth| format!("{}0{}", open.repeat(depth), close.repeat(depth));
        assert!(accepted(nested(MAX_DEPTH)));
        assert!(is_read_by_serde(nested(MAX_DEPTH).as_bytes()));
        assert!(refused(nested(MAX_DEPTH + 1)).contains("nested"));
        assert!(refused(open.repeat(1_000_000)).contains("nested"));
    }
}

#[test]
fn a_fault_says_where() {
    assert_eq!(
        check(b"[1,\n01]"),
        Err(Fault::Syntax {
            at: 5,
            expected: "`,` or `]`"
        })
    );
    assert_eq!(
        refused(r#"{"a":1,"a":2}"#),
        "the member \"a\" at byte 8 stands twice in its object: send it once"
    );
}

fn documents() -> impl Strategy<Value = Value> {
    let text = prop_oneof!["[a-c]{0,3}", "[ -~]{0,6}", any::<String>()]
        .prop_filter("NUL has a rule of its own", |text| !text.contains('\0'));
    let safe = MAX_SAFE_INTEGER as i64;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-safe..=safe).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 20, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
            proptest::collection::btree_map(text.clone(), inner, 0..20)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// What `serde_json` reads, except that the strict reader may refuse more.
fn is_read_by_serde(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok()
}

proptest! {
    #[test]
    fn what_has_one_meaning_passes(arguments in documents(), pretty: bool) {
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": arguments}});
        let body = if pretty { serde_json::to_vec_pretty(&message) } else { serde_json::to_vec(&message) };
        prop_assert_eq!(check(&body.unwrap()), Ok(()));
    }

    #[test]
    fn what_is_cut_or_changed_is_no_more_than_json(arguments in documents(), at: prop::sample::Index, byte: u8, how in 0..4) {
        let mut body = with_arguments(&arguments.to_string()).into_bytes();
        let at = at.index(body.len());
        match how {
            0 => body.truncate(at),
            1 => body[at] = byte,
            2 => body.insert(at, byte),
            _ => drop(body.remove(at)),
        }
        if accepted(&body) {
            prop_assert!(is_read_by_serde(&body));
        }
    }

    #[test]
    fn a_name_that_is_repeated_anywhere_is_found(members in proptest::collection::btree_map("[a-d]{0,4}", 0..9, 1..40), which: prop::sample::Index, to: prop::sample::Index, depth in 0..20usize, escape: bool) {
        let mut members: Vec<_> = members.into_iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
        let plain = format!("{{{}}}", members.join(","));
        let mut again = members[which.index(members.len())].clone();
        if escape {
            for letter in 'a'..='d' {
                again = again.replace(letter, &format!("\\u{:04X}", u32::from(letter)));
            }
        }
        members.insert(to.index(members.len() + 1), again);
        let twice = format!("{{{}}}", members.join(","));
        let nested = |object: &str| with_arguments(&format!("{}{object}{}", "[".repeat(depth), "]".repeat(depth)));
        prop_assert!(accepted(nested(&plain)));
        prop_assert!(!accepted(nested(&twice)));
    }

    #[test]
    fn noise_never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        if accepted(&body) {
            prop_assert!(is_read_by_serde(&body));
        }
    }

    #[test]
    fn json_like_noise_never_panics(parts in proptest::collection::vec(prop::sample::select(vec!["{", "}", "[", "]", ",", ":", "\"a\"", "\"", "\\", "u00", "\\ud800", "1", "-", "0", ".", "e", " ", "null", "ſ"]), 0..40)) {
        let body = parts.concat();
        if accepted(&body) {
            prop_assert!(is_read_by_serde(body.as_bytes()));
        }
    }
}

/// The size of the bodies that attackers send here: the largest that is accepted.
const SIZE: usize = 4 << 20;

/// `open`, parts with commas between them up to [`SIZE`], `close`.
fn fill(open: &str, between: &str, part: impl Fn(usize) -> String, close: &str) -> String {
    let mut body = open.to_owned();
    for index in 0.. {
        let part = part(index);
        if body.len() + between.len() + part.len() + close.len() > SIZE {
            break;
        }
        if index > 0 {
            body += between;
        }
        body += &part;
    }
    body + close
}

fn array(part: impl Fn(usize) -> String) -> String {
    fill("[", ",", part, "]")
}

fn object(part: impl Fn(usize) -> String) -> String {
    fill("{", ",", part, "}")
}

fn text(part: &str) -> String {
    fill("\"", "", |_| part.to_owned(), "\"")
}

/// An object of so many members whose names begin so.
fn members(count: usize, prefix: &str) -> String {
    let member = |index| format!("\"{prefix}{index:02}\":0");
    format!(
        "{{{}}}",
        (0..count).map(member).collect::<Vec<_>>().join(",")
    )
}

fn hostile_arguments() -> Vec<(&'static str, String)> {
    let open = members(4000, "").replace('}', ",\"x\":");
    vec![
        ("depth 100,000", "[".repeat(100_000) + &"]".repeat(100_000)),
        ("1e999999", "1e999999".into()),
        ("digits", "9".repeat(SIZE)),
        ("numbers", array(|_| "1.2345678901234567e-300".into())),
        ("100,000 members", members(100_000, "")),
        ("objects of 16", array(|_| members(16, ""))),
        ("objects of 17", array(|_| members(17, ""))),
        ("objects of 4096", array(|_| members(4096, ""))),
        (
            "objects in objects",
            open.repeat(120) + "0" + &"}".repeat(120),
        ),
        (
            "long names",
            object(|i| format!("\"{}{i:02}\":0", "n".repeat(SIZE / 20))),
        ),
        (
            "long escaped names",
            object(|i| format!("\"{}{i:02}\":0", r"\u006e".repeat(SIZE / 120))),
        ),
        ("escapes", text(r"\ud83d\ude00")),
        ("escaped quotes", text("\\\"")),
        ("text", text("some text, ")),
        ("characters", text("漢😀é")),
    ]
}

fn hostile_bodies() -> Vec<(&'static str, String)> {
    let folded = format!("{{\"params\":{}}}", members(4000, "Äß"));
    let mut bodies = vec![
        ("brackets", "[".repeat(SIZE)),
        ("white space", " ".repeat(SIZE)),
        ("unusual names", array(|_| folded.clone())),
        ("alike names", with_params(&members(2000, "Äß"))),
        (
            "messages of 16",
            array(|_| format!("{{\"params\":{}}}", members(16, "param"))),
        ),
        ("messages", array(|_| with_arguments("{}"))),
    ];
    let arguments = hostile_arguments().into_iter();
    bodies.extend(arguments.map(|(what, arguments)| (what, with_arguments(&arguments))));
    bodies
}

/// What attackers send: the time is printed, and asserted far above it, where
/// only a quadratic step would get.
#[test]
fn hostile_bodies_cost_little() {
    let mut worst = Duration::ZERO;
    for (what, body) in hostile_bodies() {
        let (outcome, spent) = timed(|| check(body.as_bytes()));
        worst = worst.max(spent);
        let said = outcome.map_or_else(|fault| fault.to_string(), |()| "accepted".into());
        let (ms, length) = (spent.as_secs_f64() * 1e3, body.len());
        println!("{ms:>6.1} ms for {length:>7} bytes of {what}: {said}");
    }
    println!("{:>6.1} ms at most", worst.as_secs_f64() * 1e3);
    assert!(worst < Duration::from_secs(5));
}

#[test]
fn an_ordinary_call_costs_next_to_nothing() {
    let body = with_params(
        r#"{"name":"get_weather","arguments":{"city":"Zürich","days":3,"units":"metric"},"_meta":{"progressToken":"a-1","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}"#,
    );
    let times = 100_000;
    let ((), spent) = timed(|| {
        for _ in 0..times {
            check(std::hint::black_box(body.as_bytes())).unwrap();
        }
    });
    let (each, length) = (spent.as_nanos() / times, body.len());
    println!("{each} ns for {length} bytes of an ordinary call");
}

/// The CPU time of this thread that something takes.
fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(time).unwrap()
    };
    let before = now();
    (what(), now() - before)
}
