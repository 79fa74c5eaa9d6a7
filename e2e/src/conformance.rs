//! The conformance suite of MCP, run against a URL, and the project's fixture
//! server, which has everything that the suite asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use crate::sh::{self, command};
use crate::tools::{Conformance, Tools};

/// The tasks extension, which the fixture server does not have: `mcp` 2.3.0
/// dropped the experimental tasks of 2025-11-25 and does not have the extension
/// of 2026-07-28 yet. No revision requires it.
pub const TASKS: [&str; 10] = [
    "tasks-capability-negotiation",
    "tasks-dispatch-and-envelope",
    "tasks-lifecycle",
    "tasks-mrtr-composition",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-request-state-removal",
    "tasks-required-task-error",
    "tasks-status-notifications",
    "tasks-wire-fields",
];

/// The longest that a run of all scenarios may take: many times what it does.
/// The suite gives up each scenario after 30 s.
const RUN: Duration = Duration::from_secs(300);

/// The suite and the fixture server.
#[derive(Debug)]
pub struct Suite {
    tools: Conformance,
    python: String,
    fixture: PathBuf,
}

impl Suite {
    /// Fetches what is missing.
    pub fn ensure(checkout: &Path) -> Result<Self> {
        // Where `python3` is a script that looks for Python, not each of many
        // processes has to run it.
        let python = sh::run(&mut command(
            "python3",
            &["-c", "import sys; print(sys.executable, end='')"],
        ))?;
        Ok(Self {
            tools: Tools::conformance(checkout)?,
            python,
            fixture: checkout.join("e2e/fixtures/conformance/server.py"),
        })
    }

    /// The fixture server's program and first arguments; `stdio`, or `http
    /// --port N` follows.
    pub fn fixture(&self) -> [String; 2] {
        [self.python.clone(), self.fixture.display().to_string()]
    }

    /// What whoever starts the fixture server has to have in its environment.
    pub fn environment(&self) -> (&'static str, &Path) {
        ("PYTHONPATH", &self.tools.python)
    }

    /// The names of the scenarios that a revision requires of a server.
    pub fn required(&self, revision: &str) -> Result<BTreeSet<String>> {
        #[derive(Deserialize)]
        struct Requirements {
            server: BTreeSet<String>,
        }
        let file = format!("requirements/{revision}.yaml");
        let requirements: Requirements =
            serde_yaml::from_slice(&sh::read(&self.tools.suite.join(file))?)?;
        Ok(requirements.server)
    }

    /// Runs all scenarios of a revision; the results stay in `folder`. Where the
    /// time is over, what was not run is missing in them.
    pub async fn score(&self, url: &str, revision: &str, folder: &Path) -> Result<Score> {
        sh::create_dir(folder)?;
        let mut suite = self.suite(url);
        suite.args(["--requirements", revision, "--output-dir"]);
        run(suite.arg(folder)).await?;
        Score::read(folder)
    }

    /// Runs one scenario; its result stays in `folder`.
    pub async fn scenario(
        &self,
        url: &str,
        revision: &str,
        scenario: &str,
        folder: &Path,
    ) -> Result<Score> {
        sh::create_dir(folder)?;
        let mut suite = self.suite(url);
        suite.args(["--force", "--spec-version", revision]);
        suite.args(["--scenario", scenario, "--output-dir"]);
        run(suite.arg(folder)).await?;
        Score::read(folder)
    }

    fn suite(&self, url: &str) -> Command {
        let mut suite = command(&self.tools.node, &[self.tools.suite.join("dist/index.js")]);
        suite.args(["server", "--url", url]);
        suite.into()
    }
}

/// How the suite ends tells only whether all went well: the results tell what
/// did not.
async fn run(suite: &mut Command) -> Result<()> {
    suite.stdin(Stdio::null());
    suite.stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = suite.kill_on_drop(true).spawn()?;
    if let Ok(ended) = tokio::time::timeout(RUN, running.wait()).await {
        ended?;
    }
    Ok(())
}

/// How scenarios ended: by name, the checks of each.
#[derive(Debug, Default)]
pub struct Score(BTreeMap<String, Vec<Check>>);

/// One check of a scenario.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Its identifier, not unique.
    pub id: String,
    status: String,
    #[serde(default)]
    error_message: String,
    /// What was seen.
    #[serde(default)]
    details: Value,
}

impl Check {
    /// A warning, of what the specification says one should do, counts as well:
    /// where a server does it, so must what stands in front of it.
    fn failed(&self) -> bool {
        matches!(self.status.as_str(), "FAILURE" | "WARNING")
    }
}

impl Score {
    /// Each scenario has a folder: `server-NAME-TIME`. It is empty where the
    /// suite itself failed; then the scenario has not passed.
    fn read(folder: &Path) -> Result<Self> {
        const TIME: usize = "-2026-07-28T00-00-00-000Z".len();
        let mut score = Self::default();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            let name = name
                .strip_prefix("server-")
                .and_then(|rest| rest.get(..rest.len().checked_sub(TIME)?))
                .with_context(|| format!("{name:?} is not the folder of a scenario"))?;
            let file = entry.path().join("checks.json");
            if file.is_file() {
                let checks = serde_json::from_slice(&sh::read(&file)?)?;
                score.0.insert(name.to_owned(), checks);
            }
        }
        Ok(score)
    }

    /// The scenarios without a failed check. One in which all checks were
    /// skipped tells nothing, and is not among them.
    pub fn passed(&self) -> BTreeSet<&str> {
        self.0
            .iter()
            .filter(|(_, checks)| {
                !checks.iter().any(Check::failed) && checks.iter().any(|c| c.status != "SKIPPED")
            })
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// The names of all scenarios that were run.
    pub fn run(&self) -> BTreeSet<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// What failed in a scenario, for a person.
    pub fn complaint(&self, scenario: &str) -> String {
        const DETAILS: usize = 1500;
        let Some(checks) = self.0.get(scenario) else {
            return "  it was not run".into();
        };
        let told: Vec<String> = checks
            .iter()
            .filter(|check| check.failed())
            .map(|check| {
                let details: String = check.details.to_string().chars().take(DETAILS).collect();
                format!("  {}: {}\n    {details}", check.id, check.error_message)
            })
            .collect();
        told.join("\n")
    }
}
