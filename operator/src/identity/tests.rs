#![allow(clippy::unwrap_used)]

use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::{Value, json};

use super::*;

const AUDIENCE: &str = "toolward-identity/uid-orders";

fn key() -> PublicKey {
    Opener::new().unwrap().public_key().clone()
}

fn pod() -> Asked<'static> {
    Asked {
        address: ([127, 0, 0, 1], 1).into(),
        name: "orders-a",
        uid: "uid-a",
        account: "reader",
    }
}

/// What the API server says of a token that is right, with changes.
fn review(change: impl FnOnce(&mut Value)) -> TokenReviewStatus {
    let mut status = json!({
        "authenticated": true, "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:shop:reader",
            "extra": {POD_NAME: ["orders-a"], POD_UID: ["uid-a"], "authentication.kubernetes.io/node-name": ["n"]},
        },
    });
    change(&mut status);
    serde_json::from_value(status).unwrap()
}

/// What it is called, what is changed, and what is said of it.
type Case = (&'static str, fn(&mut Value), &'static str);

#[test]
fn a_token_is_of_this_pod_and_for_this_or_proves_nothing() {
    let checked = |review: &TokenReviewStatus| check(review, AUDIENCE, "shop", &pod());
    assert!(checked(&review(|_| {})).is_ok());
    let cases: [Case; 12] = [
        (
            "not valid",
            |s| s["authenticated"] = false.into(),
            "is not accepted",
        ),
        (
            "nothing said",
            |s| s["authenticated"] = Value::Null,
            "is not accepted",
        ),
        (
            "an error",
            |s| {
                s["authenticated"] = false.into();
                s["error"] = "pod has been deleted".into();
            },
            "pod has been deleted",
        ),
        ("no audience", |s| s["audiences"] = Value::Null, "audience"),
        (
            "another audience",
            |s| s["audiences"] = json!(["x"]),
            "audience",
        ),
        ("no user", |s| s["user"] = Value::Null, "not of this pod"),
        (
            "another account",
            |s| s["user"]["username"] = "system:serviceaccount:shop:default".into(),
            "shop:default",
        ),
        (
            "another namespace",
            |s| s["user"]["username"] = "system:serviceaccount:other:reader".into(),
            "other:reader",
        ),
        (
            "another pod",
            |s| s["user"]["extra"][POD_UID] = json!(["uid-b"]),
            "uid-b",
        ),
        (
            "a pod of the same name",
            |s| s["user"]["extra"][POD_NAME] = json!(["orders-b"]),
            "orders-b",
        ),
        (
            "no pod",
            |s| s["user"]["extra"] = Value::Null,
            "not of this pod",
        ),
        (
            "two pods",
            |s| s["user"]["extra"][POD_UID] = json!(["uid-a", "uid-b"]),
            "not of this pod",
        ),
    ];
    for (why, change, says) in cases {
        let error = checked(&review(change)).unwrap_err().to_string();
        assert!(error.contains(says), "{why}: {error}");
    }
    // What is left out is not there.
    let bare = TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.to_owned()]),
        user: Some(UserInfo::default()),
        error: None,
    };
    assert!(checked(&bare).is_err());
}

fn map(data: BTreeMap<String, String>) -> ConfigMap {
    ConfigMap {
        data: Some(data),
        ..ConfigMap::default()
    }
}

fn uids(uids: &[&str]) -> BTreeSet<String> {
    uids.iter().map(ToString::to_string).collect()
}

#[test]
fn there_is_one_key_for_each_pod_and_none_of_a_pod_that_is_gone() {
    let (a, b, again) = (key(), key(), key());
    let keys = |keys: &[(&str, &PublicKey)]| -> BTreeMap<String, PublicKey> {
        let owned = |(uid, key): &(&str, &PublicKey)| ((*uid).to_owned(), (*key).clone());
        keys.iter().map(owned).collect()
    };
    let both = Published::default().updated(keys(&[("a", &a), ("b", &b)]), &uids(&["a", "b"]));
    assert_eq!(both.kids(), BTreeSet::from([a.kid(), b.kid()]));
    let read = Published::of(&map(both.data().unwrap()));
    assert_eq!(read, both);
    // A container that restarted has another key.
    let next = read.updated(keys(&[("a", &again)]), &uids(&["a", "b", "c"]));
    assert_eq!(next.kids(), BTreeSet::from([again.kid(), b.kid()]));
    let gone = next.updated(BTreeMap::new(), &uids(&["b"]));
    assert_eq!(gone.kids(), BTreeSet::from([b.kid()]));
    let late = gone.updated(keys(&[("a", &a)]), &uids(&["b"]));
    assert_eq!(late.kids(), BTreeSet::from([b.kid()]));
}

#[test]
fn the_form_is_one_whatever_the_order_and_what_cannot_be_read_is_asked_for() {
    let empty = Published::default().data().unwrap();
    assert_eq!(empty[KEYS_FILE], r#"{"keys":[]}"#);
    let (a, b) = (key(), key());
    let published = |first: &PublicKey, second: &PublicKey| {
        let keys = BTreeMap::from([("1".into(), first.clone()), ("2".into(), second.clone())]);
        Published::default().updated(keys, &uids(&["1", "2"]))
    };
    let (one, other) = (published(&a, &b), published(&b, &a));
    assert_eq!(
        one.data().unwrap()[KEYS_FILE],
        other.data().unwrap()[KEYS_FILE]
    );
    assert_ne!(
        one.data().unwrap()[PODS_FILE],
        other.data().unwrap()[PODS_FILE]
    );
    let good = one.data().unwrap();
    for (file, text) in [
        (KEYS_FILE, ""),
        (KEYS_FILE, "{}"),
        (KEYS_FILE, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#),
        (PODS_FILE, ""),
        (PODS_FILE, r#"{"1":"unknown"}"#),
    ] {
        let mut bad = good.clone();
        bad.insert(file.to_owned(), text.to_owned());
        assert_eq!(
            Published::of(&map(bad)),
            Published::default(),
            "{file} {text}"
        );
    }
    assert_eq!(Published::of(&ConfigMap::default()), Published::default());
}
