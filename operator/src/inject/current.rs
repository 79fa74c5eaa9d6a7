//! Whether the sidecar of a pod is what its server's spec asks for now. Rules and
//! limits reach it while it runs; what it was started with stays until the pod is
//! made anew.

use std::collections::BTreeMap;

use crds::McpServerSpec;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use super::SIDECAR_CONTAINER;
use crate::desired::{self, SidecarImage};

/// Flags by which a spec reaches the sidecar. All others are Toolward's own, and
/// pods of an earlier release may have different ones.
const OF_SPEC: [&str; 10] = [
    "--identity-keys",
    "--issuer-authorities",
    "--upstream-credential-header",
    "--tls",
    "--upstream",
    "--socket",
    "--process",
    "--max-processes",
    "--idle-timeout",
    "--startup-timeout",
];

/// What a spec asks of the sidecars that are started with it. Resources are not
/// looked at.
pub struct Wanted {
    sidecar: Container,
    secrets: Vec<Volume>,
}

impl Wanted {
    /// By a spec.
    pub fn by(spec: &McpServerSpec) -> Self {
        // Of no matter for its flags.
        let image = SidecarImage {
            image: String::new(),
            pull_policy: String::new(),
        };
        Self {
            sidecar: desired::pod::sidecar(spec, &image),
            secrets: desired::secrets(spec),
        }
    }

    /// Whether a pod's sidecar was started with that.
    pub fn is_in(&self, pod: &Pod) -> bool {
        is_current(pod, self).unwrap_or(false)
    }
}

fn is_current(pod: &Pod, wanted: &Wanted) -> Option<bool> {
    let there = pod.spec.as_ref()?;
    let containers = there.init_containers.iter().flatten();
    let mut sidecars = containers.filter(|container| container.name == SIDECAR_CONTAINER);
    let sidecar = sidecars.next()?;
    let mounted = there.volumes.iter().flatten();
    let mounted = mounted.filter(|volume| volume.name.starts_with("toolward-"));
    let is_same = flags(sidecar) == flags(&wanted.sidecar);
    Some(is_same && files(mounted) == files(wanted.secrets.iter()))
}

fn flags(container: &Container) -> BTreeMap<&str, &str> {
    let args = container.args.as_deref().unwrap_or_default();
    let pairs = args.windows(2).filter_map(|pair| match pair {
        [flag, value] if OF_SPEC.contains(&flag.as_str()) => Some((flag.as_str(), value.as_str())),
        _ => None,
    });
    pairs.collect()
}

/// The files that come from Secrets, and where from.
fn files<'v>(
    volumes: impl Iterator<Item = &'v Volume>,
) -> BTreeMap<(&'v str, &'v str), [&'v str; 2]> {
    let mut files = BTreeMap::new();
    for volume in volumes {
        let sources = volume
            .projected
            .iter()
            .flat_map(|it| it.sources.iter().flatten());
        for secret in sources.filter_map(|source| source.secret.as_ref()) {
            for item in secret.items.iter().flatten() {
                let file = (volume.name.as_str(), item.path.as_str());
                files.insert(file, [secret.name.as_str(), item.key.as_str()]);
            }
        }
    }
    files
}
