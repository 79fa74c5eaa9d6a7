//! `McpToolPolicy`: who may use which tools, prompts and resources of which servers.
#![allow(clippy::duplicated_attributes)] // It takes the arguments of several print columns for one attribute.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Condition, Duration, ItemName, LocalObjectReference, PromptPattern, ResourcePattern, Scope,
    ServiceAccountRef, SubjectName, ToolPattern,
};

/// Who may use which tools, prompts and resources. Without a policy that allows, nobody may use anything.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "toolward.dev",
    version = "v1alpha1",
    kind = "McpToolPolicy",
    plural = "mcptoolpolicies",
    shortname = "mtp",
    category = "toolward",
    namespaced,
    status = "McpToolPolicyStatus",
    derive = "PartialEq",
    doc = "Who may use which tools, prompts and resources of which McpServers. Without a policy that allows, nobody may use anything.",
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].status"
    ),
    printcolumn(
        name = "Targets",
        type_ = "string",
        json_path = ".spec.targetRefs[*].name"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.rules) || has(self.limits)")
        .message("write at least one of rules and limits")
)]
pub struct McpToolPolicySpec {
    /// The McpServers, in the same namespace, that this policy speaks of.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub target_refs: Vec<LocalObjectReference>,
    /// Rules; their order does not matter. Deny wins over Allow; what no rule allows is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Option<Vec<ToolRule>>,
    /// Limits on calls. They grant nothing; all that match a call apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub limits: Option<Vec<Limit>>,
}

/// Allows or denies tools, prompts and resources to callers. A rule says nothing of the kinds that it does not list.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.tools) || has(self.prompts) || has(self.resources)")
        .message("write at least one of tools, prompts and resources: a rule without any would match nothing")
)]
pub struct ToolRule {
    /// Name of the rule, as it shows in the audit log.
    pub name: ItemName,
    /// Whether the rule allows or denies.
    pub effect: Effect,
    /// Callers: the rule matches when any item does.
    #[schemars(length(min = 1, max = 32))]
    pub from: Vec<Subject>,
    /// Tools: the rule matches when any pattern does. `*` stands for any text. Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub tools: Option<Vec<ToolPattern>>,
    /// Prompts: as for tools. Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub prompts: Option<Vec<PromptPattern>>,
    /// Resources by their URI: the rule matches when any pattern does. `*` stands for any text without `/`, `**` for any text: `file:///reports/*.csv`, `file:///reports/**`, `**`. Write URIs in the normal form of RFC 3986 (scheme and host in lower case, no `.` or `..` as a segment, no fragment); a URI of a request that is not in that form is denied. Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub resources: Option<Vec<ResourcePattern>>,
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Effect {
    /// Allows, unless a rule denies.
    Allow,
    /// Denies, whatever else allows.
    Deny,
}

/// Callers. All fields that are written must match.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.issuer) || has(self.serviceAccounts) || has(self.users) || has(self.agents) || has(self.groups) || has(self.scopes) || has(self.everyone)")
        .message("write at least one of issuer, serviceAccounts, users, agents, groups, scopes and everyone: an item without a field would match nobody"),
    validation = Rule::new("!has(self.everyone) || !(has(self.issuer) || has(self.serviceAccounts) || has(self.users) || has(self.agents) || has(self.groups) || has(self.scopes))")
        .message("everyone stands alone: with another field beside it, it says nothing"),
    validation = Rule::new("!has(self.everyone) || self.everyone")
        .message("everyone can only be true: leave it out instead")
        .field_path(".everyone"),
    validation = Rule::new("!has(self.serviceAccounts) || !has(self.issuer) || self.issuer == 'cluster'")
        .message("serviceAccounts belong to the issuer cluster: remove one of the two")
        .field_path(".issuer")
)]
pub struct Subject {
    /// Name of the issuer of the token, as the server has it. Required where a server has several: names mean something only together with who gave them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<ItemName>,
    /// Service accounts of the cluster, as `namespace/name`; `namespace/*` is all of a namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub service_accounts: Option<Vec<ServiceAccountRef>>,
    /// Users (`sub` of the token, or what the issuer's `claims.user` names).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub users: Option<Vec<SubjectName>>,
    /// Agents that act for the user (`act.sub`, `azp` or `client_id` of the token, or what the issuer's `claims.agent` names).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub agents: Option<Vec<SubjectName>>,
    /// Groups (`groups` of the token, or what the issuer's `claims.groups` names); one of them suffices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub groups: Option<Vec<SubjectName>>,
    /// Scopes of the token; all of them are needed. A caller that lacks only scopes is told which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub scopes: Option<Vec<Scope>>,
    /// Every caller that is let in, also an anonymous one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub everyone: Option<bool>,
}

/// `requests` calls in each span of `per` on average (GCRA), `burst` of them at once.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.burst) || self.burst <= self.requests")
        .message("burst must be at most requests")
        .field_path(".burst")
)]
pub struct Limit {
    /// Name of the limit, as it shows in the audit log.
    pub name: ItemName,
    /// Tools: the limit applies when any pattern matches.
    #[schemars(length(min = 1, max = 64))]
    pub tools: Vec<ToolPattern>,
    /// Number of calls.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In which span: `1s`, `1m`, `1h`, at most `24h`.
    pub per: Duration,
    /// How many calls may come at once. Default: `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// A count of its own for each combination of these. Left out: one count for all calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub by: Option<Vec<LimitKey>>,
}

/// What a limit counts by. A caller without the value shares one count with the others.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum LimitKey {
    /// The user, with the issuer that it belongs to.
    User,
    /// The agent, with the issuer that it belongs to.
    Agent,
    /// The tool.
    Tool,
    /// The issuer of the token.
    Issuer,
}

/// Whether the policy is in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpToolPolicyStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, Enforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
