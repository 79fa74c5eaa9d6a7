//! The election against an API server in memory.
#![allow(clippy::unwrap_used, missing_docs)]

use operator_tests::fake;

use std::{sync::Arc, time::Duration};

use fake::Fake;
use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use operator::leader::{Election, Fence, LEASE, Lost, Times};

/// How long is waited for what has to come: a slow machine is no failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Renewed often, and valid for long.
const TIMES: Times = Times {
    lease: Duration::from_secs(600),
    renew: Duration::from_secs(300),
    retry: Duration::from_millis(5),
};

fn replica(fake: &Fake, name: &str, times: Times) -> (Election, Arc<Fence>) {
    let fence = Arc::new(Fence::default());
    let election = Election::new(
        fake.client(),
        "toolward-system",
        name.to_owned(),
        times,
        fence.clone(),
    );
    (election, fence)
}

async fn wins(election: &mut Election) {
    let won = tokio::time::timeout(PATIENCE, election.win()).await;
    won.unwrap();
}

fn holder(fake: &Fake) -> Option<String> {
    let lease = fake.get("leases", LEASE).unwrap();
    let holder = lease["spec"]["holderIdentity"].as_str();
    holder.map(str::to_owned)
}

#[tokio::test]
async fn one_replica_acts_and_the_other_once_that_has_ended() {
    let fake = Fake::new();
    let (mut a, a_fence) = replica(&fake, "a", TIMES);
    let (mut b, b_fence) = replica(&fake, "b", TIMES);
    wins(&mut a).await;
    assert!(a_fence.is_open());
    let renewed = async {
        let mut renewals = 0;
        while renewals < 5 {
            let writes = fake.writes();
            renewals += writes.iter().filter(|write| *write == "PUT leases").count();
            tokio::time::sleep(TIMES.retry).await;
        }
    };
    tokio::select! {
        lost = a.hold() => panic!("{lost}"),
        () = b.win() => panic!("two hold the lease"),
        () = renewed => {}
    }
    assert_eq!(holder(&fake).as_deref(), Some("a"));
    assert!(!b_fence.is_open());
    a.release().await;
    assert!(!a_fence.is_open());
    assert_eq!(holder(&fake), None);
    wins(&mut b).await;
    assert!(b_fence.is_open());
    assert_eq!(holder(&fake).as_deref(), Some("b"));
}

#[tokio::test]
async fn the_lease_of_a_replica_that_is_gone_expires() {
    let fake = Fake::new();
    let times = Times {
        lease: Duration::from_secs(1),
        renew: Duration::from_millis(500),
        ..TIMES
    };
    let (mut a, _) = replica(&fake, "a", times);
    wins(&mut a).await;
    drop(a);
    let (mut b, _) = replica(&fake, "b", times);
    wins(&mut b).await;
    assert_eq!(holder(&fake).as_deref(), Some("b"));
}

#[tokio::test]
async fn who_has_lost_the_lease_knows_and_leaves_it_to_the_other() {
    let fake = Fake::new();
    let (mut a, fence) = replica(&fake, "a", TIMES);
    wins(&mut a).await;
    fake.change("leases", LEASE, |lease| {
        lease["spec"]["holderIdentity"] = "z".into();
    });
    let lost = tokio::time::timeout(PATIENCE, a.hold()).await.unwrap();
    assert_eq!(lost, Lost::Taken("z".to_owned()));
    assert!(!fence.is_open());
    fake.writes();
    a.release().await;
    assert_eq!(fake.writes(), [""; 0]);
    assert_eq!(holder(&fake).as_deref(), Some("z"));
}

#[tokio::test]
async fn who_cannot_renew_the_lease_stops() {
    let fake = Fake::new();
    let times = Times {
        renew: Duration::from_millis(200),
        ..TIMES
    };
    let (mut a, fence) = replica(&fake, "a", times);
    wins(&mut a).await;
    fake.refuse(Method::PUT, "leases", 500, "etcd is slow");
    let lost = tokio::time::timeout(PATIENCE, a.hold()).await.unwrap();
    assert_eq!(lost, Lost::Expired);
    assert!(!fence.is_open());
}

/// A write that is still under way when the lease is lost, or comes to itself
/// after a pause, must not leave the process.
#[tokio::test]
async fn nothing_is_written_without_the_lease() {
    let fake = Fake::new();
    let (mut a, fence) = replica(&fake, "a", TIMES);
    let client = fence.guard(&fake.client());
    let maps = Api::<ConfigMap>::namespaced(client, "shop");
    let mut map = ConfigMap::default();
    map.metadata.name = Some("m".to_owned());
    let params = PostParams::default();
    let refused = maps.create(&params, &map).await.unwrap_err();
    let why = refused.to_string();
    assert!(why.contains("does not hold the lease"), "{why}");
    assert_eq!(fake.writes(), [""; 0]);
    assert!(maps.get_opt("m").await.unwrap().is_none(), "it may read");
    wins(&mut a).await;
    fake.writes();
    maps.create(&params, &map).await.unwrap();
    assert_eq!(fake.writes(), ["POST configmaps"]);
    a.release().await;
    fake.writes();
    assert!(maps.create(&params, &map).await.is_err());
    assert_eq!(fake.writes(), [""; 0]);
}
