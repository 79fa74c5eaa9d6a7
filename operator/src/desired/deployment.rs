//! The Deployment of a server: its container, and the sidecar in front.

use std::collections::BTreeMap;

use crds::McpServer;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        core::v1::{
            ConfigMapVolumeSource, EmptyDirVolumeSource, LocalObjectReference, PodSpec,
            PodTemplateSpec, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume,
            VolumeProjection,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
    },
};

use super::{Owner, SidecarImage, labels, pod, selector};
use crate::names::{SERVER_CONTAINER, config_map_name};

/// Time to finish calls, and then for the server to end.
const GRACE_SECONDS: i64 = 30;
/// The kubelet renews the token after four fifths of this time.
const PEER_TOKEN_SECONDS: i64 = 3600;

/// The Deployment of a server. `replicas` is only set where the server sets
/// it: else `kubectl scale` and autoscalers own the number.
pub fn deployment(owner: &Owner, server: &McpServer, sidecar: &SidecarImage) -> Deployment {
    Deployment {
        metadata: owner.metadata(owner.name.clone(), &[]),
        spec: Some(DeploymentSpec {
            replicas: server.spec.deployment.replicas,
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
                spec: Some(pod_spec(owner, server, sidecar)),
            },
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

fn pod_spec(owner: &Owner, server: &McpServer, sidecar: &SidecarImage) -> PodSpec {
    let deployment = &server.spec.deployment;
    let stdio = pod::is_stdio(&server.spec.transport);
    let mut init_containers = Vec::new();
    if stdio {
        init_containers.push(pod::install(sidecar));
    }
    init_containers.push(pod::sidecar(&server.spec.transport, sidecar));
    let secrets = deployment.image_pull_secrets.as_ref().map(|secrets| {
        let reference = |secret: &crds::LocalObjectReference| LocalObjectReference {
            name: secret.name.to_string(),
        };
        secrets.iter().map(reference).collect()
    });
    PodSpec {
        init_containers: Some(init_containers),
        containers: vec![pod::server(&server.spec)],
        volumes: Some(volumes(owner, stdio)),
        service_account_name: deployment
            .service_account_name
            .as_ref()
            .map(ToString::to_string),
        image_pull_secrets: secrets,
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        ..PodSpec::default()
    }
}

fn volumes(owner: &Owner, stdio: bool) -> Vec<Volume> {
    let empty = |name: &str, limit: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity(limit.to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    };
    let bundle = Volume {
        name: pod::BUNDLE_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map_name(&owner.name),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mut volumes = vec![bundle, peer_token(owner)];
    if stdio {
        volumes.push(empty(pod::BIN_VOLUME, "64Mi"));
        volumes.push(empty(pod::RUN_VOLUME, "1Mi"));
    }
    volumes
}

/// The token with which the sidecar proves to others of this server who it is.
fn peer_token(owner: &Owner) -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(policy::peers::audience(&owner.uid)),
        expiration_seconds: Some(PEER_TOKEN_SECONDS),
        path: pod::PEER_TOKEN_FILE.to_owned(),
    };
    Volume {
        name: pod::PEER_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(token),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}
