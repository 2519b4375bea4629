//! The simulated world: one event at a time, in the order of simulated time.

mod person;
mod tool;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use agent_relay::core::agent::Agent;
use agent_relay::core::agent::config::{AgentConfig, ReplyMode, RestartPolicy};
use agent_relay::core::agent::effect::Effect;
use agent_relay::core::agent::event::{BusEvent, Event, ProviderEvent, RowAnswer, StoreEvent, lane};
use agent_relay::core::agent::store::{Batch, StoreOp};
use agent_relay::core::http::{Body, Request};
use agent_relay::core::hub::event::{
    Effect as HubEffect, Event as HubEvent, HubOp, LANES as HUB_LANES, Lane as HubLane, ReadAnswer, StoreEvent as HubStoreEvent,
};
use agent_relay::core::hub::{Hub, HubConfig, scopes_of};
use agent_relay::core::ids::{CallNumber, PeerId, ProcessNumber, ProcessRef, TaskId, Ticket};
use agent_relay::core::matching::Identity;
use agent_relay::core::rng::Rng;
use agent_relay::core::session::{Input, Output, Session, Verb};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::core::{Cause, Machine};
use agent_relay::demo::agent::{Abilities, DemoAgent, Disk, Entry, Output as DemoOutput};
use agent_relay::edge::store::Store;
use agent_relay::hub::store::{Committed, HubStore};
use agent_relay::provider::acp::session::AcpSession;
use agent_relay::provider::{ApprovalMode, SessionSettings};
use agent_relay::secret::Secret;
use agent_relay::wire::api::{TokenRecord, path};
use agent_relay::wire::bus::{Registration, RelayFrame};
use serde_json::{Value, json};

use crate::faults::Faults;
use crate::restores::Restores;

pub const OPERATOR: &str = "operator-token";
/// May speak as anybody.
const ROOT: &str = "root-token";
/// Length of the phase with faults.
const TROUBLE: Duration = Duration::from_secs(120);
/// Everything must be quiet this long after healing.
const HEAL: Duration = Duration::from_secs(420);

/// Something that will happen.
#[derive(Debug)]
enum Action {
    Agent {
        runner: usize,
        life: u64,
        lane: usize,
        event: Event,
    },
    Hub {
        life: u64,
        lane: usize,
        event: HubEvent,
    },
    /// A commit of a runner reaches the disk.
    Commit {
        runner: usize,
        life: u64,
    },
    HubCommit {
        life: u64,
    },
    HubRead {
        life: u64,
        number: u64,
        answer: ReadAnswer,
    },
    /// Bytes or verbs for a session machine, bytes for the demo agent.
    Session {
        runner: usize,
        process: u64,
        input: Input,
    },
    Demo {
        runner: usize,
        process: u64,
        bytes: Vec<u8>,
    },
    ProviderDies {
        runner: usize,
        process: u64,
        code: i32,
    },
    StartRunner {
        runner: usize,
    },
    StartHub,
    /// An HTTP request arrives at the hub, or its answer at the client.
    Request {
        from: From,
        request: Request,
        answer: bool,
    },
    Answer {
        from: From,
        result: Result<(u16, Value), Cause>,
    },
    SendNext,
    Trouble,
    EndPartition,
    HealDisk {
        runner: Option<usize>,
    },
    /// The person looks what there is to do.
    Person,
}

/// Who made an HTTP request.
#[derive(Debug, Clone)]
pub enum From {
    Call { runner: usize, life: u64, call: CallNumber },
    Pump { runner: usize, life: u64, rows: usize, single: bool },
    Sender { index: usize },
}

