//! Reads the bodies of requests.
//!
//! Invariants: one body has at most [`MAX_BODY`] bytes, and all that are held
//! at once have [`MAX_BODIES`]; what a body takes is given back when the last
//! clone of its bytes is dropped; a sender that makes no progress is cut off.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt;
use policy::Reason;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::refusal::Refusal;

/// Largest body of a request, in bytes.
pub const MAX_BODY: usize = 4 * 1024 * 1024;
/// Bytes of all bodies that are held at once: read, decided on, or on their way
/// to the server.
pub const MAX_BODIES: usize = 256 * 1024 * 1024;
/// A sender of whom nothing comes for this time is cut off.
const STALL: Duration = Duration::from_secs(10);
/// A body has this time, and a second more for each [`RATE`] bytes of it.
const GRACE: Duration = Duration::from_secs(10);
/// Least rate of a body that takes longer than [`GRACE`], in bytes a second.
const RATE: u32 = 16 * 1024;
/// What is left of a refused request is read for this long, and so far.
const DISCARD: Duration = Duration::from_secs(1);
const MAX_DISCARD: usize = 64 * 1024;
/// Room for a body whose length is not known yet.
const FIRST: usize = 4 * 1024;

/// The bodies of requests, within bounds.
pub struct Intake {
    places: Arc<Semaphore>,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(MAX_BODIES)),
        }
    }
}

impl Intake {
    /// Reads a body whole. Its bytes count as held until the last clone is gone.
    ///
    /// # Errors
    /// The refusal of a body that is too large, too slow or broken, or for
    /// which there is no room now.
    pub async fn read<B>(&self, mut body: B) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let announced = body.size_hint();
        if announced.lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        let exact = announced.exact().and_then(|n| usize::try_from(n).ok());
        let mut held = Held {
            bytes: Vec::new(),
            places: None,
        };
        let start = Instant::now();
        let mut last = start;
        loop {
            // Most bodies come with their head: no timer is set for them.
            let next = match body.frame().now_or_never() {
                Some(frame) => Ok(frame),
                None => timeout_at(deadline(start, last, held.bytes.len()), body.frame()).await,
            };
            let frame = match next {
                Ok(None) => return Ok(Bytes::from_owner(held)),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    let message = format!("the body cannot be read: {error}");
                    return Err(Refusal::malformed(message));
                }
                Err(_) => return Err(too_slow()),
            };
            let Some(data) = frame.data_ref() else {
                continue; // Trailers: they pass on to nobody.
            };
            if data.is_empty() {
                continue; // No progress.
            }
            last = Instant::now();
            self.make_room(&mut held, data.len(), exact)?;
            held.bytes.extend_from_slice(data);
        }
    }

    /// Makes room for `more` bytes; never waits, as bodies that wait for each
    /// other's end would all hold what the others need.
    fn make_room(&self, held: &mut Held, more: usize, exact: Option<usize>) -> Result<(), Refusal> {
        let (room, needed) = (held.bytes.capacity(), held.bytes.len() + more);
        if needed > MAX_BODY {
            return Err(too_large());
        }
        if needed <= room {
            return Ok(());
        }
        // What was announced is not believed: room grows with what has come.
        let doubled = needed.max(2 * room).max(FIRST);
        let wanted = doubled.min(exact.unwrap_or(MAX_BODY).max(needed));
        let count = u32::try_from(wanted - room).map_err(|_| too_large())?;
        let places = Arc::clone(&self.places)
            .try_acquire_many_owned(count)
            .map_err(|_| no_room())?;
        match &mut held.places {
            Some(all) => all.merge(places),
            none => *none = Some(places),
        }
        held.bytes.reserve_exact(wanted - held.bytes.len());
        Ok(())
    }
}

/// Throws away the body of a request that is refused unread. Then the connection
/// can go on (HTTP/1.1), and a stream that breaks the protocol is reset for that
/// (HTTP/2). Not where the client waits to be told whether it shall send it.
pub async fn discard<B: Body<Data = Bytes> + Unpin>(headers: &HeaderMap, mut body: B) {
    if headers.get_all(header::EXPECT).iter().any(is_continue) {
        return;
    }
    let read = async {
        let mut left = MAX_DISCARD;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD, read).await; // The refusal does not depend on it.
}

