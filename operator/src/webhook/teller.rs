//! Tells on an `McpServer` into which pods its sidecar was put: off the path of
//! the answer, which waits for nothing.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::mpsc;

use crate::{desired::Owner, events::Events};

/// The most news that wait; what is more is dropped, and logged: status counts
/// the pods.
const QUEUE: usize = 256;

/// News of one pod.
struct Told {
    server: Owner,
    about: ObjectReference,
    note: String,
}

/// Where news go.
pub struct Teller(mpsc::Sender<Told>);

impl Teller {
    /// Writes Events until the teller is dropped.
    pub fn start(events: Events) -> Self {
        let (sender, mut told) = mpsc::channel::<Told>(QUEUE);
        tokio::spawn(async move {
            while let Some(Told {
                server,
                about,
                note,
            }) = told.recv().await
            {
                events.injected(&server, about, note).await;
            }
        });
        Self(sender)
    }

    /// The sidecar of a server was put into a pod.
    pub fn injected(&self, server: &Owner, pod: &Pod, summary: &str, warnings: &[String]) {
        let about = about(server, pod);
        let (kind, name) = (about.kind.as_deref(), about.name.as_deref());
        let (kind, name) = (kind.unwrap_or_default(), name.unwrap_or_default());
        let pods = if kind == "Pod" { "" } else { "pods of " };
        // Whoever makes pods for others is the only one to see the reply's warnings.
        let more: String = warnings
            .iter()
            .map(|it| format!("; warning: {it}"))
            .collect();
        let told = Told {
            note: format!("put the sidecar into {pods}{kind} {name}: {summary}{more}"),
            server: server.clone(),
            about,
        };
        if self.0.try_send(told).is_err() {
            tracing::warn!(server = %server.name, "too many Events wait: one was dropped");
        }
    }
}

/// Who made the pod, or the pod itself, which may have no name yet.
fn about(server: &Owner, pod: &Pod) -> ObjectReference {
    let meta = &pod.metadata;
    let mut owners = meta.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true));
    let namespace = Some(server.namespace.clone());
    match owner {
        Some(owner) => ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            namespace,
            ..ObjectReference::default()
        },
        None => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: meta.name.clone().or_else(|| meta.generate_name.clone()),
            namespace,
            ..ObjectReference::default()
        },
    }
}
