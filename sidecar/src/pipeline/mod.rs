//! What happens to a request, top to bottom: [`admit`] looks at path, names,
//! method, token, body, revision and session, [`decide`] at what the policy and
//! the limits say, and logs it, [`forward`] sends it to the server, [`answer`]
//! makes what comes back fit the caller.

mod admit;
mod answer;
mod decide;
mod forward;

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request::Parts};
use hyper::body::Incoming;
use policy::{Caller, Reason};
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::{
    Shared,
    body::Body,
    config::Active,
    envelope::{Kind, Message, Messages},
    era::{self, Era},
    front,
    guard::{self, Guard},
    identity::foreign,
    method::{self, Action},
    refusal::Refusal,
    request,
    sessions::Session,
};

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
        front::discard(&parts.headers, incoming).await;
        let message = "no configuration has been read yet: everything is denied";
        return Refusal::new(Reason::NoBundle, StatusCode::SERVICE_UNAVAILABLE, message)
            .into_response(None);
    };
    if let Some(resource) = &active.resource
        && resource.is_metadata(parts.uri.path())
    {
        front::discard(&parts.headers, incoming).await;
        return match request::check_host(&parts, &active) {
            Ok(()) => resource.metadata(&parts.method),
            Err(refusal) => refusal.into_response(None),
        };
    }
    if parts.uri.path() != active.path {
        front::discard(&parts.headers, incoming).await;
        return Refusal::new(
            Reason::Malformed,
            StatusCode::NOT_FOUND,
            format!(
                "the MCP endpoint is {} (Streamable HTTP; the HTTP+SSE transport of revision 2024-11-05 is not offered)",
                active.path
            ),
        )
        .into_response(None);
    }
    let era = era::hint(&parts.headers);
    let mut exchange = Exchange {
        shared: Arc::clone(shared),
        active,
        changes,
        parts,
        caller: None,
        body: Bytes::new(),
        era,
    };
    let admitted = match exchange.admit().await {
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
    if let Some(peer) = exchange.elsewhere().await {
        // Its session's replica decides, and logs it.
        let relayed = shared
            .peers
            .forward(&peer, &exchange.parts, exchange.body)
            .await;
        return relayed.unwrap_or_else(|refusal| refusal.into_response(None));
    }
    let start = Instant::now();
    let (method, answer) = exchange.answer().await;
    shared.metrics.took(method, start.elapsed());
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
    body: Bytes,
    /// By the headers, until the body is read.
    era: Era,
}

/// A message and what it asks for.
struct Element<'a> {
    message: &'a Message<'a>,
    /// MCP method, or `response`.
    method: Cow<'a, str>,
    action: Action,
}

impl<'a> Element<'a> {
    fn of(message: &'a Message<'a>, era: Era) -> Result<Self, Refusal> {
        let (method, action) = match &message.kind {
            Kind::Request { method, .. } => (
                method.clone(),
                Action::of_request(era, method, message).map_err(Refusal::malformed)?,
            ),
            Kind::Notification { method, .. } => {
                (method.clone(), Action::of_notification(era, method))
            }
            Kind::Response { .. } => ("response".into(), Action::Open),
        };
        Ok(Self {
            message,
            method,
            action,
        })
    }

    /// Of a request.
    fn id(&self) -> Option<&'a RawValue> {
        match self.message.kind {
            Kind::Request { .. } => self.message.id,
            _ => None,
        }
    }

    fn params(&self) -> Option<&'a RawValue> {
        match &self.message.kind {
            Kind::Request { params, .. } | Kind::Notification { params, .. } => *params,
            Kind::Response { .. } => None,
        }
    }
}

impl Exchange {
    /// The answer, and the method as a metric's label.
    async fn answer(&mut self) -> (&'static str, Response<Body>) {
        if self.parts.method != Method::POST {
            let method = method::label(self.parts.method.as_str());
            let answer = self.stream(method).await;
            let answer = answer.unwrap_or_else(|refusal| refusal.into_response(None));
            return (method, answer);
        }
        match self.brought_back().await {
            Ok(None) => {}
            Ok(Some(relayed)) => return (method::label("response"), relayed),
            Err((id, refusal)) => return self.malformed(refusal, id.as_deref()).await,
        }
        // Once more where the caller says what only we say, and without it.
        loop {
            let body = self.body.clone();
            let read = Messages::parse(&body).and_then(|messages| {
                let without = foreign::removed(&messages)?;
                Ok((messages, without))
            });
            match read {
                Ok((_, Some(without))) => self.body = without,
                Ok((messages, None)) => return self.posted(&messages).await,
                Err(fault) => return self.malformed(Refusal::malformed(fault), None).await,
            }
        }
    }

    /// The answer to what was posted.
    async fn posted(&mut self, messages: &Messages<'_>) -> (&'static str, Response<Body>) {
        let only = messages.list.first().filter(|_| !messages.is_batch);
        let id = only.and_then(|message| match message.kind {
            Kind::Request { .. } => message.id,
            _ => None,
        });
        match self.read(messages) {
            Ok((elements, session)) => self.post(messages, &elements, session).await,
            Err(refusal) => self.malformed(refusal, id).await,
        }
    }

    async fn malformed(
        &self,
        refusal: Refusal,
        id: Option<&RawValue>,
    ) -> (&'static str, Response<Body>) {
        let method = method::label(self.parts.method.as_str());
        (method, self.refuse(refusal, method, id).await)
    }

    async fn post(
        &self,
        messages: &Messages<'_>,
        elements: &[Element<'_>],
        session: Option<Arc<Session>>,
    ) -> (&'static str, Response<Body>) {
        let (mut kept, mut refused) = (Vec::with_capacity(elements.len()), Vec::new());
        for (index, element) in elements.iter().enumerate() {
            if index > 0 && !guard::is_on(Guard::Batch) {
                kept.push(element);
                continue;
            }
            match self.decide(element, session.as_deref()).await {
                Ok(()) => kept.push(element),
                Err(refusal) => refused.push((element.id(), refusal)),
            }
        }
        let method = match elements {
            [element] => method::label(&element.method),
            _ => method::label("batch"),
        };
        if !messages.is_batch
            && let Some((id, refusal)) = refused.pop()
        {
            return (method, refusal.into_response(id));
        }
        let errors: Vec<String> = refused
            .iter()
            .filter_map(|(id, refusal)| id.map(|id| refusal.message(Some(id))))
            .collect();
        let id = elements
            .first()
            .and_then(Element::id)
            .filter(|_| !messages.is_batch);
        let answer = match kept.is_empty() {
            true => Ok(crate::host::accepted()),
            false => {
                self.send(messages.is_batch, elements.len(), &kept, session)
                    .await
            }
        };
        let answer = match answer {
            Ok(answer) if errors.is_empty() => Ok(answer),
            Ok(answer) => answer::with_errors(answer, errors).await,
            Err(refusal) => Err(refusal),
        };
        (
            method,
            answer.unwrap_or_else(|refusal| refusal.into_response(id)),
        )
    }

    fn caller(&self) -> &Caller {
        static NOBODY: Caller = Caller {
            issuer: None,
            user: None,
            agent: None,
            groups: Vec::new(),
            scopes: Vec::new(),
            service_account: None,
            pod: None,
            expires_at: None,
        };
        self.caller.as_deref().unwrap_or(&NOBODY)
    }
}
