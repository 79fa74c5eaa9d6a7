//! Version 1 of the wire form: rules speak of tools only, and sidecars deny all
//! prompts and resources; callers are service accounts, users and groups, and
//! all issuers have their keys in the bundle.
//!
//! What this version has no words for must not allow: an `Allow` loses the
//! callers that it cannot name, a `Deny` that cannot name its callers denies
//! everyone, and where other issuers were meant, everything is denied.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{DEFAULT_LIFETIME_SECONDS, Effect, KeySource, Limit, Match, ServerRef};
use crate::Glob;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Bundle {
    version: u32,
    server: ServerRef,
    url: String,
    audience: String,
    hosts: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    authentication: Authentication,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deny_all: Option<String>,
    rules: Vec<Rule>,
    limits: Vec<Limit>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    policy: String,
    name: String,
    effect: Effect,
    from: Vec<Subject>,
    tools: Vec<Glob>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Authentication {
    anonymous: bool,
    issuers: Vec<Issuer>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Issuer {
    name: String,
    issuer: String,
    #[serde(default)]
    service_accounts: bool,
    jwks: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Subject {
    Everyone,
    Match {
        #[serde(
            default,
            rename = "serviceAccounts",
            skip_serializing_if = "Vec::is_empty"
        )]
        service_accounts: Vec<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        users: Vec<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        groups: Vec<String>,
    },
}

impl From<Issuer> for super::Issuer {
    fn from(issuer: Issuer) -> Self {
        let Issuer {
            name,
            issuer,
            service_accounts,
            jwks,
        } = issuer;
        match service_accounts {
            true => Self {
                name,
                ..Self::cluster(&issuer, jwks)
            },
            false => Self::inline(&name, &issuer, jwks),
        }
    }
}

impl From<Subject> for super::Subject {
    fn from(subject: Subject) -> Self {
        match subject {
            Subject::Everyone => Self::Everyone,
            Subject::Match {
                service_accounts,
                users,
                groups,
            } => Self::Match(Match {
                service_accounts,
                users,
                groups,
                ..Match::default()
            }),
        }
    }
}

impl Issuer {
    fn of(issuer: super::Issuer) -> Option<Self> {
        let super::Issuer {
            name,
            issuer,
            service_accounts,
            keys,
            // Of issuers whose keys are in the bundle, all is as it was.
            claims: _,
            types: _,
            algorithms: _,
        } = issuer;
        match keys {
            KeySource::Inline(jwks) => Some(Self {
                name,
                issuer,
                service_accounts,
                jwks,
            }),
            KeySource::Remote(_) => None,
        }
    }
}

impl Subject {
    fn of(subject: super::Subject) -> Option<Self> {
        match subject {
            super::Subject::Everyone => Some(Self::Everyone),
            super::Subject::Match(Match {
                issuer: None,
                service_accounts,
                users,
                agents,
                groups,
                scopes,
            }) if agents.is_empty()
                && scopes.is_empty()
                && !service_accounts.iter().any(|name| name.ends_with('*')) =>
            {
                Some(Self::Match {
                    service_accounts,
                    users,
                    groups,
                })
            }
            super::Subject::Match(_) => None,
        }
    }
}

/// Issuers, and whether they are all that callers may use. Where the cluster's
/// is not among them, the operator still has to be known.
fn authentication(bundle: &super::Bundle) -> (Authentication, bool) {
    let super::Authentication {
        anonymous,
        issuers,
        max_token_lifetime_seconds,
        networks: _,
    } = &bundle.authentication;
    let known: Vec<_> = issuers.iter().cloned().filter_map(Issuer::of).collect();
    let is_all = known.len() == issuers.len()
        && *max_token_lifetime_seconds == DEFAULT_LIFETIME_SECONDS
        && bundle
            .cluster
            .as_ref()
            .is_none_or(|cluster| issuers.contains(cluster));
    let cluster = bundle.cluster.clone().and_then(Issuer::of);
    let issuers = match is_all {
        true => known,
        false => cluster.into_iter().collect(),
    };
    let anonymous = *anonymous && is_all;
    (Authentication { anonymous, issuers }, is_all)
}

impl From<Bundle> for super::Bundle {
    fn from(bundle: Bundle) -> Self {
        let Bundle {
            version,
            server,
            url,
            audience,
            hosts,
            operator,
            authentication,
            deny_all,
            rules,
            limits,
        } = bundle;
        let issuers: Vec<super::Issuer> =
            authentication.issuers.into_iter().map(Into::into).collect();
        Self {
            version,
            server,
            url,
            audience,
            hosts,
            operator,
            peer_audience: None,
            cluster: issuers
                .iter()
                .find(|issuer| issuer.service_accounts)
                .cloned(),
            authentication: super::Authentication {
                anonymous: authentication.anonymous,
                issuers,
                max_token_lifetime_seconds: DEFAULT_LIFETIME_SECONDS,
                networks: Vec::new(),
            },
            identity: false,
            deny_all,
            rules: rules.into_iter().map(Into::into).collect(),
            limits,
        }
    }
}

impl From<Rule> for super::Rule {
    fn from(rule: Rule) -> Self {
        let Rule {
            policy,
            name,
            effect,
            from,
            tools,
        } = rule;
        Self {
            policy,
            name,
            effect,
            from: from.into_iter().map(Into::into).collect(),
            tools,
            prompts: Vec::new(),
            resources: Vec::new(),
        }
    }
}

impl From<super::Bundle> for Bundle {
    fn from(bundle: super::Bundle) -> Self {
        let (authentication, is_all) = authentication(&bundle);
        let super::Bundle {
            version: _,
            server,
            url,
            audience,
            hosts,
            operator,
            // Its sidecars do not speak to each other.
            peer_audience: _,
            cluster: _,
            authentication: _,
            // Its sidecars assert nothing: without an assertion a server knows
            // nobody.
            identity: _,
            deny_all,
            rules,
            limits,
        } = bundle;
        let deny_all = deny_all.or_else(|| {
            let why = "this release of the sidecar does not know the issuers of the McpServer";
            (!is_all).then(|| why.to_owned())
        });
        let rules = match deny_all {
            Some(_) => Vec::new(),
            None => rules,
        };
        Self {
            version: 1,
            server,
            url,
            audience,
            hosts,
            operator,
            authentication,
            deny_all,
            rules: rules.into_iter().filter_map(Rule::of).collect(),
            limits,
        }
    }
}

impl Rule {
    /// A rule without tools has nothing to say in this version.
    fn of(rule: super::Rule) -> Option<Self> {
        let super::Rule {
            policy,
            name,
            effect,
            from,
            tools,
            prompts: _,
            resources: _,
        } = rule;
        let asked = from.len();
        let mut from: Vec<_> = from.into_iter().filter_map(Subject::of).collect();
        if effect == Effect::Deny && from.len() < asked {
            from = vec![Subject::Everyone];
        }
        (!tools.is_empty() && !from.is_empty()).then_some(Self {
            policy,
            name,
            effect,
            from,
            tools,
        })
    }
}
