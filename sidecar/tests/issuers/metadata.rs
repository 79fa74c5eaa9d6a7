//! What a client without a good token is told (RFC 9728, RFC 6750, MCP
//! authorization).

use serde_json::{Value, json};

use crate::{
    common::{Reply, Sidecar},
    idp::{Idp, Key, claims},
    world::{PASSED, World, bundle, refused, verdict},
};

const AT_ROOT: &str = "/.well-known/oauth-protected-resource";
const INSERTED: &str = "/.well-known/oauth-protected-resource/mcp";
const URL: &str = "http://orders.shop.svc/.well-known/oauth-protected-resource/mcp";

fn rules() -> Value {
    json!([
        {"name": "read", "effect": "Allow", "from": [{"groups": ["staff"], "scopes": ["orders:read"]}], "tools": ["get_*"]},
        {"name": "write", "effect": "Allow", "from": [{"groups": ["staff"], "scopes": ["orders:write", "orders:read"]}], "tools": ["delete_*"]},
        {"name": "never", "effect": "Deny", "from": [{"scopes": ["tainted"]}], "tools": ["*"]},
        {"name": "admins", "effect": "Allow", "from": [{"groups": ["admins"]}], "tools": ["drop_*"]},
    ])
}

async fn scoped() -> (World, Idp, Key) {
    let key = Key::new("k");
    let idp = Idp::start(&key).await;
    let issuers = vec![idp.issuer("idp")];
    let world = World::start(&[], |dev| bundle(dev, rules(), issuers)).await;
    (world, idp, key)
}

fn challenge(reply: &Reply) -> &str {
    let mut values = reply.headers.get_all("www-authenticate").iter();
    let value = values
        .next()
        .unwrap_or_else(|| panic!("no challenge: {reply:?}"));
    assert!(values.next().is_none());
    value.to_str().unwrap()
}

