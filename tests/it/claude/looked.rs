//! A session's terminal, looked at and typed into through its runner, and opened for guests.

use agent_relay::core::limits::GUESTS_MAX;
use agent_relay::core::orchestrator::input::tokens;
use agent_relay::core::orchestrator::look::{Look, Looked, Terminal};
use agent_relay::core::orchestrator::picture::Picture;
use agent_relay::core::orchestrator::record::Record;
use agent_relay::edge::orchestrator::look::{self, Places};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::*;

/// A thread that looks, without the machine that would ask.
struct Looks {
    orders: Sender<(u64, Look)>,
    answers: Receiver<Looked>,
}

impl Looks {
    fn new(home: PathBuf, base_dir: PathBuf) -> Looks {
        let (orders, taken) = bounded(1);
        let (lane, answers) = bounded(1);
        let places = Places { home, base_dir };
        std::thread::spawn(move || look::run(places, taken, lane, |_, looked| looked));
        Looks { orders, answers }
    }

    fn ask(&self, look: Look) -> Looked {
        self.orders.send((1, look)).expect("it takes orders");
        self.answers.recv().expect("each order has an answer")
    }

    fn capture(&self, terminal: &Terminal) -> Option<Picture> {
        match self.ask(Look::Capture(terminal.clone())) {
            Looked::Captured(result) => result.expect("it answers"),
            other => panic!("{other:?}"),
        }
    }

    fn wait_shown(&self, terminal: &Terminal, text: &str) -> Picture {
        wait_for(text, 60, || self.capture(terminal).filter(|seen| seen.content.contains(text)))
    }

    fn open(&self, record: &Record, name: &str) -> (Result<Terminal, String>, Vec<String>) {
        let (record, own) = (Box::new(record.clone()), name.to_string());
        match self.ask(Look::OpenGuest { record, name: own }) {
            Looked::GuestOpened { result, over } => {
                (result.map(|(_, socket)| Terminal::Guest(name.into(), socket)), over)
            }
            other => panic!("{other:?}"),
        }
    }

    fn type_in(&self, terminal: &Terminal, text: &str) -> Looked {
        self.ask(Look::Type { terminal: terminal.clone(), tokens: tokens(text) })
    }
}

impl Claude {
    /// What an orchestrator would remember of the session.
    fn record(&self) -> Record {
        let file = self.machine.home.join("agents/a/runner.json");
        let told = std::fs::read_to_string(&file).expect("the runner says where it is");
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let runner = os::process(told["pid"].as_u64().expect("a pid") as u32);
        Record {
            name: "ar-a".into(),
            pid: runner.pid,
            start_time: runner.start,
            runner_info_file: file.to_string_lossy().into_owned(),
            log_file: self.machine.home.join("ar-a.log").to_string_lossy().into_owned(),
            ..Record::default()
        }
    }
}

#[test]
fn a_session_is_looked_at_typed_into_and_opened_for_guests() {
    if !has_tmux() {
        return;
    }
    let mut claude = Claude::start("claude-looked", &[]);
    let (home, record) = (claude.machine.home.clone(), claude.record());
    let looks = Looks::new(home.clone(), PathBuf::from("/"));
    let session = Terminal::Session(Box::new(record.clone()));
    assert_eq!(looks.capture(&session).expect("it is there").size, Some((200, 50)));
    assert_eq!(looks.type_in(&session, "a draft; "), Looked::Typed(Ok(Some(1))));
    looks.wait_shown(&session, "a draft;");
    let resize = Look::Resize { terminal: session.clone(), columns: 120, rows: 40 };
    assert_eq!(looks.ask(resize), Looked::Resized(Ok(true)));
    assert_eq!(looks.capture(&session).expect("it is there").size, Some((120, 40)));

    // A guest sees the same, and types into the same.
    let (opened, over) = looks.open(&record, "ar-guest-1");
    let guest = opened.expect("it opens");
    assert_eq!(over, [""; 0]);
    looks.wait_shown(&guest, "a draft;");
    assert_eq!(looks.type_in(&guest, "of two"), Looked::Typed(Ok(Some(1))));
    looks.wait_shown(&session, "a draft; of two");

    refuses_others(&looks, &record, &home);

    // The end of a guest is not that of the session.
    assert_eq!(looks.ask(Look::EndGuest { name: "ar-guest-1".into() }), Looked::GuestEnded(true));
    assert_eq!(looks.ask(Look::EndGuest { name: "ar-guest-1".into() }), Looked::GuestEnded(false));
    assert_eq!(looks.capture(&guest), None);
    looks.wait_shown(&session, "a draft; of two");

    let Looked::Diagnosed(facts) =
        looks.ask(Look::Diagnose { record: Box::new(record.clone()), ends: vec![] })
    else {
        panic!("a diagnosis")
    };
    assert!(facts.alive && facts.terminal && facts.runner.is_some(), "{facts:?}");

    // With the session its guests end; what is asked of it then is answered all the same.
    claude.runner.as_mut().expect("it runs").kill();
    wait_for("its terminal's end", 60, || looks.capture(&session).is_none().then_some(()));
    assert_eq!(looks.type_in(&session, "x"), Looked::Typed(Ok(None)));
    let left = wait_for("the end of its guests", 60, || {
        let (refused, over) = looks.open(&record, "late");
        assert_eq!(refused, Err("managed runner session not found".into()));
        Some(over).filter(|over| !over.is_empty())
    });
    assert!(left.iter().all(|name| name.starts_with("ar-guest-")), "{left:?}");
}

/// Too many, or in a folder that nobody works in.
fn refuses_others(looks: &Looks, record: &Record, home: &std::path::Path) {
    for number in 2..=GUESTS_MAX {
        looks.open(record, &format!("ar-guest-{number}")).0.expect("it opens");
    }
    let refused = looks.open(record, "one-more").0;
    assert!(refused.as_ref().is_err_and(|text| text.contains("stop one")), "{refused:?}");
    let elsewhere = Looks::new(home.into(), home.join("agents"));
    let refused = elsewhere.open(record, "outside").0;
    assert_eq!(refused, Err("runner attach-spec cwd must be within base directory".into()));
}
