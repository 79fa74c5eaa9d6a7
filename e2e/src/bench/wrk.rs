//! wrk (Debian's package): as many calls as there can be, over 64 connections.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::call::{Request, WRK_IDS};
use super::child::Guarded;
use crate::sh::{self, command};

/// Connections, each with one call at a time.
pub const CONNECTIONS: usize = 64;

/// What wrk counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Calls that were answered with 2xx.
    pub calls: u64,
    /// From the first to the last.
    pub duration: Duration,
}

/// Files that wrk reads.
#[derive(Debug)]
pub struct Wrk {
    folder: PathBuf,
}

impl Wrk {
    /// Writes the script to a folder.
    ///
    /// # Errors
    /// Where that cannot be done.
    pub fn new(folder: &Path) -> Result<Self> {
        sh::write(&folder.join("wrk.lua"), include_str!("wrk.lua"))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Calls for whole seconds. Where there are several tokens, none is used twice.
    ///
    /// # Errors
    /// Where a call was not answered with 2xx.
    pub fn run(
        &self,
        address: SocketAddr,
        request: &Request,
        tokens: &[String],
        seconds: u64,
        core: Option<usize>,
    ) -> Result<Counted> {
        let file = |name: &str| self.folder.join(name);
        sh::write(&file("request.lua"), lua(request)?)?;
        sh::write(&file("tokens"), tokens.join("\n"))?;
        let mut wrk = command("wrk", &["--threads", "1", "--timeout", "10s"]);
        wrk.args(["--connections", &CONNECTIONS.to_string()])
            .args(["--duration", &format!("{seconds}s")])
            .arg("--script")
            .arg(file("wrk.lua"))
            .arg(format!("http://{address}/mcp"))
            .arg("--")
            .args([file("request.lua"), file("tokens")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let shown = sh::show(&wrk);
        let mut running = Guarded::start(core, &mut wrk)?;
        let mut output = String::new();
        let mut pipe = running.child.stdout.take().context("no standard output")?;
        std::io::Read::read_to_string(&mut pipe, &mut output)?;
        let status = running.child.wait()?;
        ensure!(status.success(), "`{shown}` failed ({status}):\n{output}");
        let counted = parse(&output).with_context(|| format!("`{shown}` said:\n{output}"))?;
        let used = usize::try_from(counted.calls)? + CONNECTIONS;
        ensure!(
            tokens.len() == 1 || used <= tokens.len(),
            "{used} calls and only {} tokens: some were used twice",
            tokens.len()
        );
        Ok(counted)
    }
}

/// The parts of a request as a Lua table.
fn lua(request: &Request) -> Result<String> {
    let mut table = String::from("return {\n");
    for (name, text) in [
        ("before_token", &request.before_token),
        ("before_id", &request.before_id),
        ("after_id", &request.after_id),
    ] {
        // For printable ASCII and line ends, Rust and Lua escape alike.
        ensure!(text.is_ascii(), "not ASCII: {text}");
        writeln!(table, "  {name} = {text:?},")?;
    }
    writeln!(table, "  first_id = {WRK_IDS},\n}}")?;
    Ok(table)
}

fn parse(output: &str) -> Result<Counted> {
    let line = output.lines().find_map(|line| line.strip_prefix("RESULT "));
    let numbers: Vec<u64> = line
        .context("no result")?
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [calls, micros, status, socket, timeout] = numbers[..] else {
        anyhow::bail!("not five numbers");
    };
    ensure!(
        status == 0 && socket == 0 && timeout == 0,
        "of {calls} calls, {status} were not answered with 2xx, {socket} broke off, {timeout} took longer than 10 s"
    );
    ensure!(calls > 0 && micros > 0, "no call was answered");
    Ok(Counted {
        calls,
        duration: Duration::from_micros(micros),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_no_result() -> Result<()> {
        let good = Counted {
            calls: 10,
            duration: Duration::from_millis(2),
        };
        assert_eq!(parse("…\nRESULT 10 2000 0 0 0\n")?, good);
        for bad in [
            "",
            "RESULT 10 2000 1 0 0",
            "RESULT 0 2000 0 0 0",
            "RESULT 1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
