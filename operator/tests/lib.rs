//! What the tests beside it share.
#![allow(clippy::unwrap_used, clippy::new_without_default, missing_docs)]

pub mod fake;
pub mod hooks;

use serde_json::{Value, json};

/// What an API server answers where something is wrong.
fn status(code: u16, message: &str) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "",
    };
    let status = json!({
        "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message,
    });
    (code, status)
}
