//! Whole rounds of the reconcilers against an API server in memory.
#![allow(clippy::unwrap_used, missing_docs)]

use operator_tests::fake;

use fake::Fake;
use http::Method;
use operator::workers::{Next, Reconcile};
use serde_json::{Value, json};

fn server(name: &str) -> Value {
    json!({
        "spec": {
            "deployment": {"image": "registry.example/orders:1", "resources": {"requests": {"cpu": "0.5"}}},
            "transport": {"type": "StreamableHttp"},
        },
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 1},
    })
}

fn tool_policy(name: &str, target: &str, from: Value) -> Value {
    json!({
        "spec": {
            "targetRefs": [{"name": target}],
            "rules": [{"name": "r", "effect": "Allow", "from": [from], "tools": ["*"]}],
        },
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 1},
    })
}

fn bundle(fake: &Fake) -> Value {
    let map = fake.get("configmaps", "orders-toolward").unwrap();
    serde_json::from_str(map["data"]["bundle.json"].as_str().unwrap()).unwrap()
}

fn condition(fake: &Fake, plural: &str, name: &str, type_: &str) -> (String, String) {
    let object = fake.get(plural, name).unwrap();
    let conditions = object["status"]["conditions"].as_array().unwrap().clone();
    let condition = conditions.into_iter().find(|c| c["type"] == type_).unwrap();
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    (
        format!("{}/{}", text("status"), text("reason")),
        text("message"),
    )
}

#[tokio::test]
async fn a_server_becomes_what_runs_and_then_nothing_is_written() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.put(
        "mcptoolpolicies",
        tool_policy("p", "orders", json!({"everyone": true})),
    );
    let mut memory = Default::default();
    let servers = fake.servers();
    servers
        .reconcile(&Fake::key("orders"), &mut memory)
        .await
        .unwrap();
    let writes = fake.writes();
    assert_eq!(
        writes,
        [
            "PATCH services/orders",
            "PATCH configmaps/orders-toolward",
            "PATCH networkpolicies/orders-toolward",
            "PATCH deployments/orders",
            "PATCH mcpservers/orders/status",
            "POST events",
        ]
    );
    let bundle = bundle(&fake);
    assert_eq!(bundle["rules"].as_array().unwrap().len(), 1);
    assert_eq!(
        bundle["operator"],
        "system:serviceaccount:toolward-system:toolward-operator"
    );
    let hosts = [
        "10.0.0.1",
        "[fd00::1]",
        "orders",
        "orders.shop",
        "orders.shop.svc",
        "orders.shop.svc.cluster.local",
    ];
    assert_eq!(bundle["hosts"], json!(hosts));
    assert_eq!(
        condition(&fake, "mcpservers", "orders", "Accepted").0,
        "True/Accepted"
    );
    for name in ["orders", "orders"] {
        fake.sync();
        let next = servers
            .reconcile(&Fake::key(name), &mut memory)
            .await
            .unwrap();
        assert_eq!((next, fake.writes()), (Next::WhenWoken, vec![]));
    }
    // After a restart of the operator there is nothing to write either.
    let mut memory = Default::default();
    servers
        .reconcile(&Fake::key("orders"), &mut memory)
        .await
        .unwrap();
    assert_eq!(fake.writes(), [""; 0]);
}

#[tokio::test]
async fn with_tls_all_that_callers_are_told_is_https() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    let mut memory = Default::default();
    for (tls, url, port) in [
        (None, "http://orders.shop.svc/mcp", 80),
        (Some("orders-tls"), "https://orders.shop.svc/mcp", 443),
        (None, "http://orders.shop.svc/mcp", 80),
    ] {
        fake.change("mcpservers", "orders", |server| {
            let spec = server["spec"].as_object_mut().unwrap();
            spec.remove("tls");
            spec.extend(tls.map(|name| ("tls".to_owned(), json!({"secretName": name}))));
        });
        let servers = fake.servers();
        let done = servers.reconcile(&Fake::key("orders"), &mut memory).await;
        done.unwrap();
        let (bundle, service) = (bundle(&fake), fake.get("services", "orders").unwrap());
        assert_eq!(
            (&bundle["url"], &bundle["audience"]),
            (&json!(url), &json!(url))
        );
        let ports = service["spec"]["ports"].as_array().unwrap();
        let ports: Vec<_> = ports.iter().map(|port| &port["port"]).collect();
        assert_eq!(ports, [&json!(port)]);
        let status = fake.get("mcpservers", "orders").unwrap()["status"].clone();
        assert_eq!(
            (&status["url"], &status["audience"]),
            (&json!(url), &json!(url))
        );
    }
}

