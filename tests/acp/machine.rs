//! What no recording shows: approvals that nobody answers, questions that cross a cancel, agents
//! that cannot be used.

use std::time::Duration;

use agent_relay::core::ids::{BatchNumber, VerbNumber};
use agent_relay::core::session::{
    Decision, Delivery, Input, Output, Session, SessionEvent, StartFault, TurnEnd, Verb,
};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::provider::acp::session::AcpSession;
use agent_relay::provider::{ApprovalMode, SessionSettings};
use serde_json::{Value, json};

pub struct Bench {
    session: AcpSession,
    now: Now,
    pub written: Vec<Value>,
    pub signals: Vec<SessionEvent>,
}

impl Bench {
    pub fn new(approval_mode: ApprovalMode) -> Bench {
        let settings = SessionSettings {
            agent: "a".into(),
            cwd: "/w".into(),
            approval_mode,
            mode: None,
            approval_timeout: Duration::from_secs(60),
            capture_full: false,
        };
        let now = Now { tick: Tick(1_000_000), wall: Wall(5) };
        let mut bench = Bench {
            session: AcpSession::new(settings),
            now,
            written: Vec::new(),
            signals: Vec::new(),
        };
        bench.input(Input::Verb(VerbNumber(1), Verb::Open { resume: None }));
        bench
    }

    /// In the middle of a turn.
    pub fn busy(approval_mode: ApprovalMode) -> Bench {
        let mut bench = Bench::new(approval_mode);
        bench.line(json!({"id": 0, "result": {"protocolVersion": 1, "agentInfo": {"name": "x", "version": "1"}}}));
        bench.line(json!({"id": 1, "result": {"sessionId": "s"}}));
        bench.input(Input::Verb(
            VerbNumber(2),
            Verb::Deliver(Delivery {
                batch: BatchNumber(7),
                text: "do it".into(),
                ..Default::default()
            }),
        ));
        bench.signals.clear();
        bench.written.clear();
        bench
    }

    pub fn input(&mut self, input: Input) {
        for output in self.session.handle(self.now, input) {
            match output {
                Output::Write(bytes) => {
                    self.written.push(serde_json::from_slice(&bytes).expect("JSON"))
                }
                Output::Event(signal) => self.signals.push(signal),
                Output::CloseInput => self.written.push(json!("closed")),
                other => panic!("an ACP session has no use for {other:?}"),
            }
        }
    }

    pub fn line(&mut self, frame: Value) {
        self.input(Input::Bytes(format!("{frame}\n").into_bytes()));
    }

    fn ask(&mut self, id: u64) {
        let options = json!([{"optionId": "y", "kind": "allow_once"}, {"optionId": "n", "kind": "reject_once"}]);
        let call = json!({"toolCallId": "t", "title": "rm -rf /", "kind": "execute"});
        self.line(
            json!({"id": id, "method": "session/request_permission", "params": {"sessionId": "s", "toolCall": call, "options": options}}),
        );
    }

    /// What was answered to a request of the agent.
    pub fn answer(&self, id: u64) -> Option<String> {
        let frame =
            self.written.iter().find(|frame| frame["id"] == id && frame.get("method").is_none())?;
        let outcome = frame.pointer("/result/outcome")?;
        outcome
            .get("optionId")
            .or(outcome.get("outcome"))
            .and_then(Value::as_str)
            .map(str::to_string)
    }

    pub fn approval(&self) -> String {
        let id = |signal: &SessionEvent| match signal {
            SessionEvent::ApprovalOpened(approval) => Some(approval.id.clone()),
            _ => None,
        };
        self.signals.iter().rev().find_map(id).expect("an approval")
    }
}

#[test]
fn modes_decide_by_kind() {
    for (mode, want) in [
        (ApprovalMode::Open, Some("y")),
        (ApprovalMode::ReadOnly, Some("n")),
        (ApprovalMode::Guarded, None),
    ] {
        let mut bench = Bench::busy(mode);
        bench.ask(9);
        assert_eq!(bench.answer(9).as_deref(), want, "{mode:?}");
    }
}

