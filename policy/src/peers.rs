//! Who the replicas of a server are: a second key in the ConfigMap of the
//! bundle, written by the operator and read by the sidecars, so that a session
//! is found on the replica that holds it. It grants nothing: who calls proves
//! who it is, and names in session ids are looked up here, never dialled.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The version of this form.
pub const VERSION: u32 = 1;
/// The key in the ConfigMap, and so the file's name in the mounted folder.
pub const FILE: &str = "peers.json";
/// The most replicas that are named.
pub const MAX_REPLICAS: usize = 1000;
/// The largest text: with the largest bundle it fits into a ConfigMap (1 MiB).
pub const MAX_BYTES: usize = 120 * 1024;

/// The audience of the tokens with which the replicas of a server prove who they
/// are to each other; `uid` is that of the `McpServer`.
pub fn audience(uid: &str) -> String {
    format!("toolward-peer/{uid}")
}

/// The replicas of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    version: u32,
    replicas: Vec<Replica>,
}

/// A pod of the server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// Name of the pod.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// Why the replicas cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The text is larger than [`MAX_BYTES`], or names more than [`MAX_REPLICAS`].
    #[error(
        "the list of replicas is too large: at most {MAX_BYTES} bytes and {MAX_REPLICAS} replicas are read"
    )]
    TooLarge,
    /// It is of a version that this code does not read.
    #[error("the list of replicas is of version {0}; this release reads version {VERSION}")]
    Version(u32),
    /// It is not what it should be.
    #[error("the list of replicas cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

impl Peers {
    /// These replicas, in whatever order. Of too many, those that come last by
    /// name are left out: their sessions are only found on themselves.
    pub fn new(replicas: impl IntoIterator<Item = Replica>) -> Self {
        let mut replicas: Vec<_> = replicas.into_iter().collect();
        replicas.sort();
        replicas.dedup_by(|a, b| a.name == b.name);
        let mut left = MAX_BYTES - 64;
        let fits = |replica: &Replica| {
            let size = replica.name.len() + replica.address.to_string().len() + 25;
            left.checked_sub(size).map(|rest| left = rest).is_some()
        };
        let replicas = replicas.into_iter().take(MAX_REPLICAS).take_while(fits);
        Self {
            version: VERSION,
            replicas: replicas.collect(),
        }
    }

    /// Reads the replicas.
    ///
    /// # Errors
    /// See [`PeersError`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, PeersError> {
        if bytes.len() > MAX_BYTES {
            return Err(PeersError::TooLarge);
        }
        let peers: Self = serde_json::from_slice(bytes)?;
        if peers.version != VERSION {
            return Err(PeersError::Version(peers.version));
        }
        if peers.replicas.len() > MAX_REPLICAS {
            return Err(PeersError::TooLarge);
        }
        Ok(peers)
    }

    /// Writes the replicas; the same replicas give the same bytes.
    ///
    /// # Errors
    /// Where they cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, PeersError> {
        Ok(serde_json::to_string(self)?)
    }

    /// The address of a replica.
    pub fn address(&self, name: &str) -> Option<IpAddr> {
        let found = self.replicas.iter().find(|replica| replica.name == name);
        found.map(|replica| replica.address)
    }

    /// All replicas, by name.
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn replica(name: &str, address: &str) -> Replica {
        Replica {
            name: name.to_owned(),
            address: address.parse().unwrap(),
        }
    }

    /// The form of version 1: sidecars of other releases read it too.
    #[test]
    fn the_form_is_as_it_was_whatever_the_order() {
        let (a, b) = (
            replica("orders-a", "10.0.0.2"),
            replica("orders-b", "fd00::1"),
        );
        let expected = r#"{"version":1,"replicas":[{"name":"orders-a","address":"10.0.0.2"},{"name":"orders-b","address":"fd00::1"}]}"#;
        for replicas in [[a.clone(), b.clone()], [b, a]] {
            let peers = Peers::new(replicas);
            assert_eq!(peers.to_json().unwrap(), expected);
            assert_eq!(Peers::from_json(expected.as_bytes()).unwrap(), peers);
        }
        let peers = Peers::from_json(expected.as_bytes()).unwrap();
        assert_eq!(peers.address("orders-b"), "fd00::1".parse().ok());
        assert_eq!(peers.address("orders"), None);
        assert_eq!(peers.replicas().len(), 2);
    }

    #[test]
    fn what_is_written_can_be_read_however_many_there_are() {
        for (length, most) in [(8, MAX_REPLICAS), (253, MAX_REPLICAS - 1)] {
            let name = |index: usize| format!("{index:0length$}");
            let replicas = (0..2000)
                .map(|index| replica(&name(index), "fd00:1111:2222:3333:4444:5555:6666:7777"));
            let peers = Peers::new(replicas);
            assert!((300..=most).contains(&peers.replicas().len()));
            let json = peers.to_json().unwrap();
            assert!(json.len() <= MAX_BYTES);
            assert_eq!(Peers::from_json(json.as_bytes()).unwrap(), peers);
        }
    }

    #[test]
    fn what_is_not_known_or_too_large_is_refused() {
        let many = format!(
            r#"{{"version":1,"replicas":[{}]}}"#,
            vec![r#"{"name":"a","address":"10.0.0.1"}"#; MAX_REPLICAS + 1].join(",")
        );
        for text in [
            "",
            "{}",
            r#"{"version":2,"replicas":[]}"#,
            r#"{"version":1,"replicas":[],"port":1}"#,
            r#"{"version":1,"replicas":[{"name":"a","address":"example.com"}]}"#,
            r#"{"version":1,"replicas":[{"name":"a","address":"10.0.0.1","port":1}]}"#,
            &many,
            &" ".repeat(MAX_BYTES + 1),
        ] {
            assert!(Peers::from_json(text.as_bytes()).is_err(), "{text:.60}");
        }
    }
}
