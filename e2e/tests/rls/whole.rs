//! All parts as they are: sidecars that make their keys and sign, the example's
//! server behind each, and the database that verifies. Nothing of it is played.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::laptop::{self, Running, free_port};
use e2e::mcp::{Endpoint, Mcp};
use e2e::statements::Caller;
use e2e::{checkout, sh, wait_for};
use serde_json::{Value, json};

use crate::kit::{Lab, URL};
use crate::server::{PATIENCE, Server, items, text};

/// A server of the example's URL, whose callers may do everything.
const CONFIG: &str = "
apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {name: orders}
spec:
  url: @url
  identity: {}
  deployment: {image: orders, command: [orders]}
  transport: @transport
---
apiVersion: toolward.dev/v1alpha1
kind: McpToolPolicy
metadata: {name: orders}
spec:
  targetRefs: [{name: orders}]
  rules: [{name: all, effect: Allow, from: [{users: [alice, bob]}], tools: ['*']}]
";

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let name = format!("toolward-rls-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        sh::remove_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = sh::remove_dir(&self.0); // It is the system's then.
    }
}

/// The sidecar of one user, with a key of its own.
struct Sidecar {
    _running: Running,
    caller: Caller,
    key: Value,
}

impl Sidecar {
    async fn start(
        program: &Path,
        folder: &Path,
        transport: &str,
        user: &str,
        target: &[String],
    ) -> Result<Self> {
        let folder = folder.join(format!("{}-{user}", sh::sha256(transport)));
        let config = folder.join("orders.yaml");
        let filled = CONFIG.replace("@url", URL).replace("@transport", transport);
        sh::write(&config, filled)?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let keys = folder.display().to_string();
        let own = ["--dev-token", user, "--identity-keys", keys.as_str()];
        let target = target.iter().map(String::as_str);
        let arguments: Vec<_> = own.into_iter().chain(target).collect();
        let mut run = laptop::run_on(program, &config, &listen, &arguments);
        let mut running = Running::start(&mut run)?;
        let mut caller = laptop::caller(&mut running)?;
        // Its own URL is one of a cluster.
        caller.endpoint = Endpoint::direct(format!("http://{listen}/mcp"));
        let file = folder.join("jwks.json");
        let set = wait_for("the public key", PATIENCE, || async {
            let set = sh::read(&file)?;
            Ok(serde_json::from_slice::<Value>(&set)?)
        })
        .await?;
        let key = set["keys"].get(0).context("no key")?.clone();
        Ok(Self {
            _running: running,
            caller,
            key,
        })
    }

    async fn connect(&self) -> Result<Mcp> {
        self.caller.connect().await
    }
}

async fn orders(mcp: &Mcp) -> Result<String> {
    text(mcp, "list_orders", json!({})).await
}

pub async fn two_users() -> Result<()> {
    let lab = Lab::new().await?;
    let checkout = checkout::root()?;
    let (server, folder) = (Server::of(&lab)?, Folder::new()?);
    let program = laptop::sidecar(&checkout)?;
    let port = free_port()?.to_string();
    let _http = Running::start(&mut server.command(&["http", "--port", &port]))?;
    let upstream = format!("http://127.0.0.1:{port}/mcp");
    wait_for("the server", PATIENCE, || async {
        reqwest::get(&upstream).await.map(drop).context("not yet")
    })
    .await?;
    let over_http = ["--upstream".to_owned(), upstream.clone()];
    let over_stdio = server.process();
    for (transport, target) in [
        ("{type: StreamableHttp}", &over_http[..]),
        // Python with its packages takes its time.
        (
            "{type: Stdio, stdio: {startupTimeout: 5m}}",
            &over_stdio[..],
        ),
    ] {
        lab.superuser("DELETE FROM shop.orders")?;
        let start = async |user: &str| {
            Sidecar::start(&program, &folder.0, transport, user, target)
                .await
                .with_context(|| format!("{transport}, {user}"))
        };
        let (alice, bob) = (start("alice").await?, start("bob").await?);
        // As long as the database does not know them, they are nobody.
        lab.set_keys(&[&alice.key])?;
        let (its, others) = (alice.connect().await?, bob.connect().await?);
        let said = orders(&others).await?;
        ensure!(
            said.contains("no sidecar of this server has the key"),
            "{transport}: {said}"
        );
        lab.set_keys(&[&alice.key, &bob.key])?;
        let tea = json!({"item": "tea", "quantity": 2});
        text(&its, "place_order", tea).await?;
        let milk = json!({"item": "milk", "quantity": 3});
        text(&others, "place_order", milk).await?;
        let seen = (orders(&its).await?, orders(&others).await?);
        ensure!(
            items(&seen.0) == ["tea"] && items(&seen.1) == ["milk"],
            "{transport}: {seen:?}"
        );
        let owners = lab.superuser(
            "SELECT owner_iss || ' ' || owner_sub || ' ' || item FROM shop.orders ORDER BY item",
        )?;
        ensure!(
            owners == ["toolward-dev bob milk", "toolward-dev alice tea"],
            "{transport}: {owners:?}"
        );
        its.cancel().await?;
        others.cancel().await?;
    }
    Ok(())
}
