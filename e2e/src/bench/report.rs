//! What was measured, as medians over the rounds with their spread, and beside
//! it what it is to be.

use std::fmt::{self, Write as _};

use super::targets::Target;

/// One target in one round.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Calls at a fixed rate that were answered, each answer checked.
    pub checked: usize,
    /// Calls of wrk that were answered with 2xx.
    pub calls: u64,
    /// Calls per second, as many as there can be.
    pub rate: f64,
    /// Latency at a fixed rate, in milliseconds.
    pub p50: f64,
    /// The same.
    pub p99: f64,
    /// Of the process in front.
    pub proxy: Option<Proxy>,
}

/// What the process in front takes.
#[derive(Clone, Copy, Debug)]
pub struct Proxy {
    /// Microseconds on a core for each call of wrk.
    pub cpu: f64,
    /// Share of a core while wrk called.
    pub busy: f64,
    /// Resident, in MiB: after the first answer.
    pub idle: f64,
    /// The most so far, after all calls.
    pub loaded: f64,
    /// From its start to the first answer to a call, in milliseconds.
    pub start: f64,
    /// Lines of its audit log, where it has one.
    pub audited: u64,
}

/// All rounds of a target.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub target: Target,
    /// Round by round.
    pub samples: Vec<Sample>,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order of [`Target::ALL`]; without nginx where there is none.
    pub rows: Vec<Row>,
    /// Share of the cores that other processes had.
    pub others: f64,
}

/// A figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => *values.get(middle)?,
            _ => f64::midpoint(*values.get(middle.checked_sub(1)?)?, *values.get(middle)?),
        };
        Some(Self {
            min: *values.first()?,
            median,
            max: *values.last()?,
        })
    }
}

/// What a figure of a sample is, beside the sample of nothing in front.
type Figure = fn(&Sample, &Sample) -> Option<f64>;

const RATE: Figure = |sample, _| Some(sample.rate);
const CPU: Figure = |sample, _| Some(sample.proxy?.cpu);
const ADDED_P50: Figure = |sample, direct| Some(sample.p50 - direct.p50);
const ADDED_P99: Figure = |sample, direct| Some(sample.p99 - direct.p99);
const IDLE: Figure = |sample, _| Some(sample.proxy?.idle);
const LOADED: Figure = |sample, _| Some(sample.proxy?.loaded);
const START: Figure = |sample, _| Some(sample.proxy?.start);

/// What a figure has to be.
struct Aim {
    target: Target,
    what: &'static str,
    figure: Figure,
    /// In parts of nginx's figure, or as it is.
    of_nginx: bool,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Aim {
    const fn of_nginx(target: Target, what: &'static str, figure: Figure, bound: Bound) -> Self {
        Self {
            target,
            what,
            figure,
            of_nginx: true,
            bound,
        }
    }

    const fn plain(target: Target, what: &'static str, figure: Figure, bound: Bound) -> Self {
        Self {
            target,
            what,
            figure,
            of_nginx: false,
            bound,
        }
    }
}

use Bound::{AtLeast, AtMost};
use Target::{Modern, NewTokens, Session, Stdio};

/// The stdio bridge that was the fastest, npm's `mcp-proxy` with a session, made
/// 2,870 calls/s on the machine where nginx made 48,300: ten times that is 0.59
/// of nginx.
const AIMS: [Aim; 17] = [
    Aim::of_nginx(Session, "CPU per call", CPU, AtMost(1.5)),
    Aim::of_nginx(Modern, "CPU per call", CPU, AtMost(1.5)),
    Aim::of_nginx(NewTokens, "CPU per call", CPU, AtMost(4.5)),
    Aim::of_nginx(Session, "calls/s", RATE, AtLeast(0.65)),
    Aim::of_nginx(Modern, "calls/s", RATE, AtLeast(0.65)),
    Aim::of_nginx(Stdio, "calls/s", RATE, AtLeast(0.59)),
    Aim::of_nginx(Session, "added p50", ADDED_P50, AtMost(1.5)),
    Aim::of_nginx(Modern, "added p50", ADDED_P50, AtMost(1.5)),
    Aim::of_nginx(Session, "added p99", ADDED_P99, AtMost(1.5)),
    Aim::of_nginx(Modern, "added p99", ADDED_P99, AtMost(1.5)),
    Aim::plain(Session, "MiB idle", IDLE, AtMost(8.0)),
    Aim::plain(Modern, "MiB idle", IDLE, AtMost(8.0)),
    Aim::plain(Session, "MiB under load", LOADED, AtMost(15.0)),
    Aim::plain(Modern, "MiB under load", LOADED, AtMost(15.0)),
    Aim::plain(Stdio, "MiB under load", LOADED, AtMost(15.0)),
    Aim::plain(Session, "ms to the first answer", START, AtMost(20.0)),
    Aim::plain(Modern, "ms to the first answer", START, AtMost(20.0)),
];

impl Report {
    fn samples(&self, target: Target) -> &[Sample] {
        let row = self.rows.iter().find(|row| row.target == target);
        row.map(|row| row.samples.as_slice()).unwrap_or_default()
    }

