//! `toolward-sidecar run`: on a laptop, with the YAML that kubectl applies and
//! no cluster.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use crds::{AuthenticationMode, Document, McpServer, McpToolPolicy};
use policy::{AllowedIssuers, Compiled, Context, PolicySource, compile};

use crate::{
    app_probes::AppProbes,
    dev::DevIssuer,
    host::Settings,
    identity::Identity,
    issuers::Issuers,
    peer::Peers,
    pipeline::now,
    server::{ADMIN_PORT, AuditThread, Listen, MCP_PORT, Server, Target},
    source,
    upstream::credential::Credential,
};

/// Where issuers may be beside the public internet: on this host, and in the
/// networks that it is in.
const OWN_NETWORKS: [&str; 6] = [
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
];
/// Largest file.
const MAX_FILE: usize = 4 * 1024 * 1024;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// YAML with one McpServer and any number of McpToolPolicies.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Address of the MCP port.
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], MCP_PORT)))]
    listen: SocketAddr,
    /// Address of the admin port.
    #[arg(long, default_value_t = SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT)))]
    admin: SocketAddr,
    /// Folder with tls.crt and tls.key: the MCP port speaks TLS.
    #[arg(long, value_name = "FOLDER")]
    tls: Option<PathBuf>,
    /// Print a token for this user, signed by a key in memory; loopback only.
    #[arg(long, value_name = "USER[:GROUP,…]")]
    dev_token: Option<DevUser>,
    /// Folder with the certificates of private authorities of issuers, as
    /// NAME.pem: what caSecretRef names in a cluster.
    #[arg(long, value_name = "FOLDER")]
    issuer_authorities: Option<PathBuf>,
    /// File with the credential that spec.upstreamCredential names.
    #[arg(long, value_name = "FILE")]
    upstream_credential: Option<PathBuf>,
    /// Folder into which the public key is written as jwks.json, where
    /// spec.identity asks for assertions: what the ConfigMap
    /// NAME-toolward-identity holds in a cluster.
    #[arg(long, value_name = "FOLDER")]
    identity_keys: Option<PathBuf>,
    /// URL of a running Streamable HTTP server, in place of COMMAND.
    #[arg(
        long,
        value_name = "URL",
        conflicts_with = "command",
        required_unless_present = "command"
    )]
    upstream: Option<http::Uri>,
    /// The stdio server to start.
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Clone, Debug)]
struct DevUser {
    user: String,
    groups: Vec<String>,
}

impl std::str::FromStr for DevUser {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (user, groups) = text.split_once(':').unwrap_or((text, ""));
        if user.is_empty() {
            return Err("write a user, and groups after a colon, for example alice:staff,admins");
        }
        let groups = groups
            .split(',')
            .filter(|group| !group.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(Self {
            user: user.to_owned(),
            groups,
        })
    }
}

