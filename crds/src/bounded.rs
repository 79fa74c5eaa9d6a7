//! Strings with a maximum and a form. The bound is part of the type, so that
//! no field can be added without one; it is enforced by the schema.

use std::{borrow::Cow, fmt, ops::Deref};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident, $max:literal $(, $pattern:literal)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "minLength": 1,
                    "maxLength": $max,
                    $("pattern": $pattern,)?
                })
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

bounded! {
    /// Name of an object of Kubernetes: an RFC 1123 subdomain.
    ObjectName, 253, "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
}
bounded! {
    /// Name of a list item: an RFC 1123 label.
    ItemName, 63, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
}
bounded! {
    /// Image reference.
    ImageRef, 512, "^[^\\s]+$"
}
bounded! {
    /// One word of a command line, or a value of an environment variable.
    Argument, 4096
}
bounded! {
    /// Name of an environment variable.
    EnvName, 253, "^[A-Za-z_][A-Za-z0-9_.-]*$"
}
bounded! {
    /// Key in a Secret or a ConfigMap, or prefix of environment variables.
    KeyName, 253, "^[-._a-zA-Z0-9]+$"
}
bounded! {
    /// An absolute http or https URL without query, fragment or user.
    Url, 2048, "^https?://[A-Za-z0-9.:\\[\\]-]+(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?$"
}
bounded! {
    /// A token audience: any string without white space or control characters.
    Audience, 2048, "^[!-~]+$"
}
bounded! {
    /// URL of an issuer of tokens (RFC 8414 §2: no query, no fragment).
    IssuerUrl, 2048, "^https?://[A-Za-z0-9.:\\[\\]-]+(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?$"
}
bounded! {
    /// URL of a key set.
    JwksUrl, 2048, "^https?://[A-Za-z0-9.:\\[\\]-]+(/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?$"
}
bounded! {
    /// Name of a header (RFC 9110 §5.1).
    HeaderName, 64, "^[A-Za-z0-9-]+$"
}
bounded! {
    /// Where a claim stands in a token.
    ClaimPath, 253, "^[A-Za-z0-9_:/.~-]+$"
}
bounded! {
    /// A scope (RFC 6749 §3.3).
    Scope, 253, "^[!#-\\[\\]-~]+$"
}
bounded! {
    /// An absolute path of a URL in normal form, without query.
    UrlPath, 512, "^/([A-Za-z0-9_~-][A-Za-z0-9._~-]*(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?)?$"
}
bounded! {
    /// Name of a tool; `*` stands for any text, also for none.
    ToolPattern, 128, "^[A-Za-z0-9_./*-]+$"
}
bounded! {
    /// Name of a prompt; `*` stands for any text, also for none.
    PromptPattern, 128, "^[!-~]([ -~]*[!-~])?$"
}
bounded! {
    /// URI of a resource in the normal form of RFC 3986; `*` stands for any
    /// text without `/`, `**` for any text. What a pattern cannot express of
    /// the normal form, `policy::compile` checks.
    ResourcePattern, 512, "^(\\*\\*?|[a-z][a-z0-9+.-]*:)([A-Za-z0-9._~!$&'()*+,;=:@/?\\[\\]-]|%[0-9A-F]{2})*$"
}
bounded! {
    /// A service account as `namespace/name`, or all of a namespace as `namespace/*`.
    ServiceAccountRef, 317, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?/([a-z0-9]([-a-z0-9.]*[a-z0-9])?|\\*)$"
}
bounded! {
    /// A user's or group's name as its issuer writes it.
    SubjectName, 253, "^[^\\x00-\\x1f\\x7f]+$"
}

/// A Kubernetes quantity, for example `500m`, `128Mi` or 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quantity {
    /// A whole number.
    Number(i64),
    /// A number with a unit.
    Text(String),
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}
