//! The hub's machine: an embedded relay for one machine.
//!
//! It holds live indexes only (who is connected, what is unacknowledged, claims, open tasks,
//! pending commands, tokens); bodies stay in the store, reads go to a read-only connection . What a
//! request changes is one commit, and answers and frames go out behind it ([`CommitQueue`]).

mod accounts;
mod agents;
mod api;
mod bounds;
mod claims;
mod commands;
pub mod event;
pub mod generations;
mod loops;
mod mcp;
mod messages;
mod metrics;
mod peers;
mod rates;
mod rights;
pub mod routes;
mod stalled;
mod sweep;
mod tasks;
#[cfg(test)]
mod tests;
mod timer;
mod tokens;
pub mod written;

pub use rights::scopes_of;

use crate::core::http::GateCommand;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use self::event::{
    After, Effect, Event, HubOp, HubSnapshot, Lane, StoreEvent, StoredTask, StoredUnresolved,
};
use self::messages::CommitReport;
use self::timer::Timer;
use super::commit::{Closed, CommitQueue, Durable};
use super::limits::*;
use super::rng::Rng;
use super::time::{Now, Tick};
use super::timers::{Timed, Timers};
use super::turns::{LineId, Turns};
use super::{Cause, Machine};
use crate::core::ids::{MessageId, PeerId, ReadNumber, TaskId, Ticket};
use crate::wire::api::{Command, TokenRecord};
use crate::wire::control::LogLevel;

