//! The strict reader: whether a body can be read in one way only.
//!
//! What is decided on here is read again behind us, by a parser that we do not
//! know. So [`check`] looks at a whole body once, before anything else reads it,
//! and refuses what RFC 8259 leaves to the parser, or what parsers in use read
//! differently. The body itself is then forwarded, byte for byte.
//!
//! | refused | because |
//! |---|---|
//! | bytes that are not UTF-8, a byte order mark | replaced, skipped or refused (§8.1) |
//! | anything that is no RFC 8259 JSON: comments, trailing commas, `NaN`, `+1`, `01`, raw control characters | Python reads `NaN`, others more |
//! | a name that stands twice in an object, after its escapes | first, last, or all of them (§4) |
//! | names that differ only by case, outside of arguments | Go's `encoding/json` ignores case, `ſ` is `s` and the Kelvin sign is `k` to it |
//! | names that differ from a known one only by case, `-` and `_`, there | models in Python often take a name in snake case too |
//! | the escape of half a surrogate pair | Go reads U+FFFD, Python and JavaScript keep it (§8.2) |
//! | an escaped NUL in a name, and outside of arguments and results | C reads a string up to it |
//! | integers beyond ±(2^53 − 1) | JavaScript and Go's `any` round them, Python does not (§6) |
//! | numbers beyond a double (`1e400`), not zero but below the smallest (`1e-400`) | infinity in Python and JavaScript, an error in Go; zero in all of these, and another number where decimals are kept |
//! | `-0` | 0 in Python, −0 in the others; `-0.0` is −0 in all |
//! | more than 127 levels, 4096 members of an object, 64 bytes of a number | the time, the stack or the digits of another parser |
//!
//! The rules for numbers hold inside of arguments too: rules may look at
//! arguments, and a server that reads another number than we do is what this is
//! to prevent. A larger integer has to be a string, as everywhere where
//! JavaScript takes part. A NUL in an argument is read alike by all these
//! parsers and may be a file's content, so it passes.
//!
//! It is for what callers send. What servers send is data for the caller: there,
//! a schema with `"maximum": 9223372036854775807` is ordinary.

mod name;

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use crate::guard::{self, Guard};
pub use name::alike;
use name::{ENVELOPE, META, Name, PARAMS, PART, fold, is_high, is_low};

/// Deepest nesting, containers in containers: as deep as `serde_json` reads.
pub const MAX_DEPTH: usize = 127;
/// Most members of one object.
pub const MAX_MEMBERS: usize = 4096;
/// Longest number, in bytes. 24 are enough for any double.
pub const MAX_NUMBER: usize = 64;
/// Most bytes of names outside of arguments that have escapes or are not ASCII;
/// all names of MCP are.
pub const MAX_FOLDED: usize = 16 * 1024;
/// Longest body, in bytes: positions are kept in 31 bits.
pub const MAX_BODY: usize = 1 << 31;

/// Up to this many names are compared each with each, more by their hashes.
const FEW: usize = 16;
/// The largest integer that a double holds so that no other integer is read as it.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Why a body is refused. `at` is the byte where it was seen, from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The body is larger than [`MAX_BODY`].
    #[error("the body has more than {MAX_BODY} bytes")]
    TooLong,
    /// The body is no UTF-8.
    #[error("the body is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Where.
        at: usize,
    },
    /// The body begins with U+FEFF.
    #[error("the body begins with a byte order mark: leave it out")]
    ByteOrderMark,
    /// The body is no JSON.
    #[error("the body is not JSON at byte {at}: {expected} is expected (RFC 8259)")]
    Syntax {
        /// Where.
        at: usize,
        /// What could stand there.
        expected: &'static str,
    },
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("the body is nested deeper than {MAX_DEPTH} levels at byte {at}")]
    TooDeep {
        /// Where.
        at: usize,
    },
    /// An object with more members than [`MAX_MEMBERS`].
    #[error("an object has more than {MAX_MEMBERS} members at byte {at}")]
    TooManyMembers {
        /// Where.
        at: usize,
    },
    /// A name that its object has already.
    #[error("the member {name:?} at byte {at} stands twice in its object: send it once")]
    Duplicate {
        /// Where.
        at: usize,
        /// The name, cut.
        name: String,
    },
    /// A name that a parser which ignores case takes for another one.
    #[error(
        "the member {name:?} at byte {at} can be taken for {other:?}: names must differ by more than case"
    )]
    Alike {
        /// Where.
        at: usize,
        /// The name, cut.
        name: String,
        /// For what it can be taken, cut.
        other: String,
    },
    /// More than [`MAX_FOLDED`] bytes of unusual names.
    #[error(
        "names outside of arguments that are not plain ASCII have more than {MAX_FOLDED} bytes at byte {at}"
    )]
    UnusualNames {
        /// Where.
        at: usize,
    },
    /// Half of a surrogate pair.
    #[error("the escape at byte {at} is half of a surrogate pair: send the character itself")]
    LoneSurrogate {
        /// Where.
        at: usize,
    },
    /// The character NUL where names stand.
    #[error("\\u0000 at byte {at} is accepted only in values inside of arguments and results")]
    Nul {
        /// Where.
        at: usize,
    },
    /// An integer that doubles do not hold.
    #[error(
        "the integer at byte {at} is beyond what every parser holds exactly (2^53 - 1): send it as a string"
    )]
    LargeInteger {
        /// Where.
        at: usize,
    },
    /// A number that doubles do not hold.
    #[error("the number at byte {at} is beyond the range of a double: send it as a string")]
    NumberRange {
        /// Where.
        at: usize,
    },
    /// The integer −0.
    #[error("-0 at byte {at} is 0 to some parsers and not to others: send 0, or -0.0")]
    NegativeZero {
        /// Where.
        at: usize,
    },
    /// A number longer than [`MAX_NUMBER`].
    #[error("the number at byte {at} has more than {MAX_NUMBER} bytes: send it as a string")]
    LongNumber {
        /// Where.
        at: usize,
    },
}

