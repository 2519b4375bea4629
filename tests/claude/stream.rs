//! The recorded stream of `claude -p` through its machine.

use agent_relay::core::ids::{BatchNumber, VerbNumber};
use agent_relay::core::session::{
    Delivery, DeliveryOutcome, Input, MessageFingerprint, OpenMode, Output, Resume, Session,
    SessionEvent, StartFault, Verb,
};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::provider::claude::stream::StreamSession;
use agent_relay::provider::launch::{LostConversation, Start};
use serde_json::{Value, json};

use crate::terminal::{settings, start};
use crate::{expect, fixtures, line_of};

pub struct Stream {
    session: StreamSession,
    now: Now,
    pub signals: Vec<SessionEvent>,
    pub written: Vec<Value>,
    verbs: VerbNumber,
}

impl Stream {
    pub fn open() -> Stream {
        let mut stream = Stream::open_with(start(false), None);
        stream.answer();
        stream
    }

    /// The program says that it is there.
    fn answer(&mut self) {
        self.line(&json!({"type": "control_response", "response": {"subtype": "success", "response": {"claude_code_version": "2.1.332"}}}));
    }

    fn open_with(start: Start, resume: Option<Resume>) -> Stream {
        let now = Now { tick: Tick(1_000_000_000), wall: Wall(1_795_000_000_000) };
        let session = StreamSession::new(settings(), start);
        let mut stream = Stream {
            session,
            now,
            signals: Vec::new(),
            written: Vec::new(),
            verbs: VerbNumber::default(),
        };
        stream.verb(Verb::Open { resume });
        stream
    }

    /// How a start ends that the program refuses with these last words.
    fn refused(words: &str) -> (String, StartFault) {
        let mut stream = Stream::open_with(start(false), None);
        stream.input(Input::LastWords(words.into()));
        stream.input(Input::Closed);
        let failed = stream.signals.into_iter().find_map(|signal| match signal {
            SessionEvent::OpenFailed { reason, fault } => Some((reason, fault)),
            _ => None,
        });
        failed.expect("it fails")
    }

    pub fn verb(&mut self, verb: Verb) {
        self.verbs = self.verbs.next();
        self.input(Input::Verb(self.verbs, verb));
    }

    fn input(&mut self, input: Input) {
        for output in self.session.handle(self.now, input) {
            match output {
                Output::Event(signal) => self.signals.push(signal),
                Output::Write(bytes) => {
                    self.written.push(serde_json::from_slice(&bytes).expect("JSON lines"))
                }
                _ => {}
            }
        }
    }

    pub fn line(&mut self, line: &Value) {
        self.bytes(line.to_string().as_bytes());
    }

    /// A line as it is.
    pub fn bytes(&mut self, line: &[u8]) {
        self.input(Input::Bytes([line, b"\n"].concat()));
    }

    pub fn deliver(&mut self, batch: u64, key: &str) {
        self.verb(Verb::Deliver(Delivery {
            batch: BatchNumber(batch),
            key: key.into(),
            text: format!("[relay message #{batch} from user]\nx"),
            person: true,
            urgent: false,
        }));
    }

    pub fn lifecycle(&mut self, key: &str, state: &str) {
        self.line(&json!({"type": "command_lifecycle", "command_uuid": key, "state": state}));
    }

    fn result(&mut self, more: Value) {
        let mut line = json!({"type": "result", "subtype": "success", "is_error": false, "result": "Done.", "terminal_reason": "completed"});
        line.as_object_mut().expect("object").extend(more.as_object().cloned().unwrap_or_default());
        self.line(&line);
    }

    pub fn ended(&self) -> Vec<String> {
        let ends =
            self.signals.iter().filter(|signal| matches!(signal, SessionEvent::TurnEnded { .. }));
        ends.map(line_of).collect()
    }
}

#[test]
fn the_recorded_stream_gives_its_signals() {
    let text = std::fs::read_to_string(fixtures().join("stream-json/stdout.jsonl")).expect("reads");
    let mut stream = Stream::open();
    let mut table = String::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        stream.signals.clear();
        stream.line(&line);
        for signal in &stream.signals {
            let kind = line["subtype"].as_str().or(line["type"].as_str()).unwrap_or_default();
            table.push_str(&format!("{kind}: {}\n", line_of(signal)));
        }
    }
    expect("stream-json.signals", &table);
}

