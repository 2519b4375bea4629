//! The simulated world: one event at a time, in the order of simulated time.

mod disk;
mod greedy;
mod hub;
mod net;
mod person;
mod process;
mod pump;
mod runner;
mod schedule;
mod senders;
mod tool;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use agent_relay::core::agent::event::Lane;
use agent_relay::core::commit::Commit;
use agent_relay::core::hub::event::{
    Event as HubEvent, HubOp, Lane as HubLane, StoreEvent as HubStoreEvent,
};
use agent_relay::core::hub::{Hub, scopes_of};
use agent_relay::core::rng::Rng;
use agent_relay::core::session::{Input, Session};
use agent_relay::core::time::{Now, Tick, Wall};
use agent_relay::core::{Lane as _, Machine};
use agent_relay::edge::store::Store;
use agent_relay::hub::store::HubStore;
use agent_relay::wire::api::TokenRecord;

use crate::faults::Faults;
use crate::restores::Restores;

use net::Conn;
use process::Record;
pub use runner::{Runner, config};
use schedule::{Action, From, Scheduled};
pub use senders::Sending;

pub const OPERATOR: &str = "operator-token";
/// May speak as anybody.
const ROOT: &str = "root-token";
/// Length of the phase with faults.
const TROUBLE: Duration = Duration::from_secs(120);
/// Everything must be quiet this long after healing.
const HEAL: Duration = Duration::from_secs(420);

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
    /// All lanes of the hub but that of its gate.
    hub_lanes: Vec<VecDeque<HubEvent>>,
    pub gate: greedy::Gate,
    hub_pending: VecDeque<Commit<HubOp>>,
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

impl Runner {
    /// One that was never started.
    fn new() -> Runner {
        Runner {
            agent: None,
            life: 0,
            store: Store::in_memory().expect("memory"),
            record: Record::default(),
            lanes: Lane::ALL.iter().map(|_| VecDeque::new()).collect(),
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
        }
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
            let record = TokenRecord {
                jti: profile.into(),
                profile_id: profile.into(),
                scopes,
                ..Default::default()
            };
            HubOp::TokenPut { hash: hash(token), record }
        };
        let mut first = vec![token("operator", OPERATOR), token("root", ROOT)];
        if let HubOp::TokenPut { hash, mut record } = token("provider-agent", greedy::GREEDY) {
            record.agent_id = Some("greedy".into());
            first.push(HubOp::TokenPut { hash, record });
        }
        hub_store.commit_ops(&first).expect("memory");
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
            hub_lanes: HubLane::ALL.iter().map(|_| VecDeque::new()).collect(),
            gate: greedy::Gate::new(rng.fork("greedy"), seed.is_multiple_of(10)),
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
            world.runners.push(Runner::new());
            let after = world.rng.below(3000);
            world.after_ms(after, Action::StartRunner { runner });
        }
        world.plan_sendings(&mut draw, &mut rng.fork("senders"));
        world.start_hub();
        world.after_ms(4000, Action::SendNext);
        world.after_ms(3000, Action::Trouble);
        world.after_ms(5000, Action::Person);
        world.after_ms(4500, Action::Greedy);
        world
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
                return Err(format!(
                    "not quiet {} s after healing: {}",
                    HEAL.as_secs(),
                    self.unrest()
                ));
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
        let agents = self
            .runners
            .iter()
            .enumerate()
            .filter_map(|(at, r)| Some((r.agent.as_ref()?.next_deadline()?, at)));
        let sessions = self.runners.iter().enumerate().filter_map(|(at, r)| {
            let process = r.process.as_ref().filter(|p| !p.dead)?;
            let next = [process.session.next_deadline(), process.demo.next_deadline()]
                .into_iter()
                .flatten()
                .min()?;
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
            let effects =
                self.runners[who].agent.as_mut().map(|agent| agent.wake(now)).unwrap_or_default();
            self.agent_effects(who, effects);
        }
    }

    /// Events that wait in lanes go in when their machine has credit for them.
    fn serve_lanes(&mut self) -> bool {
        for runner in 0..self.runners.len() {
            for lane in Lane::ALL.iter().copied() {
                let state = &mut self.runners[runner];
                let Some(agent) = state.agent.as_mut() else { continue };
                if agent.may_take(lane)
                    && let Some(event) = state.lanes[lane as usize].pop_front()
                {
                    if self.tell {
                        println!("{:>12} r{runner} <- {}", self.now.tick.0, event.summary());
                    }
                    let effects = self.runners[runner]
                        .agent
                        .as_mut()
                        .expect("looked at")
                        .handle(self.now, event);
                    self.agent_effects(runner, effects);
                    return true;
                }
            }
        }
        for lane in HubLane::ALL.iter().copied() {
            let Some(hub) = self.hub.as_mut() else { break };
            let mut take = || match lane {
                HubLane::Gate => self.gate.pop(self.now.tick),
                lane => self.hub_lanes[lane as usize].pop_front(),
            };
            if hub.may_take(lane)
                && let Some(event) = take()
            {
                let effects = hub.handle(self.now, event);
                self.hub_effects(effects);
                let free_at =
                    self.gate.free_at().filter(|_| lane as usize == HubLane::Gate as usize);
                if let Some(at) = free_at {
                    self.at(at, Action::GateFree);
                }
                return true;
            }
        }
        false
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Agent { runner, life, lane, event } => {
                if self.runners[runner].life == life && self.runners[runner].agent.is_some() {
                    self.runners[runner].lanes[lane as usize].push_back(event);
                }
            }
            Action::Hub { life, lane, event } => {
                if self.hub_life == life && self.hub.is_some() {
                    match lane {
                        HubLane::Gate => self.gate.push(event),
                        lane => self.hub_lanes[lane as usize].push_back(event),
                    }
                }
            }
            Action::Commit { runner, life } => self.commit(runner, life),
            Action::HubCommit { life } => self.hub_commit(life),
            Action::HubRead { life, number, answer } => {
                let event = HubEvent::Store(HubStoreEvent::Read { number, answer });
                self.act(Action::Hub { life, lane: HubLane::Store, event });
            }
            Action::Session { runner, process, input } => {
                let now = self.now;
                if let Some(p) =
                    self.runners[runner].process.as_mut().filter(|p| p.number == process && !p.dead)
                {
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
            Action::ProviderDies { runner, process, code } => {
                self.provider_dies(runner, process, code)
            }
            Action::StartRunner { runner } => self.start_runner(runner),
            Action::StartHub => self.start_hub(),
            Action::Request { from, request, answer } => {
                self.request_arrives(from, request, answer)
            }
            Action::Answer { from, result } => self.answer_arrives(from, result),
            Action::SendNext => self.send_next(),
            Action::Trouble => self.trouble(),
            Action::Person => self.person_acts(),
            Action::Greedy => self.greedy_burst(),
            Action::GateFree => {}
            Action::EndPartition => self.partition.clear(),
            Action::HealDisk { runner } => match runner {
                Some(runner) => self.runners[runner].stalled = false,
                None => self.hub_stalled = false,
            },
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
