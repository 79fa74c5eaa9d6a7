//! Sends what was decided on to the server.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode};
use policy::Reason;

use super::{Element, Exchange, now};
use crate::{
    body::Body,
    envelope::Message,
    era::{self, PROTOCOL_VERSION},
    method::Action,
    refusal::Refusal,
    request,
    sessions::{SESSION_ID, Session},
    upstream::{Forward, Principal, UpstreamError},
    wire,
};

impl Exchange {
    /// Sends what was decided on, and makes the answer fit the caller.
    pub(super) async fn send(
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
        let forward = self.forward(messages, is_batch, body, session.clone())?;
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
                Some(
                    self.shared
                        .sessions
                        .add(id, Principal::of(self.caller()), at),
                )
            }
            None => None,
        };
        let id = opened.as_ref().map(|session| session.id.clone());
        let actions: Vec<_> = kept.iter().map(|element| &element.action).collect();
        let task = kept.iter().find_map(|element| may_be_task(element));
        let is_whole =
            is_batch || is_handshake || task.is_some() || actions.contains(&&Action::List);
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

    /// GET and DELETE: streams of what the server says by itself, ends of sessions.
    pub(super) async fn stream(&self, method: &str) -> Result<Response<Body>, Refusal> {
        let read = era::of_headers(&self.parts.headers).and_then(|_| self.session());
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
        let forward = self.forward(Vec::new(), false, self.body.clone(), session.clone())?;
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
        self.fit(answer, fit, &[&Action::Open], None).await
    }

    fn forward<'a>(
        &'a self,
        messages: Vec<&'a Message<'a>>,
        is_batch: bool,
        body: Bytes,
        session: Option<Arc<Session>>,
    ) -> Result<Forward<'a>, Refusal> {
        let (identity, bundle) = (&self.shared.identity, &self.active.bundle);
        Ok(Forward {
            method: self.parts.method.clone(),
            headers: request::forwarded_headers(&self.parts.headers, self.era),
            body,
            messages,
            is_batch,
            era: self.era,
            session,
            caller: self.caller(),
            identity: identity.assertion(bundle, self.caller(), now())?,
        })
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
