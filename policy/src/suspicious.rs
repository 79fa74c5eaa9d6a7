//! What is legal and yet likely a mistake: warnings for whoever applies an object.
//!
//! Invariants:
//! - Nothing is refused here. What cannot be enforced, [`crate::compile()`] refuses.
//! - A warning says where and what to do, in at most [`MAX_CHARS`] characters, and
//!   there are at most [`MAX_WARNINGS`]: more is cut off on the way to the user.
//! - The work is bounded: comparisons that would take too long are left out.

mod callers;
mod shadow;

use crds::{
    AuthenticationMode, CLUSTER_ISSUER, Effect, Limit, LimitKey, McpServer, McpToolPolicy,
    ToolPattern, ToolRule,
};

use crate::{Glob, compile::host};

/// The most warnings for one object.
pub const MAX_WARNINGS: usize = 20;
/// The most characters of a warning.
pub const MAX_CHARS: usize = 256;
/// The most characters that are shown of a name or pattern.
const MAX_SHOWN: usize = 40;
/// The most bytes that are compared for one object.
const MAX_STEPS: usize = 5_000_000;
/// A token that is stolen is of use for as long as it is valid.
const LONG_SECONDS: u64 = 12 * 3600;
/// So many times `burst`, `requests` can hardly be reached.
const FAR_ABOVE: u64 = 100;

/// Warnings for a server; `policies` are those of its namespace.
pub fn server(server: &McpServer, policies: &[&McpToolPolicy]) -> Vec<String> {
    let mut warnings = Warnings::default();
    authentication(server, &mut warnings);
    // Who applies both at once applies the server first: one that is new, and so
    // has no status, may have no policy yet.
    if server.status.is_some() {
        grants(server, policies, &mut warnings);
    }
    warnings.finish()
}

/// Warnings for a policy; `servers` are those of its namespace.
pub fn policy(policy: &McpToolPolicy, servers: &[&McpServer]) -> Vec<String> {
    let mut warnings = Warnings::default();
    let targets = Targets::of(policy, servers, &mut warnings);
    let rules = policy.spec.rules.as_deref().unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        breadth(&path, rule, &mut warnings);
        for (item, subject) in rule.from.iter().enumerate() {
            callers::check(
                &format!("{path}.from[{item}]"),
                subject,
                &targets,
                &mut warnings,
            );
        }
        // What a server may have one day is denied in advance.
        let is_ahead = rule.effect == Effect::Deny;
        let tools = rule.tools.as_deref().unwrap_or_default();
        reach(&path, tools, is_ahead, &targets, &mut warnings);
    }
    shadow::check(rules, &mut warnings);
    for (index, limit) in policy.spec.limits.iter().flatten().enumerate() {
        let path = format!("spec.limits[{index}]");
        reach(&path, &limit.tools, false, &targets, &mut warnings);
        rate(&path, limit, &targets, &mut warnings);
    }
    warnings.finish()
}

/// Warnings so far, and how much was compared for them.
#[derive(Default)]
struct Warnings {
    list: Vec<String>,
    more: usize,
    steps: usize,
}

impl Warnings {
    fn add(&mut self, path: &str, message: &str) {
        if self.list.len() < MAX_WARNINGS {
            self.list
                .push(cut(&format!("{path}: {message}"), MAX_CHARS));
        } else {
            self.more += 1;
        }
    }

    /// Whether there is time for so many steps more.
    fn may_take(&mut self, steps: usize) -> bool {
        self.steps = self.steps.saturating_add(steps);
        self.steps <= MAX_STEPS
    }

    fn finish(mut self) -> Vec<String> {
        if self.more > 0 {
            self.list.truncate(MAX_WARNINGS - 1);
            let more = self.more + 1;
            self.list.push(format!("and {more} more"));
        }
        self.list
    }
}

/// A text of at most so many characters.
fn cut(text: &str, most: usize) -> String {
    const END: &str = "...";
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let start = text.chars().take(most.saturating_sub(END.len()));
    start.chain(END.chars()).collect()
}

/// A name in quotes, not too long, and without what no terminal shows.
fn shown(text: &str) -> String {
    format!("{:?}", cut(text, MAX_SHOWN))
}

/// The servers that a policy speaks of, as far as they are known.
struct Targets<'a> {
    servers: Vec<&'a McpServer>,
    /// The only issuer whose tokens all of them accept.
    issuer: Option<&'a str>,
    /// What all of them offer together, where that is known of each.
    tools: Option<Vec<&'a str>>,
}

