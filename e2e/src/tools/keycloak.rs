//! Keycloak, from Maven Central, with a realm of ours in its database. Both are
//! made once: what is left at the start is to read classes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::packages;
use crate::cache;
use crate::sh::{self, command, run, say};

const VERSION: &str = "26.7.3";
/// Of the archive.
const SHA256: &str = "27a6535553c3cdcd083872ba40629efafb3475e3b758e0c6f691395561dd0f1f";
const MAVEN_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:get";
/// What is decided when it is built, and not at each start.
const BUILD: [&str; 2] = ["build", "--db=dev-file"];
/// For a short life: little is gained by compiling well.
const JAVA: [&str; 2] = ["-XX:TieredStopAtLevel=1", "-Xmx512m"];
/// What of the server is only read.
const READ_ONLY: [&str; 4] = ["lib", "conf", "providers", "themes"];
const DATABASE: &str = "data/h2/keycloakdb.mv.db";

/// Keycloak with a realm.
#[derive(Clone, Debug)]
pub struct Keycloak {
    /// As its archive has it.
    server: PathBuf,
    /// With the realm in it.
    database: PathBuf,
}

impl Keycloak {
    /// Keycloak with the realm of a file. No root is needed where Java, Maven and
    /// unzip are there.
    pub fn ensure(realm: &Path) -> Result<Self> {
        packages::ensure_java()?;
        let server = server()?;
        let database = database(&server, realm)?;
        Ok(Self { server, database })
    }

    /// Serves on a port of 127.0.0.1 over http; `home` is a new folder for what
    /// it writes.
    pub fn serve(&self, home: &Path, port: u16) -> Result<Command> {
        lay_out(&self.server, home)?;
        sh::write(&home.join(DATABASE), sh::read(&self.database)?)?;
        let mut serve = java(&self.server, home);
        serve.args([
            "start",
            "--optimized",
            "--cache=local",
            "--http-enabled=true",
        ]);
        serve.args(["--hostname-strict=false", "--http-host=127.0.0.1"]);
        serve.arg(format!("--http-port={port}"));
        Ok(serve)
    }
}

/// The server, built.
fn server() -> Result<PathBuf> {
    let inputs = [&[SHA256][..], &BUILD].concat();
    let key = format!("keycloak-{}", &sh::digest(inputs)[..12]);
    let folder = cache::folder(&key, |target| {
        say("fetching and building Keycloak (once; this takes minutes)");
        let archive = fetch(target)?;
        run(command("unzip", &["-q"]).arg(archive).arg("-d").arg(target))?;
        sh::remove_dir(&target.join("maven"))?;
        let server = target.join(format!("keycloak-{VERSION}"));
        run(command(server.join("bin/kc.sh"), &BUILD).env("JAVA_OPTS_APPEND", JAVA.join(" ")))
            .map(drop)
    })?;
    Ok(folder.join(format!("keycloak-{VERSION}")))
}

fn fetch(target: &Path) -> Result<PathBuf> {
    let repository = target.join("maven");
    let name = "keycloak-quarkus-dist";
    let mut fetch = command("mvn", &["-q", "-B", MAVEN_PLUGIN, "-Dtransitive=false"]);
    fetch.arg(format!("-Dmaven.repo.local={}", repository.display()));
    fetch.arg(format!("-Dartifact=org.keycloak:{name}:{VERSION}:zip"));
    run(&mut fetch).context("Keycloak comes from Maven Central")?;
    let folder = repository.join("org/keycloak").join(name).join(VERSION);
    let archive = folder.join(format!("{name}-{VERSION}.zip"));
    let hash = sh::sha256(sh::read(&archive)?);
    ensure!(hash == SHA256, "{} has SHA-256 {hash}", archive.display());
    Ok(archive)
}

/// A database with the realm.
fn database(server: &Path, realm: &Path) -> Result<PathBuf> {
    let content = sh::read(realm)?;
    let build = BUILD.join(" ");
    let inputs = [SHA256.as_bytes(), build.as_bytes(), &content];
    let key = format!("keycloak-realm-{}", &sh::digest(inputs)[..12]);
    let folder = cache::folder(&key, |target| {
        say("reading the realm into Keycloak's database (once; this takes a minute)");
        let home = target.join("home");
        lay_out(server, &home)?;
        let mut import = java(server, &home);
        run(import.args(["import", "--optimized", "--file"]).arg(realm))?;
        let made = home.join(DATABASE);
        fs::copy(&made, target.join("database"))
            .with_context(|| format!("no {}", made.display()))?;
        sh::remove_dir(&home)
    })?;
    Ok(folder.join("database"))
}

/// A home in which it can write, beside what it reads.
fn lay_out(server: &Path, home: &Path) -> Result<()> {
    sh::create_dir(home)?;
    for name in READ_ONLY {
        let link = home.join(name);
        symlink(server.join(name), &link)
            .with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

/// What `bin/kc.sh` starts, without the shell in between, which would be killed in
/// its place.
fn java(server: &Path, home: &Path) -> Command {
    let property = |name: &str, value: &Path| format!("-D{name}={}", value.display());
    let mut java = command("java", &JAVA);
    for package in ["util", "util.concurrent", "security", "lang"] {
        java.arg(format!("--add-opens=java.base/java.{package}=ALL-UNNAMED"));
    }
    java.arg(property("kc.home.dir", home))
        .arg(property("jboss.server.config.dir", &home.join("conf")))
        .arg("-Djava.util.logging.manager=org.jboss.logmanager.LogManager")
        .arg("-Dpicocli.disable.closures=true")
        .arg("-Djava.util.concurrent.ForkJoinPool.common.threadFactory=io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory")
        .arg("-cp")
        .arg(server.join("lib/quarkus-run.jar"))
        .arg("io.quarkus.bootstrap.runner.QuarkusEntryPoint")
        .current_dir(home);
    java
}
