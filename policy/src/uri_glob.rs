//! Patterns for URIs: `*` stands for any text without `/`, `**` for any text.
//!
//! The same matcher serves URIs and URI templates (RFC 6570): a template is a
//! text in which some places stand for other text. `{x}` holds no `/`; an
//! expression with an operator, or one that explodes, may hold anything. That
//! is more than what an expansion can be, and so on the safe side twice: no
//! template is hidden of which a URI may be read, and none is taken for denied
//! of which one may be.

use serde::{Deserialize, Serialize};

use crate::uri;

/// A pattern. Matching takes at most pattern × text steps, whatever they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UriGlob(pub String);

/// A place of a pattern or of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// This byte.
    Byte(u8),
    /// Any text without `/`, also none.
    Segment,
    /// Any text, also none.
    Any,
}

impl Token {
    fn is_open(self) -> bool {
        !matches!(self, Self::Byte(_))
    }

    /// Whether all that the other stands for may stand in this place.
    fn admits(self, other: Self) -> bool {
        match self {
            Self::Byte(_) => self == other,
            Self::Segment => !matches!(other, Self::Any | Self::Byte(b'/')),
            Self::Any => true,
        }
    }
}

impl UriGlob {
    /// Whether the whole of `uri` fits.
    pub fn matches(&self, uri: &str) -> bool {
        let pattern = self.0.as_bytes();
        let literal = pattern.iter().position(|&byte| byte == b'*');
        let (literal, open) = pattern.split_at(literal.unwrap_or(pattern.len()));
        match (uri.as_bytes().strip_prefix(literal), open) {
            (None, _) => false,
            (Some(rest), b"") => rest.is_empty(),
            (Some(_), b"**") => true,
            (Some(rest), open) => covers(&tokens(open), rest.iter().map(|&byte| Token::Byte(byte))),
        }
    }

    /// Whether all expansions of a template fit.
    pub fn covers(&self, template: &Template) -> bool {
        covers(&tokens(self.0.as_bytes()), template.0.iter().copied())
    }

    /// Whether some expansion of a template fits.
    pub fn meets(&self, template: &Template) -> bool {
        let Template(template) = template;
        let pattern = tokens(self.0.as_bytes());
        let literal = pattern.iter().zip(template);
        let mut literal = literal.take_while(|(a, b)| !a.is_open() && !b.is_open());
        literal.all(|(a, b)| a == b) && meets(&pattern, template)
    }
}

fn tokens(pattern: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(pattern.len());
    for &byte in pattern {
        match (byte, tokens.last()) {
            (b'*', Some(Token::Segment)) => {
                tokens.pop();
                tokens.push(Token::Any);
            }
            (b'*', _) => tokens.push(Token::Segment),
            _ => tokens.push(Token::Byte(byte)),
        }
    }
    tokens
}

/// Goes through the text once, with all places of the pattern that may be next.
fn covers(pattern: &[Token], text: impl Iterator<Item = Token>) -> bool {
    /// Notes a place; an open one may also stand for nothing.
    fn note(
        places: &mut Vec<usize>,
        noted: &mut [usize],
        step: usize,
        pattern: &[Token],
        at: usize,
    ) {
        for (place, noted) in noted.iter_mut().enumerate().skip(at) {
            if *noted == step {
                return;
            }
            *noted = step;
            places.push(place);
            if !pattern.get(place).is_some_and(|token| token.is_open()) {
                return;
            }
        }
    }
    // In which step a place was noted last.
    let mut noted = vec![0; pattern.len() + 1];
    let (mut places, mut next) = (Vec::new(), Vec::new());
    note(&mut places, &mut noted, 1, pattern, 0);
    for (step, token) in (2..).zip(text) {
        next.clear();
        for &place in &places {
            let Some(wanted) = pattern.get(place).filter(|wanted| wanted.admits(token)) else {
                continue;
            };
            let after = if wanted.is_open() { place } else { place + 1 };
            note(&mut next, &mut noted, step, pattern, after);
        }
        std::mem::swap(&mut places, &mut next);
        if places.is_empty() {
            return false;
        }
    }
    places.contains(&pattern.len())
}

