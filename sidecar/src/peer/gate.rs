//! Who may come in by the peer port: the sidecars of this server's pods.

use http::{Request, StatusCode};
use policy::Reason;

use super::HEADER;
use crate::{
    Shared, audit::Record, config::Active, front::Phase, pipeline::now, refusal::Refusal,
    upstream::UpstreamError,
};

/// Marks a request that came by the peer port: it is not forwarded again. An
/// extension, so that nothing on the wire can make one.
#[derive(Clone, Copy, Debug)]
pub struct ViaPeer;

/// Lets a request of another replica in, without the proof that it is one.
///
/// # Errors
/// 403, whatever is wrong with the proof. 404 for a pod that this replica does not
/// know while it leaves: a kubelet brings a pod that ends no news, so one that came
/// since then is never known, and the sessions here are over for its callers.
pub async fn admit<B>(shared: &Shared, request: &mut Request<B>) -> Result<(), Refusal> {
    let Some(active) = shared.config.active() else {
        return Err(refusal(Reason::NoBundle));
    };
    if let Err(reason) = check(shared, &active, request).await {
        let record = Record::new(&active.server, "peer", None, reason, false);
        shared.metrics.decided("peer", reason, false);
        shared.audit.log(&record).await; // Where that fails, it is refused all the same.
        return Err(match reason {
            Reason::SessionUnknown => UpstreamError::SessionUnknown.into(),
            reason => refusal(reason),
        });
    }
    request.headers_mut().remove(HEADER);
    request.extensions_mut().insert(ViaPeer);
    Ok(())
}

async fn check<B>(shared: &Shared, active: &Active, request: &Request<B>) -> Result<(), Reason> {
    let audience = active.bundle.peer_audience.as_deref();
    let audience = audience.ok_or(Reason::WrongAudience)?;
    let mut tokens = request.headers().get_all(HEADER).iter();
    let token = match (tokens.next(), tokens.next()) {
        (Some(token), None) => token.to_str().map_err(|_| Reason::TokenMalformed)?,
        (None, _) => return Err(Reason::TokenMissing),
        (Some(_), Some(_)) => return Err(Reason::TokenMalformed),
    };
    let pod = active.authenticator.pod(token, audience, now())?;
    if pod.namespace != active.bundle.server.namespace {
        return Err(Reason::ClaimInvalid);
    }
    // A pod that is not in the list is another server's, or gone.
    match shared.peers.find(&pod.name).await {
        Some(_) => Ok(()),
        None if *shared.phase.borrow() >= Phase::Leaving => Err(Reason::SessionUnknown),
        None => Err(Reason::ClaimInvalid),
    }
}

/// The header tells the sidecar on the other side that it, and not its caller,
/// is refused.
fn refusal(reason: Reason) -> Refusal {
    let message = "this port is for other replicas of this server";
    Refusal {
        header: Some((HEADER, http::HeaderValue::from_static("refused"))),
        ..Refusal::new(reason, StatusCode::FORBIDDEN, message)
    }
}
