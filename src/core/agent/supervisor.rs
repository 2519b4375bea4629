//! Supervision of the provider: the wanted state, the actual state, and when to start it again.

use super::effect::{Effect, ProviderCommand};
use std::collections::VecDeque;

use serde_json::json;

use super::Agent;
use super::config::RestartPolicy;
use super::event::ProviderEvent;
use super::store::{ProviderRecord, StoreOp};
use crate::core::agent::tracker::{Status, TURN};
use crate::core::ids::{ProcessNumber, ProcessRef, VerbNumber};
use crate::core::session::{OpenMode, Opened, Resume, StartFault, Verb};
use crate::core::time::{Now, Tick};
use crate::wire::api::{DetailedStatus, StatusSource};
use crate::wire::control::LogLevel;

/// Where the store keeps the socket of the terminal that was started last: what listens there at
/// the next start was left behind.
const TERMINAL_NOTE: &str = "terminal";

/// The actual state of the provider.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// Not running, nothing under way.
    Down,
    /// The process is being started; what an earlier runner left is ended first.
    Spawning,
    /// It runs; the conversation is being opened.
    Opening,
    /// It takes messages.
    Ready { since: Tick },
    /// It was told to end.
    Ending,
    /// It ended; the next start is due then.
    Waiting { until: Tick },
    /// Given up; only a command brings it back.
    Parked,
}

impl State {
    /// The word in `/status`.
    fn name(&self) -> &'static str {
        match self {
            State::Down => "down",
            State::Spawning => "spawning",
            State::Opening => "opening",
            State::Ready { .. } => "ready",
            State::Ending => "ending",
            State::Waiting { .. } => "waiting",
            State::Parked => "parked",
        }
    }
}

/// The supervisor's memory.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub policy: RestartPolicy,
    pub state: State,
    /// The wanted state, apart from the actual one.
    wanted: bool,
    pub restarting: bool,
    exits: VecDeque<Tick>,
    pub attempt: u32,
    was_ready: bool,
    pub record: ProviderRecord,
    leftover: Option<ProviderRecord>,
    pub last_exit: Option<(String, Tick)>,
    open_failure: Option<(String, StartFault)>,
    /// Why the conversation of the record is not gone on with at the next start.
    pub refused: Option<String>,
    /// Which folder its sockets go to, of those that there are.
    pub folder: usize,
    /// Its server is told to listen at a port.
    pub at_port: bool,
    pub why: String,
    pub agent: String,
    pub model: Option<String>,
    pub has_evidence: bool,
    /// Socket of the terminal that hosts the provider.
    pub terminal: Option<String>,
    /// The same of an earlier runner.
    left_terminal: Option<String>,
    verbs: VerbNumber,
    processes: ProcessNumber,
}

impl Supervisor {
    pub fn new(policy: RestartPolicy) -> Supervisor {
        Supervisor {
            policy,
            state: State::Down,
            wanted: true,
            restarting: false,
            exits: VecDeque::new(),
            attempt: 0,
            was_ready: false,
            record: ProviderRecord::default(),
            leftover: None,
            last_exit: None,
            open_failure: None,
            refused: None,
            folder: 0,
            at_port: false,
            why: "not started yet".into(),
            agent: String::new(),
            model: None,
            has_evidence: true,
            terminal: None,
            left_terminal: None,
            verbs: VerbNumber::default(),
            processes: ProcessNumber::default(),
        }
    }

    pub fn restore(&mut self, record: Option<ProviderRecord>, notes: &[(String, String)]) {
        let terminal = notes.iter().find(|(key, _)| key == TERMINAL_NOTE);
        self.left_terminal = terminal.map(|(_, socket)| socket.clone());
        let Some(record) = record else { return };
        let is_left =
            !record.provider_session.is_empty() && !crate::planted::is("forgotten-leftover");
        self.leftover = is_left.then(|| record.clone());
        self.record = ProviderRecord { session: record.session, ..Default::default() };
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// A process is there, ready or not.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Opening | State::Ready { .. } | State::Ending)
    }

    pub fn is_ending(&self) -> bool {
        self.state == State::Ending
    }

