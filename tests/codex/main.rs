//! Recordings of a real app server, replayed through the production session machine. What it
//! signals stands beside each recording as text; `UPDATE_FIXTURES=1` rewrites it, and a person
//! reads the difference.

mod orders;
mod recorded;
mod shown;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agent_relay::core::session::SessionEvent;

use self::recorded::Recorded;

fn recordings() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/codex");
    let entries = std::fs::read_dir(dir).expect("fixtures");
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    all.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    all.sort();
    assert_eq!(all.len(), 19, "recordings");
    all
}

#[test]
fn recordings_give_their_signals() {
    let update = std::env::var("UPDATE_FIXTURES").is_ok_and(|value| value == "1");
    for path in recordings() {
        let mut recorded = Recorded::open(&path);
        recorded.play();
        let got = recorded.out.join("\n") + "\n";
        let expected = path.with_extension("signals");
        // Lines that begin with `#` say why, for whoever reads.
        let there = std::fs::read_to_string(&expected).unwrap_or_default();
        let (why, want): (Vec<&str>, Vec<&str>) =
            there.split_inclusive('\n').partition(|line| line.starts_with('#'));
        let (why, mut want) = (why.concat(), want.concat());
        assert!(!why.is_empty(), "{}: nothing says what it shows", expected.display());
        if update {
            std::fs::write(&expected, format!("{why}{got}")).expect("write");
            want.clone_from(&got);
        }
        assert_eq!(got, want, "{}", path.display());
    }
}

/// How often each delivery was taken, and whether turns begin and end in turns.
fn checked(events: &[SessionEvent], at: &str) -> BTreeMap<String, u32> {
    let (mut taken, mut runs) = (BTreeMap::new(), false);
    for event in events {
        match event {
            SessionEvent::Accepted { key, .. } => *taken.entry(key.clone()).or_default() += 1,
            SessionEvent::TurnStarted => {
                assert!(!std::mem::replace(&mut runs, true), "{at}: a turn began in a turn")
            }
            SessionEvent::TurnEnded { .. } => runs = false,
            _ => {}
        }
    }
    taken
}

/// Wherever the connection breaks: nothing is taken twice, and no turn begins in another.
#[test]
fn the_connection_may_break_behind_every_frame() {
    for path in recordings() {
        let lines = Recorded::lines(&path);
        let mut whole = Recorded::of(&lines);
        let frames = whole.frames();
        whole.play();
        let taken = checked(&whole.events, "whole");
        for cut in 1..=frames {
            let mut recorded = Recorded::of(&lines);
            recorded.cut_after = Some(cut);
            recorded.play();
            let at = format!("{} cut behind {cut}", path.display());
            let again = checked(&recorded.events, &at);
            assert!(again.values().all(|times| *times == 1), "{at}: {again:?}");
            let missing: Vec<_> = taken.keys().filter(|key| !again.contains_key(*key)).collect();
            assert!(
                missing.is_empty(),
                "{at}: never taken {missing:?}\n{}",
                recorded.out.join("\n")
            );
        }
    }
}
