//! The framing between shim and sidecar: the shim's side of the Unix socket
//! carries frames, so that an exit and the end of standard error can follow
//! the output of the process. The sidecar's side carries plain bytes for the
//! process's standard input.
//!
//! A frame is a kind (1 byte), a length (4 bytes, big-endian) and that many bytes.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest payload of a frame. The sidecar expects a hostile peer.
pub const MAX_PAYLOAD: usize = 64 * 1024;

const STDOUT: u8 = 1;
const EXIT: u8 = 2;

/// What the shim says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of the process's standard output.
    Stdout(Bytes),
    /// The process ended, or could not be started: what happened and the end
    /// of its standard error, for a person.
    Exit(String),
}

/// Writes a frame; a payload over [`MAX_PAYLOAD`] is cut into several.
///
/// # Errors
/// Where the peer is gone.
pub async fn write(out: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let (kind, payload) = match frame {
        Frame::Stdout(bytes) => (STDOUT, &bytes[..]),
        Frame::Exit(text) => (EXIT, &text.as_bytes()[..text.len().min(MAX_PAYLOAD)]),
    };
    for part in payload.chunks(MAX_PAYLOAD) {
        let length = u32::try_from(part.len()).map_err(io::Error::other)?;
        out.write_u8(kind).await?;
        out.write_u32(length).await?;
        out.write_all(part).await?;
    }
    out.flush().await
}

/// Reads a frame; none where the peer closed between two frames.
///
/// # Errors
/// Where the peer breaks the framing or the connection.
pub async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let invalid =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the shim sent {what}"));
    let mut kind = [0];
    if input.read(&mut kind).await? == 0 {
        return Ok(None);
    }
    let length = input.read_u32().await? as usize;
    if length > MAX_PAYLOAD {
        return Err(invalid("a frame that is too long"));
    }
    let mut payload = vec![0; length];
    input.read_exact(&mut payload).await?;
    match kind[0] {
        STDOUT => Ok(Some(Frame::Stdout(payload.into()))),
        EXIT => Ok(Some(Frame::Exit(
            String::from_utf8_lossy(&payload).into_owned(),
        ))),
        _ => Err(invalid("a frame of an unknown kind")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200_000), 0..4), exit in "[a-z ]{1,40}") {
            block_on(async {
                let mut wire = Vec::new();
                for part in &parts {
                    write(&mut wire, &Frame::Stdout(part.clone().into())).await.unwrap();
                }
                write(&mut wire, &Frame::Exit(exit.clone())).await.unwrap();
                let (mut input, mut output, mut last) = (&wire[..], Vec::new(), None);
                while let Some(frame) = read(&mut input).await.unwrap() {
                    match frame {
                        Frame::Stdout(bytes) => output.extend_from_slice(&bytes),
                        Frame::Exit(text) => last = Some(text),
                    }
                }
                assert_eq!(output, parts.concat());
                assert_eq!(last, Some(exit));
            });
        }

        #[test]
        fn noise_never_panics_and_never_reserves_much(noise in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = block_on(read(&mut &noise[..]));
        }
    }
}
