//! The start: what the agent is, which conversation goes on, and the permission mode.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{AcpSession, Request, Stage};
use crate::core::session::{DeliveryOutcome, OpenMode, Opened, Resume, SessionEvent, StartFault};
use crate::core::time::Now;
use crate::provider::acp::presets::{mode_for, older_than_tested};
use crate::provider::acp::replay::Replay;
use crate::provider::jsonrpc::{RpcError, UNREADABLE};
use crate::provider::reader::{is_sound, whole};
use crate::provider::settings::ApprovalMode;
use crate::provider::text::one_line;

/// `initialize` may take this long: a first start in a fresh home took up to 14 s.
const INITIALIZE_TIMEOUT: Duration = Duration::from_secs(60);
/// `session/new`, `load` and `resume` may take this long.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// The error of an agent that wants a login first.
const AUTH_REQUIRED: i64 = -32000;

/// What is known of the agent and of the conversation that is being opened.
#[derive(Debug)]
pub(super) struct Opening {
    /// Conversation to go on with.
    resume: Option<Resume>,
    /// Why it cannot go on.
    lost: Option<String>,
    /// Name and version of the agent, for people.
    agent: String,
    agent_name: String,
    can_load: bool,
    can_resume: bool,
    model: Option<String>,
    how: OpenMode,
    /// The record of the conversation, while a load is open.
    pub(super) replay: Option<Replay>,
}

impl Default for Opening {
    fn default() -> Opening {
        Opening {
            resume: None,
            lost: None,
            agent: String::new(),
            agent_name: String::new(),
            can_load: false,
            can_resume: false,
            model: None,
            how: OpenMode::New,
            replay: None,
        }
    }
}

impl Opening {
    /// What the replay says about the messages that were asked for.
    fn outcomes(&self) -> Vec<DeliveryOutcome> {
        let (Some(replay), Some(resume)) = (&self.replay, &self.resume) else {
            return vec![DeliveryOutcome::Unseen];
        };
        vec![replay.outcome(&resume.evidence_for)]
    }
}

/// The config option of a category, as the agent offers it.
pub(super) fn option_of<'a>(options: &'a [Value], category: &str) -> Option<&'a Value> {
    options.iter().find(|option| option.get("category").and_then(Value::as_str) == Some(category))
}

/// The permission modes that the agent names.
fn offered_modes<'a>(options: &'a [Value], reply: &'a Value) -> Vec<&'a str> {
    let named = |list: Option<&'a Value>, field: &'static str| {
        let items = list.and_then(Value::as_array).into_iter().flatten();
        items.filter_map(move |item| item.get(field).and_then(Value::as_str))
    };
    let option = option_of(options, "mode").and_then(|option| option.get("options"));
    let older = reply.pointer("/modes/availableModes");
    let all: BTreeSet<&str> = named(option, "value").chain(named(older, "id")).collect();
    all.into_iter().collect()
}

impl AcpSession {
    pub(super) fn on_open(&mut self, now: Now, resume: Option<Resume>) {
        self.opening.resume = resume;
        self.stage = Stage::Starting;
        self.deadline = Some(now.tick + INITIALIZE_TIMEOUT);
        // Version 1 and no more: a higher number gets a draft in which a prompt returns at once.
        let params = json!({
            "protocolVersion": 1,
            "clientCapabilities": {
                "fs": {"readTextFile": false, "writeTextFile": false}, "terminal": false
            },
            "clientInfo": {
                "name": "agent-relay", "title": "agent-relay", "version": crate::wire::VERSION
            }
        });
        self.request(Request::Initialize, "initialize", params);
    }

    pub(super) fn fail_open(&mut self, reason: String, permanent: bool) {
        self.stage = Stage::Over;
        self.deadline = None;
        let fault = if permanent { StartFault::Person } else { StartFault::Passing };
        self.emit(SessionEvent::OpenFailed { reason, fault });
    }

