//! Questions become orders, and each is answered once, by what came of its order.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::config::OrchestratorConfig;
use super::super::event::{Event, RecordsEvent};
use super::*;
use crate::core::Machine;
use crate::core::agent::config::RestartPolicy;
use crate::core::http::{Body, GateCommand};
use crate::core::ids::Ticket;
use crate::core::limits::GUEST_LIFE_MIN;
use crate::core::orchestrator::admission::Room;
use crate::core::orchestrator::diagnosis::Facts;
use crate::core::orchestrator::guests::AttachSpec;
use crate::core::orchestrator::launch::Surroundings;
use crate::core::orchestrator::picture::Picture;
use crate::core::time::{Now, Wall};

/// An orchestrator with one session, and its clock.
struct Bench {
    orchestrator: Orchestrator,
    now: Now,
}

impl Bench {
    fn new() -> Bench {
        let about = Surroundings { home: "/h".into(), ..Surroundings::default() };
        let config = OrchestratorConfig {
            prefix: "ar".into(),
            base_dir: "/work".into(),
            instance_id: "i".into(),
            boot_id: "b".into(),
            about,
            providers: vec!["p".into()],
            ceilings: BTreeMap::new(),
            room: Room::default(),
            restart: RestartPolicy::default(),
            starts_burst: 5,
            starts_time: Duration::from_secs(10),
        };
        let record = Record {
            name: "ar-p-web".into(),
            agent_id: "host-p-web".into(),
            provider: "p".into(),
            log_file: "/h/logs/ar-p-web.log".into(),
            ..Record::default()
        };
        let mut bench = Bench { orchestrator: Orchestrator::new(config, 7), now: Now::default() };
        let restored = RecordsEvent::Restored { records: vec![record], note: None };
        bench.tell(Event::Records(restored));
        bench
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        self.orchestrator.handle(self.now, event)
    }

