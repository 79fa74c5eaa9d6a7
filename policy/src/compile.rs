//! Resources → [`Bundle`]. What cannot be compiled denies everything.

use std::fmt;

use crds::{AuthenticationMode, CLUSTER_ISSUER, McpServer, McpToolPolicy, Reason, TokenType};

use crate::{
    Glob, UriGlob,
    bundle::{
        self, Authentication, Bundle, Claims, DEFAULT_ALGORITHMS, DEFAULT_LIFETIME_SECONDS, Effect,
        Issuer, KeySource, Limit, Match, Remote, Rule, ServerRef, Subject, Types,
    },
    peers, uri,
};

/// The most rules of all policies of one server together.
const MAX_RULES: usize = 1024;

/// What the compiler has to know beside the resources.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The URL of a server that names none.
    pub default_url: String,
    /// Names under which the server may be called, beside that of its URL.
    pub hosts: Vec<String>,
    /// The cluster's own issuer, where there is a cluster.
    pub cluster: Option<Issuer>,
    /// An issuer beside those that a server names: that of `run --dev-token`.
    pub dev: Option<Issuer>,
    /// Which issuers a server may name beside the cluster's.
    pub issuers: AllowedIssuers,
    /// Networks (CIDR) beside the public internet in which issuers may be.
    pub networks: Vec<String>,
    /// `sub` of the operator's own tokens.
    pub operator: Option<String>,
    /// uid of the `McpServer`, where it is one of a cluster.
    pub uid: Option<String>,
    /// Whether a server may ask for `Anonymous`.
    pub allow_anonymous: bool,
}

/// Which issuers a server may name beside the cluster's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedIssuers {
    /// Those whose URL is one of these, or begins with what stands before a `*`
    /// at the end of one of these: nothing (any URL), or all of scheme and
    /// authority with the slash after it. URLs are https only.
    Listed(Vec<String>),
    /// Any, also http ones on a loopback address: outside of a cluster.
    Any,
}

impl Default for AllowedIssuers {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

impl AllowedIssuers {
    /// # Errors
    /// What is wrong with the URL.
    fn check(&self, url: &str) -> Result<(), String> {
        let is_plain = url.starts_with("http:");
        if has_dots(url) {
            return Err(format!("{url}: write the path without . and .."));
        }
        match self {
            Self::Any if is_plain && !is_loopback(url) => Err(format!(
                "{url}: keys are fetched by https; http is accepted for a loopback address only"
            )),
            Self::Any => Ok(()),
            Self::Listed(_) if is_plain => Err(format!("{url}: keys are fetched by https only")),
            Self::Listed(_) => Ok(()),
        }
    }

    fn allows(&self, url: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(list) => list.iter().any(|allowed| match allowed.strip_suffix('*') {
                Some("") => true,
                Some(start) => origin_ends(start) && url.starts_with(start),
                None => url == allowed,
            }),
        }
    }
}

/// Whether a URL's beginning has its whole authority: a longer one is another's.
fn origin_ends(start: &str) -> bool {
    let rest = start.split_once("://").map(|(_, rest)| rest);
    rest.is_some_and(|rest| rest.contains('/'))
}

/// Whether a path has segments that lead elsewhere (RFC 3986 §5.2.4).
fn has_dots(url: &str) -> bool {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let plain = path.to_ascii_lowercase().replace("%2e", ".");
    plain
        .split(['/', '\\'])
        .any(|part| matches!(part, "." | ".."))
}

/// Scheme and authority of a URL.
fn origin(url: &str) -> (&str, &str) {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    (
        scheme,
        rest.split(['/', '?', '#']).next().unwrap_or_default(),
    )
}

/// The host of a URL, without port and brackets.
pub(crate) fn host(url: &str) -> &str {
    let (_, authority) = origin(url);
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => authority.split(':').next(),
    };
    host.unwrap_or_default()
}

/// Whether the host of a URL is a loopback name.
fn is_loopback(url: &str) -> bool {
    matches!(host(url), "localhost" | "127.0.0.1" | "::1")
}

