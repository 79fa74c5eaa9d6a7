//! A real single-node Kubernetes cluster in namespaces of its own.
//!
//! Everything on the host that belongs to an instance is named after it: the
//! folder below `/var/lib/toolward-e2e`, one network interface, one cgroup.
//! `down` removes all three, whatever state they are in.

mod cgroup;
mod config;
pub mod dns;
mod enforcer;
mod init;
mod network;
mod parts;
mod pki;
mod plan;
mod process;
mod ready;
mod state;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use config::PAUSE_IMAGE;
pub use enforcer::Enforcer;
pub use init::main as node_init;
pub use plan::{Instance, Plan};
pub use process::Process;
pub use state::{Record, State};

use crate::checkout;
use crate::images;
use crate::sh::{self, command, run, say};
use crate::tools::Tools;

/// The instance that commands and tests use: of `TOOLWARD_INSTANCE`, or else
/// of this checkout.
pub fn current() -> Result<Instance> {
    let name = env::var("TOOLWARD_INSTANCE").ok();
    Ok(Instance::new(&checkout::root()?, name.as_deref()))
}

/// Starts the cluster, or finds it running.
pub async fn up(instance: &Instance) -> Result<Record> {
    require_root()?;
    let state = State::of(&instance.id);
    let _lock = state::lock_instance(instance)?;
    if let Some(record) = state.record().filter(|r| r.ready && r.running()) {
        ready::api(&state, Duration::from_secs(60)).await?;
        say(format!(
            "instance {} already runs; node {}",
            instance.id,
            record.plan().node_ip()
        ));
        return Ok(record);
    }
    let begun = Instant::now();
    let checkout = checkout::root()?;
    let tools = Tools::ensure(&checkout)?;
    remove(&instance.id)?;
    let mut record = state::claim(instance, remove)?;
    say(format!(
        "starting instance {} in {}",
        instance.id,
        state.dir().display()
    ));
    launch(instance, &state, &mut record, &tools)?;
    ready::containerd(&state).await?;
    images::load_pause(&state, &checkout).await?;
    ready::all(&state, record.plan(), &node_name(instance)).await?;
    record.ready = true;
    state.save(&record)?;
    say(format!(
        "ready after {:.1} s",
        begun.elapsed().as_secs_f32()
    ));
    Ok(record)
}

/// Ends the cluster and removes all that belongs to it. True if there was
/// anything.
pub fn down(instance: &Instance) -> Result<bool> {
    require_root()?;
    let existed = State::of(&instance.id).dir().exists();
    let lock = state::lock_instance(instance)?;
    remove(&instance.id)?;
    lock.remove()?;
    state::remove_root_if_empty()?;
    Ok(existed)
}

fn require_root() -> Result<()> {
    let id = run(&mut command("id", &["-u"]))?;
    if id.trim() != "0" {
        bail!("namespaces, cgroups and routes need root; run this as root");
    }
    Ok(())
}

fn node_name(instance: &Instance) -> String {
    format!("toolward-{}", instance.id)
}

/// Writes all files, starts the node and connects it.
fn launch(instance: &Instance, state: &State, record: &mut Record, tools: &Tools) -> Result<()> {
    let (plan, name) = (record.plan(), node_name(instance));
    pki::write(state, plan, &name)?;
    config::write(state, instance, plan, &name)?;
    sh::write(
        &state.path("node.json"),
        serde_json::to_vec_pretty(&parts::node(state, plan, &name, tools))?,
    )?;
    sh::create_dir(&state.path("logs"))?;
    cgroup::create(&instance.cgroup())?;
    let launcher = start_launcher(state)?;
    record.launcher = Some(launcher);
    state.save(record)?;
    let node = first_child(state, launcher)?;
    record.node = Some(node);
    state.save(record)?;
    network::connect(instance, plan, node)
}

/// Starts `unshare`, which starts process 1 of the node. bash closes every
/// descriptor that this process inherited without the close-on-exec flag (the
/// jobserver's, for instance) and `setsid` cuts the ties to the terminal; the
/// process id is written because `setsid --fork` does not tell it.
const LAUNCH: &str = r#"
for fd in /proc/self/fd/*; do
  fd=${fd##*/}
  if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi
