//! The conformance suite of MCP: what the fixture server passes by itself, it
//! passes behind the sidecar. Neither root nor a cluster is needed.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::conformance::{Score, Suite, TASKS};
use e2e::laptop::{self, Running, free_port};
use e2e::relay::Relay;
use e2e::sh::{self, command};
use e2e::{checkout, wait_for};
use futures::{StreamExt, TryStreamExt, stream};

/// Revisions, with how many scenarios each requires.
const REVISIONS: [(&str, usize); 2] = [("2025-11-25", 30), ("2026-07-28", 37)];
const MODERN: &str = "2026-07-28";
/// Required here though the suite only reports them.
const HEADERS: [&str; 2] = [
    "http-header-validation",
    "http-custom-header-server-validation",
];
const DNS_REBINDING: &str = "dns-rebinding-protection";
/// How many runs at a time: scenarios have time limits of their own, some of
/// them well below a second.
const AT_ONCE: usize = 2;
/// How often a scenario that was lost is run again, with nothing beside it: some
/// of those limits are shorter than a process takes to start on a loaded machine.
const AGAIN: usize = 3;
/// For so many lost scenarios of a run the messages are shown.
const SHOWN: usize = 2;

/// How the suite reaches the fixture server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Direct,
    Http { token: bool },
    Stdio { token: bool },
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Direct,
        Self::Http { token: false },
        Self::Http { token: true },
        Self::Stdio { token: false },
        Self::Stdio { token: true },
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Http { token: false } => "http-anonymous",
            Self::Http { token: true } => "http-required",
            Self::Stdio { token: false } => "stdio-anonymous",
            Self::Stdio { token: true } => "stdio-required",
        }
    }
}

/// A server to be scored. Everything that was started for it ends with it.
struct Target {
    url: String,
    _relay: Option<Relay>,
    _processes: Vec<Running>,
}

/// What one way came to.
struct Outcome {
    way: Way,
    target: Target,
    /// In the order of `REVISIONS`.
    scores: Vec<Score>,
}

struct Lab {
    suite: Suite,
    sidecar: PathBuf,
    /// Configurations, and the results of all runs; it stays when the test fails.
    folder: PathBuf,
}

impl Lab {
    fn new() -> Result<Self> {
        let checkout = checkout::root()?;
        let name = format!("toolward-conformance-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        sh::remove_dir(&folder)?;
        sh::create_dir(&folder)?;
        Ok(Self {
            suite: Suite::ensure(&checkout)?,
            sidecar: laptop::sidecar(&checkout)?,
            folder,
        })
    }

    async fn score(&self, way: Way) -> Result<Outcome> {
        let target = self.start(way).await?;
        let mut scores = Vec::new();
        for (revision, _) in REVISIONS {
            let folder = self.folder.join(format!("{}-{revision}", way.name()));
            scores.push(self.suite.score(&target.url, revision, &folder).await?);
        }
        Ok(Outcome {
            way,
            target,
            scores,
        })
    }

    async fn start(&self, way: Way) -> Result<Target> {
        match way {
            Way::Direct => {
                let (url, server) = self.http_server().await?;
                Ok(Target {
                    url,
                    _relay: None,
                    _processes: vec![server],
                })
            }
            Way::Http { token } => {
                let (upstream, server) = self.http_server().await?;
                let arguments = ["--upstream", &upstream];
                self.guarded(way, token, &arguments, vec![server]).await
            }
            Way::Stdio { token } => {
                let [python, script] = &self.suite.fixture();
                let arguments = ["--", python, script, "stdio"];
                self.guarded(way, token, &arguments, vec![]).await
            }
        }
    }

    /// Each way has a server of its own: what it tells its subscribers, it
    /// tells those of one run.
    async fn http_server(&self) -> Result<(String, Running)> {
        let port = free_port()?.to_string();
        let [python, script] = &self.suite.fixture();
        let mut server = command(python, &[script, "http", "--port", &port]);
        let (name, value) = self.suite.environment();
        let server = Running::start(server.env(name, value))?;
        let url = format!("http://127.0.0.1:{port}/mcp");
        wait_for("the fixture server", Duration::from_secs(60), || async {
            reqwest::get(&url).await.map(drop).context("not yet")
        })
        .await?;
        Ok((url, server))
    }

    async fn guarded(
        &self,
        way: Way,
        token: bool,
        arguments: &[&str],
        mut processes: Vec<Running>,
    ) -> Result<Target> {
        let config = self.folder.join(format!("{}.yaml", way.name()));
        let (mode, dev_token): (_, &[&str]) = match token {
            true => ("Required", &["--dev-token", "conformance"]),
            false => ("Anonymous", &[]),
        };
        sh::write(&config, CONFIG.replace("MODE", mode))?;
        let arguments = [dev_token, arguments].concat();
        let mut run = laptop::run(&self.sidecar, &config, &arguments);
        let (name, value) = self.suite.environment();
        let mut running = Running::start(run.env(name, value))?;
        let url = laptop::url(&mut running)?;
        let relay = match token {
            true => {
                let token = laptop::caller(&mut running)?.token;
                Some(Relay::start(&url, Some(&token)).await?)
            }
            false => None,
        };
        processes.push(running);
        Ok(Target {
            url: relay.as_ref().map_or(url, |relay| relay.url.clone()),
            _relay: relay,
            _processes: processes,
        })
    }

    /// Of the scenarios that were lost, those that are lost again and again.
    async fn lost<'s>(
        &self,
        outcome: &Outcome,
        revision: &str,
        lost: BTreeSet<&'s str>,
    ) -> Result<BTreeSet<&'s str>> {
        let mut for_good = BTreeSet::new();
        for scenario in lost {
            let mut has_passed = false;
            for again in 1..=AGAIN {
                let name = format!("{}-{revision}-{scenario}-{again}", outcome.way.name());
                let (url, folder) = (&outcome.target.url, self.folder.join(name));
                let score = self
                    .suite
                    .scenario(url, revision, scenario, &folder)
                    .await?;
                has_passed = score.passed().contains(scenario);
                if has_passed {
                    // A fault that comes and goes must not go unseen.
                    let way = outcome.way.name();
                    writeln!(
                        std::io::stderr(),
                        "{way} {revision} {scenario}: lost beside others, passed alone ({again} of {AGAIN})"
                    )?;
                    break;
                }
            }
            if !has_passed {
                for_good.insert(scenario);
            }
        }
        Ok(for_good)
    }

    /// What failed in scenarios, and what went over the wire in some of them.
    async fn explain(
        &self,
        outcome: &Outcome,
        revision: usize,
        lost: &BTreeSet<&str>,
    ) -> Result<String> {
        let (revision, score) = (REVISIONS[revision].0, &outcome.scores[revision]);
        let mut told = String::new();
        for (number, scenario) in lost.iter().enumerate() {
            let complaint = score.complaint(scenario);
            told += &format!(
                "{} {revision} {scenario}:\n{complaint}\n",
                outcome.way.name()
            );
            if number < SHOWN {
                // The relay of the run, if any, has added the token already.
                let recorder = Relay::start(&outcome.target.url, None).await?;
                let folder = self.folder.join("recorded");
                self.suite
                    .scenario(&recorder.url, revision, scenario, &folder)
                    .await?;
                told += &recorder.record();
            }
        }
        Ok(told)
    }
}

