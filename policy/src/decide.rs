//! The decision on one request.

use crate::{
    Bundle, Reason, Template,
    bundle::{Effect, Limit, Rule, Subject},
    uri,
};

/// Who calls. All of it comes from one verified token; nothing of an anonymous
/// caller is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Name of the issuer.
    pub issuer: Option<String>,
    /// The end user (`sub`).
    pub user: Option<String>,
    /// The agent (`azp`, `client_id`); a service account is both.
    pub agent: Option<String>,
    /// Groups of the user.
    pub groups: Vec<String>,
    /// The service account as `namespace/name`, where the issuer is the cluster.
    pub service_account: Option<String>,
    /// When the token expires (`exp`), in seconds since 1970; none for an
    /// anonymous caller.
    pub expires_at: Option<u64>,
}

/// What the caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Handshake, ping, discovery, lists: open to every caller that is let in.
    /// What a list shows is decided item by item.
    Open,
    /// Call or see a tool.
    Tool(&'a str),
    /// Get or see a prompt.
    Prompt(&'a str),
    /// Read, subscribe to or see a resource, by its URI.
    Resource(&'a str),
    /// See a template of URIs (RFC 6570), or complete its variables.
    Template(&'a str),
}

/// What rules are asked for, read once.
enum Wanted<'a> {
    Tool(&'a str),
    Prompt(&'a str),
    Resource(&'a str),
    Template(Template),
}

impl Wanted<'_> {
    fn is_named(&self, rule: &Rule) -> bool {
        match self {
            Self::Tool(name) => rule.tools.iter().any(|glob| glob.matches(name)),
            Self::Prompt(name) => rule.prompts.iter().any(|glob| glob.matches(name)),
            Self::Resource(uri) => rule.resources.iter().any(|glob| glob.matches(uri)),
            // Shown where one of its URIs may be read, hidden where none may.
            Self::Template(template) => match rule.effect {
                Effect::Allow => rule.resources.iter().any(|glob| glob.meets(template)),
                Effect::Deny => rule.resources.iter().any(|glob| glob.covers(template)),
            },
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'b> {
    /// Whether it may happen.
    pub effect: Effect,
    /// Why.
    pub reason: Reason,
    /// The rule that decided.
    pub rule: Option<&'b Rule>,
    /// Limits that have to be charged first, where the effect is Allow.
    pub limits: Vec<&'b Limit>,
}

impl Decision<'_> {
    /// Whether the effect is Allow.
    pub fn is_allowed(&self) -> bool {
        self.effect == Effect::Allow
    }
}

/// Decides. `now` is in seconds since 1970.
pub fn decide<'b>(
    bundle: &'b Bundle,
    caller: &Caller,
    operation: Operation<'_>,
    now: u64,
) -> Decision<'b> {
    if caller.expires_at.is_some_and(|expires| now >= expires) {
        return deny(Reason::TokenExpired, None);
    }
    let wanted = match operation {
        Operation::Open => return allow(Reason::AlwaysAllowed, None, Vec::new()),
        _ if bundle.deny_all.is_some() => return deny(Reason::ConfigurationInvalid, None),
        Operation::Tool(name) => Wanted::Tool(name),
        Operation::Prompt(name) => Wanted::Prompt(name),
        Operation::Resource(uri) => match uri::check(uri) {
            Ok(()) => Wanted::Resource(uri),
            Err(_) => return deny(Reason::UriNotNormal, None),
        },
        Operation::Template(text) => match Template::parse(text) {
            Ok(template) => Wanted::Template(template),
            Err(_) => return deny(Reason::UriNotNormal, None),
        },
    };
    let mut allowed = None;
    for rule in bundle.rules.iter().filter(|rule| {
        rule.from.iter().any(|subject| is_from(subject, caller)) && wanted.is_named(rule)
    }) {
        match rule.effect {
            Effect::Deny => return deny(Reason::DeniedByRule, Some(rule)),
            Effect::Allow => allowed = allowed.or(Some(rule)),
        }
    }
    match allowed {
        None => deny(Reason::NoRuleMatched, None),
        Some(rule) => allow(Reason::AllowedByRule, Some(rule), limits(bundle, &wanted)),
    }
}

/// Limits are on calls of tools.
fn limits<'b>(bundle: &'b Bundle, wanted: &Wanted<'_>) -> Vec<&'b Limit> {
    let Wanted::Tool(tool) = wanted else {
        return Vec::new();
    };
    let applies = |limit: &&Limit| limit.tools.iter().any(|glob| glob.matches(tool));
    bundle.limits.iter().filter(applies).collect()
}

/// Whether a list shows an item to the caller: exactly what the caller may use.
pub fn visible(bundle: &Bundle, caller: &Caller, operation: Operation<'_>, now: u64) -> bool {
    decide(bundle, caller, operation, now).is_allowed()
}

fn allow<'b>(reason: Reason, rule: Option<&'b Rule>, limits: Vec<&'b Limit>) -> Decision<'b> {
    Decision {
        effect: Effect::Allow,
        reason,
        rule,
        limits,
    }
}

fn deny(reason: Reason, rule: Option<&Rule>) -> Decision<'_> {
    Decision {
        effect: Effect::Deny,
        reason,
        rule,
        limits: Vec::new(),
    }
}

fn is_from(subject: &Subject, caller: &Caller) -> bool {
    let Subject::Match {
        service_accounts,
        users,
        groups,
    } = subject
    else {
        return true;
    };
    let names = |list: &[String], name: &Option<String>| {
        name.as_ref().is_some_and(|name| list.contains(name))
    };
    // An item without any list would match everyone; compile refuses it, and a
    // bundle that has one all the same is not believed.
    !(service_accounts.is_empty() && users.is_empty() && groups.is_empty())
        && (service_accounts.is_empty() || names(service_accounts, &caller.service_account))
        && (users.is_empty() || names(users, &caller.user))
        && (groups.is_empty() || caller.groups.iter().any(|group| groups.contains(group)))
}
