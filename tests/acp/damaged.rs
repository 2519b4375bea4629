//! Lines that are damaged on their way: every recording with each damage.

use agent_relay::core::ids::{BatchNumber, VerbNumber};
use agent_relay::core::session::{Decision, Input, SessionEvent, StartFault, TurnEnd, Verb};
use agent_relay::provider::ApprovalMode;
use serde_json::json;

use crate::damage::{CUT, DAMAGES, Left};
use crate::machine::Bench;
use crate::{Replay, recordings, replay, replay_with};

fn count(text: &str, start: &str) -> usize {
    text.lines().filter(|line| line.starts_with(start)).count()
}

#[test]
fn no_damage_hides_the_end_of_a_turn_or_a_request_for_permission() {
    let (mut ends, mut asked) = (0, 0);
    for path in recordings() {
        let sound = replay(&path, false);
        ends += count(&sound, "turn ended");
        asked += count(&sound, "approval \"");
        for damage in DAMAGES.iter().chain([&CUT]) {
            let told = format!("{} in {}", damage.name, path.display());
            let replay = Replay { damage: Some(damage.of), ..Replay::new(false) };
            let text = replay_with(&path, replay);
            for start in ["turn started", "turn ended", "approval \""] {
                assert_eq!(count(&text, start), count(&sound, start), "{start}: {told}");
            }
            for line in text.lines().filter(|line| line.starts_with("approval \"")) {
                let is_told = line.contains("unreadable");
                assert_eq!(is_told, damage.left != Left::All, "{told}: {line}");
            }
            // What was lost is never taken for a yes.
            let yes = |text: &str| {
                let answers = text.lines().filter(|line| line.starts_with("> answer"));
                answers.filter(|line| !line.ends_with("\"cancelled\"")).count()
            };
            assert!(yes(&text) <= yes(&sound), "{told}");
        }
    }
    assert!(ends > 50 && asked > 20, "{ends} {asked}");
}

fn bytes(bench: &mut Bench, line: &str) {
    bench.input(Input::Bytes(format!("{line}\n").into_bytes()));
}

fn ended(bench: &Bench) -> Vec<TurnEnd> {
    let end = |signal: &SessionEvent| match signal {
        SessionEvent::TurnEnded { end, .. } => Some(end.clone()),
        _ => None,
    };
    bench.signals.iter().filter_map(end).collect()
}

