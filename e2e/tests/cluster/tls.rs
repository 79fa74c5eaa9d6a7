//! TLS on the MCP port, with a Secret such as cert-manager writes it.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use crds::{ConditionType, Reason};
use e2e::mcp::{Endpoint, initialize};
use e2e::statements::{self as promise, Caller};
use e2e::{PATIENCE, release, wait_for};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use reqwest::tls::TlsInfo;
use serde_json::{Value, json};

use crate::suite::{SERVING, Scope, allow, beside, http, not_ready};

const SERVER: &str = "secure";
const SECRET: &str = "secure-tls";

/// Who vouches for the certificates.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Pair {
    pub certificate: String,
    pub key: String,
    der: Vec<u8>,
}

impl Authority {
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ours");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self {
            pem: params.self_signed(&key)?.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    pub fn pair(&self, host: &str) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![host.to_owned()])?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().to_vec(),
        })
    }
}

fn secret(certificate: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET},
        "stringData": {"tls.crt": certificate, "tls.key": key},
    })
}

/// A caller that trusts one authority alone.
struct Trusting {
    caller: Caller,
}

impl Trusting {
    async fn of(scope: &Scope, authority: &Authority, url: &str) -> Result<Self> {
        let server = scope.servers().get(SERVER).await?;
        let status = server.status.context("no status")?;
        ensure!(status.url.as_deref() == Some(url), "{:?}", status.url);
        ensure!(
            status.audience.as_deref() == Some(url),
            "{:?}",
            status.audience
        );
        let endpoint = Endpoint::in_cluster_trusting(&scope.cluster, url, &authority.pem).await?;
        let token = release::token(&scope.cluster, &scope.namespace, "default", url).await?;
        Ok(Self {
            caller: Caller { endpoint, token },
        })
    }

    /// A session with the official client.
    async fn calls(&self) -> Result<()> {
        let mcp = self.caller.connect().await?;
        promise::permitted(&mcp).await?.check()?;
        mcp.cancel().await?;
        Ok(())
    }

    /// The certificate that a new connection sees.
    async fn certificate(&self) -> Result<Vec<u8>> {
        let Caller { endpoint, token } = &self.caller;
        let answer = endpoint.post(Some(token), &[], &initialize()).await?;
        ensure!(answer.status().is_success(), "{answer:?}");
        let info = answer.extensions().get::<TlsInfo>();
        let certificate = info.and_then(TlsInfo::peer_certificate);
        Ok(certificate.context("no certificate was seen")?.to_vec())
    }
}

/// What a restart would change.
pub async fn pods(scope: &Scope) -> Result<String> {
    let fields = "jsonpath={range .items[*]}{.metadata.uid} {.status.initContainerStatuses[*].restartCount} {.status.containerStatuses[*].restartCount};{end}";
    scope.kubectl(&["get", "pods", "-o", fields]).await
}

/// Has the kubelet look at the pods, which it else does within minutes; `count`
/// is another each time.
pub async fn nudge(scope: &Scope, count: &Cell<u32>) -> Result<()> {
    count.set(count.get() + 1);
    let annotation = format!("e2e/looked={}", count.get());
    let args = ["annotate", "pods", "--all", "--overwrite", &annotation];
    scope.kubectl(&args).await.map(drop)
}

#[tokio::test]
async fn a_secret_serves_https_and_is_rotated_without_a_restart() -> Result<()> {
    beside("tls", async |scope: &Scope| {
        let host = format!("{SERVER}.{}.svc", scope.namespace);
        let url = format!("https://{host}/mcp");
        let authority = Authority::new()?;
        let (first, second) = (authority.pair(&host)?, authority.pair(&host)?);
        let mut server = http(SERVER);
        server["spec"]["tls"] = json!({"secretName": SECRET});
        let policy = allow("all", SERVER, &scope.caller_subject(), &["*"]);
        scope.apply(&[server, policy]).await?;
        wait_for("what is missing to be told", PATIENCE, || async {
            let said = scope.server_says(SERVER, not_ready(Reason::Starting));
            let said = said.await?.message;
            let part = format!("cannot start without Secret {SECRET} (tls.crt, tls.key)");
            ensure!(said.contains(&part), "{said}");
            Ok(())
        })
        .await?;
        scope
            .apply(&[secret(&first.certificate, &first.key)])
            .await?;
        scope.serving(SERVER).await?;
        let caller = Trusting::of(scope, &authority, &url).await?;
        caller.calls().await?;
        ensure!(caller.certificate().await? == first.der);
        only_for_who_trusts_it(scope, &caller, &url, &host).await?;
        rotates(scope, &caller, &second).await?;
        a_wrong_key_is_told(scope, &caller, &second, &first.key).await
    })
    .await
}

async fn only_for_who_trusts_it(
    scope: &Scope,
    caller: &Trusting,
    url: &str,
    host: &str,
) -> Result<()> {
    let token = Some(caller.caller.token.as_str());
    let plain = format!("http://{host}:443/mcp");
    for url in [url, &plain] {
        let endpoint = Endpoint::in_cluster(&scope.cluster, url).await?;
        let answer = endpoint.post(token, &[], &initialize()).await;
        ensure!(answer.is_err(), "{url}: {answer:?}");
    }
    // In the server's container there is neither certificate nor key.
    let look = "if (require('node:fs').existsSync('/etc/toolward')) throw new Error('it is there')";
    scope.in_server(SERVER, look).await
}

async fn rotates(scope: &Scope, caller: &Trusting, pair: &Pair) -> Result<()> {
    let (before, count) = (pods(scope).await?, Cell::new(0));
    let mcp = caller.caller.connect().await?;
    scope.apply(&[secret(&pair.certificate, &pair.key)]).await?;
    wait_for("the new certificate", PATIENCE, || async {
        nudge(scope, &count).await?;
        ensure!(caller.certificate().await? == pair.der, "the old one");
        Ok(())
    })
    .await?;
    // The session goes on.
    promise::permitted(&mcp).await?.check()?;
    mcp.cancel().await?;
    caller.calls().await?;
    let after = pods(scope).await?;
    ensure!(before == after, "restarted: {before:?}, then {after:?}");
    Ok(())
}

async fn a_wrong_key_is_told(
    scope: &Scope,
    caller: &Trusting,
    in_use: &Pair,
    other_key: &str,
) -> Result<()> {
    let count = Cell::new(1_000_000);
    scope
        .apply(&[secret(&in_use.certificate, other_key)])
        .await?;
    wait_for("the wrong key to be told", PATIENCE, || async {
        nudge(scope, &count).await?;
        let server = scope.servers().get(SERVER).await?;
        let conditions = server.status.context("no status")?.conditions;
        let ready = conditions
            .iter()
            .find(|condition| condition.type_ == ConditionType::Ready)
            .context("no condition Ready")?;
        let part = "(the one before it stays in use): tls.key is not the key of";
        ensure!(ready.message.contains(part), "{}", ready.message);
        ensure!((ready.type_, ready.status, ready.reason) == SERVING);
        Ok(())
    })
    .await?;
    ensure!(caller.certificate().await? == in_use.der);
    caller.calls().await
}