/// Checks that a body can be read in one way only: one message or an array of
/// them. Whatever stands in it, time and memory are in proportion to the body:
/// about 10 ns and 3 bytes a byte at most.
///
/// # Errors
/// The first fault that is found.
pub fn check(body: &[u8]) -> Result<(), Fault> {
    check_at(Place::Body, body)
}

/// Checks that data can be read in one way only: JSON that is no message, such
/// as the claims of a token. No name has a meaning there, so that names which
/// differ by case alone are different names.
///
/// # Errors
/// The first fault that is found.
pub fn check_data(data: &[u8]) -> Result<(), Fault> {
    check_at(Place::Free, data)
}

fn check_at(place: Place, body: &[u8]) -> Result<(), Fault> {
    if body.len() >= MAX_BODY {
        return Err(Fault::TooLong);
    }
    if body.starts_with(b"\xef\xbb\xbf") {
        return Err(Fault::ByteOrderMark);
    }
    let text = std::str::from_utf8(body).map_err(|error| Fault::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    let mut reader = Reader {
        text,
        bytes: body,
        at: 0,
        depth: 0,
        folded: 0,
        names: Vec::with_capacity(FEW),
        hashes: Vec::new(),
    };
    reader.value(place)?;
    reader.space();
    if reader.at < body.len() {
        return reader.expected("the end");
    }
    Ok(())
}

/// Where a value stands, as far as the rules differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The whole body.
    Body,
    /// A message, in the body or in the body's array.
    Message,
    /// The value of `params`.
    Params,
    /// The value of `params._meta`.
    Meta,
    /// What else stands directly in `params`.
    Part,
    /// What is deeper, or not known.
    Deep,
    /// Arguments and answers: what the two sides tell each other.
    Free,
}

impl Place {
    /// Whether names are compared without case.
    fn folds(self) -> bool {
        !self.known().is_empty()
    }

