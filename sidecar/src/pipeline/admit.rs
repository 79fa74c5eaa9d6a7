//! What has to hold of a request before it is decided on: names, method,
//! token, headers, body, revision, session.

use std::sync::Arc;

use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use policy::Reason;
use serde_json::value::RawValue;

use super::{Element, Exchange, now};
use crate::{
    body::Body,
    envelope::{Kind, Message, Messages},
    era::{self, Era, Revision},
    peer::{Owner, Peer, ViaPeer},
    refusal::Refusal,
    request,
    sessions::{SESSION_ID, Session},
    state,
    upstream::{Principal, UpstreamError},
    wire,
};

/// A request that stands alone, and its method and params.
fn request_of<'m>(messages: &'m Messages<'m>) -> Option<(&'m Message<'m>, &'m str, &'m RawValue)> {
    let message = messages.list.first().filter(|_| !messages.is_batch)?;
    match &message.kind {
        Kind::Request {
            method,
            params: Some(params),
        } => Some((message, method, params)),
        _ => None,
    }
}

impl Exchange {
    /// Names, method, token, headers: all that has to hold before the body is read.
    pub(super) async fn admit(&mut self) -> Result<(), Refusal> {
        request::check_names(&self.parts, &self.active)?;
        let allowed = match self.era {
            Era::Legacy => &[Method::GET, Method::POST, Method::DELETE][..],
            Era::Modern => &[Method::POST],
        };
        if !allowed.contains(&self.parts.method) {
            let (message, header) = match self.era {
                Era::Legacy => ("use POST, GET or DELETE", request::ALLOW),
                Era::Modern => ("this revision has only POST", request::ALLOW_POST),
            };
            let refusal = Refusal::new(
                Reason::MethodNotAllowed,
                StatusCode::METHOD_NOT_ALLOWED,
                message,
            );
            return Err(Refusal {
                header: Some(header),
                ..refusal
            });
        }
        let caller = self
            .active
            .authenticator
            .authenticate(&self.parts.headers, now())
            .await;
        self.caller = Some(caller.map_err(|reason| Refusal::unauthorized(reason, &self.active))?);
        self.shared.identity.check(&self.active.bundle)?;
        request::check_headers(&self.parts.method, &self.parts.headers)
    }

    pub(super) async fn read_body(&mut self, incoming: Incoming) -> Result<(), Refusal> {
        self.body = self.shared.intake.read(incoming).await?;
        if self.parts.method != Method::POST && !self.body.is_empty() {
            return Err(Refusal::malformed("only POST carries a body"));
        }
        Ok(())
    }

    /// The replica that holds the session, where it is not this one.
    pub(super) async fn elsewhere(&self) -> Option<Peer> {
        let id = self
            .parts
            .headers
            .get(SESSION_ID)
            .filter(|_| self.era == Era::Legacy)?;
        if self.parts.extensions.get::<ViaPeer>().is_some() {
            return None; // Never forwarded twice.
        }
        match self.shared.peers.owner(id.to_str().ok()?).await {
            Owner::Peer(peer) => Some(peer),
            Owner::Here | Owner::Unknown => None,
        }
    }

    /// Opens the `requestState` of a request, or has the replica answer that it
    /// came from.
    ///
    /// # Errors
    /// It was not given to this caller, or that replica is gone; with the id of
    /// the request.
    pub(super) async fn brought_back(
        &mut self,
    ) -> Result<Option<Response<Body>>, (Option<Box<RawValue>>, Refusal)> {
        if self.era != Era::Modern || !state::may_be_in(&self.body) {
            return Ok(None);
        }
        let body = self.body.clone();
        // What cannot be read is refused where all messages are read.
        let Ok(messages) = Messages::parse(&body) else {
            return Ok(None);
        };
        let Some((message, method, params)) = request_of(&messages) else {
            return Ok(None);
        };
        let Some(sealed) = wire::member(Some(params), &[state::MEMBER]) else {
            return Ok(None);
        };
        let refused = |refusal| (message.id.map(ToOwned::to_owned), refusal);
        let sealed: String = serde_json::from_str(sealed.get())
            .map_err(|_| refused(Refusal::malformed("params.requestState is no string")))?;
        let owner = match state::replica(&sealed) {
            Some(replica) => self.shared.peers.replica(replica).await,
            None => Owner::Unknown,
        };
        if let Owner::Peer(peer) = &owner
            && self.parts.extensions.get::<ViaPeer>().is_none()
        {
            let relayed = self.shared.peers.forward(peer, &self.parts, body.clone());
            return relayed.await.map(Some).map_err(refused);
        }
        let principal = Principal::of(self.caller());
        let opened = match owner {
            Owner::Here => self.shared.strays.seal.open(&sealed, &principal),
            _ => None,
        };
        let opened = opened.ok_or_else(|| refused(Refusal::unknown_state()))?;
        let opened = serde_json::Value::from(opened).to_string();
        let params = wire::edit(params.get(), &[state::MEMBER], Some(&opened))
            .map_err(|error| refused(Refusal::malformed(error)))?;
        self.body = wire::message(message.id.map(RawValue::get), method, Some(&params)).into();
        Ok(None)
    }

    /// Revision, session, and what each message asks for.
    pub(super) fn read<'a>(
        &mut self,
        messages: &'a Messages<'a>,
    ) -> Result<(Vec<Element<'a>>, Option<Arc<Session>>), Refusal> {
        let (era, revision) = era::of_request(&self.parts.headers, messages)?;
        self.era = era;
        let elements = messages
            .list
            .iter()
            .map(|message| Element::of(message, era));
        let elements = elements.collect::<Result<Vec<_>, _>>()?;
        let session = self.session()?;
        let agreed = session
            .as_ref()
            .and_then(|session| session.revision())
            .or(revision);
        if messages.is_batch {
            if agreed.is_some_and(|revision| revision > Revision::V2025_03_26) {
                return Err(Refusal::malformed(
                    "this revision has no batches: send each message in a request of its own",
                ));
            }
            if elements
                .iter()
                .any(|element| element.method == "initialize")
            {
                return Err(Refusal::malformed("initialize cannot be part of a batch"));
            }
        }
        Ok((elements, session))
    }

    /// The session that the headers name.
    pub(super) fn session(&self) -> Result<Option<Arc<Session>>, Refusal> {
        let id = self.parts.headers.get(SESSION_ID);
        // Where there are no sessions, a stale one means nothing.
        let Some(id) = id.filter(|_| self.era == Era::Legacy) else {
            return Ok(None);
        };
        let found = id
            .to_str()
            .ok()
            .and_then(|id| self.shared.sessions.find(id, self.caller()));
        found
            .map(Some)
            .ok_or_else(|| UpstreamError::SessionUnknown.into())
    }
}
