//! Orders of events that no recording has: what the server refuses, loses or says late.

mod missed;
mod port;

use std::time::Duration;

use agent_relay::core::ids::{BatchNumber, VerbNumber};
use agent_relay::core::session::{
    Decision, Delivery, Input, MessageFingerprint, Output, Resume, Session, SessionEvent, Verb,
};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::provider::codex::session::{CodexSession, Listens, ServerStart};
use agent_relay::provider::{ApprovalMode, SessionSettings};
use serde_json::{Value, json};

use crate::shown;

/// A machine whose server is played by the test.
struct Played {
    session: CodexSession,
    now: Now,
    /// Requests that wait for a reply: id, method, parameters.
    open: Vec<(Value, String, Value)>,
    out: Vec<String>,
}

fn machine(mode: ApprovalMode, window: bool) -> Played {
    listening(mode, window, Listens::Socket { path: "/s".into(), is_chosen: false })
}

/// One whose server was told to listen there.
fn listening(mode: ApprovalMode, window: bool, listens: Listens) -> Played {
    let settings = SessionSettings {
        agent: "a".into(),
        cwd: "/w".into(),
        approval_mode: mode,
        mode: None,
        approval_timeout: Duration::from_secs(600),
        capture_full: false,
    };
    let thread = json!({"approvalPolicy": "on-request", "sandbox": "workspace-write"});
    let start = ServerStart {
        listens,
        thread: thread.as_object().cloned().unwrap_or_default(),
        name: "a".into(),
        nonce: "01234567-0".into(),
        program: "codex".into(),
        env: Default::default(),
        has_window: window,
    };
    Played {
        session: CodexSession::new(settings, start),
        now: Now { tick: Tick(1_000_000), wall: Wall(0) },
        open: Vec::new(),
        out: Vec::new(),
    }
}

/// One that is open, with thread `t`.
fn opened(mode: ApprovalMode, window: bool) -> Played {
    let mut played = machine(mode, window);
    played.verb(Verb::Open { resume: None });
    played.greet();
    played.reply("thread/start", json!({"thread": {"id": "t"}, "model": "m"}));
    played.out.clear();
    played
}

