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

pub mod cache;
pub mod checkout;
pub mod cluster;
pub mod harness;
pub mod images;
mod lock;
pub mod mcp;
pub mod sh;
pub mod tools;
pub mod wait;

pub use harness::Cluster;
pub use images::Image;
pub use mcp::{Mcp, mcp_connect, message, post, post_with};
pub use wait::wait_for;