    pub fn is_gone(&self) -> bool {
        matches!(self.state, State::Down | State::Waiting { .. } | State::Parked)
    }

    pub fn was_ready(&self) -> bool {
        self.was_ready
    }

    pub fn is_restarting(&self) -> bool {
        self.restarting
    }

    /// When a provider that waits is started again.
    pub fn deadline(&self) -> Option<Tick> {
        match self.state {
            State::Waiting { until } => Some(until),
            _ => None,
        }
    }

    /// A verb for the process at hand, with its number.
    pub fn verb(&mut self, verb: Verb) -> (VerbNumber, Effect) {
        self.verbs = self.verbs.next();
        (
            self.verbs,
            Effect::Provider(ProviderCommand::Verb {
                process: self.processes,
                number: self.verbs,
                verb,
            }),
        )
    }

    pub fn exits(&self) -> usize {
        self.exits.len()
    }

    /// The provider has ended once more; what is long ago does not count.
    pub fn note_exit(&mut self, now: Tick) {
        self.exits.push_back(now);
        while self.exits.front().is_some_and(|exit| now - *exit > self.policy.window) {
            self.exits.pop_front();
        }
    }

    /// It has ended too often in a while.
    pub fn is_exhausted(&self) -> bool {
        self.exits.len() >= self.policy.exits_max
    }
}

impl Agent {
    /// Starts the provider if it is wanted and nothing stands in the way.
    pub(super) fn begin_supervision(&mut self) {
        if self.supervisor.state == State::Down
            && self.supervisor.wanted
            && self.stop.is_none()
            && self.may_spawn_without_token()
        {
            self.spawn();
        }
    }

    pub(super) fn spawn(&mut self) {
        let provider_session = self.rng.uuid();
        self.supervisor.state = State::Spawning;
        self.supervisor.record.provider_session = provider_session.clone();
        self.supervisor.record.process = ProcessRef::default();
        // Durable before the process exists: whatever carries this id is ours to end, even if we
        // die before we learn its pid.
        self.commits.write(StoreOp::ProviderPut(self.supervisor.record.clone()));
        self.supervisor.why = "the provider is being started".into();
        let leftover = self.supervisor.leftover.take();
        self.supervisor.processes = self.supervisor.processes.next();
        let process = self.supervisor.processes;
        self.status.touch();
        self.status.forget_facts();
        let (conversation, fresh) = (self.supervisor.record.session.clone(), self.rng.uuid());
        let token = self.tokens.for_provider();
        let is_known = self.config.url_by_hand || self.relay_link.known_instance;
        let relay = is_known.then(|| self.config.relay_url.clone());
        self.commits.defer(Effect::Provider(ProviderCommand::Spawn {
            process,
            provider_session,
            conversation,
            refused: self.supervisor.refused.clone(),
            fresh,
            folder: self.supervisor.folder,
            at_port: self.supervisor.at_port,
            token,
            relay,
            leftover,
            left_terminal: self.supervisor.left_terminal.take(),
        }));
    }

    pub(super) fn on_provider(&mut self, now: Now, event: ProviderEvent) {
        match event {
            ProviderEvent::Spawned { process, terminal } => self.on_spawned(process, terminal),
            ProviderEvent::SpawnFailed { reason, fault } => {
                self.log(
                    LogLevel::Error,
                    "lifecycle",
                    format!("the provider cannot be started: {reason}"),
                );
                self.on_provider_gone(now, reason, fault);
            }
            ProviderEvent::Session(event) => self.on_session_event(now, event),
            ProviderEvent::Probed(signs) => self.on_probed(now, signs),
            ProviderEvent::Exited { code, stderr } => {
                let tail: String =
                    stderr.lines().last().unwrap_or_default().chars().take(300).collect();
                let said =
                    if tail.is_empty() { String::new() } else { format!(", last words: {tail}") };
                let expected = self.supervisor.state == State::Ending;
                if code == 0 && self.config.in_user_terminal && self.supervisor.is_ready() {
                    self.on_left(now, "it ended in its own terminal");
                }
                let text = format!("the provider ended with code {code}{said}");
                self.log(
                    if expected { LogLevel::Info } else { LogLevel::Warn },
                    "lifecycle",
                    text.clone(),
                );
                self.on_provider_gone(now, text, StartFault::Passing);
            }
        }
    }