struct Scheduled {
    at: Tick,
    order: u64,
    action: Action,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// A message or task that a person sends, again and again until the hub has it.
#[derive(Debug, Clone)]
pub struct Sending {
    pub body: Value,
    pub task: bool,
    /// Id once accepted.
    pub id: Option<u64>,
    /// Generation in which it was given.
    pub generation: String,
}

/// The demo agent's disk: survives everything.
#[derive(Debug, Default, Clone)]
pub struct Record {
    pub sessions: BTreeMap<String, Vec<Entry>>,
    /// Every prompt that was received: the receiver's own record, by which deliveries are judged.
    pub log: Vec<String>,
    made: u64,
}

impl Disk for Record {
    fn load(&mut self, session: &str) -> Option<Vec<Entry>> {
        self.sessions.get(session).cloned()
    }
    fn append(&mut self, session: &str, entry: &Entry) {
        if entry.user {
            self.log.push(entry.text.clone());
        }
        self.sessions.entry(session.to_string()).or_default().push(entry.clone());
    }
    fn forget(&mut self) {
        self.sessions.clear();
    }
    fn new_session(&mut self) -> String {
        self.made += 1;
        let session = format!("s{}", self.made);
        self.sessions.insert(session.clone(), Vec::new());
        session
    }
}

/// A provider process.
struct Process {
    number: u64,
    /// Number in the life of its runner.
    order: ProcessNumber,
    session: AcpSession,
    demo: DemoAgent,
    dead: bool,
}

pub struct Runner {
    pub agent: Option<Agent>,
    pub life: u64,
    pub store: Store,
    pub record: Record,
    lanes: Vec<VecDeque<Event>>,
    process: Option<Process>,
    /// A process that outlived its runner.
    orphan: Option<u64>,
    processes: u64,
    pending: VecDeque<(u64, Vec<StoreOp>)>,
    stalled: bool,
    stall_told: bool,
    conn: Option<u64>,
    pumping: Option<(Vec<Batch>, Vec<RowAnswer>, Secret)>,
    /// Instances that have said goodbye.
    pub silent: bool,
    /// The hub has registered it once.
    known: bool,
    pub trace: Vec<Vec<StoreOp>>,
    pub finished: Option<u8>,
}

/// A bus connection as the network sees it.
struct Conn {
    runner: usize,
    life: u64,
    accepted: bool,
    /// Nothing goes through, and neither side has noticed.
    dead: bool,
    silent_since: Option<Tick>,
}

pub struct World {
    pub seed: u64,
    tell: bool,
    pub rng: Rng,
    pub now: Now,
    heap: BinaryHeap<Scheduled>,
    order: u64,
    fifo: HashMap<String, Tick>,
    pub hub: Option<Hub>,
    hub_life: u64,
    pub hub_store: HubStore,
    hub_lanes: Vec<VecDeque<HubEvent>>,
    hub_pending: VecDeque<(u64, Vec<HubOp>)>,
    hub_stalled: bool,
    hub_stall_told: bool,
    pub hub_trace: Vec<Vec<HubOp>>,
    pub restores: Restores,
    tickets: HashMap<u64, (From, bool)>,
    next_ticket: u64,
    conns: BTreeMap<u64, Conn>,
    pub runners: Vec<Runner>,
    pub sendings: Vec<Sending>,
    next_sending: usize,
    pub faults: Faults,
    partition: BTreeSet<usize>,
    pub healed: bool,
    pub person: person::Person,
    tool: tool::Tool,
    pub story: Vec<String>,
    steps: u64,
}

impl Sending {
    /// Who sends it.
    pub fn from(&self) -> &str {
        self.body["from"].as_str().unwrap_or("user")
    }
}

impl World {
    pub fn new(seed: u64, tell: bool) -> World {
        let rng = Rng::new(seed);
        let mut draw = rng.fork("faults");
        let faults = Faults::draw(&mut draw);
        let mut hub_store = HubStore::in_memory().expect("memory");
        let token = |profile: &str, token: &str| {
            let scopes = scopes_of(profile).iter().map(|s| s.to_string()).collect();
            let record = TokenRecord { jti: profile.into(), profile_id: profile.into(), scopes, ..Default::default() };
            HubOp::TokenPut { hash: hash(token), record }
        };
        let first = vec![token("operator", OPERATOR), token("root", ROOT)];
        hub_store.commit(&[(0, first.clone())]).expect("memory");
        let mut world = World {
            seed,
            tell,
            rng: rng.fork("world"),
            now: Now { tick: Tick(1_000_000), wall: Wall(1_760_000_000_000) },
            heap: BinaryHeap::new(),
            order: 0,
            fifo: HashMap::new(),
            hub: None,
            hub_life: 0,
            hub_store,
            hub_lanes: (0..HUB_LANES).map(|_| VecDeque::new()).collect(),
            hub_pending: VecDeque::new(),
            hub_stalled: false,
            hub_stall_told: false,
            hub_trace: vec![first],
            restores: Restores::draw(&mut rng.fork("restores")),
            tickets: HashMap::new(),
            next_ticket: 0,
            conns: BTreeMap::new(),
            runners: Vec::new(),
            sendings: Vec::new(),
            next_sending: 0,
            faults,
            partition: BTreeSet::new(),
            healed: false,
            person: person::Person::new(rng.fork("person")),
            tool: tool::Tool::new(rng.fork("tool")),
            story: Vec::new(),
            steps: 0,
        };
        world.say(format!("faults {:?}", world.faults));
        for runner in 0..1 + draw.below(3) as usize {
            world.runners.push(Runner {
                agent: None,
                life: 0,
                store: Store::in_memory().expect("memory"),
                record: Record::default(),
                lanes: (0..lane::COUNT).map(|_| VecDeque::new()).collect(),
                process: None,
                orphan: None,
                processes: 0,
                pending: VecDeque::new(),
                stalled: false,
                stall_told: false,
                conn: None,
                pumping: None,
                silent: false,
                known: false,
                trace: Vec::new(),
                finished: None,
            });
            let after = world.rng.below(3000);
            world.after_ms(after, Action::StartRunner { runner });
        }
        world.plan_sendings(&mut draw, &mut rng.fork("senders"));
        world.start_hub();
        world.after_ms(4000, Action::SendNext);
        world.after_ms(3000, Action::Trouble);
        world.after_ms(5000, Action::Person);
        world
    }

    fn plan_sendings(&mut self, draw: &mut Rng, senders: &mut Rng) {
        let words = ["hello", "work 1", "slow 1", "garbage", "how are you", "work 2", "crash", "error", "x"];
        for index in 0..8 + draw.below(25) {
            let word = words[draw.below(words.len() as u64) as usize];
            let body = format!("{word} n{index}");
            let to = match draw.below(10) {
                0 => "broadcast".to_string(),
                1 => "tag:acp".to_string(),
                _ => agent_name(draw.below(self.runners.len() as u64) as usize),
            };
            let task = draw.percent(25);
            let mut body = match task {
                true => json!({"to": to, "title": format!("t{index}"), "body": body}),
                false => json!({"to": to, "body": body, "idempotencyKey": format!("k{index}")}),
            };
            // Agents write to each other too; what they get as answers expects none.
            let from = agent_name(senders.below(self.runners.len() as u64) as usize);
            if !task && from != to && senders.percent(50) && self.runners.len() > 1 {
                body["from"] = json!(from);
            }
            self.sendings.push(Sending { body, task, id: None, generation: String::new() });
        }
    }

    pub fn say(&mut self, text: String) {
        let line = format!("{:>12} {text}", self.now.tick.0);
        if self.tell {
            println!("{line}");
        }
        if self.story.len() > 4000 {
            self.story.drain(..2000);
        }
        self.story.push(line);
    }

    /// Whether the story is printed.
    pub fn tells(&self) -> bool {
        self.tell
    }

    /// The same for the same seed.
    pub fn fingerprint(&self) -> String {
        format!("{} {} {:?}", self.steps, self.now.tick.0, self.story.last())
    }

    fn after_ms(&mut self, ms: u64, action: Action) {
        self.at(self.now.tick + Duration::from_millis(ms), action);
    }

    fn at(&mut self, at: Tick, action: Action) {
        self.order += 1;
        self.heap.push(Scheduled { at, order: self.order, action });
    }

    /// After a random delay, but never overtaking what went before on the same way.
    fn send(&mut self, way: String, ms_max: u64, action: Action) {
        let delay = Duration::from_micros(50 + self.rng.below(ms_max * 1000 + 1));
        let wanted = self.now.tick + delay;
        let last = self.fifo.get(&way).copied().unwrap_or_default();
        let at = wanted.max(Tick(last.0 + 1));
        self.fifo.insert(way, at);
        self.at(at, action);
    }

    pub fn run(&mut self) -> Result<(), String> {
        let trouble_ends = self.now.tick + TROUBLE;
        let end = trouble_ends + HEAL;
        loop {
            if !self.healed && self.now.tick >= trouble_ends {
                self.heal();
            }
            if self.healed && self.steps.is_multiple_of(64) && self.is_quiet() {
                break;
            }
            if self.now.tick >= end {
                return Err(format!("not quiet {} s after healing: {}", HEAL.as_secs(), self.unrest()));
            }
            if !self.step()? {
                return Err("nothing will ever happen again".into());
            }
            self.check_step()?;
        }
        self.check_end()
    }

