//! What the audit log says.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::wait_for;
use serde_json::Value;

use crate::lab::Guarded;

/// Waits for a record that has all these members.
pub async fn has(guarded: &Guarded, members: &[(&str, &str)]) -> Result<Value> {
    let what = format!("an audit record with {members:?}");
    wait_for(&what, Duration::from_secs(30), || async {
        let records = records(guarded)?;
        let fits = |record: &&Value| members.iter().all(|(name, value)| record[name] == *value);
        let found = records.iter().find(fits).cloned();
        found.with_context(|| format!("{records:?}"))
    })
    .await
}

/// All records so far.
pub fn records(guarded: &Guarded) -> Result<Vec<Value>> {
    let lines = guarded.running.stdout.all();
    let read = |line: &String| serde_json::from_str(line).with_context(|| line.clone());
    lines.iter().map(read).collect()
}
