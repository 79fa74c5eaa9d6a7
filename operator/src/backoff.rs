//! Waiting longer after each failure, with jitter and a cap.

use std::time::Duration;

/// Exponential backoff.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub cap: Duration,
}

impl Backoff {
    /// How long to wait after so many failures before this one: doubled each
    /// time, three quarters to all of it, so that many do not come at once.
    pub fn after(self, failures: u32) -> Duration {
        let full = self
            .first
            .saturating_mul(1 << failures.min(20))
            .min(self.cap);
        full.mul_f64(rand::random_range(0.75..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_cap() {
        let backoff = Backoff {
            first: Duration::from_millis(300),
            cap: Duration::from_secs(30),
        };
        for (failures, full) in [
            (0, 300),
            (1, 600),
            (4, 4800),
            (7, 30_000),
            (u32::MAX, 30_000),
        ] {
            let wait = backoff.after(failures).as_millis();
            assert!(
                wait <= full && wait >= full * 3 / 4 - 1,
                "{failures}: {wait}"
            );
        }
    }
}
