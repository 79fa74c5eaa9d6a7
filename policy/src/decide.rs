//! The decision on one request.

use crate::{
    Bundle, Reason, Template,
    bundle::{Effect, Limit, Match, Rule, Subject},
    uri,
};

/// Who calls. All of it comes from one verified token; nothing of an anonymous
/// caller is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Name of the issuer.
    pub issuer: Option<String>,
    /// The end user: `sub`, or what `claims.user` of the issuer names.
    pub user: Option<String>,
    /// The agent: `act.sub`, else `azp`, else `client_id`, or what `claims.agent`
    /// names; a service account is both.
    pub agent: Option<String>,
    /// Groups of the user.
    pub groups: Vec<String>,
    /// Scopes of the token.
    pub scopes: Vec<String>,
    /// The service account as `namespace/name`, where the issuer is the cluster.
    pub service_account: Option<String>,
    /// The pod that the token is bound to, where it is the cluster's and says so.
    pub pod: Option<String>,
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
    /// All scopes that the operation needs, where they alone are missing
    /// ([`Reason::InsufficientScope`]).
    pub scopes: &'b [String],
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
    let denied = match verdict(bundle, &wanted, |subject| is_from(subject, caller, &[])) {
        Verdict::Allowed(rule) => {
            return allow(Reason::AllowedByRule, Some(rule), limits(bundle, &wanted));
        }
        Verdict::Denied(rule) => return deny(Reason::DeniedByRule, Some(rule)),
        Verdict::NoRule => deny(Reason::NoRuleMatched, None),
    };
    match offer(bundle, &wanted, caller) {
        Some((rule, scopes)) => Decision {
            scopes,
            ..deny(Reason::InsufficientScope, Some(rule))
        },
        None => denied,
    }
}

/// Offers of further scopes that are looked at: each costs a look at all rules.
const MAX_OFFERS: usize = 16;

/// The rule that would allow it to the caller, had the caller its scopes too,
/// and these scopes. Of several, the one that lacks the fewest.
fn offer<'b>(
    bundle: &'b Bundle,
    wanted: &Wanted<'_>,
    caller: &Caller,
) -> Option<(&'b Rule, &'b [String])> {
    let lacking = |scopes: &[String]| {
        let lacks = |scope: &&String| !caller.scopes.contains(scope);
        scopes.iter().filter(lacks).count()
    };
    let allows = |rule: &&Rule| rule.effect == Effect::Allow && wanted.is_named(rule);
    let mut offers = Vec::new();
    for rule in bundle.rules.iter().filter(allows) {
        for subject in &rule.from {
            if let Subject::Match(Match { scopes, .. }) = subject
                && lacking(scopes) > 0
                && is_from(subject, caller, scopes)
            {
                offers.push((lacking(scopes), scopes.as_slice(), rule));
            }
        }
    }
    offers.sort_by_key(|(lacking, scopes, _)| (*lacking, *scopes));
    offers.dedup_by_key(|(_, scopes, _)| *scopes);
    let mut offers = offers.into_iter().take(MAX_OFFERS);
    offers.find_map(|(_, more, rule)| {
        let with_more = |subject: &Subject| is_from(subject, caller, more);
        let allowed = matches!(verdict(bundle, wanted, with_more), Verdict::Allowed(_));
        allowed.then_some((rule, more))
    })
}

/// What the rules say of an operation.
enum Verdict<'b> {
    Allowed(&'b Rule),
    Denied(&'b Rule),
    NoRule,
}

fn verdict<'b>(
    bundle: &'b Bundle,
    wanted: &Wanted<'_>,
    is_from: impl Fn(&Subject) -> bool,
) -> Verdict<'b> {
    let mut allowed = Verdict::NoRule;
    let matching = |rule: &&Rule| rule.from.iter().any(&is_from) && wanted.is_named(rule);
    for rule in bundle.rules.iter().filter(matching) {
        match (rule.effect, &allowed) {
            (Effect::Deny, _) => return Verdict::Denied(rule),
            (Effect::Allow, Verdict::NoRule) => allowed = Verdict::Allowed(rule),
            (Effect::Allow, _) => {}
        }
    }
    allowed
}

/// Limits are on calls of tools.
fn limits<'b>(bundle: &'b Bundle, wanted: &Wanted<'_>) -> Vec<&'b Limit> {
    let Wanted::Tool(tool) = wanted else {
        return Vec::new();
    };
    let applies = |limit: &&Limit| limit.tools.iter().any(|glob| glob.matches(tool));
    bundle.limits.iter().filter(applies).collect()
}

/// Whether a list shows an item to the caller: exactly what the caller may use,
/// or could with further scopes alone.
pub fn visible(bundle: &Bundle, caller: &Caller, operation: Operation<'_>, now: u64) -> bool {
    let decision = decide(bundle, caller, operation, now);
    decision.is_allowed() || decision.reason == Reason::InsufficientScope
}

fn allow<'b>(reason: Reason, rule: Option<&'b Rule>, limits: Vec<&'b Limit>) -> Decision<'b> {
    Decision {
        effect: Effect::Allow,
        reason,
        rule,
        limits,
        scopes: &[],
    }
}

fn deny(reason: Reason, rule: Option<&Rule>) -> Decision<'_> {
    Decision {
        effect: Effect::Deny,
        reason,
        rule,
        limits: Vec::new(),
        scopes: &[],
    }
}

/// Whether it is one of these callers, had they `more` scopes.
fn is_from(subject: &Subject, caller: &Caller, more: &[String]) -> bool {
    let Subject::Match(Match {
        issuer,
        service_accounts,
        users,
        agents,
        groups,
        scopes,
    }) = subject
    else {
        return true;
    };
    let names = |list: &[String], name: &Option<String>| {
        name.as_ref().is_some_and(|name| list.contains(name))
    };
    let has_scope = |scope: &String| caller.scopes.contains(scope) || more.contains(scope);
    // An item that names nothing would match everyone; compile refuses it, and a
    // bundle that has one all the same is not believed. Only `everyone` matches
    // a caller without an issuer.
    let says_something = issuer.is_some()
        || [service_accounts, users, agents, groups, scopes]
            .iter()
            .any(|list| !list.is_empty());
    says_something
        && caller.issuer.is_some()
        && (issuer.is_none() || *issuer == caller.issuer)
        && (service_accounts.is_empty() || is_account(service_accounts, caller))
        && (users.is_empty() || names(users, &caller.user))
        && (agents.is_empty() || names(agents, &caller.agent))
        && (groups.is_empty() || caller.groups.iter().any(|group| groups.contains(group)))
        && scopes.iter().all(has_scope)
}

fn is_account(patterns: &[String], caller: &Caller) -> bool {
    let Some(account) = &caller.service_account else {
        return false;
    };
    patterns
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            // Up to the slash: the name of a namespace has none.
            Some(namespace) => namespace.ends_with('/') && account.starts_with(namespace),
            None => pattern == account,
        })
}
