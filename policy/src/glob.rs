//! Patterns for names: `*` stands for any text, also for none.

use serde::{Deserialize, Serialize};

/// A pattern. Matching takes at most pattern × name steps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Glob(pub String);

impl Glob {
    /// Whether the whole of `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where to go on when the text after the last `*` does not fit.
        let mut retry = None;
        while n < name.len() {
            if pattern.get(p) == Some(&b'*') {
                retry = Some((p + 1, n));
                p += 1;
            } else if pattern.get(p) == Some(&name[n]) {
                (p, n) = (p + 1, n + 1);
            } else if let Some((after_star, start)) = retry {
                retry = Some((after_star, start + 1));
                (p, n) = (after_star, start + 1);
            } else {
                return false;
            }
        }
        pattern[p..].iter().all(|&byte| byte == b'*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_stands_for_any_text() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "a", false),
            ("get_*", "get_order", true),
            ("get_*", "get_", true),
            ("get_*", "forget_order", false),
            ("*_order", "get_order", true),
            ("*_order", "get_orders", false),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "aXbY", false),
            ("**", "a", true),
            ("order", "order", true),
            ("order", "Order", false),
            ("order", "order ", false),
        ] {
            assert_eq!(Glob(pattern.into()).matches(name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn long_patterns_do_not_explode() {
        let pattern = Glob("*a".repeat(64));
        assert!(!pattern.matches(&"a".repeat(10_000).replace('a', "ab")));
    }
}
