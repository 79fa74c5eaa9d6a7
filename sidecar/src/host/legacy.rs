//! Sessions of clients up to revision 2025-11-25: handshake, streams that can be
//! resumed, requests of the server, cancellation by notification only.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header::HeaderName};
use serde_json::{json, value::RawValue};
use tokio::{sync::mpsc, task::AbortHandle};

use super::{
    ALONE, Host, Listening, Pooled, SILENCE, Sharing, accepted, events, json,
    stream::{Log, parse_id},
    takes_streams,
};
use crate::{
    body::Body,
    bridge::{self, Client},
    envelope::{Kind, Message, same_id},
    era::{Era, Revision},
    identity::Assertion,
    link::{Call, Event, Info, Link, OnDrop, Ongoing, Said, Wire},
    upstream::{Forward, UpstreamError},
    wire,
};

/// Header with the id after which a stream is to go on.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Streams of calls that are kept to be resumed.
const MAX_STREAMS: usize = 256;
/// How long the stream of a call that was answered can be resumed.
const RESUMABLE: Duration = Duration::from_secs(60);
/// Time for a caller to read on before a stream of many messages is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Resources that one session may be subscribed to.
const MAX_SUBSCRIPTIONS: usize = 1024;

/// A session.
pub struct LegacySession {
    link: Link,
    /// Set where other sessions use the conversation too.
    shared: Option<Pooled>,
    revision: Revision,
    /// What the server says by itself: stream 0.
    general: Arc<Log>,
    calls: Mutex<Calls>,
    client: Mutex<Client>,
    subscriptions: Arc<Mutex<BTreeSet<String>>>,
    /// Reads the notifications of a modern server.
    listener: Mutex<Option<AbortHandle>>,
    _listening: Option<Listening>,
}

struct Calls {
    next: u64,
    streams: BTreeMap<u64, Kept>,
    /// By the id of a request in flight: takes the params of its cancellation.
    cancels: HashMap<String, mpsc::Sender<String>>,
    open: bool,
    last_used: Instant,
}

struct Kept {
    log: Arc<Log>,
    finished: Option<Instant>,
}

/// Opens a session: the answer to `initialize`, and the session where it is a
/// result.
///
/// # Errors
/// See [`UpstreamError`].
pub async fn open(
    host: &Host,
    forward: &Forward<'_>,
    message: &Message<'_>,
) -> Result<(Response<Body>, Option<Arc<LegacySession>>), UpstreamError> {
    let Kind::Request { params, .. } = &message.kind else {
        return Err(UpstreamError::Refused("initialize is a request".into()));
    };
    let id = message.id.map_or("null", RawValue::get);
    let (general, subscriptions) = (Log::new(0), Arc::new(Mutex::new(BTreeSet::new())));
    let heard: Said = {
        let general = Arc::clone(&general);
        Arc::new(move |message| general.push(message))
    };
    let begun = begin(host, forward, id, *params, heard).await?;
    let (link, shared, answer) = match begun {
        Handshake::Refused(answer) => return Ok((json(StatusCode::OK, answer), None)),
        Handshake::Done {
            link,
            shared,
            answer,
        } => (link, shared, answer),
    };
    let starting = Starting(shared.is_none().then(|| link.wire.clone()));
    let revision = match answer {
        Some(_) => link.info.revision,
        None => negotiated(*params, &link.info),
    };
    let listening = shared
        .as_ref()
        .filter(|_| link.era == Era::Legacy)
        .map(|pooled| {
            let (general, subscriptions) = (Arc::clone(&general), Arc::clone(&subscriptions));
            pooled.hub.listen(Arc::new(move |message| {
                if concerns(&message, &subscriptions) {
                    general.push(message);
                }
            }))
        });
    let answer = answer.unwrap_or_else(|| bridge::initialization(id, &link.info, revision).into());
    let calls = Calls {
        next: 1,
        streams: BTreeMap::new(),
        cancels: HashMap::new(),
        open: true,
        last_used: Instant::now(),
    };
    let client = Client {
        info: wire::member(*params, &["clientInfo"]).map(ToOwned::to_owned),
        log_level: None,
    };
    let session = Arc::new(LegacySession {
        link,
        shared,
        revision,
        general,
        calls: Mutex::new(calls),
        client: Mutex::new(client),
        subscriptions,
        listener: Mutex::default(),
        _listening: listening,
    });
    starting.keep();
    if session.link.era == Era::Modern {
        session.listen(forward.identity.clone());
    }
    host.remember(&forward.principal(), &session);
    Ok((json(StatusCode::OK, answer), Some(session)))
}

