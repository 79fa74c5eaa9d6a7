//! Where the webhook's certificates are: pairs in a Secret of the operator's
//! namespace, CAs in the `caBundle` of both webhook configurations.
//!
//! Invariants:
//! - Nothing is written over what was not seen: each write names the version that
//!   was read. Replicas cannot undo each other's steps.
//! - Configurations are read before the Secret: who writes to a configuration has
//!   a view of the Secret that is no older.
//! - Of a configuration, `caBundle` alone is written.

use std::fmt::Debug;

use futures::{
    StreamExt,
    stream::{BoxStream, select_all},
};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
        },
        core::v1::Secret,
    },
};
use kube::{
    Api, Client, Resource,
    api::{PartialObjectMeta, Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::pair::{Pair, authorities};
use crate::{
    error::{Error, call},
    names::FIELD_MANAGER,
};

/// The Secret that holds the pairs.
pub const SECRET: &str = "toolward-webhook-tls";
/// Before the names of the next pair's parts.
const NEXT: &str = "next-";
/// CA, certificate and key.
const PARTS: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];

/// What to look after.
#[derive(Clone, Debug)]
pub struct Names {
    /// The operator's namespace.
    pub namespace: String,
    /// The webhook's Service.
    pub service: String,
    /// The `MutatingWebhookConfiguration`.
    pub mutating: String,
    /// The `ValidatingWebhookConfiguration`.
    pub validating: String,
    /// A Secret with a pair that others make, where there is to be one.
    pub given: Option<String>,
}

impl Names {
    /// The name by which API servers call the webhook.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

/// One webhook configuration.
#[derive(Debug)]
struct Configuration {
    name: String,
    version: Option<String>,
    /// Names of its webhooks, and what each trusts.
    hooks: Vec<(String, Vec<u8>)>,
}

/// What the API server has.
#[derive(Debug)]
pub struct Found {
    mutating: Configuration,
    validating: Configuration,
    /// The version of the Secret, where there is one.
    secret: Option<String>,
    /// The pair in use.
    pub current: Option<Pair>,
    /// The one to come.
    pub next: Option<Pair>,
    /// The one that others made.
    pub given: Option<Pair>,
    /// The CAs in the `caBundle` of each webhook.
    pub bundles: Vec<Vec<String>>,
    /// What cannot be used, and why.
    pub faults: Vec<String>,
}

/// A kind of webhook configuration.
trait Configured:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Its webhooks: names, and how they are called.
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Configured for MutatingWebhookConfiguration {
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let hooks = self.webhooks.iter().flatten();
        hooks
            .map(|it| (it.name.as_str(), &it.client_config))
            .collect()
    }
}

impl Configured for ValidatingWebhookConfiguration {
    fn hooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        let hooks = self.webhooks.iter().flatten();
        hooks
            .map(|it| (it.name.as_str(), &it.client_config))
            .collect()
    }
}

/// Reads and writes all of it.
pub struct Store {
    client: Client,
    names: Names,
}

impl Store {
    /// Of these names.
    pub fn new(client: Client, names: Names) -> Self {
        Self { client, names }
    }

    /// What to look after.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// What the API server answers; a configuration that does not exist is an
    /// error, a Secret that does not is none.
    pub async fn read(&self) -> Result<Found, Error> {
        let mutating = self
            .configuration::<MutatingWebhookConfiguration>(&self.names.mutating)
            .await?;
        let validating = self
            .configuration::<ValidatingWebhookConfiguration>(&self.names.validating)
            .await?;
        let mut faults = Vec::new();
        let given = match &self.names.given {
            Some(name) => self.given(name, &mut faults).await?,
            None => None,
        };
        let secret = self.secret(SECRET).await?;
        let mut pair = |prefix| {
            let read = self.pair(secret.as_ref()?, prefix)?;
            let fault = |why| faults.push(format!("Secret {SECRET}, {prefix}{why}"));
            read.map_err(fault).ok()
        };
        let (current, next) = (pair(""), pair(NEXT));
        let hooks = mutating.hooks.iter().chain(&validating.hooks);
        let bundles = hooks.map(|(_, bundle)| authorities(&String::from_utf8_lossy(bundle)));
        Ok(Found {
            bundles: bundles.collect(),
            mutating,
            validating,
            secret: secret.map(|secret| secret.metadata.resource_version.unwrap_or_default()),
            current,
            next,
            given,
            faults,
        })
    }

