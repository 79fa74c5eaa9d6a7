//! What `kubectl apply` refuses, `parse` refuses: same place, same words.
#![allow(clippy::unwrap_used, missing_docs)]

use crds::{Document, ParseError, parse, testing::InvalidCase};

#[test]
fn each_invalid_manifest_is_refused_with_path_and_advice() {
    let cases = InvalidCase::all().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        parse(case.valid()).unwrap_or_else(|e| panic!("the valid {} is refused: {e}", case.kind));
        let error = parse(case.manifest()).expect_err(&case.case);
        let ParseError::Invalid { errors, .. } = error else {
            panic!("{}: {error}", case.case)
        };
        assert!(
            errors
                .iter()
                .any(|e| e.path == case.path && e.message.contains(&case.says)),
            "{}: expected {:?} to say {:?}, got {errors:?}",
            case.case,
            case.path,
            case.says
        );
    }
}

#[test]
fn names_must_fit_a_service() {
    for (name, good) in [
        ("orders", true),
        ("a-1", true),
        ("1orders", false),
        ("a.b", false),
        (&"a".repeat(53), false),
    ] {
        let mut manifest = InvalidCase::all().unwrap()[0].valid();
        manifest["metadata"]["name"] = (*name).into();
        assert_eq!(parse(manifest).is_ok(), good, "{name}");
    }
}

#[test]
fn a_status_is_not_read() {
    let mut manifest = InvalidCase::all().unwrap()[0].valid();
    manifest["status"] = serde_json::json!({"conditions": [{"type": "FromTheFuture"}]});
    assert!(matches!(parse(manifest), Ok(Document::McpServer(server)) if server.status.is_none()));
}

#[test]
fn other_kinds_and_broken_yaml_are_named() {
    let error = crds::documents("apiVersion: v1\nkind: Pod\n")
        .unwrap_err()
        .to_string();
    assert!(error.contains("McpServer or McpToolPolicy"), "{error}");
    assert!(
        crds::documents("a: [")
            .unwrap_err()
            .to_string()
            .contains("YAML")
    );
}
