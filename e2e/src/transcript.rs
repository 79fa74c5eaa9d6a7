//! What the demonstration writes: a title per step, the command that a user
//! would type, its result in a line or two, and a check mark per promise.

use std::env;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::harness::Cluster;

const RESULT_LINES: usize = 8;

/// Writes to standard output; in colour where that is a terminal.
pub struct Transcript {
    colour: bool,
    step: usize,
    kept: usize,
    begun: Instant,
}

impl Transcript {
    /// Starts a transcript.
    pub fn new() -> Self {
        Self {
            colour: stdout().is_terminal() && env::var_os("NO_COLOR").is_none(),
            step: 0,
            kept: 0,
            begun: Instant::now(),
        }
    }

    /// How many promises were kept so far, and in which time.
    pub fn summary(&self) -> (usize, Duration) {
        (self.kept, self.begun.elapsed())
    }

    /// The title of the next step.
    pub fn title(&mut self, title: &str) {
        self.step += 1;
        println!("\n{}", self.paint("1", &format!("{}. {title}", self.step)));
    }

    /// A command, as a user types it.
    pub fn command(&self, command: &str) {
        println!("  {} {}", self.paint("2", "$"), self.paint("36", command));
    }

    /// What came back; long results are cut.
    pub fn result(&self, text: &str) {
        let lines: Vec<&str> = text.trim_end().lines().collect();
        for line in lines.iter().take(RESULT_LINES) {
            println!("    {line}");
        }
        if lines.len() > RESULT_LINES {
            println!("    … {} more lines", lines.len() - RESULT_LINES);
        }
    }

    /// A promise that was kept, or the error that says which was not.
    pub fn check(&mut self, promise: &str, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => {
                self.kept += 1;
                println!("  {} {promise}", self.paint("32", "✓"));
                Ok(())
            }
            Err(error) => {
                println!("  {} {promise}", self.paint("31", "✗"));
                Err(error).with_context(|| format!("not so: {promise}"))
            }
        }
    }

    /// Shows a kubectl command, runs it and shows what it says.
    pub async fn kubectl(&self, cluster: &Cluster, args: &[&str]) -> Result<String> {
        self.command(&line("kubectl", args));
        let said = cluster.kubectl(args).await?;
        self.result(&said);
        Ok(said)
    }

    /// Shows a helm command, runs it and shows the first line of what it says.
    pub async fn helm(&self, cluster: &Cluster, args: &[&str]) -> Result<()> {
        self.command(&line("helm", args));
        let said = cluster.helm(args).await?;
        self.result(said.lines().next().unwrap_or_default());
        Ok(())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        match self.colour {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

/// A command line that a shell reads as these words.
pub fn line(program: &str, args: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    let words = args.iter().map(|word| match word.chars().all(plain) {
        true => (*word).to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    });
    let words: Vec<String> = words.collect();
    format!("{program} {}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_words_back() {
        let shown = line("kubectl", &["patch", "-p=[{\"a\": 'b'}]"]);
        assert_eq!(shown, r#"kubectl patch '-p=[{"a": '\''b'\''}]'"#);
    }
}
