//! Issuers outside of the bundle: how their keys are found, read, kept and
//! renewed; what callers are told meanwhile; and where they may not be.
//!
//! Most of it is the real binary in front of a scripted issuer. What would take
//! minutes with real times is shown where the times can be set, at the
//! authenticator (`seam`).
#![allow(clippy::unwrap_used, missing_docs)]

use sidecar_tests::common;

mod availability;
mod discovery;
mod expiry;
mod flood;
mod idp;
mod metadata;
mod outage;
mod rotation;
mod seam;
mod several;
mod ssrf;
mod tls;
mod world;
