//! What the API server asks, and the forms of an answer (`AdmissionReview` of
//! `admission.k8s.io/v1`).

use kube::core::{
    DynamicObject,
    admission::{
        AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1, META_KIND,
    },
};

use crate::status::clip;

/// A question of the API server.
pub type Question = AdmissionRequest<DynamicObject>;

/// The longest text of a refusal.
const MAX_MESSAGE: usize = 4096;
/// The longest warning, and how many there are at most: API servers cut off both.
const MAX_WARNING: usize = 1024;
const MAX_WARNINGS: usize = 16;
/// The most values, and the most objects among them: each takes memory, however
/// few bytes it has.
const MAX_VALUES: usize = 1 << 20;
const MAX_OBJECTS: usize = 1 << 16;

/// Reads a question.
///
/// # Errors
/// What it is instead.
pub fn read(body: &[u8]) -> Result<Question, String> {
    let count = |wanted: &[u8]| body.iter().filter(|byte| wanted.contains(byte)).count();
    if count(b"{") > MAX_OBJECTS || count(b"{[,") > MAX_VALUES {
        return Err(format!(
            "more than {MAX_OBJECTS} objects or {MAX_VALUES} values are not read"
        ));
    }
    let review: AdmissionReview<DynamicObject> =
        serde_json::from_slice(body).map_err(|error| format!("no AdmissionReview: {error}"))?;
    let types = review.types;
    if types.api_version != META_API_VERSION_V1 || types.kind != META_KIND {
        return Err(format!(
            "{} of {}: expected {META_KIND} of {META_API_VERSION_V1}",
            types.kind, types.api_version
        ));
    }
    let request = review.request.ok_or("the AdmissionReview has no request")?;
    Ok(AdmissionRequest { types, ..request })
}

/// Let through as it is.
pub fn allow(question: &Question) -> AdmissionResponse {
    AdmissionResponse::from(question)
}

/// What asks for it is wrong.
pub fn invalid(question: &Question, faults: &[String]) -> AdmissionResponse {
    refuse(question, 422, "Invalid", &faults.join("; "))
}

/// It may not be.
pub fn forbid(question: &Question, faults: &[String]) -> AdmissionResponse {
    refuse(question, 403, "Forbidden", &faults.join("; "))
}

/// It cannot be said yet whether it may be.
pub fn not_yet(question: &Question) -> AdmissionResponse {
    let message = "toolward-operator is starting and does not know all servers and policies yet: try again in a moment";
    refuse(question, 503, "ServiceUnavailable", message)
}

fn refuse(question: &Question, code: u16, reason: &str, message: &str) -> AdmissionResponse {
    let mut response = allow(question).deny(clip(message, MAX_MESSAGE));
    response.result.code = code;
    response.result.reason = reason.to_owned();
    response
}

/// With warnings, which kubectl shows.
pub fn warn(mut response: AdmissionResponse, warnings: Vec<String>) -> AdmissionResponse {
    let line = |text: String| clip(&text.replace(['\n', '\t'], " "), MAX_WARNING);
    let warnings: Vec<_> = warnings.into_iter().take(MAX_WARNINGS).map(line).collect();
    if !warnings.is_empty() {
        response.warnings = Some(warnings);
    }
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn review() -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u1",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "operation": "CREATE", "userInfo": {}, "namespace": "shop", "dryRun": true,
                "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}},
            },
        })
    }

    #[test]
    fn a_question_is_read_and_its_answer_is_for_it() {
        let question = read(review().to_string().as_bytes()).unwrap();
        assert!(question.dry_run);
        let answer = invalid(&question, &["a: b".into(), "c: d".into()]);
        let answer = warn(answer, vec!["two\nlines".into()]);
        let answer = serde_json::to_value(answer.into_review()).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "u1");
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["status"]["code"], 422);
        assert_eq!(answer["response"]["status"]["message"], "a: b; c: d");
        assert_eq!(answer["response"]["warnings"], json!(["two lines"]));
    }

    #[test]
    fn what_is_no_question_is_refused() {
        let mut other = review();
        other["apiVersion"] = "admission.k8s.io/v1beta1".into();
        let mut empty = review();
        empty["request"] = Value::Null;
        let mut many = review();
        many["request"]["object"]["spec"] = json!({"containers": vec![json!({}); MAX_OBJECTS]});
        let mut values = review();
        values["request"]["object"]["spec"] = json!(vec![0; MAX_VALUES]);
        for (body, says) in [
            (json!("x"), "no AdmissionReview"),
            (other, "expected AdmissionReview of admission.k8s.io/v1"),
            (empty, "has no request"),
            (many, "objects"),
            (values, "values"),
        ] {
            let error = read(body.to_string().as_bytes()).unwrap_err();
            assert!(error.contains(says), "{error} does not say {says}");
        }
        assert!(read(b"").is_err());
    }
}
