//! Names of members: how they are compared without being copied.

use std::str::Chars;

// Names that have a meaning, in any revision. What could be taken for one of
// them is refused. Sorted as `plain` sees them.

/// Of a message (JSON-RPC 2.0 §4 and §5).
pub(super) const ENVELOPE: &[&str] = &["error", "id", "jsonrpc", "method", "params", "result"];
/// Of `params`.
pub(super) const PARAMS: &[&str] = &[
    "argument",
    "arguments",
    "capabilities",
    "clientInfo",
    "context",
    "cursor",
    "inputResponses",
    "level",
    "message",
    "_meta",
    "name",
    "notifications",
    "progress",
    "progressToken",
    "protocolVersion",
    "reason",
    "ref",
    "requestId",
    "requestState",
    "status",
    "task",
    "taskId",
    "total",
    "uri",
];
/// Of `params._meta`.
pub(super) const META: &[&str] = &[
    "baggage",
    "io.modelcontextprotocol/clientCapabilities",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/logLevel",
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/related-task",
    "io.modelcontextprotocol/subscriptionId",
    "progressToken",
    "toolward.dev/identity",
    "traceparent",
    "tracestate",
];
/// Of what else stands directly in `params`: references, what is listened to.
pub(super) const PART: &[&str] = &[
    "arguments",
    "name",
    "promptsListChanged",
    "resourcesListChanged",
    "resourceSubscriptions",
    "toolsListChanged",
    "ttl",
    "type",
    "uri",
    "value",
];
/// No known name is longer, in bytes.
pub(super) const MAX_KNOWN: usize = 48;

/// A name without case, dashes and underscores: models in Python often take
/// `requestId` as `request_id` too, and Go's json/v2 can be told to.
pub(super) fn plain(name: &str) -> impl Iterator<Item = u8> {
    let bytes = name.bytes().map(|byte| byte.to_ascii_lowercase());
    bytes.filter(|byte| !matches!(byte, b'-' | b'_'))
}

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
    pub fn imitates(&self, known: &[&'static str], text: &str) -> Option<&'static str> {
        if !self.is_escaped() && known.contains(&self.raw(text)) {
            return None;
        }
        let (mut buffer, mut length) = ([0; MAX_KNOWN], 0);
        for c in self.chars(text) {
            if matches!(c, '-' | '_') {
                continue;
            }
            let mut put = |c: char| {
                // No known name has other characters, or so many.
                let byte = u8::try_from(c).ok().filter(u8::is_ascii)?;
                *buffer.get_mut(length)? = byte;
                length += 1;
                Some(())
            };
            if c.is_ascii() {
                put(c.to_ascii_lowercase())?;
            } else {
                fold(c).try_for_each(&mut put)?;
            }
        }
        let wanted = &buffer[..length];
        let found = known.binary_search_by(|known| plain(known).cmp(wanted.iter().copied()));
        let known = known.get(found.ok()?)?;
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
