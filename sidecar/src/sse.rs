//! Server-sent events, as far as a proxy must read them (WHATWG HTML §9.2):
//! events are cut at blank lines, `data` lines are joined by newlines.

use bytes::{Buf, Bytes, BytesMut};

/// Largest event that is held for reading.
pub const MAX_EVENT: usize = 8 * 1024 * 1024;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: BytesMut,
    /// Where the line that is being read starts.
    line_start: usize,
    /// How far it has been looked at, so that no byte is looked at twice.
    position: usize,
    /// Whether the start of the stream has been looked at for a byte order mark.
    started: bool,
    /// Whether a line ended with CR and nothing has followed: an LF belongs to it.
    after_cr: bool,
}

/// An event is larger than [`MAX_EVENT`].
#[derive(Debug, thiserror::Error)]
#[error("an event of the server has more than {MAX_EVENT} bytes")]
pub struct TooLarge;

impl Splitter {
    /// Takes what came from the server.
    ///
    /// # Errors
    /// The event that is being read is too large.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLarge> {
        if self.buffer.len() + bytes.len() > MAX_EVENT {
            return Err(TooLarge);
        }
        self.buffer.extend_from_slice(bytes);
        if !self.started {
            // One mark at the start is ignored by clients (§9.2.5), so by us too.
            let seen = self.buffer.len().min(BOM.len());
            if self.buffer[..seen] != BOM[..seen] {
                self.started = true;
            } else if seen == BOM.len() {
                self.buffer.advance(BOM.len());
                self.started = true;
            }
        }
        Ok(())
    }

    /// The next whole event, with its blank line.
    pub fn next_event(&mut self) -> Option<Bytes> {
        if !self.started {
            return None;
        }
        let end = self.end_of_event()?;
        (self.line_start, self.position) = (0, 0);
        Some(self.buffer.split_to(end).freeze())
    }

    /// What is left when the stream ends: an event without its blank line is
    /// none (§9.2.6), so it is dropped.
    pub fn rest(&self) -> usize {
        self.buffer.remaining()
    }

    /// Lines end with LF, CR or CRLF. A CR counts at once, so that no event waits
    /// for what may never come; the LF of it that comes later is dropped, or is
    /// passed over within an event.
    fn end_of_event(&mut self) -> Option<usize> {
        while let Some(byte) = self.buffer.get(self.position) {
            if std::mem::take(&mut self.after_cr) && *byte == b'\n' {
                if self.position == 0 {
                    self.buffer.advance(1);
                } else {
                    self.position += 1;
                }
                self.line_start = self.position;
                continue;
            }
            let ending = match (byte, self.buffer.get(self.position + 1)) {
                (b'\n', _) => 1,
                (b'\r', Some(b'\n')) => 2,
                (b'\r', Some(_)) => 1,
                (b'\r', None) => {
                    self.after_cr = true;
                    1
                }
                _ => {
                    self.position += 1;
                    continue;
                }
            };
            let is_blank = self.position == self.line_start;
            self.position += ending;
            self.line_start = self.position;
            if is_blank {
                return Some(self.position);
            }
        }
        None
    }
}

/// Joins the data of an event; none where it has no `data` line.
pub fn data(event: &[u8]) -> Option<Vec<u8>> {
    let mut data: Option<Vec<u8>> = None;
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let Some(value) = line.strip_prefix(b"data") else {
            continue;
        };
        let value = match value.strip_prefix(b":") {
            Some(value) => value.strip_prefix(b" ").unwrap_or(value),
            None if value.is_empty() => value,
            None => continue, // Another field, such as `database`.
        };
        match &mut data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => data = Some(value.to_vec()),
        }
    }
    data
}

/// The event with other data; its other fields stay.
pub fn with_data(event: &[u8], data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 64);
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let is_data = line
            .strip_prefix(b"data")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b":"));
        if !line.is_empty() && !is_data {
            out.extend_from_slice(line);
            out.extend_from_slice(b"\n");
        }
    }
    for line in data.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.extend_from_slice(b"\n");
    }
    out.extend_from_slice(b"\n");
    out.freeze()
}

/// An event that carries one message, with an id by which it can be resumed after.
pub fn event_with_id(id: &str, data: &[u8]) -> Bytes {
    with_data(format!("event: message\nid: {id}\n").as_bytes(), data)
}

