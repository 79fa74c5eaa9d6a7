//! What a server that is taken over can do with the role that it has.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::kit::{DATABASE, IDP, Lab, SEEN, SERVER, become_user, claims, literal, now, with};

/// Statements that must fail, each for its reason.
const REFUSED: &[(&str, &str)] = &[
    // The record of who the user is, and what it is believed by.
    (
        "INSERT INTO toolward.verified VALUES (pg_current_xact_id(), 'https://idp.example', 'alice', NULL, NULL, '{}', 'infinity')",
        "permission denied for table verified",
    ),
    (
        "SELECT * FROM toolward.verified",
        "permission denied for table verified",
    ),
    (
        "UPDATE toolward.verified SET sub = 'bob'",
        "permission denied for table verified",
    ),
    (
        "DELETE FROM toolward.verified",
        "permission denied for table verified",
    ),
    (
        "BEGIN; LOCK TABLE toolward.verified; ROLLBACK",
        "permission denied for table verified",
    ),
    (
        "SELECT * FROM toolward.keys",
        "permission denied for table keys",
    ),
    (
        "INSERT INTO toolward.keys VALUES ('a', 'b', '', '')",
        "permission denied for table keys",
    ),
    (
        "SELECT * FROM toolward.servers",
        "permission denied for table servers",
    ),
    (
        "UPDATE toolward.servers SET url = 'x'",
        "permission denied for table servers",
    ),
    (
        "SELECT toolward.set_keys('a', '{}')",
        "permission denied for function set_keys",
    ),
    (
        "SELECT toolward.forget()",
        "permission denied for function forget",
    ),
    // Other roles.
    (
        "SET ROLE toolward_verifier",
        "permission denied to set role",
    ),
    ("SET ROLE orders_owner", "permission denied to set role"),
    (
        "SELECT set_config('role', 'postgres', false)",
        "permission denied to set role",
    ),
    (
        "SET SESSION AUTHORIZATION postgres",
        "permission denied to set session authorization",
    ),
    (
        "GRANT toolward_verifier TO orders_server",
        "must have admin option",
    ),
    ("ALTER ROLE orders_server BYPASSRLS", "must be superuser"),
    ("ALTER ROLE orders_server SUPERUSER", "must be superuser"),
    // Code of its own in the place of the schema's.
    (
        "CREATE OR REPLACE FUNCTION toolward.become(a text) RETURNS void LANGUAGE sql AS 'SELECT'",
        "permission denied for schema toolward",
    ),
    (
        "ALTER FUNCTION toolward.become OWNER TO orders_server",
        "must be owner of function",
    ),
    (
        "ALTER FUNCTION toolward.identity SET search_path = public",
        "must be owner of function",
    ),
    (
        "DROP FUNCTION toolward.identity CASCADE",
        "must be owner of function",
    ),
    (
        "CREATE FUNCTION public.now() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "permission denied for schema public",
    ),
    (
        "CREATE FUNCTION pg_temp.now() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "permission denied to create temporary tables",
    ),
    (
        "CREATE TEMPORARY TABLE verified (xact xid8, iss text, sub text)",
        "permission denied to create temporary tables",
    ),
    (
        "CREATE TEMPORARY VIEW orders AS SELECT 1",
        "permission denied to create temporary tables",
    ),
    (
        "CREATE TABLE public.verified (xact xid8)",
        "permission denied for schema public",
    ),
    ("CREATE SCHEMA mine", "permission denied for database"),
    (
        "DO LANGUAGE plpython3u $$ pass $$",
        "permission denied for language plpython3u",
    ),
    ("LOAD 'plpython3'", "is not allowed"),
    // The table itself.
    (
        "ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY",
        "must be owner of table",
    ),
    (
        "ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY",
        "must be owner of table",
    ),
    (
        "DROP POLICY own_orders ON shop.orders",
        "must be owner of relation",
    ),
    (
        "CREATE POLICY all_orders ON shop.orders USING (true)",
        "must be owner of table",
    ),
    ("TRUNCATE shop.orders", "permission denied for table orders"),
    (
        "CREATE TRIGGER mine BEFORE INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION toolward.forget()",
        "permission denied for table orders",
    ),
    (
        "INSERT INTO shop.orders (owner_iss, owner_sub, item, quantity) VALUES ('https://idp.example', 'alice', 'x', 1)",
        "permission denied for table orders",
    ),
    (
        "UPDATE shop.orders SET owner_sub = 'bob'",
        "permission denied for table orders",
    ),
    // Without a user there is nobody to own it.
    (
        "INSERT INTO shop.orders (item, quantity) VALUES ('x', 1)",
        "violates row-level security policy",
    ),
    (
        "SET row_security = off; TABLE shop.orders",
        "would be affected by row-level security policy",
    ),
    // The server's files and programs.
    ("COPY shop.orders TO PROGRAM 'cat'", "must be superuser"),
    ("COPY shop.orders TO '/tmp/orders'", "must be superuser"),
    (
        "SELECT pg_read_file('/etc/passwd')",
        "permission denied for function",
    ),
    (
        "SET session_replication_role = replica",
        "permission denied to set parameter",
    ),
];

