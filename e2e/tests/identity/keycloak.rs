//! Keycloak: its access tokens say `typ: JWT`, its roles are nested, its user
//! names are not `sub`, and the client is `azp`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::laptop::{Running, free_port};
use e2e::tools::Keycloak;
use e2e::wait_for;
use serde_json::{Value, json};

use crate::audit;
use crate::lab::{Config, Guarded, Lab, access_token};

/// On a machine with other things to do, it takes minutes.
const START: Duration = Duration::from_secs(900);

const RULES: &str = "
- name: staff
  effect: Allow
  from: [{groups: [staff]}]
  tools: [echo]
- name: reporter
  effect: Allow
  from: [{agents: [reporter]}]
  tools: [get-sum]
- name: users
  effect: Allow
  from: [{users: [alice], scopes: [profile, address]}]
  tools: [get-tiny-image]
";

struct Realm {
    /// Its URL, which is the issuer.
    url: String,
    _running: Running,
}

impl Realm {
    async fn start(lab: &Lab) -> Result<Self> {
        let realm = lab.checkout.join("e2e/fixtures/identity/realm.json");
        let keycloak = Keycloak::ensure(&realm)?;
        let port = free_port()?;
        let mut serve = keycloak.serve(&lab.folder.join("keycloak"), port)?;
        let running = Running::start(&mut serve)?;
        let url = format!("http://127.0.0.1:{port}/realms/acme");
        let there = wait_for("Keycloak", START, || async {
            let answer = reqwest::get(&url).await?;
            ensure!(answer.status() == 200, "{answer:?}");
            Ok(())
        });
        let said = || running.stdout.all().join("\n");
        there.await.with_context(said)?;
        Ok(Self {
            url,
            _running: running,
        })
    }

    /// What the token endpoint answers.
    async fn grant(&self, form: &str) -> Result<Value> {
        let url = format!("{}/protocol/openid-connect/token", self.url);
        let request = reqwest::Client::new().post(url).body(form.to_owned());
        let request = request.header("Content-Type", "application/x-www-form-urlencoded");
        let answer = request.send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        ensure!(status == 200, "{form}: {body}");
        Ok(body)
    }

    async fn of_user(&self, user: &str, client: &str) -> Result<Value> {
        let form = format!(
            "grant_type=password&client_id={client}&username={user}&password={user}&scope=openid"
        );
        self.grant(&form).await
    }

    fn authentication(&self, types: &str) -> String {
        let url = &self.url;
        format!(
            "audience: orders\nissuers:\n- name: acme\n  issuer: {url}\n  {types}\n  claims: {{user: preferred_username, agent: azp, groups: realm_access.roles}}"
        )
    }
}

/// Who is who, and which of its tokens are no access tokens for this server.
pub async fn users_and_agents() -> Result<()> {
    let lab = Lab::new()?;
    let realm = Realm::start(&lab).await?;
    let mut config = Config::new(&realm.authentication("tokenTypes: [JWT]"), RULES)?;
    let guarded = lab.guarded(&config).await?;
    let alice = realm.of_user("alice", "desk").await?;
    let bob = realm.of_user("bob", "desk").await?;
    let secret = "client_id=reporter&client_secret=reporter";
    let reporter = format!("grant_type=client_credentials&{secret}");
    let reporter = realm.grant(&reporter).await?;
    let callers: [(&Value, &str, &str, &[&str]); 3] = [
        // Scopes alone keep alice from one of them.
        (&alice, "alice", "desk", &["echo", "get-tiny-image"]),
        (&bob, "bob", "desk", &[]),
        (
            &reporter,
            "service-account-reporter",
            "reporter",
            &["echo", "get-sum"],
        ),
    ];
    for (grant, user, agent, shown) in callers {
        let token = access_token(grant)?;
        let tools = guarded.tools(&token).await?;
        ensure!(tools == shown, "{user}: {tools:?}");
        let called = guarded
            .call(&token, "echo", &json!({"message": "hi"}))
            .await?;
        let is_allowed = called.text.as_deref() == Some("Echo: hi");
        ensure!(is_allowed == shown.contains(&"echo"), "{user}: {called:?}");
        let members = [("issuer", "acme"), ("user", user), ("agent", agent)];
        audit::has(&guarded, &members).await?;
    }
    let token = access_token(&alice)?;
    let called = guarded.call(&token, "get-tiny-image", &json!({})).await?;
    let challenge = called.challenge.as_deref().unwrap_or_default();
    ensure!(
        called.status == 403 && challenge.contains(r#"scope="address profile""#),
        "{called:?}"
    );
    let elsewhere = realm.of_user("alice", "elsewhere").await?;
    // All of them have the type of its access tokens, and say otherwise by a claim.
    for (grant, kind, reason) in [
        (&alice, "id_token", "TokenType"),
        (&alice, "refresh_token", "TokenType"),
        // It names no audience at all.
        (&elsewhere, "access_token", "ClaimInvalid"),
        (&elsewhere, "id_token", "TokenType"),
    ] {
        let token = grant[kind].as_str().context(kind)?;
        refused(&guarded, token, reason).await?;
    }
    let status: Value = serde_json::from_str(&guarded.admin("/status").await?)?;
    ensure!(
        status["issuers"] == json!([{"name": "acme", "state": "Available", "message": ""}]),
        "{status}"
    );
    // Only issuers of which it is said send access tokens as any other token.
    config.yaml = config.yaml.replace("      tokenTypes: [JWT]\n", "");
    guarded.configure(&config.yaml)?;
    wait_for("the new configuration", Duration::from_secs(60), || async {
        refused(&guarded, &token, "TokenType").await
    })
    .await
}

async fn refused(guarded: &Guarded, token: &str, reason: &str) -> Result<()> {
    let called = guarded
        .call(token, "echo", &json!({"message": "hi"}))
        .await?;
    ensure!(
        called.status == 401 && called.error["data"]["reason"] == reason,
        "should be {reason}: {called:?}"
    );
    Ok(())
}