/// A pod, as Kubernetes makes it for the Deployment of `orders`.
fn pod(name: &str, ip: &str, more: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {"toolward.dev/server": "orders"}},
        "status": {"phase": "Running", "podIP": ip},
    });
    for (field, value) in more.as_object().unwrap() {
        pod["status"][field] = value.clone();
    }
    pod
}

#[tokio::test]
async fn the_replicas_stand_beside_the_bundle_and_follow_the_pods() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.put("pods", pod("orders-a", "10.1.0.1", json!({})));
    let peers = || {
        let map = fake.get("configmaps", "orders-toolward").unwrap();
        map["data"]["peers.json"].as_str().unwrap().to_owned()
    };
    let (servers, key, mut memory) = (fake.servers(), Fake::key("orders"), Default::default());
    servers.reconcile(&key, &mut memory).await.unwrap();
    assert_eq!(bundle(&fake)["peerAudience"], "toolward-peer/uid-orders");
    let one = r#"{"version":1,"replicas":[{"name":"orders-a","address":"10.1.0.1"}]}"#;
    assert_eq!(peers(), one);

    // The next change is close behind: it waits, and then is written.
    fake.put("pods", pod("orders-b", "10.1.0.2", json!({})));
    fake.put("pods", pod("other", "10.1.0.3", json!({"phase": "Failed"})));
    fake.sync();
    fake.writes();
    let mut written = false;
    for _ in 0..100 {
        match servers.reconcile(&key, &mut memory).await.unwrap() {
            Next::After(due) => tokio::time::sleep(due).await,
            Next::WhenWoken => {
                written = true;
                break;
            }
        }
        fake.sync();
    }
    assert!(written);
    assert!(peers().contains("orders-b") && !peers().contains("other"));
    let writes = fake.writes();
    let maps = writes.iter().filter(|write| write.contains("configmaps"));
    assert_eq!(maps.count(), 1, "{writes:?}");

    // After a restart of the operator nothing is written.
    fake.sync();
    servers
        .reconcile(&key, &mut Default::default())
        .await
        .unwrap();
    assert_eq!(fake.writes(), [""; 0]);
}

/// Sidecars of an earlier release run on while the operator is upgraded.
#[tokio::test]
async fn a_bundle_is_written_in_a_version_that_running_sidecars_read() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    let key = Fake::key("orders");
    let running = json!({"initContainerStatuses": [{
        "name": "toolward-sidecar", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "state": {"running": {}},
    }]});
    let see = |servers: &operator::server::Servers, reads: u32| {
        let mut report = policy::report::Report::default();
        report.bundle.reads = reads;
        let sight = operator::board::Sight {
            report: Some(report),
            ..Default::default()
        };
        servers
            .board
            .see(&key, [("uid-orders-a".to_owned(), sight)].into());
    };
    let servers = fake.servers();
    let mut memory = Default::default();
    servers.reconcile(&key, &mut memory).await.unwrap();
    assert_eq!(bundle(&fake)["version"], 2, "no sidecar runs yet");
    fake.put("pods", pod("orders-a", "10.1.0.1", running));
    for (reads, version) in [(1, 1), (2, 2), (3, 2)] {
        fake.sync();
        see(&servers, reads);
        servers.reconcile(&key, &mut memory).await.unwrap();
        assert_eq!(bundle(&fake)["version"], version, "sidecars read {reads}");
    }
}

