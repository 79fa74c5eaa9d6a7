//! `e2e demo`: from nothing to a guarded MCP server, with every command shown.

use std::env;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::checkout;
use crate::diagnose;
use crate::harness::Cluster;
use crate::images::Image;
use crate::mcp::{Endpoint, Mcp};
use crate::release::{self, CHART, install_args, token};
use crate::statements::{self as promise, Caller, FORBIDDEN};
use crate::transcript::{Transcript, line};
use crate::wait::{PATIENT, wait_for};

/// The examples, in the order in which they are applied.
pub const EXAMPLES: [&str; 3] = [
    "examples/namespace.yaml",
    "examples/everything-stdio.yaml",
    "examples/everything-http.yaml",
];
/// Namespace of the example servers.
pub const NAMESPACE: &str = "demo";
/// The example servers, which differ by their transport. Their policies have
/// the same names.
pub const SERVERS: [&str; 2] = ["everything-stdio", "everything-http"];
/// Namespace and name of the service account that calls.
pub const CALLER: (&str, &str) = ("agents", "reporter");

/// Until the kubelet has a line that a container wrote.
const RECORDED: Duration = Duration::from_secs(30);

/// What the demonstration adds to a policy: JSON patch.
pub const NO_SUMS: &str = r#"[{"op": "add", "path": "/spec/rules/-", "value": {"name": "no-sums", "effect": "Deny", "from": [{"everyone": true}], "tools": ["get-sum"]}}]"#;

/// Sets up all that is needed and shows each promise. Can be run again.
pub async fn run() -> Result<()> {
    // So that the commands can be shown as a user types them.
    env::set_current_dir(checkout::root()?)?;
    let mut out = Transcript::new();
    let cluster = set_up(&mut out).await?;
    for server in SERVERS {
        show(&mut out, &cluster, server).await?;
    }
    farewell(&mut out, &cluster);
    Ok(())
}

async fn set_up(out: &mut Transcript) -> Result<Cluster> {
    out.title("A Kubernetes node in namespaces of its own");
    out.command("cargo run --release -p e2e -- up");
    let cluster = Cluster::ensure().await?;
    out.command(&format!(
        "export KUBECONFIG={}",
        cluster.kubeconfig_path().display()
    ));
    let nodes = out.kubectl(&cluster, &["get", "nodes"]).await?;
    out.check("the node is ready", has(&nodes, " Ready "))?;

    out.title("Images of the operator, the sidecar and an MCP server");
    out.command("cargo run --release -p e2e -- images");
    cluster.load_images(&Image::ALL).await?;
    out.result(&Image::ALL.map(Image::name).join("\n"));

    out.title("Toolward, from its Helm chart");
    out.helm(&cluster, &install_args(CHART, &[])).await?;
    release::admits(&cluster).await?;
    let pods = ["get", "pods", "-n", release::NAMESPACE];
    let pods = out.kubectl(&cluster, &pods).await?;
    out.check("the operator runs", has(&pods, "1/1"))?;

    out.title("Two MCP servers, each with a policy");
    apply_examples(out, &cluster).await?;
    Ok(cluster)
}

async fn apply_examples(out: &mut Transcript, cluster: &Cluster) -> Result<()> {
    let mut apply = vec!["apply"];
    for file in EXAMPLES {
        apply.extend(["-f", file]);
    }
    out.kubectl(cluster, &apply).await?;
    for condition in ["Programmed", "Ready"] {
        let wait = format!("--for=condition={condition}");
        let args = ["wait", "mcps", "--all", "-n", NAMESPACE, &wait, PATIENT];
        if let Err(error) = out.kubectl(cluster, &args).await {
            let state = diagnose::namespace(cluster, NAMESPACE).await;
            return Err(error).context(state);
        }
    }
    out.kubectl(cluster, &["get", "mcps,mtp", "-n", NAMESPACE])
        .await?;
    out.check(
        "both servers are ready, with their tools and their URL",
        Ok(()),
    )
}

fn has(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "no {part:?} in:\n{text}");
    Ok(())
}

/// All promises for one server.
async fn show(out: &mut Transcript, cluster: &Cluster, server: &str) -> Result<()> {
    let (namespace, account) = CALLER;
    out.title(&format!("{server}: an agent with a token for it"));
    let status = |field: &str| format!("jsonpath={{.status.{field}}}");
    let get = ["get", "mcps", server, "-n", NAMESPACE, "-o"];
    let url = out
        .kubectl(cluster, &[&get[..], &[&status("url")]].concat())
        .await?;
    let audience = out
        .kubectl(cluster, &[&get[..], &[&status("audience")]].concat())
        .await?;
    out.command(&format!(
        "TOKEN=$(kubectl create token {account} -n {namespace} --audience={audience})"
    ));
    let caller = Caller {
        endpoint: Endpoint::in_cluster(cluster, &url).await?,
        token: token(cluster, namespace, account, &audience).await?,
    };
    let mcp = caller.connect().await?;
    out.check(
        "the official MCP client for Rust, rmcp, connects with it",
        Ok(()),
    )?;

    show_decisions(out, &mcp).await?;
    show_audit(out, cluster, server).await?;
    show_refusals(out, cluster, &caller.endpoint, &mcp).await?;
    show_edit(out, cluster, server, &mcp).await?;
    mcp.cancel().await.context("ending the session")?;
    Ok(())
}

