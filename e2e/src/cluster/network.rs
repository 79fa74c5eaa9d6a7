//! The link between host and node. The host gets one interface and two routes
//! and nothing else; its firewall stays as it is.

use std::path::Path;

use anyhow::{Context, Result};

use super::plan::{Instance, Plan};
use super::process::Process;
use crate::sh::{command, run};

/// The node's name for its end of the link.
pub const NODE_INTERFACE: &str = "eth0";

/// Connects the node's network namespace with the host.
pub fn connect(instance: &Instance, plan: Plan, node: Process) -> Result<()> {
    let interface = instance.interface();
    let pid = node.pid.to_string();
    let host = format!("{}/24", plan.host_ip());
    let node_ip = plan.node_ip().to_string();
    let (services, pods) = (plan.service_cidr(), plan.pod_cidr());
    let link = [
        "link",
        "add",
        &interface,
        "type",
        "veth",
        "peer",
        "name",
        NODE_INTERFACE,
        "netns",
        &pid,
    ];
    run(&mut command("ip", &link))?;
    run(&mut command(
        "ip",
        &["addr", "add", &host, "dev", &interface],
    ))?;
    run(&mut command("ip", &["link", "set", &interface, "up"]))?;
    for cidr in [services, pods] {
        run(&mut command(
            "ip",
            &["route", "add", &cidr, "via", &node_ip, "dev", &interface],
        ))
        .with_context(|| format!("the addresses {cidr} are for pods and Services"))?;
    }
    Ok(())
}

/// Removes the link; its addresses and routes go with it.
pub fn disconnect(instance: &Instance) -> Result<()> {
    let interface = instance.interface();
    let exists = Path::new("/sys/class/net").join(&interface).exists();
    if exists {
        // It may vanish by itself in between: the node's namespace is ending.
        let deleted = run(&mut command("ip", &["link", "del", &interface]));
        if Path::new("/sys/class/net").join(&interface).exists() {
            deleted?;
        }
    }
    Ok(())
}
