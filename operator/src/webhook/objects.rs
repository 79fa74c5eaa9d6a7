//! Servers and policies are compiled as the operator would compile them, with the
//! changed object in the place of the stored one.
//!
//! Invariants:
//! - A change that breaks something is refused, with path and reason. One that
//!   breaks nothing that was not broken before is let through: what is broken must
//!   be mendable step by step.
//! - Who is leaving, and who changes but in metadata, is not looked at.

use std::{collections::BTreeSet, sync::Arc};

use crds::{McpServer, McpToolPolicy};
use kube::core::admission::{AdmissionResponse, Operation};
use policy::{Diagnostic, suspicious};

use super::{
    Webhook,
    review::{Question, allow, invalid, not_yet, warn},
};
use crate::{
    entry::{Entry, Kind},
    names::Key,
    table::Row,
};

/// An object that comes or changes.
struct Change<T> {
    new: Arc<Entry<T>>,
    old: Option<Arc<Entry<T>>>,
}

impl<T: Kind> Change<T> {
    /// The change, where there is something to look at.
    fn of(question: &Question) -> Option<Self> {
        let writes = matches!(question.operation, Operation::Create | Operation::Update);
        let object = question.object.as_ref()?;
        let old = question.old_object.as_ref();
        let leaves = object.metadata.deletion_timestamp.is_some();
        let same = old.is_some_and(|old| old.data["spec"] == object.data["spec"]);
        if !writes || question.sub_resource.is_some() || leaves || same {
            return None;
        }
        Some(Self {
            new: Arc::new(Entry::read(object.clone(), None)),
            old: old.map(|old| Arc::new(Entry::read(old.clone(), None))),
        })
    }
}

/// What a change does.
#[derive(Default)]
struct Verdict {
    /// What it would break.
    faults: Vec<String>,
    /// What is legal, and maybe not meant.
    warnings: Vec<String>,
}

impl Verdict {
    /// Compares what is wrong after a change with what was wrong before it: by what
    /// it is, for places move. `before` is none where the object could not even be
    /// read.
    fn compare(
        &mut self,
        after: Vec<Diagnostic>,
        before: Option<&[Diagnostic]>,
        tell: impl Fn(&Diagnostic) -> String,
    ) {
        for fault in after {
            let same =
                |old: &Diagnostic| old.policy == fault.policy && old.message == fault.message;
            let text = format!("{} ({})", tell(&fault), fault.reason);
            match before {
                Some(before) if !before.iter().any(same) => self.faults.push(text),
                _ => self.warnings.push(format!("every call is denied: {text}")),
            }
        }
    }

    fn answer(self, question: &Question) -> AdmissionResponse {
        let Self { faults, warnings } = self;
        if faults.is_empty() {
            warn(allow(question), warnings)
        } else {
            invalid(question, &faults)
        }
    }
}

impl Webhook {
    /// Answers for a server.
    pub(super) fn server(&self, question: &Question) -> AdmissionResponse {
        let Some(Change { new, old }) = Change::<McpServer>::of(question) else {
            return allow(question);
        };
        if !self.world.ready() {
            return not_yet(question);
        }
        let server = match &new.decoded {
            Ok(server) => server,
            Err(error) => return invalid(question, std::slice::from_ref(error)),
        };
        let key = new.key();
        let policies = self.world.policies_of(&key);
        let before = match old.as_ref().map(|old| &old.decoded) {
            Some(Ok(old)) => Some(self.faults(&key, old, &policies)),
            Some(Err(_)) => None,
            None => Some(Vec::new()),
        };
        let mut verdict = Verdict::default();
        let after = self.faults(&key, server, &policies);
        verdict.compare(after, before.as_deref(), ToString::to_string);
        let decoded = policies
            .iter()
            .filter_map(|entry| entry.decoded.as_ref().ok());
        let decoded: Vec<_> = decoded.collect();
        verdict
            .warnings
            .extend(suspicious::server(server, &decoded));
        verdict.answer(question)
    }

