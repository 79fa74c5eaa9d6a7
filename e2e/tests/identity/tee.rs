//! Before a server: passes on what comes, and keeps all of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A listener of this machine; it ends when dropped.
pub struct Tee {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    received: Mutex<Vec<u8>>,
    hangs_up: AtomicBool,
}

impl State {
    fn keep(&self, data: &[u8]) {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.extend_from_slice(data);
    }
}

impl Tee {
    /// In front of a port of this machine.
    pub async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let state = Arc::new(State::default());
        Ok(Self {
            address: listener.local_addr()?,
            task: tokio::spawn(accept(listener, port, Arc::clone(&state))),
            state,
        })
    }

    /// Every byte so far, one connection's mixed with the other's.
    pub fn received(&self) -> Vec<u8> {
        let received = self.state.received.lock();
        received.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it keeps what comes, and then ends the connection.
    pub fn hang_up(&self, on: bool) {
        self.state.hangs_up.store(on, Ordering::SeqCst);
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, port: u16, state: Arc<State>) {
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(pass(client, port, Arc::clone(&state)));
        while connections.try_join_next().is_some() {}
    }
}

/// Errors end the connection, as they do between any two.
async fn pass(client: TcpStream, port: u16, state: Arc<State>) -> Result<()> {
    let server = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from_client.read(&mut buffer).await?;
            let data = &buffer[..count];
            state.keep(data);
            if count == 0 || state.hangs_up.load(Ordering::SeqCst) {
                return anyhow::Ok(());
            }
            to_server.write_all(data).await?;
        }
    };
    let back = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        anyhow::Ok(())
    };
    // Whoever leaves first ends both.
    tokio::select! {
        there = there => there,
        back = back => back,
    }
}
