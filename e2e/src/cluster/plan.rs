//! Who an instance is and which addresses it has. Pure.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::sh;

/// How many instances one machine holds.
pub const SLOTS: u8 = 16;

/// One cluster: that of a checkout, or a named one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Eight hex digits; part of every name on the host.
    pub id: String,
    /// The checkout's path, or the name.
    pub origin: String,
}

impl Instance {
    /// The instance of a name, or of the checkout when there is none.
    pub fn new(checkout: &Path, name: Option<&str>) -> Self {
        let (id, origin) = match name.filter(|name| !name.is_empty()) {
            Some(name) => (sh::digest(["name", name]), name.to_owned()),
            None => {
                let path = checkout.display().to_string();
                (sh::sha256(&path), path)
            }
        };
        Self {
            id: id[..8].to_owned(),
            origin,
        }
    }

    /// The host's end of the link.
    pub fn interface(&self) -> String {
        format!("tw{}", self.id)
    }

    /// The cgroup below which all pods live.
    pub fn cgroup(&self) -> String {
        format!("toolward-{}", self.id)
    }
}

/// The addresses of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// 0 to 15.
    pub slot: u8,
}

impl Plan {
    /// The host's end of the link; pods reach processes of the host there.
    pub fn host_ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, self.slot, 1)
    }

    /// The node's end of the link: API server, DNS, NodePorts.
    pub fn node_ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, self.slot, 2)
    }

    /// Addresses of pods.
    pub fn pod_cidr(self) -> String {
        format!("10.99.{}.0/24", self.slot)
    }

    /// Addresses of Services.
    pub fn service_cidr(self) -> String {
        format!("10.100.{}.0/24", self.slot)
    }

    /// The Service `kubernetes`: always the first address.
    pub fn kubernetes_ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 100, self.slot, 1)
    }
}

/// Somebody's slot, as recorded on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The instance.
    pub id: String,
    /// Its slot.
    pub slot: u8,
    /// Whether its node, or the process that starts it, still runs.
    pub alive: bool,
}

/// The outcome of looking for a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The slot.
    pub slot: u8,
    /// A dead instance whose remains have to go first.
    pub evict: Option<String>,
}

/// The slot for an instance: its own, else the lowest one that nobody has,
/// else the lowest one whose owner is dead.
pub fn choose_slot(id: &str, claims: &[Claim]) -> Option<Choice> {
    let of = |slot: u8| claims.iter().filter(move |c| c.slot == slot && c.id != id);
    if let Some(own) = claims
        .iter()
        .find(|c| c.id == id && of(c.slot).next().is_none())
    {
        return Some(Choice {
            slot: own.slot,
            evict: None,
        });
    }
    let free = (0..SLOTS).find(|slot| of(*slot).next().is_none());
    if let Some(slot) = free {
        return Some(Choice { slot, evict: None });
    }
    (0..SLOTS)
        .find(|slot| of(*slot).all(|c| !c.alive))
        .map(|slot| Choice {
            slot,
            evict: of(slot).next().map(|c| c.id.clone()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: &str, slot: u8, alive: bool) -> Claim {
        Claim {
            id: id.to_owned(),
            slot,
            alive,
        }
    }

    fn choice(slot: u8, evict: Option<&str>) -> Option<Choice> {
        Some(Choice {
            slot,
            evict: evict.map(str::to_owned),
        })
    }

    #[test]
    fn the_first_gets_the_first_slot() {
        assert_eq!(choose_slot("a", &[]), choice(0, None));
    }

    #[test]
    fn others_are_left_alone() {
        let claims = [claim("b", 0, true), claim("c", 1, false)];
        assert_eq!(choose_slot("a", &claims), choice(2, None));
    }

    #[test]
    fn a_second_start_keeps_the_slot() {
        let claims = [claim("b", 0, true), claim("a", 3, false)];
        assert_eq!(choose_slot("a", &claims), choice(3, None));
    }

    #[test]
    fn a_full_machine_evicts_the_dead_only() {
        let mut claims: Vec<Claim> = (0..SLOTS)
            .map(|slot| claim(&format!("i{slot}"), slot, slot != 5))
            .collect();
        assert_eq!(choose_slot("a", &claims), choice(5, Some("i5")));
        claims[5].alive = true;
        assert_eq!(choose_slot("a", &claims), None);
    }

    #[test]
    fn names_and_checkouts_differ() {
        let path = Path::new("/some/checkout");
        let own = Instance::new(path, None);
        assert_eq!(own, Instance::new(path, Some("")));
        assert_ne!(own.id, Instance::new(path, Some("other")).id);
        assert_ne!(own.id, Instance::new(Path::new("/another"), None).id);
        assert_eq!(own.id.len(), 8);
        // The kernel's limit is 15.
        assert!(own.interface().len() <= 15);
    }

    #[test]
    fn slots_do_not_overlap() {
        let (a, b) = (Plan { slot: 0 }, Plan { slot: 15 });
        assert_eq!(a.node_ip().to_string(), "10.98.0.2");
        assert_eq!(b.host_ip().to_string(), "10.98.15.1");
        assert_ne!(a.pod_cidr(), b.pod_cidr());
        assert!(b.service_cidr().starts_with("10.100.15."));
        assert_eq!(b.kubernetes_ip().to_string(), "10.100.15.1");
    }
}
