//! Bodies of answers.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::{sync::watch, time::Sleep};

use crate::{
    fit::{Fit, Fitted},
    sse,
};

/// What can go wrong while an answer streams.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<dyn std::error::Error + Send + Sync>);

impl Error {
    /// Wraps any error.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, Error>;

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The beginning of a body: the whole, where it is at most so long, or all of it
/// still as a body.
pub async fn beginning(mut body: Body, most: usize) -> Result<Result<Bytes, Body>, Error> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let is_whole = match frame.data_ref() {
            Some(data) => {
                read.extend_from_slice(data);
                read.len() <= most
            }
            None => true, // Trailers end it.
        };
        if !is_whole {
            let first = futures::stream::iter([Ok(Frame::data(Bytes::from(read)))]);
            let rest = futures::StreamExt::chain(first, BodyStream::new(body));
            return Ok(Err(Body::new(StreamBody::new(rest))));
        }
    }
    Ok(Ok(read.into()))
}

/// Decides an open stream anew; false ends it.
pub type StillAllowed = Box<dyn Fn() -> bool + Send>;
/// Resolves when a stream has to end: in good order (true) or by a reset.
pub type Ends = Pin<Box<dyn Future<Output = bool> + Send>>;
/// A stream on which nothing comes for this time gets a comment, so that nobody
/// between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

type Changed = Pin<Box<dyn Future<Output = Option<watch::Receiver<()>>> + Send>>;

/// A stream of whole events that is decided anew whenever the configuration changes. When it is
/// no longer allowed it is reset, not ended as if it were whole.
pub struct Guarded {
    inner: Body,
    changed: Option<Changed>,
    still_allowed: StillAllowed,
    ends: Ends,
    /// When a comment is due.
    quiet: Pin<Box<Sleep>>,
}

/// The reason of a reset.
#[derive(Debug, thiserror::Error)]
#[error("this stream is no longer allowed")]
pub struct Revoked;

fn next_change(mut changes: watch::Receiver<()>) -> Changed {
    Box::pin(async move { changes.changed().await.is_ok().then_some(changes) })
}

impl Guarded {
    /// Guards a stream. `changes` is from before its decision, so that no change
    /// is missed.
    pub fn new(
        inner: Body,
        changes: watch::Receiver<()>,
        still_allowed: StillAllowed,
        ends: Ends,
    ) -> Self {
        Self {
            inner,
            changed: Some(next_change(changes)),
            still_allowed,
            ends,
            quiet: Box::pin(tokio::time::sleep(KEEP_ALIVE)),
        }
    }
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let revoked = || Poll::Ready(Some(Err(Error::new(Revoked))));
        match self.ends.as_mut().poll(cx) {
            Poll::Ready(true) => return Poll::Ready(None),
            Poll::Ready(false) => return revoked(),
            Poll::Pending => {}
        }
        while let Some(changed) = self.changed.as_mut() {
            let Poll::Ready(changes) = changed.as_mut().poll(cx) else {
                break;
            };
            if !(self.still_allowed)() {
                return revoked();
            }
            self.changed = changes.map(next_change);
        }
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        let is_quiet = frame.is_pending() && self.quiet.as_mut().poll(cx).is_ready();
        if frame.is_ready() || is_quiet {
            let next = tokio::time::Instant::now() + KEEP_ALIVE;
            self.quiet.as_mut().reset(next);
        }
        match is_quiet {
            true => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(
                b": keep-alive\n\n",
            ))))),
            false => frame,
        }
    }
}

/// A stream of events that fit the caller.
pub struct FilteredEvents {
    inner: Body,
    events: sse::Splitter,
    fit: Fit,
}

impl FilteredEvents {
    /// Fits a stream.
    pub fn new(inner: Body, fit: Fit) -> Self {
        Self {
            inner,
            events: sse::Splitter::default(),
            fit,
        }
    }

    fn filter(&self, event: Bytes) -> Result<Bytes, Error> {
        let Some(data) = sse::data(&event).filter(|data| !data.is_empty()) else {
            return Ok(event);
        };
        Ok(match self.fit.data(&data).map_err(Error::new)? {
            Fitted::Same => event,
            Fitted::Changed(data) => sse::with_data(&event, &data),
            Fitted::Dropped => sse::with_data(&event, b""), // Its id still counts.
        })
    }
}

impl http_body::Body for FilteredEvents {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if let Some(event) = self.events.next_event() {
                return Poll::Ready(Some(self.filter(event).map(Frame::data)));
            }
            let frame = match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if self.events.rest() > 0 => {
                    return Poll::Ready(Some(Err(Error::new(
                        "the server's stream ended within an event",
                    ))));
                }
                None => return Poll::Ready(None),
            };
            if let Ok(bytes) = frame.into_data()
                && let Err(error) = self.events.push(&bytes)
            {
                return Poll::Ready(Some(Err(Error::new(error))));
            }
        }
    }
}