impl<'a> Targets<'a> {
    fn of(policy: &McpToolPolicy, all: &[&'a McpServer], warnings: &mut Warnings) -> Self {
        let mut servers = Vec::new();
        let mut is_complete = true;
        for (index, target) in policy.spec.target_refs.iter().enumerate() {
            let is_it =
                |server: &&McpServer| server.metadata.name.as_deref() == Some(&*target.name);
            match all.iter().copied().find(is_it) {
                Some(server) => servers.push(server),
                None => {
                    is_complete = false;
                    let message = format!(
                        "there is no McpServer {} in this namespace yet: check the name, or create it",
                        shown(&target.name)
                    );
                    warnings.add(&format!("spec.targetRefs[{index}].name"), &message);
                }
            }
        }
        let known = if is_complete { &servers[..] } else { &[] };
        let mut issuers = known.iter().copied().map(only_issuer);
        let issuer = issuers.next().flatten();
        let is_common = issuers.all(|other| other == issuer);
        let tools: Option<Vec<_>> = known.iter().copied().map(tools).collect();
        let tools = tools.map(|lists| lists.concat());
        Self {
            issuer: issuer.filter(|_| is_common),
            tools: tools.filter(|tools| !tools.is_empty()),
            servers,
        }
    }

    /// Whether it is known that no server has a tool that fits.
    fn lack(&self, pattern: &str, warnings: &mut Warnings) -> bool {
        let Some(tools) = &self.tools else {
            return false;
        };
        let bytes: usize = tools.iter().map(|tool| tool.len() + 1).sum();
        let glob = Glob(pattern.to_owned());
        warnings.may_take(bytes.saturating_mul(pattern.len()))
            && !tools.iter().any(|tool| glob.matches(tool))
    }

    /// A tool whose name is the same but for case and marks.
    fn like(&self, name: &str) -> Option<&'a str> {
        fn letters(name: &str) -> impl Iterator<Item = char> {
            let letters = name.chars().filter(|c| c.is_ascii_alphanumeric());
            letters.map(|c| c.to_ascii_lowercase())
        }
        let mut tools = self.tools.iter().flatten().copied();
        tools.find(|tool| letters(tool).eq(letters(name)))
    }

    fn names(&self) -> String {
        let names = self
            .servers
            .iter()
            .map(|server| server.metadata.name.as_deref());
        let names: Vec<_> = names.map(Option::unwrap_or_default).collect();
        cut(&names.join(", "), MAX_SHOWN)
    }
}

/// The only issuer whose tokens a server accepts.
fn only_issuer(server: &McpServer) -> Option<&str> {
    let authentication = &server.spec.authentication;
    match authentication.issuers.as_deref() {
        _ if authentication.mode == AuthenticationMode::Anonymous => None,
        Some([issuer]) => Some(&*issuer.name),
        Some(_) => None,
        // Outside of a cluster, and so without a uid, there is `run --dev-token`.
        None => server.metadata.uid.as_ref().map(|_| CLUSTER_ISSUER),
    }
}

/// All tools of a server, where they are known.
fn tools(server: &McpServer) -> Option<Vec<&str>> {
    let status = server.status.as_ref()?;
    let is_known = !status.truncated && !status.tools.is_empty();
    is_known.then(|| status.tools.iter().map(|tool| &*tool.name).collect())
}

fn authentication(server: &McpServer, warnings: &mut Warnings) {
    let authentication = &server.spec.authentication;
    if authentication.mode == AuthenticationMode::Anonymous {
        let message = "no token is asked for: whoever reaches the server may do what rules for everyone allow; use Required where callers can have tokens";
        warnings.add("spec.authentication.mode", message);
        return;
    }
    let mut issuers = authentication.issuers.iter().flatten();
    let has_others = issuers.any(|issuer| *issuer.name != *CLUSTER_ISSUER);
    if let Some(audience) = authentication.audience.as_deref()
        && has_others
        && !is_url(audience)
    {
        let message = format!(
            "{} is no URL, and clients ask an identity provider for a token for the server's URL: write that URL, unless the provider adds this audience by itself",
            shown(audience)
        );
        warnings.add("spec.authentication.audience", &message);
    }
    let lifetime = authentication.max_token_lifetime;
    if lifetime.get().as_secs() > LONG_SECONDS {
        let message = format!(
            "a token that is stolen can be used for up to {lifetime}: have tokens renewed more often, and write 12h or less (default 1h)"
        );
        warnings.add("spec.authentication.maxTokenLifetime", &message);
    }
    if let Some(url) = server.spec.url.as_deref()
        && url.starts_with("http://")
        && !is_internal(host(url))
    {
        let message = "tokens would cross the network unencrypted: write the https URL that callers use, and set spec.tls, or put an ingress in front that ends TLS";
        warnings.add("spec.url", message);
    }
}

fn is_url(audience: &str) -> bool {
    audience.starts_with("http://") || audience.starts_with("https://")
}

/// Whether a host is one of the cluster's network, or of this machine.
fn is_internal(host: &str) -> bool {
    use std::net::IpAddr;
    match host.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local(),
        Err(_) => {
            let host = host.to_ascii_lowercase();
            !host.contains('.') || host.ends_with(".svc") || host.contains(".svc.")
        }
    }
}

