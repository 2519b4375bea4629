//! The host: disk, processes, relay, and the orchestrator that lives on it.

mod edges;
mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent_relay::core::Machine as _;
use agent_relay::core::agent::config::RestartPolicy;
use agent_relay::core::ids::{ProcessRef, Ticket};
use agent_relay::core::orchestrator::Orchestrator;
use agent_relay::core::orchestrator::admission::Room;
use agent_relay::core::orchestrator::config::{OrchestratorConfig, SessionFiles};
use agent_relay::core::orchestrator::effect::{Call, RecordsCommand, Work};
use agent_relay::core::orchestrator::event::{Event, RecordsEvent};
use agent_relay::core::orchestrator::launch::Surroundings;
use agent_relay::core::orchestrator::record;
use agent_relay::core::orchestrator::systemd::Exit;
use agent_relay::core::rng::Rng;
use agent_relay::core::time::{Now, Tick, Wall};
use serde_json::{Map, Value, json};

use self::relay::Relay;

/// Sessions that the host has room for.
const SESSIONS: usize = 6;

/// A process of a session.
struct Process {
    session: String,
    launch: String,
    process: ProcessRef,
    alive: bool,
    exit: Exit,
    /// The orchestrator that watches it.
    watched: Option<u64>,
}

/// Something that will happen.
enum Due {
    /// An event for an orchestrator that may have died since.
    Event(Event),
    Work(String, Work),
    Records(RecordsCommand),
    Call(Call),
    /// A frame from the relay or to it.
    ToRelay(String),
    Connect,
}

pub struct Host {
    rng: Rng,
    tell: bool,
    tick: u64,
    wall: i64,
    boot: u64,
    /// Counts the orchestrators; none lives: 0 is never one.
    instance: u64,
    machine: Option<Orchestrator>,
    due: BTreeMap<(u64, u64), (u64, Due)>,
    numbers: u64,
    /// The file of records, and whether it can be written.
    disk: Vec<Value>,
    stalled: Vec<agent_relay::core::commit::Commit<record::RecordOp>>,
    writable: bool,
    options: BTreeMap<String, Value>,
    processes: Vec<Process>,
    relay: Relay,
    /// Requests over HTTP that have been answered.
    tickets: BTreeMap<Ticket, u32>,
    starts: u64,
    faulty: bool,
}

impl Host {
    pub fn new(seed: u64, tell: bool) -> Host {
        Host {
            rng: Rng::new(seed).fork("host"),
            tell,
            tick: 1_000_000,
            wall: 1_700_000_000_000,
            boot: 1,
            instance: 0,
            machine: None,
            due: BTreeMap::new(),
            numbers: 0,
            disk: vec![json!({"name": "others-1", "kept": true})],
            stalled: Vec::new(),
            writable: true,
            options: BTreeMap::new(),
            processes: Vec::new(),
            relay: Relay::default(),
            tickets: BTreeMap::new(),
            starts: 0,
            faulty: true,
        }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.tell {
            println!("{:>10.3} {}", self.tick as f64 / 1e6, text());
        }
    }

    fn now(&self) -> Now {
        Now { tick: Tick(self.tick), wall: Wall(self.wall) }
    }

    /// One chance in a hundred, while there are faults.
    fn happens(&mut self, percent: u64) -> bool {
        self.faulty && self.rng.percent(percent)
    }

    fn later(&mut self, most_ms: u64, due: Due) {
        let at = self.tick + 200 + self.rng.below(most_ms * 1000 + 1);
        self.numbers += 1;
        self.due.insert((at, self.numbers), (self.instance, due));
    }

    fn config(&self) -> OrchestratorConfig {
        let about = Surroundings {
            program: "/bin/agent-relay".into(),
            home: "/home".into(),
            hostname: "host".into(),
            relay_url: "http://relay".into(),
            ..Surroundings::default()
        };
        let second = Duration::from_secs(1);
        OrchestratorConfig {
            prefix: "ar".into(),
            base_dir: "/work".into(),
            instance_id: format!("i{}", self.instance),
            boot_id: format!("boot-{}", self.boot),
            about,
            providers: vec!["p".into()],
            ceilings: BTreeMap::new(),
            room: Room { sessions_max: SESSIONS, ..Room::default() },
            restart: RestartPolicy {
                first: second / 4,
                most: second * 4,
                exits_max: 4,
                ..RestartPolicy::default()
            },
            starts_burst: 10,
            starts_time: second * 10,
        }
    }

