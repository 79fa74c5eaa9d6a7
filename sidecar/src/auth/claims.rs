//! What the claims of a token whose signature is right say (RFC 7519 §4.1, RFC
//! 9068 §2.2): whether it is for us, now, and who calls.

use policy::{Caller, Reason, bundle::Issuer};
use serde_json::{Map, Value};

use super::token::Token;

/// How far `nbf` and `iat` may be ahead of our clock, in seconds. `exp` has
/// none: what has expired is not accepted.
pub const LEEWAY: u64 = 60;
/// Longest name of a user, an agent, a group or a scope, in bytes.
const MAX_NAME: usize = 1024;
/// Groups or scopes of a token, at most.
const MAX_NAMES: usize = 1000;

type Object = Map<String, Value>;

/// The audience that tokens have to name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    text: String,
    /// Its one spelling, where it is a URL.
    url: Option<String>,
}

impl Audience {
    /// An audience.
    pub fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            url: canonical(text),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn is(&self, named: &str) -> bool {
        named == self.text || self.url.is_some() && canonical(named) == self.url
    }
}

/// The one spelling of an http or https URL: scheme and host in small letters,
/// no default port, no slash at the end. None for what is no such URL, or has a
/// user, a query or a fragment.
fn canonical(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let default = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    if rest.contains(['?', '#', '@', '\\']) || !rest.is_ascii() {
        return None;
    }
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let authority = authority.to_ascii_lowercase();
    let authority = authority.strip_suffix(default).unwrap_or(&authority);
    let path = path.strip_suffix('/').unwrap_or(path);
    (!authority.is_empty()).then(|| format!("{scheme}://{authority}{path}"))
}

/// How long a token is valid, by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// `exp`, in seconds since 1970.
    pub expires_at: u64,
    /// `iat`.
    pub issued_at: u64,
}

/// Whether a token is for `audience` and valid now.
///
/// # Errors
/// Why it is not.
pub fn validity(token: &Token<'_>, audience: &Audience, now: u64) -> Result<Validity, Reason> {
    let claims = &token.claims;
    if claims.contains_key("cnf") {
        return Err(Reason::ProofRequired); // RFC 7800: to be proven, not only shown.
    }
    let is_ours = match claims.get("aud") {
        Some(Value::String(one)) => audience.is(one),
        Some(Value::Array(several)) => {
            let several: Option<Vec<_>> = several.iter().map(Value::as_str).collect();
            let several = several.ok_or(Reason::ClaimInvalid)?;
            several.into_iter().any(|one| audience.is(one))
        }
        _ => return Err(Reason::ClaimInvalid),
    };
    if !is_ours {
        return Err(Reason::WrongAudience);
    }
    let expires_at = date(claims, "exp")?.ok_or(Reason::ClaimInvalid)?;
    let issued_at = date(claims, "iat")?.ok_or(Reason::ClaimInvalid)?;
    let starts_at = date(claims, "nbf")?.unwrap_or_default();
    if now >= expires_at {
        return Err(Reason::TokenExpired);
    }
    if starts_at.max(issued_at) > now + LEEWAY {
        return Err(Reason::TokenNotYetValid);
    }
    Ok(Validity {
        expires_at,
        issued_at,
    })
}

/// Whether a token that does not say what it is, is no access token: an ID token
/// (OpenID Connect Core §2, §3.3.2.11), a logout token (Back-Channel Logout §2.4),
/// a security event (RFC 8417), or what Keycloak calls by name.
pub fn is_of_another_kind(claims: &Object) -> bool {
    let own = ["at_hash", "c_hash", "s_hash", "events"];
    let typ = claims.get("typ").and_then(Value::as_str);
    own.iter().any(|name| claims.contains_key(*name))
        || typ.is_some_and(|typ| ["ID", "Logout", "Offline", "Refresh"].contains(&typ))
}

/// Whether claims that say who calls are elsewhere: "distributed" (OpenID Connect
/// Core §5.6.2), as where a user has more groups than fit. What is not known to be
/// none is not taken for none.
fn are_elsewhere(claims: &Object, issuer: &Issuer) -> bool {
    let paths = &issuer.claims;
    let groups = paths.groups.as_deref().unwrap_or("groups");
    let scopes = paths.scopes.as_deref().unwrap_or("scope");
    let others = [paths.user.as_deref(), paths.agent.as_deref()];
    let mut mapped = [groups, scopes]
        .into_iter()
        .chain(others.into_iter().flatten());
    let names = claims.get("_claim_names");
    let is_named = |path: &str| {
        let first = path.split('.').next().unwrap_or(path);
        names.is_some_and(|names| names.get(path).or_else(|| names.get(first)).is_some())
    };
    mapped.any(is_named) || groups == "groups" && claims.contains_key("hasgroups")
}

