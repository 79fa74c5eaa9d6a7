//! Requests of revision 2026-07-28: each stands alone; a caller that goes away
//! has cancelled.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Response, StatusCode};
use serde_json::{json, value::RawValue};
use tokio::sync::mpsc;

use super::{ALONE, Host, Pooled, SILENCE, events, json, takes_streams};
use crate::{
    body::Body,
    bridge,
    envelope::{Kind, Message},
    era::Era,
    identity::Assertion,
    link::{Call, Event, Link, OnDrop, Ongoing},
    sse,
    upstream::{Forward, UpstreamError},
    wire::{self, SUBSCRIPTION_ID},
};

/// Notifications of a subscription that wait.
const QUEUE: usize = 256;
/// Time for a server to take a subscription.
const SUBSCRIBE: Duration = Duration::from_secs(30);

/// Answers a request.
///
/// # Errors
/// See [`UpstreamError`].
pub async fn post(host: &Host, forward: &Forward<'_>) -> Result<Response<Body>, UpstreamError> {
    let Some(message) = forward.messages.first() else {
        return Ok(super::accepted());
    };
    let Kind::Request { method, params } = &message.kind else {
        // `cancelled` goes with the connection that it speaks of.
        return Ok(super::accepted());
    };
    let id = message.id.map_or("null", RawValue::get);
    let eras = host.eras().await?;
    let era = if eras.modern {
        Era::Modern
    } else {
        Era::Legacy
    };
    let pooled = host.pooled(era, &forward.principal()).await?;
    let streams = takes_streams(&forward.headers);
    match (era, method.as_ref()) {
        (Era::Legacy, "server/discover") => {
            return Ok(json(
                StatusCode::OK,
                bridge::discovery(id, &pooled.link.info),
            ));
        }
        (Era::Legacy, "subscriptions/listen") => {
            return listen(pooled, id, *params, forward.identity.as_ref()).await;
        }
        _ => {}
    }
    let params = match era {
        Era::Modern => params.map(|params| params.get().to_owned()),
        Era::Legacy => {
            Some(bridge::params_for_legacy(method, *params).map_err(UpstreamError::Unsupported)?)
        }
    };
    let call = Call {
        id,
        method,
        params: params.as_deref(),
        on_drop: OnDrop::Cancel,
        streams,
        identity: forward.identity.as_ref(),
    };
    let ongoing = pooled.link.wire.call(call).await?;
    let reply = Reply {
        ongoing,
        method: method.to_string(),
        id: id.to_owned(),
        era,
        done: false,
    };
    reply
        .into_response(streams, method == "subscriptions/listen")
        .await
}

/// The answer to a request that is under way.
struct Reply {
    ongoing: Ongoing,
    method: String,
    id: String,
    era: Era,
    done: bool,
}

impl Reply {
    async fn into_response(
        mut self,
        streams: bool,
        at_once: bool,
    ) -> Result<Response<Body>, UpstreamError> {
        let patience = if streams && !at_once { ALONE } else { SILENCE };
        let first = loop {
            match tokio::time::timeout(patience, self.ongoing.next()).await {
                Ok(Event::Message(_)) if !streams => {}
                Ok(event) => break Some(event),
                Err(_) if streams => break None,
                Err(_) => return Err(UpstreamError::TimedOut(SILENCE.as_secs())),
            }
        };
        match first {
            Some(Event::Answer(answer)) => {
                let answer = self.fit(&answer?)?;
                Ok(json(status(&answer), answer))
            }
            first => {
                let first = match first {
                    Some(Event::Message(message)) => Some(sse::event(&message)),
                    _ => None,
                };
                let rest = futures::stream::unfold(self, |mut reply| async move {
                    let event = reply.next().await?;
                    Some((event, reply))
                });
                Ok(events(futures::stream::iter(first).chain(rest)))
            }
        }
    }

