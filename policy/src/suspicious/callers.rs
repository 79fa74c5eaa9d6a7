//! Items of `from` that can match nobody.

use crds::{CLUSTER_ISSUER, Subject};

use super::{Targets, Warnings, shown};

/// How the cluster's tokens name service accounts.
const ACCOUNT: &str = "system:serviceaccount:";

/// Warns of what no token can have.
pub(super) fn check(path: &str, subject: &Subject, targets: &Targets<'_>, warnings: &mut Warnings) {
    let Subject {
        issuer,
        service_accounts,
        users,
        agents,
        groups,
        scopes,
        everyone: _,
    } = subject;
    let issuer = match (issuer, service_accounts) {
        (Some(name), _) => Some(&**name),
        (None, Some(_)) => Some(CLUSTER_ISSUER),
        (None, None) => targets.issuer,
    };
    let of_others = [("groups", groups.is_some()), ("scopes", scopes.is_some())];
    for (field, is_there) in of_others {
        if is_there && issuer == Some(CLUSTER_ISSUER) {
            let message = format!(
                "the cluster's tokens, those of service accounts, have no {field}, so this item matches nobody: remove it, or accept and name the issuer that gives them"
            );
            warnings.add(&format!("{path}.{field}"), &message);
        }
    }
    for (field, names) in [("users", users), ("agents", agents), ("groups", groups)] {
        for (index, name) in names.iter().flatten().enumerate() {
            let issuer = issuer.filter(|_| field != "groups");
            if let Some(fault) = fault(name, issuer) {
                warnings.add(&format!("{path}.{field}[{index}]"), &fault);
            }
        }
    }
}

/// Why no token of an issuer, where that is known, has a name.
fn fault(name: &str, issuer: Option<&str>) -> Option<String> {
    let is_account = name.starts_with(ACCOUNT);
    let is_cluster = issuer == Some(CLUSTER_ISSUER);
    let name_shown = shown(name);
    match issuer {
        Some(_) if is_cluster && !is_account => Some(format!(
            "{name_shown} is no service account, and the cluster's tokens name nobody else: write serviceAccounts: [NAMESPACE/NAME], or accept and name the issuer that has this name"
        )),
        Some(issuer) if !is_cluster && is_account => Some(format!(
            "{name_shown} is a service account of the cluster, and no token of {} is its: write serviceAccounts: [NAMESPACE/NAME], without issuer",
            shown(issuer)
        )),
        _ if name.trim() != name => Some(format!(
            "{name_shown} begins or ends with a blank, which names hardly have: remove it"
        )),
        _ if name.contains('*') => Some(format!(
            "{name_shown} is compared as it stands, for names have no wildcards: write each name, or issuer alone for all callers of an issuer"
        )),
        _ => None,
    }
}