    pub(super) fn on_initialized(&mut self, now: Now, result: Result<Value, RpcError>) {
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => return self.on_open_error(error),
        };
        let version = reply.get("protocolVersion").and_then(whole).unwrap_or(1);
        if version != 1 {
            let reason = format!(
                "the agent speaks ACP protocol version {version}, this runner speaks version 1"
            );
            return self.fail_open(reason, true);
        }
        let text =
            |at: &str| reply.pointer(at).and_then(Value::as_str).unwrap_or_default().to_string();
        let (name, version) = (text("/agentInfo/name"), text("/agentInfo/version"));
        self.opening.agent = format!("{name} {version}").trim().to_string();
        if self.opening.agent.is_empty() {
            self.opening.agent = "the agent".into();
        }
        if let Some(tested) = older_than_tested(&name, &version) {
            self.warn(format!(
                "{} is older than the tested version {tested}; \
                 its behaviour may differ, better update it",
                self.opening.agent
            ));
        }
        self.opening.agent_name = name;
        self.opening.can_load = reply
            .pointer("/agentCapabilities/loadSession")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        self.opening.can_resume = reply
            .pointer("/agentCapabilities/sessionCapabilities/resume")
            .is_some_and(Value::is_object);
        self.deadline = Some(now.tick + OPEN_TIMEOUT);
        self.open_session();
    }

    /// `session/load` when a batch is unsettled (its replay is the evidence), else `session/resume`
    /// where offered.
    fn open_session(&mut self) {
        let Opening { resume, can_load, can_resume, .. } = &self.opening;
        let (can_load, can_resume) = (*can_load, *can_resume);
        let wants_evidence = resume.as_ref().is_some_and(|resume| !resume.evidence_for.is_empty());
        let cwd = &self.settings.cwd;
        let servers = &self.servers;
        let params =
            |session: &str| json!({"sessionId": session, "cwd": cwd, "mcpServers": servers});
        match resume.as_ref().map(|resume| resume.session.clone()) {
            Some(session) if can_load && (wants_evidence || !can_resume) => {
                let params = params(&session);
                self.session = session;
                self.opening.replay = Some(Replay::default());
                self.request(Request::Load, "session/load", params);
            }
            Some(session) if can_resume => {
                let params = params(&session);
                self.session = session;
                self.request(Request::Resume, "session/resume", params);
            }
            resumable => {
                let params = json!({"cwd": cwd, "mcpServers": servers});
                if resumable.is_some() && self.opening.lost.is_none() {
                    self.opening.lost =
                        Some("the agent can neither load nor resume a session".into());
                }
                if let Some(reason) = &self.opening.lost {
                    self.opening.how = OpenMode::Lost(reason.clone());
                }
                self.request(Request::New, "session/new", params);
            }
        }
    }

    /// The reply to `session/new`, `load` or `resume`.
    pub(super) fn on_opened(
        &mut self,
        now: Now,
        request: Request,
        result: Result<Value, RpcError>,
    ) {
        match (result, request) {
            (Ok(reply), request) => {
                match request {
                    Request::Load => {
                        self.opening.how = OpenMode::Loaded(self.opening.outcomes());
                    }
                    Request::Resume => self.opening.how = OpenMode::Resumed,
                    _ => {}
                }
                self.on_session(now, reply);
            }
            (Err(error), Request::Load | Request::Resume) => self.on_lost(now, error),
            (Err(error), _) => self.on_open_error(error),
        }
    }

    /// Loading may fail although it was advertised: then a new session is started, and people are
    /// told.
    fn on_lost(&mut self, now: Now, error: RpcError) {
        // An answer that could not be read does not say that the conversation is gone.
        if matches!(error.code, AUTH_REQUIRED | UNREADABLE) {
            return self.on_open_error(error);
        }
        self.opening.replay = None;
        self.opening.resume = None;
        self.warn(format!("the earlier conversation is lost: {}", error.text));
        let body = format!(
            "[agent-relay] The earlier conversation could not be restored ({}); \
             a new one starts here.",
            error.text
        );
        self.mirror(0, "response", None, body);
        self.opening.lost = Some(error.text);
        self.deadline = Some(now.tick + OPEN_TIMEOUT);
        self.open_session();
    }

    fn on_open_error(&mut self, error: RpcError) {
        let wants_login = error.code == AUTH_REQUIRED;
        let fix = if wants_login {
            "; log in with the agent's own command first, then start again"
        } else {
            ""
        };
        self.fail_open(format!("{}{fix}", error.text), wants_login);
    }

    fn on_session(&mut self, now: Now, reply: Value) {
        self.opening.replay = None;
        if let Some(session) = reply.get("sessionId").and_then(Value::as_str) {
            if !is_sound(session) {
                return self.on_open_error(RpcError::unreadable());
            }
            self.session = session.to_string();
        }
        let options =
            reply.get("configOptions").and_then(Value::as_array).cloned().unwrap_or_default();
        let current = |category: &str| option_of(&options, category)?.get("currentValue");
        self.opening.model = current("model")
            .or_else(|| reply.pointer("/models/currentModelId"))
            .and_then(Value::as_str)
            .map(str::to_string);
        let mode = current("mode").or_else(|| reply.pointer("/modes/currentModeId"));
        if let Some(mode) = mode.and_then(Value::as_str) {
            self.fact("mode", json!(one_line(mode, 100)));
        }
        let wanted = self.settings.mode.clone().or_else(|| {
            mode_for(&self.opening.agent_name, self.settings.approval_mode).map(str::to_string)
        });
        if let Some(mode) = wanted {
            self.deadline = Some(now.tick + OPEN_TIMEOUT);
            return self.set_mode(mode, &options, &reply);
        }
        if self.settings.approval_mode != ApprovalMode::Open {
            self.warn(
                "no permission mode is known for this agent; what it asks is answered, \
                 what it does not ask is its own configuration's",
            );
        }
        self.on_ready();
    }

    /// Asks for a permission mode. Config options are preferred where both exist: the older call is
    /// not in the current protocol.
    fn set_mode(&mut self, mode: String, options: &[Value], reply: &Value) {
        let offers = |list: Option<&Value>, field: &str| {
            list.and_then(Value::as_array).is_some_and(|items| {
                items.iter().any(|item| item.get(field).and_then(Value::as_str) == Some(&mode))
            })
        };
        let option =
            option_of(options, "mode").filter(|option| offers(option.get("options"), "value"));
        if let Some(id) = option.and_then(|option| option.get("id")).and_then(Value::as_str) {
            let params = json!({"sessionId": self.session, "configId": id, "value": mode});
            self.request(Request::SetMode(mode), "session/set_config_option", params);
        } else if offers(reply.pointer("/modes/availableModes"), "id") {
            let params = json!({"sessionId": self.session, "modeId": mode});
            self.request(Request::SetMode(mode), "session/set_mode", params);
        } else if self.facts.get("mode") == Some(&json!(mode)) {
            self.on_ready();
        } else {
            let offered = offered_modes(options, reply).join(", ");
            let why = match offered.as_str() {
                "" => format!("the agent has no permission modes, so {mode} cannot be set"),
                _ => format!(
                    "the agent does not offer the permission mode {mode}, only {}",
                    one_line(&offered, 300)
                ),
            };
            self.without_mode(why, true);
        }
    }

    pub(super) fn on_mode_set(&mut self, mode: &str, result: Result<Value, RpcError>) {
        match result {
            Ok(_) => {
                self.fact("mode", json!(mode));
                self.on_ready();
            }
            Err(error) => {
                let why = format!("the agent refuses the permission mode {mode}: {}", error.text);
                self.without_mode(why, false);
            }
        }
    }

    /// In its own mode an agent may run what it likes unasked: that is no guarded session.
    fn without_mode(&mut self, why: String, permanent: bool) {
        if self.settings.approval_mode == ApprovalMode::Open || crate::planted::is("unguarded-mode")
        {
            self.warn(why);
            return self.on_ready();
        }
        let approval = self.settings.approval_mode.as_str();
        let reason = format!(
            "{why}; {approval} would not hold: name a mode that asks with \"permissionMode\" in \
             the provider's file, use another version of the agent, or start with --approval open"
        );
        self.fail_open(reason, permanent);
    }

    fn on_ready(&mut self) {
        self.stage = Stage::Ready;
        self.deadline = None;
        let opened = Opened {
            session: self.session.clone(),
            how: std::mem::replace(&mut self.opening.how, OpenMode::New),
            agent: self.opening.agent.clone(),
            model: self.opening.model.clone(),
            has_evidence: self.opening.can_load,
        };
        self.emit(SessionEvent::Opened(opened));
        self.next_turn();
    }
}
