//! The start: what the server is, which thread goes on, and what its record says.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CodexSession, Listens, Request, Stage};
use crate::core::session::{DeliveryOutcome, OpenMode, Opened, Resume, SessionEvent, StartFault};
use crate::core::time::{Now, Tick};
use crate::provider::codex::banner::{Refusal, refusal};
use crate::provider::codex::frames::{TurnRecord, text};
use crate::provider::codex::history::History;
use crate::provider::codex::{LOGIN_CURE, older_than_oldest};
use crate::provider::jsonrpc::RpcError;
use crate::provider::launch::LostConversation;

/// The server listens 0.2 to 1 s after its start; a busy machine may take longer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// Turns on a page of the record.
const PAGE_TURNS: u64 = 20;
/// Pages of the record that are read for deliveries.
const PAGES_MAX: u32 = 50;

/// What is known of the server and of the thread that is being opened.
#[derive(Debug, Default)]
pub(super) struct Opening {
    pub deadline: Option<Tick>,
    resume: Option<Resume>,
    /// Why there is no connection yet.
    pub last_failure: String,
    /// What the server has said before its end.
    pub last_words: String,
    /// Name and version, for people.
    agent: String,
    model: Option<String>,
    /// Why the earlier thread does not go on.
    lost: Option<String>,
    is_new: bool,
    history: History,
    pages: u32,
}

impl CodexSession {
    pub(super) fn on_open(&mut self, now: Now, resume: Option<Resume>) {
        self.opening.resume = resume;
        self.opening.deadline = Some(now.tick + OPEN_TIMEOUT);
        self.stage = Stage::Opening;
        self.connect();
    }

    pub(super) fn fail_open(&mut self, reason: String, permanent: bool) {
        let fault = if permanent { StartFault::Person } else { StartFault::Passing };
        if self.stage == Stage::Opening {
            self.fail_start(reason, fault);
        }
    }

    fn fail_start(&mut self, reason: String, fault: StartFault) {
        self.stage = Stage::Over;
        self.opening.deadline = None;
        self.link.retry_at = None;
        self.emit(SessionEvent::OpenFailed { reason, fault });
    }

    /// The server has ended, perhaps because it does not know where it was to listen: then it may
    /// have done so before anything was asked of it.
    pub(super) fn fail_at_end(&mut self) {
        if !matches!(self.stage, Stage::Fresh | Stage::Opening) {
            return;
        }
        let (reason, fault) = match (refusal(&self.opening.last_words), &self.start.listens) {
            (Some(Refusal::UnixSocket), Listens::Socket { is_chosen: false, .. }) => {
                ("this version of codex has no unix sockets".to_string(), StartFault::Listening)
            }
            (Some(Refusal::UnixSocket), Listens::Socket { .. }) => (
                "this version of codex has no unix sockets: leave --app-server away, or update codex".into(),
                StartFault::Person,
            ),
            (Some(_), _) => (
                "this version of codex cannot be told where its app server listens; update it with: npm install -g @openai/codex".into(),
                StartFault::Person,
            ),
            (None, _) => ("the server ended before it was ready".into(), StartFault::Passing),
        };
        self.fail_start(reason, fault);
    }

    pub(super) fn give_up_opening(&mut self, now: Now) {
        if self.opening.deadline.is_some_and(|at| at <= now.tick) {
            let seconds = OPEN_TIMEOUT.as_secs();
            let mut reason = format!("the server did not answer within {seconds} s");
            if !self.opening.last_failure.is_empty() {
                reason = format!("{reason}: {}", self.opening.last_failure);
            }
            self.fail_open(reason, false);
        }
    }

    /// The server says who it is: a client's name, a slash, its version.
    pub(super) fn on_greeted(&mut self, user_agent: &str) {
        let version = user_agent.split_once('/').map_or("", |(_, rest)| rest);
        let version = version.split(' ').next().unwrap_or_default();
        self.opening.agent = format!("Codex {version}").trim().to_string();
        match older_than_oldest(version) {
            Some(reason) => self.fail_open(reason, true),
            None => self.request(Request::Account, "account/read", json!({})),
        }
    }

    /// Without a login each turn would fail.
    pub(super) fn on_account(&mut self, result: Result<Value, RpcError>) {
        let reply = result.unwrap_or_default();
        let lacks = reply.get("requiresOpenaiAuth") == Some(&Value::Bool(true));
        if lacks && reply.get("account").is_none_or(Value::is_null) {
            return self.fail_open(format!("Codex is not logged in: {LOGIN_CURE}"), true);
        }
        match self.opening.resume.as_ref().filter(|resume| !resume.session.is_empty()) {
            Some(resume) => {
                let mut params = self.start.thread.clone();
                params.insert("threadId".into(), json!(resume.session));
                params.insert("excludeTurns".into(), json!(true));
                self.request(Request::Load, "thread/resume", Value::Object(params));
            }
            None => self.begin_thread(Request::Begin),
        }
    }

