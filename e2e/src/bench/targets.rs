//! What calls go through: nothing, nginx, or the sidecar.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::call::{Connection, Era, FIRST_IDS, Request};
use super::child::{Drained, Guarded, own_cpu_time};
use super::cores::Cores;
use super::tokens::{self, Issuer};
use super::wrk;
use crate::cluster::own_program;
use crate::laptop::free_port;
use crate::sh::{self, command, tail};

/// Until a process answers.
const START: Duration = Duration::from_secs(60);

/// One row of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing in front.
    Direct,
    /// nginx as a plain proxy.
    Nginx,
    /// The sidecar with everything on, in a legacy session.
    Session,
    /// The same in revision 2026-07-28.
    Modern,
    /// The same as `Session`, and no token comes twice.
    NewTokens,
    /// The sidecar in front of a stdio server, in a legacy session.
    Stdio,
}

impl Target {
    /// All, in the order in which they take turns.
    pub const ALL: [Self; 6] = [
        Self::Direct,
        Self::Nginx,
        Self::Session,
        Self::Modern,
        Self::NewTokens,
        Self::Stdio,
    ];

    /// How a table names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "nothing in front",
            Self::Nginx => "nginx, plain",
            Self::Session => "sidecar, session",
            Self::Modern => "sidecar, 2026-07-28",
            Self::NewTokens => "sidecar, new tokens",
            Self::Stdio => "sidecar, stdio",
        }
    }
}

/// What all targets share.
#[derive(Debug)]
pub struct Bench {
    /// A folder of this run, removed at the end.
    pub folder: PathBuf,
    /// Which core runs what.
    pub cores: Cores,
    /// The sidecar's program.
    pub sidecar: PathBuf,
    /// Where the server behind it listens.
    pub upstream: SocketAddr,
    /// Tokens that the bundle lets in; the first is the one that is remembered.
    pub tokens: Vec<String>,
    upstream_process: Guarded,
}

impl Bench {
    /// Starts the server and signs so many tokens.
    ///
    /// # Errors
    /// Where that cannot be done.
    pub fn new(sidecar: &Path, tokens: usize) -> Result<Self> {
        let cores = Cores::find()?;
        let folder = std::env::temp_dir().join(format!("toolward-bench-{}", std::process::id()));
        sh::create_dir(&folder)?;
        let tokens = Issuer::with_bundle(&folder.join("bundle"))?.tokens(tokens)?;
        sh::write(&folder.join("bench.yaml"), tokens::manifests())?;
        let mut program = command(own_program()?, &["bench-upstream"]);
        core_argument(&mut program, cores.load);
        // Its standard input stays open for as long as this process lives.
        program.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut upstream = Guarded::start(cores.load, &mut program)?;
        let mut stdout = upstream.child.stdout.take().context("no standard output")?;
        let port = first_line(&mut stdout)?.parse()?;
        Ok(Self {
            folder,
            cores,
            sidecar: sidecar.to_owned(),
            upstream: SocketAddr::from(([127, 0, 0, 1], port)),
            tokens,
            upstream_process: upstream,
        })
    }

