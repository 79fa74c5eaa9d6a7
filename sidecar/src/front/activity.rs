//! When a connection has been idle, slow or stuck for too long.
//!
//! Invariants: a connection with a request in flight is ended only when its
//! peer does not take what is written; without one it always has a deadline.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{HEAD, MAX_HEAD, STUCK, stream::Stream, unread};

/// After our end is closed, what still comes is thrown away for this time, so
/// that the kernel does not reset the connection before the answer is read.
const LINGER: Duration = Duration::from_secs(1);
/// How often a connection that is to end is looked at for a request.
const LOOK: Duration = Duration::from_millis(10);
/// Requests that an HTTP/2 client may abandon within [`SHORT_LIVED`] of their
/// start, as long as they are less than half of all (CVE-2023-44487).
const MAX_ABANDONED: usize = 200;
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// What happens on a connection. Times are in milliseconds since its start,
/// and 0 is never.
pub struct Activity {
    start: Instant,
    open: AtomicUsize,
    served: AtomicUsize,
    abandoned: AtomicUsize,
    is_http2: AtomicBool,
    /// End of the last request.
    idle_since: AtomicU64,
    /// First byte after that.
    head_since: AtomicU64,
    /// Since when the peer takes nothing.
    stuck_since: AtomicU64,
    /// Something that cannot wait for the next look.
    urgent: Notify,
}

/// Why a connection is ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Nothing was asked for a long time: it ends in good order.
    Idle,
    /// A head did not arrive in time.
    SlowHead,
    /// The peer does not take what is written.
    Stuck,
    /// Most of its requests were abandoned at once.
    Abandoned,
}

impl Activity {
    /// Of a connection that begins now.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            open: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            is_http2: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            stuck_since: AtomicU64::new(0),
            urgent: Notify::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .max(1)
    }

    fn after(&self, since: u64, limit: Duration) -> Instant {
        self.start + Duration::from_millis(since) + limit
    }

    /// A request begins.
    pub fn begin(self: &Arc<Self>, is_http2: bool) -> InFlight {
        self.is_http2.store(is_http2, Relaxed);
        self.open.fetch_add(1, Relaxed);
        self.served.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
        InFlight {
            activity: Arc::clone(self),
            answered: false,
            since: is_http2.then(Instant::now),
        }
    }

    fn read(&self) {
        if self.open.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 {
            self.head_since.store(self.now(), Relaxed);
        }
    }

    /// Something was written, or the peer takes nothing.
    pub fn written(&self, is_stuck: bool) {
        match (is_stuck, self.stuck_since.load(Relaxed)) {
            (true, 0) => self.stuck_since.store(self.now(), Relaxed),
            (true, _) | (false, 0) => {}
            (false, _) => self.stuck_since.store(0, Relaxed),
        }
    }

    fn is_abused(&self) -> bool {
        let abandoned = self.abandoned.load(Relaxed);
        abandoned > MAX_ABANDONED && 2 * abandoned > self.served.load(Relaxed)
    }

    /// Resolves when the first request has begun. Asked for at the end only, so
    /// that no connection pays for it before.
    pub async fn begun(&self) {
        while self.served.load(Relaxed) == 0 {
            sleep(LOOK).await;
        }
    }

    /// Resolves when nothing has been asked for this time: from now on where
    /// nothing was asked at all, else since the end of the last request.
    pub async fn unused_for(&self, time: Duration) {
        let now = self.now();
        loop {
            let since = match self.idle_since.load(Relaxed) {
                0 => now,
                ended => ended,
            };
            if self.open.load(Relaxed) == 0 && self.after(since, time) <= Instant::now() {
                return;
            }
            sleep(LOOK).await;
        }
    }

    /// Idle time counts anew.
    pub fn touch(&self) {
        self.idle_since.store(self.now(), Relaxed);
    }

    /// The next moment at which the connection has to end, and why.
    fn deadline(&self, idle_limit: Duration) -> Option<(Instant, Overdue)> {
        if self.is_abused() {
            return Some((self.start, Overdue::Abandoned));
        }
        let stuck = self.stuck_since.load(Relaxed);
        if stuck > 0 {
            return Some((self.after(stuck, STUCK), Overdue::Stuck));
        }
        if self.open.load(Relaxed) > 0 {
            return None;
        }
        let (idle, head) = (self.idle_since.load(Relaxed), self.head_since.load(Relaxed));
        let idle_end = self.after(idle, idle_limit);
        match (idle, head) {
            (0, _) => Some((self.start + HEAD, Overdue::SlowHead)),
            // Pings and window updates are no head.
            (_, 0) => Some((idle_end, Overdue::Idle)),
            _ if self.is_http2.load(Relaxed) => Some((idle_end, Overdue::Idle)),
            _ => Some((self.after(head, HEAD), Overdue::SlowHead)),
        }
    }

    /// Resolves when the connection has to end; `idle_limit` is how long it may
    /// be without a request.
    pub async fn overdue(&self, idle_limit: Duration) -> Overdue {
        loop {
            // No deadline that begins later can pass before the next look.
            let look = Instant::now() + HEAD / 2;
            let wake = match self.deadline(idle_limit) {
                Some((deadline, why)) if deadline <= Instant::now() => return why,
                Some((deadline, _)) => deadline.min(look),
                None => look,
            };
            tokio::select! {
                () = sleep_until(wake) => {}
                () = self.urgent.notified() => {}
            }
        }
    }
}