    /// Answers for a policy.
    pub(super) async fn policy(&self, question: &Question) -> AdmissionResponse {
        let Some(Change { new, old }) = Change::<McpToolPolicy>::of(question) else {
            return allow(question);
        };
        if !self.world.ready() {
            return not_yet(question);
        }
        let policy = match &new.decoded {
            Ok(policy) => policy,
            Err(error) => return invalid(question, std::slice::from_ref(error)),
        };
        let mut servers = self.servers(&new.groups()).await;
        let mut verdict = self.effect(&new, old.as_ref(), &servers);
        if !verdict.faults.is_empty() {
            // The watch may not have told of servers that changed a moment ago.
            servers = self.anew(servers).await;
            verdict = self.effect(&new, old.as_ref(), &servers);
        }
        let decoded = servers
            .iter()
            .filter_map(|entry| entry.decoded.as_ref().ok());
        let decoded: Vec<_> = decoded.collect();
        verdict
            .warnings
            .extend(suspicious::policy(policy, &decoded));
        verdict.answer(question)
    }

    /// What a policy does to its servers.
    fn effect(
        &self,
        new: &Arc<Entry<McpToolPolicy>>,
        old: Option<&Arc<Entry<McpToolPolicy>>>,
        servers: &[Arc<Entry<McpServer>>],
    ) -> Verdict {
        let key = new.key();
        let mut verdict = Verdict::default();
        for entry in servers {
            let Ok(server) = &entry.decoded else { continue };
            let of = entry.key();
            let mut others = self.world.policies_of(&of);
            others.retain(|entry| entry.key() != key);
            let with = |entry: &Arc<Entry<McpToolPolicy>>| -> Vec<_> {
                others.iter().chain([entry]).cloned().collect()
            };
            let before = match old {
                Some(old) if old.decoded.is_err() => None,
                Some(old) if old.groups().contains(&of) => {
                    Some(self.faults(&of, server, &with(old)))
                }
                _ => Some(self.faults(&of, server, &others)),
            };
            let after = self.faults(&of, server, &with(new));
            verdict.compare(after, before.as_deref(), |fault| {
                let Diagnostic { path, message, .. } = fault;
                let name = &of.name;
                if fault.policy.as_ref() == Some(&key.name) {
                    format!("{path}: {message} [McpServer {name}]")
                } else {
                    format!("McpServer {name}: {fault}")
                }
            });
        }
        verdict
    }

    /// What is wrong with a server and its policies.
    fn faults(
        &self,
        key: &Key,
        server: &McpServer,
        policies: &[Arc<Entry<McpToolPolicy>>],
    ) -> Vec<Diagnostic> {
        self.world.compile(key, server, policies, &[]).diagnostics
    }

    /// Those of some servers that there are. One that is not known is looked up: it
    /// may have come with the policy. Where that fails, the status will tell.
    async fn servers(&self, keys: &BTreeSet<Key>) -> Vec<Arc<Entry<McpServer>>> {
        let mut found = Vec::new();
        for key in keys {
            found.push(self.find(key));
        }
        let found = futures::future::join_all(found).await;
        found.into_iter().flatten().collect()
    }

    async fn find(&self, key: &Key) -> Option<Arc<Entry<McpServer>>> {
        match self.world.servers.get(key) {
            Some(entry) => Some(entry),
            None => self.look_up(key).await.ok().flatten(),
        }
    }

    /// Servers as they are now.
    async fn anew(&self, known: Vec<Arc<Entry<McpServer>>>) -> Vec<Arc<Entry<McpServer>>> {
        let mut found = Vec::new();
        for entry in known {
            found.push(self.look_again(entry));
        }
        let found = futures::future::join_all(found).await;
        found.into_iter().flatten().collect()
    }

    /// One that cannot be looked up is taken as it was.
    async fn look_again(&self, known: Arc<Entry<McpServer>>) -> Option<Arc<Entry<McpServer>>> {
        let found = self.look_up(&known.key()).await;
        found.unwrap_or(Some(known))
    }
}
