//! Tests on a real node, with the operator that the chart installs.
//!
//! Each test has a namespace of its own, under restricted pod security. Tests
//! that change or stop the operator run alone.
#![allow(missing_docs)]

mod accounts;
mod credential;
mod denials;
mod failures;
mod identity;
mod injected_traffic;
mod injection;
mod isolation;
mod issuers;
mod lifecycle;
mod manifests;
mod operator;
mod promises;
mod rbac;
mod rejections;
mod release;
mod replicas;
mod roles;
mod rotation;
mod suite;
mod tables;
mod tls;
mod trust;
mod webhook;
