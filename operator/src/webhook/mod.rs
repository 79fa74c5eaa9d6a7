//! The admission webhook: puts the sidecar into pods that ask for it (`pods.rs`),
//! and looks at servers and policies before they are stored (`objects.rs`).
//!
//! Invariants:
//! - Every question gets an answer in less time than API servers wait
//!   (`timeoutSeconds: 5` in the chart), and an answer that cannot be found out
//!   refuses.
//! - Nothing is unbounded: bodies, connections, questions at the same time, waits.
//! - What changes but the answer happens off its path, and not in a dry run.

mod objects;
pub(crate) mod patch;
mod pods;
mod review;
mod serve;
mod teller;

use std::{
    error::Error as StdError,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use kube::{Client, core::admission::AdmissionResponse};
use tokio::sync::Semaphore;

use crate::{
    certificates::{Certificates, plan::Timing, store::Names},
    events::Events,
    metrics::Metrics,
    world::World,
};
use review::Question;
use teller::Teller;

/// Largest body: a question has an object in its old form and its new one, of at
/// most 3 MiB each.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// Time for a body to come.
const BODY: Duration = Duration::from_secs(2);
/// Time for the API server to say whether there is a server.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Time for an answer, of the 5 s that API servers wait.
const ANSWER: Duration = Duration::from_millis(4500);
/// Questions that are answered at the same time; others wait for their turn.
const CONCURRENCY: usize = 32;

/// Names of what the chart makes for the webhook.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Service in front of it.
    pub service: String,
    /// The `MutatingWebhookConfiguration`.
    pub mutating: String,
    /// The `ValidatingWebhookConfiguration`.
    pub validating: String,
    /// A Secret with the certificate, where others make it.
    pub secret: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            service: "toolward-webhook".to_owned(),
            mutating: "toolward-injection".to_owned(),
            validating: "toolward-validation".to_owned(),
            secret: None,
        }
    }
}

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Pods,
    Servers,
    Policies,
}

impl Hook {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/mutate/pods" => Some(Self::Pods),
            "/validate/servers" => Some(Self::Servers),
            "/validate/policies" => Some(Self::Policies),
            _ => None,
        }
    }

    /// Group and resource in a question.
    fn resource(self) -> (&'static str, &'static str) {
        match self {
            Self::Pods => ("", "pods"),
            Self::Servers => (crds::GROUP, "mcpservers"),
            Self::Policies => (crds::GROUP, "mcptoolpolicies"),
        }
    }
}

/// A question that cannot be read: status code and why.
type Unread = (StatusCode, String);

/// The webhook.
pub struct Webhook {
    client: Client,
    world: Arc<World>,
    certificates: Arc<Certificates>,
    metrics: Metrics,
    teller: Teller,
    permits: Semaphore,
    /// Whether API servers are to go to another replica for the next question.
    leaving: AtomicBool,
}

impl Webhook {
    /// A webhook that does not listen yet. Within a runtime: Events are written by a
    /// task of their own.
    pub fn new(
        client: Client,
        world: Arc<World>,
        events: Events,
        metrics: Metrics,
        options: Options,
    ) -> Self {
        let Options {
            service,
            mutating,
            validating,
            secret,
        } = options;
        let names = Names {
            namespace: world.settings.account.namespace.clone(),
            service,
            mutating,
            validating,
            given: secret,
        };
        let timing = Timing::default();
        let certificates = Certificates::new(client.clone(), names, timing, metrics.clone());
        Self {
            client,
            world,
            certificates: Arc::new(certificates),
            metrics,
            teller: Teller::start(events),
            permits: Semaphore::new(CONCURRENCY),
            leaving: AtomicBool::new(false),
        }
    }

    /// Its certificate.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// Answers a request, whatever it is, in less time than API servers wait.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let begun = Instant::now();
        let Some(hook) = Hook::at(request.uri().path()) else {
            return text(StatusCode::NOT_FOUND, "not found".to_owned());
        };
        let answered = tokio::time::timeout(ANSWER, self.decide(hook, request)).await;
        let (result, response) = match answered {
            Ok(Ok(answer)) => (result_of(&answer), json(answer)),
            Ok(Err((code, why))) => ("unread", text(code, why)),
            Err(_) => {
                let why = format!("no answer within {} s", ANSWER.as_secs_f32());
                ("late", text(StatusCode::SERVICE_UNAVAILABLE, why))
            }
        };
        let (_, resource) = hook.resource();
        self.metrics.admitted(resource, result, begun.elapsed());
        response
    }

    async fn decide<B>(&self, hook: Hook, request: Request<B>) -> Result<AdmissionResponse, Unread>
    where
        B: Body,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        // Waits for its turn before it takes memory.
        let Ok(_permit) = self.permits.acquire().await else {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "stopping".to_owned()));
        };
        let question = read(hook, request).await?;
        Ok(match hook {
            Hook::Pods => self.pod(&question).await,
            Hook::Servers => self.server(&question),
            Hook::Policies => self.policy(&question).await,
        })
    }
}

/// Reads a question about what the path says.
async fn read<B>(hook: Hook, request: Request<B>) -> Result<Question, Unread>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        let why = "an AdmissionReview comes by POST".to_owned();
        return Err((StatusCode::METHOD_NOT_ALLOWED, why));
    }
    let content = head.headers.get(header::CONTENT_TYPE);
    let content = content
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let content = content.split(';').next().unwrap_or_default().trim();
    if !content.eq_ignore_ascii_case("application/json") {
        let why = format!("an AdmissionReview is application/json, not {content:?}");
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let body = Limited::new(body, MAX_BODY).collect();
    let body = match tokio::time::timeout(BODY, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let why = format!("more than {MAX_BODY} bytes are not read");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, error.to_string())),
        Err(_) => {
            let why = format!("the body did not come within {} s", BODY.as_secs());
            return Err((StatusCode::REQUEST_TIMEOUT, why));
        }
    };
    let question = review::read(&body).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    let (group, resource) = hook.resource();
    let asked = &question.resource;
    if asked.group != group || asked.resource != resource {
        let why = format!(
            "the AdmissionReview is of {}, not of {resource}",
            asked.resource
        );
        return Err((StatusCode::BAD_REQUEST, why));
    }
    Ok(question)
}

/// The label of a metric.
fn result_of(answer: &AdmissionResponse) -> &'static str {
    match (answer.allowed, &answer.patch) {
        (false, _) => "refused",
        (true, None) => "allowed",
        (true, Some(_)) => "patched",
    }
}

fn json(answer: AdmissionResponse) -> Response<Full<Bytes>> {
    match serde_json::to_vec(&answer.into_review()) {
        Ok(json) => response(StatusCode::OK, "application/json", json),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn text(code: StatusCode, why: String) -> Response<Full<Bytes>> {
    response(code, "text/plain; charset=utf-8", why.into_bytes())
}

fn response(code: StatusCode, content: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let content = HeaderValue::from_static(content);
    response.headers_mut().insert(header::CONTENT_TYPE, content);
    response
}
