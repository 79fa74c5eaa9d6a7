//! The Service under whose name callers find the sidecars.

use crds::McpServer;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Owner, selector};
use crate::names::MCP_PORT;

/// The Service of a server: port 80 to the sidecars, or 443 where these speak
/// TLS.
pub fn service(owner: &Owner, server: &McpServer) -> Service {
    let (name, port, protocol) = match server.spec.tls {
        None => ("mcp", 80, None),
        Some(_) => ("https", 443, Some("https")),
    };
    Service {
        metadata: owner.metadata(owner.name.clone(), &[]),
        spec: Some(ServiceSpec {
            selector: Some(selector(&owner.name)),
            ports: Some(vec![ServicePort {
                name: Some(name.to_owned()),
                port,
                target_port: Some(IntOrString::Int(MCP_PORT)),
                protocol: Some("TCP".to_owned()),
                app_protocol: protocol.map(str::to_owned),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