#[tokio::test]
async fn a_port_that_is_reached_past_the_sidecar_is_told() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    let key = Fake::key("orders");
    let servers = fake.servers();
    let (mut memory, mut tried) = Default::default();
    servers.reconcile(&key, &mut memory).await.unwrap();
    let isolated = || condition(&fake, "mcpservers", "orders", "Isolated");
    assert_eq!(isolated().0, "Unknown/Pending");
    // An address of this process alone, on which the server's port is free.
    let [.., a, b] = std::process::id().to_be_bytes();
    let address = std::net::Ipv4Addr::new(127, 98, a, b);
    let _server = tokio::net::TcpListener::bind((address, 8080))
        .await
        .unwrap();
    let running = json!({"phase": "Running", "initContainerStatuses": [{
        "name": "toolward-sidecar", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "state": {"running": {}},
    }]});
    fake.put("pods", pod("orders-a", &address.to_string(), running));
    fake.sync();
    // Nobody says that it listens.
    let sight = operator::board::Sight {
        report: Some(policy::report::Report {
            listeners: Some(Vec::new()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let sights = [("uid-orders-a".to_owned(), sight)];
    servers.board.see(&key, sights.into());
    let isolations = fake.isolations(&servers);
    let next = isolations.reconcile(&key, &mut tried).await.unwrap();
    assert!(matches!(next, Next::After(_)), "{next:?}");
    servers.reconcile(&key, &mut memory).await.unwrap();
    let (verdict, message) = isolated();
    assert_eq!(verdict, "False/ServerPortReachable");
    assert!(message.contains("Port 8080 of pod orders-a"), "{message}");
}

#[tokio::test]
async fn while_the_watch_lags_nothing_is_written_twice() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    let mut memory = Default::default();
    let servers = fake.servers();
    servers
        .reconcile(&Fake::key("orders"), &mut memory)
        .await
        .unwrap();
    fake.writes();
    let next = servers
        .reconcile(&Fake::key("orders"), &mut memory)
        .await
        .unwrap();
    assert!(matches!(next, Next::After(_)));
    assert_eq!(fake.writes(), [""; 0]);
}

#[tokio::test]
async fn a_status_is_never_written_over_what_was_not_seen() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.sync();
    fake.put("mcpservers", server("orders")); // A newer version, not yet told.
    let mut memory = Default::default();
    let next = fake
        .servers_as_seen()
        .reconcile(&Fake::key("orders"), &mut memory)
        .await
        .unwrap();
    assert!(matches!(next, Next::After(_)), "{next:?}");
    assert!(
        fake.get("mcpservers", "orders")
            .unwrap()
            .get("status")
            .is_none()
    );
}

#[tokio::test]
async fn what_somebody_changed_is_put_back_and_what_they_own_is_left() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    let (servers, key) = (fake.servers(), Fake::key("orders"));
    servers
        .reconcile(&key, &mut Default::default())
        .await
        .unwrap();
    fake.change("deployments", "orders", |object| {
        object["spec"]["replicas"] = 5.into()
    });
    fake.change("services", "orders", |object| {
        object["spec"]["selector"]["toolward.dev/server"] = "other".into()
    });
    fake.sync();
    fake.writes();
    servers
        .reconcile(&key, &mut Default::default())
        .await
        .unwrap();
    let writes = fake.writes();
    assert!(
        writes.contains(&"PATCH services/orders".to_owned()),
        "{writes:?}"
    );
    assert!(
        !writes.contains(&"PATCH deployments/orders".to_owned()),
        "{writes:?}"
    );
    assert_eq!(
        fake.get("deployments", "orders").unwrap()["spec"]["replicas"],
        5
    );
}

#[tokio::test]
async fn a_name_that_is_taken_is_left_alone() {
    for (plural, name, what) in [
        ("services", "orders", "Service orders"),
        ("deployments", "orders", "Deployment orders"),
        ("configmaps", "orders-toolward", "ConfigMap orders-toolward"),
        (
            "networkpolicies",
            "orders-toolward",
            "NetworkPolicy orders-toolward",
        ),
    ] {
        let fake = Fake::new();
        fake.put("mcpservers", server("orders"));
        fake.put_unlabelled(plural, name);
        let next = fake
            .servers()
            .reconcile(&Fake::key("orders"), &mut Default::default())
            .await
            .unwrap();
        assert!(matches!(next, Next::After(_)));
        assert_eq!(
            fake.writes(),
            ["PATCH mcpservers/orders/status", "POST events"],
            "{what}"
        );
        let (verdict, message) = condition(&fake, "mcpservers", "orders", "Accepted");
        assert_eq!(verdict, "False/NameTaken");
        assert!(message.contains(what), "{message}");
    }
}

#[tokio::test]
async fn an_object_of_an_earlier_server_is_waited_for() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.servers()
        .reconcile(&Fake::key("orders"), &mut Default::default())
        .await
        .unwrap();
    let mut again = server("orders");
    again["metadata"]["uid"] = "another".into();
    fake.put("mcpservers", again);
    fake.writes();
    let error = fake
        .servers()
        .reconcile(&Fake::key("orders"), &mut Default::default())
        .await
        .unwrap_err();
    assert_eq!(error.category(), "Removing");
    assert_eq!(fake.writes(), [""; 0]);
}

