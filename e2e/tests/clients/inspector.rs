//! The Inspector's command line: one process for each step.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::client::{Run, Target, finish};
use crate::outcome::{Failure, Line};
use crate::plan::{Era, Step};

const SCRIPT: &str = "@modelcontextprotocol/inspector/clients/launcher/build/index.js";

/// In milliseconds, generously: a server starts with each step.
const CONNECT: &str = "120000";

/// Whether it is to do a step: it has a command for few, and each costs a
/// process, so it does each kind once.
pub fn able(step: &Step) -> bool {
    let steps = [
        "tools",
        "call",
        "forbidden",
        "unknown",
        "prompts",
        "prompt",
        "resources",
        "templates",
        "read",
    ];
    steps.contains(&step.name())
}

/// Carries out the steps of a run.
pub async fn run(run: &Run<'_>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for step in run.steps {
        lines.push(Line::new(step, one(run, step).await?));
    }
    Ok(lines)
}

async fn one(run: &Run<'_>, step: &Step) -> Result<Result<Value, Failure>> {
    let (method, items, arguments) = command(step);
    let mut inspector = run.bench.node(SCRIPT);
    inspector.args(["--cli", "--connect-timeout", CONNECT]);
    if let Target::Command(words) = &run.target {
        // Options of the Inspector come before the server's command.
        inspector.args(words);
    }
    inspector.args(["--format", "json", "-q", "--method", method]);
    inspector.args(arguments);
    inspector.args(["--protocol-era", era(run.era)]);
    if let Target::Url { url, token } = &run.target {
        inspector.args(["--transport", "http", "--server-url", url]);
        if let Some(token) = token {
            inspector.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
    }
    // Where it keeps what it remembers between runs.
    inspector.env("HOME", run.bench.folder.join("inspector"));
    let output = finish(inspector).await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let said = [&stdout, &stderr].into_iter().find_map(|text| {
        text.lines()
            .rev()
            .find_map(|line| serde_json::from_str::<Value>(line).ok())
    });
    let mut said = said.with_context(|| format!("{step:?}: no JSON: {stdout}{stderr}"))?;
    if let Some(error) = said.get("error") {
        return Ok(Err(serde_json::from_value(error.clone())?));
    }
    let mut value = said["result"].take();
    if let Some(items) = items {
        value = json!({"items": value[items]});
    }
    Ok(Ok(value))
}

fn era(era: Era) -> &'static str {
    match era {
        Era::Legacy => "legacy",
        Era::Auto => "auto",
        Era::Modern => "modern",
    }
}

/// The method of a step, what its list is called, and further options.
fn command(step: &Step) -> (&'static str, Option<&'static str>, Vec<String>) {
    let named = step.named().to_owned();
    match step.action.as_str() {
        "tools" => ("tools/list", Some("tools"), vec![]),
        "prompts" => ("prompts/list", Some("prompts"), vec![]),
        "resources" => ("resources/list", Some("resources"), vec![]),
        "templates" => (
            "resources/templates/list",
            Some("resourceTemplates"),
            vec![],
        ),
        "read" => ("resources/read", None, vec!["--uri".to_owned(), named]),
        "prompt" => {
            let mut options = vec!["--prompt-name".to_owned(), named];
            if let Some(arguments) = step.raw["arguments"].as_object() {
                options.push("--prompt-args".to_owned());
                let pairs = arguments.iter();
                options
                    .extend(pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())));
            }
            ("prompts/get", None, options)
        }
        _ => {
            let arguments = match &step.raw["arguments"] {
                Value::Null => "{}".to_owned(),
                arguments => arguments.to_string(),
            };
            let options = ["--tool-name", &named, "--tool-args-json", &arguments];
            ("tools/call", None, options.map(str::to_owned).into())
        }
    }
}
