//! Version 1 of the wire form: rules speak of tools only, and sidecars deny all
//! prompts and resources.

use serde::{Deserialize, Serialize};

use super::{Authentication, Effect, Limit, ServerRef, Subject};
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
        Self {
            version,
            server,
            url,
            audience,
            hosts,
            operator,
            peer_audience: None,
            authentication,
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
            from,
            tools,
            prompts: Vec::new(),
            resources: Vec::new(),
        }
    }
}

impl From<super::Bundle> for Bundle {
    fn from(bundle: super::Bundle) -> Self {
        let super::Bundle {
            version: _,
            server,
            url,
            audience,
            hosts,
            operator,
            // Its sidecars do not speak to each other.
            peer_audience: _,
            authentication,
            deny_all,
            rules,
            limits,
        } = bundle;
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
        (!tools.is_empty()).then_some(Self {
            policy,
            name,
            effect,
            from,
            tools,
        })
    }
}