    async fn configuration<K: Configured>(&self, name: &str) -> Result<Configuration, Error> {
        let api = Api::<K>::all(self.client.clone());
        let action = || format!("reading {} {name}", K::kind(&()));
        let object = call(action, api.get(name)).await?;
        let bundle = |config: &WebhookClientConfig| config.ca_bundle.clone().unwrap_or_default().0;
        let hooks = object.hooks().into_iter();
        Ok(Configuration {
            name: name.to_owned(),
            version: object.meta().resource_version.clone(),
            hooks: hooks
                .map(|(name, config)| (name.to_owned(), bundle(config)))
                .collect(),
        })
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.names.namespace)
    }

    async fn secret(&self, name: &str) -> Result<Option<Secret>, Error> {
        let action = || format!("reading Secret {name}");
        call(action, self.secrets().get_opt(name)).await
    }

    /// The pair that others made.
    async fn given(&self, name: &str, faults: &mut Vec<String>) -> Result<Option<Pair>, Error> {
        let read = match self.secret(name).await? {
            Some(secret) => self
                .pair(&secret, "")
                .unwrap_or_else(|| Err(format!("none of {} is there", PARTS.join(", ")))),
            None => Err(format!("does not exist in {}", self.names.namespace)),
        };
        let fault = |why| faults.push(format!("Secret {name} (--webhook-secret): {why}"));
        Ok(read.map_err(fault).ok())
    }

    /// A pair of a Secret, where any part of one is there.
    fn pair(&self, secret: &Secret, prefix: &str) -> Option<Result<Pair, String>> {
        let data = secret.data.as_ref()?;
        let part = |part: &str| data.get(&format!("{prefix}{part}"));
        let parts = PARTS.map(part);
        if parts.iter().all(Option::is_none) {
            return None;
        }
        let text = |part: Option<&ByteString>| {
            let bytes = part.map(|part| part.0.as_slice());
            String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
        };
        let [ca, certificate, key] = parts.map(text);
        Some(Pair::read(&self.names.host(), &ca, &certificate, &key))
    }

    /// Writes a pair down as the next one, or makes the Secret where there is none.
    ///
    /// # Errors
    /// What the API server answers: 409 where another replica was faster.
    pub async fn make(&self, found: &Found, pair: &Pair) -> Result<(), Error> {
        match &found.secret {
            Some(version) => self.fill(version, parts(NEXT, Some(pair))).await,
            None => self.create().await,
        }
    }

    /// Makes the next pair the current one.
    ///
    /// # Errors
    /// What the API server answers: 409 where another replica was faster.
    pub async fn promote(&self, found: &Found, next: &Pair) -> Result<(), Error> {
        let mut data = parts("", Some(next));
        merge(&mut data, parts(NEXT, None));
        self.fill(found.secret.as_deref().unwrap_or_default(), data)
            .await
    }

    /// Lets each `caBundle` be this.
    ///
    /// # Errors
    /// What the API server answers: 409 where another replica was faster.
    pub async fn trust(&self, found: &Found, cas: &[String]) -> Result<(), Error> {
        let bundle = cas.concat();
        let (mutating, validating) = (&found.mutating, &found.validating);
        self.configure::<MutatingWebhookConfiguration>(mutating, &bundle)
            .await?;
        self.configure::<ValidatingWebhookConfiguration>(validating, &bundle)
            .await
    }

    /// By server-side apply: the field is the operator's own then, and who applies
    /// the chart again leaves it alone.
    async fn configure<K: Configured>(
        &self,
        configuration: &Configuration,
        bundle: &str,
    ) -> Result<(), Error> {
        let Configuration {
            name,
            version,
            hooks,
        } = configuration;
        if hooks.iter().all(|(_, found)| found == bundle.as_bytes()) {
            return Ok(());
        }
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let hook = |(name, _): &(String, Vec<u8>)| json!({"name": name, "clientConfig": {"caBundle": bundle}});
        let hooks: Vec<Value> = hooks.iter().map(hook).collect();
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name, "resourceVersion": version},
            "webhooks": hooks,
        });
        let api = Api::<K>::all(self.client.clone());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let action = || format!("writing the caBundle of {} {name}", K::kind(&()));
        call(action, api.patch(name, &params, &Patch::Apply(&patch))).await?;
        tracing::info!(configuration = name, "the caBundle was written");
        Ok(())
    }

    /// Makes the chart's Secret anew where somebody deleted it, with nothing in it:
    /// so it does not matter who does, or how late. By server-side apply, which
    /// names what it creates: a rule of RBAC can then be for this one Secret. It
    /// has no label, which would conflict with the chart's at the next upgrade.
    async fn create(&self) -> Result<(), Error> {
        let patch = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET},
            "type": "Opaque",
        });
        let params = PatchParams::apply(FIELD_MANAGER);
        let action = || format!("creating Secret {SECRET}");
        let secrets = self.secrets();
        call(
            action,
            secrets.patch(SECRET, &params, &Patch::Apply(&patch)),
        )
        .await?;
        Ok(())
    }

    async fn fill(&self, version: &str, data: Value) -> Result<(), Error> {
        let patch = json!({"metadata": {"resourceVersion": version}, "data": data});
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let action = || format!("writing Secret {SECRET}");
        let secrets = self.secrets();
        call(
            action,
            secrets.patch(SECRET, &params, &Patch::Merge(&patch)),
        )
        .await?;
        Ok(())
    }

    /// Tells whenever one of the objects changes, and never ends.
    pub fn changes(&self) -> BoxStream<'static, ()> {
        let Names {
            namespace,
            mutating,
            validating,
            given,
            ..
        } = &self.names;
        let client = || self.client.clone();
        let secrets = || Api::<PartialObjectMeta<Secret>>::namespaced(client(), namespace);
        let mutates = Api::<PartialObjectMeta<MutatingWebhookConfiguration>>::all(client());
        let validates = Api::<PartialObjectMeta<ValidatingWebhookConfiguration>>::all(client());
        let mut streams = vec![
            named(mutates, mutating),
            named(validates, validating),
            named(secrets(), SECRET),
        ];
        streams.extend(given.iter().map(|given| named(secrets(), given)));
        select_all(streams).boxed()
    }
}

/// Changes of one object.
fn named<K>(api: Api<K>, name: &str) -> BoxStream<'static, ()>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let object = name.to_owned();
    let events = watcher(api, config).default_backoff();
    let changes = events.filter_map(move |event| {
        let change = match event {
            Ok(Event::Apply(_) | Event::InitApply(_) | Event::Delete(_)) => Some(()),
            Ok(Event::Init | Event::InitDone) => None,
            Err(error) => {
                tracing::warn!(object, %error, "watch failed; it is tried again");
                None
            }
        };
        std::future::ready(change)
    });
    changes.boxed()
}

/// The parts of a pair as a patch of a Secret's data; without a pair, their
/// removal.
fn parts(prefix: &str, pair: Option<&Pair>) -> Value {
    let texts = pair.map(|pair| [&pair.ca, &pair.certificate, &pair.key]);
    let part = |(index, name): (usize, &str)| {
        let text = texts.and_then(|texts| texts.get(index).copied());
        let bytes = text.map(|text| ByteString(text.as_bytes().to_vec()));
        (format!("{prefix}{name}"), json!(bytes))
    };
    PARTS.into_iter().enumerate().map(part).collect()
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
