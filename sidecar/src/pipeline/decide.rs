//! Decides on a message, charges the limits, and logs it.

use http::{Response, StatusCode};
use policy::{Operation, Reason, bundle::Effect, decide};
use serde_json::value::RawValue;

use super::{Element, Exchange, now};
use crate::{
    audit::Record,
    body::{self, Body},
    envelope::Kind,
    era::{self, Era},
    method::Action,
    refusal::Refusal,
    sessions::{At, Session},
};

impl Exchange {
    /// Decides, charges the limits, and logs it.
    pub(super) async fn decide(
        &self,
        element: &Element<'_>,
        session: Option<&Session>,
    ) -> Result<(), Refusal> {
        let (verdict, rule) = self.verdict(element, session);
        self.log(&element.method, Some(&element.action), verdict, rule)
            .await
    }

    fn verdict(
        &self,
        element: &Element<'_>,
        session: Option<&Session>,
    ) -> (Result<Reason, Refusal>, Option<(&str, &str)>) {
        if let Kind::Response { .. } = element.message.kind {
            return (self.answers(element, session), None);
        }
        let task_tool = match &element.action {
            Action::Task(task) => match self.shared.strays.tool_of(task, self.caller()) {
                Some(tool) => Some(tool),
                None => {
                    return (
                        Err(Refusal::unknown(
                            Reason::NoRuleMatched,
                            "task",
                            task,
                            self.era,
                        )),
                        None,
                    );
                }
            },
            _ => None,
        };
        let operations = match &task_tool {
            Some(tool) => Some(vec![Operation::Tool(tool)]),
            None => element.action.operations(),
        };
        let Some(operations) = operations else {
            let refusal = Refusal::method(&element.method, self.era);
            let refusal = match element.id() {
                Some(_) => refusal,
                None => Refusal {
                    status: StatusCode::BAD_REQUEST,
                    ..refusal
                },
            };
            return (Err(refusal), None);
        };
        let (mut allowed, mut limits) = ((Reason::AlwaysAllowed, None), Vec::new());
        // Told only where nothing else is in the way, and all of them at once.
        let (mut scopes, mut scoped) = (Vec::new(), None);
        for operation in operations {
            let decision = decide(&self.active.bundle, self.caller(), operation, now());
            let rule = decision
                .rule
                .map(|rule| (rule.policy.as_str(), rule.name.as_str()));
            if decision.effect == Effect::Deny {
                if decision.reason != Reason::InsufficientScope {
                    return (Err(self.denial(decision.reason, operation)), rule);
                }
                scopes.extend_from_slice(decision.scopes);
                scoped = scoped.or(rule);
                continue;
            }
            allowed = (decision.reason, rule);
            limits.extend(decision.limits);
        }
        if !scopes.is_empty() {
            scopes.sort();
            scopes.dedup();
            let had = &self.caller().scopes;
            let refusal = Refusal::insufficient_scope(&scopes, had, &self.active);
            return (Err(refusal), scoped);
        }
        if let Err(refusal) = self.fits(element, session) {
            return (Err(refusal), None);
        }
        if let Action::Tool(tool) = &element.action {
            let charged =
                self.shared
                    .counters
                    .charge(&limits, self.caller(), self.counted_as(tool));
            if let Err((limit, early)) = charged {
                let refusal = Refusal::too_early(&limit.name, early.retry_after);
                return (
                    Err(refusal),
                    Some((limit.policy.as_str(), limit.name.as_str())),
                );
            }
        }
        (Ok(allowed.0), allowed.1)
    }

    fn denial(&self, reason: Reason, operation: Operation<'_>) -> Refusal {
        if reason == Reason::UriNotNormal {
            return Refusal::not_normal(self.era);
        }
        let (what, name) = match operation {
            Operation::Tool(name) => ("tool", name),
            Operation::Prompt(name) => ("prompt", name),
            Operation::Resource(uri) | Operation::Template(uri) => ("resource", uri),
            Operation::Open => {
                return Refusal::unauthorized(reason, &self.active);
            }
        };
        Refusal::unknown(reason, what, name, self.era)
    }

    /// Whether an answer of the caller belongs to a request of the server.
    fn answers(&self, element: &Element<'_>, session: Option<&Session>) -> Result<Reason, Refusal> {
        let id = element.message.id.map_or("null", RawValue::get);
        let was_asked = match session {
            Some(session) => session.asked().take(id),
            None => self.shared.strays.asked(self.caller()).take(id),
        };
        match was_asked {
            true => Ok(Reason::AlwaysAllowed),
            false => Err(Refusal::malformed(
                "no request of the server with this id waits for an answer here",
            )),
        }
    }

    /// What has to hold of an allowed request beside the policy.
    fn fits(&self, element: &Element<'_>, session: Option<&Session>) -> Result<(), Refusal> {
        if let (Action::Tool(tool), Era::Modern) = (&element.action, self.era)
            && let Some(wanted) = self.shared.upstream.params.of(tool)
        {
            era::check_params(&self.parts.headers, element.params(), &wanted)?;
        }
        if let (Some(session), Some(id)) = (session, element.id())
            && let At::Server(_) = session.at
            && !session.is_fresh(id.get(), element.action == Action::List)
        {
            return Err(Refusal::malformed(
                "the id was used by a list in this session: each request needs a new one",
            ));
        }
        Ok(())
    }

    /// The name under which a call is counted: names that the server does not
    /// have share one count, so that a caller cannot fill the table with them.
    fn counted_as<'t>(&self, tool: &'t str) -> &'t str {
        let seen = self.shared.seen.borrow();
        let is_known = seen.tools.iter().flatten().any(|known| known.name == tool);
        if is_known { tool } else { "" }
    }

    pub(super) async fn refuse(
        &self,
        refusal: Refusal,
        method: &str,
        id: Option<&RawValue>,
    ) -> Response<Body> {
        let refusal = self.log(method, None, Err(refusal), None).await;
        refusal.map_or_else(
            |refusal| refusal.into_response(id),
            |()| Response::new(body::empty()),
        )
    }

    /// Writes the audit record; what cannot be logged does not happen.
    pub(super) async fn log(
        &self,
        method: &str,
        action: Option<&Action>,
        verdict: Result<Reason, Refusal>,
        rule: Option<(&str, &str)>,
    ) -> Result<(), Refusal> {
        let (reason, allowed) = verdict
            .as_ref()
            .map_or_else(|refusal| (refusal.reason, false), |reason| (*reason, true));
        let mut record = Record::new(
            &self.active.server,
            method,
            self.caller.as_deref(),
            reason,
            allowed,
        );
        match action {
            Some(Action::Tool(name)) => record.tool = Some(name),
            Some(Action::Prompt(name)) => record.prompt = Some(name),
            Some(Action::Resource(uri) | Action::Template(uri)) => record.resource = Some(uri),
            _ => {}
        }
        (record.policy, record.rule) = rule.unzip();
        if reason == Reason::Malformed {
            record.detail = verdict
                .as_ref()
                .err()
                .map(|refusal| refusal.message.as_str().into());
        }
        self.shared.metrics.decided(method, reason, allowed);
        if !self.shared.audit.log(&record).await {
            return Err(Refusal::new(
                Reason::Overloaded,
                StatusCode::SERVICE_UNAVAILABLE,
                "the audit log cannot be written",
            ));
        }
        verdict.map(|_| ())
    }
}
