//! What one wants to read when a test failed: objects, events and the ends of
//! logs.

use crate::harness::Cluster;
use crate::release;
use crate::sh::last_lines;

/// State, events and logs of a namespace, and the end of the operator's log.
pub async fn namespace(cluster: &Cluster, namespace: &str) -> String {
    let mut text = String::new();
    let objects = "mcps,mtp,deployments,services,configmaps,networkpolicies,pods";
    for args in [
        vec!["get", objects, "-n", namespace, "-o", "wide"],
        vec!["get", "mcps,mtp", "-n", namespace, "-o", "yaml"],
        vec![
            "get",
            "events",
            "-n",
            namespace,
            "--sort-by=.metadata.creationTimestamp",
        ],
    ] {
        text.push_str(&shown(cluster, &args, 120).await);
    }
    for pod in pods(cluster, namespace).await {
        let args = [
            "logs",
            &pod,
            "-n",
            namespace,
            "--all-containers",
            "--prefix",
            "--tail=30",
        ];
        text.push_str(&shown(cluster, &args, 90).await);
    }
    let pods = ["-l", release::OPERATOR_PODS, "--prefix", "--tail=40"];
    let args = [&["logs", "-n", release::NAMESPACE][..], &pods].concat();
    text.push_str(&shown(cluster, &args, 80).await);
    text
}

async fn pods(cluster: &Cluster, namespace: &str) -> Vec<String> {
    let listed = cluster
        .kubectl(&["get", "pods", "-n", namespace, "-o", "name"])
        .await;
    listed
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

async fn shown(cluster: &Cluster, args: &[&str], lines: usize) -> String {
    let said = match cluster.kubectl(args).await {
        Ok(said) => said,
        Err(error) => format!("{error:#}"),
    };
    format!(
        "$ kubectl {}\n{}\n",
        args.join(" "),
        last_lines(&said, lines)
    )
}