#[tokio::test]
async fn a_refused_deployment_does_not_hold_the_policy_up() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.refuse(Method::PATCH, "deployments", 403, "exceeded quota");
    let error = fake
        .servers()
        .reconcile(&Fake::key("orders"), &mut Default::default())
        .await
        .unwrap_err();
    assert_eq!(error.category(), "Forbidden");
    assert_eq!(bundle(&fake)["rules"], json!([]));
    let (verdict, message) = condition(&fake, "mcpservers", "orders", "Programmed");
    assert_eq!(verdict, "False/ApplyFailed");
    assert!(
        message.contains("applying Deployment orders: exceeded quota"),
        "{message}"
    );
}

#[tokio::test]
async fn a_service_that_cannot_be_read_does_not_hold_the_policy_up() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.servers()
        .reconcile(&Fake::key("orders"), &mut Default::default())
        .await
        .unwrap();
    fake.remove("services", "orders");
    fake.refuse(Method::GET, "services", 500, "etcd is slow");
    fake.put(
        "mcptoolpolicies",
        tool_policy("p", "orders", json!({"everyone": true})),
    );
    let result = fake
        .servers()
        .reconcile(&Fake::key("orders"), &mut Default::default())
        .await;
    assert_eq!(result.unwrap_err().category(), "ServerError");
    assert_eq!(bundle(&fake)["rules"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_unreadable_policy_denies_its_servers_and_says_so() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.put(
        "mcptoolpolicies",
        tool_policy("good", "orders", json!({"everyone": true})),
    );
    fake.put(
        "mcptoolpolicies",
        tool_policy("bad", "orders", json!({"moon": "full"})),
    );
    fake.servers()
        .reconcile(&Fake::key("orders"), &mut Default::default())
        .await
        .unwrap();
    let deny = bundle(&fake)["denyAll"].as_str().unwrap().to_owned();
    assert!(
        deny.contains("McpToolPolicy bad") && deny.contains("spec.rules[0].from[0]"),
        "{deny}"
    );
    let (verdict, message) = condition(&fake, "mcpservers", "orders", "Accepted");
    assert_eq!(verdict, "False/PolicyInvalid");
    assert!(message.contains("McpToolPolicy bad"), "{message}");
    let policies = fake.policies();
    for (name, expected) in [("good", "True/Accepted"), ("bad", "False/PolicyInvalid")] {
        policies
            .reconcile(&Fake::key(name), &mut Default::default())
            .await
            .unwrap();
        assert_eq!(
            condition(&fake, "mcptoolpolicies", name, "Accepted").0,
            expected
        );
    }
    fake.writes();
    fake.sync();
    policies
        .reconcile(&Fake::key("bad"), &mut Default::default())
        .await
        .unwrap();
    assert_eq!(fake.writes(), [""; 0]);
}

#[tokio::test]
async fn an_unreadable_server_denies_everything_and_keeps_its_pods() {
    let fake = Fake::new();
    fake.put("mcpservers", server("orders"));
    fake.put(
        "mcptoolpolicies",
        tool_policy("p", "orders", json!({"everyone": true})),
    );
    fake.servers()
        .reconcile(&Fake::key("orders"), &mut Default::default())
        .await
        .unwrap();
    let before = fake.get("deployments", "orders");
    fake.change("mcpservers", "orders", |object| {
        object["spec"]["transport"]["type"] = "Telepathy".into();
        object["metadata"]["generation"] = 2.into();
    });
    fake.sync();
    fake.writes();
    fake.servers()
        .reconcile(&Fake::key("orders"), &mut Default::default())
        .await
        .unwrap();
    assert_eq!(fake.writes()[0], "PATCH configmaps/orders-toolward");
    assert!(
        bundle(&fake)["denyAll"]
            .as_str()
            .unwrap()
            .contains("spec.transport.type")
    );
    assert_eq!(fake.get("deployments", "orders"), before);
    assert_eq!(
        condition(&fake, "mcpservers", "orders", "Accepted").0,
        "False/Undecodable"
    );
}

#[tokio::test]
async fn a_policy_without_its_server_says_which() {
    let fake = Fake::new();
    fake.put(
        "mcptoolpolicies",
        tool_policy("p", "orders", json!({"everyone": true})),
    );
    fake.policies()
        .reconcile(&Fake::key("p"), &mut Default::default())
        .await
        .unwrap();
    let (verdict, message) = condition(&fake, "mcptoolpolicies", "p", "Accepted");
    assert_eq!(verdict, "False/TargetNotFound");
    assert!(message.contains("orders"), "{message}");
}
