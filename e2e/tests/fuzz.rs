//! The fuzz targets in `fuzz/`, each for a few seconds from its kept corpus.
//! `TOOLWARD_FUZZ_RUNS` asks for so many executions instead. They are libFuzzer
//! with the compiler's coverage counters, which the pinned compiler can do.
#![allow(missing_docs)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::checkout;
use e2e::sh::{command, create_dir, last_lines, remove_dir, run, show};

/// How long a target runs, in seconds.
const SECONDS: &str = "-max_total_time=6";
/// Counters for each edge and traces of comparisons, for libFuzzer.
const COVERAGE: &str = "-Dwarnings -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Beside the other builds: what is shared would be built anew each time.
fn build_folder(checkout: &Path) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target
        .unwrap_or_else(|| checkout.join("target"))
        .join("fuzz")
}

fn build(checkout: &Path) -> Result<PathBuf> {
    let folder = build_folder(checkout);
    run(
        command("cargo", &["build", "--release", "--locked", "--bins"])
            .current_dir(checkout.join("fuzz"))
            .env("CARGO_TARGET_DIR", &folder)
            .env("RUSTFLAGS", COVERAGE),
    )?;
    Ok(folder.join("x86_64-unknown-linux-gnu/release"))
}

/// The number after `label` in the fuzzer's output.
fn number(output: &str, label: &str) -> Result<u64> {
    let after = output.split(label).nth(1).unwrap_or_default();
    let digits: String = after
        .trim_start()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits
        .parse()
        .with_context(|| format!("no {label}: {}", last_lines(output, 20)))
}

/// Runs one target from its corpus; what it finds is kept for one run only.
fn fuzz(target: &str) -> Result<()> {
    let checkout = checkout::root()?;
    let program = build(&checkout)?.join(target);
    let kept = checkout.join("fuzz/corpus").join(target);
    let inputs = fs::read_dir(&kept)?.count() as u64;
    let work = build_folder(&checkout).join("work").join(target);
    remove_dir(&work)?;
    create_dir(&work)?;

    let mut fuzzer = Command::new(program);
    fuzzer.args(["-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=60"]);
    fuzzer.arg(match env::var("TOOLWARD_FUZZ_RUNS") {
        Ok(runs) => format!("-runs={runs}"),
        Err(_) => SECONDS.into(),
    });
    fuzzer.arg(format!(
        "-artifact_prefix={}/failed-",
        build_folder(&checkout).display()
    ));
    let dictionary = checkout.join(format!("fuzz/{target}.dict"));
    if dictionary.is_file() {
        fuzzer.arg(format!("-dict={}", dictionary.display()));
    }
    fuzzer.args([&work, &kept]);
    let finished = fuzzer
        .output()
        .with_context(|| format!("cannot start {}", show(&fuzzer)))?;
    let output = String::from_utf8_lossy(&finished.stderr);
    ensure!(
        finished.status.success(),
        "{}\n{}",
        show(&fuzzer),
        last_lines(&output, 60)
    );

    let runs = number(&output, "stat::number_of_executed_units:")?;
    let coverage = number(&output, "DONE   cov:")?;
    println!("{target}: {runs} executions from {inputs} kept inputs, {coverage} edges, no fault");
    ensure!(
        inputs > 0 && runs > inputs,
        "{target}: only {runs} executions"
    );
    // Without the counters there are none, and nothing guides it.
    ensure!(coverage > 100, "{target}: only {coverage} edges were seen");
    Ok(())
}

#[test]
fn jsonrpc() -> Result<()> {
    fuzz("jsonrpc")
}

#[test]
fn sse() -> Result<()> {
    fuzz("sse")
}

#[test]
fn frame() -> Result<()> {
    fuzz("frame")
}
