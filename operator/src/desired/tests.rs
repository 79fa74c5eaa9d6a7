#![allow(clippy::unwrap_used)]

use super::*;

fn owner() -> Owner {
    Owner {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        uid: "0c5f4e6a-1111-2222-3333-444455556666".to_owned(),
    }
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
    insta::assert_yaml_snapshot!(deployment(&owner(), &server, &sidecar()));
}

#[test]
fn streamable_http() {
    let server = server(
        "
  transport: {type: StreamableHttp, http: {port: 3000, path: /v1/mcp}}
  deployment: {image: registry.example/orders-mcp:1.4}
",
    );
    insta::assert_yaml_snapshot!(deployment(&owner(), &server, &sidecar()));
}

#[test]
fn service_and_config_map() {
    insta::assert_yaml_snapshot!(service(&owner()));
    insta::assert_yaml_snapshot!(config_map(&owner(), "{}".to_owned(), "[]".to_owned()));
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
        let spec = deployment(&owner(), &server, &sidecar()).spec.unwrap();
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
        let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
        let with: Vec<_> = containers
            .filter(|container| {
                let mut mounts = container.volume_mounts.iter().flatten();
                mounts.any(|mount| mount.name == pod::PEER_VOLUME)
            })
            .map(|container| container.name.as_str())
            .collect();
        assert_eq!(with, [crate::names::SIDECAR_CONTAINER]);
    }
}