    /// Asks; the order that follows, or the answer.
    fn ask(&mut self, operation: &str, params: Value) -> Result<(u64, Look), (u16, Value)> {
        let params = params.as_object().cloned().expect("a record");
        let operation = format!("orchestrator.{operation}");
        let effects = self.tell(Event::Asked { ticket: Ticket(9), operation, params });
        let is_told = |effect: &Effect| !matches!(effect, Effect::Log { .. });
        match effects.into_iter().find(is_told).expect("an effect") {
            Effect::Look { number, look } => Ok((number, look)),
            Effect::Gate(GateCommand::Respond { status, body, .. }) => {
                Err((status, value_of(body)))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Asks, and has the order answered so; status and body of the answer.
    fn answered(&mut self, operation: &str, params: Value, looked: Looked) -> (u16, Value) {
        match self.ask(operation, params) {
            Ok((number, _)) => self.looked(number, looked),
            Err(answer) => answer,
        }
    }

    fn looked(&mut self, number: u64, looked: Looked) -> (u16, Value) {
        let effects = self.tell(Event::Looked { number, looked });
        let answers = effects.into_iter().filter_map(|effect| match effect {
            Effect::Gate(GateCommand::Respond { ticket, status, body }) => {
                assert_eq!(ticket, Ticket(9));
                Some((status, value_of(body)))
            }
            _ => None,
        });
        let answers: Vec<(u16, Value)> = answers.collect();
        assert_eq!(answers.len(), 1, "each question is answered once");
        answers.into_iter().next().expect("one")
    }
}

fn value_of(body: Body) -> Value {
    match body {
        Body::Json(value) => value,
        Body::Empty => Value::Null,
        other => panic!("{other:?}"),
    }
}

fn web() -> Value {
    json!({"session": "ar-p-web"})
}

fn spec() -> AttachSpec {
    let spec =
        json!({"mode": "guest", "provider": "p", "cwd": "/work", "command": ["x"], "ttlMs": 1});
    AttachSpec::parse(&spec, |_| true).expect("it is fine")
}

#[test]
fn what_is_not_ours_or_not_right_is_refused_before_anything_is_looked_at() {
    let mut bench = Bench::new();
    let not_managed = "session is not managed by this orchestrator";
    let with = |more: Value| {
        let mut params = web();
        params.as_object_mut().expect("a record").extend(more.as_object().cloned().expect("one"));
        params
    };
    for (operation, params, status, want) in [
        ("logs", json!({"session": "other-x"}), 422, not_managed),
        ("logs", json!({"session": "ar-../../etc/passwd"}), 422, not_managed),
        ("logs", json!({}), 422, "say which session"),
        ("logs", with(json!({"lines": "many"})), 422, "lines must be a number"),
        (
            "terminal.snapshot",
            json!({"session": "ar-p-gone"}),
            404,
            "there is no session ar-p-gone",
        ),
        ("terminal.input", json!({"session": "other-x", "data": "x"}), 422, not_managed),
        // The terminal before what is to be done with it.
        ("terminal.input", json!({"session": "ar-p-gone"}), 409, "terminal session is not running"),
        ("terminal.input", web(), 422, "terminal input data must be a string"),
        (
            "terminal.resize",
            json!({"session": "ar-p-gone"}),
            409,
            "terminal session is not running",
        ),
        ("terminal.resize", with(json!({"cols": 80})), 422, "cols and rows must be numbers"),
        ("terminal.resize", with(json!({"cols": 5, "rows": 24})), 422, "cols must be 10-500"),
        ("terminal.stop", web(), 422, "terminal session is not a guest session"),
        ("terminal.guest", json!({"agentId": "nobody"}), 404, "managed runner session not found"),
        ("terminal.guest", json!({}), 422, "say which session"),
        ("diagnose", json!({"session": "other-x"}), 422, not_managed),
    ] {
        let (got, body) = bench.ask(operation, params.clone()).expect_err(operation);
        let text = body["error"].as_str().unwrap_or_default();
        assert!(got == status && text.contains(want), "{operation} {params}: {got} {body}");
    }
    let nothing = bench.ask("diagnose", json!({"agentId": "nobody"})).expect_err("an answer");
    assert_eq!(nothing, (200, Value::Null));
}

#[test]
fn the_log_of_any_session_can_be_read() {
    let mut bench = Bench::new();
    let (number, look) = bench.ask("logs", web()).expect("an order");
    assert_eq!(
        look,
        Look::Log {
            session: "ar-p-web".into(),
            path: "/h/logs/ar-p-web.log".into(),
            options: LogOptions::default()
        }
    );
    let told = bench.looked(number, Looked::Log(Ok((vec!["one".into()], 9))));
    assert_eq!(
        told,
        (200, json!({"session": "ar-p-web", "lines": ["one"], "running": false, "size": 9}))
    );
    // The log of a session that is over is where it was; one that cannot be read has no lines.
    let (number, look) = bench.ask("logs", json!({"session": "ar-p-old"})).expect("an order");
    assert!(matches!(look, Look::Log { path, .. } if path == "/h/logs/ar-p-old.log"));
    let (status, told) = bench.looked(number, Looked::Log(Err("it is a folder".into())));
    assert_eq!((status, &told["lines"]), (200, &json!([])));
}

#[test]
fn each_kind_of_look_has_its_answer() {
    let mut bench = Bench::new();
    let picture = Picture { content: "x".into(), size: Some((80, 24)), cursor: None };
    let input = json!({"session": "ar-p-web", "data": "a\r"});
    let size = json!({"session": "ar-p-web", "cols": 80.4, "rows": 24});
    let gone = "terminal session is not running";
    for (operation, params, looked, status, field, want) in [
        ("terminal.snapshot", web(), Looked::Captured(Ok(Some(picture))), 200, "cols", json!(80)),
        ("terminal.snapshot", web(), Looked::Captured(Ok(None)), 200, "running", json!(false)),
        (
            "terminal.snapshot",
            web(),
            Looked::Captured(Err("tmux says no".into())),
            409,
            "error",
            json!("tmux says no"),
        ),
        ("terminal.input", input.clone(), Looked::Typed(Ok(Some(2))), 200, "sent", json!(2)),
        ("terminal.input", input, Looked::Typed(Ok(None)), 409, "error", json!(gone)),
        ("terminal.resize", size.clone(), Looked::Resized(Ok(true)), 200, "cols", json!(80)),
        ("terminal.resize", size.clone(), Looked::Resized(Ok(false)), 409, "error", json!(gone)),
        (
            "terminal.resize",
            size,
            Looked::Resized(Err("tmux says no".into())),
            409,
            "error",
            json!("tmux says no"),
        ),
        ("diagnose", web(), Looked::Diagnosed(Box::default()), 200, "alive", json!(false)),
        (
            "host",
            json!({}),
            Looked::Host(Box::default()),
            200,
            "sessions",
            json!({"running": 0, "parked": 0}),
        ),
        (
            "logs",
            web(),
            Looked::GuestEnded(true),
            409,
            "error",
            json!("the answer belongs to another question"),
        ),
    ] {
        let (got, body) = bench.answered(operation, params, looked);
        assert_eq!((got, &body[field]), (status, &want), "{operation}: {body}");
    }
    let never = bench.tell(Event::Looked { number: 99, looked: Looked::GuestEnded(true) });
    assert_eq!(never, [], "an answer to nothing");
}

#[test]
fn guests_end_at_their_time_though_nobody_asks() {
    let mut bench = Bench::new();
    let (number, look) = bench.ask("terminal.guest", web()).expect("an order");
    let Look::OpenGuest { name, record } = look else { panic!("{look:?}") };
    assert!(name.starts_with("ar-guest-p-host-p-web-"), "{name}");
    assert_eq!(record.name, "ar-p-web");
    let opened = Looked::GuestOpened { result: Ok((spec(), "/g/s".into())), over: vec![] };
    let (status, told) = bench.looked(number, opened);
    assert_eq!((status, &told["session"]), (200, &json!(name)));
    assert_eq!(told["expiresAt"], json!(GUEST_LIFE_MIN.as_millis() as u64));
    // It is a terminal like others.
    let (number, look) =
        bench.ask("terminal.snapshot", json!({"session": name})).expect("an order");
    assert_eq!(look, Look::Capture(Terminal::Guest(name.clone(), "/g/s".into())));
    let (_, told) = bench.looked(number, Looked::Captured(Ok(None)));
    assert_eq!((&told["agentAlive"], &told["running"]), (&json!(false), &json!(false)));
    // A second one that finds the first over.
    let (number, _) = bench.ask("terminal.guest", web()).expect("an order");
    let refused = Looked::GuestOpened { result: Err("no room".into()), over: vec![name.clone()] };
    let (status, told) = bench.looked(number, refused);
    assert_eq!((status, &told["error"]), (409, &json!("no room")));
    assert_eq!(bench.orchestrator.looking.deadline(), None, "nothing is left to end");

    let (number, _) = bench.ask("terminal.guest", web()).expect("an order");
    let opened = Looked::GuestOpened { result: Ok((spec(), "/g/s".into())), over: vec![] };
    let (_, told) = bench.looked(number, opened);
    let name = told["session"].as_str().expect("a name").to_string();
    let due = bench.orchestrator.next_deadline().expect("its end");
    assert_eq!(due, bench.now.tick + GUEST_LIFE_MIN);
    bench.now = Now { tick: due, wall: Wall(5) };
    let effects = bench.orchestrator.wake(bench.now);
    let ends = |effect: &Effect| matches!(effect, Effect::Look { look: Look::EndGuest { name: ended }, .. } if *ended == name);
    assert!(effects.iter().any(ends), "{effects:?}");
    // Somebody who ends it now is told that it was over.
    let stop = json!({"session": name});
    let (status, told) = bench.answered("terminal.stop", stop, Looked::GuestEnded(false));
    assert_eq!((status, told), (200, json!({"session": name, "stopped": false})));
}

#[test]
fn so_many_looks_are_under_way_and_no_more() {
    let mut bench = Bench::new();
    let orders: Vec<u64> =
        (0..LOOKS_IN_FLIGHT_MAX).map(|_| bench.ask("logs", web()).expect("an order").0).collect();
    let (status, body) = bench.ask("logs", web()).expect_err("refused");
    assert_eq!((status, &body["code"]), (503, &json!("busy")));
    bench.looked(orders[0], Looked::Log(Ok((vec![], 0))));
    assert!(bench.ask("logs", web()).is_ok());
}

#[test]
fn what_is_over_is_diagnosed_by_what_is_still_known() {
    let mut bench = Bench::new();
    bench.orchestrator.note_end("ar-p-old", "it ended with exit code 71".into());
    let (number, look) = bench.ask("diagnose", json!({"session": "ar-p-old"})).expect("an order");
    let Look::Diagnose { record, ends } = look else { panic!("{look:?}") };
    assert_eq!(record.log_file, "/h/logs/ar-p-old.log");
    let facts = Facts { record: *record, ends, ..Facts::default() };
    let (_, told) = bench.looked(number, Looked::Diagnosed(Box::new(facts)));
    assert_eq!(told["ends"], json!(["it ended with exit code 71"]));
    let unknown = bench.ask("diagnose", json!({"session": "ar-p-never"})).expect_err("an answer");
    assert_eq!(unknown, (200, Value::Null));
}
