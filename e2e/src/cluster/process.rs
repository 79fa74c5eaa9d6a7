//! Processes named by id *and* start time, so that a reused id is never
//! mistaken for the process that was recorded.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process of the host's process namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Clock ticks from boot to its start.
    start: u64,
}

impl Process {
    /// The process with this id; none when it is gone or a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start })
    }

    /// This process.
    pub fn current() -> Result<Self> {
        let pid = i32::try_from(std::process::id())?;
        Self::of(pid).context("cannot read /proc/self/stat")
    }

    /// Whether it still runs.
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Its children's ids.
    pub fn children(self) -> Vec<i32> {
        let file = format!("/proc/{0}/task/{0}/children", self.pid);
        let text = fs::read_to_string(file).unwrap_or_default();
        text.split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect()
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(self) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        // The descriptor pins the process; only then is the start time checked.
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        if !self.alive() {
            return Ok(());
        }
        pidfd_send_signal(fd, Signal::KILL)
            .with_context(|| format!("cannot end process {}", self.pid))?;
        self.wait_gone(Duration::from_secs(30))
    }

    /// Waits for its end.
    pub fn wait_gone(self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while self.alive() {
            if Instant::now() > deadline {
                bail!(
                    "process {} is still there {timeout:?} after SIGKILL",
                    self.pid
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// State and start time from /proc/PID/stat. The name in parentheses may
/// itself contain spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let stat = "7 (a) R (b) S 1 7 7 0 -1 4194560 0 0 0 0 1 2 3 4 20 0 1 0 4711 1 2";
        assert_eq!(parse_stat(stat), Some(('S', 4711)));
        assert_eq!(parse_stat("7 (x"), None);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = Process::current().expect("self");
        assert!(me.alive());
        let other = Process {
            start: me.start + 1,
            ..me
        };
        assert!(!other.alive());
        other.kill().expect("nothing to do");
        assert!(me.alive());
    }
}