impl Played {
    fn input(&mut self, input: Input) {
        for output in self.session.handle(self.now, input) {
            match output {
                Output::Event(event) => {
                    if !matches!(event, SessionEvent::Evidence(_) | SessionEvent::Fact { .. }) {
                        self.out.push(shown::event(&event));
                    }
                }
                Output::SendText(text) => {
                    let frame: Value = serde_json::from_str(&text).expect("JSON");
                    match frame["method"].as_str() {
                        Some(method) if !frame["id"].is_null() => {
                            self.out.push(format!("> {method}"));
                            let (id, params) = (frame["id"].clone(), frame["params"].clone());
                            self.open.push((id, method.into(), params));
                        }
                        Some(_) => {}
                        None => {
                            self.out.push(format!("> answer {} {}", frame["id"], frame["result"]))
                        }
                    }
                }
                Output::Connect { .. } => self.out.push("> connect".into()),
                Output::CloseInput => self.out.push("> close".into()),
                Output::Kill { .. } => self.out.push("> kill".into()),
                Output::StartForeground { arguments } => {
                    self.out.push(format!("> window {}", arguments.join(" ")))
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn verb(&mut self, verb: Verb) {
        self.input(Input::Verb(VerbNumber(1), verb));
    }

    fn later(&mut self, by: Duration) {
        self.now.tick = self.now.tick + by;
        self.input(Input::Wake);
    }

    fn frame(&mut self, frame: Value) {
        self.input(Input::Text(frame.to_string()));
    }

    fn notify(&mut self, method: &str, params: Value) {
        self.frame(json!({"method": method, "params": params}));
    }

    #[track_caller]
    fn take(&mut self, method: &str) -> (Value, Value) {
        let at = self.open.iter().position(|(_, open, _)| open == method);
        let at = at.unwrap_or_else(|| panic!("{method} was not asked: {:?}", self.out));
        let (id, _, params) = self.open.remove(at);
        (id, params)
    }

    #[track_caller]
    fn reply(&mut self, method: &str, result: Value) {
        let (id, _) = self.take(method);
        self.frame(json!({"id": id, "result": result}));
    }

    #[track_caller]
    fn refuse(&mut self, method: &str, why: &str) {
        let (id, _) = self.take(method);
        self.frame(json!({"id": id, "error": {"code": -32600, "message": why}}));
    }

    fn greet(&mut self) {
        self.input(Input::Connected);
        self.reply("initialize", json!({"userAgent": "x/0.171.0 (y)"}));
        self.reply("account/read", json!({"account": {"type": "apiKey"}}));
    }

    fn deliver(&mut self, key: &str, urgent: bool) {
        let (batch, text) = (BatchNumber(1), format!("text of {key}"));
        self.verb(Verb::Deliver(Delivery { batch, key: key.into(), text, person: true, urgent }));
    }

    /// A turn of ours begins with a delivery and shows it.
    fn begin(&mut self, key: &str, turn: &str) {
        self.deliver(key, false);
        self.reply("turn/start", json!({"turn": {"id": turn}}));
        self.started(turn);
        self.said(key, turn);
    }

    fn started(&mut self, turn: &str) {
        self.notify("turn/started", json!({"threadId": "t", "turn": {"id": turn}}));
    }

    fn said(&mut self, key: &str, turn: &str) {
        let item = json!({"type": "userMessage", "id": "u", "clientId": format!("relay-{key}")});
        self.notify("item/completed", json!({"threadId": "t", "turnId": turn, "item": item}));
    }

    fn ended(&mut self, turn: &str, status: &str) {
        let turn = json!({"id": turn, "status": status});
        self.notify("turn/completed", json!({"threadId": "t", "turn": turn}));
    }

    /// What was told since the last look.
    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.out)
    }

    #[track_caller]
    fn tells(&mut self, wanted: &[&str]) {
        let told = self.told();
        let mut rest = told.iter();
        for want in wanted {
            assert!(rest.any(|line| line.contains(want)), "{want:?} is not in order in {told:#?}");
        }
    }
}

fn resumed(evidence: usize) -> Played {
    let mut played = machine(ApprovalMode::Guarded, false);
    let wanted = MessageFingerprint { header: "[m]".into(), start: "x".into(), is_whole: false };
    let evidence_for = vec![wanted; evidence];
    played.verb(Verb::Open { resume: Some(Resume { session: "t".into(), evidence_for }) });
    played.greet();
    played
}

#[test]
fn a_thread_that_stands_nowhere_holds_nothing() {
    let mut played = resumed(1);
    played.refuse("thread/resume", "no rollout found for thread id t");
    played.reply("thread/start", json!({"thread": {"id": "new"}}));
    played.tells(&["how=Loaded([Unseen])"]);
    // A thread that was begun and never used.
    let mut played = resumed(1);
    played.reply("thread/resume", json!({"thread": {"id": "t"}}));
    played.refuse("thread/turns/list", "thread t is not materialized yet");
    played.tells(&["how=Loaded([Unseen])"]);
    // Nothing waited for it.
    let mut played = resumed(0);
    played.refuse("thread/resume", "no rollout found for thread id t");
    played.reply("thread/start", json!({"thread": {"id": "new"}}));
    played.tells(&["how=Lost("]);
}

#[test]
fn what_may_pass_is_no_lost_thread() {
    let mut played = resumed(1);
    played.refuse("thread/resume", "required MCP servers failed to initialize");
    played.tells(&["open failed permanent=false: required MCP"]);
}

#[test]
fn the_record_is_read_page_by_page() {
    let mut played = resumed(1);
    played.reply("thread/resume", json!({"thread": {"id": "t"}}));
    played.reply("thread/turns/list", json!({"data": [], "nextCursor": "c"}));
    let (id, params) = played.take("thread/turns/list");
    assert_eq!(params["cursor"], "c");
    let content = json!([{"type": "text", "text": "[m] x"}]);
    let item = json!({"type": "userMessage", "clientId": "relay-k", "content": content});
    let turn = json!({"id": "u", "status": "interrupted", "items": [item]});
    played.frame(json!({"id": id, "result": {"data": [turn], "nextCursor": "d"}}));
    played.tells(&["how=Loaded([Unanswered])"]);
}

#[test]
fn an_old_server_and_one_without_a_login_are_refused_with_the_cure() {
    let mut played = machine(ApprovalMode::Guarded, false);
    played.verb(Verb::Open { resume: None });
    played.input(Input::Connected);
    played.reply("initialize", json!({"userAgent": "x/0.140.2 (y)"}));
    played.tells(&["open failed permanent=true: Codex 0.140.2 is older"]);
    let mut played = machine(ApprovalMode::Guarded, false);
    played.verb(Verb::Open { resume: None });
    played.input(Input::Connected);
    played.reply("initialize", json!({"userAgent": "x/0.171.0 (y)"}));
    played.reply("account/read", json!({"account": null, "requiresOpenaiAuth": true}));
    played.tells(&["open failed permanent=true: Codex is not logged in: run `codex login`"]);
}

#[test]
fn a_server_that_is_slow_to_listen_is_waited_for() {
    let mut played = machine(ApprovalMode::Guarded, false);
    played.verb(Verb::Open { resume: None });
    for _ in 0..20 {
        played.input(Input::Disconnected("no such file".into()));
        played.later(Duration::from_millis(250));
    }
    assert_eq!(played.told().len(), 21);
    played.later(Duration::from_secs(60));
    played.tells(&["open failed permanent=false: the server did not answer within 60 s: no such"]);
}

#[test]
fn messages_wait_for_the_turn_of_another_client_and_for_a_compaction() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.started("other");
    played.deliver("k", false);
    assert_eq!(played.told(), ["turn started"]);
    played.verb(Verb::Compact { instructions: None });
    played.ended("other", "completed");
    played.tells(&["turn ended None", "> thread/compact/start", "turn started", "compacting"]);
    played.reply("thread/compact/start", json!({}));
    played.started("c");
    let item = json!({"type": "contextCompaction", "id": "i"});
    played.notify("item/completed", json!({"threadId": "t", "turnId": "c", "item": item}));
    assert_eq!(played.told(), Vec::<String>::new());
    played.ended("c", "completed");
    played.tells(&["turn ended None", "compacted", "answered Ok", "> turn/start"]);
}

#[test]
fn a_compaction_that_fails_says_why_at_once() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.verb(Verb::Compact { instructions: None });
    played.reply("thread/compact/start", json!({}));
    played.started("c");
    let turn = json!({"id": "c", "status": "failed", "error": {"message": "no room"}});
    played.notify("turn/completed", json!({"threadId": "t", "turn": turn}));
    played.tells(&["answered Err(\"no room\")"]);
    played.verb(Verb::Compact { instructions: None });
    played.verb(Verb::Compact { instructions: None });
    played.tells(&["answered Err(\"Codex compact is already in progress\")"]);
    played.verb(Verb::Clear);
    played.tells(&["answered Err(\"Codex compact canceled by thread reset\")"]);
}

