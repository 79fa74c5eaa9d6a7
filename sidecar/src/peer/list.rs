//! The list of replicas, as the operator writes it.

use std::{collections::HashMap, net::IpAddr};

pub use policy::peers::FILE;
use policy::peers::{Peers, Replica};

/// Replicas and their addresses.
#[derive(Debug, Default)]
pub(super) struct List {
    /// `sha256:…` of what was read.
    pub hash: Option<String>,
    /// Addresses by name.
    pub replicas: HashMap<String, IpAddr>,
}

impl List {
    /// Reads a list.
    ///
    /// # Errors
    /// What is wrong with it. A part of a list is no list.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let read = Peers::from_json(bytes).map_err(|error| error.to_string())?;
        let mut by_name = HashMap::with_capacity(read.replicas().len());
        for Replica { name, address } in read.replicas().iter().cloned() {
            if !is_name(&name) {
                return Err(format!("{name:?} is no name of a pod"));
            }
            if by_name.contains_key(&name) {
                return Err(format!("{name} is there twice"));
            }
            by_name.insert(name, address);
        }
        Ok(Self {
            hash: Some(policy::bundle::hash(bytes)),
            replicas: by_name,
        })
    }
}

/// Whether this can be the name of a pod (a DNS-1123 subdomain).
pub(super) fn is_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || byte == b'-';
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_whole_or_not_at_all() {
        for (list, error) in [
            (r#"{"version":2,"replicas":[]}"#.to_owned(), "version 2"),
            (r#"{"version":1}"#.into(), "missing field"),
            (r#"{"version":1,"replicas":[{"name":"a","address":"a.svc"}]}"#.into(), "IP address"),
            (r#"{"version":1,"replicas":[{"name":"a","address":"10.0.0.1:80"}]}"#.into(), "IP address"),
            (r#"{"version":1,"replicas":[{"name":"A","address":"10.0.0.1"}]}"#.into(), "no name"),
            (r#"{"version":1,"replicas":[{"name":"../a","address":"10.0.0.1"}]}"#.into(), "no name"),
            (r#"{"version":1,"replicas":[{"name":"a","address":"10.0.0.1","port":1}]}"#.into(), "unknown field"),
            (
                r#"{"version":1,"replicas":[{"name":"a","address":"10.0.0.1"},{"name":"a","address":"10.0.0.2"}]}"#.into(),
                "twice",
            ),
        ] {
            let got = List::from_json(list.as_bytes()).map(|_| ());
            assert!(got.as_ref().is_err_and(|got| got.contains(error)), "{error}: {got:?}");
        }
    }
}
