//! The orchestrator's machine: which sessions there are on a host, what each is started with, who
//! fits, what follows the end of one, and how they are looked at and touched.
//!
//! Dispatch lives here. `operations` is what others ask for, `sessions` the life of one session,
//! `link` the connection to the relay; the other files are pure parts, each with its table. A
//! session outlives its orchestrator: what must be known of it stands in a record before it is
//! started, and a record goes only when the session is proven to be over.

pub mod admission;
pub mod budget;
pub mod config;
pub mod confine;
pub mod diagnosis;
pub mod effect;
mod ending;
pub mod event;
pub mod guests;
pub mod host;
pub mod input;
pub mod launch;
mod link;
pub mod log_text;
pub mod look;
mod looking;
pub mod names;
mod operations;
pub mod options;
pub mod picture;
pub mod record;
mod sessions;
mod starting;
pub mod systemd;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use self::admission::StartRate;
use self::config::OrchestratorConfig;
use self::effect::{Effect, RecordsCommand};
use self::event::{Called, Event, Lane, RecordsEvent};
use self::record::{Record, RecordOp};
use self::sessions::Session;
use super::Machine;
use super::commit::{Closed, CommitQueue};
use super::limits::COMMITS_RESERVED;
use super::rng::Rng;
use super::time::{Now, Tick};
use super::timers::{Timed, Timers, timers};
use crate::wire::control::LogLevel;

/// Sessions that one orchestrator has at most, whatever its settings say: each has an order under
/// way, and orders have places.
pub const SESSIONS_MAX: usize = 1000;
/// Ends of sessions that are remembered.
const ENDS_KEPT_MAX: usize = 64;
/// Records that cannot be written do not keep an orchestrator from ending for longer.
const LAST_WRITE: Duration = Duration::from_secs(3);

timers! {
    /// Deadlines of an orchestrator.
    pub(crate) enum Timer {
        /// The records are written anew.
        Records,
        /// The connection's state has lasted long enough.
        Connection,
        Heartbeat,
        /// The own token is asked for again.
        OwnToken,
        /// The next step of a session.
        Sessions,
        /// The terminal of a guest ends.
        Guests,
        /// The end waits for the records no longer.
        Finish,
    }
}

/// One orchestrator. What every machine may expect and has to keep stands at [`Machine`].
///
/// **In**, lane by lane ([`event::Lane`]): the records, first of all `Restored`; requests over
/// HTTP, each with a ticket that is answered once; the bus; calls to the relay, one answer for
/// each; work for sessions, one answer for each order, and one order at a time for each session;
/// ends of sessions; `main`.
///
/// **Out** ([`Effect`]): what tells of a change comes behind the commit of that change, and so does
/// the start of a session: a start that is not in the records could be lost.
pub struct Orchestrator {
    config: OrchestratorConfig,
    /// The time of the event at hand.
    now: Now,
    rng: Rng,
    out: Vec<Effect>,
    commits: CommitQueue<RecordOp, Effect>,
    timers: Timers<Timer, { Timer::COUNT }>,
    restored: bool,
    stopping: bool,
    finished: bool,
    sessions: BTreeMap<String, Session>,
    /// The last ends: session and sentence.
    ended: VecDeque<(String, String)>,
    rate: StartRate,
    link: link::Link,
    commands: operations::Commands,
    looking: looking::Looking,
}

impl Orchestrator {
    /// An orchestrator that waits for [`RecordsEvent::Restored`].
    pub fn new(config: OrchestratorConfig, seed: u64) -> Orchestrator {
        Orchestrator {
            rate: StartRate::new(config.starts_burst, config.starts_time),
            config,
            now: Now::default(),
            rng: Rng::new(seed),
            out: Vec::new(),
            commits: CommitQueue::default(),
            timers: Timers::default(),
            restored: false,
            stopping: false,
            finished: false,
            sessions: BTreeMap::new(),
            ended: VecDeque::new(),
            link: link::Link::default(),
            commands: operations::Commands::default(),
            looking: looking::Looking::default(),
        }
    }

