//! Running programs, and the small pieces of the file system that every part
//! of the harness needs. Every error names the command and the end of its
//! output, so that it can be repeated by hand.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Prints one line of progress. It goes to stderr: stdout belongs to answers.
pub fn say(message: impl AsRef<str>) {
    eprintln!("==> {}", message.as_ref());
}

/// A command from a program and its arguments.
pub fn command<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs a command to its end and returns its stdout; a failure is an error.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    succeed(&shown, &output)
}

/// The stdout of a finished command, or an error with the end of its stderr.
pub fn succeed(shown: &str, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let both = format!("{stdout}{stderr}");
    bail!(
        "`{shown}` failed ({}):\n{}",
        output.status,
        last_lines(&both, 30)
    );
}

/// Builds all programs of the workspace. Always all of them: a part would be
/// built with fewer features of what is shared, and so everything twice.
pub fn cargo_build(checkout: &Path) -> Result<()> {
    let mut build = command("cargo", &["build", "--release", "--workspace", "--bins"]);
    // Its progress goes where ours goes.
    let status = build
        .current_dir(checkout)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("`{}` failed ({status})", show(&build));
    }
    Ok(())
}

/// The command line as a person would type it.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// The last lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The last lines of a file; an unreadable file is an empty one.
pub fn tail(file: &Path, count: usize) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&bytes), count)
}

/// Reads a file, with its name in the error.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Writes a file and the folders above it.
pub fn write(file: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = file.parent() {
        create_dir(folder)?;
    }
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

/// Creates a folder and those above it.
pub fn create_dir(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Removes a folder and all that is in it; a missing one is fine.
pub fn remove_dir(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// SHA-256 over several pieces, each preceded by its length so that moving a
/// byte from one piece to the next changes the result; in hex.
pub fn digest<P: AsRef<[u8]>>(pieces: impl IntoIterator<Item = P>) -> String {
    let mut hash = Sha256::new();
    for piece in pieces {
        let piece = piece.as_ref();
        hash.update((piece.len() as u64).to_be_bytes());
        hash.update(piece);
    }
    hex(&hash.finalize())
}

/// Plain SHA-256 of one piece in hex.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes.as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_keeps_pieces_apart() {
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
        assert_eq!(digest(["ab", "c"]), digest(["ab", "c"]));
        assert_eq!(sha256("")[..8], *"e3b0c442");
    }

    #[test]
    fn last_lines_keeps_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
    }

    #[test]
    fn a_failed_command_shows_what_it_said() {
        let error = run(&mut command("sh", &["-c", "echo why >&2; exit 3"])).expect_err("fails");
        let text = format!("{error:#}");
        assert!(
            text.contains("why") && text.contains("exit status: 3"),
            "{text}"
        );
    }
}
