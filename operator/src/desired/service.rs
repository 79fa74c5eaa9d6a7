//! The Service under whose name callers find the sidecars.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{Owner, selector};
use crate::names::MCP_PORT;

/// The Service of a server: port 80 to the sidecars.
pub fn service(owner: &Owner) -> Service {
    Service {
        metadata: owner.metadata(owner.name.clone(), &[]),
        spec: Some(ServiceSpec {
            selector: Some(selector(&owner.name)),
            ports: Some(vec![ServicePort {
                name: Some("mcp".to_owned()),
                port: 80,
                target_port: Some(IntOrString::Int(MCP_PORT)),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
