//! The crate `rmcp` as a client that carries out a plan.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rmcp::model::{
    ClientCapabilities, ClientConfig, ClientRequest, ClientResult, ErrorCode, Implementation,
    ProtocolVersion, ServerNotification, ServerRequest, SubscriptionFilter,
};
use rmcp::service::{
    ClientLifecycleMode, ClientServiceExt, NotificationContext, PeerRequestOptions, RequestContext,
    RequestHandle, RunningService, Subscription,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ErrorData, RoleClient, Service, ServiceError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::client::{Run, Target};
use crate::outcome::{Failure, Line};
use crate::plan::Era;

const PATIENCE: Duration = Duration::from_secs(120);
const PAGES: usize = 100;

type Outcome<T = Value> = Result<T, Failure>;

/// Carries out the steps of a run.
pub async fn run(run: &Run<'_>) -> Result<Vec<Line>> {
    let mut session = Session::new(run);
    let mut lines = Vec::new();
    for step in run.steps {
        let result = session.step(&step.raw).await;
        let over = step.action == "connect" && result.is_err();
        lines.push(Line::new(step, result));
        if over {
            break;
        }
    }
    Ok(lines)
}

/// What came without being asked for, and the answers to what the server asks.
#[derive(Clone)]
struct Host {
    config: ClientConfig,
    roots: Value,
    events: Arc<Mutex<Vec<(String, Value)>>>,
    count: Arc<watch::Sender<usize>>,
}

impl Host {
    fn happened(&self, method: String, params: Value) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push((method, params));
        self.count.send_replace(events.len());
    }

    fn count(&self) -> usize {
        *self.count.borrow()
    }

    fn find(&self, start: usize, fits: impl Fn(&str, &Value) -> bool) -> Vec<Value> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let events = events.iter().skip(start);
        let events = events.filter(|(method, params)| fits(method, params));
        events.map(|(_, params)| params.clone()).collect()
    }

    /// Waits until so many events fit.
    async fn wait(
        &self,
        start: usize,
        wanted: usize,
        fits: impl Fn(&str, &Value) -> bool,
    ) -> Outcome<Vec<Value>> {
        let mut count = self.count.subscribe();
        let all = async {
            loop {
                let found = self.find(start, &fits);
                if found.len() >= wanted || count.changed().await.is_err() {
                    return found;
                }
            }
        };
        timeout(PATIENCE, all).await.map_err(|_| {
            let found = self.find(start, &fits);
            failure(format!("{} of {wanted} events came", found.len()))
        })
    }

    fn answer(&self, request: ServerRequest) -> Result<ClientResult, serde_json::Error> {
        let params = params(&request);
        Ok(match request {
            ServerRequest::PingRequest(_) => ClientResult::empty(()),
            ServerRequest::CreateMessageRequest(_) => {
                let text = params["messages"][0]["content"]["text"].as_str();
                let text = format!("sampled: {}", text.unwrap_or_default());
                ClientResult::CreateMessageResult(from(json!({
                    "model": "fixture",
                    "role": "assistant",
                    "content": {"type": "text", "text": text},
                }))?)
            }
            ServerRequest::ListRootsRequest(_) => {
                ClientResult::ListRootsResult(from(json!({"roots": self.roots}))?)
            }
            ServerRequest::ElicitRequest(_) => {
                let asked = params["message"].as_str().unwrap_or_default();
                let name = format!("Ada of {}", asked.chars().count());
                ClientResult::ElicitResult(from(
                    json!({"action": "accept", "content": {"name": name}}),
                )?)
            }
            _ => return Err(serde::de::Error::custom("an unknown request")),
        })
    }
}

impl Service<RoleClient> for Host {
    async fn handle_request(
        &self,
        request: ServerRequest,
        _: RequestContext<RoleClient>,
    ) -> Result<ClientResult, ErrorData> {
        self.happened(method(&request), params(&request));
        self.answer(request)
            .map_err(|error| ErrorData::new(ErrorCode::INTERNAL_ERROR, error.to_string(), None))
    }