/// Settings by which other designs say who the user is, and those that change what
/// a statement means.
const SETTINGS: &[(&str, &str)] = &[
    ("toolward.iss", IDP),
    ("toolward.sub", "alice"),
    ("toolward.user_sub", "alice"),
    ("toolward.verified", "true"),
    ("app.user", "alice"),
    ("app.current_user_id", "alice"),
    (
        "request.jwt.claims",
        r#"{"iss": "https://idp.example", "sub": "alice"}"#,
    ),
    ("request.jwt.claim.sub", "alice"),
    ("search_path", "pg_temp, public, shop, toolward, pg_catalog"),
    ("standard_conforming_strings", "off"),
    ("transform_null_equals", "on"),
    ("TimeZone", "Pacific/Kiritimati"),
    ("client_encoding", "LATIN1"),
];

pub async fn without_an_assertion() -> Result<()> {
    let lab = Lab::new().await?;
    for (statement, why) in REFUSED {
        let script = format!("{statement};\nRESET row_security;\n@seen");
        let said = lab.says(&script)?;
        let nothing = said.lines.last().is_some_and(|seen| seen == "-");
        ensure!(
            nothing && said.errors.contains(*why),
            "{statement}: {said:?}"
        );
    }
    let settings = settings_of("alice");
    lab.prints(
        &format!("{settings} @seen BEGIN; @seen COMMIT;"),
        &["-", "-"],
    )?;
    // Nothing is changed of what nobody sees.
    lab.prints(
        "WITH gone AS (DELETE FROM shop.orders RETURNING 1) SELECT count(*) FROM gone;
         WITH more AS (UPDATE shop.orders SET quantity = 9 RETURNING 1) SELECT count(*) FROM more;
         SELECT count(*) FROM shop.orders WHERE 1 / (quantity - 7) = 0;
         SELECT (toolward.identity()).sub IS NULL;",
        &["0", "0", "0", "t"],
    )?;
    let owner = lab.superuser(&format!("SET ROLE orders_owner; {SEEN}"))?;
    ensure!(owner == ["-"], "the owner sees {owner:?}");
    untouched(&lab)
}

/// Writes all settings, for a user.
fn settings_of(user: &str) -> String {
    let set = |(name, value): &(&str, &str)| {
        let value = literal(&value.replace("alice", user));
        format!("SELECT set_config('{name}', {value}, false) \\gset\n")
    };
    SETTINGS.iter().map(set).collect()
}

/// All orders are there, as they were, and no record is left.
fn untouched(lab: &Lab) -> Result<()> {
    let script = "SELECT string_agg(item || quantity, ',' ORDER BY item) FROM shop.orders;
        SELECT count(*) FROM toolward.verified;";
    let found = lab.superuser(script)?;
    ensure!(found == ["cocoa1,coffee7,tea2", "0"], "{found:?}");
    Ok(())
}

const ONCE: &str = "25001 plpy.Error: toolward.become() has to come before everything that writes, and once in a transaction";

pub async fn with_an_assertion() -> Result<()> {
    let lab = Lab::new().await?;
    one_user_only(&lab)?;
    one_transaction_only(&lab)?;
    settings_change_nothing(&lab)?;
    for (statement, why) in [
        ("SET ROLE toolward_verifier", "permission denied"),
        ("SELECT * FROM toolward.verified", "permission denied"),
        (
            "UPDATE toolward.verified SET sub = 'bob'",
            "permission denied",
        ),
        (
            "UPDATE shop.orders SET owner_sub = 'bob'",
            "permission denied",
        ),
        (
            "SET row_security = off; TABLE shop.orders",
            "would be affected by row-level security policy",
        ),
    ] {
        let said = lab.says(&format!("BEGIN; @alice {statement}; ROLLBACK; @seen"))?;
        ensure!(
            said.lines == ["ok", "-"] && said.errors.contains(why),
            "{statement}: {said:?}"
        );
    }
    untouched(&lab)
}