#[test]
fn an_approval_that_nobody_answers_is_denied() {
    let mut bench = Bench::busy(ApprovalMode::Guarded);
    bench.ask(9);
    assert_eq!(bench.session.next_deadline(), Some(bench.now.tick + Duration::from_secs(60)));
    bench.now.tick = bench.now.tick + Duration::from_secs(60);
    bench.input(Input::Wake);
    assert_eq!(bench.answer(9).as_deref(), Some("n"));
    assert!(bench.signals.iter().any(
        |s| matches!(s, SessionEvent::ApprovalClosed { reason, .. } if reason.contains("in time"))
    ));
    // A decision that comes too late fails with a reason.
    let approval = bench.approval();
    bench.input(Input::Verb(
        VerbNumber(5),
        Verb::Decide { approval, decision: Decision::Approve, reason: None, answers: None },
    ));
    assert!(
        bench
            .signals
            .iter()
            .any(|s| matches!(s, SessionEvent::Answered { verb: VerbNumber(5), result: Err(_) }))
    );
}

#[test]
fn a_question_that_crosses_the_cancel_is_never_allowed() {
    for mode in [ApprovalMode::Open, ApprovalMode::Guarded] {
        let mut bench = Bench::busy(mode);
        bench.input(Input::Verb(VerbNumber(5), Verb::Interrupt));
        bench.ask(9);
        assert_eq!(bench.answer(9).as_deref(), Some("cancelled"), "{mode:?}");
        bench.line(json!({"id": 2, "result": {"stopReason": "end_turn"}}));
        assert!(bench.signals.contains(&SessionEvent::TurnEnded {
            batch: Some(BatchNumber(7)),
            end: TurnEnd::Cancelled,
            text: String::new()
        }));
        assert!(
            bench.signals.iter().any(|s| matches!(
                s,
                SessionEvent::Answered { verb: VerbNumber(5), result: Ok(_) }
            ))
        );
    }
}

#[test]
fn an_interrupt_answers_open_questions_first_and_fails_when_the_agent_is_deaf() {
    let mut bench = Bench::busy(ApprovalMode::Guarded);
    bench.ask(9);
    bench.input(Input::Verb(VerbNumber(5), Verb::Interrupt));
    assert_eq!(bench.answer(9).as_deref(), Some("cancelled"));
    assert_eq!(
        bench.written.last().map(|frame| frame["method"].clone()),
        Some(json!("session/cancel"))
    );
    bench.now.tick = bench.session.next_deadline().expect("a limit");
    bench.input(Input::Wake);
    assert!(
        bench
            .signals
            .iter()
            .any(|s| matches!(s, SessionEvent::Answered { verb: VerbNumber(5), result: Err(text) } if text.contains("did not end")))
    );
}

#[test]
fn an_old_decision_does_not_fit_a_new_question() {
    let mut first = Bench::busy(ApprovalMode::Guarded);
    first.ask(9);
    let old = first.approval();
    // The same session in a new process, a little later: counters begin anew.
    let mut second = Bench::busy(ApprovalMode::Guarded);
    second.now.tick = second.now.tick + Duration::from_secs(3);
    second.ask(9);
    assert_ne!(second.approval(), old);
    second.input(Input::Verb(
        VerbNumber(5),
        Verb::Decide { approval: old, decision: Decision::Approve, reason: None, answers: None },
    ));
    assert_eq!(second.answer(9), None);
}

#[test]
fn agents_that_cannot_be_used_are_told_apart() {
    for (frame, permanent, hint) in [
        (json!({"id": 0, "result": {"protocolVersion": 2}}), true, "version 2"),
        (
            json!({"id": 0, "error": {"code": -32000, "message": "Authentication required"}}),
            true,
            "log in",
        ),
        (
            json!({"id": 0, "error": {"code": -32603, "message": "Internal error", "data": {"details": "no luck"}}}),
            false,
            "no luck",
        ),
    ] {
        let mut bench = Bench::new(ApprovalMode::Guarded);
        bench.line(frame);
        let failed = bench.signals.iter().find_map(|signal| match signal {
            SessionEvent::OpenFailed { reason, fault } => {
                Some((reason.clone(), *fault == StartFault::Person))
            }
            _ => None,
        });
        let (reason, told) = failed.expect("it fails");
        assert!(told == permanent && reason.contains(hint), "{reason}");
    }
    let mut mute = Bench::new(ApprovalMode::Guarded);
    mute.now.tick = mute.session.next_deadline().expect("a limit");
    mute.input(Input::Wake);
    assert!(
        mute.signals
            .iter()
            .any(|s| matches!(s, SessionEvent::OpenFailed { fault: StartFault::Passing, .. }))
    );
}