    fn spread(&self, target: Target, figure: Figure) -> Option<Spread> {
        let pairs = self
            .samples(target)
            .iter()
            .zip(self.samples(Target::Direct));
        Spread::of(pairs.filter_map(|(sample, direct)| figure(sample, direct)))
    }

    /// A figure in parts of nginx's, round by round: what disturbs a round
    /// disturbs both.
    fn ratio(&self, target: Target, figure: Figure) -> Option<Spread> {
        let direct = self.samples(Target::Direct);
        let (ours, nginx) = (self.samples(target), self.samples(Target::Nginx));
        let ratios = ours
            .iter()
            .zip(nginx)
            .zip(direct)
            .filter_map(|((ours, nginx), direct)| {
                let (ours, nginx) = (figure(ours, direct)?, figure(nginx, direct)?);
                // Nginx adds nothing where the noise is larger than what it adds.
                (nginx > 0.0).then_some(ours / nginx)
            });
        Spread::of(ratios)
    }

    fn table(&self, text: &mut String) -> fmt::Result {
        writeln!(
            text,
            "{:<22}{:>10}{:>8}{:>13}{:>8}{:>7}{:>9}{:>9}{:>9}{:>8}{:>9}{:>8}{:>13}{:>10}",
            "",
            "calls/s",
            "×nginx",
            "CPU µs/call",
            "×nginx",
            "busy",
            "p50 ms",
            "p99 ms",
            "+p50",
            "×nginx",
            "+p99",
            "×nginx",
            "MiB",
            "start ms"
        )?;
        for row in &self.rows {
            let median = |figure| self.spread(row.target, figure).map(|spread| spread.median);
            let ratio = |figure| self.ratio(row.target, figure).map(|spread| spread.median);
            let is_proxy = row.target != Target::Direct;
            let added = |figure| median(figure).filter(|_| is_proxy);
            let ratio = |figure| ratio(figure).filter(|_| is_proxy);
            writeln!(
                text,
                "{:<22}{:>10}{:>8}{:>13}{:>8}{:>7}{:>9}{:>9}{:>9}{:>8}{:>9}{:>8}{:>13}{:>10}",
                row.target.name(),
                show(median(RATE), 0),
                show(
                    median(RATE)
                        .and(self.ratio(row.target, RATE))
                        .map(|r| r.median),
                    2
                ),
                show(median(CPU), 1),
                show(ratio(CPU), 2),
                show(median(|sample, _| Some(100.0 * sample.proxy?.busy)), 0),
                show(median(|sample, _| Some(sample.p50)), 3),
                show(median(|sample, _| Some(sample.p99)), 3),
                show(added(ADDED_P50), 3),
                show(ratio(ADDED_P50), 2),
                show(added(ADDED_P99), 3),
                show(ratio(ADDED_P99), 2),
                format!("{} → {}", show(median(IDLE), 1), show(median(LOADED), 1)),
                show(median(START), 1),
            )?;
        }
        Ok(())
    }