/// What became of a handshake.
enum Handshake {
    /// The server's error.
    Refused(Bytes),
    /// A conversation, with the server's own answer where the client's handshake
    /// went to it.
    Done {
        link: Link,
        shared: Option<Pooled>,
        answer: Option<Bytes>,
    },
}

/// Begins the conversation of a session, in an era that the server speaks.
async fn begin(
    host: &Host,
    forward: &Forward<'_>,
    id: &str,
    params: Option<&RawValue>,
    heard: Said,
) -> Result<Handshake, UpstreamError> {
    let eras = host.eras().await?;
    let patience = host.settings().startup_timeout;
    let has_process =
        host.settings().sharing == Sharing::PerSession && host.connector().is_process();
    if !has_process {
        let era = if eras.legacy {
            Era::Legacy
        } else {
            Era::Modern
        };
        let pooled = host.pooled(era, &forward.principal()).await?;
        let link = pooled.link.clone();
        return Ok(Handshake::Done {
            link,
            shared: Some(pooled),
            answer: None,
        });
    }
    let wire = host.open_session(&forward.principal(), heard).await?;
    let starting = Starting(Some(wire.clone()));
    if !eras.legacy {
        let link = Link::modern(wire, patience).await?;
        starting.keep();
        return Ok(Handshake::Done {
            link,
            shared: None,
            answer: None,
        });
    }
    let call = Call {
        id,
        method: "initialize",
        params: params.map(RawValue::get),
        on_drop: OnDrop::Cancel,
        streams: false,
        identity: forward.identity.as_ref(),
    };
    let answer = async { wire.call(call).await?.answer().await };
    let answer = tokio::time::timeout(patience, answer).await;
    let answer = answer.map_err(|_| UpstreamError::TimedOut(patience.as_secs()))??;
    let Ok(Kind::Response {
        result: Some(result),
        ..
    }) = Message::parse(&answer).map(|message| message.kind)
    else {
        return Ok(Handshake::Refused(answer)); // An error is no session.
    };
    let info = Arc::new(Info::of(result, Era::Legacy)?);
    starting.keep();
    let link = Link {
        wire,
        era: Era::Legacy,
        info,
    };
    Ok(Handshake::Done {
        link,
        shared: None,
        answer: Some(answer),
    })
}

/// A conversation that ends unless it becomes a session: its caller may leave
/// during the handshake.
struct Starting(Option<Wire>);

impl Starting {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(wire) = &self.0 {
            wire.close();
        }
    }
}

/// The revision that the sidecar answers in the server's place: what the client
/// asks for, where it is known and no newer than the server's.
fn negotiated(params: Option<&RawValue>, info: &Info) -> Revision {
    let newest = info.revision.min(Revision::NEWEST_LEGACY);
    let asked = wire::member(params, &["protocolVersion"])
        .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
        .and_then(|text| Revision::parse(&text));
    asked.filter(|asked| *asked <= newest).unwrap_or(newest)
}

/// Whether a session hears a notification of a conversation that it shares.
fn concerns(message: &[u8], subscriptions: &Mutex<BTreeSet<String>>) -> bool {
    let Ok(Message {
        kind: Kind::Notification { method, params },
        ..
    }) = Message::parse(message)
    else {
        return false;
    };
    if method != "notifications/resources/updated" {
        return true;
    }
    let uri = wire::member(params, &["uri"])
        .and_then(|uri| serde_json::from_str::<String>(uri.get()).ok());
    let subscriptions = subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
    uri.is_some_and(|uri| subscriptions.contains(&uri))
}

impl LegacySession {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision that was agreed on.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether it holds a process of its own.
    pub fn has_process(&self) -> bool {
        self.shared.is_none() && matches!(self.link.wire, Wire::Process(_))
    }

    /// Whether it can be used.
    pub fn is_open(&self) -> bool {
        self.calls().open && self.link.wire.is_open()
    }

    /// How long nothing happened; zero while a call or a stream is open.
    pub fn idle(&self, now: Instant) -> Duration {
        let calls = self.calls();
        match calls.cancels.is_empty() && !self.general.is_read() {
            true => now.saturating_duration_since(calls.last_used),
            false => Duration::ZERO,
        }
    }

