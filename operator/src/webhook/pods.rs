//! Pods that ask for a sidecar get it, or are refused with what to write.

use std::sync::Arc;

use crds::{ConditionType, McpServer, Reason};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    core::admission::{AdmissionResponse, Operation},
};
use serde_json::Value;

use super::{
    LOOK_UP, Webhook, patch,
    review::{Question, allow, forbid, warn},
};
use crate::{
    desired::Owner,
    entry::Entry,
    inject::{Injected, Refusal, Target, inject, server_of},
    names::{Key, SERVER_ANNOTATION},
    status::find,
};

/// What the answer carries, and what is told of it.
struct Done {
    patch: json_patch::Patch,
    warnings: Vec<String>,
    summary: String,
    server: Owner,
}

impl Webhook {
    /// Answers for a pod.
    pub(super) async fn pod(&self, question: &Question) -> AdmissionResponse {
        let Some(object) = &question.object else {
            return allow(question);
        };
        if question.operation != Operation::Create || question.sub_resource.is_some() {
            return allow(question);
        }
        let pod = match object.clone().try_parse::<Pod>() {
            Ok(pod) => pod,
            Err(error) => return forbid(question, &[format!("the pod cannot be read: {error}")]),
        };
        let namespace = question.namespace.as_deref().unwrap_or_default();
        let done = match self.inject(namespace, &pod).await {
            Ok(Some(done)) => done,
            Ok(None) => return allow(question),
            Err(faults) => return forbid(question, &faults),
        };
        let Done {
            patch,
            warnings,
            summary,
            server,
        } = done;
        if patch.is_empty() {
            return warn(allow(question), warnings);
        }
        let patched = match allow(question).with_patch(patch) {
            Ok(patched) => patched,
            Err(error) => return forbid(question, &[error.to_string()]),
        };
        if !question.dry_run {
            self.teller.injected(&server, &pod, &summary, &warnings);
        }
        warn(patched, warnings)
    }

    /// What is to be changed in a pod, where it asks for a sidecar.
    async fn inject(&self, namespace: &str, pod: &Pod) -> Result<Option<Done>, Vec<String>> {
        let refused = |refusal: &Refusal| refusal.to_string();
        let name = server_of(pod).map_err(|refusal| vec![refused(&refusal)])?;
        let Some(name) = name else { return Ok(None) };
        let key = Key::new(namespace, name);
        let found = self.injected_server(&key).await;
        let at_annotation = |why| vec![format!("metadata.annotations[{SERVER_ANNOTATION}]: {why}")];
        let entry = found.map_err(at_annotation)?;
        let server = usable(&key, &entry).map_err(at_annotation)?;
        let owner = Owner {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: entry.meta.uid.clone().unwrap_or_default(),
        };
        let target = Target {
            owner: &owner,
            spec: &server.spec,
            sidecar: &self.world.settings.sidecar,
        };
        let Injected {
            pod: after,
            warnings,
            summary,
        } = inject(pod, &target)
            .map_err(|refusals| refusals.iter().map(refused).collect::<Vec<_>>())?;
        let json = |pod| serde_json::to_value(pod).map_err(|error| vec![error.to_string()]);
        Ok(Some(Done {
            patch: patch::between(json(pod)?, &json(&after)?),
            warnings,
            summary,
            server: owner,
        }))
    }

    /// The server that a pod names. One that is not known, or not as one that takes
    /// pods, is looked up: the watch may be late.
    async fn injected_server(&self, key: &Key) -> Result<Arc<Entry<McpServer>>, String> {
        if let Some(entry) = self.world.servers.get(key)
            && usable(key, &entry).is_ok()
        {
            return Ok(entry);
        }
        let Key { namespace, name } = key;
        match self.look_up(key).await {
            Ok(Some(entry)) => Ok(entry),
            Ok(None) => Err(format!(
                "there is no McpServer {name} in namespace {namespace}: write one with spec.injected: {{}}, or the name of one that is there"
            )),
            Err(error) => Err(format!(
                "McpServer {name} is not known, and looking it up failed ({error}): try again"
            )),
        }
    }

    /// Asks the API server for a server.
    pub(super) async fn look_up(&self, key: &Key) -> Result<Option<Arc<Entry<McpServer>>>, String> {
        let resource = ApiResource::erase::<McpServer>(&());
        let client = self.client.clone();
        let api = Api::<DynamicObject>::namespaced_with(client, &key.namespace, &resource);
        match tokio::time::timeout(LOOK_UP, api.get_opt(&key.name)).await {
            Ok(Ok(found)) => Ok(found.map(|object| Arc::new(Entry::read(object, None)))),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", LOOK_UP.as_secs())),
        }
    }
}

/// The server, where its sidecar can be put into pods now.
fn usable<'a>(key: &Key, entry: &'a Entry<McpServer>) -> Result<&'a McpServer, String> {
    let name = &key.name;
    if entry.meta.deletion_timestamp.is_some() {
        return Err(format!(
            "McpServer {name} is being deleted: write the name of another one"
        ));
    }
    let server = entry.decoded.as_ref();
    let server = server.map_err(|error| format!("McpServer {name} cannot be used: {error}"))?;
    if server.spec.injected.is_none() {
        return Err(format!(
            "McpServer {name} has pods of its own (spec.deployment): write spec.injected: {{}} in place of that, or remove the annotation"
        ));
    }
    if let Some(why) = taken(&entry.status) {
        return Err(format!("McpServer {name} cannot be used: {why}"));
    }
    Ok(server)
}

/// Who else has the server's name, where that is so: what its pods would mount need
/// not be the operator's.
fn taken(status: &Value) -> Option<&str> {
    let accepted = find(status, ConditionType::Accepted)?;
    let is_taken = accepted["reason"] == Reason::NameTaken.to_string();
    accepted["message"].as_str().filter(|_| is_taken)
}
