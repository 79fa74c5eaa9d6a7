//! Bodies to read: each document of the corpus at each place of a message, and
//! changes of these.

use std::fmt::Write as _;

/// SplitMix64: enough to choose with, and the same for a seed everywhere.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or_default()
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// The document at each place where its value, or its members, can stand.
pub fn places(document: &[u8]) -> Vec<Vec<u8>> {
    let mut bodies = vec![document.to_vec()];
    for (before, after) in [
        (r#"{"jsonrpc":"2.0","method":"ping","id":"#, "}"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"#, "}"),
        (r#"{"jsonrpc":"2.0","id":1,"error":"#, "}"),
        (r#"{"jsonrpc":"2.0","id":1,"result":"#, "}"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":"#, "}"),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{},"name":"#,
            "}}",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":"#,
            "}}",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","_meta":"#,
            "}}",
        ),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, ""),
    ] {
        bodies.push([before.as_bytes(), document, after.as_bytes()].concat());
    }
    let members = document
        .strip_prefix(b"{")
        .and_then(|rest| rest.strip_suffix(b"}"));
    if let Some(members) = members.filter(|members| !members.is_empty()) {
        for (before, after) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t"},"#,
                "}",
            ),
            (r#"{"jsonrpc":"2.0","id":1,"#, "}"),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","#,
                "}}",
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"u:u","#,
                "}}",
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","_meta":{"progressToken":1,"#,
                "}}}",
            ),
        ] {
            bodies.push([before.as_bytes(), members, after.as_bytes()].concat());
        }
    }
    bodies
}

const WORDS: &[&str] = &[
    "name",
    "uri",
    "arguments",
    "_meta",
    "method",
    "params",
    "id",
    "progressToken",
    "a",
    "b",
    "k",
    "s",
    "K",
    "ß",
];
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u",
    "\\u0000",
    "\\ud83d",
    "\\ude00",
    "0",
    "-",
    ".",
    "e",
    "1e400",
    "-0",
    "9007199254740993",
    "null",
    "NaN",
    " ",
    "\u{a0}",
    "\u{feff}",
    "\u{17f}",
    "\u{212a}",
    "\u{0}",
    "//",
];

/// A message with random arguments and a random `_meta`.
pub fn message(random: &mut Random) -> Vec<u8> {
    let (name, arguments, meta) = (string(random), value(random, 4), object(random, 1));
    format!(
        r#"{{"jsonrpc":"2.0","id":{},"method":"tools/call","params":{{"name":{name},"arguments":{arguments},"_meta":{meta}}}}}"#,
        random.below(1000)
    )
    .into_bytes()
}

fn value(random: &mut Random, depth: usize) -> String {
    match random.below(if depth == 0 { 4 } else { 6 }) {
        0 => string(random),
        1 | 2 => number(random),
        3 => (*random.of(&["null", "true", "false"])).to_owned(),
        4 => object(random, depth),
        _ => {
            let items: Vec<_> = (0..random.below(5))
                .map(|_| value(random, depth - 1))
                .collect();
            format!("[{}]", items.join(","))
        }
    }
}

fn object(random: &mut Random, depth: usize) -> String {
    let count = random.below(5);
    let members: Vec<_> = (0..count)
        .map(|_| format!("{}:{}", string(random), value(random, depth - 1)))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// A string of a word or of any characters, each as it is or escaped.
fn string(random: &mut Random) -> String {
    let text: String = if random.below(2) == 0 {
        (*random.of(WORDS)).to_owned()
    } else {
        (0..random.below(6))
            .filter_map(|_| {
                let bound = *random.of(&[0x80, 0x250, 0x1_0000, 0x11_0000]);
                char::from_u32(u32::try_from(random.below(bound)).ok()?)
            })
            .collect()
    };
    let mut written = String::from("\"");
    for c in text.chars() {
        if c < ' ' || c == '"' || c == '\\' || random.below(8) == 0 {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(written, "\\u{unit:04x}");
            }
        } else {
            written.push(c);
        }
    }
    written + "\""
}

/// A number in any form that JSON has.
fn number(random: &mut Random) -> String {
    let digits = |random: &mut Random, bound| -> String {
        (0..=random.below(bound))
            .map(|_| *random.of(&['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']))
            .collect()
    };
    match random.below(4) {
        0 => return format!("{:e}", f64::from_bits(random.next())),
        1 => return f64::from_bits(random.next()).to_string(),
        _ => {}
    }
    let mut number = String::from(*random.of(&["", "-"]));
    number += match digits(random, 18).trim_start_matches('0') {
        "" => "0",
        integer => integer,
    };
    if random.below(2) == 0 {
        number = number + "." + &digits(random, 25);
    }
    if random.below(2) == 0 {
        number += *random.of::<&str>(&["e", "E", "e-", "e+"]);
        number += &digits(random, 3);
    }
    number
}

/// The body with a few changes.
pub fn changed(random: &mut Random, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    for _ in 0..=random.below(3) {
        change(random, &mut body);
    }
    body
}

fn change(random: &mut Random, body: &mut Vec<u8>) {
    let at = random.below(body.len() + 1);
    let end = (at + 1 + random.below(12)).min(body.len());
    match random.below(8) {
        0 => drop(body.drain(at..end)),
        1 => {
            let again = body[at..end].to_vec();
            let to = random.below(body.len() + 1);
            body.splice(to..to, again);
        }
        2 => insert(body, at, random.of(PIECES).as_bytes()),
        3 => {
            let piece = format!("{}:{},", string(random), number(random));
            let starts: Vec<_> = (0..body.len()).filter(|i| body[*i] == b'{').collect();
            if !starts.is_empty() {
                insert(body, random.of(&starts) + 1, piece.as_bytes());
            }
        }
        4 => replace_letter(random, body, |letter| match letter {
            b's' => "\u{17f}".into(),
            b'k' => "\u{212a}".into(),
            letter => char::from(letter ^ 0x20).to_string(),
        }),
        5 => replace_letter(random, body, |letter| format!("\\u{letter:04x}")),
        6 => body.insert(at, u8::try_from(random.below(256)).unwrap_or_default()),
        _ => {
            let number = number(random);
            insert(body, at, number.as_bytes());
        }
    }
}

fn insert(body: &mut Vec<u8>, at: usize, piece: &[u8]) {
    body.splice(at..at, piece.iter().copied());
}

fn replace_letter(random: &mut Random, body: &mut Vec<u8>, by: impl Fn(u8) -> String) {
    let letters: Vec<_> = (0..body.len())
        .filter(|i| body[*i].is_ascii_alphabetic())
        .collect();
    if letters.is_empty() {
        return;
    }
    let at = *random.of(&letters);
    let replacement = by(body[at]);
    body.splice(at..=at, replacement.into_bytes());
}
