//! Resources → [`Bundle`]. What cannot be compiled denies everything.

use std::fmt;

use crds::{AuthenticationMode, McpServer, McpToolPolicy, Reason};

use crate::{
    Glob, UriGlob,
    bundle::{self, Authentication, Bundle, Effect, Issuer, Limit, Rule, ServerRef, Subject},
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
    /// Issuers whose tokens are accepted.
    pub issuers: Vec<Issuer>,
    /// `sub` of the operator's own tokens.
    pub operator: Option<String>,
    /// uid of the `McpServer`, where it is one of a cluster.
    pub uid: Option<String>,
    /// Whether a server may ask for `Anonymous`.
    pub allow_anonymous: bool,
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
        issuers: context.issuers.clone(),
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
        authentication,
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
    let metadata = &server.metadata;
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let server = ServerRef {
        namespace,
        name: metadata.name.clone().unwrap_or_default(),
    };
    let mut bundle = base(server, url, audience, context);
    bundle.authentication.anonymous = anonymous;
    bundle
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
        service_accounts,
        users,
        groups,
        everyone,
    } = subject;
    let service_accounts: Vec<_> = strings(service_accounts.iter().flatten()).collect();
    let users: Vec<_> = strings(users.iter().flatten()).collect();
    let groups: Vec<_> = strings(groups.iter().flatten()).collect();
    if *everyone == Some(true) {
        return Ok(Subject::Everyone);
    }
    if service_accounts.is_empty() && users.is_empty() && groups.is_empty() {
        return Err("names no caller: write serviceAccounts, users, groups or everyone".into());
    }
    let authentication = &bundle.authentication;
    if authentication.anonymous {
        return Err(format!(
            "McpServer {} is Anonymous, so its callers have no names and this rule could never hold: write everyone: true, or set authentication.mode: Required",
            bundle.server.name
        ));
    }
    if !service_accounts.is_empty()
        && !authentication
            .issuers
            .iter()
            .any(|issuer| issuer.service_accounts)
    {
        return Err("serviceAccounts belong to the cluster's issuer, which this server does not accept: write users or groups".into());
    }
    Ok(Subject::Match {
        service_accounts,
        users,
        groups,
    })
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