    fn start(&mut self) {
        self.instance += 1;
        let number = self.instance;
        self.say(|| format!("orchestrator {number} starts"));
        let seed = self.rng.bits();
        self.machine = Some(Orchestrator::new(self.config(), seed));
        let records = record::records(&self.disk, |name| name.starts_with("ar-"));
        // What belongs to no record goes at a start.
        let files: Vec<String> =
            records.iter().map(|one| SessionFiles::of("/home", &one.name).options).collect();
        self.options.retain(|file, _| files.contains(file));
        self.later(5, Due::Event(Event::Records(RecordsEvent::Restored { records, note: None })));
    }

    /// The orchestrator ends without a word. What its edges were about to do was done or not.
    fn kill(&mut self) {
        let number = self.instance;
        self.say(|| format!("orchestrator {number} is killed"));
        self.machine = None;
        self.relay.connected = false;
        for (_, (_, due)) in std::mem::take(&mut self.due) {
            match due {
                Due::Work(session, work) if self.rng.percent(50) => {
                    drop(self.carry_out(&session, work))
                }
                Due::Records(RecordsCommand::Commit(commit))
                    if self.writable && self.stalled.is_empty() =>
                {
                    // A file is replaced as a whole, and the writes come in their order.
                    if !self.rng.percent(50) {
                        break;
                    }
                    self.disk = record::changed(std::mem::take(&mut self.disk), &commit.ops);
                }
                Due::ToRelay(text) => self.relay.hear(&text).into_iter().for_each(drop),
                _ => {}
            }
        }
        self.due.clear();
        self.stalled.clear();
        self.instance += 1;
    }

    /// Lets everything happen until then.
    fn run_until(&mut self, end: u64) -> Result<(), String> {
        loop {
            let next = self.due.keys().next().map(|(at, _)| *at);
            let wake =
                self.machine.as_ref().and_then(|machine| machine.next_deadline()).map(|at| at.0);
            let at = next.into_iter().chain(wake).min().filter(|at| *at <= end);
            let Some(at) = at else { break };
            let passed = at.saturating_sub(self.tick);
            self.wall += (passed / 1000) as i64;
            self.tick = self.tick.max(at);
            if next == Some(at) {
                let (_, (instance, due)) = self.due.pop_first().expect("it is the next");
                self.happen(instance, due)?;
            } else {
                let now = self.now();
                let effects = self.machine.as_mut().map(|machine| machine.wake(now));
                self.dispatch(effects.unwrap_or_default())?;
            }
            self.check()?;
        }
        self.wall += (end.saturating_sub(self.tick) / 1000) as i64;
        self.tick = self.tick.max(end);
        Ok(())
    }

