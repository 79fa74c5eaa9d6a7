//! What came of the steps, and whether it is as it must be.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use regex_lite::Regex;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::plan::{Any, Era, Kind, Plan, Step};

/// An error as a client shows it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Failure {
    /// A number where it came as JSON-RPC.
    pub code: Value,
    /// For a person.
    pub message: String,
}

/// What came of one step.
#[derive(Clone, Debug, Deserialize)]
pub struct Line {
    /// The name of the step.
    pub step: String,
    /// Whether the client is content.
    pub ok: bool,
    /// What it got.
    #[serde(default)]
    pub value: Value,
    /// Why it is not content.
    pub error: Option<Failure>,
}

impl Line {
    /// The line of a step that was done.
    pub fn new(step: &Step, result: Result<Value, Failure>) -> Self {
        let (value, error) = match result {
            Ok(value) => (value, None),
            Err(error) => (Value::Null, Some(error)),
        };
        Self {
            step: step.name().to_owned(),
            ok: error.is_none(),
            value,
            error,
        }
    }
}

/// The steps of a run by name.
pub type Lines = HashMap<String, Line>;

/// What is held against what.
pub struct Comparison<'a> {
    /// What the client was to do.
    pub plan: &'a Plan,
    /// How it connected through the sidecar.
    pub era: Era,
    /// What came of the same steps without a sidecar.
    pub direct: &'a Lines,
    /// What came of them through it.
    pub through: &'a Lines,
    /// Whether the direct run had another set of conditional tools.
    pub unconditional: bool,
    /// The client looks at the list before it calls a tool.
    pub lists_first: bool,
}

impl Comparison<'_> {
    /// Whether a step went as it must.
    pub fn check(&self, step: &Step) -> Result<()> {
        let line = self.through.get(step.name()).context("was not reached")?;
        if let Some(kind) = step.denied {
            return self.refused(step, kind, line);
        }
        let direct = self.direct.get(step.name());
        let direct = direct.context("was not reached without the sidecar")?;
        let clear = direct.ok != step.fails;
        ensure!(clear, "without the sidecar: {}", shown(direct));
        ensure!(
            line.ok == direct.ok,
            "{}, without the sidecar {}",
            shown(line),
            shown(direct)
        );
        if step.action == "connect" {
            return self.connected(line);
        }
        if let Some(part) = &step.contains {
            let all = line.value.to_string();
            ensure!(all.contains(part), "has no {part:?}: {}", shown(line));
        }
        let (mut wanted, mut got) = (self.wanted(step, direct), content(step, line));
        if self.era != Era::Legacy {
            // A client of 2026-07-28 drops this member of tools, which went with
            // 2025-11-25; without the sidecar it speaks that with a legacy server.
            for value in [&mut wanted, &mut got] {
                let items = value.get_mut("items").and_then(Value::as_array_mut);
                for tool in items.into_iter().flatten().filter_map(Value::as_object_mut) {
                    tool.remove("execution");
                }
            }
        }
        if let Some(difference) = difference("", &got, &wanted) {
            bail!(difference);
        }
        ensure!(
            line.error == direct.error,
            "{}, without the sidecar {}",
            shown(line),
            shown(direct)
        );
        Ok(())
    }

    fn connected(&self, line: &Line) -> Result<()> {
        let revision = line.value["revision"].as_str().context("no revision")?;
        let fine = match self.era {
            Era::Legacy => revision == "2025-11-25",
            Era::Modern => revision == "2026-07-28",
            // Either is, if everything then works.
            Era::Auto => ["2025-11-25", "2026-07-28"].contains(&revision),
        };
        ensure!(fine, "the revision is {revision}");
        Ok(())
    }

    /// What a step should give: what it gives without the sidecar, but for what
    /// the policy hides.
    fn wanted(&self, step: &Step, direct: &Line) -> Value {
        let mut value = content(step, direct);
        if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
            items.retain(|item| {
                let name = ["uri", "name"].iter().find_map(|key| item[*key].as_str());
                let is = |list: &[String]| list.iter().any(|hidden| Some(hidden.as_str()) == name);
                let conditional = self.unconditional && is(&self.plan.conditional);
                !conditional && !is(&self.plan.hidden)
            });
        }
        value
    }

    /// What is forbidden cannot be told from what does not exist.
    fn refused(&self, step: &Step, kind: Kind, line: &Line) -> Result<()> {
        let Some(error) = &line.error else {
            bail!("must be refused: {}", shown(line));
        };
        let (code, message) = match kind {
            Kind::Tool if self.lists_first => (
                json!("tool_not_found"),
                format!("Tool '{}' not found on server.", step.named()),
            ),
            Kind::Tool => (json!(-32602), format!("Unknown tool: {}", step.named())),
            Kind::Prompt => (json!(-32602), format!("Unknown prompt: {}", step.named())),
            Kind::Resource => {
                let revision = self
                    .through
                    .get("connect")
                    .map(|line| &line.value["revision"]);
                let legacy = revision.is_some_and(|revision| revision == "2025-11-25");
                (json!(if legacy { -32002 } else { -32602 }), String::new())
            }
        };
        ensure!(error.code == code, "the code should be {code}: {error:?}");
        ensure!(
            error.message.ends_with(&message),
            "the message should be {message:?}: {error:?}"
        );
        self.indistinguishable(step, error)
    }

    /// The steps `forbidden…` and `unknown…` differ by what they name alone.
    fn indistinguishable(&self, step: &Step, error: &Failure) -> Result<()> {
        let Some(rest) = step.name().strip_prefix("forbidden") else {
            return Ok(());
        };
        let unknown = format!("unknown{rest}");
        let other = self.plan.steps.iter().find(|step| step.name() == unknown);
        let other = other.with_context(|| format!("the plan has no step {unknown:?}"))?;
        let line = self.through.get(&unknown).context("is alone")?;
        let of = line
            .error
            .as_ref()
            .context("the unknown one is not refused")?;
        let blank = |error: &Failure, name: &str| Failure {
            code: error.code.clone(),
            message: error.message.replace(name, "…"),
        };
        let (mine, theirs) = (blank(error, step.named()), blank(of, other.named()));
        ensure!(
            mine == theirs,
            "differs from that of an unknown one: {error:?}, {of:?}"
        );
        Ok(())
    }
}

