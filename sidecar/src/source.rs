//! Reads configuration again when its files change.
//!
//! The kubelet swaps a mounted ConfigMap by renaming a symbolic link, so a look
//! at the file's identity (followed through links) sees each change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How often files are looked at. A look is one `stat` each.
const POLL: Duration = Duration::from_millis(100);

type Identity = Option<(u64, u64, i64, i64)>;

fn identity(path: &Path) -> Identity {
    let of = fs::metadata(path).ok()?;
    Some((
        of.dev(),
        of.ino(),
        of.mtime() * 1_000_000_000 + of.mtime_nsec(),
        i64::try_from(of.size()).unwrap_or(i64::MAX),
    ))
}

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// It cannot be read, or is larger.
pub fn read(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(max as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("larger than {max} bytes"),
        ));
    }
    Ok(bytes)
}

/// Calls `changed` whenever one of the files is another than before; for as
/// long as the process lives.
pub async fn watch(files: Vec<PathBuf>, mut changed: impl FnMut()) {
    let look = || files.iter().map(|file| identity(file)).collect::<Vec<_>>();
    let mut known: Vec<Identity> = Vec::new();
    loop {
        let now = look();
        if now != known {
            known = now;
            changed();
        }
        tokio::time::sleep(POLL).await;
    }
}