    async fn handle_notification(
        &self,
        notification: ServerNotification,
        _: NotificationContext<RoleClient>,
    ) -> Result<(), ErrorData> {
        self.happened(method(&notification), params(&notification));
        Ok(())
    }

    fn get_info(&self) -> ClientConfig {
        self.config.clone()
    }
}

fn method(message: &impl Serialize) -> String {
    plain(message)["method"].as_str().unwrap_or_default().into()
}

fn params(message: &impl Serialize) -> Value {
    plain(message)["params"].take()
}

fn plain(message: &impl Serialize) -> Value {
    serde_json::to_value(message).unwrap_or_default()
}

fn from<T: DeserializeOwned>(value: Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(value)
}

fn failure(message: impl ToString) -> Failure {
    Failure {
        code: Value::Null,
        message: message.to_string(),
    }
}

/// What `rmcp` says of a failure.
fn failed(error: ServiceError) -> Failure {
    match error {
        ServiceError::McpError(error) => Failure {
            code: error.code.0.into(),
            message: error.message.into_owned(),
        },
        other => failure(format!("{:#}", anyhow::Error::from(other))),
    }
}

fn contains(value: &Value, part: &Value) -> bool {
    match part {
        Value::Object(members) => members
            .iter()
            .all(|(key, part)| contains(&value[key], part)),
        part => value == part,
    }
}

struct Session<'a> {
    run: &'a Run<'a>,
    host: Host,
    service: Option<RunningService<RoleClient, Host>>,
    server: Option<Child>,
    listening: Option<tokio::task::JoinHandle<()>>,
}

impl<'a> Session<'a> {
    fn new(run: &'a Run<'a>) -> Self {
        let capabilities: ClientCapabilities = from(run.capabilities.clone()).unwrap_or_default();
        Self {
            run,
            host: Host {
                config: ClientConfig::new(capabilities, Implementation::new("rmcp", "1")),
                roots: run.roots.clone(),
                events: Arc::default(),
                count: Arc::new(watch::Sender::new(0)),
            },
            service: None,
            server: None,
            listening: None,
        }
    }

    fn service(&self) -> Outcome<&RunningService<RoleClient, Host>> {
        self.service
            .as_ref()
            .ok_or_else(|| failure("not connected"))
    }

    async fn step(&mut self, step: &Value) -> Outcome {
        let text = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
        match text("do").as_str() {
            "connect" => self.connect().await.map_err(|e| failure(format!("{e:#}"))),
            "tools" => self.pages("tools/list", "tools").await,
            "prompts" => self.pages("prompts/list", "prompts").await,
            "resources" => self.pages("resources/list", "resources").await,
            "templates" => {
                self.pages("resources/templates/list", "resourceTemplates")
                    .await
            }
            "call" => {
                let params = json!({"name": step["tool"], "arguments": arguments(step)});
                let params = from(params).map_err(failure)?;
                result(self.service()?.call_tool(params).await)
            }
            "prompt" => {
                let params = json!({"name": step["name"], "arguments": arguments(step)});
                let params = from(params).map_err(failure)?;
                result(self.service()?.get_prompt(params).await)
            }
            "read" => {
                let params = from(json!({"uri": step["uri"]})).map_err(failure)?;
                result(self.service()?.read_resource(params).await)
            }
            "complete" => {
                self.request("completion/complete", step["params"].clone())
                    .await
            }
            "ping" => self.request("ping", Value::Null).await,
            "level" => {
                self.request("logging/setLevel", json!({"level": step["level"]}))
                    .await
            }
            "subscribe" => self.subscribe(text("uri")).await,
            "unsubscribe" => self.unsubscribe(text("uri")).await,
            "progress" => self.progress(step).await,
            "cancel" => self.cancel(step).await,
            "eventually" => self.eventually(step).await,
            "event" => self.event(step).await,
            "close" => self.close().await,
            other => Err(failure(format!("no such action: {other}"))),
        }
    }