/// Where two values differ first.
fn difference(place: &str, got: &Value, wanted: &Value) -> Option<String> {
    match (got, wanted) {
        (Value::Object(mine), Value::Object(theirs)) => {
            let mut keys = mine.keys().chain(theirs.keys());
            keys.find_map(|key| difference(&format!("{place}/{key}"), &got[key], &wanted[key]))
        }
        (Value::Array(mine), Value::Array(theirs)) if mine.len() == theirs.len() => {
            let mut pairs = mine.iter().zip(theirs).enumerate();
            pairs.find_map(|(n, (a, b))| difference(&format!("{place}/{n}"), a, b))
        }
        _ if got == wanted => None,
        _ => Some(format!(
            "{place} is {}, without the sidecar {}",
            names(got),
            names(wanted)
        )),
    }
}

/// The names of a list's items, or what else there is.
fn names(value: &Value) -> String {
    let names = value.as_array().map(|items| {
        let names = items.iter().map(|item| item["name"].as_str());
        names.collect::<Option<Vec<_>>>()
    });
    match names.flatten() {
        Some(names) => format!("a list of {}", names.join(", ")),
        None => short(value),
    }
}

fn shown(line: &Line) -> String {
    match &line.error {
        Some(Failure { code, message }) => format!("fails with {code} {message:?}"),
        None => format!("gives {}", short(&line.value)),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(1_500) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text,
    }
}

/// What of a result must be the same.
fn content(step: &Step, line: &Line) -> Value {
    let value = match step.any {
        Some(Any::Value) => return Value::Null,
        Some(Any::Event) => line.value["value"].clone(),
        None => line.value.clone(),
    };
    same(value)
}

/// Takes off what differs from run to run, and what the eras add.
fn same(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(without_chance(&text)),
        Value::Array(items) => items.into_iter().map(same).collect(),
        Value::Object(mut members) => {
            for key in ["resultType", "ttlMs", "cacheScope"] {
                members.remove(key);
            }
            if let Some(Value::Object(meta)) = members.get_mut("_meta") {
                meta.retain(|key, _| !key.starts_with("io.modelcontextprotocol/"));
                if meta.is_empty() {
                    members.remove("_meta");
                }
            }
            let members = members.into_iter();
            members.map(|(key, value)| (key, same(value))).collect()
        }
        other => other,
    }
}

/// Session ids and the time of day.
fn without_chance(text: &str) -> String {
    let session = Regex::new("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}");
    let time = Regex::new("[0-9]{1,2}:[0-9]{2}:[0-9]{2}( [AP]M)?");
    let mut text = text.to_owned();
    for pattern in [session, time].into_iter().flatten() {
        text = pattern.replace_all(&text, "…").into_owned();
    }
    text
}