    /// The names that have a meaning there.
    fn known(self) -> &'static [&'static str] {
        match self {
            Self::Message => ENVELOPE,
            Self::Params => PARAMS,
            Self::Meta => META,
            Self::Part => PART,
            Self::Body | Self::Deep | Self::Free => &[],
        }
    }

    /// Where the value of a member stands.
    fn of_member(self, name: &Name, text: &str) -> Self {
        let is = |names: &[&str]| names.iter().any(|known| name.is(text, known));
        match self {
            Self::Message if is(&["params"]) => Self::Params,
            Self::Message if is(&["result", "error"]) => Self::Free,
            Self::Params if is(&["arguments", "inputResponses"]) => Self::Free,
            Self::Params if is(&["_meta"]) => Self::Meta,
            Self::Params => Self::Part,
            Self::Free => Self::Free,
            _ => Self::Deep,
        }
    }

    /// Where an element of an array stands.
    fn of_element(self) -> Self {
        match self {
            Self::Body => Self::Message,
            Self::Free => Self::Free,
            _ => Self::Deep,
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// How many bytes of names were folded.
    folded: usize,
    /// The names of all objects that are open.
    names: Vec<Name>,
    /// Of the names of one object, with their indices: kept to be used again.
    hashes: Vec<(u64, u32)>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn expected<T>(&self, expected: &'static str) -> Result<T, Fault> {
        Err(Fault::Syntax {
            at: self.at,
            expected,
        })
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// Takes this byte, and the white space before it, if it is there.
    fn takes(&mut self, byte: u8) -> bool {
        self.space();
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn value(&mut self, place: Place) -> Result<(), Fault> {
        self.space();
        match self.peek() {
            Some(b'{') => self.nested(place, Self::object),
            Some(b'[') => self.nested(place, Self::array),
            Some(b'"') => self.string(place == Place::Free).map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            Some(b'n') => self.literal(b"null"),
            _ => self.expected("a value"),
        }
    }

    fn literal(&mut self, literal: &'static [u8]) -> Result<(), Fault> {
        if !self.bytes[self.at..].starts_with(literal) {
            return self.expected("true, false or null");
        }
        self.at += literal.len();
        Ok(())
    }

    fn nested(
        &mut self,
        place: Place,
        read: fn(&mut Self, Place) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if self.depth == MAX_DEPTH {
            return Err(Fault::TooDeep { at: self.at });
        }
        self.depth += 1;
        self.at += 1;
        read(self, place)?;
        self.depth -= 1;
        Ok(())
    }

    fn array(&mut self, place: Place) -> Result<(), Fault> {
        if self.takes(b']') {
            return Ok(());
        }
        loop {
            self.value(place.of_element())?;
            if self.takes(b']') {
                return Ok(());
            }
            if !self.takes(b',') {
                return self.expected("`,` or `]`");
            }
        }
    }

    fn object(&mut self, place: Place) -> Result<(), Fault> {
        if self.takes(b'}') {
            return Ok(());
        }
        let place = match place {
            Place::Body => Place::Message,
            place => place,
        };
        let first = self.names.len();
        // Whether plain comparison of bytes tells which names are the same.
        let mut plain = true;
        loop {
            let name = self.name(place)?;
            if self.names.len() - first == MAX_MEMBERS {
                return Err(Fault::TooManyMembers { at: name.at() });
            }
            if name.is_escaped() || place.folds() && !name.raw(self.text).is_ascii() {
                plain = false;
                self.fold_budget(&name, place)?;
            }
            self.names.push(name);
            self.value(place.of_member(&name, self.text))?;
            if self.takes(b'}') {
                break;
            }
            if !self.takes(b',') {
                return self.expected("`,` or `}`");
            }
        }
        if plain && self.names.len() - first <= FEW {
            self.compare(first, place)?;
        } else {
            self.compare_hashes(first, place)?;
        }
        self.names.truncate(first);
        Ok(())
    }

    /// A member's name and the colon after it.
    fn name(&mut self, place: Place) -> Result<Name, Fault> {
        self.space();
        if self.peek() != Some(b'"') {
            return self.expected("a member's name in quotes");
        }
        let start = self.at + 1;
        let is_escaped = self.string(false)?;
        let name = Name::new(start, self.at - 1, is_escaped);
        if let Some(other) = name.imitates(place.known(), self.text) {
            return Err(Fault::Alike {
                at: name.at(),
                name: name.shown(self.text),
                other: other.into(),
            });
        }
        if !self.takes(b':') {
            return self.expected("`:`");
        }
        Ok(name)
    }

    /// Folding takes longer than all else: it is for few names.
    fn fold_budget(&mut self, name: &Name, place: Place) -> Result<(), Fault> {
        if place.folds() {
            self.folded += name.raw(self.text).len();
        }
        if self.folded > MAX_FOLDED {
            return Err(Fault::UnusualNames { at: name.at() });
        }
        Ok(())
    }

    /// Compares the names from `first` on, few and plain, each with each.
    fn compare(&self, first: usize, place: Place) -> Result<(), Fault> {
        let names = &self.names[first..];
        for (index, name) in names.iter().enumerate() {
            let raw = name.raw(self.text);
            for other in &names[..index] {
                let other_raw = other.raw(self.text);
                if raw.len() == other_raw.len()
                    && (raw == other_raw || place.folds() && raw.eq_ignore_ascii_case(other_raw))
                {
                    return self.clash(other, name);
                }
            }
        }
        Ok(())
    }

    /// Compares the names from `first` on by a hash that cannot be foreseen.
    fn compare_hashes(&mut self, first: usize, place: Place) -> Result<(), Fault> {
        let state = RandomState::new();
        let (text, names) = (self.text, &self.names[first..]);
        self.hashes.clear();
        self.hashes
            .extend(names.iter().zip(0..).map(|(name, index)| {
                let mut hasher = state.build_hasher();
                match (place.folds(), name.is_escaped()) {
                    (true, _) => name
                        .chars(text)
                        .flat_map(fold)
                        .for_each(|c| c.hash(&mut hasher)),
                    (false, true) => name.chars(text).collect::<String>().hash(&mut hasher),
                    (false, false) => name.raw(text).hash(&mut hasher),
                }
                (hasher.finish(), index)
            }));
        self.hashes.sort_unstable();
        for pair in self.hashes.windows(2) {
            let [(hash, index), (other_hash, other_index)] = pair else {
                continue;
            };
            let (name, other) = (&names[*index as usize], &names[*other_index as usize]);
            let same =
                |place: Place| name.same(other, text) || place.folds() && name.alike(other, text);
            if hash == other_hash && same(place) {
                return self.clash(name, other);
            }
        }
        Ok(())
    }

    /// The fault of a name after another one.
    fn clash(&self, other: &Name, name: &Name) -> Result<(), Fault> {
        if !guard::is_on(Guard::DuplicateKey) {
            return Ok(());
        }
        let shown = name.shown(self.text);
        Err(if name.same(other, self.text) {
            Fault::Duplicate {
                at: name.at(),
                name: shown,
            }
        } else {
            Fault::Alike {
                at: name.at(),
                name: shown,
                other: other.shown(self.text),
            }
        })
    }

    /// A string; whether it has escapes.
    fn string(&mut self, may_have_nul: bool) -> Result<bool, Fault> {
        self.at += 1;
        let mut is_escaped = false;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(is_escaped);
                }
                Some(b'\\') => {
                    is_escaped = true;
                    self.escape(may_have_nul)?;
                }
                None | Some(0..0x20) => return self.expected("`\"`, or an escape"),
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self, may_have_nul: bool) -> Result<(), Fault> {
        let at = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                let unit = self.unit()?;
                if unit == 0 && !may_have_nul {
                    return Err(Fault::Nul { at });
                }
                let has_other_half = || self.bytes[self.at..].starts_with(b"\\u");
                if is_low(unit) || is_high(unit) && !has_other_half() {
                    return Err(Fault::LoneSurrogate { at });
                }
                if is_high(unit) {
                    self.at += 1;
                    if !is_low(self.unit()?) {
                        return Err(Fault::LoneSurrogate { at });
                    }
                }
            }
            _ => return self.expected("one of `\"\\/bfnrtu`"),
        }
        Ok(())
    }

    /// The four digits after the `u` of an escape.
    fn unit(&mut self) -> Result<u32, Fault> {
        self.at += 1;
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let Some(digit) = digit else {
                return self.expected("a hexadecimal digit");
            };
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return self.expected("a digit");
        }
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        let at = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        let mut is_integer = true;
        if self.peek() == Some(b'.') {
            is_integer = false;
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            is_integer = false;
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
        }
        check_number(&self.text[at..self.at], at, is_integer)
    }
}

/// Refuses a number that parsers read differently.
fn check_number(number: &str, at: usize, is_integer: bool) -> Result<(), Fault> {
    if number.len() > MAX_NUMBER {
        return Err(Fault::LongNumber { at });
    }
    if is_integer {
        let digits = number.strip_prefix('-').unwrap_or(number);
        if digits == "0" && digits.len() < number.len() {
            return Err(Fault::NegativeZero { at });
        }
        // 15 digits are always below the limit.
        let is_safe = digits.len() <= 15
            || digits
                .parse()
                .is_ok_and(|integer: u64| integer <= MAX_SAFE_INTEGER);
        return if is_safe {
            Ok(())
        } else {
            Err(Fault::LargeInteger { at })
        };
    }
    let significand = number.split(['e', 'E']).next().unwrap_or_default();
    let is_zero = !significand
        .bytes()
        .any(|digit| matches!(digit, b'1'..=b'9'));
    match number.parse::<f64>() {
        Ok(double) if double.is_finite() && (double != 0.0 || is_zero) => Ok(()),
        _ => Err(Fault::NumberRange { at }),
    }
}

#[cfg(test)]
mod tests;