/// A server whose every call is denied.
fn grants(server: &McpServer, policies: &[&McpToolPolicy], warnings: &mut Warnings) {
    let name = server.metadata.name.as_deref().unwrap_or_default();
    let speaks_of_it = |policy: &&&McpToolPolicy| {
        let mut targets = policy.spec.target_refs.iter();
        targets.any(|target| *target.name == *name)
    };
    let mut policies = policies.iter().filter(speaks_of_it).peekable();
    if policies.peek().is_none() {
        let message = format!(
            "no McpToolPolicy targets this server, so every call is denied: write one with targetRefs: [{{name: {}}}]",
            cut(name, MAX_SHOWN)
        );
        return warnings.add("metadata.name", &message);
    }
    let mut rules = policies.flat_map(|policy| policy.spec.rules.iter().flatten());
    if !rules.any(|rule| rule.effect == Effect::Allow) {
        let message = "no rule of its policies allows anything, so every call is denied: write one with effect: Allow";
        warnings.add("metadata.name", message);
    }
}

/// A rule that allows everything to everybody.
fn breadth(path: &str, rule: &ToolRule, warnings: &mut Warnings) {
    let is_for_everyone = rule
        .from
        .iter()
        .any(|subject| subject.everyone == Some(true));
    let is_for_all = rule.tools.iter().flatten().any(|tool| is_any(tool));
    if rule.effect == Effect::Allow && is_for_everyone && is_for_all {
        let message = "every tool is allowed to everyone who is let in, and so is every tool that the server gets later: name the callers in from, or the tools";
        warnings.add(path, message);
    }
}

/// Whether a pattern fits every tool.
fn is_any(pattern: &str) -> bool {
    pattern.bytes().all(|byte| byte == b'*')
}

/// Patterns that no tool fits; `is_ahead` is for rules that may well come before
/// the tools of which they speak.
fn reach(
    path: &str,
    patterns: &[ToolPattern],
    is_ahead: bool,
    targets: &Targets<'_>,
    warnings: &mut Warnings,
) {
    let mut missed: Vec<&str> = Vec::new();
    for (index, pattern) in patterns.iter().enumerate() {
        if is_expression(pattern) {
            let message = format!(
                "{} looks like a regular expression, but a dot is a dot here, and * alone stands for any text: write {}",
                shown(pattern),
                shown(&pattern.replace(".*", "*"))
            );
            warnings.add(&format!("{path}.tools[{index}]"), &message);
        } else if targets.lack(pattern, warnings) {
            missed.push(pattern);
        }
    }
    // Of several patterns, one may speak of what other servers have.
    let is_all = !is_ahead && missed.len() == patterns.len();
    missed.retain(|pattern| is_all || !pattern.contains('*'));
    let Some(first) = missed.first() else {
        return;
    };
    let like = targets
        .like(first)
        .map(|tool| format!(" (there is {})", shown(tool)));
    let more = match missed.len() {
        1 => String::new(),
        2 => ", like another pattern,".to_owned(),
        number => format!(", like {} other patterns,", number - 1),
    };
    let message = format!(
        "{}{more} fits no tool of McpServer {}{}: correct it; status.tools lists them",
        shown(first),
        targets.names(),
        like.unwrap_or_default()
    );
    warnings.add(&format!("{path}.tools"), &message);
}

/// A pattern with a dot where only a regular expression has one; names of tools
/// do have dots, as in `admin.*`.
fn is_expression(pattern: &str) -> bool {
    pattern.starts_with(".*") || pattern.contains("_.*") || pattern.contains("-.*")
}

/// Limits that hold back nearly everything.
fn rate(path: &str, limit: &Limit, targets: &Targets<'_>, warnings: &mut Warnings) {
    let per = limit.per.get();
    let is_for_all = limit.by.is_none() && limit.tools.iter().any(|tool| is_any(tool));
    if is_for_all && u64::from(limit.requests) * 3600 <= per.as_secs() {
        let message = format!(
            "all callers of all tools together get {} in {}: count each by itself (by: [User]), or raise requests",
            calls(limit.requests),
            limit.per
        );
        warnings.add(&format!("{path}.requests"), &message);
    }
    if let Some(burst) = limit.burst
        && u64::from(burst) * FAR_ABOVE <= u64::from(limit.requests)
        && let Some(interval) = per.checked_div(limit.requests)
    {
        let message = format!(
            "after {} at once only one passes each {interval:?}, though {} in {} are allowed: raise burst, or leave it out (default: requests)",
            calls(burst),
            limit.requests,
            limit.per
        );
        warnings.add(&format!("{path}.burst"), &message);
    }
    let mut servers = targets.servers.iter();
    let anonymous =
        servers.find(|server| server.spec.authentication.mode == AuthenticationMode::Anonymous);
    let mut by = limit.by.iter().flatten();
    if let Some(server) = anonymous
        && by.any(|key| *key != LimitKey::Tool)
    {
        let message = format!(
            "callers of McpServer {} are Anonymous and have no names, so all share one count: count by Tool, or leave it out",
            cut(
                server.metadata.name.as_deref().unwrap_or_default(),
                MAX_SHOWN
            )
        );
        warnings.add(&format!("{path}.by"), &message);
    }
}

fn calls(number: u32) -> String {
    match number {
        1 => "1 call".to_owned(),
        _ => format!("{number} calls"),
    }
}
