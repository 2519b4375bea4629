//! What each frame of the server means.

use serde_json::{Value, json};

use super::{CodexSession, Request, Stage};
use crate::core::limits::MIRROR_BODY_BYTES_MAX;
use crate::core::session::{Mirror, SessionEvent};
use crate::core::time::Now;
use crate::provider::codex::frames::{self, Item, Notice};
use crate::provider::codex::steps;
use crate::provider::jsonrpc::{Frame, RpcError};
use crate::provider::reader::{self, Damage, Document};
use crate::provider::text::push_bounded;

impl CodexSession {
    pub(super) fn on_text(&mut self, now: Now, text: &str) {
        // What is cut off says nothing that could be trusted; the record or the next frame does.
        let documents = reader::read_line(text.as_bytes()).into_iter();
        for document in documents.filter(|document| document.damage != Damage::Broken) {
            self.on_document(now, document);
        }
    }

    fn on_document(&mut self, now: Now, document: Document) {
        let damage = document.damage;
        match Frame::read(document) {
            Some(Frame::Request { id, method, params }) => {
                self.on_ask(now, id, &method, &params, damage)
            }
            Some(Frame::Notification { method, params }) => {
                if let Some((thread, notice)) = frames::read(&method, &params) {
                    self.on_notice(now, &thread, notice);
                }
            }
            Some(Frame::Reply { id, result }) => {
                if let Some(request) = self.requests.close(id.as_ref()) {
                    self.on_reply(now, request, result);
                }
            }
            None => {}
        }
    }

    fn on_reply(&mut self, now: Now, request: Request, result: Result<Value, RpcError>) {
        match request {
            Request::Initialize => self.on_initialized(now, result),
            Request::Account => self.on_account(result),
            Request::Begin => self.on_begun(result),
            Request::Load => self.on_loaded(result),
            Request::History => self.on_history(result),
            Request::Rejoin => self.on_rejoined(now, result),
            Request::Child(thread) => self.on_child(&thread, result),
            Request::Terminals => self.on_terminals(result),
            Request::Reconcile => self.on_missed(now, result),
            Request::Lookup => self.on_lookup(now, result),
            Request::Turn(id) => self.on_turn_reply(now, id, result),
            Request::Steer(id) => self.on_steer_reply(&id, result),
            Request::Interrupt => self.on_interrupt_reply(result),
            Request::Compact => self.on_compact_reply(result),
            Request::Fresh => self.on_fresh(result),
            Request::Probe(verb) => self.on_probed(verb, result),
            Request::Clean(verb) => self.on_cleaned(verb, result),
            Request::Told => {}
        }
    }

    fn on_notice(&mut self, now: Now, thread: &str, notice: Notice) {
        if self.stage != Stage::Ready {
            return; // of before; what matters of it stands in the record
        }
        match notice {
            Notice::RateLimits(limits) => self.on_rate_limits(limits),
            Notice::Resolved { request } => self.on_resolved(&request),
            notice if thread != self.thread => self.on_other_thread(thread, notice),
            Notice::TurnStarted { turn } => self.on_turn_started(&turn),
            Notice::TurnCompleted(record) => self.on_turn_completed(record),
            Notice::ItemStarted { turn, item } => self.on_item_started(&turn, &item),
            Notice::ItemCompleted { turn, item } => self.on_item_completed(&turn, &item),
            Notice::MessageDelta { turn, item, delta } if self.is_running(&turn) => {
                self.on_delta(&item, &delta)
            }
            Notice::MessageDelta { .. } => {}
            Notice::Status { state, flags } => self.on_status(&state, &flags),
            Notice::Usage { used, window } => self.on_usage(used, window),
            Notice::Failure { error, will_retry: true } => {
                self.turn.iter_mut().for_each(|turn| turn.retries = true);
                let state = json!({"state": "retrying", "detail": error});
                self.emit(SessionEvent::ProviderState(state));
            }
            Notice::Failure { .. } => {} // the end of the turn says the same
            Notice::Model(model) if !model.is_empty() => self.fact("model", json!(model)),
            Notice::Model(_) => {}
            Notice::Closed => self.on_unloaded(now),
        }
    }

    fn is_running(&self, turn: &str) -> bool {
        self.turn.as_ref().is_some_and(|running| running.id == turn)
    }

