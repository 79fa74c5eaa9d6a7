//! The volumes that the sidecar needs: configuration, tokens, Secrets, and for
//! stdio what it shares with the server.

use crds::McpServerSpec;
use k8s_openapi::{
    api::core::v1::{
        ConfigMapProjection, ConfigMapVolumeSource, EmptyDirVolumeSource, KeyToPath,
        ProjectedVolumeSource, SecretProjection, ServiceAccountTokenProjection, Volume,
        VolumeProjection,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Owner, pod};
use crate::names::{config_map_name, identity_map_name};

/// The kubelet renews a token after four fifths of this time.
const TOKEN_SECONDS: i64 = 3600;
/// Keys of a Secret of type `kubernetes.io/tls`, which the sidecar reads as files.
const TLS_KEYS: [&str; 2] = ["tls.crt", "tls.key"];

/// All volumes of a server's pod that are the sidecar's.
pub(crate) fn volumes(owner: &Owner, spec: &McpServerSpec) -> Vec<Volume> {
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
    volumes.extend(secrets(spec));
    if pod::is_stdio(&spec.transport) {
        volumes.push(empty(pod::BIN_VOLUME, "64Mi"));
        volumes.push(empty(pod::RUN_VOLUME, "1Mi"));
    }
    volumes
}

/// The Secrets that a spec names, for the sidecar.
pub(crate) fn secrets(spec: &McpServerSpec) -> Vec<Volume> {
    let mut volumes = Vec::new();
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