/// Whether this value of `Expect` is the one that there is (RFC 9110 §10.1.1).
pub fn is_continue(expected: &HeaderValue) -> bool {
    expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// Until when the next bytes have to come.
fn deadline(start: Instant, last: Instant, received: usize) -> Instant {
    let received = u32::try_from(received).unwrap_or(u32::MAX);
    let by_rate = start + GRACE + Duration::from_secs(1) * received / RATE;
    by_rate.min(last + STALL)
}

/// Bytes and the places they take.
struct Held {
    bytes: Vec<u8>,
    places: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn too_large() -> Refusal {
    let message = format!("a request has at most {MAX_BODY} bytes");
    Refusal::new(Reason::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, message)
}

fn too_slow() -> Refusal {
    let message = format!(
        "the body did not arrive in time: within {} s, or at {} KiB/s where it is longer",
        GRACE.as_secs(),
        RATE / 1024
    );
    Refusal::new(Reason::Malformed, StatusCode::REQUEST_TIMEOUT, message)
}

fn no_room() -> Refusal {
    let message = "too many requests are being read: try again later";
    Refusal::new(Reason::Overloaded, StatusCode::SERVICE_UNAVAILABLE, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    /// A body of `count` pieces.
    fn pieces(size: usize, count: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let piece = Bytes::from(vec![b'x'; size]);
        let frames = (0..count).map(move |_| Ok(Frame::data(piece.clone())));
        StreamBody::new(stream::iter(frames))
    }

    async fn status(
        intake: &Intake,
        body: impl Body<Data = Bytes, Error = Infallible> + Unpin,
    ) -> u16 {
        match intake.read(body).await {
            Ok(_) => 200,
            Err(refusal) => refusal.status.as_u16(),
        }
    }

    #[test]
    fn slow_senders_have_a_deadline_and_steady_ones_get_more_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (last, received, wanted) in [
            (0, 0, 10),
            (9, 0, 10),                  // nothing to speak of
            (9, 64 * 1024, 14),          // it has 4 s more
            (2, 64 * 1024, 12),          // but nothing came for 10 s
            (100, 100 * 16 * 1024, 110), // just the rate
            (100, 50 * 16 * 1024, 60),   // half of it: too late already
            (265, MAX_BODY, 266),
        ] {
            assert_eq!(
                deadline(start, at(last), received),
                at(wanted),
                "{received} bytes"
            );
        }
    }

    #[tokio::test]
    async fn the_cap_is_exact_whatever_the_pieces() {
        let intake = Intake::default();
        for (size, count, wanted) in [
            (MAX_BODY, 1, 200),
            (MAX_BODY + 1, 1, 413),
            (1, 1000, 200),
            (MAX_BODY / 1024, 1024, 200),
            (MAX_BODY / 1024, 1025, 413),
        ] {
            let body = pieces(size, count);
            assert_eq!(status(&intake, body).await, wanted, "{count} × {size}");
        }
        assert_eq!(
            status(&intake, Full::new(Bytes::from(vec![0; MAX_BODY]))).await,
            200
        );
        assert_eq!(
            status(&intake, Full::new(Bytes::from(vec![0; MAX_BODY + 1]))).await,
            413
        );
    }

    #[tokio::test]
    async fn all_bodies_together_are_bounded_and_given_back_with_their_last_clone() {
        let intake = Intake::default();
        let whole = || Full::new(Bytes::from(vec![b'x'; MAX_BODY]));
        let mut held = Vec::new();
        for _ in 0..MAX_BODIES / MAX_BODY {
            held.push(intake.read(whole()).await.unwrap());
        }
        assert_eq!(intake.places.available_permits(), 0);
        assert_eq!(status(&intake, Full::new(Bytes::from("{}"))).await, 503);
        let part = held.pop().unwrap().slice(..1);
        assert_eq!(
            status(&intake, whole()).await,
            503,
            "a slice still holds it all"
        );
        drop(part);
        assert_eq!(status(&intake, whole()).await, 200);
        // What is refused midway is given back as well.
        drop(held);
        assert_eq!(status(&intake, pieces(MAX_BODY / 3, 4)).await, 413);
        assert_eq!(intake.places.available_permits(), MAX_BODIES);
    }

    #[tokio::test]
    async fn memory_grows_with_what_came_not_with_what_was_announced() {
        let intake = Intake::default();
        let body = pieces(1, 300);
        let bytes = intake.read(body).await.unwrap();
        assert_eq!(bytes.len(), 300);
        assert_eq!(MAX_BODIES - intake.places.available_permits(), FIRST);
        let small = intake.read(Full::new(Bytes::from("{}"))).await.unwrap();
        assert_eq!(
            MAX_BODIES - intake.places.available_permits(),
            FIRST + small.len()
        );
    }
}
