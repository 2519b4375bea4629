//! The status of an agent, as the relay and the control port are told it. It is true during
//! restarts too.

mod evidence;

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};

use self::evidence::Evidence;
use super::Agent;
use super::effect::Effect;
use super::shorten::shorten;
use super::supervisor::State;
use crate::core::agent::tracker::Status;
use crate::core::limits::*;
use crate::core::session::TERMINAL_SESSION;
use crate::core::time::{Now, Tick};
use crate::wire::api::{AgentStatus, DetailedStatus, StatusSource};
use crate::wire::bus::ClientFrame;
use crate::wire::control::LogLevel;

/// The status that was told last, and what has changed since.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    dirty: bool,
    again: bool,
    sent: Option<Value>,
    word: Option<DetailedStatus>,
    since: Option<(Tick, i64)>,
    timeline: Option<Value>,
    context: Value,
    /// Mode, plan and whatever else a session tells of itself.
    facts: Map<String, Value>,
    /// What proves each word that the status has had lately.
    evidence: BTreeMap<DetailedStatus, Evidence>,
    /// What the session gives as evidence of what it says next.
    said: Option<String>,
    silent: bool,
    logged: VecDeque<(String, Tick)>,
}

impl Publisher {
    pub fn touch(&mut self) {
        self.dirty = true;
    }

    /// After every `registered` the newest status is sent.
    pub fn send_again(&mut self) {
        self.dirty = true;
        self.again = true;
    }

    pub fn set_context(&mut self, context: Value) {
        self.context = context;
        self.dirty = true;
    }

    pub fn set_fact(&mut self, name: &str, value: Value) {
        self.facts.insert(name.into(), value);
        self.dirty = true;
    }

    /// What the session tells of itself under that name.
    pub fn fact(&self, name: &str) -> Option<&Value> {
        self.facts.get(name)
    }

    /// The session has said that what was handed over waits, and for what.
    pub fn waits_to_deliver(&self) -> bool {
        self.facts.get("delivery").is_some_and(Value::is_string)
    }

    /// A new process: what the old one told says nothing about it.
    pub fn forget_facts(&mut self) {
        self.facts.clear();
        self.evidence.clear();
        self.said = None;
        self.context = Value::Null;
        self.dirty = true;
    }

    /// One timeline entry waits for the next status; a newer one replaces it.
    pub fn timeline(&mut self, status: &str, now: Now) {
        self.timeline = Some(json!({"status": status, "timestamp": now.wall.0}));
        self.dirty = true;
    }

    /// The same with a whole entry, as a hook has made it.
    pub fn set_timeline(&mut self, entry: Value) {
        self.timeline = Some(entry);
    }

    /// Whether it differs from what the relay was told last.
    pub fn is_news(&self, (word, meta): &(AgentStatus, Map<String, Value>)) -> bool {
        self.again
            || self.timeline.is_some()
            || self.sent.as_ref() != Some(&json!([word.as_str(), meta]))
    }

    /// What has changed until now is on its way, or known.
    pub fn is_told(&mut self) {
        self.dirty = false;
    }

    /// Notes that the relay has this status.
    pub fn note_told(&mut self, (word, meta): (AgentStatus, Map<String, Value>)) {
        self.again = false;
        self.sent = Some(json!([word.as_str(), meta]));
    }

    pub fn take_timeline(&mut self) -> Option<Value> {
        self.timeline.take()
    }

    /// After the last one no status goes out any more.
    pub fn fall_silent(&mut self) {
        self.silent = true;
    }

    /// Whether to log this trouble: the same one at most every five minutes.
    pub fn may_log(&mut self, now: Now, key: &str) -> bool {
        self.logged.retain(|(_, at)| now.tick - *at < LOG_THROTTLE);
        if self.logged.iter().any(|(known, _)| known == key) {
            return false;
        }
        if self.logged.len() >= 32 {
            self.logged.pop_front();
        }
        self.logged.push_back((key.to_string(), now.tick));
        true
    }
}

