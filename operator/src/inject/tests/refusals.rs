//! Every refusal, with all that it says.

use serde::Deserialize;
use serde_json::Value;

use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    case: String,
    #[serde(default = "http")]
    server: String,
    pod: Value,
    says: Vec<String>,
}

fn http() -> String {
    "http".to_owned()
}

#[test]
fn say_where_and_what_to_write() {
    let cases: Vec<Case> = serde_yaml::from_str(include_str!("refusals.yaml")).unwrap();
    assert!(cases.len() > 20);
    for Case {
        case,
        server: kind,
        pod,
        says,
    } in cases
    {
        let mut manifest = serde_json::to_value(plain()).unwrap();
        json_patch::merge(&mut manifest, &pod);
        let pod: Pod = serde_json::from_value(manifest).unwrap();
        let refusals = match injected(&pod, &server(&kind)) {
            Ok(_) => panic!("{case}: it is injected"),
            Err(refusals) => refusals,
        };
        let said: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        assert_eq!(said, says, "{case}");
    }
}

#[test]
fn the_pod_without_them_is_injected() {
    for kind in ["http", "stdio", "open", "limited"] {
        injected(&plain(), &server(kind)).unwrap();
    }
}

#[test]
fn a_pod_without_containers() {
    let mut empty = plain();
    empty.spec = None;
    let refusal = |path: &str, message: &str| Err(vec![Refusal::new(path, message)]);
    assert_eq!(
        injected(&empty, &server("http")),
        refusal("spec", "there is none: write the containers of the pod")
    );
    empty.spec = Some(PodSpec::default());
    assert_eq!(
        injected(&empty, &server("http")),
        refusal("spec.containers", "there is none: write the server's")
    );
}

#[test]
fn too_much_to_ask() {
    let mut large = plain();
    let probe = json!({"httpGet": {"port": 8080, "path": format!("/{}", "x".repeat(60_000))}});
    let container = &mut large.spec.as_mut().unwrap().containers[0];
    container.liveness_probe = serde_json::from_value(probe.clone()).unwrap();
    injected(&large, &server("http")).unwrap();
    let container = &mut large.spec.as_mut().unwrap().containers[0];
    container.readiness_probe = serde_json::from_value(probe).unwrap();
    let refusals = injected(&large, &server("http")).unwrap_err();
    assert_eq!(refusals.len(), 1);
    let said = refusals[0].to_string();
    assert!(
        said.starts_with("spec.containers: the probes of the server's port have 120"),
        "{said}"
    );
    assert!(
        said.ends_with("and 65536 is the most: write fewer headers"),
        "{said}"
    );
}
