//! What happens to a request, top to bottom: path, names, method, token, body,
//! decision, limits, audit, forward, answer.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use policy::{Caller, Operation, Reason, bundle::Effect, decide};
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::{
    Shared,
    audit::Record,
    body::{self, Body, FilteredEvents, Guarded},
    config::Active,
    envelope::{Kind, Message},
    filter,
    front::{self, Phase},
    method::{self, Action},
    refusal::Refusal,
    request,
    upstream::{Forward, UpstreamError},
};

/// Largest answer that has to be read whole, as lists in JSON have.
const MAX_LIST: usize = 8 * 1024 * 1024;

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(u64::MAX, |since| since.as_secs())
}

/// Answers one request.
pub async fn handle(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (parts, incoming) = request.into_parts();
    let changes = shared.config.changes();
    let Some(active) = shared.config.active() else {
        let message = "no configuration has been read yet: everything is denied";
        return Refusal::new(Reason::NoBundle, StatusCode::SERVICE_UNAVAILABLE, message)
            .into_response(None);
    };
    if parts.uri.path() != active.path {
        return Refusal::new(
            Reason::Malformed,
            StatusCode::NOT_FOUND,
            format!("the MCP endpoint is {}", active.path),
        )
        .into_response(None);
    }
    let mut exchange = Exchange {
        shared: Arc::clone(shared),
        active,
        changes,
        parts,
        caller: None,
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    let admitted = match exchange.admit() {
        Ok(()) => exchange.read_body(incoming).await,
        Err(refusal) => {
            front::discard(&exchange.parts.headers, incoming).await;
            Err(refusal)
        }
    };
    if let Err(refusal) = admitted {
        let method = method::label(exchange.parts.method.as_str());
        return exchange.refuse(refusal, method, None).await;
    }
    let start = Instant::now();
    let (method, answer) = exchange.answer().await;
    shared.metrics.took(&method, start.elapsed());
    answer
}

/// One request and what is known of it so far.
struct Exchange {
    shared: Arc<Shared>,
    active: Arc<Active>,
    /// Taken before `active`: what changes later is seen here.
    changes: watch::Receiver<()>,
    parts: Parts,
    caller: Option<Arc<Caller>>,
    /// Headers that pass on to the server.
    headers: HeaderMap,
    body: Bytes,
}

/// What the body asks for.
struct Asked {
    /// MCP method, `response`, or the HTTP method where there is no message.
    method: String,
    action: Action,
    /// Id of a request.
    id: Option<Box<RawValue>>,
    /// The MCP method, where there is one.
    rpc_method: Option<String>,
}

impl Exchange {
    /// Names, method, token, headers: all that has to hold before the body is read.
    fn admit(&mut self) -> Result<(), Refusal> {
        request::check_names(&self.parts, &self.active)?;
        if ![Method::GET, Method::POST, Method::DELETE].contains(&self.parts.method) {
            let refusal = Refusal::new(
                Reason::MethodNotAllowed,
                StatusCode::METHOD_NOT_ALLOWED,
                "use POST, GET or DELETE",
            );
            return Err(Refusal {
                header: Some(request::ALLOW),
                ..refusal
            });
        }
        let caller = self
            .active
            .authenticator
            .authenticate(&self.parts.headers, now());
        self.caller = Some(
            caller.map_err(|reason| Refusal::unauthorized(reason, &self.active.bundle.audience))?,
        );
        self.headers = request::forwarded_headers(&self.parts.method, &self.parts.headers)?;
        Ok(())
    }

    async fn read_body(&mut self, incoming: Incoming) -> Result<(), Refusal> {
        self.body = self.shared.intake.read(incoming).await?;
        if self.parts.method != Method::POST && !self.body.is_empty() {
            return Err(Refusal::malformed("only POST carries a body"));
        }
        Ok(())
    }

    async fn answer(&self) -> (String, Response<Body>) {
        let asked = match self.read() {
            Ok(asked) => asked,
            Err(refusal) => {
                let method = self.parts.method.as_str();
                return (method.to_owned(), self.refuse(refusal, method, None).await);
            }
        };
        let answer = match self.decide(&asked).await {
            Ok(()) => self.forward(&asked).await,
            Err(refusal) => Err(refusal),
        };
        let answer = answer.unwrap_or_else(|refusal| refusal.into_response(asked.id.as_deref()));
        (asked.method, answer)
    }

    fn read(&self) -> Result<Asked, Refusal> {
        if self.parts.method != Method::POST {
            let method = self.parts.method.as_str().to_owned();
            return Ok(Asked {
                method,
                action: Action::Open,
                id: None,
                rpc_method: None,
            });
        }
        let message = Message::parse(&self.body).map_err(Refusal::malformed)?;
        let (method, action) = match &message.kind {
            Kind::Request { method, params } => (
                method.as_ref(),
                Action::of_request(method, *params).map_err(Refusal::malformed)?,
            ),
            Kind::Notification { method, .. } => (method.as_ref(), Action::of_notification(method)),
            Kind::Response { .. } => {
                return Ok(Asked {
                    method: "response".into(),
                    action: Action::Open,
                    id: None,
                    rpc_method: None,
                });
            }
        };
        Ok(Asked {
            method: method.to_owned(),
            action,
            id: message.id.map(ToOwned::to_owned),
            rpc_method: Some(method.to_owned()),
        })
    }

    /// Decides, charges the limits, and logs it.
    async fn decide(&self, asked: &Asked) -> Result<(), Refusal> {
        let modern = request::is_modern(&self.parts.headers);
        let Some(operation) = asked.action.operation() else {
            let refusal = Refusal::method(&asked.method, modern);
            let refusal = if asked.id.is_some() {
                refusal
            } else {
                Refusal {
                    status: StatusCode::BAD_REQUEST,
                    ..refusal
                }
            };
            return self
                .log(&asked.method, Some(&asked.action), Err(refusal), None)
                .await;
        };
        let caller = self.caller();
        let decision = decide(&self.active.bundle, caller, operation, now());
        let rule = decision
            .rule
            .map(|rule| (rule.policy.as_str(), rule.name.as_str()));
        if decision.effect == Effect::Deny {
            let refusal = match operation {
                Operation::Tool(name) => Refusal::unknown(decision.reason, "tool", name, modern),
                Operation::Prompt(name) => {
                    Refusal::unknown(decision.reason, "prompt", name, modern)
                }
                Operation::Resource(uri) => {
                    Refusal::unknown(decision.reason, "resource", uri, modern)
                }
                Operation::Open => {
                    Refusal::unauthorized(decision.reason, &self.active.bundle.audience)
                }
            };
            return self
                .log(&asked.method, Some(&asked.action), Err(refusal), rule)
                .await;
        }
        if let Err(error) = self.shared.upstream.check(&self.request(asked)) {
            return self
                .log(&asked.method, Some(&asked.action), Err(error.into()), None)
                .await;
        }
        let charged = match operation {
            Operation::Tool(tool) => {
                let tool = self.counted_as(tool);
                self.shared.counters.charge(&decision.limits, caller, tool)
            }
            _ => Ok(()),
        };
        let (verdict, rule) = match charged {
            Ok(()) => (Ok(decision.reason), rule),
            Err((limit, early)) => (
                Err(Refusal::too_early(&limit.name, early.retry_after)),
                Some((limit.policy.as_str(), limit.name.as_str())),
            ),
        };
        self.log(&asked.method, Some(&asked.action), verdict, rule)
            .await
    }

    fn request(&self, asked: &Asked) -> Forward {
        let caller = self.caller();
        Forward {
            method: self.parts.method.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
            rpc_method: asked.rpc_method.clone(),
            id: asked.id.as_ref().map(|id| id.get().to_owned()),
            is_list: asked.action == Action::List,
            principal: (caller.issuer.clone(), caller.user.clone()),
        }
    }

    /// Sends what was decided on, and makes the answer fit the caller.
    async fn forward(&self, asked: &Asked) -> Result<Response<Body>, Refusal> {
        let request = self.request(asked);
        let answer = self
            .shared
            .upstream
            .forward(request)
            .await
            .inspect_err(|error| {
                // Debug: what a server says must not make lines of its own in the log.
                tracing::warn!(method = asked.method, ?error, "no answer of the server");
            })?;
        self.fit(asked, answer).await
    }

    async fn fit(&self, asked: &Asked, answer: Response<Body>) -> Result<Response<Body>, Refusal> {
        let content_type = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .map(|value| value.as_bytes().to_vec())
            .unwrap_or_default();
        let (mut head, inner) = answer.into_parts();
        if request::is_type(&content_type, "text/event-stream") {
            // Every event: a server may send a list as the answer to a call.
            let inner = Body::new(FilteredEvents::new(inner, self.visible()));
            head.headers.remove(header::CONTENT_LENGTH);
            let guarded = Guarded::new(
                inner,
                self.changes.clone(),
                self.still_allowed(&asked.action),
                self.ends(),
            );
            return Ok(Response::from_parts(head, Body::new(guarded)));
        }
        let is_json = request::is_type(&content_type, "application/json");
        let is_empty = http_body::Body::is_end_stream(&inner);
        if asked.id.is_some() && head.status.is_success() && !is_json && !is_empty {
            let content_type = String::from_utf8_lossy(&content_type).into_owned();
            return Err(UpstreamError::Invalid(format!(
                "its type is {content_type:?}; expected application/json or text/event-stream"
            ))
            .into());
        }
        match asked.action {
            Action::List if is_json && head.status.is_success() => {
                self.fit_list(Response::from_parts(head, inner)).await
            }
            _ => Ok(Response::from_parts(head, inner)),
        }
    }

    async fn fit_list(&self, answer: Response<Body>) -> Result<Response<Body>, Refusal> {
        let invalid = |error: String| Refusal::from(UpstreamError::Invalid(error));
        let (mut head, inner) = answer.into_parts();
        let whole = Limited::new(inner, MAX_LIST)
            .collect()
            .await
            .map_err(|error| invalid(error.to_string()))?
            .to_bytes();
        let visible = self.visible();
        let filtered = filter::message(&whole, &*visible).map_err(invalid)?;
        head.headers.remove(header::CONTENT_LENGTH);
        Ok(Response::from_parts(
            head,
            body::full(filtered.map_or(whole, Bytes::from)),
        ))
    }

    /// The name under which a call is counted: names that the server does not
    /// have share one count, so that a caller cannot fill the table with them.
    fn counted_as<'t>(&self, tool: &'t str) -> &'t str {
        let seen = self.shared.seen.borrow();
        let is_known = seen.tools.iter().flatten().any(|known| known.name == tool);
        if is_known { tool } else { "" }
    }

    fn caller(&self) -> &Caller {
        static NOBODY: Caller = Caller {
            issuer: None,
            user: None,
            agent: None,
            groups: Vec::new(),
            service_account: None,
            expires_at: None,
        };
        self.caller.as_deref().unwrap_or(&NOBODY)
    }

    /// Whether the caller sees an item, by the configuration of that moment.
    fn visible(&self) -> body::Visible {
        let (shared, caller) = (Arc::clone(&self.shared), self.caller().clone());
        Box::new(move |operation| {
            shared
                .config
                .active()
                .is_some_and(|active| policy::visible(&active.bundle, &caller, operation, now()))
        })
    }

    /// Whether an open stream may go on. Where issuers or keys have changed, the
    /// caller has to prove itself again.
    fn still_allowed(&self, action: &Action) -> body::StillAllowed {
        let (shared, caller, action) = (
            Arc::clone(&self.shared),
            self.caller().clone(),
            action.clone(),
        );
        let authenticator = Arc::clone(&self.active.authenticator);
        Box::new(move || {
            shared
                .config
                .active()
                .zip(action.operation())
                .is_some_and(|(active, operation)| {
                    Arc::ptr_eq(&active.authenticator, &authenticator)
                        && decide(&active.bundle, &caller, operation, now()).is_allowed()
                })
        })
    }

    /// When an open stream has to end: with its token, and the stream of what
    /// the server says by itself also when this replica drains.
    fn ends(&self) -> body::Ends {
        let mut phase = self.shared.phase.clone();
        let is_idle = self.parts.method == Method::GET;
        let left = self
            .caller()
            .expires_at
            .map(|expires| Duration::from_secs(expires.saturating_sub(now())));
        Box::pin(async move {
            let expired = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            let drained = async {
                if !is_idle
                    || phase
                        .wait_for(|phase| *phase == Phase::Draining)
                        .await
                        .is_err()
                {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! { () = expired => false, () = drained => true }
        })
    }

    async fn refuse(
        &self,
        refusal: Refusal,
        method: &str,
        id: Option<&RawValue>,
    ) -> Response<Body> {
        let refusal = self.log(method, None, Err(refusal), None).await;
        refusal.map_or_else(
            |refusal| refusal.into_response(id),
            |()| Response::new(body::empty()),
        )
    }

    /// Writes the audit record; what cannot be logged does not happen.
    async fn log(
        &self,
        method: &str,
        action: Option<&Action>,
        verdict: Result<Reason, Refusal>,
        rule: Option<(&str, &str)>,
    ) -> Result<(), Refusal> {
        let (reason, allowed) = verdict
            .as_ref()
            .map_or_else(|refusal| (refusal.reason, false), |reason| (*reason, true));
        let mut record = Record::new(
            &self.active.server,
            method,
            self.caller.as_deref(),
            reason,
            allowed,
        );
        match action {
            Some(Action::Tool(name)) => record.tool = Some(name),
            Some(Action::Prompt(name)) => record.prompt = Some(name),
            Some(Action::Resource(uri)) => record.resource = Some(uri),
            _ => {}
        }
        (record.policy, record.rule) = rule.unzip();
        if reason == Reason::Malformed {
            record.detail = verdict
                .as_ref()
                .err()
                .map(|refusal| refusal.message.as_str().into());
        }
        self.shared.metrics.decided(method, reason, allowed);
        if !self.shared.audit.log(&record).await {
            return Err(Refusal::new(
                Reason::Overloaded,
                StatusCode::SERVICE_UNAVAILABLE,
                "the audit log cannot be written",
            ));
        }
        verdict.map(|_| ())
    }
}