    /// What must hold at any time.
    fn check(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for process in self.processes.iter().filter(|process| process.alive) {
            if !seen.insert(&process.session) {
                return Err(format!("two processes of {}", process.session));
            }
            let known = self.disk.iter().any(|entry| {
                entry["name"] == process.session.as_str()
                    && entry["launchId"] == process.launch.as_str()
            });
            if !known {
                return Err(format!("{} runs and is not in the records", process.session));
            }
        }
        if self.disk.first().is_none_or(|entry| entry["name"] != "others-1") {
            return Err("a record of somebody else is gone".into());
        }
        let is_up = |name: &str| self.processes.iter().any(|one| one.alive && one.session == name);
        if let Some(name) = self.relay.stopped().find(|name| is_up(name)) {
            return Err(format!("{name} was called stopped, and it runs"));
        }
        match self.tickets.iter().find(|(_, times)| **times > 1) {
            Some((ticket, times)) => Err(format!("ticket {ticket} was answered {times} times")),
            None => self.relay.check(),
        }
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.processes.len()).filter(|at| self.processes[*at].alive).collect()
    }

    fn end_process(&mut self, at: usize, exit: Exit) {
        let process = &mut self.processes[at];
        if !std::mem::replace(&mut process.alive, false) {
            return;
        }
        process.exit = exit;
        let gone = Event::Gone {
            session: process.session.clone(),
            launch: process.launch.clone(),
            exit: Some(exit),
        };
        let name = process.session.clone();
        let watched = process.watched == Some(self.instance);
        self.say(|| format!("{name} ends: {exit}"));
        if watched {
            self.later(5, Due::Event(gone));
        }
    }

    fn params(&mut self, number: u64) -> Map<String, Value> {
        let rule = ["always", "on-failure", "never"][self.rng.below(3) as usize];
        let queue = self.rng.percent(30);
        let params = json!({"provider": "p", "cwd": "/work", "label": format!("s{number}"), "restart": rule, "queue": queue});
        params.as_object().cloned().expect("a record")
    }

    /// A person or an agent asks for something.
    fn ask(&mut self) {
        self.numbers += 1;
        let number = self.numbers;
        let sessions: Vec<String> = self
            .disk
            .iter()
            .filter_map(|entry| entry["name"].as_str())
            .filter(|name| name.starts_with("ar-"))
            .map(str::to_string)
            .collect();
        let one = (!sessions.is_empty())
            .then(|| sessions[self.rng.below(sessions.len() as u64) as usize].clone());
        let (kind, params) = match (self.rng.below(10), one) {
            (0..=5, _) | (_, None) => ("agent.spawn", self.params(number)),
            (6, Some(_)) => ("orchestrator.recover", Map::new()),
            (7, Some(_)) => ("orchestrator.sessions", Map::new()),
            (_, Some(name)) => {
                ("agent.stop", json!({"sessionName": name}).as_object().cloned().expect("a record"))
            }
        };
        self.say(|| format!("asked for {kind} {params:?}"));
        if self.rng.percent(70) {
            let texts = self.relay.issue(format!("c{number}"), kind, params);
            self.relay_says(texts);
        } else if self.machine.is_some() {
            let asked = Event::Asked { ticket: Ticket(number), operation: kind.into(), params };
            self.later(1, Due::Event(asked));
        }
    }

    /// Something goes wrong.
    fn fail(&mut self) {
        match self.rng.below(12) {
            0 | 1 if self.machine.is_some() => self.kill(),
            2..=5 => {
                let alive = self.alive();
                if !alive.is_empty() {
                    let at = alive[self.rng.below(alive.len() as u64) as usize];
                    let exits = [
                        Exit::Signal(9),
                        Exit::Code(1),
                        Exit::Orderly,
                        Exit::Code(2),
                        Exit::OutOfMemory { peak: None },
                    ];
                    let exit = exits[self.rng.below(5) as usize];
                    self.end_process(at, exit);
                }
            }
            6 => {
                self.say(|| "the host starts anew".into());
                self.kill();
                self.alive().into_iter().for_each(|at| self.end_process(at, Exit::Signal(9)));
                self.boot += 1;
            }
            7 | 8 => self.set_relay(!self.relay.up),
            9 => self.set_disk(!self.writable),
            10 => self.wall += self.rng.below(7_200_000) as i64 - 3_600_000,
            _ => {}
        }
        if self.machine.is_none() && self.rng.percent(60) {
            self.start();
        }
    }

    fn set_disk(&mut self, writable: bool) {
        self.say(|| format!("the disk writes: {writable}"));
        self.writable = writable;
    }

    /// Both phases; how many starts there were.
    pub fn run(mut self) -> Result<u64, String> {
        self.start();
        for _ in 0..60 {
            let pause = self.rng.below(3_000_000);
            self.run_until(self.tick + pause)?;
            match self.rng.below(3) {
                0 => self.fail(),
                _ => self.ask(),
            }
        }
        self.faulty = false;
        self.set_relay(true);
        self.set_disk(true);
        if self.machine.is_none() {
            self.start();
        }
        self.say(|| "everything heals".into());
        // Longer than a refused token, a pause after failures and the life of a heartbeat.
        self.run_until(self.tick + 1_200_000_000)?;
        self.judge()?;
        Ok(self.starts)
    }

    /// What must hold in the end.
    fn judge(&self) -> Result<(), String> {
        for entry in self.disk.iter().skip(1) {
            let name = entry["name"].as_str().unwrap_or_default();
            let runs =
                self.processes.iter().any(|process| process.alive && process.session == name);
            let waits = !runs && self.alive().len() >= SESSIONS;
            if runs == entry["parked"].is_string() && !waits {
                return Err(format!("{name} runs: {runs}, and its record says {entry}"));
            }
        }
        let machine = self.machine.as_ref().expect("it runs");
        let known: BTreeSet<String> = machine.records().map(|record| record.name.clone()).collect();
        let kept: BTreeSet<String> = self
            .disk
            .iter()
            .skip(1)
            .filter_map(|entry| entry["name"].as_str())
            .map(str::to_string)
            .collect();
        if known != kept {
            return Err(format!("it knows {known:?}, and the records hold {kept:?}"));
        }
        let files: BTreeSet<String> =
            kept.iter().map(|name| SessionFiles::of("/home", name).options).collect();
        if let Some(file) = self.options.keys().find(|file| !files.contains(*file)) {
            return Err(format!("{file} is left"));
        }
        self.relay.judge()
    }
}