async fn show_decisions(out: &mut Transcript, mcp: &Mcp) -> Result<()> {
    out.command("client: tools/list");
    let listing = promise::listing(mcp).await?;
    out.result(&listing.tools.join(", "));
    out.check("the list has only the permitted tools", listing.check())?;

    out.command("client: tools/call get-sum {a: 2, b: 40}");
    let permitted = promise::permitted(mcp).await?;
    out.result(&permitted.text);
    out.check(
        "a permitted call is answered by the server",
        permitted.check(),
    )?;

    out.command(&format!(
        "client: tools/call {FORBIDDEN}, and a tool that does not exist"
    ));
    let forbidden = promise::forbidden(mcp).await?;
    for error in [&forbidden.forbidden, &forbidden.unknown] {
        out.result(&format!("error {}: {}", error.code, error.message));
    }
    out.check(
        "a forbidden tool cannot be told from one that does not exist",
        forbidden.check(),
    )
}

/// The line of the audit log about the forbidden call.
async fn show_audit(out: &mut Transcript, cluster: &Cluster, server: &str) -> Result<()> {
    let deployment = format!("deploy/{server}");
    let args = [
        "logs",
        "-n",
        NAMESPACE,
        &deployment,
        "-c",
        "toolward-sidecar",
    ];
    out.command(&format!(
        "{} | grep {FORBIDDEN} | tail -n 1",
        line("kubectl", &args)
    ));
    let record = wait_for("the audit record", RECORDED, || async {
        let log = cluster.kubectl(&args).await?;
        let record = log.lines().rfind(|line| line.contains(FORBIDDEN));
        record
            .map(str::to_owned)
            .context("the audit log says nothing of the forbidden call")
    })
    .await?;
    out.result(&record);
    let (namespace, account) = CALLER;
    let user = format!("system:serviceaccount:{namespace}:{account}");
    let whole = has(&record, &user).and(has(&record, r#""rule":"nobody-reads-env""#));
    out.check("the audit log has who, what and by which rule", whole)
}

async fn show_refusals(
    out: &mut Transcript,
    cluster: &Cluster,
    endpoint: &Endpoint,
    mcp: &Mcp,
) -> Result<()> {
    let (namespace, account) = CALLER;
    let audience = "http://somebody-else.demo.svc/mcp";
    out.command(&format!(
        "OTHER=$(kubectl create token {account} -n {namespace} --audience={audience})"
    ));
    let other = token(cluster, namespace, account, audience).await?;
    let refused = promise::unauthorized(endpoint, &other).await?;
    out.result(&format!(
        "HTTP {}, WWW-Authenticate: {}",
        refused.status, refused.challenge
    ));
    out.check("a token for another audience gets 401", refused.check())?;

    out.command("client: tools/call echo, again and again");
    let burst = promise::burst(mcp).await?;
    out.result(&format!(
        "{} calls answered, then HTTP 429 with Retry-After: {}; after {} s served again",
        burst.answered, burst.retry_after, burst.retry_after
    ));
    out.check(
        "a burst gets 429 and is told when to come back",
        burst.check(),
    )
}

async fn show_edit(out: &mut Transcript, cluster: &Cluster, server: &str, mcp: &Mcp) -> Result<()> {
    let patch = [
        "patch",
        "mtp",
        server,
        "-n",
        NAMESPACE,
        "--type=json",
        "-p",
        NO_SUMS,
    ];
    let denied = promise::change(mcp, "get-sum", false, out.kubectl(cluster, &patch)).await?;
    out.result(&format!(
        "get-sum is gone from the agent's list after {:.2} s",
        denied.took.as_secs_f32()
    ));
    out.check(
        "a policy edited with kubectl is in force within 2 seconds",
        denied.check(),
    )?;

    let file = format!("examples/{server}.yaml");
    let apply = ["apply", "-f", &file];
    let allowed = promise::change(mcp, "get-sum", true, out.kubectl(cluster, &apply)).await?;
    out.result(&format!(
        "get-sum is back after {:.2} s",
        allowed.took.as_secs_f32()
    ));
    out.check("and so is the way back", allowed.check())
}

fn farewell(out: &mut Transcript, cluster: &Cluster) {
    let (kept, took) = out.summary();
    let programs = cluster.tools().kubernetes.display();
    let helm = cluster
        .tools()
        .helm
        .parent()
        .unwrap_or(Path::new(""))
        .display();
    out.title("What to try next");
    out.result(&format!(
        "All {kept} checks passed in {} s; the node stays up.",
        took.as_secs()
    ));
    println!();
    for (command, what) in [
        (
            format!(
                "export KUBECONFIG={} PATH={programs}:{helm}:$PATH",
                cluster.kubeconfig_path().display()
            ),
            "",
        ),
        (
            format!("kubectl get mcps -n {NAMESPACE} -o wide"),
            "ready, or why not",
        ),
        (
            format!("kubectl logs -n {NAMESPACE} deploy/everything-stdio -c toolward-sidecar"),
            "who called what: the audit log",
        ),
        (
            format!("kubectl edit mtp everything-stdio -n {NAMESPACE}"),
            "change a policy; try an invalid one",
        ),
        (
            format!("kubectl describe mcps everything-http -n {NAMESPACE}"),
            "tools, bundle, conditions, events",
        ),
        ("make demo".into(), "all of this again, in seconds"),
        (
            "make demo-down".into(),
            "stop the node; nothing stays but the cache",
        ),
    ] {
        if !what.is_empty() {
            println!("  # {what}");
        }
        out.command(&command);
    }
}