    /// What is remembered of each session.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.sessions.values().map(|session| &session.record)
    }

    /// Commits that are under way.
    pub fn commits_in_flight(&self) -> usize {
        self.commits.in_flight()
    }

    fn log(&mut self, level: LogLevel, text: impl Into<String>) {
        self.out.push(Effect::Log { level, text: text.into() });
    }

    /// Remembers how a session ended.
    fn note_end(&mut self, session: &str, text: String) {
        self.log(LogLevel::Info, format!("session={session} {text}"));
        if self.ended.len() >= ENDS_KEPT_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back((session.to_string(), text));
    }

    fn settle(&mut self) -> Vec<Effect> {
        let Closed { commit, visible } = self.commits.close(self.now.tick);
        self.out.extend(commit.map(|commit| Effect::Records(RecordsCommand::Commit(commit))));
        self.out.extend(visible);
        if self.stopping && self.commits.is_durable() && !self.finished {
            self.finish(0, "stopped; its sessions stay".into());
        }
        std::mem::take(&mut self.out)
    }

    fn finish(&mut self, code: u8, message: String) {
        self.finished = true;
        self.out.push(Effect::Finish { code, message });
    }

    fn on_records(&mut self, event: RecordsEvent) {
        match event {
            RecordsEvent::Restored { records, note } => self.on_restored(records, note),
            RecordsEvent::Written { upto } => {
                if self.commits.on_accepted() {
                    self.log(LogLevel::Warn, "the records can be written again");
                }
                while let Some(durable) = self.commits.next_durable(upto, self.now.tick) {
                    self.out.extend(durable.after);
                }
            }
            RecordsEvent::Stalled(cause) => {
                let text = format!(
                    "the records cannot be written: {cause}; nothing is started until then"
                );
                if self.commits.on_stalled(self.now.tick, cause) {
                    self.log(LogLevel::Error, text);
                }
            }
        }
    }

    fn on_restored(&mut self, records: Vec<Record>, note: Option<String>) {
        self.restored = true;
        if let Some(note) = note {
            self.log(LogLevel::Error, note);
        }
        for record in records {
            self.inspect(record);
        }
        self.begin_link();
        self.tell_status();
    }

    /// A line for the service manager.
    fn tell_status(&mut self) {
        let running = self.sessions.values().filter(|session| session.runs()).count();
        let text = format!("{running} of {} sessions run", self.sessions.len());
        self.out.push(Effect::Status(text));
    }

    fn begin_stop(&mut self) {
        if !self.restored {
            return self.finish(0, "stopped before it began".into());
        }
        self.stopping = true;
        self.timers.set_once(Timer::Finish, self.now.tick + LAST_WRITE);
        self.end_link();
    }
}

impl Timed for Orchestrator {
    type Timer = Timer;

    fn deadline(&self, timer: Timer) -> Option<Tick> {
        match timer {
            Timer::Records => self.commits.retry_at(),
            Timer::Connection => self.link.deadline(),
            Timer::Sessions => self.sessions.values().filter_map(|session| session.due()).min(),
            Timer::Guests => self.looking.deadline(),
            Timer::Heartbeat | Timer::OwnToken | Timer::Finish => self.timers.at(timer),
        }
    }

    fn fire(&mut self, timer: Timer) {
        self.timers.clear(timer);
        match timer {
            Timer::Records => {
                self.commits.forget_retry();
                self.out.push(Effect::Records(RecordsCommand::Retry));
            }
            Timer::Connection => self.on_connection_due(),
            Timer::Heartbeat => self.on_heartbeat_due(),
            Timer::OwnToken => self.ask_own_token(false),
            Timer::Sessions => self.on_sessions_due(),
            Timer::Guests => self.on_guests_due(),
            Timer::Finish => {
                self.finish(71, "its records could not be written any more".into());
            }
        }
    }
}

impl Machine for Orchestrator {
    type Event = Event;
    type Effect = Effect;
    type Lane = Lane;

    fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        if self.finished {
            return Vec::new();
        }
        self.now = now;
        match event {
            Event::Records(event) => self.on_records(event),
            Event::Asked { ticket, operation, params } => {
                self.ask(operations::Asker::Ticket(ticket), &operation, params)
            }
            Event::Bus(event) => self.on_bus(event),
            Event::Called(Called::OwnToken(result)) => self.on_own_token(result),
            Event::Called(Called::AgentToken { session, result }) => {
                self.on_agent_token(&session, result)
            }
            Event::Called(Called::TokenHanded { session, result }) => {
                self.on_token_handed(&session, result)
            }
            Event::Worked { session, done } => self.on_worked(&session, done),
            Event::Gone { session, launch, exit } => self.on_gone(&session, &launch, exit),
            Event::Looked { number, looked } => self.on_looked(number, looked),
            Event::StopRequested => self.begin_stop(),
            Event::ThreadEnded { name, panic } => {
                let said = panic.map(|text| format!(" ({text})")).unwrap_or_default();
                self.finish(
                    70,
                    format!(
                        "thread {name} ended unexpectedly{said}; this is a bug, please report it"
                    ),
                );
            }
        }
        self.settle()
    }

    fn wake(&mut self, now: Now) -> Vec<Effect> {
        if self.finished {
            return Vec::new();
        }
        self.now = now;
        self.fire_due(now.tick);
        self.settle()
    }

    fn next_deadline(&self) -> Option<Tick> {
        if self.finished { None } else { self.first_deadline() }
    }

    fn may_take(&self, lane: Lane) -> bool {
        match lane {
            Lane::Records | Lane::Main => true,
            Lane::Gate | Lane::Bus => self.restored && self.commits.has_credit(COMMITS_RESERVED),
            Lane::Calls | Lane::Work | Lane::Watch | Lane::Look => {
                self.restored && self.commits.has_credit(0)
            }
        }
    }
}
