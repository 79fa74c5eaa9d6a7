//! How often keys are read, and how long is waited for them.

use std::time::Duration;

/// The times of all issuers. The default is what is documented; tests make them
/// short.
#[derive(Clone, Debug)]
pub struct Times {
    /// Keys are read anew after this time where their issuer does not say when.
    pub fresh: Duration,
    /// Where it says (`max-age`), this is the least.
    pub min_fresh: Duration,
    /// And this the most.
    pub max_fresh: Duration,
    /// Between the beginnings of two attempts, whoever asks.
    pub pause: Duration,
    /// Between two attempts while they fail, at first; doubled up to `pause`.
    pub retry: Duration,
    /// A request waits so long for an attempt, at most; a little longer than
    /// `pause`, so that a key that was just made is found.
    pub wait: Duration,
    /// A document has to be there within this time.
    pub document: Duration,
    /// For a connection to one address.
    pub connect: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(300),
            min_fresh: Duration::from_secs(60),
            max_fresh: Duration::from_secs(3600),
            pause: Duration::from_secs(5),
            retry: Duration::from_millis(250),
            wait: Duration::from_secs(7),
            document: Duration::from_secs(10),
            connect: Duration::from_secs(3),
        }
    }
}

impl Times {
    /// How long keys are fresh whose issuer says this of them. They are read anew
    /// before `max_age` is over, after which they are not used any more.
    pub(super) fn freshness(&self, said: Option<Duration>, max_age: Duration) -> Duration {
        let said = said.unwrap_or(self.fresh);
        let fresh = said.clamp(self.min_fresh, self.max_fresh);
        fresh.min(max_age / 2).max(self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_anew_in_time_and_not_too_often() {
        let times = Times::default();
        let day = Duration::from_secs(24 * 3600);
        for (said, max_age, wanted) in [
            (None, day, 300),
            (Some(0), day, 60),
            (Some(59), day, 60),
            (Some(61), day, 61),
            (Some(u64::MAX), day, 3600),
            (None, Duration::from_secs(60), 30),
            (Some(3600), Duration::from_secs(3600), 1800),
            // No issuer is asked more often than that, whatever the server wants.
            (None, Duration::from_secs(2), 5),
        ] {
            let said = said.map(Duration::from_secs);
            let fresh = times.freshness(said, max_age);
            assert_eq!(fresh.as_secs(), wanted, "{said:?}, {max_age:?}");
        }
    }
}