/// An event that carries one message.
pub fn event(data: &[u8]) -> Bytes {
    with_data(b"event: message\n", data)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<Bytes> {
        let mut splitter = Splitter::default();
        let mut events = Vec::new();
        for chunk in chunks {
            splitter.push(chunk).unwrap();
            while let Some(event) = splitter.next_event() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn lines_end_in_three_ways() {
        for text in [
            "id: 1\ndata: a\n\ndata: b\n\n",
            "id: 1\r\ndata: a\r\n\r\ndata: b\r\n\r\n",
            "id: 1\rdata: a\r\rdata: b\r\r\n",
        ] {
            let all = events(&[text.as_bytes()]);
            assert_eq!(all.len(), 2, "{text:?}");
            assert_eq!(data(&all[0]).unwrap(), b"a");
            assert_eq!(data(&all[1]).unwrap(), b"b");
        }
    }

    #[test]
    fn a_cr_ends_a_line_whatever_follows() {
        let mut splitter = Splitter::default();
        splitter.push(b"data: a\r\r").unwrap();
        assert_eq!(data(&splitter.next_event().unwrap()).unwrap(), b"a");
        assert_eq!((splitter.rest(), splitter.next_event()), (0, None));
        splitter.push(b"\n").unwrap();
        assert_eq!((splitter.next_event(), splitter.rest()), (None, 0));
        splitter.push(b"data: b\r").unwrap();
        assert_eq!(splitter.next_event(), None);
        splitter.push(b"\ndata: c\r").unwrap();
        assert_eq!(splitter.next_event(), None, "CR and LF are one");
        splitter.push(b"\n\n").unwrap();
        assert_eq!(data(&splitter.next_event().unwrap()).unwrap(), b"b\nc");
        assert_eq!(splitter.rest(), 0);
    }

    #[test]
    fn data_lines_are_joined_and_replaced() {
        let event = b"id: 3\ndata: {\"a\":\ndata:1}\ndatabase: x\n: comment\n\n";
        assert_eq!(data(event).unwrap(), b"{\"a\":\n1}");
        assert_eq!(
            &with_data(event, b"{}")[..],
            b"id: 3\ndatabase: x\n: comment\ndata: {}\n\n"
        );
        assert_eq!(data(b": keep-alive\n\n"), None);
    }

    #[test]
    fn a_byte_order_mark_hides_nothing_and_lines_stay_lines() {
        for chunks in [
            &[&b"\xef\xbb\xbfdata: a\n\n"[..]][..],
            &[b"\xef", b"\xbb\xbf", b"data: a\n\n"],
        ] {
            assert_eq!(data(&events(chunks)[0]).unwrap(), b"a");
        }
        let written = with_data(b"id: 1\n\n", b"{\n\"a\": 1}");
        assert_eq!(&written[..], b"id: 1\ndata: {\ndata: \"a\": 1}\n\n");
        assert_eq!(data(&written).unwrap(), b"{\n\"a\": 1}");
    }

    /// Byte by byte, a long line takes as many steps as it has bytes: this test
    /// does not end in reasonable time where each push looks at all of it again.
    #[test]
    fn a_long_line_is_looked_at_once() {
        let mut splitter = Splitter::default();
        for _ in 0..4_000_000 {
            splitter.push(b"a").unwrap();
            assert!(splitter.next_event().is_none());
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut splitter = Splitter::default();
        assert!(splitter.push(&vec![b'a'; MAX_EVENT]).is_ok());
        assert!(splitter.push(b"a").is_err());
    }

    proptest! {
        /// However the bytes are cut, the events have the same lines.
        #[test]
        fn cuts_do_not_matter(text in "([a-z:]{0,4}[\r\n]{0,3}){0,20}", cut in 0usize..60) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let whole: Vec<_> = bytes.iter().map(std::slice::from_ref).collect();
            let lines = |chunks: &[&[u8]]| -> Vec<_> {
                let text = |event: Bytes| String::from_utf8(event.to_vec()).unwrap();
                let ends = |text: String| text.replace("\r\n", "\n").replace('\r', "\n");
                events(chunks).into_iter().map(text).map(ends).collect()
            };
            prop_assert_eq!(lines(&[&bytes[..cut], &bytes[cut..]]), lines(&whole));
        }
    }
}