    /// Recorded before it is used: the conversation is opened only once pid and start time are on
    /// disk.
    fn on_spawned(&mut self, process: ProcessRef, terminal: Option<String>) {
        self.note_terminal(terminal);
        self.supervisor.record.process = process;
        self.commits.write(StoreOp::ProviderPut(self.supervisor.record.clone()));
        if self.supervisor.state != State::Spawning {
            // It was told to end while it was being started, too early to be heard.
            return self.end_provider(0);
        }
        self.supervisor.state = State::Opening;
        self.supervisor.why = "the conversation is being opened".into();
        let resume = (!self.supervisor.record.session.is_empty()).then(|| Resume {
            session: self.supervisor.record.session.clone(),
            evidence_for: self.fingerprints(),
        });
        let (_, open) = self.supervisor.verb(Verb::Open { resume });
        self.commits.defer(open);
        self.status.touch();
    }

    /// Durable, as everything that the next start has to find again.
    fn note_terminal(&mut self, terminal: Option<String>) {
        if terminal.is_some() && terminal != self.supervisor.terminal {
            let (key, value) = (TERMINAL_NOTE.into(), terminal.clone());
            self.commits.write(StoreOp::PutMeta { key, value });
        }
        self.supervisor.terminal = terminal;
    }

    pub(super) fn on_opened(&mut self, now: Now, opened: Opened, said: Option<String>) {
        if self.supervisor.state != State::Opening {
            return;
        }
        self.supervisor.state = State::Ready { since: now.tick };
        self.supervisor.was_ready = true;
        self.supervisor.restarting = false;
        self.supervisor.refused = None;
        self.supervisor.why = match &opened.how {
            OpenMode::Lost(why) => {
                format!("{} is ready, without what was said before: {why}", opened.agent)
            }
            _ => format!("{} is ready", opened.agent),
        };
        let text = said.unwrap_or_else(|| self.supervisor.why.clone());
        self.note_evidence(DetailedStatus::Idle, StatusSource::Session, text);
        self.supervisor.agent = opened.agent.clone();
        self.supervisor.model = opened.model.clone();
        self.supervisor.has_evidence = opened.has_evidence;
        self.tracker.set_terminal(None);
        if self.supervisor.record.session != opened.session {
            self.supervisor.record.session = opened.session.clone();
            self.commits.write(StoreOp::ProviderPut(self.supervisor.record.clone()));
        }
        self.log(
            LogLevel::Info,
            "lifecycle",
            format!(
                "provider ready agent={:?} session={} how={}",
                opened.agent, opened.session, opened.how
            ),
        );
        self.status.touch();
        self.on_conversation(now, opened.how);
        self.on_restart_done(now, Ok(()));
    }

    /// The conversation goes on under another id.
    pub(super) fn on_moved(&mut self, session: String) {
        if self.supervisor.record.session != session {
            self.log(LogLevel::Info, "lifecycle", format!("the conversation is {session} now"));
            self.supervisor.record.session = session;
            self.commits.write(StoreOp::ProviderPut(self.supervisor.record.clone()));
            self.status.touch();
        }
    }

    pub(super) fn on_open_failed(&mut self, now: Now, reason: String, fault: StartFault) {
        if self.supervisor.state != State::Opening {
            return; // it is being ended already
        }
        // From here on it is a failure like any other, with the pauses of the budget.
        self.supervisor.restarting = false;
        self.log(
            LogLevel::Error,
            "lifecycle",
            format!("the conversation cannot be opened: {reason}"),
        );
        self.supervisor.why = reason.clone();
        if fault == StartFault::Person {
            self.supervisor.wanted = false;
        }
        self.supervisor.state = State::Ending;
        self.supervisor.last_exit = Some((reason.clone(), now.tick));
        self.supervisor.open_failure = Some((reason, fault));
        self.end_provider(self.config.shutdown_timeout.as_millis() as u64);
    }

    fn end_provider(&mut self, grace_ms: u64) {
        let (_, stop) = self.supervisor.verb(Verb::Stop);
        self.out.push(stop);
        self.out.push(Effect::Provider(ProviderCommand::Stop { grace_ms }));
    }