/// Allows everything: what is lost, policy has not taken away.
const CONFIG: &str = r#"
apiVersion: toolward.dev/v1alpha1
kind: McpServer
metadata: {name: conformance}
spec:
  deployment: {image: none, command: [none]}
  transport: {type: Stdio}
  authentication: {mode: MODE}
---
apiVersion: toolward.dev/v1alpha1
kind: McpToolPolicy
metadata: {name: everything}
spec:
  targetRefs: [{name: conformance}]
  rules:
    - {name: everything, effect: Allow, from: [{everyone: true}], tools: ["*"], prompts: ["*"], resources: ["**"]}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_passes_it_passes_behind_the_sidecar() -> Result<()> {
    let lab = Lab::new()?;
    let outcomes: Vec<Outcome> = stream::iter(Way::ALL)
        .map(|way| lab.score(way))
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    print(&lab.suite, &outcomes)?;
    let direct = &outcomes[0];
    let mut wrong = String::new();
    for (index, (revision, count)) in REVISIONS.into_iter().enumerate() {
        let required = lab.suite.required(revision)?;
        ensure!(required.len() == count, "{revision}: {required:?}");
        let required: BTreeSet<&str> = required.iter().map(String::as_str).collect();
        let run = direct.scores[index].run();
        let expected: BTreeSet<&str> = &run - &TASKS.into();
        ensure!(expected.is_superset(&required), "{revision}: {expected:?}");
        // A list that says too much would hide what is lost.
        let passed = direct.scores[index].passed();
        let tasks: BTreeSet<&str> = &run & &TASKS.into();
        ensure!(passed.is_disjoint(&tasks), "{revision}: {passed:?}");
        ensure!(expected.contains(DNS_REBINDING), "{revision}: {run:?}");
        if revision == MODERN {
            ensure!(expected.is_superset(&HEADERS.into()), "{run:?}");
        }
        for outcome in &outcomes {
            let lost = &expected - &outcome.scores[index].passed();
            let lost = lab.lost(outcome, revision, lost).await?;
            wrong += &lab.explain(outcome, index, &lost).await?;
        }
    }
    ensure!(
        wrong.is_empty(),
        "{wrong}\nResults are in {}",
        lab.folder.display()
    );
    sh::remove_dir(&lab.folder)
}

/// Prints how many scenarios passed. Not by `eprintln!`, which a test that
/// passes would keep to itself.
fn print(suite: &Suite, outcomes: &[Outcome]) -> Result<()> {
    let mut table = format!("\n{:<18}", "scenarios passed");
    for (revision, _) in REVISIONS {
        table += &format!("{revision:>12} required, of all");
    }
    for Outcome { way, scores, .. } in outcomes {
        table += &format!("\n{:<18}", way.name());
        for (score, (revision, _)) in scores.iter().zip(REVISIONS) {
            let required = suite.required(revision)?;
            let passed = score.passed();
            let count = required
                .iter()
                .filter(|r| passed.contains(r.as_str()))
                .count();
            let (all, run) = (passed.len(), score.run().len());
            table += &format!(
                "{:>18}{all:>5}/{run}",
                format!("{count}/{}", required.len())
            );
        }
    }
    writeln!(std::io::stderr(), "{table}\n")?;
    Ok(())
}
