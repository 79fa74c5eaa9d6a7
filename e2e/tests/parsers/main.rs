//! What the sidecar accepts is read in the same way by the JSON parsers that
//! servers use: those of Go, Python, JavaScript and Rust. `TOOLWARD_SEED` repeats
//! a run, `TOOLWARD_BODIES` makes it longer.
#![allow(missing_docs)]

mod generate;
mod readers;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::checkout;
use serde_json::value::RawValue;
use sidecar::envelope::{Kind, Members, Messages};
use sidecar::strict;

use generate::Random;
use readers::{FIELDS, MISSING, Reader, Reading, canonical, of_serde};

/// How many bodies are read at once: their readings stay in memory.
const CHUNK: usize = 20_000;

/// The name and the bytes of each document.
fn corpus() -> Result<Vec<(String, Vec<u8>)>> {
    let text = std::fs::read_to_string(checkout::root()?.join("e2e/tests/parsers/corpus.txt"))?;
    let documents = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    documents
        .map(|line| {
            let (name, document) = line
                .split_once(':')
                .with_context(|| format!("no name: {line}"))?;
            Ok((
                name.to_owned(),
                bytes(document.strip_prefix(' ').unwrap_or_default())?,
            ))
        })
        .collect()
}

fn bytes(written: &str) -> Result<Vec<u8>> {
    let mut parts = written.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = part.split_at_checked(2).context("% without two digits")?;
        bytes.push(u8::from_str_radix(byte, 16)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    Ok(bytes)
}

/// What the sidecar decides on, where it accepts the body.
fn of_sidecar(body: &[u8]) -> Option<Reading> {
    let messages = Messages::parse(body).ok()?;
    let message = match &messages.list[..] {
        [message] if !messages.is_batch => message,
        _ => return Some(Reading::default()), // The readers do not look into batches either.
    };
    let raw = |raw: Option<&RawValue>| {
        let value = raw.map(|raw| serde_json::from_str(raw.get()));
        value.map_or_else(
            || MISSING.into(),
            |value| canonical(&value.unwrap_or_default()),
        )
    };
    let mut reading = Reading::from([("id", raw(message.id))]);
    match &message.kind {
        Kind::Request { method, params } | Kind::Notification { method, params } => {
            reading.insert("method", canonical(&(&**method).into()));
            let params = params.map(Members::parse).transpose().ok()?;
            for field in FIELDS {
                if let (Some(params), Some(name)) = (&params, field.strip_prefix("params.")) {
                    reading.insert(field, raw(params.get(name).ok()?));
                }
            }
        }
        Kind::Response { result, error } => {
            reading.insert("result", raw(*result));
            reading.insert("error", raw(*error));
        }
    }
    Some(reading)
}

/// What the readers that accept the body do not read alike.
fn differences(readings: &BTreeMap<&str, Option<&Reading>>) -> Vec<&'static str> {
    let differs = |field: &&str| {
        let accepting = readings.values().flatten();
        let values: BTreeSet<_> = accepting.filter_map(|reading| reading.get(field)).collect();
        values.len() > 1
    };
    FIELDS.into_iter().filter(differs).collect()
}

fn number_from(variable: &str) -> Result<Option<u64>> {
    env::var(variable)
        .ok()
        .map(|text| text.parse().with_context(|| format!("{variable}={text}")))
        .transpose()
}

/// The corpus at all places, and changes of it.
fn bodies(random: &mut Random, generated: u64) -> Result<Vec<Vec<u8>>> {
    let places: Vec<_> = corpus()?
        .iter()
        .flat_map(|(_, document)| generate::places(document))
        .collect();
    let kept = places.len();
    let mut bodies: HashSet<_> = places.iter().cloned().collect();
    println!(
        "{kept} bodies of the corpus, {} different ones",
        bodies.len()
    );
    for round in 0..generated {
        let body = if round % 2 == 0 {
            places[random.below(kept)].clone()
        } else {
            generate::message(random)
        };
        bodies.insert(match round % 4 {
            1 => body,
            _ => generate::changed(random, &body),
        });
    }
    Ok(bodies.into_iter().collect())
}

fn shown(body: &[u8]) -> String {
    body.escape_ascii().to_string().replace(r#"\""#, "\"")
}

/// What came out over all bodies.
#[derive(Default)]
struct Outcome<'a> {
    accepted: usize,
    /// Accepted, and refused by a parser.
    refused_by: BTreeMap<&'a str, usize>,
    /// Accepted, and read differently: must be none.
    wrong: usize,
    /// Refused, and would be read differently if they were not.
    caught: usize,
    /// The shortest of these, for each field.
    examples: BTreeMap<&'static str, &'a [u8]>,
}

