//! Rules that allow nothing, because another one of the same policy denies all of it.

use std::ops::Deref;

use crds::{CLUSTER_ISSUER, Effect, Subject, ToolRule};

use super::{Warnings, shown};
use crate::Glob;

/// Warns of each Allow that one Deny covers whole.
pub(super) fn check(rules: &[ToolRule], warnings: &mut Warnings) {
    let weighed: Vec<_> = rules.iter().map(|rule| (rule, weight(rule))).collect();
    let of = |effect: Effect| {
        let is_it = move |(_, (rule, _)): &(usize, &(&ToolRule, usize))| rule.effect == effect;
        weighed.iter().enumerate().filter(is_it)
    };
    for (index, (allow, allow_weight)) in of(Effect::Allow) {
        let covering = of(Effect::Deny).find(|(_, (deny, deny_weight))| {
            warnings.may_take(allow_weight.saturating_mul(*deny_weight)) && covers(deny, allow)
        });
        if let Some((other, (deny, _))) = covering {
            let message = format!(
                "rule {} (spec.rules[{other}]) denies all of it, and Deny wins, so this rule allows nothing: narrow that one, or remove one of the two",
                shown(&deny.name)
            );
            warnings.add(&format!("spec.rules[{index}]"), &message);
        }
    }
}

/// The bytes of all names and patterns of a rule. Comparing two rules takes at
/// most the product.
fn weight(rule: &ToolRule) -> usize {
    fn bytes<T: Deref<Target = str>>(list: &Option<Vec<T>>) -> usize {
        list.iter().flatten().map(|text| text.len() + 1).sum()
    }
    let subject = |subject: &Subject| {
        bytes(&subject.service_accounts)
            + bytes(&subject.users)
            + bytes(&subject.agents)
            + bytes(&subject.groups)
            + bytes(&subject.scopes)
            + 64 // The name of an issuer.
    };
    let subjects: usize = rule.from.iter().map(subject).sum();
    subjects + bytes(&rule.tools) + bytes(&rule.prompts) + bytes(&rule.resources)
}

/// Whether a rule speaks of all that another one speaks of, to all its callers.
fn covers(wide: &ToolRule, narrow: &ToolRule) -> bool {
    let from = |subject| wide.from.iter().any(|other| includes(other, subject));
    names_cover(&wide.tools, &narrow.tools)
        && names_cover(&wide.prompts, &narrow.prompts)
        && uris_cover(&wide.resources, &narrow.resources)
        && narrow.from.iter().all(from)
}

/// A `*` is a letter that only a `*` fits: what fits the pattern as a text, fits
/// all that it stands for.
fn names_cover<T: Deref<Target = str>>(wide: &Option<Vec<T>>, narrow: &Option<Vec<T>>) -> bool {
    let globs = wide
        .iter()
        .flatten()
        .map(|pattern| Glob((**pattern).to_owned()));
    let globs: Vec<_> = globs.collect();
    let mut narrow = narrow.iter().flatten();
    narrow.all(|name| globs.iter().any(|glob| glob.matches(name)))
}

fn uris_cover<T: Deref<Target = str>>(wide: &Option<Vec<T>>, narrow: &Option<Vec<T>>) -> bool {
    let fits = |uri: &str| {
        let mut wide = wide.iter().flatten();
        wide.any(|pattern| **pattern == *"**" || **pattern == *uri)
    };
    narrow.iter().flatten().all(|uri| fits(uri))
}

/// Whether all callers that fit `narrow` fit `wide`.
fn includes(wide: &Subject, narrow: &Subject) -> bool {
    if wide.everyone == Some(true) || narrow.everyone == Some(true) {
        return wide.everyone == Some(true);
    }
    let mut asked = wide.scopes.iter().flatten();
    issuer(wide).is_none_or(|name| issuer(narrow) == Some(name))
        && within(
            &narrow.service_accounts,
            &wide.service_accounts,
            |name, pattern| {
                let namespace = pattern.strip_suffix('*');
                name == pattern || namespace.is_some_and(|namespace| name.starts_with(namespace))
            },
        )
        && within(&narrow.users, &wide.users, |name, other| name == other)
        && within(&narrow.agents, &wide.agents, |name, other| name == other)
        && within(&narrow.groups, &wide.groups, |name, other| name == other)
        && asked.all(|scope| narrow.scopes.iter().flatten().any(|has| has == scope))
}

/// The issuer of an item, where it says so.
fn issuer(subject: &Subject) -> Option<&str> {
    let named = subject.issuer.as_deref();
    named.or(subject.service_accounts.as_ref().map(|_| CLUSTER_ISSUER))
}

/// Whether one of `wide`, where there is such a list, fits each of `narrow`.
fn within<T: Deref<Target = str>>(
    narrow: &Option<Vec<T>>,
    wide: &Option<Vec<T>>,
    fits: impl Fn(&str, &str) -> bool,
) -> bool {
    match (narrow, wide) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(narrow), Some(wide)) => narrow
            .iter()
            .all(|name| wide.iter().any(|other| fits(name, other))),
    }
}
