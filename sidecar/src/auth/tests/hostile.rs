//! All hostile tokens, each with the reason for which it is refused; and what
//! looks like one and is none.

use std::collections::{BTreeMap, HashSet};

use super::{claims, headers, keys, kit::WORLD, shape, signatures};

/// So many are refused, at least (the goal of the project is 60).
const MIN: usize = 80;

#[test]
fn each_hostile_token_has_its_reason() {
    let cases = [
        shape::cases(),
        headers::cases(),
        signatures::cases(),
        claims::cases(),
    ]
    .concat();
    let mut wrong = Vec::new();
    let mut counts = BTreeMap::new();
    for (name, token, expected) in &cases {
        // The second time, a good one is remembered; a bad one never is.
        for _ in 0..2 {
            let found = WORLD.caller(token).map(drop);
            if found != *expected {
                wrong.push(format!("{name}: {found:?} in place of {expected:?}"));
                break;
            }
        }
        let reason = expected.err().map_or("accepted", policy::Reason::as_str);
        *counts.entry(reason).or_insert(0) += 1;
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    let tokens: HashSet<_> = cases.iter().map(|(_, token, _)| token).collect();
    let accepted = counts.get("accepted").copied().unwrap_or_default();
    let refused = tokens.len() - accepted;
    let sets = keys::check();
    println!(
        "row 4: {refused} hostile tokens refused with their reasons, {accepted} good ones accepted, {sets} key sets: {counts:?}"
    );
    assert!(refused >= MIN, "{refused}");
}