impl Agent {
    /// The status as people see it; the wire has fewer words.
    pub(super) fn word(&self) -> DetailedStatus {
        use DetailedStatus::*;
        match (&self.supervisor.state, self.tracker.status()) {
            _ if self.stop.as_ref().is_some_and(|stop| stop.failure().is_some()) => Error,
            _ if self.stop.is_some() => Offline,
            (State::Parked, _) => Parked,
            (State::Ready { .. }, Status::Error) => Error,
            (State::Ready { .. }, _) if !self.approvals.is_empty() => Blocked,
            (State::Ready { .. }, Status::Idle) => Idle,
            (State::Ready { .. }, Status::Busy) if self.life.is_stuck() => Stuck,
            (State::Ready { .. }, Status::Busy) => Busy,
            (State::Ready { .. }, Status::Offline) => Offline,
            (State::Waiting { .. }, _) => Restarting,
            _ if self.supervisor.is_restarting() => Restarting,
            (State::Down | State::Spawning | State::Opening | State::Ending, _) => Starting,
        }
    }

    /// The status on the wire: an agent that is not ready is offline there, also during a restart.
    pub(super) fn wire_status(&self) -> AgentStatus {
        self.word().coarse()
    }

    fn why(&self) -> String {
        use DetailedStatus::*;
        match self.word() {
            Idle => format!("no turn, no claim, no work{}", self.evidence_text()),
            Busy => format!(
                "work: {}{}{}",
                self.tracker.reasons().join(", "),
                self.state_text(),
                self.evidence_text()
            ),
            Stuck => format!(
                "the turn shows no sign of life{}; `agent-relay command {} interrupt` ends it, `restart` starts the session anew",
                self.evidence_text(),
                self.config.agent_id
            ),
            Blocked => format!("waits for {} approval(s)", self.approvals.len()),
            Offline | Error if self.supervisor.is_ready() && self.stop.is_none() => {
                self.evidence().map(|it| it.text).unwrap_or_else(|| "posted".into())
            }
            Offline | Starting | Restarting | Error | Parked => self.supervisor.why.clone(),
        }
    }

    /// Who says that the status is so.
    fn source(&self) -> StatusSource {
        self.evidence().map_or(StatusSource::Runner, |it| it.source)
    }

    /// What the provider does in its turn, if it says so.
    fn state_text(&self) -> String {
        let state = self.tracker.provider_state();
        let text = |field: &str| state.get(field).and_then(Value::as_str).unwrap_or_default();
        match (text("state"), text("detail")) {
            ("" | "running", _) => String::new(),
            (word, "") => format!(", {word}"),
            (word, detail) => format!(", {word}: {detail}"),
        }
    }

    fn evidence_text(&self) -> String {
        self.evidence().map(|it| format!(" ({})", it.text)).unwrap_or_default()
    }

    pub(super) fn registration_meta(&self) -> Map<String, Value> {
        let mut meta = self.config.registration.meta.clone();
        meta.extend(self.status_meta());
        if !self.config.identity.broad_targets {
            meta.insert("broadTargets".into(), json!(false));
        }
        if let Some(model) = &self.supervisor.model {
            meta.insert("model".into(), json!(model));
        }
        meta
    }

    pub(super) fn heartbeat_meta(&self) -> Map<String, Value> {
        let mut meta = Map::new();
        if let Some(capabilities) = self.config.registration.meta.get("providerCapabilities") {
            meta.insert("providerCapabilities".into(), capabilities.clone());
        }
        if self.status.context.is_object() {
            meta.insert("context".into(), self.status.context.clone());
        }
        meta
    }

