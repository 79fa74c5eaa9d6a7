//! Compute resources of the sidecar that annotations of the pod ask for.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Refusal, annotation, quoted};
use crate::names::RESOURCE_ANNOTATIONS;

/// Longest quantity, as in the schema of `McpServer`.
const MAX_LEN: usize = 32;

/// Requests or limits.
type Amounts = Option<BTreeMap<String, Quantity>>;

/// Lays the annotations over the sidecar's resources. What is wrong is left out,
/// and told.
pub(super) fn annotated(pod: &Pod, sidecar: &mut Container) -> Vec<Refusal> {
    let [cpu_request, cpu_limit, memory_request, memory_limit] = RESOURCE_ANNOTATIONS;
    let resources = sidecar.resources.get_or_insert_default();
    let (requests, limits) = (&mut resources.requests, &mut resources.limits);
    let set = [
        set(pod, cpu_request, "cpu", requests),
        set(pod, cpu_limit, "cpu", limits),
        set(pod, memory_request, "memory", requests),
        set(pod, memory_limit, "memory", limits),
    ];
    let contradictions = [
        contradiction(pod, resources, "cpu", cpu_request, cpu_limit),
        contradiction(pod, resources, "memory", memory_request, memory_limit),
    ];
    set.into_iter().chain(contradictions).flatten().collect()
}

fn set(pod: &Pod, key: &str, name: &str, list: &mut Amounts) -> Option<Refusal> {
    let text = annotation(pod, key)?;
    if amount(text).is_none() {
        let example = if name == "cpu" { "50m" } else { "64Mi" };
        let shown = quoted(text);
        let message = format!("{shown} is no quantity: write one such as {example}");
        return Some(Refusal::annotation(key, message));
    }
    let list = list.get_or_insert_default();
    list.insert(name.to_owned(), Quantity(text.to_owned()));
    None
}

/// A request above its limit. Where no annotation is at fault, the API server
/// tells of it.
fn contradiction(
    pod: &Pod,
    resources: &ResourceRequirements,
    name: &str,
    request: &str,
    limit: &str,
) -> Option<Refusal> {
    let asked = of(&resources.requests, name)?;
    let most = of(&resources.limits, name)?;
    if amount(asked)? <= amount(most)? {
        return None;
    }
    if annotation(pod, limit).is_some() {
        let message = format!(
            "the limit {most} is below the request {asked}: write a higher one, or a lower {request}"
        );
        return Some(Refusal::annotation(limit, message));
    }
    annotation(pod, request)?;
    let message = format!(
        "the request {asked} is above the limit {most}: write a lower one, or a higher {limit}"
    );
    Some(Refusal::annotation(request, message))
}

fn of<'l>(list: &'l Amounts, name: &str) -> Option<&'l str> {
    Some(&list.as_ref()?.get(name)?.0)
}

/// How much a quantity is; none where it is none. The form is that of the schema
/// of `McpServer`.
fn amount(text: &str) -> Option<f64> {
    let unit = text.find(|letter: char| letter.is_ascii_alphabetic());
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    let scale = match unit {
        "" => 1.0,
        "m" | "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024_f64,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        _ => return None,
    };
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = text.len() <= MAX_LEN && is_digits(whole) && is_digits(fraction);
    let number = number.parse::<f64>().ok().filter(|_| is_number)?;
    // Divided, so that 300m is 0.3.
    Some(match unit {
        "m" => number / scale,
        _ => number * scale,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, wanted) in [
            ("2", 2.0),
            ("0", 0.0),
            ("1.5", 1.5),
            ("50m", 0.05),
            ("64Mi", 67_108_864.0),
            ("2Gi", 2_147_483_648.0),
            ("1k", 1000.0),
        ] {
            let amount = amount(text).unwrap();
            assert!((amount - wanted).abs() < 1e-9, "{text} is {amount}");
        }
        assert_eq!(amount("300m"), amount("0.3"));
        let long = "1".repeat(33);
        for text in [
            "",
            "m",
            "-1",
            "+1",
            ".5",
            "1.",
            "1..5",
            "1e3",
            "1mi",
            "64MB",
            "64 Mi",
            " 1",
            "lots",
            "1é",
            "∞",
            "NaN",
            "inf",
            long.as_str(),
        ] {
            assert_eq!(amount(text), None, "{text:?}");
        }
    }
}
