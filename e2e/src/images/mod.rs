//! The images of the cluster: built from the checkout, imported into the
//! node's containerd. There is no registry.

mod build;
mod everything;
mod orders;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::build::Build;
use crate::cluster::{PAUSE_IMAGE, State, own_program};
use crate::lock::Lock;
use crate::sh::{self, command, run, say};
use crate::tools::Tools;
use crate::wait::wait_for;

/// An image that tests use. Its name in manifests is [`Image::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// `toolward/operator:dev`, from the root Dockerfile.
    Operator,
    /// `toolward/sidecar:dev`, from the root Dockerfile.
    Sidecar,
    /// `toolward/server-everything:dev`, the reference MCP server.
    ServerEverything,
    /// `toolward/postgres-rls:dev`, from `examples/postgres-rls`.
    PostgresRls,
}

impl Image {
    /// Those that the demonstration and most tests need.
    pub const ALL: [Self; 3] = [Self::Operator, Self::Sidecar, Self::ServerEverything];

    /// The name to write into manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "toolward/operator:dev",
            Self::Sidecar => "toolward/sidecar:dev",
            Self::ServerEverything => "toolward/server-everything:dev",
            Self::PostgresRls => "toolward/postgres-rls:dev",
        }
    }

    /// The Cargo package and the binary of an image that consists of one.
    fn binary(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Operator => Some(("operator", "toolward-operator")),
            Self::Sidecar => Some(("sidecar", "toolward-sidecar")),
            Self::ServerEverything | Self::PostgresRls => None,
        }
    }
}

/// Something ready for import: the hash of what it was made from, and how to
/// make the archive.
struct Source {
    reference: String,
    hash: String,
    archive: PathBuf,
}

/// Builds the images and imports those that the node does not have yet. With
/// `compile`, Cargo builds the binaries first; without, they are taken from
/// the target folder as they are.
pub async fn load(state: &State, checkout: &Path, images: &[Image], compile: bool) -> Result<()> {
    if compile && images.iter().any(|image| image.binary().is_some()) {
        sh::cargo_build(checkout)?;
    }
    let _lock = Lock::acquire(&state.path("images.lock"))?;
    for image in images {
        let source = match image.binary() {
            Some((target, binary)) => from_binary(state, checkout, *image, target, binary)?,
            None if *image == Image::PostgresRls => orders::source(checkout, image.name())?,
            None => everything::source(checkout, &Tools::ensure(checkout)?, image.name())?,
        };
        import(state, &source).await?;
    }
    Ok(())
}

/// The image of every pod's sandbox.
pub(crate) async fn load_pause(state: &State, checkout: &Path) -> Result<()> {
    let dockerfile = checkout.join("e2e/images/pause/Dockerfile");
    let program = state.path("bin/e2e");
    if !program.is_file() {
        bail!(
            "{} is missing; it is a copy of {}",
            program.display(),
            own_program()?.display()
        );
    }
    let source = binary_source(state, &dockerfile, None, &program, PAUSE_IMAGE)?;
    import(state, &source).await
}

/// The images that the node has, by name.
pub fn loaded(state: &State) -> Vec<String> {
    read_loaded(state).into_keys().collect()
}

fn from_binary(
    state: &State,
    checkout: &Path,
    image: Image,
    target: &str,
    binary: &str,
) -> Result<Source> {
    let program = binaries()?.join(binary);
    if !program.is_file() {
        bail!(
            "{} is missing; run `cargo build --release --package {target}`",
            program.display()
        );
    }
    let reference = full_name(image.name());
    binary_source(
        state,
        &checkout.join("Dockerfile"),
        Some(target),
        &program,
        &reference,
    )
}

/// Cargo's output folder: the one that this program lies in.
fn binaries() -> Result<PathBuf> {
    let program = own_program()?;
    program
        .parent()
        .map(Path::to_owned)
        .context("the e2e program lies in no folder")
}

/// An image of one static binary. Its archive lies in the instance's folder:
/// it is quick to make and goes when the instance goes.
fn binary_source(
    state: &State,
    dockerfile: &Path,
    target: Option<&str>,
    program: &Path,
    reference: &str,
) -> Result<Source> {
    let hash = sh::digest([sh::read(dockerfile)?, sh::read(program)?]);
    let file = program.file_name().context("a program without a name")?;
    let archive = state
        .path("images")
        .join(target.unwrap_or("pause"))
        .with_extension("tar");
    let source = Source {
        reference: reference.to_owned(),
        hash,
        archive,
    };
    if is_loaded(state, &source) {
        return Ok(source);
    }
    say(format!("building the image {reference}"));
    let context = state.path("images/context");
    sh::remove_dir(&context)?;
    sh::create_dir(&context)?;
    fs::copy(program, context.join(file))?;
    Build {
        dockerfile,
        target,
        context: &context,
        reference,
        archive: &source.archive,
    }
    .run()?;
    sh::remove_dir(&context)?;
    Ok(source)
}

/// The name under which the kubelet looks for a short one.
fn full_name(name: &str) -> String {
    format!("docker.io/{name}")
}

async fn import(state: &State, source: &Source) -> Result<()> {
    if is_loaded(state, source) {
        return Ok(());
    }
    say(format!("importing {}", source.reference));
    let ctr = || {
        let mut ctr = command("ctr", &["--namespace", "k8s.io", "--address"]);
        ctr.arg(state.containerd());
        ctr
    };
    run(ctr().args(["images", "import"]).arg(&source.archive))
        .with_context(|| format!("cannot import {}", source.reference))?;
    // The kubelet sees what containerd's CRI part has taken note of.
    let filter = format!("name=={}", source.reference);
    wait_for(
        &format!("{} on the node", source.reference),
        Duration::from_secs(20),
        || async {
            let list = run(ctr().args(["images", "ls", &filter]))?;
            if !list.contains("io.cri-containerd.image=managed") {
                bail!("containerd lists:\n{list}");
            }
            Ok(())
        },
    )
    .await?;
    let mut loaded = read_loaded(state);
    loaded.insert(source.reference.clone(), source.hash.clone());
    sh::write(
        &state.path("images.json"),
        serde_json::to_vec_pretty(&loaded)?,
    )
}

fn is_loaded(state: &State, source: &Source) -> bool {
    read_loaded(state).get(&source.reference) == Some(&source.hash)
}

fn read_loaded(state: &State) -> BTreeMap<String, String> {
    let bytes = fs::read(state.path("images.json")).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_the_hub_of_the_kubelet() {
        assert_eq!(
            full_name(Image::Sidecar.name()),
            "docker.io/toolward/sidecar:dev"
        );
        assert_eq!(full_name("toolward/pause:dev"), PAUSE_IMAGE);
    }
}
