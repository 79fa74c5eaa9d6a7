//! Callers with tokens of real identity providers: npm `oidc-provider` and
//! Keycloak, each in front of `toolward-sidecar run` with a real MCP server behind
//! it. Real MCP clients are given a URL and nothing else, and find their way: 401,
//! metadata, authorization server, registration, login, token for this server,
//! call. Neither root nor a cluster is needed.
#![allow(missing_docs)]

mod audit;
mod canary;
mod flow;
mod issuers;
mod keycloak;
mod lab;
mod metadata;
mod refused;
mod tee;

use anyhow::Result;
use flow::Client;

#[tokio::test(flavor = "multi_thread")]
async fn the_first_sdk_finds_its_way_by_itself() -> Result<()> {
    flow::finds_its_way(Client::Sdk).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_sdk_finds_its_way_by_itself() -> Result<()> {
    flow::finds_its_way(Client::TypeScript).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_sdk_steps_up() -> Result<()> {
    flow::steps_up(Client::Sdk).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_sdk_steps_up() -> Result<()> {
    flow::steps_up(Client::TypeScript).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_lacks_scopes_is_told_all_that_it_needs() -> Result<()> {
    flow::challenges().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_not_for_this_server_are_refused() -> Result<()> {
    refused::all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_name_of_another_issuer_is_another_user() -> Result<()> {
    issuers::are_not_confused().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_are_where_they_belong() -> Result<()> {
    metadata::documents().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_leaves_the_sidecar() -> Result<()> {
    canary::nowhere().await
}

#[tokio::test(flavor = "multi_thread")]
async fn keycloak_with_nested_roles() -> Result<()> {
    keycloak::users_and_agents().await
}