/// An error answer: status, code, sentence.
type Refusal = (u16, &'static str, String);

/// A stop waits this long for the disk.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// What a hub must be given.
pub struct HubConfig {
    /// Identity of the hub's data, told in `registered`: message ids mean something only together
    /// with it.
    pub id: String,
    /// Hash of a token, as stored.
    pub hash: fn(&str) -> String,
    /// A fresh secret; never from the seeded generator.
    pub secret: Box<dyn FnMut() -> String + Send>,
}

/// The relay. What every machine may expect and has to keep stands at [`Machine`].
///
/// **In**, lane by lane ([`Lane`]):
/// - the store and its reader: first of all [`StoreEvent::Restored`], before which nothing else is
///   heard but `main`; then `Committed` with the newest number that is durable, or `Stalled` until
///   it is asked again; one answer for every read, in any order;
/// - the gate: requests and upgrades, each with a ticket that is answered once or becomes a peer;
///   texts of peers, and at last that a peer is gone, also if the hub has closed it;
/// - `main`: the wish to stop, and threads that ended although nobody told them to.
///
/// **Out** ([`Effect`]): commands to the store, the reader and the gate. What a request changes is
/// one commit; its answer, the frames for others and the events for subscribers wait behind it, and
/// so does what was decided after it without a commit of its own ([`CommitQueue`]). Reads are
/// answered from what is durable. The store may say with a commit that a message was known already
/// or answers nothing that its sender can see; what goes out then says so.
///
/// While the store takes nothing, whoever waits for it is told at once, requests that would change
/// something are refused, and reads go on.
///
/// The end is [`Effect::Finish`], once and last: when all commits are durable, or after a few
/// seconds without that. What then still waits was acknowledged to nobody.
pub struct Hub {
    config: HubConfig,
    now: Now,
    started: Option<Tick>,
    /// The same by the wall clock, ms.
    started_at: i64,
    rng: Rng,
    out: Vec<Effect>,
    commits: CommitQueue<HubOp, After>,
    timers: Timers<Timer, { Timer::COUNT }>,
    stopping: bool,
    finished: bool,
    agents: BTreeMap<String, agents::Agent>,
    /// Whose component ids are.
    components: HashMap<String, String>,
    /// Names that have a mailbox although no agent of that name may ever have registered.
    senders: agents::Senders,
    peers: HashMap<PeerId, peers::Peer>,
    /// Unacknowledged messages by recipient; survives the agent's record.
    queues: HashMap<String, agents::Queue>,
    loops: loops::Loops,
    last_message: MessageId,
    last_task: TaskId,
    generations: generations::Generations,
    /// Why the data were taken for a copy at the start.
    notice: Option<String>,
    offers: HashMap<MessageId, claims::Offer>,
    tasks: HashMap<TaskId, tasks::OpenTask>,
    unresolved: Vec<messages::Unresolved>,
    commands: BTreeMap<String, Command>,
    tokens: HashMap<String, Arc<TokenRecord>>,
    rates: rates::Rates,
    accounts: accounts::Accounts,
    /// Requests that wait for an answer, since when.
    tickets: HashMap<Ticket, Tick>,
    /// Calls of tools that wait for an answer of the API.
    mcp: mcp::OpenCalls,
    /// Requests that wait for the vacuum.
    vacuums: Vec<Ticket>,
    meter: metrics::Meter,
    /// When agents count as offline, soonest first.
    presence: BTreeSet<(Tick, String)>,
    /// When claims end, soonest first.
    leases: BTreeSet<(Tick, MessageId)>,
    /// Peers that asked for events.
    subscribers: BTreeSet<PeerId>,
    /// Agents whose delivery waits for room among the reads.
    unserved: BTreeSet<String>,
    /// The description, made once.
    spec: Option<String>,
    reads: HashMap<ReadNumber, event::ReadFor>,
    /// Reads that wait for their turn.
    waiting_reads: Turns<(event::Query, event::ReadFor)>,
    /// Whose the request at hand is, and whether that is a person's.
    asker: (LineId, bool),
    read_number: ReadNumber,
    events: VecDeque<peers::KeptEvent>,
    seq: u64,
}

impl Hub {
    /// A hub that waits for [`StoreEvent::Restored`].
    pub fn new(config: HubConfig, seed: u64) -> Hub {
        Hub {
            config,
            now: Now::default(),
            started: None,
            started_at: 0,
            rng: Rng::new(seed),
            out: Vec::new(),
            commits: CommitQueue::default(),
            timers: Timers::default(),
            stopping: false,
            finished: false,
            agents: BTreeMap::new(),
            components: HashMap::new(),
            senders: agents::Senders::default(),
            peers: HashMap::new(),
            queues: HashMap::new(),
            loops: loops::Loops::default(),
            last_message: MessageId(0),
            last_task: TaskId(0),
            generations: generations::Generations::default(),
            notice: None,
            offers: HashMap::new(),
            tasks: HashMap::new(),
            unresolved: Vec::new(),
            commands: BTreeMap::new(),
            tokens: HashMap::new(),
            rates: rates::Rates::default(),
            accounts: accounts::Accounts::default(),
            tickets: HashMap::new(),
            mcp: mcp::OpenCalls::default(),
            vacuums: Vec::new(),
            meter: metrics::Meter::default(),
            presence: BTreeSet::new(),
            leases: BTreeSet::new(),
            subscribers: BTreeSet::new(),
            unserved: BTreeSet::new(),
            spec: None,
            reads: HashMap::new(),
            waiting_reads: Turns::default(),
            asker: (LineId::STRANGERS, false),
            read_number: ReadNumber::default(),
            events: VecDeque::new(),
            seq: 0,
        }
    }

    /// Commits that are under way; never more than `COMMITS_IN_FLIGHT_MAX`.
    pub fn commits_in_flight(&self) -> usize {
        self.commits.in_flight()
    }

    fn log(&mut self, level: LogLevel, text: impl Into<String>) {
        self.out.push(Effect::Log { level, text: text.into() });
    }

    fn settle(&mut self) -> Vec<Effect> {
        self.go_on_with_tools();
        let Closed { commit, visible } = self.commits.close(self.now.tick);
        self.out.extend(commit.map(Effect::from));
        if !visible.is_empty() {
            self.release(visible, CommitReport::default());
        }
        self.finish_if_stopped();
        std::mem::take(&mut self.out)
    }

    fn on_store(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Restored(snapshot) => self.on_restored(*snapshot),
            StoreEvent::Committed { upto, existing, unattached, unseen, retired } => {
                if self.commits.on_accepted() {
                    self.log(LogLevel::Warn, "store accepts changes again");
                }
                while let Some(Durable { took, after }) =
                    self.commits.next_durable(upto, self.now.tick)
                {
                    self.meter.commit_time.observe(took);
                    self.release(
                        after,
                        CommitReport {
                            existing: &existing,
                            unattached: &unattached,
                            unseen: &unseen,
                        },
                    );
                }
                self.on_retired(retired);
            }
            StoreEvent::Stalled(Cause::Store(error)) if error.kind.retry().is_none() => {
                self.on_store_broken(error)
            }
            StoreEvent::Stalled(cause) => self.on_store_stalled(cause),
            StoreEvent::Broken(error) => self.on_store_broken(error),
            StoreEvent::Vacuumed(outcome) => self.on_vacuumed(outcome),
            StoreEvent::Read { number, answer } => self.on_read(number, answer),
        }
    }

    fn on_restored(&mut self, mut snapshot: HubSnapshot) {
        self.started = Some(self.now.tick);
        self.started_at = self.now.wall.0;
        self.last_message = snapshot.last_message;
        self.last_task = snapshot.last_task;
        for (recipient, ids) in std::mem::take(&mut snapshot.unacknowledged) {
            self.queues.entry(recipient).or_default().ids.extend(ids);
        }
        for agent in std::mem::take(&mut snapshot.agents) {
            self.restore_agent(agent);
        }
        for sender in std::mem::take(&mut snapshot.senders) {
            self.note_sender(&sender);
        }
        for offer in std::mem::take(&mut snapshot.offers) {
            self.restore_offer(offer);
        }
        for task in std::mem::take(&mut snapshot.tasks) {
            let StoredTask { id, message, status, sender, restored } = task;
            if let Some(offer) = self.offers.get_mut(&message) {
                offer.sender = sender.clone();
            }
            self.tasks.insert(id, tasks::OpenTask { message, status, sender, notes: 0, restored });
        }
        self.unresolved = std::mem::take(&mut snapshot.unresolved)
            .into_iter()
            .map(|stored| {
                let StoredUnresolved { id, target, claimable, sender, until } = stored;
                messages::Unresolved { id, target, claimable, sender, until, matched: Vec::new() }
            })
            .collect();
        self.recount();
        self.commands = std::mem::take(&mut snapshot.commands)
            .into_iter()
            .map(|command| (command.id.clone(), command))
            .collect();
        for (hash, record) in std::mem::take(&mut snapshot.tokens) {
            self.know_token(hash, Arc::new(record));
        }
        self.adopt(&snapshot);
        self.hold_blocked();
        // Epochs of events must not repeat over a restart, or an old acknowledgement would fit a
        // new frame.
        self.seq = self.now.wall.0.max(0) as u64 * 1000;
        self.timers.set(Timer::Sweep, self.now.tick + PING_INTERVAL);
        self.timers.set(Timer::Retention, self.now.tick + RETENTION_FIRST);
    }

    fn finish_if_stopped(&mut self) {
        let late = self.timers.at(Timer::StopLimit).is_some_and(|by| by <= self.now.tick);
        if self.stopping && (self.commits.is_idle() || late) && !self.finished {
            self.finished = true;
            let peers: Vec<PeerId> = self.peers.keys().copied().collect();
            for peer in peers {
                self.out.push(Effect::Gate(GateCommand::PeerClose {
                    peer,
                    code: crate::wire::bus::CLOSE_GOING,
                    reason: "the relay stops".into(),
                }));
            }
            self.out.push(Effect::Finish);
        }
    }
}

