//! The server as a protected resource (RFC 9728): its metadata, and the
//! challenges that lead to them (RFC 6750 §3, MCP authorization).

use std::collections::BTreeSet;

use http::{HeaderValue, Method, Response, StatusCode, Uri, header};
use policy::{
    Bundle,
    bundle::{Effect, Issuer, Subject},
};
use serde_json::json;

use crate::body::{self, Body};

/// Where the metadata are (RFC 9728 §3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";
/// The most bytes of scopes in a challenge: more than that, and the metadata are
/// where to look.
const MAX_SCOPES: usize = 4096;

/// What callers without a token are told.
pub struct Resource {
    /// Path of the endpoint, without a slash at its end.
    path: String,
    /// URL of the metadata.
    url: String,
    metadata: String,
    scopes: Vec<String>,
}

impl Resource {
    /// Of a server that asks for tokens.
    pub fn new(bundle: &Bundle, url: &Uri) -> Option<Self> {
        if bundle.authentication.anonymous {
            return None;
        }
        let (scheme, authority) = (url.scheme_str()?, url.authority()?);
        let path = url.path().trim_end_matches('/').to_owned();
        let scopes = scopes(bundle);
        let mut metadata = json!({
            "resource": bundle.url,
            "bearer_methods_supported": ["header"],
            "resource_name": bundle.server.name,
        });
        let servers = authorization_servers(bundle);
        if !servers.is_empty() {
            metadata["authorization_servers"] = json!(servers);
        }
        if !scopes.is_empty() {
            metadata["scopes_supported"] = json!(scopes);
        }
        Some(Self {
            url: format!("{scheme}://{authority}{WELL_KNOWN}{path}"),
            path,
            metadata: metadata.to_string(),
            scopes,
        })
    }

    /// Whether a path is one of the metadata: with the endpoint's path, and at
    /// the root. A slash at the end is what clients make of a URL with one.
    pub fn is_metadata(&self, path: &str) -> bool {
        path.strip_prefix(WELL_KNOWN).is_some_and(|rest| {
            let rest = rest.strip_suffix('/').unwrap_or(rest);
            rest.is_empty() || rest == self.path
        })
    }

