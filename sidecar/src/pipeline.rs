//! What happens to a request, top to bottom: path, names, method, token, body,
//! revision, session, decision, limits, audit, forward, answer.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
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
    envelope::{Kind, Message, Messages},
    era::{self, Era, PROTOCOL_VERSION, Revision},
    fit::{Fit, Fitted},
    front::{self, Phase},
    guard::{self, Guard},
    method::{self, Action},
    peer::{Owner, Peer, ViaPeer},
    refusal::Refusal,
    request,
    sessions::{At, SESSION_ID, Session},
    sse,
    upstream::{Forward, Principal, UpstreamError},
    wire,
};

/// Largest answer that has to be read whole, as lists in JSON have, and resources
/// in revision 2026-07-28, which say who may cache them.
const MAX_WHOLE: usize = 16 * 1024 * 1024;

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
        headers: HeaderMap::new(),
        body: Bytes::new(),
        era,
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
            Kind::Request { method, params } => (
                method.clone(),
                Action::of_request(era, method, *params).map_err(Refusal::malformed)?,
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
    /// Names, method, token, headers: all that has to hold before the body is read.
    fn admit(&mut self) -> Result<(), Refusal> {
        request::check_names(&self.parts, &self.active)?;
        let allowed = match self.era {
            Era::Legacy => &[Method::GET, Method::POST, Method::DELETE][..],
            Era::Modern => &[Method::POST],
        };
        if !allowed.contains(&self.parts.method) {
            let (message, header) = match self.era {
                Era::Legacy => ("use POST, GET or DELETE", request::ALLOW),
                Era::Modern => ("this revision has only POST", request::ALLOW_POST),
            };
            let refusal = Refusal::new(
                Reason::MethodNotAllowed,
                StatusCode::METHOD_NOT_ALLOWED,
                message,
            );
            return Err(Refusal {
                header: Some(header),
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

    /// The replica that holds the session, where it is not this one.
    async fn elsewhere(&self) -> Option<Peer> {
        let id = self
            .headers
            .get(SESSION_ID)
            .filter(|_| self.era == Era::Legacy)?;
        if self.parts.extensions.get::<ViaPeer>().is_some() {
            return None; // Never forwarded twice.
        }
        match self.shared.peers.owner(id.to_str().ok()?).await {
            Owner::Peer(peer) => Some(peer),
            Owner::Here | Owner::Unknown => None,
        }
    }

    async fn answer(&mut self) -> (String, Response<Body>) {
        if self.parts.method != Method::POST {
            let method = self.parts.method.as_str().to_owned();
            let answer = self.stream(&method).await;
            let answer = answer.unwrap_or_else(|refusal| refusal.into_response(None));
            return (method, answer);
        }
        let body = self.body.clone();
        let messages = match Messages::parse(&body) {
            Ok(messages) => messages,
            Err(fault) => return self.malformed(Refusal::malformed(fault), None).await,
        };
        let only = messages.list.first().filter(|_| !messages.is_batch);
        let id = only.and_then(|message| match message.kind {
            Kind::Request { .. } => message.id,
            _ => None,
        });
        match self.read(&messages) {
            Ok((elements, session)) => self.post(&messages, &elements, session).await,
            Err(refusal) => self.malformed(refusal, id).await,
        }
    }

    async fn malformed(&self, refusal: Refusal, id: Option<&RawValue>) -> (String, Response<Body>) {
        let method = self.parts.method.as_str();
        (method.to_owned(), self.refuse(refusal, method, id).await)
    }

    /// Revision, session, and what each message asks for.
    fn read<'a>(
        &mut self,
        messages: &'a Messages<'a>,
    ) -> Result<(Vec<Element<'a>>, Option<Arc<Session>>), Refusal> {
        let (era, revision) = era::of_request(&self.parts.headers, messages)?;
        self.era = era;
        request::keep_to_era(&mut self.headers, era);
        let elements = messages
            .list
            .iter()
            .map(|message| Element::of(message, era));
        let elements = elements.collect::<Result<Vec<_>, _>>()?;
        let session = self.session()?;
        let agreed = session
            .as_ref()
            .and_then(|session| session.revision())
            .or(revision);
        if messages.is_batch {
            if agreed.is_some_and(|revision| revision > Revision::V2025_03_26) {
                return Err(Refusal::malformed(
                    "this revision has no batches: send each message in a request of its own",
                ));
            }
            if elements
                .iter()
                .any(|element| element.method == "initialize")
            {
                return Err(Refusal::malformed("initialize cannot be part of a batch"));
            }
        }
        Ok((elements, session))
    }

    /// The session that the headers name.
    fn session(&self) -> Result<Option<Arc<Session>>, Refusal> {
        let Some(id) = self.headers.get(SESSION_ID) else {
            return Ok(None);
        };
        let found = id
            .to_str()
            .ok()
            .and_then(|id| self.shared.sessions.find(id, &self.principal()));
        found
            .map(Some)
            .ok_or_else(|| UpstreamError::SessionUnknown.into())
    }

    fn principal(&self) -> Principal {
        let caller = self.caller();
        (caller.issuer.clone(), caller.user.clone())
    }

    /// GET and DELETE: streams of what the server says by itself, ends of sessions.
    async fn stream(&mut self, method: &str) -> Result<Response<Body>, Refusal> {
        let read = era::of_headers(&self.parts.headers).and_then(|_| self.session());
        request::keep_to_era(&mut self.headers, Era::Legacy);
        let session = match read {
            Ok(session) => session,
            Err(refusal) => {
                self.log(method, None, Err(refusal.clone()), None).await?;
                return Err(refusal);
            }
        };
        self.log(method, Some(&Action::Open), Ok(Reason::AlwaysAllowed), None)
            .await?;
        let is_old = session.is_none() && !self.parts.headers.contains_key(PROTOCOL_VERSION);
        let forward = self.forward(&[], false, self.body.clone(), session.clone());
        let answer = self.shared.upstream.forward(forward).await;
        let answer = match answer {
            Ok(answer) if is_old && answer.response.status().is_client_error() => {
                Err(old_transport(&self.active.path))
            }
            Err(UpstreamError::Refused(_)) if is_old => Err(old_transport(&self.active.path)),
            Ok(answer) => Ok(answer.response),
            Err(error) => Err(error.into()),
        }?;
        if self.parts.method == Method::DELETE
            && answer.status().is_success()
            && let Some(session) = &session
        {
            self.shared.sessions.remove(&session.id);
        }
        let fit = self.fitted(session, None);
        self.fit(answer, fit, &[Action::Open], None).await
    }

    async fn post(
        &self,
        messages: &Messages<'_>,
        elements: &[Element<'_>],
        session: Option<Arc<Session>>,
    ) -> (String, Response<Body>) {
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
            [element] => element.method.to_string(),
            _ => "batch".to_owned(),
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
            Ok(answer) => with_errors(answer, errors).await,
            Err(refusal) => Err(refusal),
        };
        (
            method,
            answer.unwrap_or_else(|refusal| refusal.into_response(id)),
        )
    }

    /// Decides, charges the limits, and logs it.
    async fn decide(
        &self,
        element: &Element<'_>,
        session: Option<&Session>,
    ) -> Result<(), Refusal> {
        let (verdict, rule) = self.verdict(element, session);
        let rule = rule
            .as_ref()
            .map(|(policy, rule)| (policy.as_str(), rule.as_str()));
        self.log(&element.method, Some(&element.action), verdict, rule)
            .await
    }

    fn verdict(
        &self,
        element: &Element<'_>,
        session: Option<&Session>,
    ) -> (Result<Reason, Refusal>, Option<(String, String)>) {
        if let Kind::Response { .. } = element.message.kind {
            return (self.answers(element, session), None);
        }
        let task_tool = match &element.action {
            Action::Task(task) => match self.shared.strays.tool_of(task, &self.principal()) {
                Some(tool) => Some(tool),
                None => {
                    return (
                        Err(Refusal::unknown(
                            Reason::NoRuleMatched,
                            "task",
                            task,
                            self.era,
                        )),
                        None,
                    );
                }
            },
            _ => None,
        };
        let operations = match &task_tool {
            Some(tool) => Some(vec![Operation::Tool(tool)]),
            None => element.action.operations(),
        };
        let Some(operations) = operations else {
            let refusal = Refusal::method(&element.method, self.era);
            let refusal = match element.id() {
                Some(_) => refusal,
                None => Refusal {
                    status: StatusCode::BAD_REQUEST,
                    ..refusal
                },
            };
            return (Err(refusal), None);
        };
        let (mut allowed, mut limits) = ((Reason::AlwaysAllowed, None), Vec::new());
        for operation in operations {
            let decision = decide(&self.active.bundle, self.caller(), operation, now());
            let rule = decision
                .rule
                .map(|rule| (rule.policy.clone(), rule.name.clone()));
            if decision.effect == Effect::Deny {
                return (Err(self.denial(decision.reason, operation)), rule);
            }
            allowed = (decision.reason, rule);
            limits.extend(decision.limits);
        }
        if let Err(refusal) = self.fits(element, session) {
            return (Err(refusal), None);
        }
        if let Action::Tool(tool) = &element.action {
            let charged =
                self.shared
                    .counters
                    .charge(&limits, self.caller(), self.counted_as(tool));
            if let Err((limit, early)) = charged {
                let refusal = Refusal::too_early(&limit.name, early.retry_after);
                return (
                    Err(refusal),
                    Some((limit.policy.clone(), limit.name.clone())),
                );
            }
        }
        (Ok(allowed.0), allowed.1)
    }

    fn denial(&self, reason: Reason, operation: Operation<'_>) -> Refusal {
        if reason == Reason::UriNotNormal {
            return Refusal::not_normal(self.era);
        }
        let (what, name) = match operation {
            Operation::Tool(name) => ("tool", name),
            Operation::Prompt(name) => ("prompt", name),
            Operation::Resource(uri) | Operation::Template(uri) => ("resource", uri),
            Operation::Open => {
                return Refusal::unauthorized(reason, &self.active.bundle.audience);
            }
        };
        Refusal::unknown(reason, what, name, self.era)
    }

    /// Whether an answer of the caller belongs to a request of the server.
    fn answers(&self, element: &Element<'_>, session: Option<&Session>) -> Result<Reason, Refusal> {
        let id = element.message.id.map_or("null", RawValue::get);
        let was_asked = match session {
            Some(session) => session.asked().take(id),
            None => self.shared.strays.asked(&self.principal()).take(id),
        };
        match was_asked {
            true => Ok(Reason::AlwaysAllowed),
            false => Err(Refusal::malformed(
                "no request of the server with this id waits for an answer here",
            )),
        }
    }

    /// What has to hold of an allowed request beside the policy.
    fn fits(&self, element: &Element<'_>, session: Option<&Session>) -> Result<(), Refusal> {
        if let (Action::Tool(tool), Era::Modern) = (&element.action, self.era)
            && let Some(wanted) = self.shared.upstream.params.of(tool)
        {
            era::check_params(&self.parts.headers, element.params(), &wanted)?;
        }
        if let (Some(session), Some(id)) = (session, element.id())
            && let At::Server(_) = session.at
            && !session.is_fresh(id.get(), element.action == Action::List)
        {
            return Err(Refusal::malformed(
                "the id was used by a list in this session: each request needs a new one",
            ));
        }
        Ok(())
    }

    fn forward<'a>(
        &self,
        messages: &[&'a Message<'a>],
        is_batch: bool,
        body: Bytes,
        session: Option<Arc<Session>>,
    ) -> Forward<'a> {
        Forward {
            method: self.parts.method.clone(),
            headers: self.headers.clone(),
            body,
            messages: messages.to_vec(),
            is_batch,
            era: self.era,
            session,
            principal: self.principal(),
        }
    }

    /// Sends what was decided on, and makes the answer fit the caller.
    async fn send(
        &self,
        is_batch: bool,
        count: usize,
        kept: &[&Element<'_>],
        session: Option<Arc<Session>>,
    ) -> Result<Response<Body>, Refusal> {
        let messages: Vec<_> = kept.iter().map(|element| element.message).collect();
        let body = match kept.len() == count {
            true => self.body.clone(),
            false => {
                let texts: Vec<_> = messages.iter().map(|message| message.text).collect();
                Bytes::from(format!("[{}]", texts.join(",")))
            }
        };
        let forward = self.forward(&messages, is_batch, body, session.clone());
        let is_handshake = forward.handshake().is_some();
        let answer = self
            .shared
            .upstream
            .forward(forward)
            .await
            .inspect_err(|error| {
                // Debug: what a server says must not make lines of its own in the log.
                tracing::warn!(method = %kept[0].method, ?error, "no answer of the server");
            })?;
        let opened = match answer.opened {
            Some(at) => {
                let id = self.shared.peers.new_session_id()?;
                Some(self.shared.sessions.add(id, self.principal(), at))
            }
            None => None,
        };
        let id = opened.as_ref().map(|session| session.id.clone());
        let actions: Vec<_> = kept.iter().map(|element| element.action.clone()).collect();
        let task = kept.iter().find_map(|element| may_be_task(element));
        let is_whole =
            is_batch || is_handshake || task.is_some() || actions.contains(&Action::List);
        let asked = kept.iter().any(|element| element.id().is_some());
        let fit = self.fitted(opened.or(session), task);
        let mut answer = self
            .fit(answer.response, fit, &actions, asked.then_some(is_whole))
            .await?;
        if let Some(id) = id {
            let id = HeaderValue::from_str(&id)
                .map_err(|error| UpstreamError::Invalid(error.to_string()))?;
            answer.headers_mut().insert(SESSION_ID, id);
        }
        Ok(answer)
    }

    fn fitted(&self, session: Option<Arc<Session>>, tool: Option<String>) -> Fit {
        Fit {
            shared: Arc::clone(&self.shared),
            caller: self.caller().clone(),
            principal: self.principal(),
            era: self.era,
            session,
            tool,
        }
    }

    /// Makes an answer fit. `asked`: whether it answers a request, and if so,
    /// whether its JSON has to be read whole.
    async fn fit(
        &self,
        answer: Response<Body>,
        fit: Fit,
        actions: &[Action],
        asked: Option<bool>,
    ) -> Result<Response<Body>, Refusal> {
        let content_type = answer
            .headers()
            .get(header::CONTENT_TYPE)
            .map(|value| value.as_bytes().to_vec())
            .unwrap_or_default();
        let (mut head, inner) = answer.into_parts();
        if request::is_type(&content_type, "text/event-stream") {
            // Every event: a server may send a list as the answer to a call.
            let inner = Body::new(FilteredEvents::new(inner, fit));
            head.headers.remove(header::CONTENT_LENGTH);
            let guarded = Guarded::new(
                inner,
                self.changes.clone(),
                self.still_allowed(actions),
                self.ends(actions),
            );
            return Ok(Response::from_parts(head, Body::new(guarded)));
        }
        let is_json = request::is_type(&content_type, "application/json");
        let is_empty = http_body::Body::is_end_stream(&inner);
        if asked.is_some() && head.status.is_success() && !is_json && !is_empty {
            let content_type = String::from_utf8_lossy(&content_type).into_owned();
            return Err(UpstreamError::Invalid(format!(
                "its type is {content_type:?}; expected application/json or text/event-stream"
            ))
            .into());
        }
        if !(asked == Some(true) && is_json && head.status.is_success()) {
            return Ok(Response::from_parts(head, inner));
        }
        let invalid = |error: String| Refusal::from(UpstreamError::Invalid(error));
        let whole = whole(inner).await?;
        head.headers.remove(header::CONTENT_LENGTH);
        let fitted = match fit.data(&whole).map_err(invalid)? {
            Fitted::Same => whole,
            Fitted::Changed(changed) => changed.into(),
            Fitted::Dropped => return Err(invalid("it answered with a request".into())),
        };
        Ok(Response::from_parts(head, body::full(fitted)))
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

    /// Whether an open stream may go on. Where issuers or keys have changed, the
    /// caller has to prove itself again.
    fn still_allowed(&self, actions: &[Action]) -> body::StillAllowed {
        let (shared, caller, actions) = (
            Arc::clone(&self.shared),
            self.caller().clone(),
            actions.to_vec(),
        );
        let authenticator = Arc::clone(&self.active.authenticator);
        Box::new(move || {
            let may = |active: &Active, action: &Action| {
                let operations = action.operations().unwrap_or_default();
                let may =
                    |operation| decide(&active.bundle, &caller, operation, now()).is_allowed();
                operations.into_iter().all(may)
            };
            shared.config.active().is_some_and(|active| {
                Arc::ptr_eq(&active.authenticator, &authenticator)
                    && actions.iter().all(|action| may(&active, action))
            })
        })
    }

    /// When an open stream has to end: with its token, and the stream of what
    /// the server says by itself also when this replica drains.
    fn ends(&self, actions: &[Action]) -> body::Ends {
        let mut phase = self.shared.phase.clone();
        let listens = actions
            .iter()
            .any(|action| matches!(action, Action::Listen(_)));
        let is_idle = listens || self.parts.method == Method::GET;
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
            Some(Action::Resource(uri) | Action::Template(uri)) => record.resource = Some(uri),
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

/// The answer to a client of the HTTP+SSE transport, which begins with GET.
fn old_transport(path: &str) -> Refusal {
    let message = format!(
        "the HTTP+SSE transport of revision 2024-11-05 is not offered: use Streamable HTTP, which begins with POST initialize to {path}"
    );
    let refusal = Refusal::new(
        Reason::MethodNotAllowed,
        StatusCode::METHOD_NOT_ALLOWED,
        message,
    );
    Refusal {
        header: Some(request::ALLOW),
        ..refusal
    }
}

/// The tool of a call whose answer may be a task: the caller asks for one, or can
/// take one.
fn may_be_task(element: &Element<'_>) -> Option<String> {
    let Action::Tool(tool) = &element.action else {
        return None;
    };
    let is_asked = element
        .params()
        .is_some_and(|params| params.get().contains("task"))
        && (wire::member(element.params(), &["task"]).is_some()
            || wire::member(element.params(), &["_meta", era::META_CAPABILITIES]).is_some_and(
                |capabilities| capabilities.get().contains("io.modelcontextprotocol/tasks"),
            ));
    is_asked.then(|| tool.clone())
}

async fn whole(body: Body) -> Result<Bytes, Refusal> {
    let whole = Limited::new(body, MAX_WHOLE).collect().await;
    let whole = whole.map_err(|error| Refusal::from(UpstreamError::Invalid(error.to_string())))?;
    Ok(whole.to_bytes())
}

/// The answer to a batch, with the errors of its elements that were refused.
async fn with_errors(
    answer: Response<Body>,
    errors: Vec<String>,
) -> Result<Response<Body>, Refusal> {
    let (mut head, inner) = answer.into_parts();
    let content_type = head
        .headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.as_bytes().to_vec());
    if content_type
        .as_deref()
        .is_some_and(|value| request::is_type(value, "text/event-stream"))
    {
        let first = errors.into_iter().map(|error| sse::event(error.as_bytes()));
        let first = futures::stream::iter(first.map(|event| Ok(http_body::Frame::data(event))));
        let rest = http_body_util::BodyStream::new(inner);
        let body = http_body_util::StreamBody::new(futures::StreamExt::chain(first, rest));
        return Ok(Response::from_parts(head, Body::new(body)));
    }
    if !head.status.is_success() {
        return Ok(Response::from_parts(head, inner));
    }
    let whole = whole(inner).await?;
    let text = String::from_utf8_lossy(&whole);
    let text = text.trim();
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text)
        .trim();
    let own = errors.join(",");
    let all = match inner.is_empty() {
        true => format!("[{own}]"),
        false => format!("[{inner},{own}]"),
    };
    head.status = StatusCode::OK;
    head.headers.remove(header::CONTENT_LENGTH);
    let json = HeaderValue::from_static("application/json");
    head.headers.insert(header::CONTENT_TYPE, json);
    Ok(Response::from_parts(head, body::full(all)))
}