#[test]
fn an_urgent_text_that_the_turn_did_not_take_goes_in_again() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    played.deliver("urgent", true);
    played.reply("turn/steer", json!({"turnId": "u"}));
    played.told();
    played.ended("u", "interrupted");
    played.tells(&["turn ended Some(1) Cancelled", "> thread/turns/list"]);
    played.reply(
        "thread/turns/list",
        json!({"data": [{"id": "u", "status": "interrupted", "items": []}]}),
    );
    played.tells(&["> turn/start"]);
    let (_, params) = played.take("turn/start");
    assert_eq!(params["clientUserMessageId"], "relay-urgent");
}

#[test]
fn an_interrupt_before_the_turn_is_told_waits_for_it() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.deliver("k", false);
    played.verb(Verb::Interrupt);
    played.reply("turn/start", json!({"turn": {"id": "u"}}));
    assert!(played.open.iter().all(|(_, method, _)| method != "turn/interrupt"));
    played.started("u");
    played.told();
    played.reply("turn/interrupt", json!({}));
    played.ended("u", "interrupted");
    played.tells(&["turn ended Some(1) Cancelled", "turn-interrupt"]);
}

#[test]
fn a_text_that_is_refused_is_tried_again_and_then_given_back() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.deliver("k", false);
    for _ in 0..4 {
        played.refuse("turn/start", "ActiveTurnNotSteerable");
        played.later(Duration::from_secs(1));
    }
    played.told();
    played.refuse("turn/start", "ActiveTurnNotSteerable");
    played.tells(&["turn ended None", "refused 1 k: ActiveTurnNotSteerable"]);
}

#[test]
fn a_thread_that_the_server_has_put_away_is_taken_up_again() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.notify("thread/closed", json!({"threadId": "t"}));
    played.deliver("k", false);
    played.tells(&["> thread/resume"]);
    played.reply("thread/resume", json!({"thread": {"id": "t"}}));
    played.reply("thread/turns/list", json!({"data": []}));
    played.tells(&["> turn/start"]);
}

fn asks(played: &mut Played, id: u64) {
    let params = json!({"threadId": "t", "turnId": "u", "itemId": "i", "command": "rm x"});
    let method = "item/commandExecution/requestApproval";
    played.frame(json!({"id": id, "method": method, "params": params}));
}

#[test]
fn nothing_is_answered_unasked_while_a_person_has_the_window() {
    let mut played = opened(ApprovalMode::ReadOnly, true);
    played.begin("k", "u");
    played.told();
    asks(&mut played, 0);
    played.tells(&["approval \"rm x\""]);
    played.frame(json!({"id": 1, "method": "item/tool/call", "params": {"threadId": "t"}}));
    played.later(Duration::from_secs(86_400));
    let told = played.told();
    assert!(told.iter().all(|line| !line.starts_with("> answer")), "{told:?}");
    played.notify("serverRequest/resolved", json!({"threadId": "t", "requestId": 0}));
    played.tells(&["approval closed: answered elsewhere"]);
    // Without it the mode answers.
    let mut played = opened(ApprovalMode::ReadOnly, false);
    played.begin("k", "u");
    asks(&mut played, 0);
    played.tells(&["> answer 0 {\"decision\":\"decline\"}"]);
}