    /// Ends the session, and its process.
    pub fn close(&self) {
        {
            let mut calls = self.calls();
            calls.open = false;
            calls.streams.clear();
        }
        self.general.finish();
        let listener = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        listener.inspect(AbortHandle::abort);
        if self.shared.is_none() {
            self.link.wire.close();
        }
    }

    /// Forgets streams that nobody resumes any more.
    pub fn forget_finished(&self) {
        let now = Instant::now();
        self.calls().streams.retain(|_, kept| {
            kept.finished
                .is_none_or(|finished| now.saturating_duration_since(finished) < RESUMABLE)
        });
    }

    /// Answers a POST.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn post(
        self: &Arc<Self>,
        forward: &Forward<'_>,
    ) -> Result<Response<Body>, UpstreamError> {
        self.calls().last_used = Instant::now();
        let is_request = |message: &&&Message<'_>| matches!(message.kind, Kind::Request { .. });
        let asked = forward.messages.iter().filter(is_request).count();
        for message in forward
            .messages
            .iter()
            .filter(|message| !is_request(message))
        {
            self.notify(message).await?;
        }
        if asked == 0 {
            return Ok(accepted());
        }
        let (streams, identity) = (takes_streams(&forward.headers), forward.identity.as_ref());
        let (number, log) = self.new_stream()?;
        let left = Arc::new(AtomicUsize::new(asked));
        let failed = Arc::new(OnceLock::new());
        for message in forward.messages.iter().filter(is_request) {
            let id = message.id.map_or("null", RawValue::get).to_owned();
            let finish = Finish {
                session: Arc::clone(self),
                log: Arc::clone(&log),
                number,
                left: Arc::clone(&left),
                id,
                failed: Arc::clone(&failed),
            };
            match self.request(message, streams, identity).await {
                Ok(Begun::Answered(answer)) => finish.answer(answer.into()),
                Ok(Begun::Ongoing(ongoing, method)) => {
                    let cancels = self.cancellable(&finish.id)?;
                    tokio::spawn(finish.run(ongoing, method, cancels, streams));
                }
                Err(error) if asked == 1 => {
                    self.calls().streams.remove(&number);
                    return Err(error);
                }
                Err(error) => finish.answer(error.message(&finish.id).into()),
            }
        }
        let patience = if streams { ALONE } else { SILENCE };
        if let Some(answers) = log.only(asked, patience).await {
            self.calls().streams.remove(&number);
            if let Some(error) = failed.get().filter(|_| !forward.is_batch) {
                return Err(UpstreamError::clone(error)); // With a status of its own.
            }
            let body = match forward.is_batch {
                true => [&b"["[..], &answers.join(&b","[..]), b"]"].concat(),
                false => answers.concat(),
            };
            return Ok(json(StatusCode::OK, body));
        }
        if !streams {
            return Err(UpstreamError::TimedOut(SILENCE.as_secs()));
        }
        Ok(events(log.read(0, self.is_primed())))
    }

    /// Streams begin with an empty event (revision 2025-11-25).
    fn is_primed(&self) -> bool {
        self.revision >= Revision::V2025_11_25
    }

    /// The stream of what the server says by itself, or one that broke.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn get(&self, headers: &HeaderMap) -> Result<Response<Body>, UpstreamError> {
        self.calls().last_used = Instant::now();
        if !takes_streams(headers) {
            return Err(UpstreamError::Refused(
                "Accept must name text/event-stream".into(),
            ));
        }
        let Some(last) = headers.get(LAST_EVENT_ID) else {
            if self.general.is_read() {
                return Err(UpstreamError::Conflict(
                    "this session has an open stream already".into(),
                ));
            }
            return Ok(events(self.general.read_on(self.is_primed())));
        };
        let unknown =
            || UpstreamError::Refused("Last-Event-ID names no event of this session".into());
        let (number, after) = last.to_str().ok().and_then(parse_id).ok_or_else(unknown)?;
        let log = match number {
            0 => Arc::clone(&self.general),
            number => {
                let calls = self.calls();
                Arc::clone(&calls.streams.get(&number).ok_or_else(unknown)?.log)
            }
        };
        Ok(events(log.read(after, false)))
    }

    fn new_stream(&self) -> Result<(u64, Arc<Log>), UpstreamError> {
        let mut calls = self.calls();
        if calls.streams.len() >= MAX_STREAMS {
            let done = calls
                .streams
                .iter()
                .find(|(_, kept)| kept.finished.is_some());
            let Some(done) = done.map(|(number, _)| *number) else {
                return Err(UpstreamError::Overloaded(format!(
                    "{MAX_STREAMS} calls are in flight in this session"
                )));
            };
            calls.streams.remove(&done);
        }
        let number = calls.next;
        calls.next += 1;
        let log = Log::new(number);
        calls.streams.insert(
            number,
            Kept {
                log: Arc::clone(&log),
                finished: None,
            },
        );
        Ok((number, log))
    }

    fn cancellable(&self, id: &str) -> Result<mpsc::Receiver<String>, UpstreamError> {
        let (sender, cancels) = mpsc::channel(1);
        let mut calls = self.calls();
        match calls.cancels.entry(same_id(id).into_owned()) {
            Entry::Occupied(_) => Err(UpstreamError::Refused(
                "the id is in use by a request in flight".into(),
            )),
            Entry::Vacant(free) => {
                free.insert(sender);
                Ok(cancels)
            }
        }
    }

    /// Notifications, and answers to requests of the server.
    async fn notify(&self, message: &Message<'_>) -> Result<(), UpstreamError> {
        match &message.kind {
            Kind::Notification { method, params } => match method.as_ref() {
                "notifications/cancelled" => {
                    let id = wire::member(*params, &["requestId"]).map(RawValue::get);
                    let cancel = id.and_then(|id| self.calls().cancels.get(&*same_id(id)).cloned());
                    if let (Some(cancel), Some(params)) = (cancel, params) {
                        let _ = cancel.try_send(params.get().to_owned()); // Once is enough.
                    }
                    Ok(())
                }
                // The handshake with the server was the sidecar's own.
                _ if self.link.era == Era::Modern || self.shared.is_some() => Ok(()),
                _ => self.link.wire.send(message.text).await,
            },
            _ => self.link.wire.send(message.text).await,
        }
    }

    async fn request(
        &self,
        message: &Message<'_>,
        streams: bool,
        identity: Option<&Assertion>,
    ) -> Result<Begun, UpstreamError> {
        let Kind::Request { method, params } = &message.kind else {
            return Err(UpstreamError::Refused("no request".into()));
        };
        let id = message.id.map_or("null", RawValue::get);
        if self.calls().cancels.contains_key(&*same_id(id)) {
            return Err(UpstreamError::Refused(
                "the id is in use by a request in flight".into(),
            ));
        }
        let uri = || {
            let uri = wire::member(*params, &["uri"])
                .and_then(|uri| serde_json::from_str::<String>(uri.get()).ok());
            uri.ok_or_else(|| UpstreamError::Refused("params.uri is required".into()))
        };
        let mut is_answered = false;
        match (method.as_ref(), self.link.era) {
            ("initialize", _) => {
                return Err(UpstreamError::Refused("the session is open already".into()));
            }
            ("ping", Era::Modern) => is_answered = true,
            ("logging/setLevel", Era::Modern) => {
                let level = wire::member(*params, &["level"]).map(ToOwned::to_owned);
                self.client
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .log_level = level;
                is_answered = true;
            }
            ("resources/subscribe" | "resources/unsubscribe", era) => {
                let is_subscribed = method == "resources/subscribe";
                let is_changed = self.subscribed(uri()?, is_subscribed)?;
                match era {
                    Era::Modern => {
                        if is_changed {
                            self.listen(identity.cloned());
                        }
                        is_answered = true;
                    }
                    Era::Legacy => is_answered = self.shared.is_some() && !is_changed,
                }
            }
            _ => {}
        }
        if is_answered {
            return Ok(Begun::Answered(wire::result(id, "{}")));
        }
        let params = match self.link.era {
            Era::Legacy => params.map(|params| params.get().to_owned()),
            Era::Modern => {
                let client = self
                    .client
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                Some(
                    bridge::params_for_modern(method, *params, &client)
                        .map_err(UpstreamError::Unsupported)?,
                )
            }
        };
        let call = Call {
            id,
            method,
            params: params.as_deref(),
            on_drop: OnDrop::Abandon,
            streams,
            identity,
        };
        Ok(Begun::Ongoing(
            self.link.wire.call(call).await?,
            method.to_string(),
        ))
    }

    /// Notes a subscription. True: the server has to be told.
    fn subscribed(&self, uri: String, on: bool) -> Result<bool, UpstreamError> {
        let mut subscriptions = self
            .subscriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if on && subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Err(UpstreamError::Overloaded(format!(
                "{MAX_SUBSCRIPTIONS} subscriptions in one session"
            )));
        }
        let is_changed = match on {
            true => subscriptions.insert(uri.clone()),
            false => subscriptions.remove(&uri),
        };
        Ok(match &self.shared {
            Some(_) if !is_changed => false,
            Some(pooled) if on => pooled.hub.subscribe(&uri),
            Some(pooled) => pooled.hub.unsubscribe(&uri),
            None => is_changed,
        })
    }

    /// Listens to a modern server in the name of this session, anew after each
    /// change of its subscriptions.
    fn listen(&self, identity: Option<Assertion>) {
        let uris: Vec<String> = {
            let subscriptions = self
                .subscriptions
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            subscriptions.iter().cloned().collect()
        };
        let wanted = json!({"notifications": {
            "toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true,
            "resourceSubscriptions": uris,
        }});
        let params = wire::edit(
            &wanted.to_string(),
            &["_meta"],
            Some(&crate::link::own_meta()),
        );
        let (wire, general) = (self.link.wire.clone(), Arc::clone(&self.general));
        let task = tokio::spawn(async move {
            let Ok(params) = params else { return };
            let call = Call {
                id: "0",
                method: "subscriptions/listen",
                params: Some(&params),
                on_drop: OnDrop::Cancel,
                streams: true,
                identity: identity.as_ref(),
            };
            let Ok(mut ongoing) = wire.call(call).await else {
                return;
            };
            while let Event::Message(message) = ongoing.next().await {
                if let Some(message) = bridge::notification_for_legacy(&message) {
                    general.push(message.into());
                }
            }
        });
        let old = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(task.abort_handle());
        old.inspect(AbortHandle::abort);
    }
}

