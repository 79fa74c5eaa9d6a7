//! Server-sent events: read as the standard says, however the stream is cut, and
//! an event with other data carries that and nothing else.
#![no_main]

use fuzz::sse::{Splitter, data, with_data};
use libfuzzer_sys::fuzz_target;

// The first byte says how the stream is cut.
fuzz_target!(|input: &[u8]| fuzz::limited(|| {
    if let Some((cut, stream)) = input.split_first() {
        read(stream, usize::from(*cut) + 1);
    }
}));

fn read(stream: &[u8], piece: usize) {
    let (whole, rest) = events(stream, stream.len().max(1));
    let (pieces, pieces_rest) = events(stream, piece);
    let same = |events: &[Vec<u8>]| {
        events
            .iter()
            .map(|event| line_feeds(event))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (same(&whole), rest),
        (same(&pieces), pieces_rest),
        "cutting changes what is read"
    );

    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let all = whole.concat();
    assert!(stream.starts_with(&all), "events are pieces of the stream");
    let read: Vec<_> = whole.iter().filter_map(|event| data(event)).collect();
    assert_eq!(read, dispatched(&all), "not as the standard says");

    for event in whole.iter().take(3) {
        replace(event, stream);
    }
}

fn events(stream: &[u8], piece: usize) -> (Vec<Vec<u8>>, usize) {
    let (mut splitter, mut events) = (Splitter::default(), Vec::new());
    for piece in stream.chunks(piece) {
        splitter.push(piece).expect("the stream is short");
        while let Some(event) = splitter.next_event() {
            events.push(event.to_vec());
        }
    }
    (events, splitter.rest())
}

/// A CR and its LF may be cut apart: the lines are the same.
fn line_feeds(event: &[u8]) -> Vec<u8> {
    let event = String::from_utf8_lossy(event);
    event.replace("\r\n", "\n").replace('\r', "\n").into_bytes()
}

/// The data of all events, by the standard's algorithm (WHATWG HTML §9.2.6).
fn dispatched(stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut buffer, mut has_data) = (Vec::new(), Vec::new(), false);
    for line in lines(stream) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            None => (&line[..], &b""[..]),
            Some(at) => (&line[..at], &line[at + 1..]),
        };
        if line.is_empty() {
            if has_data {
                buffer.pop();
                all.push(std::mem::take(&mut buffer));
            }
            has_data = false;
        } else if field == b"data" {
            buffer.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            buffer.push(b'\n');
            has_data = true;
        }
    }
    all
}

/// Whole lines, without their ends.
fn lines(stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut lines, mut line, mut bytes) = (Vec::new(), Vec::new(), stream.iter().peekable());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' | b'\n' => {
                if *byte == b'\r' {
                    bytes.next_if_eq(&&b'\n');
                }
                lines.push(std::mem::take(&mut line));
            }
            byte => line.push(*byte),
        }
    }
    lines
}

fn replace(event: &[u8], by: &[u8]) {
    let replaced = with_data(event, by);
    // Not first in a stream: a byte order mark is one only there.
    let (events, rest) = events(&[b"\n", &replaced[..]].concat(), replaced.len() + 1);
    assert_eq!((events.len(), rest), (2, 0), "still one event");
    let mut expected = by.to_vec();
    for byte in &mut expected {
        if *byte == b'\r' {
            *byte = b'\n'; // JSON has no line ends that mean anything.
        }
    }
    assert_eq!(data(&replaced), Some(expected));
    let others = |event: &[u8]| -> Vec<Vec<u8>> {
        let field = |line: &Vec<u8>| line.split(|byte| *byte == b':').next() == Some(b"data");
        let mut lines = lines(event);
        lines.retain(|line| !line.is_empty() && !field(line));
        lines
    };
    assert_eq!(others(event), others(&replaced), "other fields stay");
}
