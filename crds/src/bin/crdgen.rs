//! Writes the CustomResourceDefinitions as YAML documents to standard output;
//! with `--chart`, as the template of the Helm chart.

use std::io::Write;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let text = match std::env::args().nth(1).as_deref() {
        None => crds::manifest::plain()?,
        Some("--chart") => crds::manifest::chart()?,
        Some(other) => anyhow::bail!("unknown argument {other}: write --chart or nothing"),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to standard output")
}
