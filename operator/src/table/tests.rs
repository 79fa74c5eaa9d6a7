#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::ConfigMap;
use proptest::prelude::*;

use super::*;

fn map(name: &str, server: Option<&str>, version: u64) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.namespace = Some("shop".into());
    map.metadata.name = Some(name.into());
    map.metadata.resource_version = Some(version.to_string());
    if let Some(server) = server {
        map.labels_mut().insert(SERVER_LABEL.into(), server.into());
    }
    map
}

fn key(name: &str) -> Key {
    Key::new("shop", name)
}

fn names(table: &Table<ConfigMap>, server: &str) -> Vec<String> {
    let group = table.group(&key(server));
    group.iter().map(|map| map.name_any()).collect()
}

#[test]
fn a_change_names_who_lost_and_who_got_the_object() {
    let table = Table::default();
    table.apply(Event::Apply(map("a", Some("old"), 1)));
    let changes = table.apply(Event::Apply(map("a", Some("new"), 2)));
    let groups = BTreeSet::from([key("new"), key("old")]);
    assert_eq!(
        changes,
        [Change {
            key: key("a"),
            groups
        }]
    );
    assert_eq!(names(&table, "old"), [""; 0]);
    assert_eq!(names(&table, "new"), ["a"]);
}

#[test]
fn a_relist_tells_what_went_unseen_and_is_taken_in_at_its_end() {
    let table = Table::default();
    table.apply(Event::Apply(map("gone", Some("s"), 1)));
    table.apply(Event::Apply(map("same", Some("s"), 2)));
    assert!(!table.synced());
    table.apply(Event::Init);
    table.apply(Event::InitApply(map("same", Some("s"), 2)));
    table.apply(Event::InitApply(map("new", Some("s"), 3)));
    assert_eq!(names(&table, "s"), ["gone", "same"]);
    let changes = table.apply(Event::InitDone);
    let changed: Vec<_> = changes
        .iter()
        .map(|change| change.key.name.as_str())
        .collect();
    assert_eq!(changed, ["gone", "new"]);
    assert_eq!(names(&table, "s"), ["new", "same"]);
    assert!(table.synced());
}

#[test]
fn namespaces_are_apart() {
    let table = Table::default();
    table.apply(Event::Apply(map("a", None, 1)));
    let mut other = map("b", None, 2);
    other.metadata.namespace = Some("shop2".into());
    table.apply(Event::Apply(other));
    assert_eq!(table.keys_in("shop"), [key("a")]);
    assert_eq!(table.keys_in("sho"), []);
}

proptest! {
    /// Any interleaving of events, ended by a relist, gives what is there.
    #[test]
    fn a_relist_makes_good_whatever_was_missed(
        events in prop::collection::vec((0u8..4, 0usize..4, 0usize..3), 0..40),
        end in prop::collection::btree_map(0usize..4, 0usize..3, 0..4),
    ) {
        const SERVERS: [&str; 3] = ["x", "y", "z"];
        let table = Table::default();
        for (version, (event, name, server)) in (1..).zip(events) {
            let object = map(&format!("m{name}"), Some(SERVERS[server]), version);
            table.apply(match event {
                0 => Event::Init,
                1 => Event::InitApply(object),
                2 => Event::Delete(object),
                _ => Event::Apply(object),
            });
        }
        table.apply(Event::Init);
        for (name, server) in &end {
            table.apply(Event::InitApply(map(&format!("m{name}"), Some(SERVERS[*server]), 1000)));
        }
        table.apply(Event::InitDone);
        for (index, server) in SERVERS.iter().enumerate() {
            let expected: Vec<_> = end
                .iter()
                .filter(|(_, s)| **s == index)
                .map(|(name, _)| format!("m{name}"))
                .collect();
            prop_assert_eq!(names(&table, server), expected);
        }
        prop_assert_eq!(table.keys().len(), end.len());
    }
}