#[tokio::test]
async fn metadata_are_where_clients_look() {
    let (world, idp, _) = scoped().await;
    let wanted = json!({
        "resource": "http://orders.shop.svc/mcp",
        "resource_name": "orders",
        "authorization_servers": [idp.url],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["orders:read", "orders:write"],
    });
    for path in [
        INSERTED,
        AT_ROOT,
        "/.well-known/oauth-protected-resource/mcp?x=1",
    ] {
        let reply = world.ask("GET", path).await;
        assert_eq!(
            (reply.status, reply.json()),
            (200, wanted.clone()),
            "{path}"
        );
        assert_eq!(reply.headers["content-type"], "application/json");
        assert_eq!(reply.headers["access-control-allow-origin"], "*");
        let head = world.ask("HEAD", path).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        for name in ["content-type", "content-length", "cache-control"] {
            assert_eq!(head.headers.get(name), reply.headers.get(name), "{name}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let reply = world.ask(method, path).await;
            assert_eq!(reply.status, 405, "{method} {path}");
            assert_eq!(reply.headers["allow"], "GET, HEAD");
        }
    }
    for path in [
        "/.well-known/oauth-protected-resource/other",
        "/.well-known/oauth-protected-resource/mcp/x",
        "/.well-known/oauth-protected-resourcex",
        "/.well-known/oauth-protected-resource%2fmcp",
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
        "/mcp/.well-known/oauth-protected-resource",
        "/x/../.well-known/oauth-protected-resource",
    ] {
        assert_eq!(world.ask("GET", path).await.status, 404, "{path}");
    }
    assert_eq!(
        world.script.got.lock().unwrap().len(),
        0,
        "the server was asked"
    );
}

#[tokio::test]
async fn metadata_are_for_pages_too_but_under_our_name_only() {
    let (world, ..) = scoped().await;
    let ask = async |name: &str, value: &str| {
        let uri = format!("http://{}{INSERTED}", world.sidecar.mcp);
        let request = http::Request::get(uri).header(name, value);
        world
            .send(request.body(http_body_util::Full::default()).unwrap())
            .await
    };
    assert_eq!(ask("origin", "https://page.example.com").await.status, 200);
    assert_eq!(ask("host", "orders.shop.svc").await.status, 200);
    let reply = ask("host", "evil.example").await;
    assert_eq!(verdict(&reply), refused(403, "HostNotAllowed"));
}

#[tokio::test]
async fn an_anonymous_server_has_none() {
    let world = World::start(&[], |dev| {
        let mut bundle = bundle(dev, rules(), Vec::new());
        bundle.authentication.anonymous = true;
        bundle
    })
    .await;
    for path in [INSERTED, AT_ROOT] {
        for method in ["GET", "HEAD", "POST"] {
            assert_eq!(world.ask(method, path).await.status, 404, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_challenge_leads_to_them() {
    let (world, idp, key) = scoped().await;
    let scopes = r#"scope="orders:read orders:write""#;
    for method in ["GET", "POST", "DELETE"] {
        let reply = world.ask(method, "/mcp").await;
        assert_eq!(verdict(&reply), refused(401, "TokenMissing"), "{method}");
        let wanted = format!(r#"Bearer resource_metadata="{URL}", {scopes}"#);
        assert_eq!(challenge(&reply), wanted);
    }
    let mut expired = claims(&idp.url);
    expired["exp"] = json!(1);
    let mut elsewhere = claims(&idp.url);
    elsewhere["aud"] = json!("http://other.shop.svc/mcp");
    for (token, reason, said) in [
        (
            "opaque".to_owned(),
            "TokenOpaque",
            "the token is opaque; this server needs a JSON Web Token",
        ),
        (key.sign(&expired), "TokenExpired", "the token has expired"),
        (
            key.sign(&elsewhere),
            "WrongAudience",
            "the token was issued for another audience",
        ),
    ] {
        let reply = world.call(&token).await;
        assert_eq!(verdict(&reply), refused(401, reason));
        let wanted = format!(
            r#"Bearer error="invalid_token", error_description="{said}", resource_metadata="{URL}", {scopes}"#
        );
        assert_eq!(challenge(&reply), wanted);
    }
    // No token in the query, however good.
    let path = format!("/mcp?access_token={}", key.token(&idp.url));
    let reply = world.ask("POST", &path).await;
    assert_eq!(verdict(&reply), refused(401, "TokenMissing"));
}

#[tokio::test]
async fn who_lacks_scopes_alone_is_told_all_that_are_needed() {
    let (world, idp, key) = scoped().await;
    let token = |scope: &str, group: &str| {
        let mut claims = claims(&idp.url);
        claims["scope"] = json!(scope);
        claims["groups"] = json!([group]);
        key.sign(&claims)
    };
    for (scope, tool, needed) in [
        ("", "get_order", "orders:read"),
        // What the token has is kept, where it means something here.
        (
            "other orders:write",
            "get_order",
            "orders:read orders:write",
        ),
        ("", "delete_order", "orders:read orders:write"),
        ("orders:read", "delete_order", "orders:read orders:write"),
    ] {
        let reply = world.call_tool(&token(scope, "staff"), tool).await;
        assert_eq!(
            verdict(&reply),
            refused(403, "InsufficientScope"),
            "{scope:?}, {tool}"
        );
        let wanted = format!(
            r#"Bearer error="insufficient_scope", scope="{needed}", resource_metadata="{URL}", error_description="the token lacks scopes that this needs""#
        );
        assert_eq!(challenge(&reply), wanted);
        assert_eq!(reply.json()["id"], 7);
        let record = world.sidecar.audited();
        assert_eq!(
            (&record["decision"], &record["reason"]),
            (&json!("Deny"), &json!("InsufficientScope"))
        );
    }
    assert_eq!(
        world.script.got.lock().unwrap().len(),
        0,
        "the server was asked"
    );
    for (scope, tool) in [
        ("orders:read", "get_order"),
        ("orders:read orders:write", "get_order"),
        ("orders:read orders:write", "delete_order"),
    ] {
        let reply = world.call_tool(&token(scope, "staff"), tool).await;
        assert_eq!(verdict(&reply), PASSED, "{scope:?}, {tool}");
    }
    // No scope would help: as if there were no such tool.
    for (scope, group, tool) in [
        ("orders:read orders:write", "guests", "get_order"),
        ("tainted", "staff", "get_order"),
        ("", "staff", "drop_all"),
    ] {
        let reply = world.call_tool(&token(scope, group), tool).await;
        assert_eq!(reply.status, 200);
        let message = format!("Unknown tool: {tool}");
        assert_eq!(
            reply.json()["error"],
            json!({"code": -32602, "message": message})
        );
        assert!(!reply.headers.contains_key("www-authenticate"));
    }
    let shown = listed(&world.sidecar, &token("", "staff")).await;
    assert_eq!(
        shown,
        ["get_order", "delete_order"],
        "what further scopes open"
    );
    let shown = listed(&world.sidecar, &token("", "guests")).await;
    assert_eq!(shown, [""; 0]);
}

async fn listed(sidecar: &Sidecar, token: &str) -> Vec<String> {
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let reply = sidecar.post(token, &[], list.to_string()).await.json();
    let tools = reply["result"]["tools"].as_array().unwrap().iter();
    tools
        .map(|tool| tool["name"].as_str().unwrap().to_owned())
        .collect()
}
