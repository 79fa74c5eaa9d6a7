//! Durations as Kubernetes users write them: `30s`, `1m`, `24h`.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A positive whole number of seconds, minutes or hours, at most 24 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(std::time::Duration);

/// Why a text is no [`Duration`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no duration: write a positive whole number and a unit (s, m or h), for example 1m; at most 24h"
)]
pub struct InvalidDuration(String);

const MAX_SECONDS: u64 = 24 * 60 * 60;

impl Duration {
    /// So many minutes, 1 to 1,440: for defaults.
    pub(crate) const fn minutes(number: u64) -> Self {
        assert!(number >= 1 && number * 60 <= MAX_SECONDS);
        Self(std::time::Duration::from_secs(number * 60))
    }

    /// The duration for computing.
    pub fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidDuration(text.to_owned());
        let unit = match text.as_bytes().last() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 60 * 60,
            _ => return Err(invalid()),
        };
        let digits = &text[..text.len() - 1];
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        match number.checked_mul(unit) {
            Some(seconds @ 1..=MAX_SECONDS) => Ok(Self(std::time::Duration::from_secs(seconds))),
            _ => Err(invalid()),
        }
    }
}

impl TryFrom<String> for Duration {
    type Error = InvalidDuration;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            s if s % 3600 == 0 => write!(f, "{}h", s / 3600),
            s if s % 60 == 0 => write!(f, "{}m", s / 60),
            s => write!(f, "{s}s"),
        }
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 6,
            "pattern": "^[0-9]+[smh]$",
            "x-kubernetes-validations": [{
                "rule": "duration(self) > duration('0s') && duration(self) <= duration('24h')",
                "message": "must be more than 0s and at most 24h",
            }],
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_users_write_and_refuses_the_rest() {
        for (text, seconds) in [("1s", 1), ("90s", 90), ("5m", 300), ("24h", 86_400)] {
            assert_eq!(text.parse::<Duration>().unwrap().get().as_secs(), seconds);
        }
        for text in [
            "",
            "s",
            "0s",
            "1",
            "-1s",
            "+1s",
            "1d",
            "1.5h",
            "25h",
            "1m30s",
            "99999999999999999999s",
            "1ſ",
        ] {
            assert!(text.parse::<Duration>().is_err(), "{text:?} was accepted");
        }
    }
}
