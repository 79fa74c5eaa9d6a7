//! `toolward-sidecar drain`: the preStop hook. Asks the sidecar, which is
//! process 1 of this container, to stop intake, and waits until nothing is open.
//!
//! The signal can come only from this container, so the wrapped server, which
//! shares the pod's network, cannot drain us.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::server::{ADMIN_PORT, DRAIN, LEAVE};

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Process to drain.
    #[arg(long, default_value_t = 1)]
    pid: i32,
    /// Its admin port on loopback.
    #[arg(long, default_value_t = ADMIN_PORT)]
    admin_port: u16,
}

/// Drains.
///
/// # Errors
/// Where the process is not there, or calls are still open at the deadline.
pub async fn main(args: Args) -> anyhow::Result<()> {
    let Args { pid, admin_port } = args;
    let process = Pid::from_raw(pid).context("--pid must be positive")?;
    kill_process(process, Signal::USR1)
        .with_context(|| format!("process {pid} cannot be signalled"))?;
    let deadline = Instant::now() + DRAIN + LEAVE;
    while Instant::now() < deadline {
        if is_drained(admin_port).await.unwrap_or(false) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("calls are still open after {} s", (DRAIN + LEAVE).as_secs())
}

async fn is_drained(port: u16) -> std::io::Result<bool> {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(b"GET /drained HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        Ok(&status == b"HTTP/1.1 200")
    };
    tokio::time::timeout(Duration::from_secs(1), ask)
        .await
        .unwrap_or(Ok(false))
}
