//! The parsers of other languages, as programs that print what they read.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, ensure};
use e2e::sh::{self, command, run, say};
use e2e::{cache, checkout};
use serde_json::Value;

/// What of a message is compared, in the order in which the readers print it.
pub const FIELDS: [&str; 9] = [
    "id",
    "method",
    "result",
    "error",
    "params.name",
    "params.uri",
    "params.arguments",
    "params._meta",
    "the whole message",
];

/// What was read, by field and in one form for all languages. What a reader does
/// not tell is not there, and not compared.
pub type Reading = BTreeMap<&'static str, String>;

/// From what a reader prints; none where it refuses.
fn parse(line: &str) -> Result<Option<Reading>> {
    if line == "refused" {
        return Ok(None);
    }
    let values: Vec<_> = line.split('\t').map(str::to_owned).collect();
    ensure!(values.len() == FIELDS.len(), "not all fields: {line}");
    let fields = FIELDS.into_iter().zip(values);
    Ok(Some(fields.filter(|(_, value)| value != "*").collect()))
}

/// What `serde_json` reads.
pub fn of_serde(body: &[u8]) -> Option<Reading> {
    let whole: Value = serde_json::from_slice(body).ok()?;
    let value = |field: &str| {
        let value = match field.strip_prefix("params.") {
            _ if field == FIELDS[8] => Some(&whole),
            Some(name) => whole["params"].get(name),
            None => whole.get(field),
        };
        value.map_or_else(|| MISSING.into(), canonical)
    };
    Some(
        FIELDS
            .into_iter()
            .map(|field| (field, value(field)))
            .collect(),
    )
}

/// A member that is not there.
pub const MISSING: &str = "~";

/// A value in the form that the readers print: strings in UTF-16, numbers by the
/// bits of a double, members by their names.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) => value.to_string(),
        Value::Number(number) => {
            let exact = number
                .as_u64()
                .map(u128::from)
                .or_else(|| number.as_i64().map(|n| n.unsigned_abs().into()));
            let double = number.as_f64().unwrap_or(f64::NAN);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            if exact.is_some_and(|exact| double.abs() as u128 != exact) {
                return format!("#{number} beyond a double");
            }
            format!("#{:016x}", double.to_bits())
        }
        Value::String(text) => hex(text),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(members) => {
            let members: BTreeMap<_, _> = members
                .iter()
                .map(|(name, member)| (hex(name), canonical(member)))
                .collect();
            let members: Vec<_> = members
                .iter()
                .map(|(name, member)| format!("{name}:{member}"))
                .collect();
            format!("{{{}}}", members.join(","))
        }
    }
}

fn hex(text: &str) -> String {
    let units = text.encode_utf16().map(|unit| format!("{unit:04x}"));
    format!("\"{}", units.collect::<String>())
}

/// A program that reads messages.
pub struct Reader {
    pub name: &'static str,
    command: Vec<String>,
}

impl Reader {
    fn new(name: &'static str, program: &Path, arguments: &[&str]) -> Self {
        let mut command = vec![program.display().to_string()];
        command.extend(arguments.iter().map(|argument| (*argument).into()));
        Self { name, command }
    }

    /// All of them.
    pub fn all() -> Result<Vec<Self>> {
        let scripts = sources()?;
        let go = go(&scripts)?;
        let (plain, v2) = (go.join("reader"), go.join("reader-v2"));
        let script = |name: &str| scripts.join(name).display().to_string();
        Ok(vec![
            Self::new("Go, struct", &plain, &["struct"]),
            Self::new("Go, any", &plain, &["any"]),
            Self::new("Go with jsonv2, struct", &v2, &["struct"]),
            Self::new("Go with jsonv2, any", &v2, &["any"]),
            Self::new("Go json/v2, struct", &v2, &["v2-struct"]),
            Self::new("Go json/v2, any", &v2, &["v2-any"]),
            Self::new(
                "Python",
                Path::new("python3"),
                &[&script("reader.py"), "read"],
            ),
            Self::new(
                "JavaScript",
                Path::new("node"),
                &[&script("reader.js"), "read"],
            ),
        ])
    }

    /// Those that say how their language folds case.
    pub fn folding() -> Result<Vec<Self>> {
        let mut readers = Self::all()?;
        readers.retain(|reader| ["Go, any", "Python", "JavaScript"].contains(&reader.name));
        for reader in &mut readers {
            reader.command.pop();
            reader.command.push("folds".into());
        }
        Ok(readers)
    }

    /// What it reads in each body.
    pub fn read(&self, bodies: &[Vec<u8>]) -> Result<Vec<Option<Reading>>> {
        let mut input = Vec::new();
        for body in bodies {
            input.extend_from_slice(&u32::try_from(body.len())?.to_be_bytes());
            input.extend_from_slice(body);
        }
        let output = self.run(input)?;
        let readings: Vec<_> = output.lines().map(parse).collect::<Result<_>>()?;
        ensure!(
            readings.len() == bodies.len(),
            "{} read {} of {} bodies",
            self.name,
            readings.len(),
            bodies.len()
        );
        Ok(readings)
    }

    /// Pairs of texts that are the same without case.
    pub fn folds(&self) -> Result<Vec<(String, String)>> {
        let text = |hex: &str| -> Result<String> {
            let digits: Vec<_> = (0..hex.len()).step_by(2).collect();
            let bytes: Result<Vec<u8>, _> = digits
                .iter()
                .map(|at| u8::from_str_radix(&hex[*at..at + 2], 16))
                .collect();
            Ok(String::from_utf8(bytes?)?)
        };
        self.run(Vec::new())?
            .lines()
            .map(|line| {
                let (a, b) = line.split_once(' ').context("no pair")?;
                Ok((text(a)?, text(b)?))
            })
            .collect()
    }

    fn run(&self, input: Vec<u8>) -> Result<String> {
        let (program, arguments) = self.command.split_first().context("no program")?;
        let mut child = command(program, arguments)
            .env("PYTHONIOENCODING", "utf-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        let writer = thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output()?;
        let written = writer.join().expect("the writer does not panic");
        let answer = sh::succeed(self.name, &output)?;
        written.with_context(|| format!("{} stopped reading", self.name))?;
        Ok(answer)
    }
}

fn sources() -> Result<PathBuf> {
    Ok(checkout::root()?.join("e2e/tests/parsers/readers"))
}

/// The folder with the two programs of Go, built once for their sources and Go.
fn go(sources: &Path) -> Result<PathBuf> {
    let mut inputs = vec![run(&mut command("go", &["version"]))?.into_bytes()];
    for name in ["go.mod", "main.go", "v2.go"] {
        inputs.push(sh::read(&sources.join(name))?);
    }
    let key = format!("parsers-{}", &sh::digest(&inputs)[..12]);
    cache::folder(&key, |target| {
        say("building the readers in Go (once, about a minute)");
        for (name, experiment) in [("reader", ""), ("reader-v2", "jsonv2")] {
            run(command("go", &["build", "-trimpath", "-o"])
                .arg(target.join(name))
                .arg(".")
                .current_dir(sources)
                .env("CGO_ENABLED", "0")
                .env("GOEXPERIMENT", experiment))?;
        }
        Ok(())
    })
}