#[test]
fn a_turn_that_the_session_began_by_itself_is_not_ours() {
    let mut stream = Stream::open();
    stream.deliver(5, "k5");
    // A notification was faster than our line.
    stream.line(&json!({"type": "system", "subtype": "init", "session_id": "00000000-0000-4000-8000-000000000000"}));
    stream.result(json!({"result": "Noted.", "origin": {"kind": "task-notification"}}));
    assert_eq!(stream.ended(), ["turn ended batch=None Completed \"Noted.\""]);
    stream.lifecycle("k5", "started");
    stream.result(json!({}));
    stream.lifecycle("k5", "completed");
    assert_eq!(
        stream.ended().last().map(String::as_str),
        Some("turn ended batch=Some(5) Completed \"Done.\"")
    );
    assert!(
        stream
            .signals
            .iter()
            .any(|signal| matches!(signal, SessionEvent::Accepted { batch: BatchNumber(5), .. }))
    );
}

#[test]
fn a_line_that_the_session_knew_is_followed_by_a_word_to_go_on() {
    let mut stream = Stream::open();
    stream.deliver(5, "k5");
    stream.written.clear();
    stream.lifecycle("k5", "completed");
    assert_eq!(stream.written.len(), 1);
    assert!(
        stream.written[0]["message"]["content"].as_str().is_some_and(|text| text.contains("go on")),
        "{:?}",
        stream.written
    );
    let key = stream.written[0]["uuid"].as_str().expect("a uuid").to_string();
    assert_ne!(key, "k5");
    stream.lifecycle(&key, "started");
    stream.result(json!({}));
    assert_eq!(
        stream.ended().last().map(String::as_str),
        Some("turn ended batch=Some(5) Completed \"Done.\"")
    );
}

#[test]
fn an_interrupt_while_idle_is_not_sent() {
    let mut stream = Stream::open();
    stream.written.clear();
    stream.verb(Verb::Interrupt);
    assert!(stream.written.is_empty(), "it would end what works in the background");
    stream.deliver(5, "k5");
    stream.lifecycle("k5", "started");
    stream.verb(Verb::Interrupt);
    assert_eq!(
        stream.written.last().map(|line| line["request"]["subtype"].clone()),
        Some(json!("interrupt"))
    );
    stream.result(json!({"subtype": "error_during_execution", "is_error": true, "terminal_reason": "aborted_streaming"}));
    assert!(stream.ended().last().is_some_and(|line| line.contains("Cancelled")));
}

#[test]
fn compaction_waits_for_the_turn_and_tells_its_failure() {
    let mut stream = Stream::open();
    stream.deliver(5, "k5");
    stream.lifecycle("k5", "started");
    stream.written.clear();
    stream.verb(Verb::Compact { instructions: None });
    assert!(stream.written.is_empty());
    stream.result(json!({}));
    stream.lifecycle("k5", "completed");
    assert_eq!(
        stream.written.last().map(|line| line["message"]["content"].clone()),
        Some(json!("/compact"))
    );
    stream.line(&json!({"type": "system", "subtype": "status", "status": null, "compact_result": "failed", "compact_error": "Not enough messages to compact."}));
    stream.result(json!({"local_command": "compact", "result": "Not enough messages to compact."}));
    assert!(
        stream
            .signals
            .iter()
            .any(|signal| matches!(signal, SessionEvent::Answered { result: Err(error), .. } if error.contains("Not enough")))
    );
}

/// The mirror of a turn, as kind and text.
fn mirrored(stream: &Stream) -> Vec<String> {
    let shown = |signal: &SessionEvent| match signal {
        SessionEvent::Mirror(mirror) => Some(format!("{} {}", mirror.kind, mirror.body)),
        _ => None,
    };
    stream.signals.iter().filter_map(shown).collect()
}

