//! The list of replicas, as the operator writes it.

use std::{collections::HashMap, net::IpAddr};

use serde::Deserialize;

/// The key in the ConfigMap, and so the file's name in the mounted folder.
pub const FILE: &str = "peers.json";
/// The version of the wire form.
const VERSION: u32 = 1;
/// Replicas at most.
const MAX_REPLICAS: usize = 1000;
/// Largest list, in bytes: a name has at most 253.
pub(super) const MAX_BYTES: usize = MAX_REPLICAS * 384;

/// Replicas and their addresses.
#[derive(Debug, Default)]
pub(super) struct List {
    /// `sha256:…` of what was read.
    pub hash: Option<String>,
    /// Addresses by name.
    pub replicas: HashMap<String, IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    replicas: Vec<Replica>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replica {
    name: String,
    address: IpAddr,
}

impl List {
    /// Reads a list.
    ///
    /// # Errors
    /// What is wrong with it. A part of a list is no list.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let Written { version, replicas } =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!(
                "version {version}; this sidecar reads version {VERSION}"
            ));
        }
        if replicas.len() > MAX_REPLICAS {
            return Err(format!(
                "{} replicas; at most {MAX_REPLICAS} are read",
                replicas.len()
            ));
        }
        let mut by_name = HashMap::with_capacity(replicas.len());
        for Replica { name, address } in replicas {
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
        let many: Vec<_> = (0..=MAX_REPLICAS)
            .map(|n| format!(r#"{{"name":"r{n}","address":"10.0.0.1"}}"#))
            .collect();
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
            (format!(r#"{{"version":1,"replicas":[{}]}}"#, many.join(",")), "at most 1000"),
        ] {
            let got = List::from_json(list.as_bytes()).map(|_| ());
            assert!(got.as_ref().is_err_and(|got| got.contains(error)), "{error}: {got:?}");
        }
        let good = format!(r#"{{"version":1,"replicas":[{}]}}"#, many[1..].join(","));
        assert!(good.len() <= MAX_BYTES);
        assert_eq!(
            List::from_json(good.as_bytes()).map(|list| list.replicas.len()),
            Ok(MAX_REPLICAS)
        );
    }
}
