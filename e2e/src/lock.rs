//! Advisory file locks between processes of the harness. The descriptor is
//! close-on-exec, so nothing that is started under a lock inherits it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::sh;

/// An exclusive lock on a file; released on drop.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock, waiting for whoever has it.
    pub fn acquire(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            sh::create_dir(folder)?;
        }
        loop {
            let lock = Self::open_locked(path)?;
            // Whoever had it may have removed the file: then this lock is on a
            // file that nobody else will find.
            if lock.is_current() {
                return Ok(lock);
            }
        }
    }

    fn open_locked(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                sh::say(format!("waiting for another process: {}", path.display()));
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    fn is_current(&self) -> bool {
        let held = self.file.metadata().map(|m| (m.dev(), m.ino()));
        let named = fs::metadata(&self.path).map(|m| (m.dev(), m.ino()));
        matches!((held, named), (Ok(a), Ok(b)) if a == b)
    }

    /// Removes the lock's file and releases it.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path)
            .with_context(|| format!("cannot remove the lock {}", self.path.display()))
    }
}
