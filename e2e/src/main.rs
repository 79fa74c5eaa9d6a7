//! The local cluster from the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use e2e::cluster::{self, State};
use e2e::sh::{say, tail};
use e2e::tools::Tools;
use e2e::{Image, bench, cache, checkout, demo, images, laptop, manifests};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// A Kubernetes cluster for Toolward's end-to-end tests, on this machine.
///
/// Each checkout has its own; TOOLWARD_INSTANCE names another one.
#[derive(Parser)]
#[command(version, about, long_about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the cluster and wait until it is ready
    Up,
    /// End the cluster and remove all that belongs to it
    Down,
    /// Tell what runs and where
    Status,
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Build images and import them into the running cluster
    Images {
        /// Take the binaries as they are instead of calling Cargo
        #[arg(long)]
        no_build: bool,
        /// Which; all by default
        images: Vec<ImageName>,
    },
    /// Fetch and build all programs; print where kubectl, helm and node are
    Tools,
    /// Show what Toolward does, from an empty machine to a guarded MCP server
    Demo,
    /// Measure what the sidecar costs, beside nginx
    Bench(bench::Options),
    /// Write the manifests that are made from the types and the chart
    Manifests,
    /// Print the ends of the node's logs
    Logs,
    /// Process 1 of the node
    #[command(hide = true)]
    NodeInit { dir: PathBuf },
    /// The MCP server of `bench`, over HTTP
    #[command(hide = true)]
    BenchUpstream(PinnedTo),
    /// The MCP server of `bench`, over stdio
    #[command(hide = true)]
    BenchStdio(PinnedTo),
    /// The program of a pod's sandbox
    #[command(hide = true)]
    Pause,
}

#[derive(clap::Args)]
struct PinnedTo {
    #[arg(long)]
    core: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ImageName {
    Operator,
    Sidecar,
    ServerEverything,
    PostgresRls,
}

impl From<ImageName> for Image {
    fn from(name: ImageName) -> Self {
        match name {
            ImageName::Operator => Self::Operator,
            ImageName::Sidecar => Self::Sidecar,
            ImageName::ServerEverything => Self::ServerEverything,
            ImageName::PostgresRls => Self::PostgresRls,
        }
    }
}

fn main() -> ExitCode {
    match start(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> Result<()> {
    match command {
        // These have no use for a runtime of several threads.
        Command::NodeInit { dir } => cluster::node_init(&dir),
        Command::BenchUpstream(pinned) => bench::serve_http(pinned.core),
        Command::BenchStdio(pinned) => bench::serve_stdio(pinned.core),
        Command::Bench(options) => measure(options),
        Command::Pause => loop {
            std::thread::park();
        },
        command => tokio::runtime::Runtime::new()?.block_on(run(command)),
    }
}

async fn run(command: Command) -> Result<()> {
    let instance = cluster::current()?;
    let state = State::of(&instance.id);
    match command {
        Command::Up => {
            cluster::up(&instance).await?;
            say(format!(
                "export KUBECONFIG={}",
                state.kubeconfig().display()
            ));
        }
        Command::Down => {
            let existed = cluster::down(&instance)?;
            let what = if existed { "is gone" } else { "was not there" };
            say(format!(
                "instance {} {what}; the cache stays: {}",
                instance.id,
                cache::root().display()
            ));
        }
        Command::Status => println!("{}", cluster::status(&instance).await?),
        Command::Kubeconfig => println!("{}", running(&state)?.kubeconfig().display()),
        Command::Images { no_build, images } => {
            let images: Vec<Image> = images.into_iter().map(Image::from).collect();
            let images = if images.is_empty() {
                Image::ALL.to_vec()
            } else {
                images
            };
            images::load(running(&state)?, &checkout::root()?, &images, !no_build).await?;
        }
        Command::Tools => print_tools(&Tools::ensure(&checkout::root()?)?),
        Command::Demo => demo::run().await?,
        Command::Manifests => write_manifests(&checkout::root()?)?,
        Command::Logs => print_logs(&state)?,
        Command::Bench(_)
        | Command::BenchUpstream(_)
        | Command::BenchStdio(_)
        | Command::NodeInit { .. }
        | Command::Pause => {}
    }
    Ok(())
}

/// Ends what it started also when it is interrupted.
fn measure(options: bench::Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _signals = runtime.enter();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let (done, mut measured) = oneshot::channel();
    std::thread::spawn(move || done.send(compare_or_profile(&options)));
    runtime.block_on(async move {
        loop {
            tokio::select! {
                _ = terminated.recv() => bench::end_all(),
                _ = interrupted.recv() => bench::end_all(),
                measured = &mut measured => return measured.context("the measurement panicked")?,
            }
        }
    })
}

fn compare_or_profile(options: &bench::Options) -> Result<()> {
    let checkout = checkout::root()?;
    let sidecar = match &options.sidecar {
        Some(other) => other.clone(),
        None if options.profile => laptop::sidecar_with_symbols(&checkout)?,
        None => laptop::sidecar(&checkout)?,
    };
    if options.profile {
        return bench::profile(&sidecar, options);
    }
    print!("{}", bench::measure(&sidecar, options)?);
    Ok(())
}

fn running(state: &State) -> Result<&State> {
    if !state
        .record()
        .is_some_and(|record| record.ready && record.running())
    {
        bail!("the cluster does not run; start it with `cargo run --release -p e2e -- up`");
    }
    Ok(state)
}

fn print_tools(tools: &Tools) {
    println!("kubectl {}", tools.program("kubectl").display());
    println!("helm    {}", tools.helm.display());
    println!("node    {}", tools.node().display());
}

/// The chart needs its definitions before it is rendered.
fn write_manifests(checkout: &Path) -> Result<()> {
    let mut written = manifests::definitions()?;
    written.iter().try_for_each(|file| file.write(checkout))?;
    let install = manifests::install(checkout, &Tools::helm(checkout)?)?;
    install.write(checkout)?;
    written.push(install);
    for file in written {
        println!("{}", file.path);
    }
    Ok(())
}

fn print_logs(state: &State) -> Result<()> {
    const LINES: usize = 40;
    let mut logs: Vec<PathBuf> = fs::read_dir(state.path("logs"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    logs.sort();
    for log in logs {
        println!("==> {}\n{}\n", log.display(), tail(&log, LINES));
    }
    Ok(())
}
