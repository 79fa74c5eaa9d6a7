#![allow(clippy::unwrap_used)]

mod properties;
mod refusals;
mod security;

use crds::{Document, McpServer};
use serde_json::json;

use k8s_openapi::api::core::v1::Lifecycle;

use super::*;

const SERVERS: [(&str, &str); 5] = [
    ("http", "{transport: {type: StreamableHttp}, injected: {}}"),
    ("stdio", "{transport: {type: Stdio}, injected: {}}"),
    (
        "open",
        "{transport: {type: StreamableHttp}, injected: {ports: [9090]}}",
    ),
    (
        "limited",
        "{transport: {type: StreamableHttp}, injected: {}, sidecar: {resources: {limits: {memory: 128Mi}}}}",
    ),
    (
        "deployed",
        "{transport: {type: StreamableHttp}, deployment: {image: i}}",
    ),
];

fn server(kind: &str) -> McpServer {
    let (_, spec) = SERVERS.into_iter().find(|(name, _)| *name == kind).unwrap();
    let text = format!(
        "{{apiVersion: toolward.dev/v1alpha1, kind: McpServer, metadata: {{name: orders, namespace: shop}}, spec: {spec}}}"
    );
    match crds::documents(&text).unwrap().remove(0) {
        Document::McpServer(server) => *server,
        Document::McpToolPolicy(_) => unreachable!(),
    }
}

fn injected(pod: &Pod, server: &McpServer) -> Result<Injected, Vec<Refusal>> {
    let owner = Owner {
        namespace: "shop".to_owned(),
        name: server.metadata.name.clone().unwrap(),
        uid: "0c5f4e6a-1111-2222-3333-444455556666".to_owned(),
    };
    let sidecar = SidecarImage {
        image: "registry.example/sidecar:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
    };
    let target = Target {
        owner: &owner,
        spec: &server.spec,
        sidecar: &sidecar,
    };
    inject(pod, &target)
}

fn pod(yaml: &str) -> Pod {
    serde_yaml::from_str(yaml).unwrap()
}

/// A pod that can be injected for every server.
fn plain() -> Pod {
    pod("
apiVersion: v1
kind: Pod
metadata: {name: orders-1, namespace: shop, annotations: {toolward.dev/server: orders}}
spec: {containers: [{name: web, image: i, command: [/orders]}]}
")
}

fn ours<'p>(pod: &'p Pod, name: &str) -> &'p Container {
    let spec = pod.spec.as_ref().unwrap();
    let mut containers = spec.init_containers.iter().flatten();
    containers.find(|container| container.name == name).unwrap()
}

#[test]
fn streamable_http() {
    let before = pod("
apiVersion: v1
kind: Pod
metadata:
  name: orders-7d4b9
  namespace: shop
  labels: {app: orders}
  annotations: {toolward.dev/server: orders, toolward.dev/memory-limit: 64Mi}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 1000}
  initContainers:
    - {name: migrate, image: 'registry.example/orders:1.4', command: [/migrate]}
  containers:
    - name: web
      image: registry.example/orders:1.4
      ports:
        - {name: mcp, containerPort: 8080}
        - {name: metrics, containerPort: 9090}
      livenessProbe:
        httpGet: {path: /healthz, port: mcp, httpHeaders: [{name: X-Probe, value: $(NAME)}]}
        periodSeconds: 5
        timeoutSeconds: 3
      readinessProbe: {tcpSocket: {port: 8080}}
      startupProbe: {httpGet: {path: /metrics, port: metrics}}
    - name: tail
      image: registry.example/tail:1
      lifecycle: {preStop: {exec: {command: [/flush]}}}
");
    let Injected {
        pod,
        warnings,
        summary,
    } = injected(&before, &server("http")).unwrap();
    insta::assert_yaml_snapshot!(pod);
    assert_eq!(
        warnings,
        [
            "cut off from outside the pod: 9090/TCP; list TCP ports in spec.injected.ports of McpServer orders to keep them open"
        ]
    );
    let annotations = pod.metadata.annotations.unwrap();
    assert_eq!(annotations[INJECTED_ANNOTATION], summary);
    assert_eq!(
        injected(&before, &server("open")).unwrap().warnings,
        [""; 0]
    );
}

