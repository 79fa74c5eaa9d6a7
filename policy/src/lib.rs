//! Who may do what: [`compile()`] turns resources into a [`Bundle`], [`decide()`]
//! answers for one call, [`limit`] counts, [`suspicious`] warns of likely mistakes.
//!
//! Invariants:
//! - No I/O, no clock, no environment: the same input gives the same answer in
//!   the sidecar, in the operator and in a test.
//! - Deny is the default, deny wins, and any doubt denies.

pub mod bundle;
mod compile;
mod decide;
mod glob;
pub mod limit;
pub mod peers;
mod reason;
pub mod report;
pub mod suspicious;
pub mod uri;
mod uri_glob;

pub use bundle::Bundle;
pub use compile::{AllowedIssuers, Compiled, Context, Diagnostic, PolicySource, compile, deny_all};
pub use decide::{Caller, Decision, Operation, decide, visible};
pub use glob::Glob;
pub use reason::Reason;
pub use uri_glob::{Template, UriGlob};
