//! What the sidecar costs, beside nginx as a plain proxy and nothing at all, in
//! one run: the proxy has a core of its own, load and server share another, the
//! targets take turns in every round. Machines differ: read the ratios.

mod call;
mod child;
mod cores;
mod load;
mod profile;
mod report;
mod targets;
mod tokens;
mod upstream;
mod wrk;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use child::end_all;
pub use report::{Proxy, Report, Row, Sample};
pub use targets::Target;
pub use upstream::{serve_http, serve_stdio};

use crate::sh::say;
use crate::tools;
use cores::Busy;
use targets::{Bench, Started};
use wrk::Wrk;

/// The tool that is called.
const TOOL: &str = "order_state";
/// Tokens for each second, most of them for wrk: more than a core can verify.
const TOKENS: usize = 30_000;

/// How long to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How often each target has its turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// How many seconds wrk calls in each turn; the calls at a fixed rate last as long.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
    /// Do not compare: show where the sidecar's time goes, with perf.
    #[arg(long)]
    pub profile: bool,
    /// Another sidecar than the one that Cargo builds here.
    #[arg(long)]
    pub sidecar: Option<PathBuf>,
}

/// Prints where the time of this sidecar goes. Its functions have names only
/// where it was built with symbols.
///
/// # Errors
/// Where perf cannot watch a process here.
pub fn profile(sidecar: &Path, options: &Options) -> Result<()> {
    tools::ensure_profile()?;
    let bench = Bench::new(sidecar, usize::try_from(options.seconds)? * TOKENS)?;
    profile::run_all(&bench, &Wrk::new(&bench.folder)?, options.seconds)
}

/// Measures with this sidecar.
///
/// # Errors
/// Where a call is not answered as it should be, or wrk is missing.
pub fn measure(sidecar: &Path, options: &Options) -> Result<Report> {
    let has_nginx = tools::ensure_bench()?;
    let targets: Vec<Target> = Target::ALL
        .into_iter()
        .filter(|target| has_nginx || *target != Target::Nginx)
        .collect();
    let Options {
        rounds, seconds, ..
    } = *options;
    say(format!(
        "{rounds} rounds of {} targets, {seconds} s of calls at {}/s and {seconds} s of wrk each",
        targets.len(),
        load::RATE
    ));
    let bench = Bench::new(sidecar, usize::try_from(seconds)? * TOKENS)?;
    if bench.cores.proxy.is_none() {
        say(
            "a single core: the proxy shares it with load and server, so only CPU per call means anything",
        );
    }
    let wrk = Wrk::new(&bench.folder)?;
    let mut rows: Vec<Row> = targets
        .into_iter()
        .map(|target| Row {
            target,
            samples: Vec::new(),
        })
        .collect();
    let (before, ours) = (Busy::now(bench.cores)?, bench.cpu_time()?);
    for round in 1..=rounds {
        say(format!("round {round} of {rounds}"));
        for row in &mut rows {
            let sample = bench
                .start(row.target)
                .and_then(|started| sample(&bench, &wrk, &started, seconds))
                .with_context(|| row.target.name().to_owned())?;
            row.samples.push(sample);
        }
    }
    let ours = bench.cpu_time()?.saturating_sub(ours);
    let others = Busy::now(bench.cores)?.others_since(before, ours);
    Ok(Report { rows, others })
}

/// One turn of a target.
fn sample(bench: &Bench, wrk: &Wrk, started: &Started, seconds: u64) -> Result<Sample> {
    let Started { proxy, request, .. } = started;
    let memory = |line| proxy.as_ref().map(|proxy| proxy.memory(line)).transpose();
    let cpu = || proxy.as_ref().map(child::Guarded::cpu_time).transpose();
    let idle = memory("VmRSS")?;
    let core = bench.cores.load;
    let duration = Duration::from_secs(seconds);
    let latencies = load::run(started.address, request, started.for_load(), duration, core)?;
    let before = cpu()?;
    let counted = wrk.run(started.address, request, started.for_wrk(), seconds, core)?;
    let used = cpu()?.zip(before).map(|(after, before)| after - before);
    let loaded = memory("VmHWM")?;
    let answered = latencies.count() as u64 + counted.calls;
    let audited = match &started.audit {
        Some(audit) => wait_for_lines(audit, answered)?,
        None => 0,
    };
    let in_front = |used: Duration| {
        Some(Proxy {
            cpu: used.as_secs_f64() * 1e6 / counted.calls as f64,
            busy: used.as_secs_f64() / counted.duration.as_secs_f64(),
            idle: idle?,
            loaded: loaded?,
            start: started.first_answer.as_secs_f64() * 1e3,
            audited,
        })
    };
    Ok(Sample {
        checked: latencies.count(),
        calls: counted.calls,
        rate: counted.calls as f64 / counted.duration.as_secs_f64(),
        p50: latencies.percentile(50),
        p99: latencies.percentile(99),
        proxy: used.and_then(in_front),
    })
}

/// Every call is in the audit log, if not at once.
fn wait_for_lines(audit: &child::Drained, calls: u64) -> Result<u64> {
    const WRITTEN: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + WRITTEN;
    loop {
        let lines = audit.lines();
        if lines >= calls {
            return Ok(lines);
        }
        ensure!(
            Instant::now() < deadline,
            "{calls} calls were answered, and only {lines} are in the audit log"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