    async fn connect(&mut self) -> Result<Value> {
        let modern: ProtocolVersion = from(json!("2026-07-28"))?;
        let preferred_versions = vec![modern];
        let lifecycle = match self.run.era {
            Era::Legacy => ClientLifecycleMode::Initialize,
            Era::Modern => ClientLifecycleMode::Discover { preferred_versions },
            Era::Auto => ClientLifecycleMode::Auto {
                preferred_versions,
                legacy_version: None,
            },
        };
        let host = self.host.clone();
        let service = match &self.run.target {
            Target::Url { url, token } => {
                let mut config = StreamableHttpClientTransportConfig::with_uri(url.clone());
                if let Some(token) = token {
                    config = config.auth_header(token);
                }
                let transport = StreamableHttpClientTransport::from_config(config);
                host.serve_with_lifecycle(transport, lifecycle).await?
            }
            Target::Command(words) => {
                let (program, arguments) = words.split_first().context("an empty command")?;
                let mut server = Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .spawn()?;
                let pipes = server.stdout.take().zip(server.stdin.take());
                self.server = Some(server);
                let pipes = pipes.context("no pipes")?;
                host.serve_with_lifecycle(pipes, lifecycle).await?
            }
        };
        let info = service.peer_info().context("nothing about the server")?;
        let value = json!({"server": info.server_info, "revision": info.protocol_version});
        self.service = Some(service);
        Ok(value)
    }

    async fn send(&self, method: &str, params: Value) -> Outcome<RequestHandle<RoleClient>> {
        let mut request = json!({"method": method});
        if !params.is_null() {
            request["params"] = params;
        }
        let request: ClientRequest = from(request).map_err(failure)?;
        self.service()?
            .send_cancellable_request(request, PeerRequestOptions::no_options())
            .await
            .map_err(failed)
    }

    async fn request(&self, method: &str, params: Value) -> Outcome {
        result(self.send(method, params).await?.await_response().await)
    }

    /// Walks all pages of a list.
    async fn pages(&self, method: &str, items: &str) -> Outcome {
        let (mut all, mut cursor, mut pages) = (Vec::new(), Value::Null, 0);
        while pages < PAGES {
            let params = match &cursor {
                Value::Null => Value::Null,
                cursor => json!({"cursor": cursor}),
            };
            let mut page = self.request(method, params).await?;
            let Value::Array(found) = page[items].take() else {
                return Err(failure(format!("no {items}: {page}")));
            };
            all.extend(found);
            pages += 1;
            cursor = page["nextCursor"].take();
            if cursor.is_null() {
                break;
            }
        }
        Ok(json!({"items": all, "pages": pages}))
    }

    fn is_modern(&self) -> Outcome<bool> {
        let info = self.service()?.peer_info();
        let info = info.ok_or_else(|| failure("nothing about the server"))?;
        Ok(info.protocol_version.as_str() >= "2026")
    }

    async fn subscribe(&mut self, uri: String) -> Outcome {
        if !self.is_modern()? {
            return self
                .request("resources/subscribe", json!({"uri": uri}))
                .await;
        }
        let filter = json!({
            "toolsListChanged": true,
            "resourcesListChanged": true,
            "resourceSubscriptions": [uri],
        });
        let filter: SubscriptionFilter = from(filter).map_err(failure)?;
        let subscription = self.service()?.listen(filter).await.map_err(failed)?;
        let host = self.host.clone();
        self.listening = Some(tokio::spawn(follow(subscription, host)));
        Ok(json!({"listening": true}))
    }

    async fn unsubscribe(&mut self, uri: String) -> Outcome {
        match self.listening.take() {
            // The handle of the subscription goes, and with it the stream.
            Some(listening) => {
                listening.abort();
                Ok(json!({}))
            }
            None => {
                self.request("resources/unsubscribe", json!({"uri": uri}))
                    .await
            }
        }
    }

