//! The cgroup below which the kubelet puts all pods, on cgroup v1 and v2.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sh;

/// As much as ten threads outside: the pods together would otherwise weigh as much as
/// one, beside the node's programs and the tests.
const SHARES: (&str, &str) = ("cpu.shares", "10240");
const WEIGHT: (&str, &str) = ("cpu.weight", "1000");
const MOUNT: &str = "/sys/fs/cgroup";
const CONTROLLERS: &[&str] = &["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];

/// Creates the cgroup in every hierarchy.
pub fn create(name: &str) -> Result<()> {
    let root = Path::new(MOUNT);
    if unified(root) {
        return create_v2(root, name);
    }
    for hierarchy in hierarchies(root)?
        .into_iter()
        .filter(|h| h.join("tasks").is_file())
    {
        // The v2 tree that hybrid hosts mount beside v1 has no controllers.
        create_v1(&hierarchy, &hierarchy.join(name)).with_context(|| {
            format!("cannot set up the cgroup {name} in {}", hierarchy.display())
        })?;
    }
    Ok(())
}

/// Removes the cgroup and all below it, once its processes are gone.
pub fn remove(name: &str) -> Result<()> {
    let root = Path::new(MOUNT);
    let places = if unified(root) {
        vec![root.to_owned()]
    } else {
        hierarchies(root)?
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    for place in places {
        let cgroup = place.join(name);
        while let Err(error) = remove_tree(&cgroup) {
            if Instant::now() > deadline {
                bail!("cannot remove the cgroup {}: {error}", cgroup.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn unified(root: &Path) -> bool {
    root.join("cgroup.controllers").is_file()
}

/// The mounted hierarchies; links such as `cpu` to `cpu,cpuacct` once.
fn hierarchies(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("cannot read {MOUNT}"))? {
        let path = entry?.path().canonicalize()?;
        if path.is_dir() && !found.contains(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

fn create_v1(hierarchy: &Path, cgroup: &Path) -> Result<()> {
    sh::create_dir(cgroup)?;
    // A new cpuset is empty and takes no process until it has both.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if hierarchy.join(file).is_file() {
            fs::write(cgroup.join(file), fs::read(hierarchy.join(file))?)?;
        }
    }
    weigh(cgroup, SHARES)
}

/// Where the hierarchy has processors.
fn weigh(cgroup: &Path, (file, weight): (&str, &str)) -> Result<()> {
    let file = cgroup.join(file);
    if file.is_file() {
        fs::write(&file, weight).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn create_v2(root: &Path, name: &str) -> Result<()> {
    let cgroup = root.join(name);
    enable_controllers(root)?;
    sh::create_dir(&cgroup)?;
    weigh(&cgroup, WEIGHT)?;
    enable_controllers(&cgroup)
}

/// Hands to the children every controller that the cgroup has and pods need.
fn enable_controllers(cgroup: &Path) -> Result<()> {
    let available = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    let control = cgroup.join("cgroup.subtree_control");
    for name in available
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name))
    {
        fs::write(&control, format!("+{name}")).with_context(|| {
            format!(
                "cannot enable the controller {name} in {}; inside a container, move its \
                 processes to a child cgroup first",
                control.display()
            )
        })?;
    }
    Ok(())
}

fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(cgroup) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A v2 tree in a plain folder: what would be written where.
    #[test]
    fn v2_enables_what_is_available() {
        let root = std::env::temp_dir().join(format!("toolward-cgroup-{}", std::process::id()));
        sh::write(&root.join("cgroup.controllers"), "cpu memory rdma\n").expect("write");
        assert!(unified(&root));
        enable_controllers(&root).expect("enable");
        let written = fs::read_to_string(root.join("cgroup.subtree_control")).expect("read");
        assert_eq!(written, "+memory");
        sh::remove_dir(&root).expect("remove");
    }
}
