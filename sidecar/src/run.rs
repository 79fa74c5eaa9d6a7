//! `toolward-sidecar run`: on a laptop, with the YAML that kubectl applies and
//! no cluster.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use crds::{AuthenticationMode, Document, McpServer, McpToolPolicy};
use policy::{Compiled, Context, PolicySource, compile};

use crate::{
    dev::DevIssuer,
    host::Settings,
    peer::Peers,
    pipeline::now,
    server::{ADMIN_PORT, AuditThread, Listen, MCP_PORT, Server, Target},
    source,
};

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
    /// Print a token for this user, signed by a key in memory; loopback only.
    #[arg(long, value_name = "USER[:GROUP,…]")]
    dev_token: Option<DevUser>,
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
        dev_token,
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
    let target = match upstream {
        Some(url) => Target::Url(url),
        None => Target::Command(command),
    };
    first.note(stdio);
    let bundle = first.compile(listen, issuer.as_ref())?;
    let listens = Listen {
        mcp: Some(listen),
        admin: Some(admin),
        peer: None,
    };
    let server = Server::bind(listens, Peers::alone(), target, first.settings()).await?;
    let bundle = if listen.port() == 0 {
        first.compile(server.address, issuer.as_ref())?
    } else {
        bundle
    };
    server
        .shared
        .config
        .load(bundle.to_json()?.as_bytes())
        .map_err(ConfigError)?;
    eprintln!(
        "{} listens on {}",
        first.server.spec.deployment.image, bundle.url
    );
    if let (Some(issuer), Some(DevUser { user, groups })) = (&issuer, &dev_token) {
        let token = issuer.token(user, groups, &bundle.audience, now())?;
        eprintln!(
            "dev token for {user}, valid for 24 hours; send it as the header `Authorization: Bearer TOKEN`:\n{token}"
        );
    }
    let (shared, address) = (Arc::clone(&server.shared), server.address);
    tokio::spawn(source::watch(config.clone(), move || {
        let reread = read_all(&config).and_then(|all| all.compile(address, issuer.as_ref()));
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
            "note: spec.deployment of McpServer {} is checked and otherwise ignored: {} takes its place",
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

    fn compile(
        &self,
        listen: SocketAddr,
        dev: Option<&DevIssuer>,
    ) -> Result<policy::Bundle, ConfigError> {
        let file = self.server_file.display();
        let anonymous = self.server.spec.authentication.mode == AuthenticationMode::Anonymous;
        if !anonymous && dev.is_none() {
            return Err(ConfigError(format!(
                "{file}: spec.authentication.mode: Required, and no issuer of tokens: add --dev-token USER, or write mode: Anonymous"
            )));
        }
        let context = Context {
            default_url: format!("http://{listen}/mcp"),
            issuers: dev.map(DevIssuer::issuer).into_iter().collect(),
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