    fn status_meta(&self) -> Map<String, Value> {
        let fixed = &self.config.registration.meta;
        let keep = |key: &str| fixed.get(key).cloned().unwrap_or(Value::Null);
        let mut meta = Map::new();
        for key in [
            "runnerId",
            "startedAt",
            "tmuxSession",
            "tmuxSocket",
            "policyName",
            "spawnRequestId",
            "automationId",
            "automationRunId",
            "workspace",
            "workspaceMode",
            "profile",
        ] {
            meta.insert(key.into(), keep(key));
        }
        let action = match &self.stop {
            Some(stop) => json!(stop.lifecycle_action()),
            None if self.word() == DetailedStatus::Restarting => json!("restarting"),
            None => Value::Null,
        };
        meta.insert("lifecycleAction".into(), action);
        if matches!(self.word(), DetailedStatus::Error | DetailedStatus::Parked) {
            meta.insert("terminalStatus".into(), json!("error"));
        }
        meta.insert("status".into(), json!(self.word().as_str()));
        meta.insert("statusWhy".into(), json!(self.why()));
        meta.insert("statusSource".into(), json!(self.source().as_str()));
        meta.insert("statusEvidence".into(), json!(self.evidence().map(|it| it.to_json())));
        meta.insert("busyReasons".into(), json!(self.tracker.reasons()));
        meta.insert("activeWork".into(), json!(self.tracker.work_json()));
        let subagents: Vec<Value> = self
            .tracker
            .work_json()
            .into_iter()
            .filter(|work| work["kind"] == "subagent")
            .collect();
        meta.insert("activeSubagents".into(), json!(subagents));
        if let Some(socket) = &self.supervisor.terminal {
            meta.insert("tmuxSocket".into(), json!(socket));
            meta.insert("tmuxSession".into(), json!(TERMINAL_SESSION));
        }
        meta.insert("activeSubagentCount".into(), json!(self.tracker.count("subagent")));
        let state = if self.approvals.is_empty() {
            self.tracker.provider_state()
        } else {
            json!({"state": "blocked", "reason": "waitingOnApproval", "detail": "waitingOnApproval"})
        };
        meta.insert("providerState".into(), state);
        let approvals = self.approvals_json();
        meta.insert("pendingApproval".into(), approvals.first().cloned().unwrap_or(Value::Null));
        meta.insert("pendingApprovals".into(), json!(approvals));
        let record = self.tokens.record();
        meta.insert(
            "auth".into(),
            json!({"profileId": record.profile_id, "jti": record.jti, "expiresAt": record.expires_at, "rootTokenFallback": false}),
        );
        meta.insert("transport".into(), json!(self.relay_link.state_name()));
        meta.insert("providerFacts".into(), json!(self.status.facts));
        if self.status.context.is_object() {
            meta.insert("context".into(), self.status.context.clone());
        }
        shorten(&mut meta);
        meta
    }

    fn approvals_json(&self) -> Vec<Value> {
        let show = |a: &crate::core::session::Approval| {
            let mut view = a.detail.clone();
            for (field, value) in [
                ("approvalId", json!(a.id)),
                ("title", json!(a.title)),
                ("kind", json!(a.kind)),
                ("input", a.input.clone()),
                ("options", json!(a.options)),
            ] {
                view.insert(field.into(), value);
            }
            Value::Object(view)
        };
        self.approvals.iter().map(show).collect()
    }

    /// The current status as the relay is told it: the word of the wire, and the record beside it.
    pub(super) fn status_told(&self) -> (AgentStatus, Map<String, Value>) {
        let mut meta = self.status_meta();
        if let Some((_, wall)) = self.status.since {
            meta.insert("statusSince".into(), json!(wall));
        }
        (self.wire_status(), meta)
    }

