//! The events of one stream, kept so that a client whose connection broke can
//! read on (revisions 2025-03-26 to 2025-11-25, "Resumability and Redelivery").

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use tokio::sync::Notify;

use crate::{
    envelope::{Kind, Message},
    sse,
};

/// What is kept of a stream, in bytes and in events.
const MAX_BYTES: usize = 20 * 1024 * 1024;
const MAX_EVENTS: usize = 1024;
/// Of this, what was delivered already.
const MAX_REPLAY: usize = 1024 * 1024;
/// Until a client reconnects whose stream ended, in milliseconds.
const RETRY: u32 = 1000;

/// A stream.
pub struct Log {
    number: u64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    events: VecDeque<(u64, Bytes)>,
    bytes: usize,
    last: u64,
    delivered: u64,
    done: bool,
    /// Which reader is the newest; an older one ends.
    reader: u64,
    is_read: bool,
}

impl State {
    fn undelivered(&self) -> usize {
        let waits = |(number, _): &&(u64, Bytes)| *number > self.delivered;
        self.events
            .iter()
            .filter(waits)
            .map(|(_, data)| data.len())
            .sum()
    }

    /// Forgets what was delivered long ago, then, where it is still too much,
    /// what is oldest.
    fn trim(&mut self) {
        while let Some((number, data)) = self.events.front() {
            let is_delivered = *number <= self.delivered && self.bytes > MAX_REPLAY;
            if !is_delivered && self.bytes <= MAX_BYTES && self.events.len() <= MAX_EVENTS {
                return;
            }
            self.bytes -= data.len();
            self.events.pop_front();
        }
    }
}

impl Log {
    /// The stream of that number in its session.
    pub fn new(number: u64) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Notify::new());
        Arc::new(Self {
            number,
            state,
            changed,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message; where nobody reads for long, the oldest is forgotten.
    pub fn push(&self, message: Bytes) {
        let mut state = self.state();
        state.last += 1;
        state.bytes += message.len();
        let number = state.last;
        state.events.push_back((number, message));
        state.trim();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Adds a message when there is room for it. False: the reader takes nothing.
    pub async fn push_when_taken(&self, message: Bytes, patience: Duration) -> bool {
        let room = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                {
                    let state = self.state();
                    if !state.is_read || state.undelivered() + message.len() <= MAX_BYTES {
                        return;
                    }
                }
                changed.await;
            }
        };
        let has_room = tokio::time::timeout(patience, room).await.is_ok();
        if has_room {
            self.push(message);
        }
        has_room
    }

    /// No message will follow.
    pub fn finish(&self) {
        self.state().done = true;
        self.changed.notify_waiters();
    }

    /// Whether somebody reads.
    pub fn is_read(&self) -> bool {
        self.state().is_read
    }

    /// Whether all was said.
    pub fn is_done(&self) -> bool {
        self.state().done
    }

    /// All messages, where they are just `count` answers: such need no stream.
    /// Waits for them at most `patience`.
    pub async fn only(&self, count: usize, patience: Duration) -> Option<Vec<Bytes>> {
        let all = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                {
                    let state = self.state();
                    if state.done {
                        let events = state.events.iter().map(|(_, data)| data.clone());
                        return (state.last == count as u64).then(|| events.collect());
                    }
                    if count == 1 && state.last > 0 && !is_answer(&state) {
                        return None; // More follows than an answer.
                    }
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, all).await.ok().flatten()
    }

    /// Reads on where the reader before stopped.
    pub fn read_on(self: &Arc<Self>, primed: bool) -> impl Stream<Item = Bytes> + Send + use<> {
        let after = self.state().delivered;
        self.read(after, primed)
    }

    /// Reads the events after number `after`. The reader before ends.
    pub fn read(
        self: &Arc<Self>,
        after: u64,
        primed: bool,
    ) -> impl Stream<Item = Bytes> + Send + use<> {
        let reader = {
            let mut state = self.state();
            state.reader += 1;
            state.is_read = true;
            // What was sent on a connection that broke counts as not delivered.
            state.delivered = state.delivered.min(after);
            state.reader
        };
        self.changed.notify_waiters();
        let reading = Reading {
            log: Arc::clone(self),
            reader,
        };
        // Either makes clients see the head at once.
        let first = match primed {
            true => Some(priming(self.number, after)),
            false => Some(Bytes::from_static(b": open\n\n")),
        };
        let events = futures::stream::unfold((reading, after), |(reading, after)| async move {
            let (number, data) = reading.next(after).await?;
            let event = sse::event_with_id(&format!("{}-{number}", reading.log.number), &data);
            Some((event, (reading, number)))
        });
        futures::StreamExt::chain(futures::stream::iter(first), events)
    }
}

/// Whether the first message ends its stream.
fn is_answer(state: &State) -> bool {
    let first = state
        .events
        .front()
        .and_then(|(_, data)| Message::parse(data).ok());
    first.is_some_and(|message| matches!(message.kind, Kind::Response { .. }))
}

/// The first event of a stream has an id and no data (revision 2025-11-25).
fn priming(stream: u64, after: u64) -> Bytes {
    format!("id: {stream}-{after}\nretry: {RETRY}\ndata: \n\n").into()
}

struct Reading {
    log: Arc<Log>,
    reader: u64,
}

impl Reading {
    async fn next(&self, after: u64) -> Option<(u64, Bytes)> {
        loop {
            let changed = self.log.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.log.state();
                if state.reader != self.reader {
                    return None;
                }
                let next = state
                    .events
                    .iter()
                    .find(|(number, _)| *number > after)
                    .cloned();
                if let Some((number, data)) = next {
                    state.delivered = number;
                    state.trim_delivered();
                    drop(state);
                    self.log.changed.notify_waiters();
                    return Some((number, data));
                }
                if state.done {
                    return None;
                }
            }
            changed.await;
        }
    }
}

impl State {
    fn trim_delivered(&mut self) {
        while let Some((number, data)) = self.events.front()
            && *number < self.delivered
            && self.bytes > MAX_REPLAY
        {
            self.bytes -= data.len();
            self.events.pop_front();
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.log.state();
        if state.reader == self.reader {
            state.is_read = false;
        }
        drop(state);
        self.log.changed.notify_waiters();
    }
}

/// Stream and number of an event id.
pub fn parse_id(id: &str) -> Option<(u64, u64)> {
    let (stream, number) = id.split_once('-')?;
    Some((stream.parse().ok()?, number.parse().ok()?))
}
