//! The local cluster from the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use e2e::cluster::{self, State};
use e2e::sh::{say, tail};
use e2e::tools::Tools;
use e2e::{Image, cache, checkout, demo, images, manifests};

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
    /// Write the manifests that are made from the types and the chart
    Manifests,
    /// Print the ends of the node's logs
    Logs,
    /// Process 1 of the node
    #[command(hide = true)]
    NodeInit { dir: PathBuf },
    /// The program of a pod's sandbox
    #[command(hide = true)]
    Pause,
}

#[derive(Clone, Copy, ValueEnum)]
enum ImageName {
    Operator,
    Sidecar,
    ServerEverything,
}

impl From<ImageName> for Image {
    fn from(name: ImageName) -> Self {
        match name {
            ImageName::Operator => Self::Operator,
            ImageName::Sidecar => Self::Sidecar,
            ImageName::ServerEverything => Self::ServerEverything,
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
        // These two have no use for a runtime.
        Command::NodeInit { dir } => cluster::node_init(&dir),
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
        Command::NodeInit { .. } | Command::Pause => {}
    }
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