    /// A call with progress: the result and the first of the progress.
    async fn progress(&self, step: &Value) -> Outcome {
        let start = self.host.count();
        let params = json!({"name": step["tool"], "arguments": arguments(step)});
        let call = self.send("tools/call", params).await?;
        let token = call.progress_token.clone();
        let result = result(call.await_response().await)?;
        let wanted = step["count"].as_u64().and_then(|n| usize::try_from(n).ok());
        let wanted = wanted.unwrap_or(1);
        let seen = self.host.wait(start, wanted, of(plain(&token)));
        let seen = seen.await?.into_iter().take(wanted).map(without_token);
        let seen: Vec<Value> = seen.collect();
        Ok(json!({"result": result, "progress": seen}))
    }

    /// A call that is given up at its first progress.
    async fn cancel(&self, step: &Value) -> Outcome {
        let start = self.host.count();
        let params = json!({"name": step["tool"], "arguments": arguments(step)});
        let mut call = self.send("tools/call", params).await?;
        let token = call.progress_token.clone();
        self.host.wait(start, 1, of(plain(&token))).await?;
        if call.rx.try_recv().is_ok() {
            return Err(failure("the call was answered"));
        }
        let reason = Some("no longer wanted".to_owned());
        call.cancel(reason).await.map_err(failed)?;
        Ok(json!({"cancelled": true}))
    }

    /// Calls until the answer has what it should have.
    async fn eventually(&mut self, step: &Value) -> Outcome {
        let part = step["contains"].as_str().unwrap_or_default();
        let calls = async {
            loop {
                let value = Box::pin(self.step(&step["trigger"])).await?;
                if value.to_string().contains(part) {
                    return Ok(value);
                }
            }
        };
        let calls = timeout(PATIENCE, calls).await;
        calls.unwrap_or_else(|_| Err(failure(format!("never: {part}"))))
    }

    /// Does something, and waits for what then comes unasked.
    async fn event(&mut self, step: &Value) -> Outcome {
        let start = match step["earlier"] {
            Value::Bool(true) => 0,
            _ => self.host.count(),
        };
        let value = match &step["trigger"] {
            Value::Null => Value::Null,
            trigger => Box::pin(self.step(trigger)).await?,
        };
        let (wanted, part) = (step["event"].as_str().unwrap_or_default(), &step["part"]);
        let fits = |method: &str, params: &Value| {
            method == wanted && (part.is_null() || contains(params, part))
        };
        let event = self.host.wait(start, 1, fits).await?.into_iter().next();
        Ok(json!({"value": value, "event": event}))
    }

    async fn close(&mut self) -> Outcome {
        if let Some(mut service) = self.service.take() {
            service.close().await.map_err(failure)?;
        }
        if let Some(mut server) = self.server.take() {
            let ended = timeout(PATIENCE, server.wait()).await;
            ended.map_err(failure)?.map_err(failure)?;
        }
        Ok(json!({}))
    }
}

fn arguments(step: &Value) -> Value {
    match &step["arguments"] {
        Value::Null => json!({}),
        arguments => arguments.clone(),
    }
}

fn result<T: Serialize>(result: Result<T, ServiceError>) -> Outcome {
    result.map(|value| plain(&value)).map_err(failed)
}

fn of(token: Value) -> impl Fn(&str, &Value) -> bool {
    move |method, params| method == "notifications/progress" && params["progressToken"] == token
}

fn without_token(mut progress: Value) -> Value {
    if let Some(members) = progress.as_object_mut() {
        members.remove("progressToken");
    }
    progress
}

async fn follow(mut subscription: Subscription, host: Host) {
    while let Ok(Some(notification)) = subscription.next().await {
        host.happened(method(&notification), params(&notification));
    }
}
