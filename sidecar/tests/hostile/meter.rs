//! What an attack costs the attacker, and what it costs the sidecar.

use std::{fs, future::Future, time::Duration};

use crate::common::Sidecar;

/// What a connection costs on the wire beside what is sent: handshake,
/// acknowledgements and end, at 60 bytes each.
const CONNECTION: u64 = 5 * 60;
/// Memory that is no attack: buffers, arenas and thread stacks that any traffic
/// makes grow once.
const WARM: u64 = 4 << 20;
/// The most that an attack may cost, as a multiple of what it costs the attacker.
const MAX_AMPLIFICATION: f64 = 100.0;

/// What the attacker did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub connections: u64,
    pub bytes: u64,
}

/// What an attack cost.
#[derive(Debug)]
pub struct Cost {
    pub spent: Spent,
    pub attacker_cpu: Duration,
    pub sidecar_cpu: Duration,
    /// Growth of the resident set at its peak, in bytes.
    pub grown: u64,
    /// Requests that reached the server.
    pub upstream: usize,
}

/// Runs an attack on a thread of its own and meters it.
pub async fn attack<T: Send + 'static, F: Future<Output = (Spent, T)>>(
    sidecar: &Sidecar,
    upstream: impl Fn() -> usize,
    attack: impl FnOnce() -> F + Send + 'static,
) -> (Cost, T) {
    let pid = sidecar.child.id();
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let before = (memory(pid, "VmRSS:"), cpu(pid), upstream());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let before = own_cpu();
        let done = runtime.block_on(attack());
        (done, own_cpu() - before)
    });
    let ((spent, result), attacker_cpu) =
        tokio::task::spawn_blocking(move || thread.join().unwrap())
            .await
            .unwrap();
    let cost = Cost {
        spent,
        attacker_cpu,
        sidecar_cpu: cpu(pid).saturating_sub(before.1),
        grown: memory(pid, "VmHWM:").saturating_sub(before.0),
        upstream: upstream() - before.2,
    };
    (cost, result)
}

impl Cost {
    /// Prints the figures, and checks them.
    pub fn report(&self, what: &str) {
        let sent = self.spent.bytes + self.spent.connections * CONNECTION;
        let memory = self.grown.saturating_sub(WARM) as f64 / sent.max(1) as f64;
        // What takes the attacker nothing is no measure.
        let attacker = self.attacker_cpu.max(Duration::from_millis(10));
        let cpu = self.sidecar_cpu.as_secs_f64() / attacker.as_secs_f64();
        println!(
            "{what}: {} connections, {} KiB on the wire; memory +{} KiB (×{memory:.1}), CPU {:?} against {:?} (×{cpu:.1}), {} requests reached the server",
            self.spent.connections,
            sent / 1024,
            self.grown / 1024,
            self.sidecar_cpu,
            self.attacker_cpu,
            self.upstream,
        );
        assert!(memory < MAX_AMPLIFICATION, "{what}: memory ×{memory:.1}");
        assert!(cpu < MAX_AMPLIFICATION, "{what}: CPU ×{cpu:.1}");
    }
}

/// A line of the process's status, in bytes.
pub fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// CPU time of all threads of a process that live: the sidecar's workers do.
pub fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let spent = tasks.map(|task| -> u64 {
        let schedstat = fs::read_to_string(task.unwrap().path().join("schedstat"));
        let schedstat = schedstat.unwrap_or_default();
        let spent = schedstat.split(' ').next().unwrap_or_default();
        spent.parse().unwrap_or_default()
    });
    Duration::from_nanos(spent.sum())
}

/// Time of this thread.
fn own_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}
