//! Calls at a fixed rate. Each has its time, whatever became of those before
//! it, and its latency counts from that time: a proxy that stalls cannot make
//! the load wait for it (no "coordinated omission").

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::thread::set_current_timer_slack;

use super::call::{Connection, LOAD_IDS, Request};
use super::cores::pin;

/// Calls per second.
pub const RATE: u32 = 1_000;
/// Connections that take turns: each has this many milliseconds for its call
/// before the next one waits.
const CONNECTIONS: u64 = 32;

/// Latencies in ascending order.
#[derive(Clone, Debug)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// The latency that `percent` of all calls do not exceed, in milliseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0
            .get(rank)
            .map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }

    /// Number of calls.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Sends [`RATE`] calls a second for so long, the tokens in turn, and checks
/// every answer.
///
/// # Errors
/// The first call that was not answered as it should be.
pub fn run(
    address: SocketAddr,
    request: &Request,
    tokens: &[String],
    duration: Duration,
    core: Option<usize>,
) -> Result<Latencies> {
    let calls = (duration.as_secs_f64() * f64::from(RATE)).round() as u64;
    // Time for all connections to be there.
    let start = Instant::now() + Duration::from_millis(100);
    let results: Vec<Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let one = |first: u64| {
            scope.spawn(move || {
                pin(core)?;
                // Sleep to the microsecond, not to the usual 50.
                set_current_timer_slack(NonZeroU64::new(1))?;
                let connection = Connection::open(address)?;
                in_turn(
                    connection,
                    request,
                    tokens,
                    start,
                    (first..calls).step_by(CONNECTIONS as usize),
                )
            })
        };
        let threads: Vec<_> = (0..CONNECTIONS).map(one).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .ok()
                    .context("a thread of the load panicked")?
            })
            .collect()
    });
    let mut latencies = Vec::with_capacity(calls as usize);
    for result in results {
        latencies.extend(result?);
    }
    latencies.sort_unstable();
    Ok(Latencies(latencies))
}

fn in_turn(
    mut connection: Connection,
    request: &Request,
    tokens: &[String],
    start: Instant,
    calls: impl Iterator<Item = u64>,
) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    for call in calls {
        let token = tokens.get(call as usize % tokens.len().max(1));
        let id = LOAD_IDS + call;
        let bytes = request.bytes(token.context("no token")?, id);
        let due = start + Duration::from_secs(call) / RATE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let answer = connection.send(&bytes)?;
        latencies.push(due.elapsed());
        answer.check(id)?;
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let latencies = Latencies((1..=200).map(Duration::from_millis).collect());
        let of = |percent| latencies.percentile(percent).round() as u64;
        assert_eq!((of(50), of(99), of(100)), (100, 198, 200));
        assert!(Latencies(Vec::new()).percentile(50).is_nan());
    }
}
