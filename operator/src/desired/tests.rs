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
    insta::assert_yaml_snapshot!(config_map(&owner(), "{}".to_owned()));
}
