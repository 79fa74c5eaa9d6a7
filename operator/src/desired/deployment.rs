//! The Deployment of a server: its container, and the sidecar in front.

use std::collections::BTreeMap;

use crds::McpServerSpec;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        core::v1::{LocalObjectReference, PodSpec, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::{Owner, SidecarImage, labels, pod, selector, volumes};
use crate::names::SERVER_CONTAINER;

/// Time to finish calls, and then for the server to end.
const GRACE_SECONDS: i64 = 30;

/// The Deployment of a server. `replicas` is only set where the server sets
/// it: else `kubectl scale` and autoscalers own the number.
pub fn deployment(
    owner: &Owner,
    spec: &McpServerSpec,
    run: &crds::DeploymentSpec,
    sidecar: &SidecarImage,
) -> Deployment {
    Deployment {
        metadata: owner.metadata(owner.name.clone(), &[]),
        spec: Some(DeploymentSpec {
            replicas: run.replicas,
            selector: LabelSelector {
                match_labels: Some(selector(&owner.name)),
                ..LabelSelector::default()
            },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(&owner.name)),
                    annotations: Some(BTreeMap::from([(
                        "kubectl.kubernetes.io/default-container".to_owned(),
                        SERVER_CONTAINER.to_owned(),
                    )])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod_spec(owner, spec, run, sidecar)),
            },
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

fn pod_spec(
    owner: &Owner,
    spec: &McpServerSpec,
    run: &crds::DeploymentSpec,
    sidecar: &SidecarImage,
) -> PodSpec {
    let mut init_containers = Vec::new();
    if pod::is_stdio(&spec.transport) {
        init_containers.push(pod::install(spec, sidecar));
    }
    init_containers.push(pod::sidecar(spec, sidecar));
    let secrets = run.image_pull_secrets.as_ref().map(|secrets| {
        let reference = |secret: &crds::LocalObjectReference| LocalObjectReference {
            name: secret.name.to_string(),
        };
        secrets.iter().map(reference).collect()
    });
    PodSpec {
        init_containers: Some(init_containers),
        containers: vec![pod::server(spec, run)],
        volumes: Some(volumes(owner, spec)),
        service_account_name: run.service_account_name.as_ref().map(ToString::to_string),
        image_pull_secrets: secrets,
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        ..PodSpec::default()
    }
}
