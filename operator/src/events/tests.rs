#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;

fn condition(type_: ConditionType, status: ConditionStatus, reason: Reason) -> Condition {
    Condition {
        type_,
        status,
        reason,
        message: "why".into(),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        observed_generation: 1,
    }
}

fn reasons(before: &[Condition], after: &[Condition], new_bundle: bool) -> Vec<Reason> {
    let before = json!({ "conditions": before });
    let news = news(&before, after, new_bundle);
    news.into_iter().map(|news| news.reason).collect()
}

#[test]
fn only_changes_are_news() {
    use ConditionStatus::{False, True};
    use ConditionType::{Accepted, Programmed, Ready};
    let accepted = condition(Accepted, True, Reason::Accepted);
    let pending = condition(Programmed, False, Reason::Pending);
    let in_force = condition(Programmed, True, Reason::InForce);
    let failed = condition(Ready, False, Reason::ServerFailed);
    let one = std::slice::from_ref::<Condition>;
    assert_eq!(
        reasons(&[], &[accepted.clone(), pending.clone()], true),
        [Reason::Accepted]
    );
    assert_eq!(reasons(one(&accepted), one(&accepted), false), []);
    assert_eq!(
        reasons(one(&pending), one(&in_force), false),
        [Reason::InForce]
    );
    assert_eq!(
        reasons(one(&in_force), one(&in_force), true),
        [Reason::InForce]
    );
    assert_eq!(reasons(one(&in_force), one(&pending), true), []);
    assert_eq!(reasons(&[], one(&failed), false), [Reason::ServerFailed]);
    assert_eq!(reasons(one(&failed), one(&failed), false), []);
}

#[test]
fn a_server_that_is_reached_past_its_sidecar_is_a_warning() {
    use ConditionStatus::{False, True, Unknown};
    let isolated = |status, reason| condition(ConditionType::Isolated, status, reason);
    let unknown = isolated(Unknown, Reason::Pending);
    let loopback = isolated(True, Reason::LoopbackOnly);
    let shut = isolated(True, Reason::NetworkPolicyEnforced);
    let open = isolated(False, Reason::ServerPortReachable);
    let one = std::slice::from_ref::<Condition>;
    for (before, after) in [(&unknown, &loopback), (&loopback, &shut), (&open, &shut)] {
        assert_eq!(reasons(one(before), one(after), false), []);
    }
    for before in [&unknown, &loopback, &shut] {
        let before = json!({"conditions": [before]});
        let news = news(&before, one(&open), false);
        let [news] = &news[..] else {
            panic!("{news:?}")
        };
        assert!(news.warning);
        assert_eq!(news.reason, Reason::ServerPortReachable);
        assert_eq!(news.about, ConditionType::Isolated);
    }
    assert_eq!(reasons(one(&open), one(&open), false), []);
}

#[test]
fn a_refusal_is_told_once_and_not_by_each_condition() {
    let refused = |type_| condition(type_, ConditionStatus::False, Reason::PolicyInvalid);
    let conditions = [
        refused(ConditionType::Accepted),
        refused(ConditionType::Ready),
        refused(ConditionType::Enforced),
    ];
    assert_eq!(reasons(&[], &conditions, false), [Reason::PolicyInvalid]);
    let news = news(&Value::Null, &conditions, false);
    assert!(news[0].warning);
    assert_eq!(news[0].about, ConditionType::Accepted);
}
