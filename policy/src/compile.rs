//! Resources → [`Bundle`]. What cannot be compiled denies everything.

use std::fmt;

use crds::{AuthenticationMode, McpServer, McpToolPolicy, Reason};

use crate::{
    Glob,
    bundle::{self, Authentication, Bundle, Effect, Issuer, Limit, Rule, ServerRef, Subject},
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
        peer_audience: None,
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
        let mut from = Vec::new();
        for (item, subject) in rule.from.iter().enumerate() {
            match subject_of(subject, bundle) {
                Ok(subject) => from.push(subject),
                Err(message) => diagnostics.push(Diagnostic {
                    policy: Some(policy.to_owned()),
                    path: format!("spec.rules[{index}].from[{item}]"),
                    message,
                    reason: Reason::PolicyInvalid,
                }),
            }
        }
        bundle.rules.push(Rule {
            policy: policy.to_owned(),
            name: rule.name.to_string(),
            effect: match rule.effect {
                crds::Effect::Allow => Effect::Allow,
                crds::Effect::Deny => Effect::Deny,
            },
            from,
            tools: globs(&rule.tools),
        });
    }
    let mut limits: Vec<_> = object.spec.limits.iter().flatten().collect();
    limits.sort_by(|a, b| a.name.cmp(&b.name));
    bundle.limits.extend(limits.into_iter().map(|limit| {
        let mut by = limit.by.clone().unwrap_or_default();
        by.sort();
        Limit {
            policy: policy.to_owned(),
            name: limit.name.to_string(),
            tools: globs(&limit.tools),
            requests: limit.requests,
            per_seconds: limit.per.get().as_secs(),
            burst: limit.burst.unwrap_or(limit.requests),
            by,
        }
    }));
}

fn globs(patterns: &[crds::ToolPattern]) -> Vec<Glob> {
    patterns
        .iter()
        .map(|pattern| Glob(pattern.to_string()))
        .collect()
}

fn subject_of(subject: &crds::Subject, bundle: &Bundle) -> Result<Subject, String> {
    fn strings<T: ToString>(list: Option<&Vec<T>>) -> Vec<String> {
        list.into_iter()
            .flatten()
            .map(ToString::to_string)
            .collect()
    }
    let service_accounts = strings(subject.service_accounts.as_ref());
    let users = strings(subject.users.as_ref());
    let groups = strings(subject.groups.as_ref());
    if subject.everyone == Some(true) {
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