/// What became of an opening: the failure with whether it is for good, or that it is open.
fn opening(bench: &Bench) -> Option<Result<(), (String, bool)>> {
    bench.signals.iter().find_map(|signal| match signal {
        SessionEvent::Opened(_) => Some(Ok(())),
        SessionEvent::OpenFailed { reason, fault } => {
            Some(Err((reason.clone(), *fault == StartFault::Person)))
        }
        _ => None,
    })
}

#[test]
fn a_guarded_session_opens_only_in_a_mode_that_asks() {
    let modes = |all: &[&str], current: &str| {
        let all: Vec<Value> = all.iter().map(|id| json!({"id": id})).collect();
        json!({"sessionId": "s", "modes": {"availableModes": all, "currentModeId": current}})
    };
    let refused = || Some(json!({"id": 2, "error": {"code": -32602, "message": "no such mode"}}));
    use ApprovalMode::{Guarded, Open, ReadOnly};
    for (mode, agent, opened, reply, want) in [
        // One version of an adapter moved its own mode to one in which tools run unasked.
        (
            Guarded,
            "qwen-code",
            modes(&["auto", "yolo"], "auto"),
            None,
            Err(("only auto, yolo", true)),
        ),
        (ReadOnly, "qwen-code", modes(&["auto", "default"], "auto"), None, Err(("plan", true))),
        (Guarded, "qwen-code", json!({"sessionId": "s"}), None, Err(("no permission modes", true))),
        (
            Guarded,
            "qwen-code",
            modes(&["default"], "auto"),
            refused(),
            Err(("no such mode", false)),
        ),
        (Open, "qwen-code", modes(&["auto"], "auto"), None, Ok(())),
        (Open, "qwen-code", modes(&["yolo"], "auto"), refused(), Ok(())),
        (
            Guarded,
            "qwen-code",
            modes(&["default"], "auto"),
            Some(json!({"id": 2, "result": {}})),
            Ok(()),
        ),
        (Guarded, "qwen-code", modes(&[], "default"), None, Ok(())),
        // Nobody knows which mode of that agent asks.
        (Guarded, "somebody", modes(&["a", "b"], "a"), None, Ok(())),
    ] {
        let mut bench = Bench::new(mode);
        let info = json!({"name": agent, "version": "1"});
        bench.line(json!({"id": 0, "result": {"protocolVersion": 1, "agentInfo": info}}));
        bench.line(json!({"id": 1, "result": opened}));
        reply.iter().for_each(|reply| bench.line(reply.clone()));
        let told = format!("{mode:?} {agent} {opened} {reply:?}");
        match (opening(&bench).expect("an end"), want) {
            (Ok(()), Ok(())) => {}
            (Err((reason, permanent)), Err((words, for_good))) => {
                assert!(reason.contains(words) && permanent == for_good, "{told}: {reason}");
                assert!(reason.contains("--approval open"), "the cure is named: {reason}");
            }
            (got, want) => panic!("{told}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn hostile_lines_are_ordinary() {
    let mut bench = Bench::busy(ApprovalMode::Guarded);
    let deep = "[".repeat(5000);
    for line in [
        "null",
        "[]",
        "{}",
        "\u{0}\u{1}",
        &deep,
        "{\"id\":null}",
        "{\"id\":2.5,\"result\":{}}",
        "{\"method\":5}",
        "{\"id\":99,\"result\":{}}",
    ] {
        bench.input(Input::Bytes(format!("{line}\n").into_bytes()));
    }
    bench.line(json!({"method": "session/update", "params": {"sessionId": "s", "update": [1]}}));
    bench.line(json!({"method": "session/update", "params": {"sessionId": "another", "update": {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "not ours"}}}}));
    bench.line(json!({"id": "x", "method": "fs/read_text_file", "params": {}}));
    assert!(
        bench.written.iter().any(|frame| frame["error"]["code"] == -32601 && frame["id"] == "x")
    );
    bench.line(json!({"id": 2, "result": {"stopReason": "something_new"}}));
    assert!(bench.signals.contains(&SessionEvent::TurnEnded {
        batch: Some(BatchNumber(7)),
        end: TurnEnd::Completed,
        text: String::new()
    }));
}