#[test]
fn a_reply_that_cannot_be_read_ends_its_turn_as_failed_with_the_reason() {
    let unreadable = || TurnEnd::Failed("what the agent answered is unreadable".into());
    for (line, want) in [
        (r#"{"id":2,"result":{"stopReason":"end_turn","x":1"#, TurnEnd::Completed),
        (r#"{"id":2.0,"result":{"stopReason":"end_turn"}}"#, TurnEnd::Completed),
        (r#"{"id":2,"result":{"stopReason":"cancelled"#, TurnEnd::Cancelled),
        (r#"{"id":2,"result":{"stopReason":"end_t"#, unreadable()),
        (r#"{"id":2,"result":{"sto"#, unreadable()),
        (r#"{"id":2,"res"#, unreadable()),
        (r#"{"id":2,"#, unreadable()),
        (r#"{"id":1e999,"result":{"stopReason":"end_turn"}}"#, unreadable()),
        (r#"{"result":{"stopReason":"end_turn"},"i"#, unreadable()),
        (r#"{"id":2,"error":{"message":"no mon"#, TurnEnd::Failed("no mon".into())),
        // The agent could not read our request.
        (
            r#"{"id":null,"error":{"code":-32700,"message":"Parse error"}}"#,
            TurnEnd::Failed("Parse error".into()),
        ),
    ] {
        let mut bench = Bench::busy(ApprovalMode::Guarded);
        bytes(&mut bench, line);
        assert_eq!(ended(&bench), [want], "{line}");
    }
}

#[test]
fn what_may_be_anything_ends_nothing() {
    for line in [
        r#"{"jsonrpc":"2.0","method":"session/update","params":{"upd"#,
        r#"{"jsonrpc":"2.0","meth"#,
        r#"{"jsonrpc":"2.0"#,
        // The id may have been 27.
        r#"{"jsonrpc":"2.0","id":2"#,
        r#"{"id":99,"res"#,
        r#"{"id":null,"result":5}"#,
        "{",
        "Loading {...",
    ] {
        let mut bench = Bench::busy(ApprovalMode::Guarded);
        bytes(&mut bench, line);
        assert_eq!(ended(&bench), [], "{line}");
    }
    // A request whose method is lost is refused, so that nobody waits for its answer.
    let mut bench = Bench::busy(ApprovalMode::Guarded);
    bytes(&mut bench, r#"{"id":2,"met"#);
    assert_eq!(ended(&bench), []);
    assert!(bench.written.iter().any(|frame| frame["id"] == 2 && frame["error"]["code"] == -32700));
}

#[test]
fn an_answer_that_is_lost_does_not_lose_the_conversation() {
    for (line, reason) in [
        (r#"{"id":1,"result":{"sessionId":"s"#, "unreadable"),
        (r#"{"id":1,"result":{"sessionId":"s\ud83d"}}"#, "unreadable"),
    ] {
        let mut bench = Bench::new(ApprovalMode::Guarded);
        bench.line(json!({"id": 0, "result": {"protocolVersion": 1.0}}));
        bytes(&mut bench, line);
        let failed = bench.signals.iter().find_map(|signal| match signal {
            SessionEvent::OpenFailed { reason, fault } => {
                Some((reason.clone(), *fault == StartFault::Person))
            }
            _ => None,
        });
        assert!(failed.is_some_and(|(why, permanent)| why.contains(reason) && !permanent));
    }
}

const OPTIONS: &str = r#""options":[{"optionId":"a","kind":"allow_always"},{"optionId":"y","kind":"allow_once"},{"optionId":"n","kind":"reject_once"}]"#;

fn ask(title: &str, rest: &str) -> String {
    format!(
        r#"{{"id":9,"method":"session/request_permission","params":{{{OPTIONS},"toolCall":{{"toolCallId":"t","title":"{title}"{rest}"#
    )
}

#[test]
fn what_is_damaged_is_allowed_once_at_most_and_never_by_its_damage() {
    let decide = |bench: &mut Bench, decision: Decision| {
        let approval = bench.approval();
        let verb = Verb::Decide { approval, decision, reason: None, answers: None };
        bench.input(Input::Verb(VerbNumber(5), verb));
    };
    for (line, mode, decision, want) in [
        // The mode allows what is asked, whatever it says; of half a question nobody knows.
        (ask("x\\ud83d", "}}}"), ApprovalMode::Open, None, Some("y")),
        (ask("x", ",\"a"), ApprovalMode::Open, None, Some("n")),
        (ask("x\\ud83d", "}}}"), ApprovalMode::ReadOnly, None, Some("n")),
        (ask("x\\ud83d", "}}}"), ApprovalMode::Guarded, None, None),
        (ask("x\\ud83d", "}}}"), ApprovalMode::Guarded, Some(Decision::ApproveSession), Some("y")),
        (ask("x", ",\"a"), ApprovalMode::Guarded, Some(Decision::Approve), Some("y")),
        (ask("x", ",\"a"), ApprovalMode::Guarded, Some(Decision::Deny), Some("n")),
    ] {
        let mut bench = Bench::busy(mode);
        bytes(&mut bench, &line);
        if let Some(decision) = decision {
            decide(&mut bench, decision);
        }
        assert_eq!(bench.answer(9).as_deref(), want, "{mode:?} {decision:?} {line}");
    }
    // Where the answer itself is damaged, there is none to give.
    let mut bench = Bench::busy(ApprovalMode::Guarded);
    bytes(&mut bench, &ask("x", "}}}").replace("\"y\"", "\"y\\ud83d\""));
    decide(&mut bench, Decision::Approve);
    assert_eq!(bench.answer(9), None);
    let refused = |signal: &SessionEvent| matches!(signal, SessionEvent::Answered { result: Err(why), .. } if why.contains("unreadable"));
    assert!(bench.signals.iter().any(refused));
    decide(&mut bench, Decision::Deny);
    assert_eq!(bench.answer(9).as_deref(), Some("n"));
}

#[test]
fn a_question_that_nobody_can_answer_ends_its_turn_as_failed() {
    let mut bench = Bench::busy(ApprovalMode::Guarded);
    bytes(&mut bench, &ask("x", "}}}").replace("\"id\":9", "\"id\":1e999"));
    let last = bench.written.last().map(|frame| frame["method"].clone());
    assert_eq!(last, Some(json!("session/cancel")));
    bench.line(json!({"id": 2, "result": {"stopReason": "cancelled"}}));
    assert!(bench.signals.iter().any(|signal| matches!(
        signal,
        SessionEvent::TurnEnded { batch: Some(BatchNumber(7)), end: TurnEnd::Failed(why), .. }
            if why.contains("unreadable")
    )));
}