    /// The process is gone, or never was. Decides: nothing, again later, or parked.
    fn on_provider_gone(&mut self, now: Now, reason: String, fault: StartFault) {
        let state = std::mem::replace(&mut self.supervisor.state, State::Down);
        // Why the conversation did not open says more than how the process ended afterwards.
        let (reason, fault) =
            match (self.supervisor.open_failure.take(), reason.split_once("last words: ")) {
                (Some((failure, fault)), Some((_, words))) => {
                    (format!("{failure}; it said: {words}"), fault)
                }
                (failure, _) => failure.unwrap_or((reason, fault)),
            };
        (self.supervisor.record.process, self.supervisor.record.provider_session) =
            Default::default();
        self.commits.write(StoreOp::ProviderPut(self.supervisor.record.clone()));
        self.tracker.clear_work(TURN);
        self.tracker.clear_all_work();
        self.approvals.clear();
        self.hooks_part();
        self.fail_verbs(now, "the provider ended");
        self.on_turn_lost();
        self.status.touch();
        if self.stop.is_some() {
            self.tracker.set_terminal(Some(Status::Offline));
            return;
        }
        if self.supervisor.restarting && state == State::Ending && self.supervisor.wanted {
            self.spawn();
            return;
        }
        if let State::Ready { since } = state
            && now.tick - since >= self.supervisor.policy.healthy
        {
            self.supervisor.exits.clear();
            self.supervisor.attempt = 0;
        }
        let (reason, fault) = match self.supervisor.wanted {
            true => (reason, fault),
            false => (self.supervisor.why.clone(), StartFault::Person),
        };
        self.supervisor.last_exit = Some((reason.clone(), now.tick));
        self.decide_next_start(now, reason, fault);
    }

    /// `agent.restart`: down and up again, also out of `parked` or in the middle of a crash.
    pub(super) fn restart_provider(&mut self) {
        self.supervisor.restarting = true;
        self.supervisor.wanted = true;
        self.supervisor.exits.clear();
        self.supervisor.attempt = 0;
        self.status.touch();
        match self.supervisor.state {
            State::Down | State::Waiting { .. } | State::Parked => {
                self.tracker.set_terminal(Some(Status::Offline));
                self.spawn();
            }
            State::Spawning => {}
            State::Opening | State::Ready { .. } => {
                self.supervisor.state = State::Ending;
                self.supervisor.why = "restart was asked for".into();
                self.end_provider(self.config.shutdown_timeout.as_millis() as u64);
            }
            State::Ending => {}
        }
    }

    /// The runner stops: end the provider, whatever it is doing.
    pub(super) fn stop_provider(&mut self, grace_ms: u64) {
        self.supervisor.wanted = false;
        match self.supervisor.state {
            State::Down | State::Waiting { .. } | State::Parked => {
                self.supervisor.state = State::Down
            }
            State::Spawning | State::Opening | State::Ready { .. } | State::Ending => {
                self.supervisor.state = State::Ending;
                self.end_provider(grace_ms);
            }
        }
    }

    pub(super) fn on_claims_lapsed(&mut self, now: Now) {
        let lapsed = self.tracker.sweep(now.tick);
        if !lapsed.is_empty() {
            for claim in &lapsed {
                self.log(
                    LogLevel::Warn,
                    "task",
                    format!("claim lapsed kind={} id={}", claim.kind, claim.id),
                );
            }
            self.status.touch();
        }
    }

    pub(super) fn provider_json(&self, now: Now) -> serde_json::Value {
        let ago = |at: Tick| (now.tick - at).as_millis() as u64;
        json!({
            "state": self.supervisor.state.name(),
            "pid": self.supervisor.record.process.pid,
            "session": self.supervisor.record.session,
            "agent": self.supervisor.agent,
            "model": self.supervisor.model,
            "exitsInWindow": self.supervisor.exits(),
            "lastError": self.supervisor.last_exit.as_ref().map(|(text, at)| json!({"text": text, "agoMs": ago(*at)})),
            "delivery": if self.supervisor.has_evidence { "exactly once" } else { "at least once: this agent cannot show its record" },
        })
    }
}
