//! An instance's folder on disk and the record of what runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::plan::{Claim, Instance, Plan, choose_slot};
use super::process::Process;
use crate::lock::Lock;
use crate::sh;

/// Short, because socket paths end at 107 bytes.
const ROOT: &str = "/var/lib/toolward-e2e";

/// What is known about an instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The instance's id.
    pub id: String,
    /// Its checkout or name.
    pub origin: String,
    /// Its addresses.
    pub slot: u8,
    /// The process that starts it.
    pub starter: Process,
    /// `unshare`, the parent of the node.
    pub launcher: Option<Process>,
    /// Process 1 of the node.
    pub node: Option<Process>,
    /// Whether it was ready once.
    pub ready: bool,
}

impl Record {
    /// Whether the node runs.
    pub fn running(&self) -> bool {
        self.node.is_some_and(Process::alive)
    }

    fn alive(&self) -> bool {
        let processes = [
            Some(self.starter).filter(|_| !self.ready),
            self.launcher,
            self.node,
        ];
        processes.into_iter().flatten().any(Process::alive)
    }

    /// The instance's addresses.
    pub fn plan(&self) -> Plan {
        Plan { slot: self.slot }
    }
}

/// The folder of an instance.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

impl State {
    /// The folder of the instance with this id, whether it exists or not.
    pub fn of(id: &str) -> Self {
        Self {
            dir: Path::new(ROOT).join(id),
        }
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The log of a part of the node.
    pub fn log(&self, component: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{component}.log"))
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// containerd's socket. It lies outside of /run, which the node hides.
    pub fn containerd(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// The record; none when the instance was never started, or the record
    /// is broken.
    pub fn record(&self) -> Option<Record> {
        let bytes = fs::read(self.path("instance.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Replaces the record.
    pub fn save(&self, record: &Record) -> Result<()> {
        let new = self.path("instance.json.new");
        sh::write(&new, serde_json::to_vec_pretty(record)?)?;
        fs::rename(&new, self.path("instance.json")).context("cannot replace instance.json")
    }
}

/// The lock that `up` and `down` of one instance hold.
pub fn lock_instance(instance: &Instance) -> Result<Lock> {
    Lock::acquire(&Path::new(ROOT).join(format!("{}.lock", instance.id)))
}

/// Claims a slot and writes the first record. `clean` removes what a dead
/// instance left behind.
pub fn claim(instance: &Instance, clean: impl Fn(&str) -> Result<()>) -> Result<Record> {
    let _lock = Lock::acquire(&Path::new(ROOT).join("slots.lock"))?;
    let claims = claims()?;
    let Some(choice) = choose_slot(&instance.id, &claims) else {
        bail!("all slots of this machine are taken by running clusters; see the folders in {ROOT}");
    };
    if let Some(dead) = &choice.evict {
        sh::say(format!("removing what instance {dead} left behind"));
        clean(dead)?;
    }
    let record = Record {
        id: instance.id.clone(),
        origin: instance.origin.clone(),
        slot: choice.slot,
        starter: Process::current()?,
        launcher: None,
        node: None,
        ready: false,
    };
    State::of(&instance.id).save(&record)?;
    Ok(record)
}

fn claims() -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for entry in fs::read_dir(ROOT).with_context(|| format!("cannot read {ROOT}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(record) = State::of(&name).record() {
            claims.push(Claim {
                id: name,
                slot: record.slot,
                alive: record.alive(),
            });
        }
    }
    Ok(claims)
}

/// Removes the folder above all instances if this was the last one.
pub fn remove_root_if_empty() -> Result<()> {
    let lock = Lock::acquire(&Path::new(ROOT).join("slots.lock"))?;
    if fs::read_dir(ROOT)?.count() == 1 {
        lock.remove()?;
        // Another process may have come in between: then it stays.
        let _ = fs::remove_dir(ROOT);
    }
    Ok(())
}
