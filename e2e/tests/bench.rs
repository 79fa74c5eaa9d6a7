//! The measurement of `make bench` measures: nothing here says how fast.
#![allow(missing_docs)]

use anyhow::{Context, Result, ensure};
use e2e::bench::{Options, Target, measure};
use e2e::{checkout, laptop};

#[test]
fn every_target_answers_every_call() -> Result<()> {
    let sidecar = laptop::sidecar(&checkout::root()?)?;
    let options = Options {
        rounds: 1,
        seconds: 1,
        profile: false,
        sidecar: None,
    };
    let report = measure(&sidecar, &options)?;
    let text = report.to_string();
    for target in Target::ALL {
        let row = report.rows.iter().find(|row| row.target == target);
        let Some(row) = row else {
            // Where there is no nginx, the rest has to be there all the same.
            ensure!(target == Target::Nginx, "{target:?} was not measured");
            ensure!(text.contains("unknown"), "{text}");
            continue;
        };
        ensure!(text.contains(target.name()), "{text}");
        let [sample] = row.samples[..] else {
            anyhow::bail!("{target:?}: {} rounds", row.samples.len());
        };
        // `measure` has checked that each answer is right.
        ensure!(sample.checked == 1000 && sample.calls > 0, "{sample:?}");
        ensure!(sample.rate > 0.0 && sample.rate < 1e7, "{sample:?}");
        ensure!(0.0 < sample.p50 && sample.p50 <= sample.p99, "{sample:?}");
        if target == Target::Direct {
            ensure!(sample.proxy.is_none(), "{sample:?}");
            continue;
        }
        let proxy = sample.proxy.context("nothing of the process in front")?;
        ensure!(0.0 < proxy.cpu && proxy.cpu < 1e6, "{target:?}: {proxy:?}");
        ensure!(
            0.0 < proxy.idle && proxy.idle <= proxy.loaded,
            "{target:?}: {proxy:?}"
        );
        ensure!(proxy.start > 0.0, "{target:?}: {proxy:?}");
        let calls = sample.checked as u64 + sample.calls;
        ensure!(
            target == Target::Nginx || proxy.audited >= calls,
            "{target:?}: {calls} calls, {proxy:?}"
        );
    }
    Ok(())
}
