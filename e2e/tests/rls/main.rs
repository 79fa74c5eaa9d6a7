//! `examples/postgres-rls` on a real PostgreSQL: the database itself verifies the
//! sidecar's assertion, and row-level security believes nothing else. Most tests
//! sign what the sidecar would; `whole` has real ones. Neither root nor a cluster is
//! needed where PostgreSQL is installed.
#![allow(missing_docs)]

mod assertions;
mod hostile;
mod keys;
mod kit;
mod mutations;
mod server;
mod whole;

use anyhow::Result;

#[tokio::test(flavor = "multi_thread")]
async fn bad_assertions_are_refused_each_for_its_reason() -> Result<()> {
    assertions::table().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bytes_but_a_valid_assertion_show_a_row() -> Result<()> {
    mutations::show_nothing().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_sees_nothing_without_an_assertion() -> Result<()> {
    hostile::without_an_assertion().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_sees_one_user_with_an_assertion() -> Result<()> {
    hostile::with_an_assertion().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assertion_ends_in_a_long_transaction() -> Result<()> {
    hostile::for_longer_than_it_lives().await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_and_go_and_bad_ones_change_nothing() -> Result<()> {
    keys::come_and_go().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_of_the_mcp_server_see_their_own_orders() -> Result<()> {
    server::two_users().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_of_real_sidecars_see_their_own_orders() -> Result<()> {
    whole::two_users().await
}