/// One transaction has one user, and that user's rows only.
fn one_user_only(lab: &Lab) -> Result<()> {
    let seen = |script: &str, expected: &[&str]| {
        lab.prints(&format!("BEGIN; {script} ROLLBACK;"), expected)
    };
    seen("@alice @seen", &["ok", "tea"])?;
    // Another user, or the same once more.
    seen("@alice @bob @seen", &["ok", ONCE, "tea"])?;
    seen("@alice @alice @seen", &["ok", ONCE, "tea"])?;
    // A record that is thrown away makes no room for another.
    seen(
        "@alice SET CONSTRAINTS ALL IMMEDIATE; @seen @bob @seen",
        &["ok", "-", ONCE, "-"],
    )?;
    seen(
        "SAVEPOINT a; @alice @seen ROLLBACK TO a; @seen @bob @seen",
        &["ok", "tea", "-", ONCE, "-"],
    )?;
    seen(
        "SAVEPOINT a; @alice RELEASE a; @seen SAVEPOINT b; @seen ROLLBACK TO b; @seen",
        &["ok", "tea", "tea", "tea"],
    )?;
    // One that is refused is no user.
    seen(
        "SELECT test.become('a.b.c'); @seen @bob @seen",
        &[
            "28000 plpy.Error: assertion refused: the header is not base64url",
            "-",
            "ok",
            "coffee",
        ],
    )?;
    // What was begun before sees nobody; nor does the statement itself.
    seen(
        "DECLARE c CURSOR FOR SELECT item FROM shop.orders; @alice FETCH ALL FROM c;",
        &["ok"],
    )?;
    seen(
        "SELECT test.become(@assertion), (SELECT count(*) FROM shop.orders);",
        &["ok|0"],
    )?;
    // A predicate that fails for what it is shown is not shown the rows of others.
    seen(
        "@alice SELECT count(*) FROM shop.orders WHERE 1 / (quantity - 7) = 0;",
        &["ok", "1"],
    )?;
    seen(
        "@alice
         WITH gone AS (DELETE FROM shop.orders RETURNING item) SELECT * FROM gone;
         INSERT INTO shop.orders (item, quantity) VALUES ('milk', 1);
         SELECT owner_iss, owner_sub, agent_iss, agent_sub FROM shop.orders;",
        &[
            "ok",
            "tea",
            "https://idp.example|alice|https://idp.example|assistant",
        ],
    )
}

/// What is known of a user ends with the transaction, on the same connection and on
/// all others.
fn one_transaction_only(lab: &Lab) -> Result<()> {
    lab.prints(
        "BEGIN; @alice @seen COMMIT; @seen BEGIN; @seen COMMIT;",
        &["ok", "tea", "-", "-"],
    )?;
    // Without BEGIN it has ended already.
    lab.prints("@alice @seen", &["ok", "-"])?;
    // Plans are kept, and users are not.
    lab.prints(
        "SET plan_cache_mode = force_generic_plan;
         PREPARE q AS SELECT item FROM shop.orders;
         BEGIN; @alice EXECUTE q; COMMIT;
         EXECUTE q;
         BEGIN; @bob EXECUTE q; ROLLBACK;
         BEGIN; EXECUTE q; ROLLBACK;",
        &["ok", "tea", "ok", "coffee"],
    )?;
    // Rows that were fetched stay with the server that has them: they are alice's.
    lab.prints(
        "BEGIN; @alice DECLARE c CURSOR WITH HOLD FOR SELECT item FROM shop.orders; COMMIT;
         FETCH ALL FROM c;
         BEGIN; @bob @seen COMMIT;
         @seen",
        &["ok", "tea", "ok", "coffee", "-"],
    )?;
    // Another connection at the same time: psql starts it while alice is known.
    let other = lab.postgres.psql(SERVER, DATABASE);
    let words = other
        .get_args()
        .map(|word| literal(&word.to_string_lossy()));
    let words = words.collect::<Vec<_>>().join(" ");
    let program = other.get_program().to_string_lossy();
    lab.prints(
        &format!(
            "BEGIN; SELECT test.become(@assertion) \\gset\n\\! {program} {words} --command \"@seen\"\n@seen COMMIT;"
        ),
        &["-", "tea"],
    )
}

fn settings_change_nothing(lab: &Lab) -> Result<()> {
    let settings = settings_of("bob");
    lab.prints(
        &format!("{settings} BEGIN; @alice @seen COMMIT; BEGIN; @alice {settings} @seen COMMIT;"),
        &["ok", "tea", "ok", "tea"],
    )?;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let script = format!("BEGIN ISOLATION LEVEL {level}; @alice @seen COMMIT; @seen");
        lab.prints(&script, &["ok", "tea", "-"])?;
    }
    // A record has to be written.
    let why = "25006 spiexceptions.ReadOnlySqlTransaction: cannot execute INSERT in a read-only transaction";
    lab.prints("BEGIN READ ONLY; @alice @seen COMMIT;", &[why, "-"])
}

/// Whether an assertion has expired is looked at with each statement.
pub async fn for_longer_than_it_lives() -> Result<()> {
    let lab = Lab::new().await?;
    // It has to outlive the start of the session, and no more.
    let exp = now()? + 15;
    let claims = with(&claims("alice")?, &json!({"exp": exp}));
    let short = become_user(&lab.key.assertion(&claims)?);
    let said = lab.says(&format!(
        "BEGIN; {short} @seen
         SELECT pg_sleep(greatest(0, {exp} - extract(epoch FROM clock_timestamp()))) \\gset
         @seen
         INSERT INTO shop.orders (item, quantity) VALUES ('milk', 1);
         ROLLBACK; {short}"
    ))?;
    let expired = "28000 plpy.Error: assertion refused: it has expired";
    ensure!(
        said.lines == ["ok", "tea", "-", expired]
            && said.errors.contains("violates row-level security policy"),
        "{said:?}"
    );
    untouched(&lab)
}
