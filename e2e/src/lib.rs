//! A real Kubernetes node for end-to-end tests, and the harness around it.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use e2e::{Cluster, Image};
//!
//! let cluster = Cluster::ensure().await?;
//! cluster.load_images(&[Image::ServerEverything]).await?;
//! cluster.kubectl(&["get", "nodes"]).await?;
//! # Ok(())
//! # }
//! ```
//! ClusterIPs, pod addresses and NodePorts answer from the host directly.

pub mod bench;
pub mod cache;
pub mod checkout;
pub mod cluster;
pub mod conformance;
pub mod demo;
pub mod diagnose;
pub mod harness;
pub mod images;
pub mod laptop;
mod lock;
pub mod manifests;
pub mod mcp;
pub mod postgres;
pub mod relay;
pub mod release;
pub mod sh;
pub mod statements;
pub mod tools;
mod transcript;
pub mod wait;

pub use harness::Cluster;
pub use images::Image;
pub use mcp::{Endpoint, Mcp, mcp_connect, message, post};
pub use wait::{PATIENCE, PATIENT, wait_for};
