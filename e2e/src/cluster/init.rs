//! Process 1 of the node: sets up its namespaces, starts the parts, restarts
//! what ends, reaps every orphan. It never ends by itself once the parts run;
//! its end is the end of the node.
//!
//! Nothing of the host is changed from here: folders that the node's parts
//! write to are covered by memory, the kernel settings that the kubelet wants
//! are shown to it as files.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_move};
use rustix::process::{WaitOptions, wait};

use super::network::NODE_INTERFACE;
use super::parts::{Gate, NodeSpec, Part};
use crate::sh::{self, command, run};

const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Runs the node of the instance in this folder; returns only with an error.
pub fn main(dir: &Path) -> Result<()> {
    if std::process::id() != 1 {
        bail!("node-init is process 1 of a node; use `up`");
    }
    let spec: NodeSpec = serde_json::from_slice(&sh::read(&dir.join("node.json"))?)?;
    mounts(&spec)?;
    kernel(&spec)?;
    network(&spec)?;
    Supervisor::new(spec).run()
}

/// Memory over the folders that the parts write to. `/var/lib` holds the
/// instance's folder, which therefore moves away and back.
fn mounts(spec: &NodeSpec) -> Result<()> {
    let programs = spec.dir.join("programs");
    sh::create_dir(&programs)?;
    mount_bind(&spec.programs, &programs).context("cannot bind the programs")?;
    tmpfs("/run")?;
    sh::create_dir(Path::new("/run/state"))?;
    mount_bind_recursive(&spec.dir, "/run/state").context("cannot bind the instance's folder")?;
    tmpfs("/var/lib")?;
    tmpfs("/var/log")?;
    sh::create_dir(&spec.dir)?;
    mount_move("/run/state", &spec.dir).context("cannot move the instance's folder back")?;
    sh::create_dir(Path::new("/run/lock"))
}

fn tmpfs(target: &str) -> Result<()> {
    mount(
        "tmpfs",
        target,
        "tmpfs",
        MountFlags::empty(),
        Some(c"mode=755"),
    )
    .with_context(|| format!("cannot mount a tmpfs on {target}"))
}

/// What the kubelet writes to the kernel at its start. The values are the
/// host's business, so files with what it wants to read lie over them.
const KUBELET_WANTS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

fn kernel(spec: &NodeSpec) -> Result<()> {
    for (name, value) in KUBELET_WANTS {
        let real = Path::new("/proc/sys").join(name);
        let shown = Path::new("/run/sysctl").join(name);
        if real.exists() {
            sh::write(&shown, value)?;
            mount_bind(&shown, &real)
                .with_context(|| format!("cannot cover {}", real.display()))?;
        }
    }
    fs::write("/proc/sys/kernel/hostname", &spec.hostname).context("cannot set the host name")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot enable forwarding")?;
    // Lets rules see traffic between pods of one bridge. Not every kernel has
    // it; nothing but such rules depends on it.
    let _ = run(&mut command("modprobe", &["br_netfilter"]));
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let _ = fs::write(Path::new("/proc/sys/net/bridge").join(name), "1");
    }
    Ok(())
}

fn network(spec: &NodeSpec) -> Result<()> {
    run(&mut command("ip", &["link", "set", "lo", "up"]))?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !fs::read_to_string("/proc/net/dev")?.contains(&format!("{NODE_INTERFACE}:")) {
        if Instant::now() > deadline {
            bail!("nobody connected the node: {NODE_INTERFACE} did not appear");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    run(&mut command(
        "ip",
        &["addr", "add", &spec.address, "dev", NODE_INTERFACE],
    ))?;
    run(&mut command("ip", &["link", "set", NODE_INTERFACE, "up"]))?;
    // The API server calls webhooks by their Services: the kernel looks for a route
    // before kube-proxy's rules put a pod's address in the place of a Service's.
    let route = ["route", "add", &spec.services, "dev", NODE_INTERFACE];
    run(&mut command("ip", &route))?;
    Ok(())
}

struct Supervisor {
    spec: NodeSpec,
    /// Running parts by process id.
    running: HashMap<i32, usize>,
    /// When a part may be started (again).
    due: HashMap<usize, Instant>,
}

impl Supervisor {
    fn new(spec: NodeSpec) -> Self {
        let now = Instant::now();
        let due = (0..spec.parts.len()).map(|part| (part, now)).collect();
        Self {
            spec,
            running: HashMap::new(),
            due,
        }
    }

    fn run(mut self) -> Result<()> {
        loop {
            self.reap();
            self.start_due()?;
            let pause = if self.due.is_empty() { 200 } else { 20 };
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    /// Collects all that ended: our parts and their orphans.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(part) = self.running.remove(&pid.as_raw_nonzero().get()) else {
                continue;
            };
            eprintln!("{} ended: {status:?}", self.spec.parts[part].name);
            self.due.insert(part, Instant::now() + RESTART_PAUSE);
        }
    }

    fn start_due(&mut self) -> Result<()> {
        let now = Instant::now();
        let ready: Vec<usize> = self
            .due
            .iter()
            .filter(|(part, due)| **due <= now && open(self.spec.parts[**part].after.as_ref()))
            .map(|(part, _)| *part)
            .collect();
        for part in ready {
            let pid = start(&self.spec.dir, &self.spec.parts[part])?;
            self.running.insert(pid, part);
            self.due.remove(&part);
        }
        Ok(())
    }
}

fn open(gate: Option<&Gate>) -> bool {
    match gate {
        None => true,
        Some(Gate::Tcp(address)) => TcpStream::connect(address).is_ok(),
        Some(Gate::Unix(path)) => UnixStream::connect(path).is_ok(),
    }
}

/// Starts a part with its output in its log. The handle is dropped: `reap`
/// waits for everybody.
fn start(dir: &Path, part: &Part) -> Result<i32> {
    eprintln!("{} starts", part.name);
    let (program, args) = part
        .argv
        .split_first()
        .context("a part without a program")?;
    let log = dir.join("logs").join(format!("{}.log", part.name));
    let log = OpenOptions::new().create(true).append(true).open(&log)?;
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    Ok(i32::try_from(child.id())?)
}