impl<'a> Outcome<'a> {
    /// Adds a body with what the sidecar reads in it, and the others.
    fn add<'r>(
        &mut self,
        body: &'a [u8],
        ours: Option<&'r Reading>,
        mut readings: BTreeMap<&'a str, Option<&'r Reading>>,
    ) {
        if ours.is_none() {
            let fields = differences(&readings);
            self.caught += usize::from(!fields.is_empty());
            for field in fields {
                let shortest = self.examples.entry(field).or_insert(body);
                if body.len() < shortest.len() {
                    *shortest = body;
                }
            }
            return;
        }
        self.accepted += 1;
        for (name, _) in readings.iter().filter(|(_, reading)| reading.is_none()) {
            *self.refused_by.entry(name).or_default() += 1;
        }
        readings.insert("sidecar", ours);
        let fields = differences(&readings);
        if !fields.is_empty() {
            self.wrong += 1;
            println!("accepted and read differently, {fields:?}: {}", shown(body));
            for (name, reading) in readings
                .into_iter()
                .take(if self.wrong > 5 { 0 } else { 99 })
            {
                println!("    {name}: {reading:?}");
            }
        }
    }
}

#[test]
fn what_is_accepted_is_read_alike_by_all() -> Result<()> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = number_from("TOOLWARD_SEED")?.unwrap_or(seconds);
    let generated = number_from("TOOLWARD_BODIES")?.unwrap_or(40_000);
    println!("TOOLWARD_SEED={seed}");
    let mut bodies = bodies(&mut Random(seed), generated)?;
    let all = bodies.len();
    // What neither the sidecar accepts nor a plain reader, nobody would forward.
    bodies.retain(|body| of_serde(body).is_some() || of_sidecar(body).is_some());
    let readers = Reader::all()?;
    let mut outcome = Outcome::default();
    for bodies in bodies.chunks(CHUNK) {
        let serde: Vec<_> = bodies.iter().map(|body| of_serde(body)).collect();
        let mut answers = vec![("Rust, serde_json", serde)];
        for reader in &readers {
            answers.push((reader.name, reader.read(bodies)?));
        }
        for (index, body) in bodies.iter().enumerate() {
            let readings = answers
                .iter()
                .map(|(name, answers)| (*name, answers[index].as_ref()));
            outcome.add(body, of_sidecar(body).as_ref(), readings.collect());
        }
    }
    let Outcome {
        accepted,
        wrong,
        caught,
        ..
    } = outcome;
    println!(
        "{all} bodies: {accepted} accepted, {} refused; read differently: {wrong}",
        all - accepted
    );
    println!(
        "accepted, and refused by a parser: {:?}",
        outcome.refused_by
    );
    println!("with a plain reader in place of the strict one: {caught}, such as:");
    for (field, body) in &outcome.examples {
        println!("    {field}: {}", shown(body));
    }
    ensure!(wrong == 0, "{wrong} accepted bodies are read differently");
    ensure!(
        accepted > 2000,
        "too few bodies were accepted to say anything"
    );
    ensure!(
        caught > 500 && outcome.examples.len() == FIELDS.len(),
        "the readers do not differ where the strict reader refuses: this test sees nothing"
    );
    Ok(())
}

#[test]
fn the_corpus_is_accepted_and_refused_as_it_says() -> Result<()> {
    let mut wrong = Vec::new();
    let mut counts = BTreeMap::<char, (usize, usize)>::new();
    for (name, document) in corpus()? {
        let kind = name.chars().next().context("a document without a name")?;
        // Names mean something as members of a message, or of its parameters.
        let parts = [
            &br#"{"jsonrpc":"2.0","method":"a","params":"#[..],
            &document,
            b"}",
        ];
        let accepted = strict::check(&document).is_ok() && strict::check(&parts.concat()).is_ok();
        let count = counts.entry(kind).or_default();
        count.0 += usize::from(accepted);
        count.1 += usize::from(!accepted);
        if accepted != (kind == 'y') {
            wrong.push(name);
        }
    }
    println!("documents (accepted, refused): {counts:?}");
    ensure!(wrong.is_empty(), "decided wrongly: {wrong:?}");
    Ok(())
}

/// Two names that any of the languages takes for one without case are one to us.
#[test]
fn no_language_folds_more_than_we_do() -> Result<()> {
    for reader in Reader::folding()? {
        let pairs = reader.folds()?;
        println!("{}: {} pairs", reader.name, pairs.len());
        ensure!(pairs.len() > 2000);
        for (a, b) in pairs {
            ensure!(strict::alike(&a, &b), "{}: {a:?} and {b:?}", reader.name);
            let body = format!(r#"{{"params":{{"x{a}":1,"x{b}":2}}}}"#);
            let fault = strict::check(body.as_bytes()).err();
            let fault = fault.ok_or_else(|| anyhow!("{}: accepted: {body}", reader.name))?;
            ensure!(
                matches!(fault, strict::Fault::Alike { .. }),
                "{body}: {fault}"
            );
        }
    }
    Ok(())
}