    /// Time on a core that all of this took so far.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn cpu_time(&self) -> Result<Duration> {
        Ok(own_cpu_time()? + self.upstream_process.cpu_time()?)
    }

    /// Starts a target and waits for its first answer.
    ///
    /// # Errors
    /// Where it does not answer a call as it should.
    pub fn start(&self, target: Target) -> Result<Started> {
        let address = match target {
            Target::Direct => self.upstream,
            _ => SocketAddr::from(([127, 0, 0, 1], free_port()?)),
        };
        let log = self.folder.join(format!("{target:?}.log"));
        let stderr = File::create(&log)?;
        let mut program = match target {
            Target::Direct => None,
            Target::Nginx => Some(self.nginx(address)?),
            Target::Session | Target::Modern | Target::NewTokens => Some(self.serve(address)),
            Target::Stdio => Some(self.run_stdio(address)?),
        };
        let begun = Instant::now();
        let mut proxy = program
            .as_mut()
            .map(|program| {
                program
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(stderr);
                Guarded::start(self.cores.proxy, program)
            })
            .transpose()?;
        let stdout = proxy.as_mut().and_then(|proxy| proxy.child.stdout.take());
        let drained = stdout.map(|stdout| Drained::start(self.cores.load, stdout));
        let mut started = Started {
            target,
            address,
            proxy,
            audit: drained.filter(|_| target != Target::Nginx),
            tokens: match target {
                Target::NewTokens => self.tokens.clone(),
                _ => self.tokens.iter().take(1).cloned().collect(),
            },
            request: Request::initialize(address),
            first_answer: Duration::ZERO,
        };
        started
            .connect(begun, &log)
            .with_context(|| format!("{}:\n{}", target.name(), tail(&log, 20)))?;
        Ok(started)
    }

    fn serve(&self, address: SocketAddr) -> Command {
        let mut serve = command(&self.sidecar, &["serve", "--admin", "127.0.0.1:0"]);
        serve
            .arg("--bundle")
            .arg(self.folder.join("bundle"))
            .args(["--listen", &address.to_string()])
            .args(["--upstream", &format!("http://{}/mcp", self.upstream)]);
        serve
    }

    fn run_stdio(&self, address: SocketAddr) -> Result<Command> {
        let mut run = command(&self.sidecar, &["run", "--admin", "127.0.0.1:0"]);
        run.arg("--config")
            .arg(self.folder.join("bench.yaml"))
            .args(["--listen", &address.to_string()])
            .args(["--dev-token", tokens::USER, "--"])
            .arg(own_program()?)
            .arg("bench-stdio");
        core_argument(&mut run, self.cores.load);
        Ok(run)
    }

    /// Everything that a plain proxy needs, and nothing that costs time.
    fn nginx(&self, address: SocketAddr) -> Result<Command> {
        let folder = self.folder.join("nginx");
        sh::create_dir(&folder)?;
        let (shown, upstream) = (folder.display(), self.upstream);
        let connections = wrk::CONNECTIONS;
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {shown}/{name};"))
            .join(" ");
        let config = format!(
            r#"daemon off;
master_process off;
worker_processes 1;
error_log stderr warn;
pid {shown}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    {temporary}
    keepalive_requests 1000000000;
    upstream server {{ server {upstream}; keepalive {connections}; keepalive_requests 1000000000; }}
    server {{
        listen {address};
        location / {{ proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
"#
        );
        let file = folder.join("nginx.conf");
        sh::write(&file, config)?;
        let mut nginx = command("nginx", &["-e", "stderr", "-c"]);
        nginx.arg(file).arg("-p").arg(folder);
        // Where it is not on the path of a plain user.
        nginx.env("PATH", path_with_sbin());
        Ok(nginx)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder); // It is in the system's folder for that.
    }
}

/// The `PATH`, with the folders that only root has on it.
pub fn path_with_sbin() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn core_argument(program: &mut Command, core: Option<usize>) {
    if let Some(core) = core {
        program.args(["--core", &core.to_string()]);
    }
}

fn first_line(pipe: &mut impl std::io::Read) -> Result<String> {
    let mut line = String::new();
    let mut byte = [0];
    while pipe.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0].into());
    }
    Ok(line)
}

/// A target that answers.
#[derive(Debug)]
pub struct Started {
    target: Target,
    /// Where calls go.
    pub address: SocketAddr,
    /// The process in front, where there is one.
    pub proxy: Option<Guarded>,
    /// Its audit log, where it has one.
    pub audit: Option<Drained>,
    tokens: Vec<String>,
    /// The call.
    pub request: Request,
    /// From the start of the process to its first answer.
    pub first_answer: Duration,
}

impl Started {
    /// The tokens for calls at a fixed rate. Where every call has its own, the
    /// first one was for the handshake.
    pub fn for_load(&self) -> &[String] {
        match &self.tokens[..] {
            [one] => std::slice::from_ref(one),
            all => &all[1..=(all.len() / 10)],
        }
    }

    /// The tokens for wrk: those that are left.
    pub fn for_wrk(&self) -> &[String] {
        match &self.tokens[..] {
            [one] => std::slice::from_ref(one),
            all => &all[all.len() / 10 + 1..],
        }
    }

    /// Starts a session, where the target has them, and makes the first call.
    fn connect(&mut self, begun: Instant, log: &Path) -> Result<()> {
        if self.target == Target::Stdio {
            self.tokens = vec![wait(self.proxy.as_mut(), || dev_token(log))?];
        }
        let address = self.address;
        let token = self.tokens.first().context("no token")?.clone();
        let mut answered = |request: &Request, id| {
            let bytes = request.bytes(&token, id);
            // 503: the sidecar has not read its bundle yet.
            let ask = || {
                let answer = Connection::open(address).ok()?.send(&bytes).ok()?;
                (answer.status != 503).then_some(answer)
            };
            wait(self.proxy.as_mut(), ask)
        };
        let era = if self.target == Target::Modern {
            Era::Modern
        } else {
            let answer = answered(&Request::initialize(address), FIRST_IDS)?;
            let session = answer.header("mcp-session-id").map(str::to_owned);
            Era::Legacy(session.with_context(|| format!("no session: {answer:?}"))?)
        };
        self.request = Request::call(address, &era);
        answered(&self.request, FIRST_IDS + 1)?.check(FIRST_IDS + 1)?;
        self.first_answer = begun.elapsed();
        Ok(())
    }
}

/// Waits for a condition, as fine as start-up times want it.
fn wait<T>(proxy: Option<&mut Guarded>, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + START;
    let mut proxy = proxy;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if let Some(proxy) = &mut proxy {
            ensure!(!proxy.ended()?, "it ended");
        }
        ensure!(
            Instant::now() < deadline,
            "it does not answer within {START:?}"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The token that `run --dev-token` printed.
fn dev_token(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    // The last line may not be whole yet.
    let (whole, _) = text.rsplit_once('\n')?;
    let is_token = |line: &&str| line.starts_with("ey") && line.matches('.').count() == 2;
    whole.lines().find(is_token).map(str::to_owned)
}
