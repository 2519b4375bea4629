//! Whole sessions of the real program (2.1.332), some with a subagent in the background, played
//! back with its four witnesses (hooks, registry file, record, screen) late by any amount, as they
//! are on a loaded machine. When the turns were stands beside each recording, written by hand.

use std::time::Duration;

use agent_relay::core::session::{Input, SessionEvent};
use agent_relay::core::time::Wall;
use serde_json::Value;

use crate::files;
use crate::terminal::{Terminal, start};

const BEGIN: i64 = 1_795_000_000_000;
const REGISTRY: &str = "/home/user/.claude/sessions/7.json";
/// How long, in ms, a word may stay behind the latest witness: the time in which the screen is
/// looked at again where nothing else tells of an end.
const SLACK: u64 = 2500;
/// The registry file may say it so much before the hook does.
const EARLY: u64 = 60;
/// What hooks, registry file and record may be late by.
const LATE: [u64; 4] = [0, 400, 1000, 3000];
/// The screen is looked at, so it is late only by what the program needs to paint it.
const PAINTED: [u64; 2] = [0, 200];

struct Recorded {
    name: String,
    /// Time in ms, and what was seen then.
    events: Vec<(u64, Value)>,
    /// First and last moment of each turn.
    turns: Vec<(u64, u64)>,
}

fn recordings() -> Vec<Recorded> {
    let events = files("sessions", ".jsonl").into_iter();
    let turns = files("sessions", ".turns").into_iter();
    let recorded = events.zip(turns).map(|((name, events), (same, turns))| {
        assert_eq!(name, same);
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).expect("a time");
        let event = |line: &str| {
            let event: Value = serde_json::from_str(line).expect("JSON");
            (event["t"].as_u64().expect("a time"), event)
        };
        let turn = |line: &str| {
            let mut words = line.split(' ');
            (number(words.next()), number(words.next()))
        };
        Recorded {
            name,
            events: events.lines().map(event).collect(),
            turns: turns.lines().map(turn).collect(),
        }
    });
    recorded.collect()
}

/// Delays of hooks, registry, record and screen.
type Delays = [u64; 4];

fn witness(event: &Value) -> usize {
    ["hook", "registry", "line", "screen"]
        .iter()
        .position(|name| event.get(name).is_some())
        .expect("a witness")
}

/// When the session became busy (true) or idle, in ms.
fn replay(recorded: &Recorded, delays: Delays) -> Vec<(u64, bool)> {
    let late = |(at, event): &(u64, Value)| (at + delays[witness(event)], *at, event.clone());
    let mut events: Vec<(u64, u64, Value)> = recorded.events.iter().map(late).collect();
    events.sort_by_key(|(seen, _, _)| *seen);
    let mut terminal = Terminal::new(start(true), None);
    let mut words = Vec::new();
    terminal.input(Input::CaughtUp);
    for (seen, at, event) in events {
        step(&mut terminal, seen, &mut words);
        if let Some(hook) = event.get("hook") {
            terminal.hook_at(Wall(BEGIN + at as i64), hook.clone());
        } else if let Some(record) = event.get("registry") {
            let text = Some(record.to_string());
            terminal.input(Input::FileChanged { path: REGISTRY.into(), text });
        } else if let Some(line) = event.get("line") {
            terminal.grown(&format!("{line}\n"));
        } else {
            terminal.shown = event["screen"].as_str().expect("text").into();
            terminal.input(Input::ScreenChanged);
        }
        told(&mut terminal, &mut words);
    }
    let end = (terminal.now.wall.0 - BEGIN) as u64 + 20_000;
    step(&mut terminal, end, &mut words);
    words
}

/// Time passes up to that moment, a tenth of a second at a time.
fn step(terminal: &mut Terminal, until: u64, words: &mut Vec<(u64, bool)>) {
    loop {
        let now = (terminal.now.wall.0 - BEGIN) as u64;
        if now >= until {
            return;
        }
        terminal.pass((until - now).min(Duration::from_millis(100).as_millis() as u64));
        told(terminal, words);
    }
}

fn told(terminal: &mut Terminal, words: &mut Vec<(u64, bool)>) {
    let now = (terminal.now.wall.0 - BEGIN) as u64;
    for signal in terminal.signals.drain(..) {
        match signal {
            SessionEvent::TurnStarted => words.push((now, true)),
            SessionEvent::TurnEnded { .. } => words.push((now, false)),
            _ => {}
        }
    }
}

/// What is wrong with these words, said so late.
fn flaws(recorded: &Recorded, late: u64, words: &[(u64, bool)]) -> Vec<String> {
    let mut flaws = Vec::new();
    let mut told: Vec<(u64, u64)> = Vec::new();
    for pair in words.chunks(2) {
        match pair {
            [(from, true), (to, false)] => told.push((*from, *to)),
            _ => flaws.push(format!("no end or no begin: {pair:?}")),
        }
    }
    if told.len() > recorded.turns.len() {
        flaws.push(format!("{} turns, there were {}", told.len(), recorded.turns.len()));
    }
    let over = |to: u64| to + late + SLACK;
    for &(from, to) in &told {
        // The moments of it that no turn explains.
        let mut at = from;
        while let Some((_, real)) = recorded
            .turns
            .iter()
            .rev()
            .find(|(begin, end)| *begin <= at + EARLY && at <= over(*end))
            .filter(|_| at <= to)
        {
            at = over(*real) + 1;
        }
        if at <= to {
            flaws.push(format!("busy from {from} to {to}"));
        }
    }
    for &(from, to) in &recorded.turns {
        let is_told = told.iter().any(|(begin, end)| *begin <= over(from) && *end >= from);
        // One that is over before anything tells of it may stay unsaid.
        if to - from > late && !is_told {
            flaws.push(format!("nothing was said of {from} to {to}"));
        }
    }
    flaws
}

#[test]
fn turns_of_real_sessions_are_told_however_late_their_witnesses_are() {
    for recorded in recordings() {
        for hooks in LATE {
            for registry in LATE {
                for record in LATE {
                    for screen in PAINTED {
                        let delays = [hooks, registry, record, screen];
                        let words = replay(&recorded, delays);
                        let late = delays.into_iter().max().unwrap_or(0);
                        let flaws = flaws(&recorded, late, &words);
                        assert!(
                            flaws.is_empty(),
                            "{} {delays:?} {flaws:?} {words:?}",
                            recorded.name
                        );
                    }
                }
            }
        }
    }
}
