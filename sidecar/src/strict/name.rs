//! Names of members: how they are compared without being copied.

use std::str::Chars;

/// The names that messages, `params` and what stands directly in it have in any
/// revision: what only looks like one of them is refused. Sorted without case.
pub(super) const KNOWN: &[&str] = &[
    "_meta",
    "argument",
    "arguments",
    "baggage",
    "capabilities",
    "clientInfo",
    "context",
    "cursor",
    "description",
    "elicitation",
    "error",
    "experimental",
    "extensions",
    "icons",
    "id",
    "inputResponses",
    "io.modelcontextprotocol/clientCapabilities",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/logLevel",
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/related-task",
    "io.modelcontextprotocol/subscriptionId",
    "jsonrpc",
    "level",
    "message",
    "method",
    "name",
    "notifications",
    "params",
    "progress",
    "progressToken",
    "promptsListChanged",
    "protocolVersion",
    "reason",
    "ref",
    "requestId",
    "requestState",
    "resourcesListChanged",
    "resourceSubscriptions",
    "result",
    "roots",
    "sampling",
    "status",
    "task",
    "taskId",
    "tasks",
    "title",
    "toolsListChanged",
    "total",
    "traceparent",
    "tracestate",
    "ttl",
    "type",
    "uri",
    "value",
    "version",
    "websiteUrl",
];
/// No name of [`KNOWN`] is longer, in bytes.
pub(super) const MAX_KNOWN: usize = 48;

/// Whether a parser that ignores case can read one name as the other.
pub fn alike(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() {
        a.eq_ignore_ascii_case(b)
    } else {
        a.chars().flat_map(fold).eq(b.chars().flat_map(fold))
    }
}

/// A character without its case, at least as coarse as any parser's: that of
/// Unicode's full folding, without the dot that `İ` leaves; `ı` is `i` too, as in
/// Java.
pub(super) fn fold(c: char) -> impl Iterator<Item = char> {
    c.to_lowercase()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .filter(|c| *c != '\u{307}')
}

/// A member's name: where it stands between its quotes.
#[derive(Clone, Copy)]
pub(super) struct Name {
    start: u32,
    /// The length, and whether it has escapes in the highest bit.
    length: u32,
}

const ESCAPED: u32 = 1 << 31;

impl Name {
    /// The name in the body's bytes `start..end`, both below [`super::MAX_BODY`].
    pub fn new(start: usize, end: usize, is_escaped: bool) -> Self {
        let length = (end - start) as u32;
        Self {
            start: start as u32,
            length: length | if is_escaped { ESCAPED } else { 0 },
        }
    }

    /// Where it stands.
    pub fn at(&self) -> usize {
        self.start as usize
    }

    /// Whether it is written with escapes.
    pub fn is_escaped(&self) -> bool {
        self.length & ESCAPED != 0
    }

    /// As it is written.
    pub fn raw<'a>(&self, text: &'a str) -> &'a str {
        &text[self.at()..self.at() + (self.length & !ESCAPED) as usize]
    }

    /// As it is meant.
    pub fn chars<'a>(&self, text: &'a str) -> Unescaped<'a> {
        Unescaped(self.raw(text).chars())
    }

    /// Whether it means this name.
    pub fn is(&self, text: &str, name: &str) -> bool {
        if self.is_escaped() {
            self.chars(text).eq(name.chars())
        } else {
            self.raw(text) == name
        }
    }

    /// Whether both mean the same name.
    pub fn same(&self, other: &Self, text: &str) -> bool {
        if self.is_escaped() || other.is_escaped() {
            self.chars(text).eq(other.chars(text))
        } else {
            self.raw(text) == other.raw(text)
        }
    }

    /// Whether both mean the same name to a parser that ignores case.
    pub fn alike(&self, other: &Self, text: &str) -> bool {
        let folded = |name: &Self| name.chars(text).flat_map(fold);
        folded(self).eq(folded(other))
    }

    /// The known name that it is not, but could be taken for.
    pub fn imitates(&self, text: &str) -> Option<&'static str> {
        let raw = self.raw(text);
        let mut buffer = [0; MAX_KNOWN];
        let folded = if raw.is_ascii() && !self.is_escaped() {
            raw.as_bytes()
        } else {
            let mut length = 0;
            for c in self.chars(text).flat_map(fold) {
                // No known name has other characters, or so many.
                let byte = u8::try_from(c).ok().filter(u8::is_ascii)?;
                *buffer.get_mut(length)? = byte;
                length += 1;
            }
            &buffer[..length]
        };
        let lower = |name: &'static str| name.bytes().map(|byte| byte.to_ascii_lowercase());
        let found = KNOWN
            .binary_search_by(|known| lower(known).cmp(folded.iter().map(u8::to_ascii_lowercase)));
        let known = KNOWN.get(found.ok()?)?;
        (!self.is(text, known)).then_some(known)
    }

    /// The beginning of it, for a message to a person.
    pub fn shown(&self, text: &str) -> String {
        self.chars(text).take(64).collect()
    }
}

/// The characters of a string whose escapes are known to be right.
pub(super) struct Unescaped<'a>(Chars<'a>);

impl Unescaped<'_> {
    fn unit(&mut self) -> u32 {
        self.0
            .by_ref()
            .take(4)
            .fold(0, |unit, digit| unit << 4 | digit.to_digit(16).unwrap_or(0))
    }
}

impl Iterator for Unescaped<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let c = self.0.next()?;
        if c != '\\' {
            return Some(c);
        }
        Some(match self.0.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let mut unit = self.unit();
                if is_high(unit) {
                    self.0.nth(1); // The `\u` of the other half.
                    unit = 0x1_0000 + ((unit & 0x3ff) << 10 | (self.unit() & 0x3ff));
                }
                char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            c => c,
        })
    }
}

pub(super) fn is_high(unit: u32) -> bool {
    (0xd800..0xdc00).contains(&unit)
}

pub(super) fn is_low(unit: u32) -> bool {
    (0xdc00..0xe000).contains(&unit)
}
