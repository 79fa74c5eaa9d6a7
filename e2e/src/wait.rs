//! Waiting for conditions instead of for time.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Longer than anything takes, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// The same, for kubectl.
pub const PATIENT: &str = "--timeout=5m";

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// After a check that took long, such as a run of kubectl: what is waited for needs
/// the processors too.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Calls `check` until it succeeds. Its error says what is still missing; the
/// last one becomes part of the time-out's error. A check that hangs counts
/// against the time-out as well.
///
/// ```
/// # async fn example() -> anyhow::Result<()> {
/// use std::time::Duration;
/// let number = e2e::wait_for("the answer", Duration::from_secs(5), || async {
///     anyhow::Ok(42)
/// })
/// .await?;
/// # Ok(())
/// # }
/// ```
pub async fn wait_for<T, F, Fut>(what: &str, timeout: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    let mut last = String::from("never answered");
    loop {
        let begun = Instant::now();
        let left = deadline.saturating_duration_since(begun);
        match tokio::time::timeout(left, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => {}
        }
        let rest = pause.max(LONGEST_REST.min(begun.elapsed() * 2));
        if Instant::now() + rest >= deadline {
            return Err(anyhow!("waited {timeout:?} for {what}; last seen: {last}"));
        }
        tokio::time::sleep(rest).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn succeeds_once_the_check_does() {
        let calls = Cell::new(0);
        let got = wait_for("three", Duration::from_secs(5), || async {
            calls.set(calls.get() + 1);
            if calls.get() == 3 {
                Ok(calls.get())
            } else {
                Err(anyhow!("only {}", calls.get()))
            }
        })
        .await
        .expect("three");
        assert_eq!(got, 3);
    }

    #[tokio::test]
    async fn the_time_out_tells_the_last_state() {
        let error = wait_for("more", Duration::from_millis(60), || async {
            Err::<(), _>(anyhow!("2 of 3 ready"))
        })
        .await
        .expect_err("never");
        assert!(
            error
                .to_string()
                .contains("for more; last seen: 2 of 3 ready"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_hanging_check_is_cut_off() {
        let error = wait_for("hang", Duration::from_millis(60), || async {
            std::future::pending::<Result<()>>().await
        })
        .await
        .expect_err("hangs");
        assert!(error.to_string().contains("never answered"), "{error}");
    }
}