    fn fit(&self, answer: &Bytes) -> Result<Bytes, UpstreamError> {
        match self.era {
            Era::Modern => Ok(answer.clone()),
            Era::Legacy => bridge::answer_for_modern(&self.method, answer)
                .map(Bytes::from)
                .map_err(UpstreamError::Invalid),
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        // A subscription may be silent for as long as it likes.
        let silence = match self.method == "subscriptions/listen" {
            true => Duration::from_secs(365 * 24 * 3600),
            false => SILENCE,
        };
        let event = tokio::time::timeout(silence, self.ongoing.next()).await;
        let answer = match event {
            Ok(Event::Message(message)) => return Some(sse::event(&message)),
            Ok(Event::Answer(answer)) => answer.and_then(|answer| self.fit(&answer)),
            Err(_) => Err(UpstreamError::TimedOut(SILENCE.as_secs())),
        };
        self.done = true;
        let answer = answer.unwrap_or_else(|error| error.message(&self.id).into());
        Some(sse::event(&answer))
    }
}

/// The HTTP status of an answer in JSON (revision 2026-07-28).
fn status(answer: &[u8]) -> StatusCode {
    let code = Message::parse(answer)
        .ok()
        .and_then(|message| match message.kind {
            Kind::Response { error, .. } => {
                wire::member(error, &["code"])?.get().parse::<i64>().ok()
            }
            _ => None,
        });
    match code {
        Some(-32601) => StatusCode::NOT_FOUND,
        Some(-32700 | -32600 | -32602 | -32020 | -32021 | -32022) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

/// A subscription at a legacy server, whose session knows the same notifications.
async fn listen(
    pooled: Pooled,
    id: &str,
    params: Option<&RawValue>,
    identity: Option<&Assertion>,
) -> Result<Response<Body>, UpstreamError> {
    let wanted = |name: &str| {
        wire::member(params, &["notifications", name]).is_some_and(|raw| raw.get() == "true")
    };
    let uris: Vec<String> = wire::member(params, &["notifications", "resourceSubscriptions"])
        .and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default();
    let mut methods = HashSet::new();
    let mut agreed = serde_json::Map::new();
    for (name, list) in [
        ("toolsListChanged", "tools"),
        ("promptsListChanged", "prompts"),
        ("resourcesListChanged", "resources"),
    ] {
        if wanted(name) && pooled.link.info.has(&[list, "listChanged"]) {
            methods.insert(format!("notifications/{list}/list_changed"));
            agreed.insert(name.into(), true.into());
        }
    }
    let mut subscribed = Subscribed {
        pooled: pooled.clone(),
        uris: Vec::new(),
    };
    if pooled.link.info.has(&["resources", "subscribe"]) {
        for uri in uris {
            subscribed.add(uri, identity).await?;
        }
    }
    if !subscribed.uris.is_empty() {
        agreed.insert("resourceSubscriptions".into(), json!(subscribed.uris));
    }
    let tag = id.to_owned();
    let (sender, queue) = mpsc::channel::<Bytes>(QUEUE);
    let filter = subscribed.uris.clone();
    let said = move |message: Bytes| {
        if let Some(tagged) = tagged(&message, &methods, &filter, &tag) {
            let _ = sender.try_send(tagged.into()); // A caller that reads nothing misses some.
        }
    };
    let listening = pooled.hub.listen(Arc::new(said));
    let meta =
        json!({SUBSCRIPTION_ID: serde_json::from_str::<serde_json::Value>(id).unwrap_or_default()});
    let params = json!({"notifications": agreed, "_meta": meta}).to_string();
    let acknowledged = wire::message(
        None,
        "notifications/subscriptions/acknowledged",
        Some(&params),
    );
    let first = futures::stream::iter([sse::event(acknowledged.as_bytes())]);
    let rest = notifications(
        queue,
        (listening, subscribed),
        pooled.link,
        id.to_owned(),
        meta.to_string(),
    );
    Ok(events(first.chain(rest)))
}

/// The notification as it stands on a subscription's stream; none where it was
/// not asked for.
fn tagged(message: &[u8], methods: &HashSet<String>, uris: &[String], tag: &str) -> Option<String> {
    let message = Message::parse(message).ok()?;
    let Kind::Notification { method, params } = &message.kind else {
        return None;
    };
    let is_wanted = match method.as_ref() {
        "notifications/resources/updated" => {
            let uri = wire::member(*params, &["uri"])?;
            let uri: String = serde_json::from_str(uri.get()).ok()?;
            uris.contains(&uri)
        }
        method => methods.contains(method),
    };
    let params = wire::edit(
        params.map_or("{}", RawValue::get),
        &["_meta", SUBSCRIPTION_ID],
        Some(tag),
    );
    params
        .ok()
        .filter(|_| is_wanted)
        .map(|params| wire::message(None, method, Some(&params)))
}

fn notifications(
    queue: mpsc::Receiver<Bytes>,
    held: impl Send + 'static,
    link: Link,
    id: String,
    meta: String,
) -> impl Stream<Item = Bytes> + Send {
    let state = Some((queue, held, link));
    futures::stream::unfold((state, id, meta), |(state, id, meta)| async move {
        let (mut queue, held, link) = state?;
        let over = async {
            match &link.wire {
                crate::link::Wire::Process(process) => process.over().await,
                crate::link::Wire::Http(client) => client.over().await,
            }
        };
        let next = tokio::select! {
            message = queue.recv() => message,
            () = over => None,
        };
        match next {
            Some(message) => Some((sse::event(&message), (Some((queue, held, link)), id, meta))),
            None => {
                let result = wire::result(
                    &id,
                    &format!(r#"{{"resultType":"complete","_meta":{meta}}}"#),
                );
                Some((sse::event(result.as_bytes()), (None, id, meta)))
            }
        }
    })
}

/// Resources that are subscribed to for as long as this lives.
struct Subscribed {
    pooled: Pooled,
    uris: Vec<String>,
}

impl Subscribed {
    async fn add(
        &mut self,
        uri: String,
        identity: Option<&Assertion>,
    ) -> Result<(), UpstreamError> {
        let is_first = self.pooled.hub.subscribe(&uri);
        self.uris.push(uri.clone());
        if is_first {
            let params = json!({"uri": uri}).to_string();
            self.pooled
                .link
                .ask_for(identity, "resources/subscribe", &params, SUBSCRIBE)
                .await?;
        }
        Ok(())
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        let last: Vec<_> = self
            .uris
            .drain(..)
            .filter(|uri| self.pooled.hub.unsubscribe(uri))
            .collect();
        if last.is_empty() {
            return;
        }
        let link = self.pooled.link.clone();
        tokio::spawn(async move {
            for uri in last {
                let params = json!({"uri": uri}).to_string();
                // The conversation may be over.
                drop(link.ask("resources/unsubscribe", &params, SUBSCRIBE).await);
            }
        });
    }
}