/// Whether a text fits both. `row[i]`: some text fits the pattern so far and the
/// first `i` places of the template.
fn meets(pattern: &[Token], template: &[Token]) -> bool {
    let width = template.len() + 1;
    let mut row = vec![true; width];
    let open = template.iter().take_while(|token| token.is_open()).count();
    row[open + 1..].fill(false);
    for wanted in pattern {
        let mut next = vec![false; width];
        for place in 0..width {
            let Some(&token) = template.get(place) else {
                next[place] |= row[place] && wanted.is_open();
                continue;
            };
            // The pattern's place stands for nothing, or the template's holds it.
            next[place] |=
                row[place] && (wanted.is_open() || token.is_open() && token.admits(*wanted));
            // The template's place stands for nothing, or the pattern's holds it.
            next[place + 1] |= row[place] && *wanted == token
                || next[place] && (token.is_open() || wanted.is_open() && wanted.admits(token));
        }
        row = next;
    }
    row[template.len()]
}

/// A URI template (RFC 6570), as far as the decision needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Token>);

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// It is malformed, or none of its expansions is in normal form.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > uri::MAX_BYTES {
            return Err("is too long: at most 4096 bytes are read");
        }
        let Some(first) = text.find('{') else {
            uri::check(text)?;
            return Ok(Self(text.bytes().map(Token::Byte).collect()));
        };
        check_start(&text[..first])?;
        let mut tokens = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            push_literal(literal, &mut tokens)?;
            let (expression, after) = after
                .split_once('}')
                .ok_or("has a { without its }: write {name}")?;
            tokens.extend(expand(expression)?);
            rest = after;
        }
        push_literal(rest, &mut tokens)?;
        Ok(Self(tokens))
    }
}

/// What comes before the first expression decides on scheme and host, where
/// they end in it.
fn check_start(start: &str) -> Result<(), &'static str> {
    if !start.contains([':', '/', '?']) {
        return Ok(()); // An expression says the scheme.
    }
    let (_, rest) = uri::split_scheme(start)?;
    let whole = match rest.strip_prefix("//") {
        Some(after) => after.contains('/'),
        None => rest.trim_start_matches('/').contains('/'),
    };
    match start.rfind('/') {
        Some(end) if whole => uri::check(&encoded(&start[..=end])),
        _ => Ok(()),
    }
}

/// RFC 6570, section 2.1: in an expansion, other characters are encoded.
fn encoded(literal: &str) -> String {
    let mut text = String::with_capacity(literal.len());
    for character in literal.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            let mut buffer = [0; 4];
            for byte in character.encode_utf8(&mut buffer).bytes() {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

fn push_literal(literal: &str, tokens: &mut Vec<Token>) -> Result<(), &'static str> {
    let literal = encoded(literal);
    uri::check_characters(&literal)?;
    tokens.extend(literal.bytes().map(Token::Byte));
    Ok(())
}

/// What an expression may stand for (RFC 6570, section 2.2).
fn expand(expression: &str) -> Result<Option<Token>, &'static str> {
    const MALFORMED: &str = "has an expression that is not of RFC 6570: write {name}";
    let operator = expression.bytes().next().filter(|b| b"+#./;?&".contains(b));
    let names = &expression[usize::from(operator.is_some())..];
    for name in names.split(',') {
        let name = name.strip_suffix('*').unwrap_or(name);
        let name = match name.split_once(':') {
            Some((name, length)) if is_length(length) => name,
            Some(_) => return Err(MALFORMED),
            None => name,
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-%".contains(&b);
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(MALFORMED);
        }
    }
    Ok(match operator {
        // A fragment: only its absence is in normal form.
        Some(b'#') => None,
        // Some servers read an exploded name as the rest of a path.
        None | Some(b'.' | b';') if !names.contains('*') => Some(Token::Segment),
        _ => Some(Token::Any),
    })
}

fn is_length(text: &str) -> bool {
    (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests;
