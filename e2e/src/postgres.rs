//! A throwaway PostgreSQL: a folder of its own, a Unix socket in it, no TCP port.
//! Whoever reaches the socket is whoever he says, so nothing of worth belongs in
//! it. It ends, and its folder goes, when it is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getuid, kill_process};

use crate::sh::{self, command, run};
use crate::tools;
use crate::wait::{PATIENCE, wait_for};

/// Where Debian has its programs.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The name of the superuser, and of a database that is always there.
pub const SUPERUSER: &str = "postgres";

/// A server that runs.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    server: Child,
}

/// What a script printed.
#[derive(Debug)]
pub struct Said {
    /// The rows of all queries.
    pub lines: Vec<String>,
    /// The errors.
    pub errors: String,
}

impl Postgres {
    /// Installs what is missing, and starts one.
    pub async fn start() -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        tools::ensure_postgres()?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("toolward-postgres-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        sh::remove_dir(&folder)?;
        sh::create_dir(&folder)?;
        if getuid().is_root() {
            run(command("chown", &[SUPERUSER]).arg(&folder))?;
        }
        run(program("initdb", &folder)
            .args(["--auth=trust", "--username", SUPERUSER])
            .args(["--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"])
            .arg(folder.join("data")))?;
        let log = File::create(folder.join("log")).context("cannot create its log")?;
        let mut server = program("postgres", &folder);
        server.arg("-D").arg(folder.join("data"));
        server.args(["-c", "listen_addresses=", "-c", "fsync=off", "-c"]);
        server.arg(format!("unix_socket_directories={}", folder.display()));
        server.stdin(Stdio::null()).stdout(log.try_clone()?);
        let server = server.stderr(log).spawn();
        let server = server.context("cannot start PostgreSQL")?;
        let postgres = Self { folder, server };
        let answers = || async { postgres.query(SUPERUSER, SUPERUSER, "SELECT 1") };
        wait_for("PostgreSQL", PATIENCE, answers)
            .await
            .with_context(|| sh::tail(&postgres.folder.join("log"), 20))?;
        Ok(postgres)
    }

    /// How a role's programs find a database of it.
    pub fn connection(&self, role: &str, database: &str) -> String {
        let folder = self.folder.display();
        format!("host={folder} port=5432 dbname={database} user={role}")
    }

    /// psql, to which a script is to be given. It prints rows and errors only.
    pub fn psql(&self, role: &str, database: &str) -> Command {
        let psql = Path::new(PROGRAMS).join("psql");
        let options = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"];
        let mut psql = command(psql, &options);
        psql.arg("--dbname").arg(self.connection(role, database));
        psql
    }

    /// The rows of a script, which ends with an error at its first one.
    pub fn query(&self, role: &str, database: &str, script: &str) -> Result<Vec<String>> {
        let mut psql = self.psql(role, database);
        psql.args(["--set", "ON_ERROR_STOP=1"]);
        let printed = run(psql.arg("--file").arg(self.file(script)?))?;
        Ok(printed.lines().map(str::to_owned).collect())
    }

    /// All that a script says, which goes on after errors.
    pub fn script(&self, role: &str, database: &str, script: &str) -> Result<Said> {
        let mut psql = self.psql(role, database);
        let output = psql.arg("--file").arg(self.file(script)?).output()?;
        let lines = String::from_utf8(output.stdout)?;
        Ok(Said {
            lines: lines.lines().map(str::to_owned).collect(),
            errors: String::from_utf8(output.stderr)?,
        })
    }

    /// A script as a file: a pipe would fill up with what is said to it.
    fn file(&self, script: &str) -> Result<PathBuf> {
        static WRITTEN: AtomicU32 = AtomicU32::new(0);
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.join(format!("script-{number}.sql"));
        sh::write(&file, script)?;
        Ok(file)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Asks it to end at once but in order: killed, it would leave its processes
        // and its shared memory.
        let pid = i32::try_from(self.server.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::INT); // It may have ended.
        }
        let _ = self.server.wait();
        let _ = sh::remove_dir(&self.folder);
    }
}

/// One of its programs. They refuse to run as root.
fn program(name: &str, folder: &Path) -> Command {
    let path = Path::new(PROGRAMS).join(name);
    let mut program = Command::new(&path);
    if getuid().is_root() {
        let user = [
            format!("--reuid={SUPERUSER}"),
            format!("--regid={SUPERUSER}"),
        ];
        program = command("setpriv", &user);
        program.arg("--clear-groups").arg(path);
    }
    // Its Python is Debian's, and has Debian's packages.
    program.env_remove("PYTHONPATH").env_remove("PYTHONHOME");
    program.current_dir(folder);
    program
}
