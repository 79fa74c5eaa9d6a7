//! Manifests that people apply: those that are generated, the examples, and
//! those in the documents.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::manifests;

use crate::suite::{Scope, beside};

async fn accepts(scope: &Scope, name: &str, manifest: &str) -> Result<()> {
    let args = ["apply", "--dry-run=server", "-f", "-"];
    let applied = scope.cluster.kubectl_stdin(&args, manifest).await;
    applied.map(drop).with_context(|| name.to_owned())
}

#[tokio::test]
async fn generated_manifests_are_current_and_accepted() -> Result<()> {
    beside("manifests", async |scope: &Scope| {
        let checkout = scope.cluster.checkout();
        let mut files = manifests::definitions()?;
        files.push(manifests::install(checkout, &scope.cluster.tools().helm)?);
        for file in files {
            file.check(checkout)?;
            if !file.path.starts_with("charts/") {
                accepts(scope, file.path, &file.content).await?;
            }
        }
        Ok(())
    })
    .await
}

/// Issuers that examples name: a platform has to allow them first.
pub const ISSUERS: [&str; 2] = [
    "https://idp.example.com/realms/acme",
    "https://login.example.com/realms/company",
];

#[tokio::test]
async fn every_manifest_in_examples_and_documents_is_accepted() -> Result<()> {
    beside("documents", documents).await
}

async fn documents(scope: &Scope) -> Result<()> {
    let checkout = scope.cluster.checkout();
    // Dry runs make no namespace for those that follow.
    let namespaces = fs::read_to_string(checkout.join("examples/namespace.yaml"))?;
    scope.cluster.apply(&namespaces).await?;
    let mut number = 0;
    for file in files(&checkout.join("examples"), "yaml")? {
        let manifest = fs::read_to_string(&file)?;
        accepts(scope, &file.display().to_string(), &manifest).await?;
        number += 1;
    }
    let mut documents = files(checkout, "md")?;
    documents.extend(files(&checkout.join("docs"), "md")?);
    documents.push(checkout.join("charts/toolward/templates/NOTES.txt"));
    for file in documents {
        let text = fs::read_to_string(&file)?;
        for manifest in blocks(&text) {
            accepts(scope, &file.display().to_string(), &manifest).await?;
            number += 1;
        }
    }
    println!("{number} manifests of examples and documents are accepted");
    ensure!(number > 3, "only {number} manifests were found");
    Ok(())
}

/// The files of a kind in a folder and those below.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(found);
    };
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// The manifests of a document: fenced blocks and here-documents that start
/// with `apiVersion`.
fn blocks(text: &str) -> Vec<String> {
    let (mut found, mut open): (Vec<String>, Option<(usize, String)>) = (Vec::new(), None);
    for line in text.lines() {
        let (indent, content) = (line.len() - line.trim_start().len(), line.trim_start());
        match &mut open {
            None if content.starts_with("apiVersion: ") => {
                open = Some((indent, format!("{content}\n")))
            }
            Some(_) if content.starts_with("```") || matches!(content, "YAML" | "EOF") => {
                found.extend(open.take().map(|(_, block)| block));
            }
            Some((indent, block)) => {
                block.push_str(line.get(*indent..).unwrap_or_default());
                block.push('\n');
            }
            None => {}
        }
    }
    found
}