    pub(super) fn begin_thread(&mut self, request: Request) {
        let params = Value::Object(self.start.thread.clone());
        self.request(request, "thread/start", params);
    }

    /// A thread has begun: it gets a name, since one without a name and a turn stands nowhere and
    /// cannot be joined.
    pub(super) fn take_thread(&mut self, reply: &Value) {
        self.thread = text(reply, "/thread/id").to_string();
        self.is_loaded = true;
        let params = json!({"threadId": self.thread, "name": self.start.name});
        self.request(Request::Told, "thread/name/set", params);
    }

    pub(super) fn on_begun(&mut self, result: Result<Value, RpcError>) {
        match result {
            Ok(reply) if !text(&reply, "/thread/id").is_empty() => {
                self.opening.is_new = true;
                self.opening.model = Some(text(&reply, "/model").to_string());
                self.take_thread(&reply);
                self.opened();
            }
            Ok(_) => self.fail_open("the server begins no thread".into(), false),
            Err(error) => self.fail_open(error.text, false),
        }
    }

    pub(super) fn on_loaded(&mut self, result: Result<Value, RpcError>) {
        match result {
            Ok(reply) => {
                self.thread = text(&reply, "/thread/id").to_string();
                self.is_loaded = true;
                self.opening.model = Some(text(&reply, "/model").to_string());
                if self.wanted().is_empty() {
                    return self.opened();
                }
                self.ask_history(Value::Null);
            }
            // It stands nowhere, or not any more; whatever else fails may pass.
            Err(error) if is_unknown_thread(&error) => {
                self.opening.lost = Some(error.text);
                self.begin_thread(Request::Begin);
            }
            Err(error) => self.fail_open(error.text, false),
        }
    }

    fn wanted(&self) -> &[crate::core::session::MessageFingerprint] {
        self.opening.resume.as_ref().map_or(&[], |resume| &resume.evidence_for)
    }

    fn ask_history(&mut self, cursor: Value) {
        let params = json!({
            "threadId": self.thread, "limit": self.page(PAGE_TURNS), "itemsView": "full", "cursor": cursor
        });
        self.request(Request::History, "thread/turns/list", params);
    }

    pub(super) fn on_history(&mut self, result: Result<Value, RpcError>) {
        match result {
            Ok(reply) => {
                self.opening.history.push(TurnRecord::page(&reply));
                self.opening.pages += 1;
                let next = reply.get("nextCursor").filter(|cursor| cursor.is_string()).cloned();
                let is_done =
                    self.opening.pages >= PAGES_MAX || self.opening.history.has_all(self.wanted());
                match next.filter(|_| !is_done) {
                    Some(cursor) => self.ask_history(cursor),
                    None => self.opened(),
                }
            }
            // No turn was ever begun in it.
            Err(error) if has_no_turn(&error) => self.opened(),
            Err(error) => self.fail_open(error.text, false),
        }
    }

    fn opened(&mut self) {
        let wanted = self.wanted().to_vec();
        let lost = self.opening.lost.take();
        let told = lost.clone().map(|why| LostConversation { why, is_empty: true });
        let how = match (self.opening.is_new, lost) {
            (true, Some(why)) if wanted.is_empty() => OpenMode::Lost(why),
            // What has no record holds nothing of what was sent.
            (true, Some(_)) => OpenMode::Loaded(vec![DeliveryOutcome::Unseen; wanted.len()]),
            (true, None) => OpenMode::New,
            (false, _) if wanted.is_empty() => OpenMode::Resumed,
            (false, _) => OpenMode::Loaded(self.opening.history.outcomes(&wanted)),
        };
        self.opening.history = History::default();
        self.opening.deadline = None;
        self.stage = Stage::Ready;
        let (session, agent) = (self.thread.clone(), self.opening.agent.clone());
        let model = self.opening.model.take().filter(|model| !model.is_empty());
        self.facts.extend(model.iter().map(|model| ("model", json!(model))));
        self.emit(SessionEvent::Opened(Opened { session, how, agent, model, has_evidence: true }));
        told.into_iter().flat_map(|lost| lost.events()).for_each(|event| self.emit(event));
        let setting = |name: &str| text(&self.start.thread[name], "").to_string();
        let mode = format!("{} in {}", setting("approvalPolicy"), setting("sandbox"));
        self.fact("mode", json!(mode));
        self.open_window();
        self.next_text();
    }
}

/// The thread is not there or cannot be read, as opposed to all that may pass.
pub(super) fn is_unknown_thread(error: &RpcError) -> bool {
    ["no rollout found", "thread not found", "not found", "failed to read session metadata"]
        .iter()
        .any(|text| error.text.contains(text))
}

/// A thread without turns has no list of them.
pub(super) fn has_no_turn(error: &RpcError) -> bool {
    ["not materialized", "not supported yet"].iter().any(|text| error.text.contains(text))
}
