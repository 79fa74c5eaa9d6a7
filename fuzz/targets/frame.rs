//! The framing of the shim, which may be hostile: any bytes are frames or an
//! error, and what is written is read again, however the stream is cut.
#![no_main]

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use fuzz::frame::{self, Frame, MAX_PAYLOAD};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf};

// The first byte says how many bytes come at once.
fuzz_target!(|input: &[u8]| fuzz::limited(|| {
    if let Some((cut, stream)) = input.split_first() {
        noise(stream, usize::from(*cut) + 1);
        round_trip(stream, usize::from(*cut) + 1);
    }
}));

/// Bytes that come in pieces.
struct Pieces<'a>(&'a [u8], usize);

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.1.min(self.0.len()).min(buffer.remaining());
        let (piece, rest) = self.0.split_at(length);
        buffer.put_slice(piece);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

/// Nothing here waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits for something"),
    }
}

/// The frames up to the end or to the first error.
fn frames(stream: &[u8], piece: usize) -> (Vec<Frame>, Option<String>) {
    let (mut input, mut frames) = (Pieces(stream, piece), Vec::new());
    loop {
        match ready(frame::read(&mut input)) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error.to_string())),
        }
    }
}

fn noise(stream: &[u8], piece: usize) {
    let whole = frames(stream, stream.len().max(1));
    assert_eq!(whole, frames(stream, piece), "cutting changes what is read");
    let held: usize = whole
        .0
        .iter()
        .map(|frame| match frame {
            Frame::Stdout(bytes) => bytes.len(),
            Frame::Exit(_) => 0,
        })
        .sum();
    assert!(held <= stream.len(), "more comes out than went in");
    for frame in whole.0 {
        written_and_read(&frame, piece);
    }
}

fn round_trip(payload: &[u8], piece: usize) {
    written_and_read(&Frame::Stdout(payload.to_vec().into()), piece);
    written_and_read(&Frame::Exit(String::from_utf8_lossy(payload).into()), piece);
    // What needs several frames takes long: now and then.
    if piece == 97 {
        let times = MAX_PAYLOAD / (payload.len() + 1) + 2;
        written_and_read(&Frame::Stdout(payload.repeat(times).into()), 1000);
    }
}

fn written_and_read(frame: &Frame, piece: usize) {
    let mut wire = Vec::new();
    ready(frame::write(&mut wire, frame)).expect("memory takes all");
    let (read, error) = frames(&wire, piece);
    assert_eq!(error, None);
    let output = |frames: &[Frame]| -> Vec<u8> {
        let payloads = frames.iter().filter_map(|frame| match frame {
            Frame::Stdout(bytes) => Some(&bytes[..]),
            Frame::Exit(_) => None,
        });
        payloads.collect::<Vec<_>>().concat()
    };
    assert_eq!(output(&read), output(std::slice::from_ref(frame)));
    if let Frame::Exit(text) = frame {
        let cut = text.len() > MAX_PAYLOAD || text.is_empty();
        assert!(cut || read.last() == Some(frame));
    }
}
