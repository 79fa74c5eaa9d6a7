//! What the targets share: the sidecar's files that read bytes from outside,
//! compiled here with coverage counters and without all the rest of it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

#[path = "../../sidecar/src/envelope.rs"]
pub mod envelope;
#[path = "../../sidecar/src/frame.rs"]
pub mod frame;
#[path = "../../sidecar/src/sse.rs"]
pub mod sse;
#[path = "../../sidecar/src/strict/mod.rs"]
pub mod strict;

/// Most CPU time for one input: wall time would depend on what else runs.
const LIMIT: Duration = Duration::from_secs(1);

/// Runs a target on one input, and panics where it takes too long.
pub fn limited(target: impl FnOnce()) {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(time).expect("CPU time is not negative")
    };
    let before = now();
    target();
    let spent = now() - before;
    assert!(spent < LIMIT, "this input takes {spent:?}");
}
