//! `toolward-sidecar run` as a process of this machine: no root, no cluster.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::own_program;
use crate::mcp::Endpoint;
use crate::sh::{self, command};
use crate::statements::Caller;

const START: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(60);

/// The sidecar that Cargo builds, brought up to date.
pub fn sidecar(checkout: &Path) -> Result<PathBuf> {
    sh::cargo_build(checkout)?;
    let program = own_program()?.with_file_name("toolward-sidecar");
    ensure!(program.is_file(), "{} was not built", program.display());
    Ok(program)
}

/// The same with the names of its functions, for a profile; beside the others,
/// because everything is built anew for it.
pub fn sidecar_with_symbols(checkout: &Path) -> Result<PathBuf> {
    let target = checkout.join("target/profile");
    let mut build = command("cargo", &["build", "--release", "--package", "sidecar"]);
    let status = build
        .current_dir(checkout)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "`{}` failed ({status})", sh::show(&build));
    Ok(target.join("x86_64-unknown-linux-gnu/release/toolward-sidecar"))
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Lines that a process writes, collected as they come.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn follow(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let writer = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                writer
                    .0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(line);
            }
        });
        lines
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Its standard output.
    pub stdout: Lines,
    /// Its standard error.
    pub stderr: Lines,
}

impl Running {
    /// Starts a command.
    pub fn start(command: &mut Command) -> Result<Self> {
        let shown = sh::show(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Ok(Self {
            child,
            stdout: Lines::follow(stdout.context("no standard output")?),
            stderr: Lines::follow(stderr.context("no standard error")?),
        })
    }

    /// Waits for something in its standard error.
    pub fn wait_for<T>(&mut self, what: &str, find: impl Fn(&[String]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + START;
        loop {
            let lines = self.stderr.all();
            if let Some(found) = find(&lines) {
                return Ok(found);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                bail!(
                    "no {what} (ended: {ended:?}); standard error:\n{}",
                    lines.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + END;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "process {} does not end",
                self.child.id()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to end, as Ctrl-C does.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let pid = Pid::from_raw(self.child.id().try_into()?).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        self.ended()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait();
    }
}

/// `toolward-sidecar run` on free ports, with these further arguments.
pub fn run(sidecar: &Path, config: &Path, arguments: &[&str]) -> Command {
    run_on(sidecar, config, "127.0.0.1:0", arguments)
}

/// The same on an address that was chosen before: the server's URL may be part of
/// the configuration.
pub fn run_on(sidecar: &Path, config: &Path, listen: &str, arguments: &[&str]) -> Command {
    let mut run = command(sidecar, &["run", "--config"]);
    run.arg(config)
        .args(["--listen", listen, "--admin", "127.0.0.1:0"])
        .args(arguments);
    run
}

/// Waits until a `run` tells its URL.
pub fn url(running: &mut Running) -> Result<String> {
    running.wait_for("URL", |lines| {
        let line = lines
            .iter()
            .find(|line| line.contains(" listens on http"))?;
        line.split_whitespace().last().map(str::to_owned)
    })
}

/// Waits until a `run` tells where its admin port is; its URL, without a path.
pub fn admin(running: &mut Running) -> Result<String> {
    running.wait_for("admin port", |lines| {
        let mut words = lines.iter().flat_map(|line| line.split_whitespace());
        let address = words.find_map(|word| word.strip_prefix("admin="))?;
        Some(format!("http://{address}"))
    })
}

/// Waits until a `run --dev-token` tells its URL and its token.
pub fn caller(running: &mut Running) -> Result<Caller> {
    let url = url(running)?;
    let token = running.wait_for("dev token", |lines| {
        let dots = |line: &&String| line.starts_with("ey") && line.matches('.').count() == 2;
        lines.iter().find(dots).cloned()
    })?;
    let endpoint = Endpoint::direct(url);
    Ok(Caller { endpoint, token })
}