    fn aims(&self, text: &mut String) -> fmt::Result {
        for aim in &AIMS {
            let spread = if aim.of_nginx {
                self.ratio(aim.target, aim.figure)
            } else {
                self.spread(aim.target, aim.figure)
            };
            let unit = if aim.of_nginx { " × nginx" } else { "" };
            let (sign, bound) = match aim.bound {
                AtMost(bound) => ('≤', bound),
                AtLeast(bound) => ('≥', bound),
            };
            let verdict = match (spread, &aim.bound) {
                (None, _) => "unknown",
                (Some(spread), AtMost(bound)) if spread.median <= *bound => "met",
                (Some(spread), AtLeast(bound)) if spread.median >= *bound => "met",
                _ => "MISSED",
            };
            let measured = spread.map_or_else(
                || "–".to_owned(),
                |Spread { min, median, max }| format!("{median:.2} ({min:.2} to {max:.2})"),
            );
            writeln!(
                text,
                "  {verdict:<8} {:<20} {:<23} {measured:<24} aim {sign} {bound}{unit}",
                aim.target.name(),
                aim.what
            )?;
        }
        Ok(())
    }

    /// How far apart the rounds of nothing and of nginx are: they have not
    /// changed, so that is the machine.
    fn noise(&self, text: &mut String) -> fmt::Result {
        let others = 100.0 * self.others;
        writeln!(text, "  other processes had {others:.0} % of the cores")?;
        if others > 5.0 {
            text.push_str("  That is much: CPU per call still means something, calls/s and p99 mean little.\n");
        }
        for (target, what, figure) in [
            (Target::Direct, "calls/s", RATE),
            (Target::Nginx, "calls/s", RATE),
            (Target::Nginx, "CPU µs/call", CPU),
            (Target::Nginx, "added p50, ms", ADDED_P50),
            (Target::Nginx, "added p99, ms", ADDED_P99),
        ] {
            if let Some(Spread { min, median, max }) = self.spread(target, figure) {
                let percent = 100.0 * (max - min) / median;
                writeln!(
                    text,
                    "  {:<20} {what:<15} {min:.2} to {max:.2} ({percent:.0} % of the median)",
                    target.name()
                )?;
            }
        }
        Ok(())
    }
}

fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.digits$}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.table(&mut text)?;
        let rounds = self.rows.first().map_or(0, |row| row.samples.len());
        writeln!(
            text,
            "\nMedians over {rounds} rounds; a ratio is the median of the rounds' ratios. +p50, +p99: added to what nothing in front has in the same round."
        )?;
        text.push_str("\nAims, with the spread over the rounds:\n");
        self.aims(&mut text)?;
        text.push_str("\nNoise of this machine, over the rounds:\n");
        self.noise(&mut text)?;
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(target: Target, cpus: &[f64]) -> Row {
        let sample = |cpu: &f64| Sample {
            checked: 1,
            calls: 1,
            rate: 1e6 / cpu,
            p50: 0.1,
            p99: 0.2,
            proxy: Some(Proxy {
                cpu: *cpu,
                busy: 1.0,
                idle: 5.0,
                loaded: 6.0,
                start: 10.0,
                audited: 1,
            }),
        };
        Row {
            target,
            samples: cpus.iter().map(sample).collect(),
        }
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let report = Report {
            others: 0.0,
            rows: vec![
                row(Target::Direct, &[10.0, 20.0, 10.0]),
                row(Target::Nginx, &[20.0, 40.0, 20.0]),
                row(Session, &[40.0, 80.0, 50.0]),
            ],
        };
        let ratio = report.ratio(Session, CPU);
        let expected = Spread {
            min: 2.0,
            median: 2.0,
            max: 2.5,
        };
        assert_eq!(ratio, Some(expected));
        let text = report.to_string();
        let verdict = |of: &str, what: &str| {
            let line = text
                .lines()
                .find(|line| line.contains(of) && line.contains(what));
            line.and_then(|line| line.split_whitespace().next().map(str::to_owned))
        };
        assert_eq!(
            verdict(Session.name(), "CPU per call").as_deref(),
            Some("MISSED")
        );
        assert_eq!(verdict(Session.name(), "MiB idle").as_deref(), Some("met"));
        assert_eq!(
            verdict(Modern.name(), "MiB idle").as_deref(),
            Some("unknown")
        );
    }

    #[test]
    fn medians() {
        let median = |values: &[f64]| Spread::of(values.iter().copied()).map(|s| s.median);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