impl Machine for Hub {
    type Event = Event;
    type Effect = Effect;
    type Lane = Lane;

    fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        self.now = now;
        match event {
            Event::Store(event) => self.on_store(event),
            Event::Request { ticket, request } => self.on_request(ticket, request),
            Event::Upgrade { ticket, request } => self.on_upgrade(ticket, &request),
            Event::PeerText { peer, text } => self.on_peer_text(peer, &text),
            Event::PeerClosed { peer } => self.on_peer_closed(peer),
            Event::StopRequested => {
                self.stopping = true;
                self.commits.hurry();
                // A disk that stays full must not keep it from ending; nothing that waits was
                // acknowledged.
                self.timers.set_once(Timer::StopLimit, now.tick + STOP_LIMIT);
            }
            Event::ThreadEnded { name, panic } => {
                let said = panic.map(|text| format!(" ({text})")).unwrap_or_default();
                self.log(
                    LogLevel::Error,
                    format!(
                        "thread {name} ended unexpectedly{said}; this is a bug, please report it"
                    ),
                );
                self.out.push(Effect::Failed(format!("thread {name} ended unexpectedly{said}")));
                self.stopping = true;
                self.timers.set_once(Timer::StopLimit, now.tick + STOP_LIMIT);
            }
        }
        self.settle()
    }

    fn wake(&mut self, now: Now) -> Vec<Effect> {
        self.now = now;
        self.fire_due(now.tick);
        self.settle()
    }

    fn next_deadline(&self) -> Option<Tick> {
        if self.finished { None } else { self.first_deadline() }
    }

    fn may_take(&self, lane: Lane) -> bool {
        match lane {
            Lane::Store | Lane::Main => true,
            Lane::Gate => {
                self.started.is_some()
                    && self.reads_under_way() < READS_IN_FLIGHT_MAX
                    && self.commits.has_credit(COMMITS_RESERVED)
            }
        }
    }
}