#[test]
fn stdio() {
    let before = pod("
apiVersion: v1
kind: Pod
metadata:
  name: nightly-x7k2p
  namespace: shop
  annotations: {toolward.dev/server: orders, toolward.dev/container: server}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  containers:
    - {name: work, image: 'registry.example/work:1', ports: [{containerPort: 53, protocol: UDP}]}
    - name: server
      image: registry.example/orders:1.4
      command: [node, /srv/index.js]
      args: [stdio]
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
");
    let Injected { pod, warnings, .. } = injected(&before, &server("stdio")).unwrap();
    insta::assert_yaml_snapshot!(pod);
    assert_eq!(
        warnings,
        [
            "cut off from outside the pod: 53/UDP; list TCP ports in spec.injected.ports of McpServer orders to keep them open",
            "spec.terminationGracePeriodSeconds: 5 cuts off calls in flight, which get 15 s to end: write 20 or more",
            "spec.restartPolicy: container server waits for calls until the pod is deleted, so a Job of it does not complete by itself",
        ]
    );
}

#[test]
fn warnings_of_privileges_and_of_a_port_that_is_there_twice() {
    let before = pod("
apiVersion: v1
kind: Pod
metadata: {annotations: {toolward.dev/server: orders}}
spec:
  restartPolicy: OnFailure
  initContainers: [{name: setup, image: i, securityContext: {privileged: true}}]
  containers:
    - {name: web, image: i, ports: [{containerPort: 8080}, {containerPort: 8080, protocol: UDP}]}
    - {name: two, image: i, ports: [{containerPort: 8080}]}
    - {name: net, image: i, securityContext: {capabilities: {add: [CAP_NET_ADMIN]}}}
    - {name: bind, image: i, securityContext: {capabilities: {add: [NET_BIND_SERVICE]}}}
");
    let mighty = "securityContext: with these privileges the container can get around the sidecar";
    assert_eq!(
        injected(&before, &server("http")).unwrap().warnings,
        [
            "cut off from outside the pod: 8080/UDP; list TCP ports in spec.injected.ports of McpServer orders to keep them open".to_owned(),
            "spec.containers: 2 declare the server's port 8080, and only one can listen on it".to_owned(),
            format!("spec.initContainers[0].{mighty}"),
            format!("spec.containers[2].{mighty}"),
        ]
    );
}

#[test]
fn a_hook_of_the_servers_own_has_to_outlive_calls() {
    let warned = |hook: Option<&str>, grace: i64| {
        let mut before = plain();
        let spec = before.spec.as_mut().unwrap();
        spec.termination_grace_period_seconds = Some(grace);
        spec.containers[0].lifecycle = hook.map(|hook| Lifecycle {
            pre_stop: serde_yaml::from_str(hook).unwrap(),
            ..Lifecycle::default()
        });
        let once = injected(&before, &server("http")).unwrap();
        assert_eq!(injected(&once.pod, &server("http")).unwrap(), once);
        once.warnings
    };
    let warning = "spec.containers[0].lifecycle.preStop: the server has to outlive calls in flight, which get 15 s to end: let it last as long, or remove it";
    for hook in ["sleep: {seconds: 5}", "exec: {command: [sleep, '30']}"] {
        assert_eq!(warned(Some(hook), 30), [warning], "{hook}");
    }
    for hook in [
        None,
        Some("sleep: {seconds: 15}"),
        Some("sleep: {seconds: 20}"),
    ] {
        assert_eq!(warned(hook, 30), [""; 0], "{hook:?}");
    }
    // The pod's time is short, which is told once.
    for hook in [None, Some("sleep: {seconds: 9}")] {
        let warnings = warned(hook, 10);
        assert!(
            warnings.len() == 1 && warnings[0].contains("write 20"),
            "{warnings:?}"
        );
    }
}

/// Those of some meshes do.
#[test]
fn a_container_that_others_put_first_is_not_taken_for_a_stdio_server() {
    let proxy = |command: Option<Vec<String>>| Container {
        name: "proxy".to_owned(),
        command,
        ..Container::default()
    };
    let stdio = server("stdio");
    let before = plain();
    let mut once = injected(&before, &stdio).unwrap().pod;
    let mut first = before.clone();
    for command in [None, Some(vec!["/proxy".to_owned()])] {
        // After ours: the server stays the one that has the shim.
        let spec = once.spec.as_mut().unwrap();
        spec.containers.insert(0, proxy(command));
        let twice = injected(&once, &stdio).unwrap();
        let containers = twice.pod.spec.unwrap().containers;
        let spec = once.spec.as_mut().unwrap();
        assert_eq!(containers[1..], spec.containers[1..]);
        assert_eq!(containers[0].command, spec.containers[0].command);
        spec.containers.remove(0);
    }
    // Before ours: it is told how the server is named.
    first
        .spec
        .as_mut()
        .unwrap()
        .containers
        .insert(0, proxy(None));
    let said = injected(&first, &stdio).unwrap_err()[0].to_string();
    assert!(
        said.contains(r#""proxy", by the annotation toolward.dev/container"#),
        "{said}"
    );
    let annotations = first.metadata.annotations.as_mut().unwrap();
    annotations.insert(
        crate::names::CONTAINER_ANNOTATION.to_owned(),
        "web".to_owned(),
    );
    assert!(injected(&first, &stdio).is_ok());
}

#[test]
fn who_asks_another_host_does_not_ask_the_server() {
    let before = pod("
apiVersion: v1
kind: Pod
metadata: {annotations: {toolward.dev/server: orders}}
spec:
  containers:
    - name: web
      image: i
      livenessProbe: {tcpSocket: {port: 8080, host: orders.internal}}
      readinessProbe: {httpGet: {port: 8080, host: 10.1.2.3}}
      lifecycle: {postStart: {httpGet: {port: 8080, host: registry.internal}}}
");
    let after = injected(&before, &server("http")).unwrap().pod;
    let (before, after) = (before.spec.unwrap(), after.spec.unwrap());
    let probes = |spec: &PodSpec| {
        let web = &spec.containers[0];
        let hook = web.lifecycle.as_ref().unwrap().post_start.clone();
        (
            web.liveness_probe.clone(),
            web.readiness_probe.clone(),
            hook,
        )
    };
    assert_eq!(probes(&after), probes(&before));
}

#[test]
fn a_pod_is_current_until_the_spec_asks_for_another_sidecar() {
    let server = |spec: &str| {
        let mut server = server("http");
        server.spec = serde_yaml::from_str(spec).unwrap();
        server
    };
    let base = "{transport: {type: StreamableHttp}, injected: {}}";
    let is_current = |made: &str, now: &str| {
        let pod = injected(&plain(), &server(made)).unwrap().pod;
        Wanted::by(&server(now).spec).is_in(&pod)
    };
    let issuers = |secret: &str| {
        format!(
            "{{transport: {{type: StreamableHttp}}, injected: {{}}, authentication: {{audience: orders, issuers: [{{name: acme, issuer: 'https://idp.example.com', caSecretRef: {{name: {secret}, key: ca.crt}}}}]}}}}"
        )
    };
    let (ours, others) = (issuers("ours"), issuers("others"));
    let all = [
        base,
        "{transport: {type: StreamableHttp, http: {port: 8081}}, injected: {}}",
        "{transport: {type: StreamableHttp, http: {path: /other}}, injected: {}}",
        "{transport: {type: StreamableHttp}, injected: {}, tls: {secretName: pair}}",
        "{transport: {type: StreamableHttp}, injected: {}, tls: {secretName: other}}",
        "{transport: {type: StreamableHttp}, injected: {}, identity: {}}",
        "{transport: {type: StreamableHttp}, injected: {}, upstreamCredential: {secretRef: {name: a, key: b}, header: X-Key}}",
        "{transport: {type: StreamableHttp}, injected: {}, upstreamCredential: {secretRef: {name: a, key: c}, header: X-Key}}",
        "{transport: {type: StreamableHttp}, injected: {}, upstreamCredential: {secretRef: {name: a, key: b}, header: X-Other}}",
        "{transport: {type: Stdio}, injected: {}}",
        "{transport: {type: Stdio, stdio: {maxProcesses: 7}}, injected: {}}",
        "{transport: {type: Stdio, stdio: {idleTimeout: 7m}}, injected: {}}",
        &ours,
        &others,
    ];
    for made in all {
        for now in all {
            assert_eq!(is_current(made, now), made == now, "{made} {now}");
        }
    }
    // What reaches it in the bundle, and what another release may have changed.
    assert!(is_current(
        base,
        "{transport: {type: StreamableHttp}, injected: {ports: [9090]}}"
    ));
    let mut old = injected(&plain(), &server(base)).unwrap().pod;
    let init = old.spec.as_mut().unwrap().init_containers.as_mut().unwrap();
    init[0].image = Some("registry.example/sidecar:0".to_owned());
    init[0]
        .args
        .as_mut()
        .unwrap()
        .extend(["--older".to_owned(), "flag".to_owned()]);
    assert!(Wanted::by(&server(base).spec).is_in(&old));
    assert!(!Wanted::by(&server(base).spec).is_in(&plain()));
}

#[test]
fn a_warning_is_short_whatever_is_declared() {
    let mut before = plain();
    let port = |number| ContainerPort {
        container_port: number,
        ..ContainerPort::default()
    };
    before.spec.as_mut().unwrap().containers[0].ports = Some((20_000..30_000).map(port).collect());
    let warnings = injected(&before, &server("http")).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].len() <= 256, "{warnings:?}");
    assert!(warnings[0].contains("20007/TCP, …;"), "{warnings:?}");
}

#[test]
fn who_asks_for_what() {
    assert_eq!(server_of(&Pod::default()), Ok(None));
    assert_eq!(server_of(&plain()), Ok(Some("orders")));
    let mut labelled = plain();
    labelled.metadata.labels = Some([(SERVER_LABEL.to_owned(), "orders".to_owned())].into());
    assert_eq!(server_of(&labelled), Ok(Some("orders")));
    assert!(!has_sidecar(&labelled), "a label is no sidecar");
    let mut injected = injected(&plain(), &server("http")).unwrap().pod;
    assert!(has_sidecar(&injected));
    // One that ends would leave the server alone.
    let init = &mut injected.spec.as_mut().unwrap().init_containers;
    init.as_mut().unwrap()[0].restart_policy = None;
    assert!(!has_sidecar(&injected));
}

/// As `kubectl debug --copy-to` makes it, of a pod that an earlier version injected.
#[test]
fn a_copy_of_an_old_pod_becomes_a_new_one() {
    let mut old = injected(&plain(), &server("stdio")).unwrap().pod;
    let new = old.clone();
    let spec = old.spec.as_mut().unwrap();
    spec.containers[0].command = Some(
        "/toolward/bin/toolward-sidecar shim --socket /run/x --peer-uid 65532 -- /orders"
            .split(' ')
            .map(str::to_owned)
            .collect(),
    );
    for container in spec.init_containers.iter_mut().flatten() {
        container.image = Some("registry.example/sidecar:0".to_owned());
        container.security_context = None;
        container.env = None;
    }
    for volume in spec.volumes.iter_mut().flatten() {
        volume.config_map = None;
    }
    assert_eq!(injected(&old, &server("stdio")).unwrap().pod, new);
}

/// Nobody takes out of the annotation what was done.
#[test]
fn the_annotation_is_not_believed() {
    let mut before = plain();
    let annotations = before.metadata.annotations.as_mut().unwrap();
    annotations.insert(INJECTED_ANNOTATION.to_owned(), "done".to_owned());
    let after = injected(&before, &server("http")).unwrap();
    assert!(has_sidecar(&after.pod));
    assert_eq!(after, injected(&plain(), &server("http")).unwrap());
}

/// What a pod sets for all of its containers does not reach ours.
#[test]
fn our_containers_are_restricted_whatever_the_pod_sets() {
    let mut before = plain();
    let context = json!({
        "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "fsGroup": 0,
        "seccompProfile": {"type": "Unconfined"},
        "appArmorProfile": {"type": "Localhost", "localhostProfile": "app"},
        "seLinuxOptions": {"type": "spc_t", "user": "system_u", "level": "s0:c1,c2"},
    });
    let context = serde_json::from_value(context).unwrap();
    before.spec.as_mut().unwrap().security_context = Some(context);
    let after = injected(&before, &server("stdio")).unwrap().pod;
    for name in [SIDECAR_CONTAINER, INSTALL_CONTAINER] {
        let context = ours(&after, name).security_context.clone();
        let context = serde_json::to_value(context).unwrap();
        assert_eq!(
            context,
            json!({
                "allowPrivilegeEscalation": false,
                "appArmorProfile": {"type": "RuntimeDefault"},
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
                "runAsGroup": 9440, "runAsNonRoot": true, "runAsUser": 9440,
                "seLinuxOptions": {"level": "s0:c1,c2"},
                "seccompProfile": {"type": "RuntimeDefault"},
            })
        );
    }
    assert_eq!(
        after.spec.unwrap().security_context,
        before.spec.unwrap().security_context
    );
}

#[test]
fn resources_are_of_the_server_and_of_annotations() {
    let resources = |kind: &str, annotations: &[(&str, &str)]| {
        let mut before = plain();
        for (key, value) in annotations {
            set(&mut before.metadata.annotations, key, value);
        }
        let after = injected(&before, &server(kind)).unwrap().pod;
        let resources = |name| serde_json::to_value(&ours(&after, name).resources).unwrap();
        if kind == "stdio" {
            // A quota asks all containers alike.
            assert_eq!(resources(INSTALL_CONTAINER), resources(SIDECAR_CONTAINER));
        }
        resources(SIDECAR_CONTAINER)
    };
    let default = json!({"requests": {"cpu": "10m", "memory": "32Mi"}});
    assert_eq!(resources("http", &[]), default);
    assert_eq!(
        resources("limited", &[]),
        json!({"limits": {"memory": "128Mi"}})
    );
    assert_eq!(
        resources(
            "limited",
            &[
                ("toolward.dev/memory-limit", "1Gi"),
                ("toolward.dev/cpu-request", "0.5")
            ]
        ),
        json!({"limits": {"memory": "1Gi"}, "requests": {"cpu": "0.5"}})
    );
    assert_eq!(
        resources(
            "stdio",
            &[
                ("toolward.dev/cpu-request", "1"),
                ("toolward.dev/cpu-limit", "1000m"),
                ("toolward.dev/memory-request", "64Mi"),
                ("toolward.dev/memory-limit", "64Mi"),
            ]
        ),
        json!({"limits": {"cpu": "1000m", "memory": "64Mi"}, "requests": {"cpu": "1", "memory": "64Mi"}})
    );
}

#[test]
fn a_pod_that_may_take_no_time_gets_no_hook() {
    for (grace, seconds) in [
        (None, Some(15)),
        (Some(30), Some(15)),
        (Some(16), Some(15)),
        (Some(15), Some(14)),
        (Some(2), Some(1)),
        (Some(1), None),
        (Some(0), None),
        (Some(i64::MIN), None),
    ] {
        let mut before = plain();
        before
            .spec
            .as_mut()
            .unwrap()
            .termination_grace_period_seconds = grace;
        let after = injected(&before, &server("http"))
            .unwrap()
            .pod
            .spec
            .unwrap();
        assert_eq!(after.termination_grace_period_seconds, grace);
        let hook = after.containers[0].lifecycle.clone();
        let hook = hook.and_then(|lifecycle| lifecycle.pre_stop);
        let slept = hook.and_then(|hook| hook.sleep).map(|sleep| sleep.seconds);
        assert_eq!(slept, seconds, "{grace:?}");
    }
}
