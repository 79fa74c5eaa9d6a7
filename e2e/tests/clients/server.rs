//! The servers: how each is started, bare and behind a sidecar.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::laptop::{self, Running, free_port};
use e2e::sh::{self, command};
use e2e::wait_for;
use serde_json::Value;

use crate::client::{Bench, Target};

/// A real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// npm `@modelcontextprotocol/server-everything` over stdio.
    EverythingStdio,
    /// The same over Streamable HTTP.
    EverythingHttp,
    /// npm `@modelcontextprotocol/server-filesystem`.
    Filesystem,
    /// npm `@modelcontextprotocol/server-memory`.
    Memory,
    /// The conformance fixture on PyPI `mcp`, over stdio.
    BothStdio,
    /// The same over Streamable HTTP.
    BothHttp,
}

impl Server {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::EverythingStdio,
        Self::EverythingHttp,
        Self::Filesystem,
        Self::Memory,
        Self::BothStdio,
        Self::BothHttp,
    ];

    /// Its row in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::EverythingStdio => "everything, stdio",
            Self::EverythingHttp => "everything, http",
            Self::Filesystem => "filesystem, stdio",
            Self::Memory => "memory, stdio",
            Self::BothStdio => "both eras, stdio",
            Self::BothHttp => "both eras, http",
        }
    }

    /// The names of its plan and its policy.
    pub fn fixture(self) -> &'static str {
        match self {
            Self::EverythingStdio | Self::EverythingHttp => "everything",
            Self::Filesystem => "filesystem",
            Self::Memory => "memory",
            Self::BothStdio | Self::BothHttp => "both",
        }
    }

    /// Whether it speaks the modern era by itself.
    pub fn is_modern(self) -> bool {
        matches!(self, Self::BothStdio | Self::BothHttp)
    }

    fn is_http(self) -> bool {
        matches!(self, Self::EverythingHttp | Self::BothHttp)
    }

    /// The command line; `use_of` tells runs apart that must not share a file.
    fn words(self, bench: &Bench, use_of: &str, port: u16) -> Vec<String> {
        let npm = |package: &str| {
            let folder = bench
                .clients
                .npm
                .join("@modelcontextprotocol")
                .join(package);
            shown(&folder.join("dist/index.js"))
        };
        let everything = "@modelcontextprotocol/server-everything/dist/index.js";
        let everything = shown(&bench.clients.everything.join(everything));
        let node = shown(&bench.clients.node);
        let env = |name: &str, value: String| vec!["env".to_owned(), format!("{name}={value}")];
        match self {
            Self::EverythingStdio => vec![node, everything, "stdio".to_owned()],
            Self::EverythingHttp => {
                let server = vec![node, everything, "streamableHttp".to_owned()];
                [env("PORT", port.to_string()), server].concat()
            }
            Self::Filesystem => {
                let root = shown(&bench.folder.join("root"));
                vec![node, npm("server-filesystem"), root]
            }
            Self::Memory => {
                let file = bench.folder.join(format!("memory-{use_of}.jsonl"));
                let server = vec![node, npm("server-memory")];
                [env("MEMORY_FILE_PATH", shown(&file)), server].concat()
            }
            Self::BothStdio | Self::BothHttp => {
                let script = shown(&bench.fixtures.join("../conformance/server.py"));
                let python = env("PYTHONPATH", shown(&bench.clients.python));
                let mut server = vec!["python3".to_owned(), "-s".to_owned(), script];
                match self {
                    Self::BothStdio => server.push("stdio".to_owned()),
                    _ => server.extend(["http".into(), "--port".into(), port.to_string()]),
                }
                [python, server].concat()
            }
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A server that runs, bare and behind a sidecar.
pub struct Guarded {
    /// Without a sidecar.
    pub bare: Target,
    /// Through it.
    pub through: Target,
    /// What the server's processes were told, where they are behind a tap.
    pub told: PathBuf,
    /// The sidecar.
    pub sidecar: Running,
    _http: Option<Running>,
}

impl Guarded {
    /// Starts both.
    pub async fn start(bench: &Bench, sidecar: &Path, server: Server) -> Result<Self> {
        let (http, port) = match server.is_http() {
            true => {
                let port = free_port()?;
                (Some(serve(bench, server, port).await?), port)
            }
            false => (None, 0),
        };
        let url = format!("http://127.0.0.1:{port}/mcp");
        let told = bench
            .folder
            .join(format!("told-{}.jsonl", server.fixture()));
        sh::write(&told, "")?;
        let tap = [
            shown(&bench.clients.node),
            shown(&bench.fixtures.join("tap.mjs")),
            shown(&told),
        ];
        let (bare, upstream) = match http {
            Some(_) => {
                let bare = Target::Url {
                    url: url.clone(),
                    token: None,
                };
                (bare, vec!["--upstream".to_owned(), url])
            }
            None => {
                let tapped = server.words(bench, "through", port);
                let upstream = [vec!["--".to_owned()], tap.into(), tapped].concat();
                let bare = Target::Command(server.words(bench, "direct", port));
                (bare, upstream)
            }
        };
        let config = bench.fixtures.join(format!("{}.yaml", server.fixture()));
        let mut arguments = vec!["--dev-token", "alice:staff"];
        arguments.extend(upstream.iter().map(String::as_str));
        let mut sidecar = Running::start(&mut laptop::run(sidecar, &config, &arguments))?;
        let caller = laptop::caller(&mut sidecar)?;
        Ok(Self {
            bare,
            through: Target::Url {
                url: caller.endpoint.url,
                token: Some(caller.token),
            },
            told,
            sidecar,
            _http: http,
        })
    }

    /// What the server's processes were told, as [`crate::tap`] reads it.
    pub fn told(&self) -> Result<Vec<Value>> {
        let text = String::from_utf8(sh::read(&self.told)?)?;
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().context("a line of the tap")
    }
}

async fn serve(bench: &Bench, server: Server, port: u16) -> Result<Running> {
    let words = server.words(bench, "both", port);
    let (program, arguments) = words.split_first().context("no command")?;
    let running = Running::start(&mut command(program, arguments))?;
    let url = format!("http://127.0.0.1:{port}/mcp");
    wait_for(server.name(), Duration::from_secs(120), || async {
        reqwest::get(&url).await.map(drop).context("not yet")
    })
    .await?;
    Ok(running)
}