/// A configuration that cannot be used. The process exits with 2.
#[derive(Debug)]
pub struct ConfigError(pub String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// [`ConfigError`] where the configuration cannot be used.
pub async fn main(args: Args) -> anyhow::Result<AuditThread> {
    let Args {
        config,
        listen,
        admin,
        tls,
        dev_token,
        issuer_authorities,
        upstream_credential,
        identity_keys,
        upstream,
        command,
    } = args;
    if dev_token.is_some() && !(listen.ip().is_loopback() && admin.ip().is_loopback()) {
        return Err(ConfigError("--dev-token: only for loopback addresses, because its key is no secret worth a network; use --listen 127.0.0.1:9440".into()).into());
    }
    if !admin.ip().is_loopback() {
        return Err(ConfigError(format!("--admin {admin}: its /status is open to whoever reaches it, so only a loopback address is accepted, for example 127.0.0.1:9441")).into());
    }
    let issuer = dev_token.as_ref().map(|_| DevIssuer::new()).transpose()?;
    // Before the ports are bound, so that a wrong file is what one reads about.
    let first = read_all(&config)?;
    let stdio = upstream.is_none();
    let asked = first.server.spec.upstream_credential.as_ref();
    let credential = match (asked, upstream_credential) {
        (Some(asked), Some(file)) => {
            Some(Credential::follow(asked.header.parse()?, file))
        }
        (None, None) => None,
        (Some(_), None) => return Err(ConfigError(format!("{}: spec.upstreamCredential: there is no Secret here: name a file with --upstream-credential FILE", first.server_file.display())).into()),
        (None, Some(_)) => return Err(ConfigError(format!("{}: --upstream-credential needs spec.upstreamCredential, which says in which header it goes", first.server_file.display())).into()),
    };
    first.check_identity(identity_keys.is_some())?;
    let identity = match &identity_keys {
        Some(folder) => {
            let identity = Identity::new(None)?;
            identity.write(folder)?;
            identity
        }
        None => Identity::none(),
    };
    let target = match upstream {
        Some(url) => Target::Url(url, credential),
        None => Target::Command(command),
    };
    first.note(stdio);
    let is_tls = tls.is_some();
    let bundle = first.compile(listen, is_tls, issuer.as_ref())?;
    let listens = Listen {
        mcp: Some(listen),
        admin: Some(admin),
        app_probes: AppProbes::default(),
        peer: None,
        tls,
        in_pod: false,
    };
    let issuers = Issuers::new(issuer_authorities);
    let settings = first.settings();
    let server = Server::bind(listens, Peers::alone(), target, settings, issuers, identity)?;
    let bundle = if listen.port() == 0 {
        first.compile(server.address, is_tls, issuer.as_ref())?
    } else {
        bundle
    };
    server
        .shared
        .config
        .load(bundle.to_json()?.as_bytes())
        .map_err(ConfigError)?;
    eprintln!("{} listens on {}", name(&first.server.metadata), bundle.url);
    if let (Some(issuer), Some(DevUser { user, groups })) = (&issuer, &dev_token) {
        let lifetime = bundle.authentication.max_token_lifetime_seconds;
        let token = issuer.token(user, groups, &bundle.audience, now(), lifetime)?;
        eprintln!(
            "dev token for {user}, valid for {lifetime} s (maxTokenLifetime); send it as the header `Authorization: Bearer TOKEN`:\n{token}"
        );
    }
    let (shared, address) = (Arc::clone(&server.shared), server.address);
    tokio::spawn(source::watch(config.clone(), move || {
        let reread = read_all(&config).and_then(|all| {
            all.check_identity(identity_keys.is_some())?;
            all.compile(address, is_tls, issuer.as_ref())
        });
        let loaded = reread.map_err(|error| error.0).and_then(|bundle| {
            let json = bundle.to_json().map_err(|error| error.to_string())?;
            shared.config.load(json.as_bytes())
        });
        match loaded {
            Ok(true) => tracing::info!("configuration in force"),
            Ok(false) => {}
            Err(error) => tracing::error!(
                error,
                "the configuration cannot be used; the last good one stays in force"
            ),
        }
    }));
    server.run().await
}

/// All documents of all files.
struct Manifests {
    server_file: PathBuf,
    server: Box<McpServer>,
    policies: Vec<(PathBuf, Box<McpToolPolicy>)>,
}

fn read_all(files: &[PathBuf]) -> Result<Manifests, ConfigError> {
    let mut servers = Vec::new();
    let mut policies = Vec::new();
    for file in files {
        let wrong = |error: &dyn fmt::Display| ConfigError(format!("{}: {error}", file.display()));
        let bytes = source::read(file, MAX_FILE).map_err(|error| wrong(&error))?;
        let text = String::from_utf8(bytes).map_err(|error| wrong(&error))?;
        for document in crds::documents(&text).map_err(|error| wrong(&error))? {
            match document {
                Document::McpServer(server) => servers.push((file.clone(), server)),
                Document::McpToolPolicy(policy) => policies.push((file.clone(), policy)),
            }
        }
    }
    match (servers.pop(), servers.pop()) {
        (Some((server_file, server)), None) => Ok(Manifests {
            server_file,
            server,
            policies,
        }),
        (None, _) => Err(ConfigError(format!(
            "{}: no McpServer; one is needed",
            list(files)
        ))),
        (Some((file, second)), Some(_)) => Err(ConfigError(format!(
            "{}: a second McpServer, {}; one is needed",
            file.display(),
            name(&second.metadata)
        ))),
    }
}

impl Manifests {
    /// Says what is left out.
    fn note(&self, stdio: bool) {
        eprintln!(
            "note: spec.{} of McpServer {} is checked and otherwise ignored: {} takes its place",
            if self.server.spec.deployment.is_some() {
                "deployment"
            } else {
                "injected"
            },
            name(&self.server.metadata),
            if stdio { "the command" } else { "--upstream" }
        );
        for (file, policy) in &self.policies {
            if !self.concerns(policy) {
                eprintln!(
                    "note: {}: McpToolPolicy {} targets another server and is ignored",
                    file.display(),
                    name(&policy.metadata)
                );
            }
        }
    }

    fn settings(&self) -> Settings {
        let stdio = self.server.spec.transport.stdio.clone().unwrap_or_default();
        Settings {
            sharing: stdio.process.into(),
            max_processes: usize::try_from(stdio.max_processes).unwrap_or(usize::MAX),
            idle_timeout: stdio.idle_timeout.get(),
            startup_timeout: stdio.startup_timeout.get(),
        }
    }

    /// Whether there is a place for the public key, where the server is to be told
    /// who calls, and only there.
    fn check_identity(&self, has_folder: bool) -> Result<(), ConfigError> {
        let file = self.server_file.display();
        match (self.server.spec.identity.is_some(), has_folder) {
            (true, false) => Err(ConfigError(format!(
                "{file}: spec.identity: there is no ConfigMap here: start it with --identity-keys FOLDER, into which the public key is written"
            ))),
            (false, true) => Err(ConfigError(format!(
                "{file}: --identity-keys needs spec.identity, which asks for assertions"
            ))),
            _ => Ok(()),
        }
    }

    fn concerns(&self, policy: &McpToolPolicy) -> bool {
        let namespace = |metadata: &Meta| {
            metadata
                .namespace
                .clone()
                .unwrap_or_else(|| "default".into())
        };
        let server = &self.server.metadata;
        namespace(server) == namespace(&policy.metadata)
            && policy
                .spec
                .target_refs
                .iter()
                .any(|target| Some(&target.name.0) == server.name.as_ref())
    }

    /// Whether what the command line says of TLS is what the file says.
    fn check_tls(&self, is_tls: bool) -> Result<(), ConfigError> {
        let (file, spec) = (self.server_file.display(), &self.server.spec);
        let is_plain = |url: &crds::Url| url.starts_with("http://");
        if spec.tls.is_some() && !is_tls {
            return Err(ConfigError(format!(
                "{file}: spec.tls: there is no Secret here: name a folder with tls.crt and tls.key by --tls FOLDER"
            )));
        }
        if is_tls && spec.url.as_ref().is_some_and(is_plain) {
            return Err(ConfigError(format!(
                "{file}: spec.url: with --tls, the MCP port speaks https only: write an https URL, or leave url out"
            )));
        }
        Ok(())
    }

    fn compile(
        &self,
        listen: SocketAddr,
        is_tls: bool,
        dev: Option<&DevIssuer>,
    ) -> Result<policy::Bundle, ConfigError> {
        self.check_tls(is_tls)?;
        let file = self.server_file.display();
        let authentication = &self.server.spec.authentication;
        let anonymous = authentication.mode == AuthenticationMode::Anonymous;
        if !anonymous && dev.is_none() && authentication.issuers.is_none() {
            return Err(ConfigError(format!(
                "{file}: spec.authentication.mode: Required, and no issuer of tokens: add --dev-token USER, name issuers in spec.authentication.issuers, or write mode: Anonymous"
            )));
        }
        let context = Context {
            default_url: format!("{}://{listen}/mcp", if is_tls { "https" } else { "http" }),
            dev: dev.map(DevIssuer::issuer),
            issuers: AllowedIssuers::Any,
            networks: OWN_NETWORKS.map(str::to_owned).to_vec(),
            allow_anonymous: true,
            ..Context::default()
        };
        let mut server = self.server.clone();
        server
            .metadata
            .namespace
            .get_or_insert_with(|| "default".into());
        let policies: Vec<_> = self
            .policies
            .iter()
            .map(|(_, policy)| &**policy)
            .filter(|policy| self.concerns(policy))
            .map(PolicySource::Valid)
            .collect();
        let Compiled {
            bundle,
            diagnostics,
        } = compile(&server, &policies, &context);
        match diagnostics.first() {
            None => Ok(bundle),
            Some(first) => {
                let of_policy = |(_, policy): &&(PathBuf, Box<McpToolPolicy>)| {
                    policy.metadata.name == first.policy
                };
                let file = self
                    .policies
                    .iter()
                    .find(of_policy)
                    .map_or(&*self.server_file, |(file, _)| file);
                let all: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
                Err(ConfigError(format!(
                    "{}: {}",
                    file.display(),
                    all.join("; ")
                )))
            }
        }
    }
}

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta as Meta;

fn name(metadata: &Meta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

fn list(files: &[impl AsRef<Path>]) -> String {
    files
        .iter()
        .map(|file| file.as_ref().display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
