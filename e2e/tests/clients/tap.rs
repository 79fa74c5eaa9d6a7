//! What a stdio server was told: cancellations arrive, processes end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::wait_for;
use serde_json::Value;

use crate::server::Guarded;

const PATIENCE: Duration = Duration::from_secs(60);

/// Holds that the call of `tool` that the client gave up was cancelled in the
/// process that had it; `seen` is how much was told before the run.
pub async fn cancelled(server: &Guarded, seen: usize, tool: &str) -> Result<()> {
    wait_for("a cancellation", PATIENCE, || async {
        let told = server.told()?;
        let told = &told[seen..];
        let mut calls = told.iter().filter(|entry| {
            let message = &entry["message"];
            message["method"] == "tools/call" && message["params"]["name"] == tool
        });
        // The last one: others are left to finish.
        let call = calls.next_back().context("the server was never called")?;
        let of = |entry: &&Value| {
            let message = &entry["message"];
            entry["pid"] == call["pid"]
                && message["method"] == "notifications/cancelled"
                && message["params"]["requestId"] == call["message"]["id"]
        };
        let cancelled = told.iter().any(|entry| of(&entry));
        ensure!(cancelled, "{call} was not cancelled");
        Ok(())
    })
    .await
}

/// Holds that each process that had a call since then has ended. (The
/// sidecar's own conversation with the server calls nothing, and stays.)
pub async fn ended(server: &Guarded, seen: usize) -> Result<()> {
    wait_for("the end of the processes", PATIENCE, || async {
        let told = server.told()?;
        let told = &told[seen..];
        let calls = told
            .iter()
            .filter(|entry| entry["message"]["method"] == "tools/call");
        for call in calls {
            let exit = |entry: &Value| entry["pid"] == call["pid"] && entry.get("exit").is_some();
            ensure!(
                told.iter().any(exit),
                "process {} of the session still runs",
                call["pid"]
            );
        }
        Ok(())
    })
    .await
}
