//! `toolward-sidecar`: see the subcommands.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use sidecar::{drain, run, serve, shim};
use tracing_subscriber::EnvFilter;

/// Stands in front of an MCP server and decides on every call.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged to standard error, for example info or debug.
    #[arg(long, env = "TOOLWARD_LOG", default_value = "info", global = true)]
    log: String,
}

#[derive(Subcommand)]
enum Command {
    /// On a laptop: the YAML that kubectl applies, and no cluster.
    Run(run::Args),
    /// In a pod: a bundle that the operator wrote.
    Serve(serve::Args),
    /// In the server's container: start a stdio server for each connection.
    Shim(ShimArgs),
    /// As preStop hook: stop intake, and wait for calls to finish.
    Drain(drain::Args),
    /// Copy this program into a folder, for the server's container.
    Install {
        /// The folder.
        folder: PathBuf,
    },
}

/// Threads that serve requests, at most.
const MAX_THREADS: usize = 4;

#[derive(clap::Args)]
struct ShimArgs {
    /// Where the socket is made.
    #[arg(long)]
    socket: PathBuf,
    /// User of the sidecar; nobody else may connect.
    #[arg(long)]
    peer_uid: u32,
    /// The server's command.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let Cli { command, log } = Cli::parse();
    let filter = match EnvFilter::try_new(&log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!(
                "toolward-sidecar: --log {log:?}: {error}; write error, warn, info, debug or trace"
            );
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    match start(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("toolward-sidecar: {error:#}");
            ExitCode::from(if error.is::<run::ConfigError>() { 2 } else { 1 })
        }
    }
}

fn start(command: Command) -> anyhow::Result<()> {
    // A sidecar is given part of a node: a thread for each of many cores would
    // cost memory and gain nothing.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(MAX_THREADS))
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        match command {
            Command::Run(args) => run::main(args).await.map(Some),
            Command::Serve(args) => serve::main(args).await.map(Some),
            Command::Shim(ShimArgs {
                socket,
                peer_uid,
                command,
            }) => shim::listen(&socket, peer_uid, &command)
                .await
                .map(|()| None),
            Command::Drain(args) => drain::main(args).await.map(|()| None),
            Command::Install { folder } => install(&folder).map(|()| None),
        }
    });
    // Ends what is still running, and with it whoever can still log.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let Some(audit) = ended? else { return Ok(()) };
    let deadline = Instant::now() + Duration::from_secs(5);
    while !audit.is_finished() {
        if Instant::now() >= deadline {
            bail!("standard output is not read: the end of the audit log is lost");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The name of the copy is part of the pod's shape: the operator writes it.
fn install(folder: &std::path::Path) -> anyhow::Result<()> {
    let (from, to) = (std::env::current_exe()?, folder.join("toolward-sidecar"));
    std::fs::copy(&from, &to)
        .with_context(|| format!("{} cannot be copied to {}", from.display(), to.display()))?;
    Ok(())
}
