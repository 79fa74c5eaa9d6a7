//! The admin port: probes, metrics and what the operator asks for.

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use policy::report::Report;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    Shared,
    body::{self, Body},
    front::Phase,
    listeners, pipeline,
};

/// Connections at once.
const MAX_CONNECTIONS: usize = 256;
/// Largest head of a request, in bytes: room for a token.
const MAX_HEAD: usize = 32 * 1024;
/// A request and its answer take at most this long; a probe of the app, its own
/// time more. The kubelet waits 5 s for its own.
const EXCHANGE: Duration = Duration::from_secs(6);

/// Serves the admin port for as long as the process lives.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await; // No descriptors left, most likely.
            continue;
        };
        // Whoever holds all places must not keep the kubelet's probe waiting long.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let longer = OnceLock::new();
            let (shared, asked) = (&*shared, &longer);
            let service = service_fn(move |request| async move {
                Ok::<_, Infallible>(answer(shared, asked, request).await)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            // A probe that hangs up is no event.
            let exchanged = tokio::time::timeout(EXCHANGE, &mut connection).await;
            if let (Err(_), Some(more)) = (exchanged, asked.get()) {
                let _ = tokio::time::timeout(*more, connection).await;
            }
            drop(place);
        });
    }
}

/// Answers a request; `asked` is told how long that may take, where it is a probe
/// of the app.
async fn answer(
    shared: &Shared,
    asked: &OnceLock<Duration>,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".into());
    }
    let probe = shared.app_probes.at(request.uri().path());
    match probe {
        Some(probe) => {
            let _ = asked.set(probe.timeout()); // There is one request.
            match probe.ask().await {
                Ok(()) => text(StatusCode::OK, "ok\n".into()),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            }
        }
        None => at_once(shared, &request),
    }
}

fn at_once(shared: &Shared, request: &Request<Incoming>) -> Response<Body> {
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => ready(shared),
        "/metrics" => match shared.metrics.text() {
            Ok(metrics) => typed(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                metrics,
            ),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/drained" => drained(shared),
        "/status" => status(shared, request.headers()),
        sealed::PATH => identity(shared, request.headers()),
        _ => text(
            StatusCode::NOT_FOUND,
            "try /healthz, /readyz, /metrics or /status\n".into(),
        ),
    }
}

fn ready(shared: &Shared) -> Response<Body> {
    let not = |why: &str| text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    if *shared.phase.borrow() > Phase::Serving {
        return not("draining");
    }
    let Some(active) = shared.config.active() else {
        return not("no bundle has been read");
    };
    if !shared.identity.is_ready(&active.bundle) {
        return not("the key by which the server knows who calls is not published yet");
    }
    if shared.tls.as_ref().is_some_and(|tls| !tls.is_ready()) {
        return not("no TLS certificate can be used");
    }
    let seen = shared.seen.borrow();
    match seen.answered {
        true => text(StatusCode::OK, "ok\n".into()),
        // What it said instead is for the operator: it may hold secrets.
        false => not("the server has not answered yet"),
    }
}

/// For the preStop hook: 200 when a drain was asked for and nothing is open.
fn drained(shared: &Shared) -> Response<Body> {
    let open = shared.metrics.open_requests.get();
    match *shared.phase.borrow() >= Phase::Draining && open == 0 {
        true => text(StatusCode::OK, "drained\n".into()),
        false => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{open} requests are open\n"),
        ),
    }
}

fn status(shared: &Shared, headers: &HeaderMap) -> Response<Body> {
    let Some(active) = shared.config.active() else {
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "no bundle has been read, so nobody is known\n".into(),
        );
    };
    if let Some(operator) = &active.bundle.operator {
        let audience = format!("toolward-admin/{}", active.server);
        if !active
            .authenticator
            .is_subject(headers, operator, &audience, pipeline::now())
        {
            return text(
                StatusCode::UNAUTHORIZED,
                format!("a token of {operator} for audience {audience} is required\n"),
            );
        }
    }
    let seen = shared.seen.borrow();
    let report = Report {
        bundle: shared.config.report(),
        peers: shared.peers.hash(),
        tls: shared.tls.as_ref().map(|tls| tls.report()),
        identity: shared.identity.report(),
        upstream: seen.upstream.clone(),
        listeners: shared.in_pod.then(listeners::of_pod).flatten(),
        issuers: active.authenticator.report(),
        tools: seen.tools.clone(),
    };
    match serde_json::to_string(&report) {
        Ok(report) => typed(StatusCode::OK, "application/json", report),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn identity(shared: &Shared, headers: &HeaderMap) -> Response<Body> {
    let Some(active) = shared.config.active() else {
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "no bundle has been read, so nobody is known\n".into(),
        );
    };
    let (bundle, authenticator) = (&active.bundle, &active.authenticator);
    let answer = shared
        .identity
        .answer(bundle, authenticator, headers, pipeline::now());
    match answer {
        Ok(answer) => typed(StatusCode::OK, "application/json", answer),
        Err((status, why)) => text(status, why),
    }
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", text)
}

fn typed(status: StatusCode, content_type: &'static str, content: String) -> Response<Body> {
    let mut answer = Response::new(body::full(content));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
