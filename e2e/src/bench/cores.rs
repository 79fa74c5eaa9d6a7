//! Which core runs what: the proxy has one of its own, so that its share can
//! be told from that of the load and of the server.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::sh;

/// Cores of a measurement; none on a machine with a single one.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// For what is measured.
    pub proxy: Option<usize>,
    /// For the load, the server behind it, and whoever reads the audit log.
    pub load: Option<usize>,
}

impl Cores {
    /// The first two that this process may use.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn find() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("cannot read the affinity")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let (first, second) = (cores.next(), cores.next());
        Ok(Self {
            proxy: first.filter(|_| second.is_some()),
            load: second,
        })
    }
}

/// Time on the cores of a measurement, to tell how much of it was not ours.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// Clock ticks of all processes.
    all: u64,
    /// Clock ticks of all cores together, idle ones included.
    passed: u64,
}

impl Busy {
    /// Until now.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn now(cores: Cores) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let (mut all, mut passed) = (0, 0);
        let names = match (cores.proxy, cores.load) {
            (Some(proxy), Some(load)) => vec![format!("cpu{proxy} "), format!("cpu{load} ")],
            _ => vec!["cpu ".into()],
        };
        for name in names {
            let line = stat.lines().find_map(|line| line.strip_prefix(&name));
            // user nice system idle iowait irq softirq steal, see proc(5).
            let ticks: Vec<u64> = line
                .unwrap_or_default()
                .split_whitespace()
                .take(8)
                .filter_map(|ticks| ticks.parse().ok())
                .collect();
            let idle = ticks.iter().skip(3).take(2).sum::<u64>();
            passed += ticks.iter().sum::<u64>();
            all += ticks.iter().sum::<u64>() - idle;
        }
        Ok(Self { all, passed })
    }

    /// Which share of the cores others had since `before`, where we had so much.
    pub fn others_since(self, before: Self, ours: Duration) -> f64 {
        let ours = ours.as_secs_f64() * clock_ticks_per_second() as f64;
        let passed = (self.passed - before.passed) as f64;
        (((self.all - before.all) as f64 - ours) / passed).clamp(0.0, 1.0)
    }
}

/// Pins the calling thread, and what it starts from now on.
///
/// # Errors
/// Where the kernel refuses.
pub fn pin(core: Option<usize>) -> Result<()> {
    let Some(core) = core else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot use core {core}"))
}

/// Starts a command on a core.
///
/// # Errors
/// Where it cannot be started.
pub fn spawn_on(core: Option<usize>, command: &mut Command) -> Result<Child> {
    let before = sched_getaffinity(None).context("cannot read the affinity")?;
    pin(core)?;
    let child = command.spawn();
    sched_setaffinity(None, &before).context("cannot reset the affinity")?;
    child.with_context(|| format!("cannot start `{}`", sh::show(command)))
}
