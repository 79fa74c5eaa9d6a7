//! Real clients with real servers, through the sidecar: what a client gets must
//! be what it gets without one, but for what the policy forbids. Each client
//! carries out the same plans (`e2e/fixtures/clients/*.json`), once bare and
//! once through `toolward-sidecar run`, in each era that it speaks; slow ones do so
//! with all servers where `TOOLWARD_ALL_CLIENTS` is set. A table of client, server
//! and era goes to standard error. Neither root nor a cluster is needed.
#![allow(missing_docs)]

mod client;
mod inspector;
mod outcome;
mod plan;
mod rust;
mod server;
mod tap;

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use e2e::tools::Tools;
use e2e::{checkout, laptop, sh};
use serde_json::json;

use crate::client::{Bench, Client, Run};
use crate::outcome::{Comparison, Lines};
use crate::plan::{Era, Plan, Step};
use crate::server::{Guarded, Server};

#[tokio::test(flavor = "multi_thread")]
async fn sdk() -> Result<()> {
    all_servers(Client::Sdk).await
}

#[tokio::test(flavor = "multi_thread")]
async fn typescript() -> Result<()> {
    all_servers(Client::TypeScript).await
}

#[tokio::test(flavor = "multi_thread")]
async fn python() -> Result<()> {
    all_servers(Client::Python).await
}