    /// The metadata. They are for everybody, also for a page in a browser.
    pub fn metadata(&self, method: &Method) -> Response<Body> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut answer = Response::new(body::full("use GET\n"));
            *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            let headers = answer.headers_mut();
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            headers.insert(header::CONTENT_TYPE, text);
            return answer;
        }
        let mut answer = Response::new(body::full(self.metadata.clone()));
        let headers = answer.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("max-age=60"),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        );
        answer
    }

    /// The challenge of 401 to a caller without a good token; `fault` is what is
    /// wrong with the one that came.
    pub fn challenge(&self, fault: Option<&str>) -> String {
        let fault =
            fault.map(|fault| format!(r#"error="invalid_token", error_description="{fault}", "#));
        let mut text = format!(
            r#"Bearer {}resource_metadata="{}""#,
            fault.unwrap_or_default(),
            self.url
        );
        let scopes = self.scopes.join(" ");
        if !scopes.is_empty() && scopes.len() <= MAX_SCOPES {
            text.push_str(&format!(r#", scope="{scopes}""#));
        }
        text
    }

    /// The challenge of 403 to a caller whose token lacks scopes: all that the
    /// operation needs, and of those that the token has the ones that mean
    /// something here. A client that asks for exactly these loses nothing
    /// (revision 2025-11-25, "Scope Challenge Handling").
    pub fn step_up(&self, scopes: &[String], had: &[String]) -> String {
        let kept = had.iter().filter(|scope| self.scopes.contains(scope));
        let all: BTreeSet<&str> = scopes.iter().chain(kept).map(String::as_str).collect();
        let all: Vec<&str> = all.into_iter().collect();
        format!(
            r#"Bearer error="insufficient_scope", scope="{}", resource_metadata="{}", error_description="the token lacks scopes that this needs""#,
            all.join(" "),
            self.url
        )
    }
}

/// The issuers, as far as a client can find them by their URL. Clients take the
/// first: one that gives tokens to service accounts alone comes last.
fn authorization_servers(bundle: &Bundle) -> Vec<&str> {
    let is_url = |issuer: &&Issuer| {
        let url = &issuer.issuer;
        url.starts_with("https://") || url.starts_with("http://")
    };
    let issuers = bundle.authentication.issuers.iter().filter(is_url);
    let (last, mut first): (Vec<_>, Vec<_>) = issuers.partition(|issuer| issuer.service_accounts);
    first.extend(last);
    first
        .into_iter()
        .map(|issuer| issuer.issuer.as_str())
        .collect()
}

/// All scopes that some rule asks for to allow something.
fn scopes(bundle: &Bundle) -> Vec<String> {
    let rules = bundle
        .rules
        .iter()
        .filter(|rule| rule.effect == Effect::Allow);
    let subjects = rules.flat_map(|rule| &rule.from);
    let scopes = subjects.flat_map(|subject| match subject {
        Subject::Match(callers) => callers.scopes.as_slice(),
        Subject::Everyone => &[],
    });
    scopes
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::BodyExt;
    use policy::{
        Context, Glob,
        bundle::{Match, Rule},
    };
    use serde_json::Value;

    use super::*;

    fn bundle(url: &str, issuers: Vec<Issuer>) -> Bundle {
        let context = Context {
            default_url: url.to_owned(),
            ..Context::default()
        };
        let mut bundle = policy::deny_all("shop", "orders", &context, "test");
        bundle.authentication.issuers = issuers;
        bundle
    }

    fn issuer(name: &str, url: &str) -> Issuer {
        Issuer::inline(name, url, json!({"keys": []}))
    }

    fn rule(effect: Effect, scopes: &[&str]) -> Rule {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        Rule {
            policy: "p".into(),
            name: "r".into(),
            effect,
            from: vec![Subject::Match(Match {
                scopes,
                ..Match::default()
            })],
            tools: vec![Glob("*".into())],
            prompts: Vec::new(),
            resources: Vec::new(),
        }
    }

    fn resource(bundle: &Bundle) -> Resource {
        Resource::new(bundle, &bundle.url.parse().unwrap()).unwrap()
    }

    async fn json_of(answer: Response<Body>) -> Value {
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn metadata_name_what_a_client_needs() {
        let mut bundle = bundle(
            "https://mcp.example.com/public/mcp",
            vec![
                Issuer::cluster("https://kubernetes.default.svc", json!({"keys": []})),
                issuer("dev", crate::dev::ISSUER),
                issuer("acme", "https://idp.example.com/realms/acme"),
            ],
        );
        bundle.rules = vec![
            rule(Effect::Allow, &["orders:write", "orders:read"]),
            rule(Effect::Allow, &["orders:read"]),
            rule(Effect::Deny, &["never:told"]),
        ];
        let resource = resource(&bundle);
        let answer = resource.metadata(&Method::GET);
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(
            json_of(answer).await,
            json!({
                "resource": "https://mcp.example.com/public/mcp",
                "resource_name": "orders",
                "authorization_servers": ["https://idp.example.com/realms/acme", "https://kubernetes.default.svc"],
                "bearer_methods_supported": ["header"],
                "scopes_supported": ["orders:read", "orders:write"],
            })
        );
        assert_eq!(
            resource.challenge(None),
            r#"Bearer resource_metadata="https://mcp.example.com/.well-known/oauth-protected-resource/public/mcp", scope="orders:read orders:write""#
        );
        assert_eq!(
            resource.challenge(Some("it is odd")),
            r#"Bearer error="invalid_token", error_description="it is odd", resource_metadata="https://mcp.example.com/.well-known/oauth-protected-resource/public/mcp", scope="orders:read orders:write""#
        );
        assert_eq!(
            resource.step_up(
                &["b".into(), "a".into()],
                &["orders:read".into(), "unknown".into(), "a".into()]
            ),
            r#"Bearer error="insufficient_scope", scope="a b orders:read", resource_metadata="https://mcp.example.com/.well-known/oauth-protected-resource/public/mcp", error_description="the token lacks scopes that this needs""#
        );
    }

    #[tokio::test]
    async fn nothing_is_said_where_there_is_nothing_to_say() {
        let mut bundle = bundle(
            "http://127.0.0.1:9440/mcp",
            vec![issuer("dev", crate::dev::ISSUER)],
        );
        let resource = resource(&bundle);
        let metadata = json_of(resource.metadata(&Method::GET)).await;
        assert_eq!(metadata.get("authorization_servers"), None, "{metadata}");
        assert_eq!(metadata.get("scopes_supported"), None, "{metadata}");
        let url = "http://127.0.0.1:9440/.well-known/oauth-protected-resource/mcp";
        assert_eq!(
            resource.challenge(None),
            format!(r#"Bearer resource_metadata="{url}""#)
        );
        bundle.authentication.anonymous = true;
        let url = bundle.url.parse().unwrap();
        assert!(Resource::new(&bundle, &url).is_none());
    }

    #[test]
    fn too_many_scopes_are_left_to_the_metadata() {
        let mut bundle = bundle(
            "https://mcp.example.com/mcp",
            vec![issuer("acme", "https://idp")],
        );
        let long: Vec<String> = (0..500).map(|n| format!("scope-{n:05}")).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        bundle.rules = vec![rule(Effect::Allow, &long)];
        let challenge = resource(&bundle).challenge(None);
        assert!(!challenge.contains("scope="), "{challenge}");
    }

    #[test]
    fn metadata_are_at_the_path_of_the_endpoint_and_at_the_root() {
        for (url, here, elsewhere) in [
            ("https://h/public/mcp", "/public/mcp", "/public"),
            ("https://h/mcp/", "/mcp", "/mc"),
            ("https://h/", "", "/mcp"),
            ("https://h", "", "/mcp"),
        ] {
            let resource = resource(&bundle(url, Vec::new()));
            let is_metadata = |rest: &str| resource.is_metadata(&format!("{WELL_KNOWN}{rest}"));
            assert_eq!(resource.url, format!("https://h{WELL_KNOWN}{here}"));
            for rest in [here, &format!("{here}/"), "", "/"] {
                assert!(is_metadata(rest), "{url} {rest}");
            }
            for rest in [
                elsewhere,
                "x",
                "//",
                &format!("{here}x"),
                &format!("{here}//"),
                "/../mcp",
            ] {
                assert!(!is_metadata(rest), "{url} {rest}");
            }
            assert!(!resource.is_metadata(here));
        }
    }

    #[test]
    fn metadata_are_read_only() {
        let resource = resource(&bundle("https://h/mcp", Vec::new()));
        for method in [Method::GET, Method::HEAD] {
            let answer = resource.metadata(&method);
            assert_eq!(answer.status(), StatusCode::OK, "{method}");
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
            assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let answer = resource.metadata(&method);
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
            // RFC 9110 §15.5.6.
            assert_eq!(answer.headers()[header::ALLOW], "GET, HEAD");
        }
    }
}
