//! Plans: what a client does, and what must come of it. They are JSON beside
//! the scripts that carry them out, in `e2e/fixtures/clients`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::sh;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a client settles on a revision.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Era {
    /// `initialize`.
    Legacy,
    /// `server/discover` first, `initialize` where that fails.
    Auto,
    /// 2026-07-28 and nothing else.
    Modern,
}

/// What a policy forbids in a step.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A tool.
    Tool,
    /// A prompt.
    Prompt,
    /// A resource.
    Resource,
}

/// What of a result may differ from that of a direct connection.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Any {
    /// All of it.
    Value,
    /// The parameters of the event.
    Event,
}

/// One step, as the scripts read it (`raw`) and what must come of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// What a client does.
    #[serde(rename = "do")]
    pub action: String,
    /// Its name, where the action alone is not one.
    step: Option<String>,
    /// The only era that has it; without, both do.
    era: Option<Era>,
    /// Also a step of a short plan.
    #[serde(default)]
    always: bool,
    /// What the result has somewhere in it.
    pub contains: Option<String>,
    /// The policy forbids it, or the thing does not exist: nobody can tell.
    pub denied: Option<Kind>,
    /// It fails without a sidecar too.
    #[serde(default)]
    pub fails: bool,
    /// What need not be as without a sidecar.
    pub any: Option<Any>,
    /// What it names.
    #[serde(alias = "tool", alias = "uri", rename = "name")]
    named: Option<String>,
    /// All of it.
    #[serde(skip)]
    pub raw: Value,
}

impl Step {
    /// Its name, unique in a plan.
    pub fn name(&self) -> &str {
        self.step.as_deref().unwrap_or(&self.action)
    }

    /// The tool, prompt or resource that it names.
    pub fn named(&self) -> &str {
        self.named.as_deref().unwrap_or_default()
    }

    fn is_in(&self, era: Era) -> bool {
        match era {
            Era::Auto => self.always,
            era => self.era.is_none_or(|only| only == era),
        }
    }
}

/// What a client does with a server.
#[derive(Clone, Debug, Deserialize)]
pub struct Plan {
    /// What the client declares, in the legacy era or before a modern server.
    pub capabilities: Value,
    /// Names and URIs that the policy does not allow.
    pub hidden: Vec<String>,
    /// Tools that a legacy server has for clients with these capabilities only.
    #[serde(default)]
    pub conditional: Vec<String>,
    #[serde(rename = "steps")]
    raw: Vec<Value>,
    /// In order.
    #[serde(skip)]
    pub steps: Vec<Step>,
}

impl Plan {
    /// Reads a plan; `folder` takes the place of `{folder}` in it.
    pub fn read(file: &Path, folder: &Path) -> Result<Self> {
        let text = String::from_utf8(sh::read(file)?)?;
        let text = text.replace("{folder}", &folder.display().to_string());
        let at = || format!("the plan {}", file.display());
        let mut plan: Self = serde_json::from_str(&text).with_context(at)?;
        for raw in &plan.raw {
            let mut step: Step = serde_json::from_value(raw.clone()).with_context(at)?;
            step.raw = raw.clone();
            let unique = plan.steps.iter().all(|other| other.name() != step.name());
            ensure!(unique, "{}: two steps {:?}", file.display(), step.name());
            plan.steps.push(step);
        }
        Ok(plan)
    }

    /// The steps of an era that a client is able to do.
    pub fn part(&self, era: Era, able: impl Fn(&Step) -> bool) -> Vec<Step> {
        let steps = self.steps.iter();
        steps
            .filter(|step| step.is_in(era) && able(step))
            .cloned()
            .collect()
    }
}