#[tokio::test(flavor = "multi_thread")]
async fn fastmcp() -> Result<()> {
    all_servers(Client::FastMcp).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rust() -> Result<()> {
    all_servers(Client::Rust).await
}

#[tokio::test(flavor = "multi_thread")]
async fn inspector() -> Result<()> {
    all_servers(Client::Inspector).await
}

async fn all_servers(client: Client) -> Result<()> {
    let checkout = checkout::root()?;
    let sidecar = laptop::sidecar(&checkout)?;
    let clients = Tools::clients(&checkout)?;
    let fixtures = checkout.join("e2e/fixtures/clients");
    let mut failures = Vec::new();
    for &server in client.servers() {
        let folder = Folder::new(client)?;
        let bench = Bench::new(clients.clone(), fixtures.clone(), folder.0.clone())?;
        sh::write(&bench.folder.join("root/hello.txt"), "hello from a file\n")?;
        sh::write(&bench.folder.join("other.txt"), "not in the root\n")?;
        let pair = async {
            let guarded = Guarded::start(&bench, &sidecar, server).await?;
            let mut pair = Pair::new(client, server, &bench, &guarded)?;
            pair.all_eras().await?;
            let failures = pair.failures;
            Ok::<_, anyhow::Error>((failures, sidecar_said(&guarded)))
        };
        match pair.await {
            Ok((failed, _)) if failed.is_empty() => {}
            Ok((failed, said)) => {
                failures.extend(failed);
                failures.push(format!("the sidecar said:\n{said}"));
            }
            Err(error) => failures.push(format!("{}: {error:#}", server.name())),
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => bail!("{}:\n{}", client.name(), failures.join("\n")),
    }
}

fn sidecar_said(guarded: &Guarded) -> String {
    sh::last_lines(&guarded.sidecar.stderr.all().join("\n"), 20)
}

/// One client and one server.
struct Pair<'a> {
    client: Client,
    server: Server,
    bench: &'a Bench,
    guarded: &'a Guarded,
    plan: Plan,
    direct: HashMap<&'static str, Lines>,
    failures: Vec<String>,
}

impl<'a> Pair<'a> {
    fn new(client: Client, server: Server, bench: &'a Bench, guarded: &'a Guarded) -> Result<Self> {
        let plan = bench.fixtures.join(format!("{}.json", server.fixture()));
        Ok(Self {
            client,
            server,
            bench,
            guarded,
            plan: Plan::read(&plan, &bench.folder)?,
            direct: HashMap::new(),
            failures: Vec::new(),
        })
    }

    async fn all_eras(&mut self) -> Result<()> {
        for era in self.client.eras() {
            self.era(*era).await?;
        }
        Ok(())
    }

    /// What the client does; without the sidecar nothing that the policy is to
    /// stop, which might change what later steps find.
    fn steps(&self, era: Era, bare: bool) -> Vec<Step> {
        self.plan.part(era, |step| {
            self.client.able(step) && !(bare && step.denied.is_some())
        })
    }

    async fn lines(&self, era: Era, bare: bool) -> Result<Lines> {
        let target = match bare {
            true => &self.guarded.bare,
            false => &self.guarded.through,
        };
        // Across eras a server can ask a client nothing.
        let capabilities = match era == Era::Legacy || self.server.is_modern() {
            true => self.plan.capabilities.clone(),
            false => json!({}),
        };
        let root = self.bench.folder.join("root").display().to_string();
        let run = Run {
            bench: self.bench,
            client: self.client,
            era,
            target: target.clone(),
            capabilities,
            roots: json!([{"uri": format!("file://{root}"), "name": "root"}]),
            steps: &self.steps(era, bare),
        };
        let lines = run.lines().await?.into_iter();
        Ok(lines.map(|line| (line.step.clone(), line)).collect())
    }

    /// The run that the client's through the sidecar is held against: the same,
    /// or the legacy one of a server that speaks no other era.
    async fn direct(&mut self, era: Era) -> Result<Lines> {
        let (name, era) = match (era, self.server.is_modern()) {
            (Era::Legacy, _) | (_, false) => ("legacy", Era::Legacy),
            (Era::Auto | Era::Modern, true) => ("modern", Era::Modern),
        };
        if let Some(lines) = self.direct.get(name) {
            return Ok(lines.clone());
        }
        let lines = self.lines(era, true).await.context("without the sidecar")?;
        self.direct.insert(name, lines.clone());
        Ok(lines)
    }

    async fn era(&mut self, era: Era) -> Result<()> {
        let direct = self.direct(era).await?;
        let seen = self.guarded.told()?.len();
        let through = self.lines(era, false).await?;
        let steps = self.steps(era, false);
        let comparison = Comparison {
            plan: &self.plan,
            era,
            direct: &direct,
            through: &through,
            unconditional: era != Era::Legacy && !self.server.is_modern(),
            lists_first: self.client == Client::Inspector,
            one_code: self.client == Client::TypeScript,
        };
        let mut checks: Vec<(String, Result<()>)> = steps
            .iter()
            .map(|step| (step.name().to_owned(), comparison.check(step)))
            .collect();
        if self.server == Server::EverythingStdio {
            if steps.iter().any(|step| step.action == "cancel") {
                let tool = "trigger-long-running-operation";
                let check = tap::cancelled(self.guarded, seen, tool).await;
                checks.push(("cancellation arrives".to_owned(), check));
            }
            if era == Era::Legacy && self.client.ends_its_sessions() {
                let check = tap::ended(self.guarded, seen).await;
                checks.push(("process ends".to_owned(), check));
            }
        }
        self.report(era, checks)
    }

    /// A row of the table; what failed is kept.
    fn report(&mut self, era: Era, checks: Vec<(String, Result<()>)>) -> Result<()> {
        let total = checks.len();
        let (passed, failed): (Vec<_>, Vec<_>) =
            checks.into_iter().partition(|(_, check)| check.is_ok());
        let names = |checks: &[(String, Result<()>)]| {
            let names = checks.iter().map(|(name, _)| name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let not = match failed.is_empty() {
            true => String::new(),
            false => format!(" | NOT: {}", names(&failed)),
        };
        // Past what the test runner captures: the table is for a person too.
        writeln!(
            std::io::stderr().lock(),
            "{:<9} | {:<17} | {:<6} | {:>2} of {total:<2} | {}{not}",
            self.client.name(),
            self.server.name(),
            format!("{era:?}").to_lowercase(),
            passed.len(),
            names(&passed),
        )?;
        for (name, check) in failed {
            if let Err(error) = check {
                let place = format!("{}, {era:?}", self.server.name());
                let failure = format!("  {place}, {name}: {error:#}");
                writeln!(std::io::stderr().lock(), "{failure}")?;
                self.failures.push(failure);
            }
        }
        Ok(())
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(client: Client) -> Result<Self> {
        let name = format!("toolward-clients-{}-{}", client.name(), std::process::id());
        // The filesystem server knows its folders by their real names.
        let path = std::env::temp_dir().canonicalize()?.join(name);
        sh::remove_dir(&path)?;
        sh::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // Only room is at stake.
    }
}
