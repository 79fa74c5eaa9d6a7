//! The Deployment of a server: its container, and the sidecar in front.

use std::collections::BTreeMap;

use crds::{McpServer, McpServerSpec};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        core::v1::{
            ConfigMapProjection, ConfigMapVolumeSource, EmptyDirVolumeSource, KeyToPath,
            LocalObjectReference, PodSpec, PodTemplateSpec, ProjectedVolumeSource,
            SecretProjection, ServiceAccountTokenProjection, Volume, VolumeProjection,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
    },
};

use super::{Owner, SidecarImage, labels, pod, selector};
use crate::names::{SERVER_CONTAINER, config_map_name, identity_map_name};

/// Time to finish calls, and then for the server to end.
const GRACE_SECONDS: i64 = 30;
/// The kubelet renews a token after four fifths of this time.
const TOKEN_SECONDS: i64 = 3600;
/// Keys of a Secret of type `kubernetes.io/tls`, which the sidecar reads as files.
const TLS_KEYS: [&str; 2] = ["tls.crt", "tls.key"];

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
    init_containers.push(pod::sidecar(&server.spec, sidecar));
    let secrets = deployment.image_pull_secrets.as_ref().map(|secrets| {
        let reference = |secret: &crds::LocalObjectReference| LocalObjectReference {
            name: secret.name.to_string(),
        };
        secrets.iter().map(reference).collect()
    });
    PodSpec {
        init_containers: Some(init_containers),
        containers: vec![pod::server(&server.spec)],
        volumes: Some(volumes(owner, &server.spec)),
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

fn volumes(owner: &Owner, spec: &McpServerSpec) -> Vec<Volume> {
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
    if spec.identity.is_some() {
        volumes.push(identity(owner));
    }
    let authorities: Vec<_> = pod::authorities(&spec.authentication)
        .map(|(issuer, secret)| {
            let file = format!("{issuer}.pem");
            // Without it, the others still work, and AuthReady says what is missing.
            let mut files = secret_files(&secret.name, &[(&*secret.key, &*file)]);
            if let Some(secret) = &mut files.secret {
                secret.optional = Some(true);
            }
            files
        })
        .collect();
    if !authorities.is_empty() {
        volumes.push(projected(pod::AUTHORITIES_VOLUME, authorities));
    }
    if let Some(credential) = &spec.upstream_credential {
        let secret = &credential.secret_ref;
        let file = secret_files(&secret.name, &[(&*secret.key, pod::CREDENTIAL_FILE)]);
        volumes.push(projected(pod::CREDENTIAL_VOLUME, vec![file]));
    }
    if let Some(tls) = &spec.tls {
        let pair = TLS_KEYS.map(|key| (key, key));
        let files = secret_files(&tls.secret_name, &pair);
        volumes.push(projected(pod::TLS_VOLUME, vec![files]));
    }
    if pod::is_stdio(&spec.transport) {
        volumes.push(empty(pod::BIN_VOLUME, "64Mi"));
        volumes.push(empty(pod::RUN_VOLUME, "1Mi"));
    }
    volumes
}

/// The token with which the sidecar proves to others of this server who it is.
fn peer_token(owner: &Owner) -> Volume {
    let audience = policy::peers::audience(&owner.uid);
    projected(pod::PEER_VOLUME, vec![token(audience)])
}

/// The token with which the sidecar proves its key to the operator, and the keys
/// that are published. The ConfigMap is made before.
fn identity(owner: &Owner) -> Volume {
    let keys = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: identity_map_name(&owner.name),
            ..ConfigMapProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let audience = sealed::pod_audience(&owner.uid);
    projected(pod::IDENTITY_VOLUME, vec![token(audience), keys])
}

fn token(audience: String) -> VolumeProjection {
    VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            audience: Some(audience),
            expiration_seconds: Some(TOKEN_SECONDS),
            path: pod::TOKEN_FILE.to_owned(),
        }),
        ..VolumeProjection::default()
    }
}

fn projected(name: &str, sources: Vec<VolumeProjection>) -> Volume {
    Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(sources),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Keys of a Secret, each as a file. Without one, the pod does not start.
fn secret_files(secret: &str, keys: &[(&str, &str)]) -> VolumeProjection {
    let file = |&(key, path): &(&str, &str)| KeyToPath {
        key: key.to_owned(),
        path: path.to_owned(),
        mode: None,
    };
    VolumeProjection {
        secret: Some(SecretProjection {
            name: secret.to_owned(),
            items: Some(keys.iter().map(file).collect()),
            optional: None,
        }),
        ..VolumeProjection::default()
    }
}
