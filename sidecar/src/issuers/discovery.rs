//! Where an issuer says that its keys are: in its metadata (RFC 8414, OpenID
//! Connect Discovery), looked for in the order of the specification (MCP
//! 2025-11-25, authorization server metadata discovery).

use serde_json::Value;

/// Longest URL of a key set, as in the CRD.
const MAX_URL: usize = 2048;
/// What is said of somebody else's metadata, at most, in characters.
const MAX_QUOTE: usize = 256;

/// Where the metadata of an issuer may be: RFC 8414 §3, OpenID Connect Discovery
/// with the path inserted (RFC 8414 §5) and appended.
pub fn metadata_urls(issuer: &str) -> Vec<String> {
    let Some((scheme, rest)) = issuer.split_once("://") else {
        return Vec::new();
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_end_matches('/');
    let base = format!("{scheme}://{authority}");
    let (oauth, oidc) = (
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
    );
    match path {
        "" => vec![format!("{base}{oauth}"), format!("{base}{oidc}")],
        path => vec![
            format!("{base}{oauth}/{path}"),
            format!("{base}{oidc}/{path}"),
            format!("{base}/{path}{oidc}"),
        ],
    }
}

/// `jwks_uri` of metadata of this issuer.
///
/// # Errors
/// They are another's, or do not say.
pub fn jwks_uri(metadata: &Value, issuer: &str) -> Result<String, String> {
    // RFC 8414 §3.3: identical, or it is somebody else's.
    if metadata["issuer"] != issuer {
        let other: String = metadata["issuer"]
            .to_string()
            .chars()
            .take(MAX_QUOTE)
            .collect();
        return Err(format!("its issuer is {other}, not {issuer:?}"));
    }
    match metadata["jwks_uri"].as_str() {
        Some(uri) if uri.len() > MAX_URL => {
            Err(format!("its jwks_uri is longer than {MAX_URL} bytes"))
        }
        Some(uri) => Ok(uri.to_owned()),
        None => Err("no jwks_uri".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_looked_for_in_the_order_of_the_specification() {
        for issuer in ["https://idp.example.com", "https://idp.example.com/"] {
            assert_eq!(
                metadata_urls(issuer),
                [
                    "https://idp.example.com/.well-known/oauth-authorization-server",
                    "https://idp.example.com/.well-known/openid-configuration",
                ]
            );
        }
        for issuer in [
            "https://idp.example.com:8443/realms/acme/",
            "https://idp.example.com:8443/realms/acme",
        ] {
            assert_eq!(
                metadata_urls(issuer),
                [
                    "https://idp.example.com:8443/.well-known/oauth-authorization-server/realms/acme",
                    "https://idp.example.com:8443/.well-known/openid-configuration/realms/acme",
                    "https://idp.example.com:8443/realms/acme/.well-known/openid-configuration",
                ]
            );
        }
        assert_eq!(metadata_urls("toolward-dev"), [""; 0]);
    }

    #[test]
    fn metadata_of_another_issuer_say_nothing() {
        let issuer = "https://idp.example.com/realms/acme";
        let of = |issuer: Value| {
            jwks_uri(
                &json!({"issuer": issuer, "jwks_uri": "https://x"}),
                "https://idp.example.com/realms/acme",
            )
        };
        assert_eq!(of(json!(issuer)).unwrap(), "https://x");
        for other in [
            json!(null),
            json!([issuer]),
            json!({"issuer": issuer}),
            json!(format!("{issuer}/")),
            json!("https://idp.example.com/realms/Acme"),
            json!("https://IDP.example.com/realms/acme"),
            json!("https://idp.example.com:443/realms/acme"),
            json!(""),
            json!("x".repeat(500_000)),
        ] {
            let error = of(other.clone()).unwrap_err();
            assert!(
                error.contains("its issuer is") && error.len() < 1000,
                "{error}"
            );
        }
        for metadata in [
            json!({"issuer": issuer}),
            json!({"issuer": issuer, "jwks_uri": 1}),
            json!({"issuer": issuer, "jwks_uri": format!("https://x/{}", "x".repeat(2048))}),
        ] {
            let error = jwks_uri(&metadata, issuer).unwrap_err();
            assert!(error.contains("jwks_uri"), "{error}");
        }
        assert!(jwks_uri(&json!([]), issuer).is_err());
    }
}