#[test]
fn what_introduces_a_tool_is_shown_before_it() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let tool = |command: &str| json!({"type": "tool_use", "id": command, "name": "Bash", "input": {"command": command}});
    let thought = json!({"type": "thinking", "thinking": "Hm."});
    // Each entry is one message; within it the program writes a line for each list.
    let one_line = vec![vec![vec![text("I look."), tool("ls")]], vec![vec![text("Done.")]]];
    let lines = vec![
        vec![vec![thought], vec![text("I look.")], vec![tool("ls")], vec![tool("pwd")]],
        vec![vec![text("Now I test.")], vec![text("Really.")], vec![tool("make")]],
        vec![vec![text("Done.")]],
    ];
    let interrupted = vec![vec![vec![text("I look.")], vec![tool("ls")]]];
    for (messages, want) in [
        (one_line, vec!["reasoning I look.", "tool Bash: ls", "response Done."]),
        (
            lines,
            vec![
                "reasoning Hm.",
                "reasoning I look.",
                "tool Bash: ls",
                "tool Bash: pwd",
                "reasoning Now I test.\nReally.",
                "tool Bash: make",
                "response Done.",
            ],
        ),
        (interrupted, vec!["reasoning I look.", "tool Bash: ls"]),
    ] {
        let mut stream = Stream::open();
        stream.deliver(5, "k5");
        stream.lifecycle("k5", "started");
        for (number, lines) in messages.iter().enumerate() {
            for content in lines {
                let message = json!({"id": format!("m{number}"), "content": content});
                stream.line(&json!({"type": "assistant", "message": message}));
            }
        }
        stream.result(json!({}));
        assert_eq!(mirrored(&stream), want);
        // What was said last is the answer, also of a turn that was interrupted at a tool.
        let last = if want.len() == 2 { "I look." } else { "Done." };
        assert!(stream.ended()[0].contains(last), "{:?}", stream.ended());
    }
}

#[test]
fn a_refused_conversation_is_told_from_other_failures() {
    for (words, want) in [
        ("Error: Session ID x is already in use.", StartFault::Conversation),
        ("No conversation found with session ID: x", StartFault::Conversation),
        ("error: unknown option '--x'", StartFault::Person),
        ("Killed", StartFault::Passing),
    ] {
        let (reason, fault) = Stream::refused(words);
        assert_eq!(fault, want, "{words}: {reason}");
    }
    // It may say so in a line before.
    let mut stream = Stream::open_with(start(false), None);
    stream
        .result(json!({"is_error": true, "errors": ["No conversation found with session ID: x"]}));
    let refused = |signal: &SessionEvent| matches!(signal, SessionEvent::OpenFailed { fault, .. } if *fault == StartFault::Conversation);
    assert!(stream.signals.iter().any(refused), "{:?}", stream.signals);
}

#[test]
fn a_new_conversation_says_that_the_earlier_one_is_lost() {
    let why = || "it said no".to_string();
    let unseen = OpenMode::Loaded(vec![DeliveryOutcome::Unseen]);
    // its record is empty, something is not settled -> how it is opened
    for (is_empty, is_unsettled, want) in [
        (true, true, unseen),
        (true, false, OpenMode::Lost(why())),
        (false, true, OpenMode::Lost(why())),
        (false, false, OpenMode::Lost(why())),
    ] {
        let lost = Some(LostConversation { why: why(), is_empty });
        let evidence_for = vec![MessageFingerprint::default(); usize::from(is_unsettled)];
        let resume = Resume { session: "earlier".into(), evidence_for };
        let mut stream = Stream::open_with(Start { lost, ..start(false) }, Some(resume));
        stream.answer();
        let how = stream.signals.iter().find_map(|signal| match signal {
            SessionEvent::Opened(opened) => Some(opened.how.clone()),
            _ => None,
        });
        assert_eq!(how, Some(want), "{is_empty} {is_unsettled}");
        let told = |signal: &SessionEvent| matches!(signal, SessionEvent::Mirror(mirror) if mirror.body.contains("it said no"));
        assert!(stream.signals.iter().any(told), "people are told");
    }
}