    fn on_status(&mut self, state: &str, flags: &[String]) {
        if self.turn.is_none() || state != "active" {
            return; // the end of a turn is told with its outcome
        }
        let waits = flags.first().filter(|_| self.approvals.is_empty()); // what is open says more
        let state = match waits {
            Some(flag) => json!({"state": "blocked", "reason": flag}),
            None => json!({"state": "running"}),
        };
        let turn = self.turn.as_mut();
        let waited = turn.is_some_and(|turn| std::mem::replace(&mut turn.waits, waits.is_some()));
        if waited || waits.is_some() {
            self.emit(SessionEvent::ProviderState(state));
        }
    }

    /// The server has put the thread away; it comes back when it is asked for.
    fn on_unloaded(&mut self, _: Now) {
        self.is_loaded = false;
        self.end_commands();
        self.rejoin();
    }

    // ---- items

    fn on_item_started(&mut self, turn: &str, item: &Item) {
        self.on_known_by_item(item);
        self.approvals.note_change(item);
        if !self.is_running(turn) {
            return;
        }
        self.end_retries();
        match item.kind.as_str() {
            "userMessage" => {
                self.on_arrived(item, "the server put the message into the thread");
            }
            "contextCompaction" if self.context.is_none() => {
                self.emit(SessionEvent::Timeline("compacting"))
            }
            // One without a process only asks whether it may run.
            "commandExecution"
                if !item.text("/processId").is_empty() || crate::planted::is("asked-is-run") =>
            {
                let line = steps::summary(&steps::command(item.text("/command")));
                self.turn.iter_mut().for_each(|turn| turn.note_command(&item.id, &line));
            }
            _ => {}
        }
        self.on_step(item);
    }

    fn on_item_completed(&mut self, turn: &str, item: &Item) {
        self.on_known_by_item(item);
        self.approvals.forget_change(&item.id);
        let is_running = self.is_running(turn);
        let number = self.number_of(turn);
        match item.kind.as_str() {
            "userMessage" => {
                let evidence = "the server put the message into the thread";
                if !self.on_arrived(item, evidence) {
                    self.show_prompt(item, number);
                }
            }
            "agentMessage" if is_running => self.on_said(item),
            "contextCompaction" => self.on_compacted(),
            "commandExecution" => self.on_command_done(item),
            _ => {}
        }
        if let Some(step) = steps::step(item, number) {
            if is_running {
                self.on_step(item);
            }
            self.emit(SessionEvent::Mirror(step));
        }
    }

    /// What a person has typed at another client.
    fn show_prompt(&mut self, item: &Item, turn: u64) {
        let mut body = String::new();
        push_bounded(&mut body, &item.said(), MIRROR_BODY_BYTES_MAX);
        if !body.trim().is_empty() {
            let key = Some(item.id.clone());
            let (kind, label, status) = ("prompt", None, None);
            self.emit(SessionEvent::Mirror(Mirror { kind, body, label, status, turn, key }));
        }
    }

    /// The model answers again.
    fn end_retries(&mut self) {
        let retried = self.turn.as_mut().is_some_and(|turn| std::mem::take(&mut turn.retries));
        if retried {
            self.emit(SessionEvent::ProviderState(json!({"state": "running"})));
        }
    }

    // ---- use

    /// Use of the context window, in tokens.
    fn on_usage(&mut self, used: u64, window: u64) {
        if window > 0 {
            let model = self.facts.get("model").cloned().unwrap_or_default();
            self.emit(SessionEvent::Context(json!({
                "utilization": used as f64 / window as f64, "lifecycleState": "active",
                "source": "api", "confidence": "reported", "usedTokens": used,
                "windowTokens": window, "model": model
            })));
        }
    }

    /// Limits of the account, where the provider tells some.
    fn on_rate_limits(&mut self, limits: Value) {
        let told = ["primary", "secondary", "credits", "planType", "rateLimitReachedType"];
        let told = told.into_iter().filter_map(|field| {
            let value = limits.get(field).filter(|value| !value.is_null())?;
            Some((field.to_string(), value.clone()))
        });
        let told: serde_json::Map<String, Value> = told.collect();
        if !told.is_empty() {
            self.fact("rateLimits", Value::Object(told));
        }
    }
}