/// Who calls, by the claims of an issuer.
///
/// # Errors
/// A claim that is missing or is not what it should be.
pub fn caller(token: &Token<'_>, issuer: &Issuer, validity: Validity) -> Result<Caller, Reason> {
    let claims = &token.claims;
    let subject = name(claims.get("sub"))?.ok_or(Reason::ClaimInvalid)?;
    if token.jws.short_type().as_deref() == Some("at+jwt") {
        // RFC 9068 §2.2: who claims the profile has these.
        for required in ["client_id", "jti"] {
            name(claims.get(required))?.ok_or(Reason::ClaimInvalid)?;
        }
    }
    if issuer.service_accounts {
        return account(claims, issuer, subject, validity);
    }
    if are_elsewhere(claims, issuer) {
        return Err(Reason::ClaimInvalid);
    }
    // RFC 8693 §4.1: an actor may be of another issuer, who is not believed here.
    if let Some(act) = claims.get("act") {
        let act = act.as_object().ok_or(Reason::ClaimInvalid)?;
        if act.get("iss").is_some_and(|iss| *iss != *issuer.issuer) {
            return Err(Reason::ClaimInvalid);
        }
    }
    let paths = &issuer.claims;
    let at = |path: &Option<String>, default| find(claims, path.as_deref().unwrap_or(default));
    let user = match &paths.user {
        None => subject,
        Some(path) => name(find(claims, path))?.ok_or(Reason::ClaimInvalid)?,
    };
    let agent = match &paths.agent {
        Some(path) => name(find(claims, path))?,
        // RFC 8693 §4.1: who acts for the user; else to whom the token was given.
        None => {
            let acting = find(claims, "act.sub");
            name(
                acting
                    .or_else(|| claims.get("azp"))
                    .or_else(|| claims.get("client_id")),
            )?
        }
    };
    Ok(Caller {
        issuer: Some(issuer.name.clone()),
        user: Some(user),
        agent,
        groups: names(at(&paths.groups, "groups"), false)?,
        scopes: names(at(&paths.scopes, "scope"), true)?,
        service_account: None,
        pod: None,
        expires_at: Some(validity.expires_at),
    })
}

/// A service account of this cluster: user and agent in one.
fn account(
    claims: &Object,
    issuer: &Issuer,
    subject: String,
    validity: Validity,
) -> Result<Caller, Reason> {
    let account = service_account(&subject).ok_or(Reason::ClaimInvalid)?;
    let pod = find_in(claims, &["kubernetes.io", "pod", "name"]);
    Ok(Caller {
        issuer: Some(issuer.name.clone()),
        agent: Some(subject.clone()),
        user: Some(subject),
        groups: Vec::new(),
        scopes: Vec::new(),
        service_account: Some(account),
        pod: name(pod)?,
        expires_at: Some(validity.expires_at),
    })
}

/// `namespace/name` of `system:serviceaccount:namespace:name`.
pub fn service_account(subject: &str) -> Option<String> {
    let (namespace, name) = subject
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    let good = |part: &str| !part.is_empty() && !part.contains([':', '/', '*']);
    (good(namespace) && good(name)).then(|| format!("{namespace}/{name}"))
}

/// The value at a path of claims: dots go into objects, but a name with a `/` or
/// `:` is one of a namespace of names (RFC 7519 §4.2) and taken whole.
fn find<'a>(claims: &'a Object, path: &str) -> Option<&'a Value> {
    match path.contains(['/', ':']) {
        true => claims.get(path),
        false => find_in(claims, &path.split('.').collect::<Vec<_>>()),
    }
}

/// The value at a path of names.
pub fn find_in<'a>(claims: &'a Object, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = claims.get(*first)?;
    rest.iter().try_fold(value, |value, name| value.get(name))
}

/// A text that is a name.
fn name(value: Option<&Value>) -> Result<Option<String>, Reason> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) if is_name(text) => Ok(Some(text.clone())),
        Some(_) => Err(Reason::ClaimInvalid),
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME
}

/// A list of names; where `split`, also a text with blanks between them.
fn names(value: Option<&Value>, split: bool) -> Result<Vec<String>, Reason> {
    let list: Vec<String> = match value {
        None => Vec::new(),
        Some(Value::String(text)) if split => text
            .split(' ')
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect(),
        Some(Value::Array(list)) => {
            let text = |item: &Value| item.as_str().map(str::to_owned);
            let list: Option<_> = list.iter().map(text).collect();
            list.ok_or(Reason::ClaimInvalid)?
        }
        Some(_) => return Err(Reason::ClaimInvalid),
    };
    match list.len() <= MAX_NAMES && list.iter().all(|text| is_name(text)) {
        true => Ok(list),
        false => Err(Reason::ClaimInvalid),
    }
}

/// A NumericDate (RFC 7519 §2) as whole seconds.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // The range is checked.
fn date(claims: &Object, name: &str) -> Result<Option<u64>, Reason> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let date = value.as_f64().ok_or(Reason::ClaimInvalid)?;
    let is_date = date.is_finite() && (0.0..1e12).contains(&date);
    is_date
        .then_some(Some(date as u64))
        .ok_or(Reason::ClaimInvalid)
}