/// A request in flight; ends when it is dropped.
pub struct InFlight {
    activity: Arc<Activity>,
    answered: bool,
    since: Option<Instant>,
}

impl InFlight {
    /// The head of the answer is there.
    pub fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.activity;
        if !self.answered
            && self
                .since
                .is_some_and(|since| since.elapsed() < SHORT_LIVED)
        {
            activity.abandoned.fetch_add(1, Relaxed);
            if activity.is_abused() {
                activity.urgent.notify_one();
            }
        }
        activity.touch();
        activity.open.fetch_sub(1, Relaxed);
    }
}

/// A socket that notes what happens on it.
pub struct Socket {
    stream: Stream,
    activity: Arc<Activity>,
    /// The first line, until it is there.
    first_line: Option<Vec<u8>>,
    /// By the first line.
    is_http2: bool,
    is_foreign: bool,
    /// How many requests had begun when all answers had been written last.
    settled: usize,
    /// What is written in place of an answer of hyper's own.
    instead: Bytes,
    linger: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    /// Notes from now on.
    pub fn new(stream: Stream, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            activity,
            first_line: Some(Vec::new()),
            is_http2: false,
            is_foreign: false,
            settled: 0,
            instead: Bytes::new(),
            linger: None,
        }
    }

    /// What begins neither as HTTP/1 nor as HTTP/2 gets no answer (RFC 9113
    /// §3.4): one of HTTP/1 would mean nothing to whoever sent it. False for
    /// such a beginning.
    fn begins(&mut self, read: &[u8]) -> bool {
        let Some(line) = &mut self.first_line else {
            return true;
        };
        let end = read.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&read[..end.unwrap_or(read.len())]);
        if end.is_none() && line.len() < MAX_HEAD {
            return true;
        }
        let line = self.first_line.take().unwrap_or_default();
        let line = line.trim_ascii();
        self.is_http2 = line == b"PRI * HTTP/2.0";
        // Too long: HTTP/1 says so. Empty: RFC 9112 §2.2 allows an empty line
        // before the first.
        end.is_none()
            || line.is_empty()
            || [b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0"]
                .iter()
                .any(|version| line.ends_with(*version))
    }

    /// All that hyper had to say has been written: it flushes only then.
    fn flushed(&mut self) {
        if self.activity.open.load(Relaxed) == 0 {
            self.settled = self.activity.served.load(Relaxed);
        }
    }

    /// Takes an answer of hyper's own, to write one with a reason instead; or
    /// none, where the first line is not there yet and may be no HTTP at all.
    /// When every answer has been written and no request has begun since, what
    /// comes over HTTP/1 can be nothing else; no byte of an answer is looked at.
    fn takes(&mut self, written: &[u8]) -> bool {
        if self.is_http2 || self.settled != self.activity.served.load(Relaxed) {
            return false;
        }
        let Some(instead) = unread::with_reason(written) else {
            return false;
        };
        if self.first_line.is_none() {
            self.instead = instead.into();
        }
        true
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.instead))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.instead.advance(count),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_foreign {
            return Poll::Ready(Ok(())); // The end, for hyper; it closes in good order.
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.activity.read();
        if !self.begins(&buffer.filled()[before..]) {
            self.is_foreign = true;
            buffer.set_filled(before);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.takes(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = slices
            && self.takes(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(self.poll_instead(cx))?;
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.linger = Some(Box::pin(sleep(LINGER)));
        }
        let Self { stream, linger, .. } = &mut *self;
        let mut thrown_away = [0; 4096];
        loop {
            if let Some(linger) = linger
                && linger.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // Closed by the peer, or broken: there is nothing left to save.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    /// Seconds from the start until the connection ends.
    fn end(activity: &Activity) -> Option<(u64, Overdue)> {
        let (deadline, why) = activity.deadline(IDLE)?;
        Some(((deadline - activity.start).as_secs(), why))
    }

    fn served(is_http2: bool, at: u64) -> Arc<Activity> {
        let activity = Activity::new();
        drop(activity.begin(is_http2));
        activity.idle_since.store(at, Relaxed);
        activity
    }

    #[test]
    fn a_connection_without_a_request_always_ends() {
        let silent = Activity::new();
        assert_eq!(end(&silent), Some((10, Overdue::SlowHead)));
        silent.read();
        silent.head_since.store(9_000, Relaxed);
        assert_eq!(end(&silent), Some((10, Overdue::SlowHead)));

        let idle = served(false, 1_000);
        assert_eq!(end(&idle), Some((61, Overdue::Idle)));
        // A second head counts from its first byte, whenever that comes.
        idle.head_since.store(30_000, Relaxed);
        idle.read();
        assert_eq!(end(&idle), Some((40, Overdue::SlowHead)));

        // Over HTTP/2, frames may come without a request.
        let pinging = served(true, 1_000);
        pinging.read();
        assert_eq!(end(&pinging), Some((61, Overdue::Idle)));
    }

    #[test]
    fn a_stream_in_flight_lives_unless_its_peer_takes_nothing() {
        let activity = Activity::new();
        activity.read();
        let stream = activity.begin(false);
        activity.read();
        assert_eq!(end(&activity), None);
        activity.written(true);
        activity.stuck_since.store(5_000, Relaxed);
        activity.written(true);
        assert_eq!(end(&activity), Some((65, Overdue::Stuck)));
        activity.written(false);
        assert_eq!(end(&activity), None);
        drop(stream);
        assert_eq!(end(&activity), Some((60, Overdue::Idle)));
    }

    #[tokio::test]
    async fn who_abandons_most_requests_at_once_is_cut_off() {
        let abandon = |activity: &Arc<Activity>, count| {
            (0..count).for_each(|_| drop(activity.begin(true)));
        };
        let half = Activity::new();
        (0..MAX_ABANDONED + 1).for_each(|_| half.begin(true).answered());
        abandon(&half, MAX_ABANDONED + 1);
        assert_eq!(end(&half), Some((60, Overdue::Idle)));
        // The news does not wait for the next look.
        let (ended, ()) = tokio::join!(half.overdue(IDLE), async { abandon(&half, 1) });
        assert_eq!(ended, Overdue::Abandoned);

        // Given up after a while, as a user does: that is no attack.
        let patient = Activity::new();
        for _ in 0..2 * MAX_ABANDONED {
            let mut call = patient.begin(true);
            call.since = call.since.and_then(|since| since.checked_sub(SHORT_LIVED));
            assert!(call.since.is_some());
        }
        assert_eq!(end(&patient), Some((60, Overdue::Idle)));
    }
}
