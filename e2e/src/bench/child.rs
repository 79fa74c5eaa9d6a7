//! Processes of a measurement: pinned, watched, and ended by their ids,
//! whatever happens.

use std::fs;
use std::io::Read;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::param::clock_ticks_per_second;

use super::cores::{pin, spawn_on};
use crate::cluster::Process;

/// All that run, and whether more may start.
static RUNNING: Mutex<Running> = Mutex::new(Running {
    ending: false,
    processes: Vec::new(),
});

struct Running {
    ending: bool,
    processes: Vec<Process>,
}

/// Ends all processes and lets none start: for signals.
pub fn end_all() {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    running.ending = true;
    for process in running.processes.drain(..) {
        let _ = process.kill(); // The others have to end all the same.
    }
}

/// Time on a core of this process, its threads, and its children that have ended.
///
/// # Errors
/// Where the kernel does not tell.
pub fn own_cpu_time() -> Result<Duration> {
    ticks(&fs::read_to_string("/proc/self/stat")?, 4)
}

/// The sum of the first `count` of: user and system time, both of its ended
/// children; see proc(5).
fn ticks(stat: &str, count: usize) -> Result<Duration> {
    // The name in parentheses may contain spaces. After it: the third field.
    let fields = stat.rsplit_once(')').context("cannot read its times")?.1;
    let times = fields.split_whitespace().skip(11).take(count);
    let ticks = times.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_micros(
        ticks * 1_000_000 / clock_ticks_per_second(),
    ))
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Guarded {
    /// The process.
    pub child: Child,
    process: Process,
}

impl Guarded {
    /// Starts a command on a core.
    ///
    /// # Errors
    /// Where it cannot be started, or everything is to end.
    pub fn start(core: Option<usize>, command: &mut Command) -> Result<Self> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!running.ending, "interrupted");
        let child = spawn_on(core, command)?;
        let process = Process::of(child.id().try_into()?).context("it ended at once")?;
        running.processes.push(process);
        Ok(Self { child, process })
    }

    /// Time on a core so far, of all its threads, in user space and kernel.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        ticks(&self.file("stat")?, 2)
    }

    /// A line of its `/proc/PID/status` in MiB: `VmRSS` or `VmHWM`.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn memory(&self, line: &str) -> Result<f64> {
        let status = self.file("status")?;
        let kib = status
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("no {line}"))? / 1024.0)
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    fn file(&self, name: &str) -> Result<String> {
        let file = format!("/proc/{}/{name}", self.process.pid);
        fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait();
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.processes.retain(|other| *other != self.process);
    }
}

/// Reads a pipe to its end on a core, as the container runtime reads a log, and
/// counts the lines.
#[derive(Clone, Debug, Default)]
pub struct Drained(Arc<AtomicU64>);

impl Drained {
    /// Starts to read.
    pub fn start(core: Option<usize>, mut pipe: impl Read + Send + 'static) -> Self {
        let drained = Self::default();
        let lines = Arc::clone(&drained.0);
        std::thread::spawn(move || {
            let _ = pin(core); // Only a little more noise.
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                let ends = buffer[..count].iter().filter(|byte| **byte == b'\n');
                lines.fetch_add(ends.count() as u64, Ordering::Relaxed);
            }
        });
        drained
    }

    /// Lines so far.
    pub fn lines(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_past_a_hostile_name() -> Result<()> {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194560 0 0 0 0 1 2 3 4 20 0 1 0 4711 1 2";
        let tick = Duration::from_micros(1_000_000 / clock_ticks_per_second());
        assert_eq!(ticks(stat, 2)?, tick * 3);
        assert_eq!(ticks(stat, 4)?, tick * 10);
        assert!(ticks("7", 2).is_err());
        Ok(())
    }
}
