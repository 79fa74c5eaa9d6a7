//! What the API server has, as the watches tell it.
//!
//! Invariants:
//! - A relist replaces the table in one step, and what it no longer has counts
//!   as a change: a deletion that no watch saw is seen here.
//! - A change names the groups before and after it, so that who lost an object
//!   learns of it as well as who got it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use kube::{Resource, ResourceExt, runtime::watcher::Event};

use crate::names::{Key, SERVER_LABEL};

/// An object in a [`Table`].
pub trait Row {
    /// Its name.
    fn key(&self) -> Key;
    /// The servers that it belongs to.
    fn groups(&self) -> BTreeSet<Key>;
    /// Differs when the object differs.
    fn version(&self) -> Option<String>;
}

impl<K: Resource> Row for K {
    fn key(&self) -> Key {
        Key::of(self)
    }

    fn groups(&self) -> BTreeSet<Key> {
        let namespace = self.meta().namespace.as_deref().unwrap_or_default();
        let server = self.labels().get(SERVER_LABEL);
        server
            .map(|name| Key::new(namespace, name))
            .into_iter()
            .collect()
    }

    fn version(&self) -> Option<String> {
        self.resource_version()
    }
}

/// An object came, changed or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub key: Key,
    /// The servers that it belongs to or belonged to.
    pub groups: BTreeSet<Key>,
}

#[derive(Debug)]
struct Rows<V> {
    rows: BTreeMap<Key, Arc<V>>,
    members: BTreeMap<Key, BTreeSet<Key>>,
    relist: Option<BTreeMap<Key, Arc<V>>>,
    synced: bool,
}

/// All objects of one kind.
#[derive(Debug)]
pub struct Table<V>(RwLock<Rows<V>>);

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self(RwLock::new(Rows {
            rows: BTreeMap::new(),
            members: BTreeMap::new(),
            relist: None,
            synced: false,
        }))
    }
}

impl<V: Row> Table<V> {
    /// Takes in what a watch tells; returns what changed by it.
    pub fn apply(&self, event: Event<V>) -> Vec<Change> {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => {
                table.relist = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply(row) => {
                let key = row.key();
                table.relist.get_or_insert_default().insert(key, row.into());
                Vec::new()
            }
            Event::InitDone => table.replace(),
            Event::Apply(row) => vec![table.set(row.key(), Some(row.into()))],
            Event::Delete(row) => vec![table.set(row.key(), None)],
        }
    }

    /// Whether the first list is complete.
    pub fn synced(&self) -> bool {
        self.read(|table| table.synced)
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<V>> {
        self.read(|table| table.rows.get(key).cloned())
    }

    /// The objects of one server, by name.
    pub fn group(&self, server: &Key) -> Vec<Arc<V>> {
        self.read(|table| {
            let members = table.members.get(server).into_iter().flatten();
            members
                .filter_map(|key| table.rows.get(key))
                .cloned()
                .collect()
        })
    }

    /// All names.
    pub fn keys(&self) -> Vec<Key> {
        self.read(|table| table.rows.keys().cloned().collect())
    }

    /// The servers that the objects belong to.
    pub fn servers(&self) -> Vec<Key> {
        self.read(|table| table.members.keys().cloned().collect())
    }

    /// All names in one namespace.
    pub fn keys_in(&self, namespace: &str) -> Vec<Key> {
        self.read(|table| {
            let from = table.rows.range(Key::new(namespace, "")..);
            from.map(|(key, _)| key)
                .take_while(|key| key.namespace == namespace)
                .cloned()
                .collect()
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Rows<V>) -> T) -> T {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<V: Row> Rows<V> {
    fn set(&mut self, key: Key, new: Option<Arc<V>>) -> Change {
        let old = match &new {
            Some(row) => self.rows.insert(key.clone(), row.clone()),
            None => self.rows.remove(&key),
        };
        let mut groups = BTreeSet::new();
        for group in old.iter().flat_map(|row| row.groups()) {
            if let Some(members) = self.members.get_mut(&group) {
                members.remove(&key);
                if members.is_empty() {
                    self.members.remove(&group);
                }
            }
            groups.insert(group);
        }
        for group in new.iter().flat_map(|row| row.groups()) {
            self.members
                .entry(group.clone())
                .or_default()
                .insert(key.clone());
            groups.insert(group);
        }
        Change { key, groups }
    }

    fn replace(&mut self) -> Vec<Change> {
        let new = self.relist.take().unwrap_or_default();
        self.synced = true;
        let gone: Vec<_> = self
            .rows
            .keys()
            .filter(|key| !new.contains_key(key))
            .cloned()
            .collect();
        let mut changes: Vec<_> = gone.into_iter().map(|key| self.set(key, None)).collect();
        for (key, row) in new {
            let version = row.version();
            let same = version.is_some()
                && self
                    .rows
                    .get(&key)
                    .is_some_and(|old| old.version() == version);
            if !same {
                changes.push(self.set(key, Some(row)));
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests;