    /// One thing happens. False: nothing is left.
    fn step(&mut self) -> Result<bool, String> {
        self.steps += 1;
        if self.steps > 2_000_000 {
            return Err("too many steps: something spins".into());
        }
        if self.serve_lanes() {
            return Ok(true);
        }
        let deadline = self.next_deadline();
        let next = self.heap.peek().map(|scheduled| scheduled.at);
        match (deadline, next) {
            (Some((at, who)), next) if next.is_none_or(|next| at <= next) => {
                self.advance(at);
                self.wake(who);
            }
            (_, Some(at)) => {
                self.advance(at);
                let action = self.heap.pop().expect("peeked").action;
                self.act(action);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn advance(&mut self, at: Tick) {
        if at > self.now.tick {
            let passed = at - self.now.tick;
            self.now.wall.0 += passed.as_millis() as i64;
            self.now.tick = at;
        }
    }

    /// Deadlines of all machines; `usize::MAX` is the hub.
    fn next_deadline(&self) -> Option<(Tick, usize)> {
        let hub = self.hub.as_ref().and_then(|hub| hub.next_deadline()).map(|at| (at, usize::MAX));
        let agents = self.runners.iter().enumerate().filter_map(|(at, r)| Some((r.agent.as_ref()?.next_deadline()?, at)));
        let sessions = self.runners.iter().enumerate().filter_map(|(at, r)| {
            let process = r.process.as_ref().filter(|p| !p.dead)?;
            let next = [process.session.next_deadline(), process.demo.next_deadline()].into_iter().flatten().min()?;
            Some((next, 1000 + at))
        });
        hub.into_iter().chain(agents).chain(sessions).min()
    }

    fn wake(&mut self, who: usize) {
        if who == usize::MAX {
            let effects = self.hub.as_mut().map(|hub| hub.wake(self.now)).unwrap_or_default();
            self.hub_effects(effects);
        } else if who >= 1000 {
            let runner = who - 1000;
            let Some(process) = self.runners[runner].process.as_mut() else { return };
            let number = process.number;
            if process.session.next_deadline().is_some_and(|at| at <= self.now.tick) {
                let outputs = process.session.handle(self.now, Input::Wake);
                self.session_outputs(runner, number, outputs);
            }
            let now = self.now;
            let Runner { process, record, .. } = &mut self.runners[runner];
            let outputs = process.as_mut().map(|p| p.demo.wake(now, record)).unwrap_or_default();
            self.demo_outputs(runner, number, outputs);
        } else {
            let now = self.now;
            let effects = self.runners[who].agent.as_mut().map(|agent| agent.wake(now)).unwrap_or_default();
            self.agent_effects(who, effects);
        }
    }

    /// Events that wait in lanes go in when their machine has credit for them.
    fn serve_lanes(&mut self) -> bool {
        for runner in 0..self.runners.len() {
            for lane in 0..lane::COUNT {
                let state = &mut self.runners[runner];
                let Some(agent) = state.agent.as_mut() else { continue };
                if agent.may_take(lane)
                    && let Some(event) = state.lanes[lane].pop_front()
                {
                    if self.tell {
                        println!("{:>12} r{runner} <- {}", self.now.tick.0, event.summary());
                    }
                    let effects = self.runners[runner].agent.as_mut().expect("looked at").handle(self.now, event);
                    self.agent_effects(runner, effects);
                    return true;
                }
            }
        }
        for lane in 0..HUB_LANES {
            let Some(hub) = self.hub.as_mut() else { break };
            if hub.may_take(lane)
                && let Some(event) = self.hub_lanes[lane].pop_front()
            {
                let effects = hub.handle(self.now, event);
                self.hub_effects(effects);
                return true;
            }
        }
        false
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Agent { runner, life, lane, event } => {
                if self.runners[runner].life == life && self.runners[runner].agent.is_some() {
                    self.runners[runner].lanes[lane].push_back(event);
                }
            }
            Action::Hub { life, lane, event } => {
                if self.hub_life == life && self.hub.is_some() {
                    self.hub_lanes[lane].push_back(event);
                }
            }
            Action::Commit { runner, life } => self.commit(runner, life),
            Action::HubCommit { life } => self.hub_commit(life),
            Action::HubRead { life, number, answer } => {
                let event = HubEvent::Store(HubStoreEvent::Read { number, answer });
                self.act(Action::Hub { life, lane: HubLane::Store as usize, event });
            }
            Action::Session { runner, process, input } => {
                let now = self.now;
                if let Some(p) = self.runners[runner].process.as_mut().filter(|p| p.number == process && !p.dead) {
                    let outputs = p.session.handle(now, input);
                    self.session_outputs(runner, process, outputs);
                }
            }
            Action::Demo { runner, process, bytes } => {
                let now = self.now;
                let Runner { process: slot, record, .. } = &mut self.runners[runner];
                if let Some(p) = slot.as_mut().filter(|p| p.number == process && !p.dead) {
                    let text = String::from_utf8(bytes).expect("our own JSON");
                    let mut outputs = Vec::new();
                    for line in text.lines() {
                        outputs.extend(p.demo.line(now, line, record));
                    }
                    self.demo_outputs(runner, process, outputs);
                }
            }
            Action::ProviderDies { runner, process, code } => self.provider_dies(runner, process, code),
            Action::StartRunner { runner } => self.start_runner(runner),
            Action::StartHub => self.start_hub(),
            Action::Request { from, request, answer } => self.request_arrives(from, request, answer),
            Action::Answer { from, result } => self.answer_arrives(from, result),
            Action::SendNext => self.send_next(),
            Action::Trouble => self.trouble(),
            Action::Person => self.person_acts(),
            Action::EndPartition => self.partition.clear(),
            Action::HealDisk { runner } => match runner {
                Some(runner) => self.runners[runner].stalled = false,
                None => self.hub_stalled = false,
            },
        }
    }

    // ---- life and death

    fn start_hub(&mut self) {
        if self.hub.is_some() {
            return;
        }
        self.hub_life += 1;
        let life = self.hub_life;
        self.say(format!("hub starts, life {life}"));
        let mut number = life * 1_000_000;
        let secret = move || {
            number += 1;
            format!("secret-{number}")
        };
        self.hub = Some(Hub::new(HubConfig { id: "hub".into(), hash, secret: Box::new(secret) }, self.rng.bits()));
        let mut snapshot = self.hub_store.snapshot().expect("memory");
        snapshot.mark = self.restores.mark.clone();
        let event = HubEvent::Store(HubStoreEvent::Restored(Box::new(snapshot)));
        self.send(format!("hub{life}"), 5, Action::Hub { life, lane: HubLane::Store as usize, event });
    }

    pub fn crash_hub(&mut self) {
        if self.hub.take().is_none() {
            return;
        }
        self.say("hub crashes".into());
        self.hub_lanes.iter_mut().for_each(VecDeque::clear);
        // What was being written may or may not have reached the disk: a prefix did.
        let reached = self.rng.below(self.hub_pending.len() as u64 + 1) as usize;
        let done: Vec<_> = self.hub_pending.drain(..).take(reached).collect();
        let stalled = self.hub_stalled;
        for (number, ops) in done.into_iter().filter(|_| !stalled) {
            // The mark may have been written by then or not.
            let marked = self.rng.percent(50);
            self.hub_persist(&[(number, ops)], marked);
        }
        self.hub_stall_told = false;
        let waiting: Vec<From> = self.tickets.drain().map(|(_, (from, _))| from).collect();
        for from in waiting {
            self.send_answer(from, Err(Cause::Offline("the hub is gone".into())));
        }
        let conns: Vec<u64> = self.conns.keys().copied().collect();
        for conn in conns {
            self.cut(conn, true, false);
        }
        let later = 100 + self.rng.below(5000);
        self.after_ms(later, Action::StartHub);
        self.note_stopped_copy();
    }

    fn start_runner(&mut self, runner: usize) {
        if self.runners[runner].agent.is_some() || self.runners[runner].finished.is_some() {
            return;
        }
        let life = self.runners[runner].life + 1;
        self.say(format!("runner {runner} starts, life {life}"));
        let seed = self.rng.bits();
        let config = config(runner, life, self.now.wall.0);
        let state = &mut self.runners[runner];
        state.life = life;
        state.silent = false;
        state.agent = Some(Agent::new(config, seed));
        let snapshot = state.store.snapshot().expect("memory");
        let event = Event::Store(StoreEvent::Restored(Box::new(snapshot)));
        self.send(format!("store{runner}.{life}"), 2, Action::Agent { runner, life, lane: lane::STORE, event });
    }

    pub fn crash_runner(&mut self, runner: usize) {
        if self.runners[runner].agent.take().is_none() {
            return;
        }
        self.say(format!("runner {runner} crashes"));
        let reached = self.rng.below(self.runners[runner].pending.len() as u64 + 1) as usize;
        let state = &mut self.runners[runner];
        state.lanes.iter_mut().for_each(VecDeque::clear);
        let done: Vec<_> = state.pending.drain(..).take(reached).collect();
        for (number, ops) in done.into_iter().filter(|_| !state.stalled) {
            state.trace.push(ops.clone());
            state.store.commit(&[(number, ops)]).expect("memory");
        }
        state.pumping = None;
        state.stall_told = false;
        // The provider dies with its runner, or lives on until the next start ends it.
        if let Some(process) = state.process.take().filter(|p| !p.dead)
            && self.rng.percent(self.faults.linger)
        {
            self.runners[runner].orphan = Some(process.number);
        }
        if let Some(conn) = self.runners[runner].conn.take() {
            self.cut(conn, false, true);
        }
        let later = if self.faults.restart_runner_late { 2000 + self.rng.below(20_000) } else { 50 + self.rng.below(2000) };
        self.after_ms(later, Action::StartRunner { runner });
    }

    fn provider_dies(&mut self, runner: usize, number: u64, code: i32) {
        let now = self.now;
        let life = self.runners[runner].life;
        let Some(process) = self.runners[runner].process.as_mut().filter(|p| p.number == number && !p.dead) else { return };
        process.dead = true;
        let outputs = process.session.handle(now, Input::Closed);
        self.say(format!("provider {number} of runner {runner} dies with {code}"));
        self.session_outputs(runner, number, outputs);
        let event = Event::Provider(ProviderEvent::Exited { code, stderr: String::new() });
        self.send(format!("provider{runner}.{life}"), 2, Action::Agent { runner, life, lane: lane::PROVIDER, event });
    }

    pub fn crash_provider(&mut self, runner: usize) {
        if let Some(number) = self.runners[runner].process.as_ref().filter(|p| !p.dead).map(|p| p.number) {
            self.provider_dies(runner, number, 137);
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        self.say("everything heals".into());
        self.faults = Faults::none();
        self.partition.clear();
        self.hub_stalled = false;
        for runner in 0..self.runners.len() {
            self.runners[runner].stalled = false;
        }
        let dead: Vec<u64> = self.conns.iter().filter(|(_, c)| c.dead).map(|(n, _)| *n).collect();
        for conn in dead {
            self.cut(conn, true, true);
        }
        // Agents that were given up are asked to try again, as a person would.
        for runner in 0..self.runners.len() {
            let body = json!({"type": "agent.restart", "target": agent_name(runner)});
            self.sendings.push(Sending { body: json!({"command": body}), task: false, id: None, generation: String::new() });
        }
    }

    fn trouble(&mut self) {
        if self.healed {
            return;
        }
        let next = 200 + self.rng.below(2500);
        self.after_ms(next, Action::Trouble);
        let faults = self.faults.clone();
        self.trouble_with_copies();
        let runner = self.rng.below(self.runners.len() as u64) as usize;
        if self.rng.percent(faults.crash_runner) {
            self.crash_runner(runner);
        }
        if self.rng.percent(faults.crash_hub) {
            self.crash_hub();
        }
        if self.rng.percent(faults.crash_provider) {
            self.crash_provider(runner);
        }
        if self.rng.percent(faults.cut)
            && let Some(conn) = self.runners[runner].conn
        {
            self.cut(conn, true, true);
        }
        if self.rng.percent(faults.half_open) {
            let tick = self.now.tick;
            if let Some(conn) = self.runners[runner].conn.and_then(|n| self.conns.get_mut(&n)) {
                conn.dead = true;
                conn.silent_since = Some(tick);
            }
        }
        if self.rng.percent(faults.stall_disk) {
            let whose = if self.rng.percent(30) { None } else { Some(runner) };
            self.say(format!("disk of {whose:?} fills up"));
            match whose {
                Some(runner) => self.runners[runner].stalled = true,
                None => self.hub_stalled = true,
            }
            let later = 500 + self.rng.below(8000);
            self.after_ms(later, Action::HealDisk { runner: whose });
        }
        if self.rng.percent(faults.partition) {
            self.say(format!("runner {runner} is cut off"));
            self.partition.insert(runner);
            if let Some(conn) = self.runners[runner].conn {
                self.cut(conn, true, true);
            }
            let later = 1000 + self.rng.below(30_000);
            self.after_ms(later, Action::EndPartition);
        }
        if self.rng.percent(faults.jump_clock) {
            let jump = self.rng.below(240_000) as i64 - 120_000;
            self.say(format!("wall clock jumps by {jump} ms"));
            self.now.wall.0 += jump;
        }
    }

    /// Ends a connection; each side hears of it or not.
    fn cut(&mut self, number: u64, tell_client: bool, tell_hub: bool) {
        let Some(conn) = self.conns.remove(&number) else { return };
        let runner = conn.runner;
        if self.runners[runner].conn == Some(number) {
            self.runners[runner].conn = None;
        }
        if tell_client {
            let event = Event::Bus(BusEvent::Lost(Cause::Offline("cut".into())));
            self.send(format!("down{number}"), self.faults.delay_ms_max, Action::Agent { runner, life: conn.life, lane: lane::BUS, event });
        }
        if tell_hub {
            let life = self.hub_life;
            let event = HubEvent::PeerClosed { peer: PeerId(number) };
            self.send(format!("up{number}"), self.faults.delay_ms_max, Action::Hub { life, lane: HubLane::Gate as usize, event });
        }
    }

    // ---- disks

    fn commit(&mut self, runner: usize, life: u64) {
        let state = &mut self.runners[runner];
        if state.life != life || state.agent.is_none() || state.pending.is_empty() {
            return;
        }
        let event = if state.stalled {
            state.stall_told = true;
            StoreEvent::Stalled(Cause::Failed("disk full".into()))
        } else {
            let groups: Vec<_> = state.pending.drain(..).collect();
            state.stall_told = false;
            state.trace.extend(groups.iter().map(|(_, ops)| ops.clone()));
            let dropped = state.store.commit(&groups).expect("memory");
            StoreEvent::Committed { upto: groups.last().expect("not empty").0, dropped }
        };
        self.send(format!("store{runner}.{life}"), 2, Action::Agent { runner, life, lane: lane::STORE, event: Event::Store(event) });
    }

    fn hub_commit(&mut self, life: u64) {
        if self.hub_life != life || self.hub.is_none() || self.hub_pending.is_empty() {
            return;
        }
        let event = if self.hub_stalled {
            self.hub_stall_told = true;
            HubStoreEvent::Stalled(Cause::Failed("disk full".into()))
        } else {
            let groups: Vec<_> = self.hub_pending.drain(..).collect();
            self.hub_stall_told = false;
            let Committed { existing, unattached, unseen, retired } = self.hub_persist(&groups, true);
            HubStoreEvent::Committed { upto: groups.last().expect("not empty").0, existing, unattached, unseen, retired }
        };
        let event = HubEvent::Store(event);
        self.send(format!("hub{life}"), 2, Action::Hub { life, lane: HubLane::Store as usize, event });
    }

    // ---- HTTP

    fn http(&mut self, from: From, request: Request) {
        let runner = match &from {
            From::Call { runner, .. } | From::Pump { runner, .. } => Some(*runner),
            From::Sender { .. } => None,
        };
        let cut_off = runner.is_some_and(|runner| self.partition.contains(&runner));
        if cut_off || self.rng.percent(self.faults.lose_request) {
            let wait = if cut_off && self.rng.percent(50) { 5 } else { 10_000 };
            return self.after_ms(wait, Action::Answer { from, result: Err(Cause::TimedOut("lost".into())) });
        }
        let delay = self.rng.below(self.faults.delay_ms_max + 1);
        if self.rng.percent(self.faults.repeat_request) {
            let again = delay + self.rng.below(300);
            self.after_ms(again, Action::Request { from: from.clone(), request: request.clone(), answer: false });
        }
        self.after_ms(delay, Action::Request { from, request, answer: true });
    }

    fn request_arrives(&mut self, from: From, request: Request, answer: bool) {
        if self.hub.is_none() {
            if answer {
                self.send_answer(from, Err(Cause::Offline("nobody listens".into())));
            }
            return;
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.tickets.insert(ticket, (from, answer));
        let life = self.hub_life;
        self.act(Action::Hub { life, lane: HubLane::Gate as usize, event: HubEvent::Request { ticket: Ticket(ticket), request } });
    }

    fn send_answer(&mut self, from: From, result: Result<(u16, Value), Cause>) {
        let lost = self.rng.percent(self.faults.lose_answer);
        let (delay, result) = match lost {
            true => (10_000, Err(Cause::TimedOut("answer lost".into()))),
            false => (self.rng.below(self.faults.delay_ms_max + 1), result),
        };
        self.after_ms(delay, Action::Answer { from, result });
    }

    fn answer_arrives(&mut self, from: From, result: Result<(u16, Value), Cause>) {
        match from {
            From::Call { runner, life, call } => {
                let event = Event::Called { call, result };
                self.act(Action::Agent { runner, life, lane: lane::HEARTBEAT, event });
            }
            From::Pump { runner, life, rows, single } => {
                if self.runners[runner].life == life {
                    self.pump_answer(runner, rows, single, result);
                }
            }
            From::Sender { index } => self.sender_answer(index, result),
        }
    }

    // ---- the pump, as the real one does it

    fn pump_next(&mut self, runner: usize) {
        let life = self.runners[runner].life;
        let Some((rows, answers, token)) = self.runners[runner].pumping.as_ref() else { return };
        let at = answers.len();
        if at >= rows.len() {
            let (_, answers, _) = self.runners[runner].pumping.take().expect("looked at");
            let event = Event::Pumped(Ok(answers));
            return self.act(Action::Agent { runner, life, lane: lane::PUMP, event });
        }
        let is_message = |kind: &str| matches!(kind, "message" | "session-message");
        let run = rows[at..].iter().take_while(|row| is_message(&row.row.kind)).count();
        let token = token.expose().to_string();
        let (method, path, body, count, single) = if run > 0 {
            let messages: Vec<&Value> = rows[at..at + run].iter().map(|row| &row.row.payload).collect();
            ("POST", path::BATCH.to_string(), json!({"messages": messages}), run, false)
        } else {
            let row = &rows[at].row;
            match row.kind.as_str() {
                "task-update" => ("PATCH", path::task(TaskId(row.payload["taskId"].as_u64().unwrap_or(0))), row.payload.clone(), 1, true),
                _ => ("POST", path::INSIGHTS.to_string(), row.payload.clone(), 1, true),
            }
        };
        let request = Request { method: method.into(), path, token, body: body.to_string().into_bytes(), ..Default::default() };
        self.http(From::Pump { runner, life, rows: count, single }, request);
    }

    fn pump_answer(&mut self, runner: usize, count: usize, single: bool, result: Result<(u16, Value), Cause>) {
        let life = self.runners[runner].life;
        let Some((rows, answers, _)) = self.runners[runner].pumping.as_mut() else { return };
        let at = answers.len();
        let outcome = match result {
            Ok((status, body)) if single => Ok(vec![RowAnswer { seq: rows[at].seq, status, code: code_of(&body), error: String::new() }]),
            Ok((status, body)) if status < 300 => {
                let results = body["results"].as_array().cloned().unwrap_or_default();
                assert_eq!(results.len(), count, "a result per row");
                let answer = |(row, result): (&Batch, &Value)| RowAnswer {
                    seq: row.seq,
                    status: result["status"].as_u64().unwrap_or(500) as u16,
                    code: code_of(result),
                    error: result["error"].to_string(),
                };
                Ok(rows[at..at + count].iter().zip(&results).map(answer).collect())
            }
            Ok((status, body)) => Err(Cause::Refused(status, body.to_string())),
            Err(cause) => Err(cause),
        };
        match outcome {
            Ok(new) => {
                answers.extend::<Vec<RowAnswer>>(new);
                self.pump_next(runner);
            }
            Err(cause) => {
                let (_, answers, _) = self.runners[runner].pumping.take().expect("looked at");
                let event = Event::Pumped(if answers.is_empty() { Err(cause) } else { Ok(answers) });
                self.act(Action::Agent { runner, life, lane: lane::PUMP, event });
            }
        }
    }

    // ---- people

    fn send_next(&mut self) {
        let pause = 20 + self.rng.below(if self.healed { 200 } else { 4000 });
        if let Some(index) = self.sendings.iter().position(|s| s.id.is_none())
            && index >= self.next_sending
        {
            self.next_sending = index;
            self.submit(index);
            return;
        }
        self.after_ms(pause, Action::SendNext);
    }

    fn submit(&mut self, index: usize) {
        let sending = &self.sendings[index];
        let agent = sending.body["from"].as_str().map(str::to_string);
        let knows = |from: &String| self.runners.iter().enumerate().any(|(at, runner)| runner.known && agent_name(at) == *from);
        if agent.as_ref().is_some_and(|from| !knows(from)) {
            // Nobody could answer it yet.
            return self.after_ms(1000, Action::SendNext);
        }
        let (path, body) = match (sending.body.get("command"), sending.task) {
            (Some(command), _) => (path::COMMANDS, command.clone()),
            (None, true) => (path::TASKS, sending.body.clone()),
            (None, false) => (path::MESSAGES, sending.body.clone()),
        };
        let request = Request {
            method: "POST".into(),
            path: path.into(),
            token: if agent.is_some() { ROOT } else { OPERATOR }.into(),
            body: body.to_string().into_bytes(),
            ..Default::default()
        };
        // Tasks and commands carry no key: a person does not send them again when in doubt.
        let careful = sending.task || sending.body.get("command").is_some();
        let from = From::Sender { index };
        match careful {
            true => self.request_arrives_surely(from, request),
            false => self.http(from, request),
        }
    }

    fn request_arrives_surely(&mut self, from: From, request: Request) {
        match self.hub.is_some() {
            true => self.request_arrives(from, request, true),
            false => self.after_ms(1000, Action::SendNext),
        }
    }

    fn sender_answer(&mut self, index: usize, result: Result<(u16, Value), Cause>) {
        let careful = self.sendings[index].task || self.sendings[index].body.get("command").is_some();
        match result {
            Ok((200 | 201, body)) => {
                let id = body["messageId"].as_u64().or_else(|| body["id"].as_u64()).unwrap_or(u64::MAX);
                self.say(format!("accepted #{id}: {}", self.sendings[index].body));
                self.sendings[index].id = Some(id);
                self.sendings[index].generation = body["generation"].as_str().unwrap_or_default().to_string();
            }
            // Not known whether it arrived: forget it, nobody may rely on it.
            Err(_) if careful => self.sendings[index].id = Some(u64::MAX),
            // The agent is not known yet.
            Ok((422, _)) if !self.healed => {}
            Ok((422, _)) if self.sendings[index].body.get("command").is_some() => self.sendings[index].id = Some(u64::MAX),
            _ => {}
        }
        self.after_ms(100, Action::SendNext);
    }

    // ---- effects of the hub

    fn hub_effects(&mut self, effects: Vec<HubEffect>) {
        let life = self.hub_life;
        for effect in effects {
            match effect {
                HubEffect::Commit { number, ops } => {
                    self.hub_pending.push_back((number, ops));
                    if !self.hub_stall_told {
                        self.send(format!("hubdisk{life}"), 3, Action::HubCommit { life });
                    }
                }
                HubEffect::RetryStore => self.send(format!("hubdisk{life}"), 3, Action::HubCommit { life }),
                HubEffect::Read { number, query } => {
                    let answer = self.hub_store.answer(&query);
                    self.send(format!("hubread{life}"), 3, Action::HubRead { life, number, answer });
                }
                HubEffect::Vacuum | HubEffect::LookAtStore => {}
                HubEffect::Respond { ticket, status, body } => {
                    let body = match body {
                        Body::Json(body) => body,
                        Body::Empty | Body::Text(..) => Value::Null,
                    };
                    match self.tickets.remove(&ticket.0) {
                        Some((from, true)) => self.send_answer(from, Ok((status, body))),
                        Some((_, false)) => {}
                        None => self.refuse_upgrade(ticket.peer(), status, body),
                    }
                }
                HubEffect::Accept { ticket: peer } => {
                    let told = self.conns.get_mut(&peer.0).map(|conn| {
                        conn.accepted = true;
                        (conn.runner, conn.life)
                    });
                    if let Some((runner, life)) = told {
                        let event = Event::Bus(BusEvent::Connected);
                        self.send(format!("down{peer}"), self.faults.delay_ms_max, Action::Agent { runner, life, lane: lane::BUS, event });
                    }
                }
                HubEffect::PeerSend { peer, text } => self.frame_down(peer, &text),
                HubEffect::PeerClose { peer, .. } => self.cut(peer.0, true, false),
                HubEffect::Log { text, .. } => {
                    if self.tell {
                        println!("{:>12} hub: {text}", self.now.tick.0);
                    }
                }
                HubEffect::Failed(text) => panic!("hub failed: {text}"),
                HubEffect::Broken(error) => panic!("hub's store broke: {error}"),
                HubEffect::Finish => self.hub = None,
            }
        }
    }

    fn refuse_upgrade(&mut self, peer: PeerId, status: u16, body: Value) {
        if let Some(conn) = self.conns.remove(&peer.0) {
            let text = body["error"].as_str().unwrap_or_default().to_string();
            let event = Event::Bus(BusEvent::Lost(Cause::Refused(status, text)));
            self.after_ms(1, Action::Agent { runner: conn.runner, life: conn.life, lane: lane::BUS, event });
        }
    }

    fn frame_down(&mut self, peer: PeerId, text: &str) {
        let Some(conn) = self.conns.get(&peer.0).filter(|conn| !conn.dead) else { return };
        let (runner, life) = (conn.runner, conn.life);
        let frame = RelayFrame::parse(text).expect("our own frame");
        self.runners[runner].known |= matches!(frame, RelayFrame::Registered { .. });
        let repeat = self.rng.percent(self.faults.repeat_frame) && matches!(frame, RelayFrame::Event { .. } | RelayFrame::Command { .. });
        for _ in 0..1 + usize::from(repeat) {
            let event = Event::Bus(BusEvent::Framed(frame.clone()));
            self.send(format!("down{peer}"), self.faults.delay_ms_max, Action::Agent { runner, life, lane: lane::BUS, event });
        }
    }

    // ---- effects of an agent

    fn agent_effects(&mut self, runner: usize, effects: Vec<Effect>) {
        let life = self.runners[runner].life;
        let mut finished = false;
        for effect in effects {
            assert!(!finished, "an effect after Finish");
            match effect {
                Effect::Commit { number, ops } => {
                    self.runners[runner].pending.push_back((number, ops));
                    if !self.runners[runner].stall_told {
                        self.send(format!("disk{runner}.{life}"), 3, Action::Commit { runner, life });
                    }
                }
                Effect::RetryStore => self.send(format!("disk{runner}.{life}"), 3, Action::Commit { runner, life }),
                Effect::FetchInbox(choice) => {
                    // The real store reads behind the commits that were ordered before.
                    self.settle_disk(runner);
                    let (rows, more) = self.runners[runner].store.inbox(&choice).expect("memory");
                    let event = Event::Store(StoreEvent::InboxRows { rows, more });
                    self.send(format!("store{runner}.{life}"), 2, Action::Agent { runner, life, lane: lane::STORE, event });
                }
                Effect::FetchOutbox => {
                    self.settle_disk(runner);
                    let rows = self.runners[runner].store.outbox().expect("memory");
                    let event = Event::Store(StoreEvent::OutboxRows { rows: Ok(rows) });
                    self.send(format!("store{runner}.{life}"), 2, Action::Agent { runner, life, lane: lane::STORE, event });
                }
                Effect::Connect { token } => self.connect(runner, token),
                Effect::Send(frame) => self.frame_up(runner, frame),
                Effect::Disconnect { .. } => {
                    if let Some(conn) = self.runners[runner].conn {
                        self.cut(conn, false, true);
                    }
                }
                Effect::Call { call, method, path, body, token } => {
                    if self.tell {
                        println!("{:>12} r{runner} -> call {call} {method} {path}", self.now.tick.0);
                    }
                    let (path, query) = path.split_once('?').map_or((path.clone(), String::new()), |(p, q)| (p.into(), q.into()));
                    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
                    let request = Request { method: method.into(), path, query, token: token.expose().into(), body, ..Default::default() };
                    self.http(From::Call { runner, life, call }, request);
                }
                Effect::ReadConfigToken => {
                    let event = Event::ConfigToken { url: None, token: Some(Secret::new(OPERATOR)) };
                    self.after_ms(1, Action::Agent { runner, life, lane: lane::HEARTBEAT, event });
                }
                Effect::WriteToken { .. } => {
                    let event = Event::TokenWritten(Ok(()));
                    self.after_ms(1, Action::Agent { runner, life, lane: lane::HEARTBEAT, event });
                }
                Effect::Relay { url } => unreachable!("nothing names another relay, but {url}"),
                Effect::Tell { .. } => {}
                Effect::Pump { rows, token } => {
                    assert!(self.runners[runner].pumping.is_none(), "one exchange at a time");
                    self.runners[runner].pumping = Some((rows, Vec::new(), token));
                    self.pump_next(runner);
                }
                Effect::Spawn { process, leftover, .. } => self.spawn(runner, process, leftover.is_some()),
                Effect::Verb { process: order, number, verb } => {
                    let process = self.runners[runner].process.as_ref().filter(|p| !p.dead && p.order == order).map(|p| p.number);
                    if let Some(process) = process {
                        if let Verb::Deliver(parcel) = &verb {
                            self.use_tool(runner, parcel);
                        }
                        let input = Input::Verb(number, verb);
                        self.send(format!("verb{runner}.{process}"), 1, Action::Session { runner, process, input });
                    }
                }
                Effect::StopProvider { grace_ms } => {
                    if let Some(process) = self.runners[runner].process.as_ref().filter(|p| !p.dead).map(|p| p.number) {
                        let later = self.rng.below(grace_ms.min(300) + 1);
                        self.after_ms(later, Action::ProviderDies { runner, process, code: 0 });
                    }
                }
                Effect::Reply { .. } | Effect::Stay { .. } | Effect::Say { .. } | Effect::Part { .. } => {}
                Effect::Log { text, level, .. } => {
                    if self.tell {
                        println!("{:>12} r{runner} {level}: {text}", self.now.tick.0);
                    }
                }
                Effect::Finish(outcome) => {
                    self.say(format!("runner {runner} finishes: {outcome:?}"));
                    self.runners[runner].finished = Some(outcome.code);
                    self.runners[runner].agent = None;
                    finished = true;
                }
            }
        }
    }

    /// Commits that stand in front of a read are carried out first, unless the disk is full: then the read waits too.
    fn settle_disk(&mut self, runner: usize) {
        let life = self.runners[runner].life;
        if !self.runners[runner].pending.is_empty() && !self.runners[runner].stalled {
            self.commit(runner, life);
        }
    }

    fn spawn(&mut self, runner: usize, order: ProcessNumber, knows_leftover: bool) {
        let life = self.runners[runner].life;
        if self.runners[runner].orphan.is_some() {
            assert!(knows_leftover, "a provider of an earlier life was forgotten: runner {runner}");
            self.runners[runner].orphan = None;
        }
        assert!(self.runners[runner].process.as_ref().is_none_or(|p| p.dead), "two providers of runner {runner} at once");
        let state = &mut self.runners[runner];
        state.processes += 1;
        let number = state.processes;
        let settings = SessionSettings {
            cwd: "/work".into(),
            approval_mode: ApprovalMode::Open,
            mode: None,
            approval_timeout: Duration::from_secs(600),
            capture_full: false,
        };
        let resume = self.seed.is_multiple_of(2);
        let demo = DemoAgent::new(Abilities { load: true, resume });
        state.process = Some(Process { number, order, session: AcpSession::new(settings), demo, dead: false });
        let event =
            Event::Provider(ProviderEvent::Spawned { process: ProcessRef { pid: number as u32 + 100, start: number }, terminal: None });
        self.send(format!("provider{runner}.{life}"), 5, Action::Agent { runner, life, lane: lane::PROVIDER, event });
    }

    fn session_outputs(&mut self, runner: usize, process: u64, outputs: Vec<Output>) {
        let life = self.runners[runner].life;
        for output in outputs {
            match output {
                Output::Write(bytes) => self.send(format!("in{runner}.{process}"), 2, Action::Demo { runner, process, bytes }),
                Output::CloseInput => {}
                Output::Signal(signal) => {
                    let event = Event::Provider(ProviderEvent::Signal(signal));
                    self.send(format!("provider{runner}.{life}"), 2, Action::Agent { runner, life, lane: lane::PROVIDER, event });
                }
                other => panic!("an ACP session has no use for {other:?}"),
            }
        }
    }

    fn demo_outputs(&mut self, runner: usize, process: u64, outputs: Vec<DemoOutput>) {
        for output in outputs {
            match output {
                DemoOutput::Line(line) => {
                    let input = Input::Bytes((line + "\n").into_bytes());
                    self.send(format!("out{runner}.{process}"), 2, Action::Session { runner, process, input });
                }
                DemoOutput::Crash => {
                    self.after_ms(1, Action::ProviderDies { runner, process, code: 1 });
                    return;
                }
                DemoOutput::Flood { .. } | DemoOutput::LeaveChild | DemoOutput::GoDeaf => {}
            }
        }
    }

    fn connect(&mut self, runner: usize, token: Secret) {
        let life = self.runners[runner].life;
        if self.hub.is_none() || self.partition.contains(&runner) {
            let event = Event::Bus(BusEvent::Lost(Cause::Offline("nobody listens".into())));
            let delay = 1 + self.rng.below(20);
            return self.after_ms(delay, Action::Agent { runner, life, lane: lane::BUS, event });
        }
        if let Some(old) = self.runners[runner].conn.take() {
            self.cut(old, false, true);
        }
        self.next_ticket += 1;
        let peer = self.next_ticket;
        self.conns.insert(peer, Conn { runner, life, accepted: false, dead: false, silent_since: None });
        self.runners[runner].conn = Some(peer);
        let request = Request { method: "GET".into(), path: "/bus".into(), token: token.expose().into(), ..Default::default() };
        let (hub_life, lane) = (self.hub_life, HubLane::Gate as usize);
        let event = HubEvent::Upgrade { ticket: Ticket(peer), request };
        self.send(format!("up{peer}"), self.faults.delay_ms_max, Action::Hub { life: hub_life, lane, event });
    }

    fn frame_up(&mut self, runner: usize, frame: agent_relay::wire::bus::ClientFrame) {
        use agent_relay::wire::bus::ClientFrame;
        match &frame {
            ClientFrame::Status { agent_status, .. } => {
                assert!(!self.runners[runner].silent, "a status after the last offline: runner {runner}");
                let stopping = frame.to_text().contains("shutting-down") || frame.to_text().contains("killing");
                self.runners[runner].silent = agent_status == "offline" && stopping;
            }
            ClientFrame::Heartbeat { .. } => assert!(!self.runners[runner].silent, "a heartbeat after the last offline"),
            _ => {}
        }
        let Some(peer) = self.runners[runner].conn else { return };
        if self.conns.get(&peer).is_none_or(|conn| conn.dead) {
            return;
        }
        let life = self.hub_life;
        let repeat =
            self.rng.percent(self.faults.repeat_frame) && matches!(frame, ClientFrame::Ack { .. } | ClientFrame::CommandUpdate { .. });
        for _ in 0..1 + usize::from(repeat) {
            let event = HubEvent::PeerText { peer: PeerId(peer), text: frame.to_text() };
            self.send(format!("up{peer}"), self.faults.delay_ms_max, Action::Hub { life, lane: HubLane::Gate as usize, event });
        }
    }

    /// Half-open connections are noticed after 45 s of silence by both sides, as the real edges do.
    pub fn notice_silence(&mut self) {
        let now = self.now.tick;
        let late: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.silent_since.is_some_and(|since| now - since > Duration::from_secs(45)))
            .map(|(n, _)| *n)
            .collect();
        for conn in late {
            self.cut(conn, true, true);
        }
    }

    /// Nothing is left to do anywhere.
    pub fn is_quiet(&mut self) -> bool {
        self.unrest().is_empty()
    }
}

pub fn agent_name(runner: usize) -> String {
    format!("agent{runner}")
}

pub fn hash(token: &str) -> String {
    format!("#{token}")
}

fn code_of(body: &Value) -> String {
    body["code"].as_str().unwrap_or_default().to_string()
}

pub fn config(runner: usize, life: u64, wall: i64) -> AgentConfig {
    let id = agent_name(runner);
    let tags = vec!["acp".to_string()];
    AgentConfig {
        store_note: None,
        agent_id: id.clone(),
        runner_id: format!("runner{runner}.{life}"),
        instance_id: format!("instance{runner}.{life}"),
        provider: "acp".into(),
        identity: Identity { agent_id: id.clone(), label: None, tags: tags.clone(), capabilities: Vec::new(), broad_targets: true },
        registration: Registration {
            role: "provider".into(),
            component_id: format!("runner{runner}.{life}"),
            agent_id: Some(id),
            instance_id: format!("instance{runner}.{life}"),
            tags,
            meta: json!({"processStart": {"boot": "sim", "ticks": life}}).as_object().cloned().unwrap_or_default(),
            ..Default::default()
        },
        approval_mode: "open".into(),
        prompt: None,
        relay_url: "http://hub".into(),
        url_by_hand: false,
        token_by_hand: false,
        token: Some(Secret::new(OPERATOR)),
        token_profile: None,
        token_expires_at: None,
        shutdown_timeout: Duration::from_secs(5),
        restart: RestartPolicy { exits_max: 1000, ..Default::default() },
        reply_mode: ReplyMode::Auto,
        apart: runner % 2 == 1,
        takes_urgent: false,
        judges: false,
        personal: false,
        terminal_dir: None,
        started_at: wall,
    }
}