done
exec setsid --fork bash -c 'echo $$ >"$0.new" && mv "$0.new" "$0" && exec "$@"' "$@"
"#;

fn start_launcher(state: &State) -> Result<Process> {
    let pid_file = state.path("launcher.pid");
    // A copy: a rebuild may replace the program at any time.
    let program = state.path("bin/e2e");
    sh::create_dir(&state.path("bin"))?;
    fs::copy(own_program()?, &program).context("cannot copy the e2e program")?;
    let log = File::create(state.log("node-init"))?;
    let mut launch = command("bash", &["-c", LAUNCH, "launch"]);
    launch
        .arg(&pid_file)
        .args(["unshare", "--net", "--mount", "--pid", "--uts", "--fork"]);
    launch.args([
        "--kill-child=SIGKILL",
        "--mount-proc",
        "--propagation",
        "private",
    ]);
    launch.arg(program).arg("node-init").arg(state.dir());
    launch.env_clear().env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    launch
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let status = launch.status().context("cannot start bash")?;
    if !status.success() {
        bail!(
            "the node did not start ({status}):\n{}",
            sh::tail(&state.log("node-init"), 20)
        );
    }
    poll(state, "the launcher", || {
        let text = fs::read_to_string(&pid_file).ok()?;
        Process::of(text.trim().parse().ok()?)
    })
}

fn first_child(state: &State, launcher: Process) -> Result<Process> {
    poll(state, "process 1 of the node", || {
        launcher.children().into_iter().find_map(Process::of)
    })
}

fn poll<T>(state: &State, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!(
                "{what} did not appear:\n{}",
                sh::tail(&state.log("node-init"), 20)
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The `e2e` program: this process, or what Cargo built beside the test.
pub fn own_program() -> Result<PathBuf> {
    let this = env::current_exe().context("cannot find the running program")?;
    if this.file_name().is_some_and(|name| name == "e2e") {
        return Ok(this);
    }
    let beside = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("e2e"));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no `e2e` program near {}; run `cargo build --release -p e2e`",
                this.display()
            )
        })
}

/// Ends the processes of an instance and removes its link, its cgroup and its
/// folder. Everything may be missing.
fn remove(id: &str) -> Result<()> {
    let state = State::of(id);
    if let Some(record) = state.record() {
        let processes = [record.node, record.launcher];
        for process in processes.into_iter().flatten() {
            process.kill()?;
        }
    }
    let instance = Instance {
        id: id.to_owned(),
        origin: String::new(),
    };
    network::disconnect(&instance)?;
    cgroup::remove(&instance.cgroup())?;
    remove_folder(state.dir())
}

/// The namespace's mounts may take a moment to vanish after its last process.
fn remove_folder(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match sh::remove_dir(dir) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

/// A description of the instance for people.
pub async fn status(instance: &Instance) -> Result<String> {
    let state = State::of(&instance.id);
    let Some(record) = state.record() else {
        return Ok(format!(
            "instance {} ({}): down",
            instance.id, instance.origin
        ));
    };
    let plan = record.plan();
    let running = record.running();
    let node = if running { "running" } else { "gone" };
    let api = match running {
        false => "gone; `up` starts anew".to_owned(),
        true => match ready::api(&state, Duration::from_secs(3)).await {
            Ok(()) => "ready".to_owned(),
            Err(error) => format!("not ready: {error:#}"),
        },
    };
    Ok(format!(
        "instance    {} ({})\nfolder      {}\nnode        {node}, process {}, {}\nAPI server  {api}\n\
         host        {} on {}\nServices    {}\npods        {}\nimages      {}",
        instance.id,
        instance.origin,
        state.dir().display(),
        record.node.map_or(0, |node| node.pid),
        plan.node_ip(),
        plan.host_ip(),
        instance.interface(),
        plan.service_cidr(),
        plan.pod_cidr(),
        images::loaded(&state).join(" "),
    ))
}
