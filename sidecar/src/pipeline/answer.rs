//! What the server answers, made to fit the caller, and streams for as long as
//! they may go on.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use policy::{Operation, decide};

use super::{Exchange, now};
use crate::{
    body::{self, Body, FilteredEvents, Guarded},
    config::Active,
    era::Era,
    fit::{Fit, Fitted},
    front::Phase,
    method::Action,
    refusal::Refusal,
    request,
    sessions::Session,
    sse, state,
    upstream::UpstreamError,
};

/// Largest answer that has to be read whole, as lists in JSON have, and resources
/// in revision 2026-07-28, which say who may cache them.
const MAX_WHOLE: usize = 16 * 1024 * 1024;
/// Largest answer in JSON whose `requestState` works. A longer one streams.
const MAX_WITH_STATE: usize = 256 * 1024;

impl Exchange {
    pub(super) fn fitted(&self, session: Option<Arc<Session>>, tool: Option<String>) -> Fit {
        Fit {
            shared: Arc::clone(&self.shared),
            caller: self.caller.clone().unwrap_or_default(),
            era: self.era,
            session,
            tool,
        }
    }

    /// Makes an answer fit. `asked`: whether it answers a request, and if so,
    /// whether its JSON has to be read whole.
    pub(super) async fn fit(
        &self,
        answer: Response<Body>,
        fit: Fit,
        actions: &[&Action],
        asked: Option<bool>,
    ) -> Result<Response<Body>, Refusal> {
        let (mut head, inner) = answer.into_parts();
        let content_type = head.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.map_or(&[][..], HeaderValue::as_bytes);
        if request::is_type(content_type, "text/event-stream") {
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
        let is_json = request::is_type(content_type, "application/json");
        let is_empty = http_body::Body::is_end_stream(&inner);
        if asked.is_some() && head.status.is_success() && !is_json && !is_empty {
            let content_type = String::from_utf8_lossy(content_type).into_owned();
            return Err(UpstreamError::Invalid(format!(
                "its type is {content_type:?}; expected application/json or text/event-stream"
            ))
            .into());
        }
        let is_answer = is_json && head.status.is_success();
        let invalid = |error: String| Refusal::from(UpstreamError::Invalid(error));
        let whole = match asked {
            Some(true) if is_answer => whole(inner).await?,
            // It may have something for the caller to bring back.
            Some(false) if is_answer && self.era == Era::Modern => {
                let beginning = body::beginning(inner, MAX_WITH_STATE).await;
                match beginning.map_err(|error| invalid(error.to_string()))? {
                    Ok(whole) if state::may_be_in(&whole) => whole,
                    Ok(whole) => return Ok(Response::from_parts(head, body::full(whole))),
                    Err(long) => return Ok(Response::from_parts(head, long)),
                }
            }
            _ => return Ok(Response::from_parts(head, inner)),
        };
        head.headers.remove(header::CONTENT_LENGTH);
        let fitted = match fit.data(&whole).map_err(invalid)? {
            Fitted::Same => whole,
            Fitted::Changed(changed) => changed.into(),
            Fitted::Dropped => return Err(invalid("it answered with a request".into())),
        };
        Ok(Response::from_parts(head, body::full(fitted)))
    }

    /// Whether an open stream may go on. Where issuers or their keys are others
    /// than before, its token has to say of the caller what it said.
    fn still_allowed(&self, actions: &[&Action]) -> body::StillAllowed {
        let (shared, caller) = (Arc::clone(&self.shared), self.caller.clone());
        let caller = caller.unwrap_or_default();
        let actions: Vec<Action> = actions.iter().copied().cloned().collect();
        let authenticator = Arc::clone(&self.active.authenticator);
        let token = token_of(&self.parts.headers);
        Box::new(move || {
            let is_same = |active: &Active| {
                Arc::ptr_eq(&active.authenticator, &authenticator)
                    || active
                        .authenticator
                        .again(&token, now())
                        .is_ok_and(|again| *again == *caller)
            };
            let may = |active: &Active, action: &Action| {
                let tool = match action {
                    Action::Task(task) => shared.strays.tool_of(task, &caller),
                    _ => None,
                };
                let operations = match &tool {
                    Some(tool) => Some(vec![Operation::Tool(tool)]),
                    None => action.operations(),
                };
                let may =
                    |operation| decide(&active.bundle, &caller, operation, now()).is_allowed();
                operations.is_some_and(|operations| operations.into_iter().all(may))
            };
            shared.config.active().is_some_and(|active| {
                is_same(&active) && actions.iter().all(|action| may(&active, action))
            })
        })
    }

    /// When an open stream has to end: with its token, and the stream of what
    /// the server says by itself also when this replica drains.
    fn ends(&self, actions: &[&Action]) -> body::Ends {
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
                        .wait_for(|phase| *phase >= Phase::Draining)
                        .await
                        .is_err()
                {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! { () = expired => false, () = drained => true }
        })
    }
}

/// What a request says of its caller, kept for as long as its answer streams.
fn token_of(headers: &HeaderMap) -> HeaderMap {
    let values = headers.get_all(header::AUTHORIZATION).iter();
    let values = values.map(|value| (header::AUTHORIZATION, value.clone()));
    values.collect()
}

async fn whole(body: Body) -> Result<Bytes, Refusal> {
    let whole = Limited::new(body, MAX_WHOLE).collect().await;
    let whole = whole.map_err(|error| Refusal::from(UpstreamError::Invalid(error.to_string())))?;
    Ok(whole.to_bytes())
}

/// The answer to a batch, with the errors of its elements that were refused.
pub(super) async fn with_errors(
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
