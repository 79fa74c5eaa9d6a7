#![allow(clippy::unwrap_used)]

use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::util::intstr::IntOrString};

use super::*;

fn owner() -> Owner {
    Owner {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        uid: "0c5f4e6a-1111-2222-3333-444455556666".to_owned(),
    }
}

fn deployed(server: &McpServer) -> Deployment {
    let run = server.spec.deployment.as_ref().unwrap();
    deployment(&owner(), &server.spec, run, &sidecar())
}

fn sidecar() -> SidecarImage {
    SidecarImage {
        image: "registry.example/sidecar:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
    }
}

fn server(spec: &str) -> McpServer {
    let text = format!(
        "apiVersion: toolward.dev/v1alpha1\nkind: McpServer\nmetadata: {{name: orders, namespace: shop}}\nspec:\n{spec}"
    );
    match crds::documents(&text).unwrap().remove(0) {
        crds::Document::McpServer(server) => *server,
        crds::Document::McpToolPolicy(_) => unreachable!(),
    }
}

#[test]
fn stdio() {
    let server = server(
        "
  transport: {type: Stdio, stdio: {process: PerUser, maxProcesses: 7, idleTimeout: 90s}}
  deployment:
    image: registry.example/orders-mcp:1.4
    command: [node, /srv/index.js]
    args: [--verbose]
    replicas: 2
    serviceAccountName: orders
    imagePullSecrets: [{name: registry}]
    resources: {limits: {memory: 256Mi}, requests: {cpu: 1}}
    env:
      - {name: PLAIN, value: x}
      - {name: SECRET, valueFrom: {secretKeyRef: {name: s, key: k, optional: true}}}
      - {name: CONFIG, valueFrom: {configMapKeyRef: {name: c, key: k}}}
      - {name: FIELD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    envFrom:
      - {prefix: A_, secretRef: {name: s}}
      - {configMapRef: {name: c, optional: false}}
",
    );
    insta::assert_yaml_snapshot!(deployed(&server));
}

#[test]
fn streamable_http() {
    let server = server(
        "
  transport: {type: StreamableHttp, http: {port: 3000, path: /v1/mcp}}
  deployment: {image: registry.example/orders-mcp:1.4}
",
    );
    insta::assert_yaml_snapshot!(deployed(&server));
}

/// What is mounted into which container: `(container, path)` of each mount of a
/// volume.
fn mounts(pod: &k8s_openapi::api::core::v1::PodSpec, volume: &str) -> Vec<(String, String)> {
    let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
    let mounts = containers.flat_map(|container| {
        let mounts = container.volume_mounts.iter().flatten();
        let mounts = mounts.filter(|mount| mount.name == volume);
        mounts.map(|mount| (container.name.clone(), mount.mount_path.clone()))
    });
    mounts.collect()
}

#[test]
fn tls() {
    for transport in ["Stdio", "StreamableHttp"] {
        let server = server(&format!(
            "
  transport: {{type: {transport}}}
  deployment: {{image: registry.example/orders-mcp:1.4, command: [/orders]}}
  tls: {{secretName: orders-tls}}
"
        ));
        let spec = deployed(&server).spec.unwrap();
        let pod = spec.template.spec.unwrap();
        let volumes = pod.volumes.iter().flatten();
        let sources: Vec<_> = volumes
            .filter_map(|volume| volume.projected.as_ref()?.sources.as_ref())
            .flatten()
            .filter_map(|source| source.secret.clone())
            .collect();
        let keys: Vec<_> = sources[0]
            .items
            .iter()
            .flatten()
            .map(|item| (item.key.as_str(), item.path.as_str()))
            .collect();
        assert_eq!((sources.len(), &*sources[0].name), (1, "orders-tls"));
        assert_eq!(sources[0].optional, None, "it would start without");
        assert_eq!(keys, [("tls.crt", "tls.crt"), ("tls.key", "tls.key")]);
        // The key is for the sidecar alone.
        let (container, folder) = (crate::names::SIDECAR_CONTAINER, "/etc/toolward/tls");
        let mounts = mounts(&pod, pod::TLS_VOLUME);
        assert_eq!(mounts, [(container.to_owned(), folder.to_owned())]);
        let mut containers = pod.init_containers.iter().flatten();
        let sidecar = containers.find(|c| c.name == container).unwrap();
        let args = sidecar.args.clone().unwrap();
        let flag = args.iter().position(|arg| arg == "--tls").unwrap();
        assert_eq!(args[flag + 1], folder);
        // The kubelet does not check certificates: probes stay in the clear.
        for probe in [&sidecar.readiness_probe, &sidecar.liveness_probe] {
            let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
            assert_eq!(get.port, IntOrString::Int(9441));
            assert_eq!(get.scheme, None);
        }
        let spec = service(&owner(), &server).spec.unwrap();
        let ports = serde_json::to_value(spec.ports).unwrap();
        assert_eq!(
            ports,
            serde_json::json!([{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 9440, "appProtocol": "https"}])
        );
    }
}

/// A quota asks all containers of a pod alike.
#[test]
fn the_sidecars_resources_are_those_of_all_its_containers() {
    let server = server(
        "
  transport: {type: Stdio}
  deployment: {image: registry.example/orders-mcp:1.4, command: [/orders]}
  sidecar: {resources: {limits: {memory: 128Mi}}}
",
    );
    let spec = deployed(&server).spec.unwrap();
    let init = spec.template.spec.unwrap().init_containers.unwrap();
    assert_eq!(init.len(), 2);
    let wanted = serde_json::json!({"limits": {"memory": "128Mi"}});
    for container in init {
        let resources = serde_json::to_value(&container.resources).unwrap();
        assert_eq!(resources, wanted, "{}", container.name);
    }
}

#[test]
fn service_and_config_map() {
    let server = server(
        "
  transport: {type: StreamableHttp}
  deployment: {image: registry.example/orders-mcp:1.4}
",
    );
    insta::assert_yaml_snapshot!(service(&owner(), &server));
    insta::assert_yaml_snapshot!(config_map(&owner(), "{}".to_owned(), "[]".to_owned()));
}

/// A token of the pod would let the server pass a key of its own for the sidecar's.
#[test]
fn only_the_sidecar_has_what_proves_its_key() {
    for transport in ["Stdio", "StreamableHttp"] {
        let server = server(&format!(
            "
  identity: {{}}
  transport: {{type: {transport}}}
  deployment: {{image: registry.example/orders-mcp:1.4, command: [/orders]}}
"
        ));
        let spec = deployed(&server).spec.unwrap();
        let pod = spec.template.spec.unwrap();
        let volume = pod.volumes.iter().flatten();
        let mut volume = volume.filter(|volume| volume.name == pod::IDENTITY_VOLUME);
        let sources = volume.next().unwrap().projected.clone().unwrap().sources;
        let sources = sources.unwrap();
        let [token, keys] = &sources[..] else {
            panic!("{sources:?}")
        };
        let token = token.service_account_token.as_ref().unwrap();
        let audience = "toolward-identity/0c5f4e6a-1111-2222-3333-444455556666";
        assert_eq!(token.audience.as_deref(), Some(audience));
        let keys = keys.config_map.as_ref().unwrap();
        assert_eq!(keys.name, "orders-toolward-identity");
        let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
        let with: Vec<_> = containers
            .filter(|container| {
                let mut mounts = container.volume_mounts.iter().flatten();
                mounts.any(|mount| mount.name == pod::IDENTITY_VOLUME)
            })
            .collect();
        let [sidecar] = &with[..] else {
            panic!("{with:?}")
        };
        assert_eq!(sidecar.name, crate::names::SIDECAR_CONTAINER);
        let args = sidecar.args.as_ref().unwrap().join(" ");
        let flags = "--identity-keys /var/run/toolward/identity --identity-token /var/run/toolward/identity/token";
        assert!(args.contains(flags), "{args}");
    }
}

/// A token of the pod would let the server speak as a replica.
#[test]
fn only_the_sidecar_has_the_token_for_its_peers() {
    for transport in ["Stdio", "StreamableHttp"] {
        let server = server(&format!(
            "
  transport: {{type: {transport}}}
  deployment: {{image: registry.example/orders-mcp:1.4, command: [/orders], serviceAccountName: orders}}
"
        ));
        let spec = deployed(&server).spec.unwrap();
        let pod = spec.template.spec.unwrap();
        let tokens = |volume: &k8s_openapi::api::core::v1::Volume| {
            let sources = volume.projected.as_ref().and_then(|p| p.sources.as_ref());
            let mut sources = sources.into_iter().flatten();
            let token = sources.find_map(|source| source.service_account_token.clone());
            token.map(|token| (volume.name.clone(), token.audience.unwrap()))
        };
        let tokens: Vec<_> = pod.volumes.iter().flatten().filter_map(tokens).collect();
        let audience = "toolward-peer/0c5f4e6a-1111-2222-3333-444455556666";
        assert_eq!(tokens, [(pod::PEER_VOLUME.to_owned(), audience.to_owned())]);
        assert_eq!(pod.automount_service_account_token, Some(false));
        let with: Vec<_> = mounts(&pod, pod::PEER_VOLUME)
            .into_iter()
            .map(|(container, _)| container)
            .collect();
        assert_eq!(with, [crate::names::SIDECAR_CONTAINER]);
    }
}