    /// Sends the newest status if it differs from what was sent last. Last value wins; nothing
    /// after the goodbye.
    pub(super) fn publish(&mut self, now: Now) {
        let word = self.word();
        if self.status.word != Some(word) {
            self.status.word = Some(word);
            self.status.since = Some((now.tick, now.wall.0));
            self.status.part_with_evidence(word);
            self.log(LogLevel::Info, "runner", format!("status {word}: {}", self.why()));
        }
        if !self.status.dirty || self.status.silent {
            return;
        }
        if !self.relay_link.is_registered() {
            return self.plan_telling(now);
        }
        self.status.is_told();
        let told = self.status_told();
        if !self.status.is_news(&told) {
            return;
        }
        self.status.note_told(told.clone());
        let (agent_status, mut meta) = told;
        meta.extend(self.status.take_timeline().map(|event| ("timelineEvent".to_string(), event)));
        let ready = Some(agent_status != AgentStatus::Offline);
        let agent_status = agent_status.as_str().into();
        self.out.push(Effect::frame(&ClientFrame::Status {
            agent_status,
            ready,
            meta: Some(meta),
        }));
        if crate::planted::is("status-after-offline") {
            self.status.silent = false;
        } else if self.stop.is_some() {
            self.status.silent = true;
        }
    }

    /// The relay does not take the record of a status: the word counts without it.
    pub(super) fn tell_bare_status(&mut self) {
        let agent_status = self.wire_status();
        if !self.relay_link.is_registered() || self.status.silent {
            return;
        }
        let ready = Some(agent_status != AgentStatus::Offline);
        let agent_status = agent_status.as_str().into();
        self.out.push(Effect::frame(&ClientFrame::Status { agent_status, ready, meta: None }));
    }

    /// The answer to `GET /status`: all that the runner knows of itself.
    pub(super) fn truth(&self, now: Now) -> Value {
        let ago = |at: Tick| (now.tick - at).as_millis() as u64;
        let trouble = |e: &Option<(String, Tick)>| {
            e.as_ref().map(|(text, at)| json!({"text": text, "agoMs": ago(*at)}))
        };
        let (waiting, more, unread) = self.inbox.counts();
        let since = self.status.since;
        json!({
            "ok": true,
            "agentId": self.config.agent_id, "runnerId": self.config.runner_id, "provider": self.config.provider,
            "status": self.word().as_str(), "why": self.why(),
            "since": since.map(|(_, wall)| wall), "sinceMs": since.map(|(at, _)| ago(at)),
            "source": self.source().as_str(), "evidence": self.evidence().map(|it| it.to_json()),
            "agentStatus": self.wire_status().as_str(), "ready": self.wire_status() != AgentStatus::Offline,
            "work": self.tracker.work_json(), "claims": self.tracker.claims_json(now.tick),
            "terminal": self.supervisor.terminal.as_ref().map(|socket| json!({"tmuxSocket": socket, "tmuxSession": TERMINAL_SESSION})),
            "approvals": self.approvals_json(), "turn": self.turn.summary(),
            "queues": {
                "inboxWaiting": waiting, "inboxMoreInStore": more, "readsToTell": unread,
                "outbox": self.outbox.summary(), "commitsInFlight": self.commits.in_flight(),
            },
            "connection": {
                "state": self.relay_link.state_name(), "relayUrl": self.config.relay_url, "epoch": self.relay_link.epoch,
                "relay": self.generations.summary(),
                "forMs": self.relay_link.since().map(ago), "attempts": self.relay_link.attempts(),
            },
            "prompt": self.prompt_json(),
            "providerProcess": self.provider_json(now), "session": self.status.facts, "context": self.status.context,
            "token": {"profileId": self.tokens.record().profile_id, "expiresAt": self.tokens.record().expires_at},
            "lastErrors": {
                "bus": trouble(&self.relay_link.last_error), "heartbeat": trouble(&self.http_calls.last_error),
                "outbox": trouble(&self.outbox.last_error), "provider": trouble(&self.supervisor.last_exit),
                "store": self.commits.trouble().map(|it| json!({"text": it.cause.to_string(), "agoMs": ago(it.since)})),
            },
            "approvalMode": self.config.approval_mode, "storeNote": self.config.store_note,
        })
    }
}
