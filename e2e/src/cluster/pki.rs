//! Certificates, keys and kubeconfigs of one cluster; made anew at each start.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType,
};

use super::plan::Plan;
use super::state::State;
use crate::sh;

/// A certificate authority that can sign.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Writes everything below `pki/` and the kubeconfigs of all parts.
pub fn write(state: &State, plan: Plan, node_name: &str) -> Result<()> {
    let dir = state.path("pki");
    let cluster = authority(&dir, "ca", "toolward-e2e")?;
    let front = authority(&dir, "front-proxy-ca", "toolward-e2e-front-proxy")?;
    service_account_key(&dir)?;
    issue(
        &dir,
        &cluster,
        "apiserver",
        ("kube-apiserver", None),
        apiserver_names(plan)?,
    )?;
    issue(
        &dir,
        &cluster,
        "kubelet",
        (&format!("system:node:{node_name}"), None),
        vec![
            SanType::DnsName(node_name.try_into()?),
            SanType::IpAddress(IpAddr::V4(plan.node_ip())),
        ],
    )?;
    issue(&dir, &cluster, "apiserver-kubelet-client", MASTER, vec![])?;
    issue(
        &dir,
        &front,
        "front-proxy-client",
        ("front-proxy-client", None),
        vec![],
    )?;
    let node_user = format!("system:node:{node_name}");
    let users = [
        ("admin", MASTER),
        ("coredns", ("system:coredns", Some("system:masters"))),
        (
            "controller-manager",
            ("system:kube-controller-manager", None),
        ),
        ("scheduler", ("system:kube-scheduler", None)),
        ("kube-proxy", ("system:kube-proxy", None)),
        ("node", (node_user.as_str(), Some("system:nodes"))),
    ];
    for (name, subject) in users {
        let (certificate, key) = sign(&cluster, subject, vec![])?;
        let content = kubeconfig(plan.node_ip(), &cluster.pem, &certificate, &key);
        write_private(&kubeconfig_path(state, name), &content)?;
    }
    Ok(())
}

/// Common name and organisation: user and group of a client.
type Subject<'a> = (&'a str, Option<&'a str>);

const MASTER: Subject<'static> = ("toolward-e2e-admin", Some("system:masters"));

/// Where the kubeconfig of a part is.
pub fn kubeconfig_path(state: &State, name: &str) -> PathBuf {
    if name == "admin" {
        state.kubeconfig()
    } else {
        state.path(&format!("kubeconfigs/{name}"))
    }
}

/// Every name by which somebody calls the API server.
fn apiserver_names(plan: Plan) -> Result<Vec<SanType>> {
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let addresses = [
        plan.node_ip(),
        plan.host_ip(),
        plan.kubernetes_ip(),
        Ipv4Addr::LOCALHOST,
    ];
    let mut all = Vec::new();
    for name in names {
        all.push(SanType::DnsName(name.try_into()?));
    }
    all.extend(addresses.map(|address| SanType::IpAddress(IpAddr::V4(address))));
    Ok(all)
}

fn authority(dir: &Path, file: &str, name: &str) -> Result<Authority> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let certificate = params.self_signed(&key)?;
    sh::write(&dir.join(format!("{file}.crt")), certificate.pem())?;
    write_private(&dir.join(format!("{file}.key")), &key.serialize_pem())?;
    Ok(Authority {
        pem: certificate.pem(),
        issuer: Issuer::new(params, key),
    })
}

/// RSA, because that is what nearly every real cluster signs tokens with.
fn service_account_key(dir: &Path) -> Result<()> {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    write_private(&dir.join("service-account.key"), &key.serialize_pem())
}

fn issue(
    dir: &Path,
    authority: &Authority,
    file: &str,
    subject: Subject<'_>,
    names: Vec<SanType>,
) -> Result<()> {
    let (certificate, key) = sign(authority, subject, names)?;
    sh::write(&dir.join(format!("{file}.crt")), certificate)?;
    write_private(&dir.join(format!("{file}.key")), &key)
}

fn sign(
    authority: &Authority,
    subject: Subject<'_>,
    names: Vec<SanType>,
) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, subject.0);
    if let Some(group) = subject.1 {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let certificate = params.signed_by(&key, &authority.issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn write_private(file: &Path, content: &str) -> Result<()> {
    sh::write(file, content)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", file.display()))
}

fn kubeconfig(server: Ipv4Addr, ca: &str, certificate: &str, key: &str) -> String {
    let [ca, certificate, key] = [ca, certificate, key].map(|pem| STANDARD.encode(pem));
    format!(
        "apiVersion: v1
kind: Config
current-context: toolward-e2e
contexts:
- name: toolward-e2e
  context: {{cluster: toolward-e2e, user: toolward-e2e}}
clusters:
- name: toolward-e2e
  cluster:
    server: https://{server}:6443
    certificate-authority-data: {ca}
users:
- name: toolward-e2e
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"
    )
}