/// A policy that targets the server.
#[derive(Clone, Debug)]
pub enum PolicySource<'a> {
    /// One that can be read.
    Valid(&'a McpToolPolicy),
    /// One that cannot: it may deny, so everything is denied.
    Unreadable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: String,
    },
}

impl PolicySource<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Valid(policy) => policy.metadata.name.as_deref().unwrap_or_default(),
            Self::Unreadable { name, .. } => name,
        }
    }
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The policy, or none for the server itself.
    pub policy: Option<String>,
    /// Path of the field.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
    /// Reason for the condition `Accepted=False`.
    pub reason: Reason,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(policy) = &self.policy {
            write!(f, "McpToolPolicy {policy}: ")?;
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// A bundle, and what is wrong: where there is a diagnostic, the bundle denies
/// everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// What the sidecar is to enforce.
    pub bundle: Bundle,
    /// Why it denies everything; empty where it does not.
    pub diagnostics: Vec<Diagnostic>,
}

/// Compiles a server with all policies that target it, in whatever order.
pub fn compile(server: &McpServer, policies: &[PolicySource<'_>], context: &Context) -> Compiled {
    let mut diagnostics = Vec::new();
    let mut bundle = skeleton(server, context, &mut diagnostics);
    let mut policies: Vec<_> = policies.iter().collect();
    policies.sort_by(|a, b| a.name().cmp(b.name()));
    for policy in policies {
        match policy {
            PolicySource::Valid(valid) => add(&mut bundle, policy.name(), valid, &mut diagnostics),
            PolicySource::Unreadable { name, error } => diagnostics.push(Diagnostic {
                policy: Some(name.clone()),
                path: "spec".into(),
                message: error.clone(),
                reason: Reason::Undecodable,
            }),
        }
    }
    check_size(&bundle, &mut diagnostics);
    if !diagnostics.is_empty() {
        let reasons: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
        bundle = deny(bundle, &reasons.join("; "));
    }
    Compiled {
        bundle,
        diagnostics,
    }
}

/// The bundle of a server that cannot be read: everything is denied.
pub fn deny_all(namespace: &str, name: &str, context: &Context, why: &str) -> Bundle {
    let server = ServerRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let url = context.default_url.clone();
    deny(base(server, url.clone(), url, context), why)
}

fn deny(bundle: Bundle, why: &str) -> Bundle {
    const MAX: usize = 4096; // The reason is for people; all of it is in the status.
    let why = why.chars().take(MAX).collect();
    let authentication = Authentication {
        anonymous: false,
        ..bundle.authentication
    };
    Bundle {
        deny_all: Some(why),
        rules: Vec::new(),
        limits: Vec::new(),
        authentication,
        ..bundle
    }
}

fn base(server: ServerRef, url: String, audience: String, context: &Context) -> Bundle {
    let authentication = Authentication {
        anonymous: false,
        issuers: context
            .cluster
            .iter()
            .chain(&context.dev)
            .cloned()
            .collect(),
        max_token_lifetime_seconds: DEFAULT_LIFETIME_SECONDS,
        networks: Vec::new(),
    };
    let (operator, mut hosts) = (context.operator.clone(), context.hosts.clone());
    hosts.sort();
    hosts.dedup();
    Bundle {
        version: bundle::VERSION,
        server,
        url,
        audience,
        hosts,
        operator,
        peer_audience: context.uid.as_deref().map(peers::audience),
        cluster: context.cluster.clone(),
        authentication,
        identity: false,
        deny_all: None,
        rules: Vec::new(),
        limits: Vec::new(),
    }
}

/// All of the bundle that comes from the server.
fn skeleton(server: &McpServer, context: &Context, diagnostics: &mut Vec<Diagnostic>) -> Bundle {
    let mut wrong = |path: &str, reason, message: &str| {
        diagnostics.push(Diagnostic {
            policy: None,
            path: path.into(),
            message: message.into(),
            reason,
        });
    };
    let spec = &server.spec;
    let url = spec
        .url
        .as_ref()
        .map_or_else(|| context.default_url.clone(), ToString::to_string);
    let audience = spec
        .authentication
        .audience
        .as_ref()
        .map_or_else(|| url.clone(), ToString::to_string);
    let is_url = audience.starts_with("http://") || audience.starts_with("https://");
    if is_url && audience != url {
        // Where spec.url is left out, the CRD cannot compare: the namespace is not visible to CEL.
        wrong(
            "spec.authentication.audience",
            Reason::ServerInvalid,
            &format!(
                "an audience that is a URL must be equal to the server's URL, {url}: leave it out, or write the same"
            ),
        );
    }
    let anonymous = spec.authentication.mode == AuthenticationMode::Anonymous;
    if anonymous && !context.allow_anonymous {
        wrong(
            "spec.authentication.mode",
            Reason::AnonymousNotAllowed,
            "Anonymous is not allowed on this cluster: ask a platform team for the chart value allowAnonymous, or use Required",
        );
    }
    let issuers = issuers(&spec.authentication, context, &mut wrong);
    let metadata = &server.metadata;
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let server = ServerRef {
        namespace,
        name: metadata.name.clone().unwrap_or_default(),
    };
    let lifetime = spec.authentication.max_token_lifetime.get().as_secs();
    let is_remote = |issuer: &Issuer| matches!(issuer.keys, KeySource::Remote(_));
    let networks = match issuers.iter().any(is_remote) {
        true => context.networks.clone(),
        false => Vec::new(),
    };
    let authentication = Authentication {
        anonymous,
        issuers,
        max_token_lifetime_seconds: lifetime,
        networks,
    };
    Bundle {
        authentication,
        identity: spec.identity.is_some(),
        ..base(server, url, audience, context)
    }
}

/// The issuers of a server; what is wrong with them goes to `wrong`.
fn issuers(
    authentication: &crds::Authentication,
    context: &Context,
    wrong: &mut impl FnMut(&str, Reason, &str),
) -> Vec<Issuer> {
    let Some(asked) = &authentication.issuers else {
        return context
            .cluster
            .iter()
            .chain(&context.dev)
            .cloned()
            .collect();
    };
    let mut issuers: Vec<Issuer> = Vec::new();
    for (index, issuer) in asked.iter().enumerate() {
        let path = format!("spec.authentication.issuers[{index}]");
        match issuer_of(issuer, context) {
            Ok(issuer)
                if context
                    .dev
                    .as_ref()
                    .is_some_and(|dev| dev.name == issuer.name) =>
            {
                wrong(
                    &format!("{path}.name"),
                    Reason::ServerInvalid,
                    "this is the name of the issuer of --dev-token: give it another one",
                )
            }
            Ok(issuer) if issuers.iter().any(|other| other.issuer == issuer.issuer) => wrong(
                &format!("{path}.issuer"),
                Reason::ServerInvalid,
                "another issuer of this server has the same URL: write each once",
            ),
            Ok(issuer) => issuers.push(issuer),
            Err((field, reason, message)) => wrong(&format!("{path}{field}"), reason, &message),
        }
    }
    issuers.extend(context.dev.clone());
    issuers
}

fn issuer_of(
    asked: &crds::Issuer,
    context: &Context,
) -> Result<Issuer, (&'static str, Reason, String)> {
    let crds::Issuer {
        name,
        issuer,
        jwks_uri,
        claims,
        token_types,
        algorithms,
        ca_secret_ref,
        max_key_age,
    } = asked;
    let Some(url) = issuer.as_ref().filter(|_| **name != *CLUSTER_ISSUER) else {
        let cluster = context.cluster.clone().ok_or_else(|| {
            let message = "there is no cluster here, so it has no issuer: name another one";
            (".name", Reason::ServerInvalid, message.to_owned())
        });
        return cluster;
    };
    let invalid = |field| move |message| (field, Reason::ServerInvalid, message);
    context.issuers.check(url).map_err(invalid(".issuer"))?;
    if let Some(uri) = jwks_uri {
        context.issuers.check(uri).map_err(invalid(".jwksUri"))?;
    }
    let not_allowed = |url: &str| {
        format!(
            "{url} is not allowed on this cluster: ask a platform team to add it to the chart value allowedIssuers"
        )
    };
    if !context.issuers.allows(url) {
        return Err((".issuer", Reason::IssuerNotAllowed, not_allowed(url)));
    }
    // Whoever chooses the keys is the issuer, and on one host there may be others.
    let below = format!("{}/", url.trim_end_matches('/'));
    if let Some(uri) = jwks_uri
        && !uri.starts_with(&below)
        && !context.issuers.allows(uri)
    {
        return Err((".jwksUri", Reason::IssuerNotAllowed, not_allowed(uri)));
    }
    let has = |type_| {
        token_types
            .as_ref()
            .is_some_and(|types| types.contains(&type_))
    };
    let claims = claims.clone().unwrap_or_default();
    let path = |path: Option<crds::ClaimPath>| path.map(|path| path.to_string());
    Ok(Issuer {
        name: name.to_string(),
        issuer: url.to_string(),
        service_accounts: false,
        keys: KeySource::Remote(Remote {
            jwks_uri: jwks_uri.as_ref().map(ToString::to_string),
            private_ca: ca_secret_ref.is_some(),
            max_age_seconds: max_key_age.get().as_secs(),
        }),
        claims: Claims {
            user: path(claims.user),
            agent: path(claims.agent),
            groups: path(claims.groups),
            scopes: path(claims.scopes),
        },
        types: Types {
            access_token: token_types.is_none() || has(TokenType::AccessToken),
            jwt: has(TokenType::Jwt),
            none: has(TokenType::Jwt),
        },
        algorithms: algorithms
            .clone()
            .unwrap_or_else(|| DEFAULT_ALGORITHMS.to_vec()),
    })
}

fn add(
    bundle: &mut Bundle,
    policy: &str,
    object: &McpToolPolicy,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut rules: Vec<_> = object.spec.rules.iter().flatten().enumerate().collect();
    rules.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    for (index, rule) in rules {
        let compiled = rule_of(policy, rule, bundle, |path, message| {
            diagnostics.push(Diagnostic {
                policy: Some(policy.to_owned()),
                path: format!("spec.rules[{index}]{path}"),
                message,
                reason: Reason::PolicyInvalid,
            });
        });
        bundle.rules.push(compiled);
    }
    let mut limits: Vec<_> = object.spec.limits.iter().flatten().collect();
    limits.sort_by(|a, b| a.name.cmp(&b.name));
    bundle.limits.extend(limits.into_iter().map(|limit| {
        let mut by = limit.by.clone().unwrap_or_default();
        by.sort();
        Limit {
            policy: policy.to_owned(),
            name: limit.name.to_string(),
            tools: strings(&limit.tools).map(Glob).collect(),
            requests: limit.requests,
            per_seconds: limit.per.get().as_secs(),
            burst: limit.burst.unwrap_or(limit.requests),
            by,
        }
    }));
}

/// A rule; what is wrong with it goes to `wrong`, with its path in the rule.
fn rule_of(
    policy: &str,
    rule: &crds::ToolRule,
    bundle: &Bundle,
    mut wrong: impl FnMut(String, String),
) -> Rule {
    let crds::ToolRule {
        name,
        effect,
        from,
        tools,
        prompts,
        resources,
    } = rule;
    if tools.is_none() && prompts.is_none() && resources.is_none() {
        let message = "matches nothing: write at least one of tools, prompts and resources";
        wrong(String::new(), message.to_owned());
    }
    let mut subjects = Vec::new();
    for (item, subject) in from.iter().enumerate() {
        match subject_of(subject, bundle) {
            Ok(subject) => subjects.push(subject),
            Err(message) => wrong(format!(".from[{item}]"), message),
        }
    }
    for (item, pattern) in resources.iter().flatten().enumerate() {
        if let Err(why) = uri::check_pattern(pattern) {
            let message = format!("{:?}: {why}", &**pattern);
            wrong(format!(".resources[{item}]"), message);
        }
    }
    Rule {
        policy: policy.to_owned(),
        name: name.to_string(),
        effect: match effect {
            crds::Effect::Allow => Effect::Allow,
            crds::Effect::Deny => Effect::Deny,
        },
        from: subjects,
        tools: strings(tools.iter().flatten()).map(Glob).collect(),
        prompts: strings(prompts.iter().flatten()).map(Glob).collect(),
        resources: strings(resources.iter().flatten()).map(UriGlob).collect(),
    }
}

fn strings<T: ToString>(list: impl IntoIterator<Item = T>) -> impl Iterator<Item = String> {
    list.into_iter().map(|item| item.to_string())
}

fn subject_of(subject: &crds::Subject, bundle: &Bundle) -> Result<Subject, String> {
    let crds::Subject {
        issuer,
        service_accounts,
        users,
        agents,
        groups,
        scopes,
        everyone,
    } = subject;
    if *everyone == Some(true) {
        return Ok(Subject::Everyone);
    }
    let callers = Match {
        issuer: issuer.as_ref().map(ToString::to_string),
        service_accounts: strings(service_accounts.iter().flatten()).collect(),
        users: strings(users.iter().flatten()).collect(),
        agents: strings(agents.iter().flatten()).collect(),
        groups: strings(groups.iter().flatten()).collect(),
        scopes: strings(scopes.iter().flatten()).collect(),
    };
    if callers == Match::default() {
        return Err("names no caller: write issuer, serviceAccounts, users, agents, groups, scopes or everyone".into());
    }
    let authentication = &bundle.authentication;
    if authentication.anonymous {
        return Err(format!(
            "McpServer {} is Anonymous, so its callers have no names and this rule could never hold: write everyone: true, or set authentication.mode: Required",
            bundle.server.name
        ));
    }
    check_issuer(&callers, &authentication.issuers)?;
    Ok(Subject::Match(callers))
}

/// Whether it is clear whose names these are, and whether they can be had.
fn check_issuer(callers: &Match, issuers: &[Issuer]) -> Result<(), String> {
    let names: Vec<_> = issuers.iter().map(|issuer| issuer.name.as_str()).collect();
    let names = names.join(", ");
    match &callers.issuer {
        Some(name) if !issuers.iter().any(|issuer| issuer.name == *name) => {
            return Err(format!(
                "issuer {name} is none of the server's: it accepts {names}"
            ));
        }
        // A service account says whose it is.
        None if issuers.len() > 1 && callers.service_accounts.is_empty() => {
            return Err(format!(
                "the server accepts several issuers, so names alone are not clear: write issuer, one of {names}"
            ));
        }
        _ => {}
    }
    let is_account = !callers.service_accounts.is_empty()
        || issuers
            .iter()
            .any(|issuer| issuer.service_accounts && callers.issuer.as_ref() == Some(&issuer.name));
    if is_account && !(callers.groups.is_empty() && callers.scopes.is_empty()) {
        return Err("service accounts have no groups and no scopes, so this could never hold: write serviceAccounts alone (agents/* for all of a namespace)".into());
    }
    let has_accounts = issuers.iter().any(|issuer| issuer.service_accounts);
    if !callers.service_accounts.is_empty() && !has_accounts {
        return Err("serviceAccounts belong to the cluster's issuer, which this server does not accept: write users or groups, or add {name: cluster} to its issuers".into());
    }
    Ok(())
}

fn check_size(bundle: &Bundle, diagnostics: &mut Vec<Diagnostic>) {
    let mut wrong = |message: String| {
        let reason = Reason::PolicyInvalid;
        diagnostics.push(Diagnostic {
            policy: None,
            path: "spec".into(),
            message,
            reason,
        });
    };
    if bundle.rules.len() > MAX_RULES {
        wrong(format!(
            "its policies have {} rules together; at most {MAX_RULES} are allowed",
            bundle.rules.len()
        ));
    }
    match bundle.to_json() {
        Ok(json) if json.len() <= bundle::MAX_BYTES => {}
        Ok(json) => wrong(format!(
            "its policies compile to {} bytes; at most {} are allowed",
            json.len(),
            bundle::MAX_BYTES
        )),
        Err(error) => wrong(error.to_string()),
    }
}