#[test]
fn a_question_that_nobody_answers_is_denied_in_the_end() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    asks(&mut played, 7);
    played.later(Duration::from_secs(600));
    played.tells(&["> answer 7 {\"decision\":\"decline\"}", "nobody answered in time"]);
}

#[test]
fn a_decision_waits_for_the_connection() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    asks(&mut played, 0);
    played.input(Input::Disconnected("gone".into()));
    let (approval, decision) = ("01234567-1".to_string(), Decision::Approve);
    let decide = Verb::Decide { approval, decision, reason: None, answers: None };
    played.told();
    played.verb(decide.clone());
    played.tells(&["answered Err(\"the session is being connected again"]);
    played.later(Duration::from_millis(250));
    played.input(Input::Connected);
    played.reply("initialize", json!({"userAgent": "x/0.171.0 (y)"}));
    played.reply("thread/resume", json!({"thread": {"id": "t"}}));
    asks(&mut played, 0);
    played.told();
    played.verb(decide);
    played.tells(&["> answer 0 {\"decision\":\"accept\"}"]);
}

#[test]
fn a_server_that_nobody_can_reach_any_more_is_ended() {
    let mut played = opened(ApprovalMode::Guarded, false);
    for _ in 0..41 {
        played.input(Input::Disconnected("gone".into()));
        played.later(Duration::from_millis(250));
    }
    played.tells(&["> kill"]);
}

#[test]
fn the_probe_ends_a_turn_whose_end_was_missed() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    played.verb(Verb::Probe);
    played.reply("thread/turns/list", json!({"data": [{"id": "u", "status": "inProgress"}]}));
    played.tells(&["\"activity\": String(\"busy\")"]);
    played.verb(Verb::Probe);
    let message = json!({"type": "agentMessage", "text": "done", "phase": "final_answer"});
    let turn = json!({"id": "u", "status": "completed", "items": [message]});
    played.reply("thread/turns/list", json!({"data": [turn]}));
    played.tells(&["turn ended Some(1) Completed text=\"done\"", "String(\"idle\")"]);
}

#[test]
fn the_window_is_opened_on_the_thread_and_its_end_ends_the_runner() {
    let mut played = machine(ApprovalMode::Guarded, true);
    played.verb(Verb::Open { resume: None });
    played.greet();
    played.reply("thread/start", json!({"thread": {"id": "t"}}));
    played.tells(&["opened", "> window resume --remote unix:///s t"]);
    for _ in 0..3 {
        played.input(Input::ForegroundEnded(137));
        played.tells(&["> window"]);
    }
    played.input(Input::ForegroundEnded(137));
    played.tells(&["EndedByUser"]);
    let mut played = opened(ApprovalMode::Guarded, true);
    played.verb(Verb::Clear);
    played.reply("thread/start", json!({"thread": {"id": "t2"}}));
    played.tells(&["ConversationChanged", "> window resume --remote unix:///s t2"]);
    played.input(Input::ForegroundEnded(0));
    played.tells(&["EndedByUser"]);
}

#[test]
fn a_stop_ends_the_turn_before_the_server() {
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    played.told();
    played.verb(Verb::Stop);
    assert_eq!(played.told(), ["> turn/interrupt"]);
    played.ended("u", "interrupted");
    played.tells(&["turn ended", "> close"]);
    let mut played = opened(ApprovalMode::Guarded, false);
    played.begin("k", "u");
    played.verb(Verb::Stop);
    played.told();
    played.later(Duration::from_secs(1));
    assert_eq!(played.told(), ["> close"]);
}

#[test]
fn hostile_frames_are_an_ordinary_branch() {
    let mut played = opened(ApprovalMode::Guarded, false);
    for text in [
        "",
        "{",
        "[]",
        "5",
        "null",
        "{\"id\": 99, \"result\": {}}",
        "{\"method\": 7}",
        "{\"method\": \"turn/started\"}",
        "{\"method\": \"turn/completed\", \"params\": []}",
        "{\"method\": \"item/completed\", \"params\": {\"threadId\": \"t\", \"item\": 5}}",
        "{\"method\": \"thread/status/changed\", \"params\": {\"threadId\": \"t\", \"status\": []}}",
        "{\"method\": \"item/agentMessage/delta\", \"params\": {\"threadId\": \"t\", \"delta\": \"\\ud800\"}}",
    ] {
        played.input(Input::Text(text.into()));
    }
    assert_eq!(played.told(), Vec::<String>::new());
}