impl Drop for LegacySession {
    fn drop(&mut self) {
        self.close();
        if let Some(pooled) = &self.shared {
            let subscriptions = self
                .subscriptions
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for uri in subscriptions.iter() {
                pooled.hub.unsubscribe(uri);
            }
        }
    }
}

/// What became of a request.
enum Begun {
    /// The sidecar answers it.
    Answered(String),
    /// The server was asked. With the method.
    Ongoing(Ongoing, String),
}

/// Brings the answer to one request into the stream of its POST.
struct Finish {
    session: Arc<LegacySession>,
    log: Arc<Log>,
    number: u64,
    left: Arc<AtomicUsize>,
    id: String,
    /// Why there is no answer of the server.
    failed: Arc<OnceLock<UpstreamError>>,
}

impl Finish {
    fn answer(&self, answer: Bytes) {
        self.log.push(answer);
    }

    async fn run(
        self,
        mut ongoing: Ongoing,
        method: String,
        mut cancels: mpsc::Receiver<String>,
        streams: bool,
    ) {
        let era = self.session.link.era;
        loop {
            let event = tokio::select! {
                event = tokio::time::timeout(SILENCE, ongoing.next()) => event,
                Some(params) = cancels.recv() => {
                    ongoing.cancel(&params);
                    continue;
                }
            };
            let answer = match event {
                Ok(Event::Message(message)) => {
                    let message = match era {
                        Era::Legacy => Some(message),
                        Era::Modern => bridge::notification_for_legacy(&message).map(Bytes::from),
                    };
                    if let Some(message) = message.filter(|_| streams)
                        && !self.log.push_when_taken(message, PATIENCE).await
                    {
                        return self.answer(
                            UpstreamError::Overloaded("the stream is not read".into())
                                .message(&self.id)
                                .into(),
                        );
                    }
                    continue;
                }
                Ok(Event::Answer(answer)) => answer.and_then(|answer| match era {
                    Era::Legacy => Ok(answer),
                    Era::Modern => bridge::answer_for_legacy(&method, &answer)
                        .map(Bytes::from)
                        .map_err(UpstreamError::Invalid),
                }),
                Err(_) => Err(UpstreamError::TimedOut(SILENCE.as_secs())),
            };
            let answer = answer.unwrap_or_else(|error| {
                let message = error.message(&self.id);
                let _ = self.failed.set(error); // The first tells enough.
                message.into()
            });
            self.log.push_when_taken(answer, PATIENCE).await;
            return;
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let is_last = self.left.fetch_sub(1, Ordering::AcqRel) == 1;
        let mut calls = self.session.calls();
        calls.cancels.remove(&*same_id(&self.id));
        calls.last_used = Instant::now();
        if is_last {
            if let Some(kept) = calls.streams.get_mut(&self.number) {
                kept.finished = Some(Instant::now());
            }
            drop(calls);
            self.log.finish();
        }
    }
}
