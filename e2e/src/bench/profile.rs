//! Where the sidecar's time goes: perf (Debian's package) while wrk calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::child::Guarded;
use super::targets::{Bench, Target};
use super::wrk::Wrk;
use crate::sh::{self, command, run};

/// Samples per second of time on a core.
const FREQUENCY: &str = "2999";
/// Functions that are shown.
const FUNCTIONS: usize = 40;

/// What a profile is made of.
const TARGETS: [Target; 4] = [
    Target::Session,
    Target::Modern,
    Target::NewTokens,
    Target::Stdio,
];

/// One function's share of a process.
#[derive(Debug, PartialEq)]
struct Share<'a> {
    percent: f64,
    thread: &'a str,
    in_kernel: bool,
    function: &'a str,
}

/// Profiles the sidecar in each way to call it, and prints what takes longest.
///
/// # Errors
/// Where perf cannot watch a process here.
pub fn run_all(bench: &Bench, wrk: &Wrk, seconds: u64) -> Result<()> {
    for target in TARGETS {
        let data = bench.folder.join("perf.data");
        let calls =
            record(bench, wrk, target, seconds, &data).with_context(|| target.name().to_owned())?;
        let listing = run(command("perf", &["report", "--no-children", "--stdio"])
            .args(["-g", "none", "--field-separator", ";"])
            .args(["--fields", "overhead,comm,sym", "--input"])
            .arg(&data))?;
        let shares: Vec<Share> = listing.lines().filter_map(parse).collect();
        ensure!(!shares.is_empty(), "perf took no sample");
        println!("{}: {calls} calls", target.name());
        print!("{}", shown(&shares));
    }
    Ok(())
}

fn record(bench: &Bench, wrk: &Wrk, target: Target, seconds: u64, data: &Path) -> Result<u64> {
    let started = bench.start(target)?;
    let proxy = started.proxy.as_ref().context("no process")?;
    let mut perf = command("perf", &["record", "--quiet", "--event", "cpu-clock"]);
    perf.args(["--freq", FREQUENCY, "--pid", &proxy.child.id().to_string()])
        .args(["--output", &data.display().to_string()])
        .args(["--", "sleep", &seconds.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let shown = sh::show(&perf);
    let mut perf = Guarded::start(bench.cores.load, &mut perf)?;
    let core = bench.cores.load;
    let counted = wrk.run(
        started.address,
        &started.request,
        started.for_wrk(),
        seconds,
        core,
    )?;
    let status = perf.child.wait()?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(counted.calls)
}

fn parse(line: &str) -> Option<Share<'_>> {
    let mut fields = line.splitn(3, ';');
    let percent = fields.next()?.trim().trim_end_matches('%').parse().ok()?;
    let thread = fields.next()?.trim();
    let (space, function) = fields.next()?.trim().split_once(' ')?;
    Some(Share {
        percent,
        thread,
        in_kernel: space == "[k]",
        function: function.trim(),
    })
}

/// The crate of a function, as far as its name tells.
fn origin(share: &Share) -> String {
    let name = share.function.trim_start_matches(['<', '&', '*', '(']);
    let name = name.strip_prefix("mut ").unwrap_or(name);
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = name.find(|c| !word(c)).unwrap_or(name.len());
    match name[end..].starts_with("::") {
        _ if share.in_kernel => "the kernel".into(),
        true => name[..end].into(),
        false => "libc and the like".into(),
    }
}

fn shown(shares: &[Share]) -> String {
    let mut text = String::new();
    let mut sums = |what: &str, key: &dyn Fn(&Share) -> String| {
        let mut sums = BTreeMap::<String, f64>::new();
        for share in shares {
            *sums.entry(key(share)).or_default() += share.percent;
        }
        let mut sums: Vec<_> = sums.into_iter().filter(|(_, sum)| *sum >= 0.3).collect();
        sums.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let sums: Vec<_> = sums
            .iter()
            .map(|(key, sum)| format!("{key} {sum:.1} %"))
            .collect();
        text += &format!("  by {what}: {}\n", sums.join(", "));
    };
    sums("thread", &|share| share.thread.to_owned());
    sums("origin", &origin);
    let mut functions: Vec<&Share> = shares.iter().collect();
    functions.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    for share in functions.iter().take(FUNCTIONS) {
        let space = if share.in_kernel { "kernel" } else { "user" };
        text += &format!(
            "  {:>6.2} %  {:<16} {space:<7} {}\n",
            share.percent, share.thread, share.function
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_perf_are_read() {
        let line =
            "  3.79%;tokio-rt-worker;[.] <sidecar::front::Held as http_body::Body>::poll_frame";
        let share = parse(line).expect("a share");
        assert_eq!(
            (share.percent, share.thread, share.in_kernel),
            (3.79, "tokio-rt-worker", false)
        );
        assert_eq!(origin(&share), "sidecar");
        let of = |line| parse(line).map(|share| origin(&share));
        assert_eq!(of("0.5%;a;[k] tcp_ack").as_deref(), Some("the kernel"));
        assert_eq!(
            of("0.5%;a;[.] _int_malloc").as_deref(),
            Some("libc and the like")
        );
        assert_eq!(parse("# Samples: 1K"), None);
        assert_eq!(parse(""), None);
    }
}
