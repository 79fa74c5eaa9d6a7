//! What the tests beside it share.

pub mod common;
