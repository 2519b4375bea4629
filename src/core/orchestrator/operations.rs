//! What others ask an orchestrator for, over HTTP and over the bus by the same names: spawn, stop,
//! list, start again. Each is answered once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::effect::{Effect, Work};
use super::options::SpawnOptions;
use super::record::{Keys, Record};
use super::sessions::{Phase, Session, StopWish};
use super::{Orchestrator, SESSIONS_MAX, admission, names};
use crate::core::agent::effect::BusCommand;
use crate::core::http::GateCommand;
use crate::core::ids::Ticket;
use crate::core::limits::COMMANDS_KEPT_MAX;
use crate::wire::api::{Command, CommandStatus, error_body};
use crate::wire::bus::ClientFrame;

/// The operations of an orchestrator, and what each does. The interface over HTTP and the commands
/// of the bus are served by this table.
pub const OPERATIONS: &[(&str, &str)] = &[
    ("agent.spawn", "start a session; the answer tells its names"),
    ("agent.stop", "end a session and everything that it has started"),
    ("orchestrator.sessions", "the sessions that there are, and how the last ones ended"),
    ("orchestrator.recover", "start parked sessions again"),
    ("orchestrator.logs", "the last lines of a session's log"),
    ("orchestrator.diagnose", "why a session is as it is"),
    ("orchestrator.host", "load, memory, disk, programs and sessions of this host"),
    ("orchestrator.terminal.snapshot", "what a terminal shows, with colours"),
    ("orchestrator.terminal.input", "type into a terminal"),
    ("orchestrator.terminal.resize", "give a terminal another size"),
    ("orchestrator.terminal.guest", "open a terminal for a guest of a session"),
    ("orchestrator.terminal.stop", "end the terminal of a guest"),
];

/// Time that a session has to end in order, where nobody says it.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// The same where it is not to be polite.
const STOP_GRACE_HARD: Duration = Duration::from_secs(2);
/// Longest time that can be asked for.
const STOP_GRACE_MAX: Duration = Duration::from_secs(60);

/// Why something is not done: status, code, one sentence that names the cure.
pub(super) type Refusal = (u16, &'static str, String);

/// Who waits for an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asker {
    Ticket(Ticket),
    /// A command of the relay, by its id.
    Command(String),
}

/// Commands of the relay: those that are under way, and the last ones that were answered.
#[derive(Debug, Default)]
pub(super) struct Commands {
    open: BTreeMap<String, ()>,
    answered: VecDeque<(String, ClientFrame)>,
    /// Answers that the relay has not acknowledged, by the id of their frame.
    unacknowledged: BTreeMap<String, String>,
}

impl Commands {
    /// The relay has this answer.
    pub fn on_acknowledged(&mut self, frame_id: &str) {
        self.unacknowledged.remove(frame_id);
    }

    fn answer_of(&self, id: &str) -> Option<&ClientFrame> {
        self.answered.iter().find(|(known, _)| known == id).map(|(_, frame)| frame)
    }
}

impl Orchestrator {
    /// Somebody asks for something.
    pub(super) fn ask(&mut self, asker: Asker, operation: &str, params: Map<String, Value>) {
        if self.stopping {
            let text = "the orchestrator stops; try again when it runs again".into();
            return self.answer(asker, Err((503, "stopping", text)));
        }
        match operation {
            "agent.spawn" => self.spawn(asker, &params),
            "agent.stop" => self.stop(asker, &params),
            "orchestrator.sessions" => {
                let listed = self.listing();
                self.answer(asker, Ok(listed));
            }
            "orchestrator.recover" => self.recover(asker, &params),
            other if OPERATIONS.iter().any(|(name, _)| *name == other) => {
                self.look(asker, other, &params)
            }
            other => {
                let known: Vec<&str> = OPERATIONS.iter().map(|(name, _)| *name).collect();
                let text = format!("there is no operation {other:?}; use {}", known.join(", "));
                self.answer(asker, Err((404, "not_found", text)));
            }
        }
    }

    /// The answer goes out behind what the event at hand makes durable.
    pub(super) fn answer(&mut self, asker: Asker, result: Result<Value, Refusal>) {
        match asker {
            Asker::Ticket(ticket) => {
                let (status, body) = match result {
                    Ok(value) => (200, value),
                    Err((status, code, text)) => (status, error_body(code, &text)),
                };
                let order = GateCommand::Respond { ticket, status, body: body.into() };
                self.commits.defer(Effect::Gate(order));
            }
            Asker::Command(id) => self.answer_command(id, result),
        }
    }

    fn answer_command(&mut self, id: String, result: Result<Value, Refusal>) {
        let (status, result, error) = match result {
            Ok(value) => (CommandStatus::Succeeded, Some(value), None),
            Err((_, _, text)) => (CommandStatus::Failed, None, Some(text)),
        };
        let frame_id = self.link.frame_id();
        let update = ClientFrame::CommandUpdate {
            id: frame_id.clone(),
            command_id: id.clone(),
            status,
            result,
            error,
        };
        self.commands.open.remove(&id);
        if self.commands.answered.len() >= COMMANDS_KEPT_MAX
            && let Some((old, _)) = self.commands.answered.pop_front()
        {
            self.commands.unacknowledged.retain(|_, command| *command != old);
        }
        self.commands.answered.push_back((id.clone(), update.clone()));
        self.commands.unacknowledged.insert(frame_id, id.clone());
        self.tell_answer(&id, &update);
    }

    /// The answer, and that its command needs not come again.
    fn tell_answer(&mut self, id: &str, update: &ClientFrame) {
        if self.link.is_registered() {
            for frame in [update, &ClientFrame::Ack { frame_id: id.into() }] {
                self.commits.defer(Effect::Bus(BusCommand::Send(frame.to_text())));
            }
        }
    }

    /// The relay is back: what it has not acknowledged goes out again.
    pub(super) fn send_updates_again(&mut self) {
        let left: Vec<String> = self.commands.unacknowledged.values().cloned().collect();
        for id in left {
            if let Some(update) = self.commands.answer_of(&id).cloned() {
                self.tell_answer(&id, &update);
            }
        }
    }

    /// A command came over the bus, perhaps again.
    pub(super) fn on_command(&mut self, id: String, command: Command) {
        if let Some(update) = self.commands.answer_of(&id).cloned() {
            return self.tell_answer(&id, &update);
        }
        if self.commands.open.contains_key(&id) {
            return;
        }
        self.commands.open.insert(id.clone(), ());
        self.ask(Asker::Command(id), &command.kind, command.params);
    }

    fn spawn(&mut self, asker: Asker, params: &Map<String, Value>) {
        match self.new_session(&asker, params) {
            Ok(Some(name)) => {
                let session = self.sessions.get_mut(&name).expect("it was just made");
                session.askers.push(asker);
                self.prepare(&name);
            }
            Ok(None) => {}
            Err(refusal) => self.answer(asker, Err(refusal)),
        }
    }

    /// A session for these parameters; none if there is one of that request already, which then
    /// answers.
    fn new_session(
        &mut self,
        asker: &Asker,
        params: &Map<String, Value>,
    ) -> Result<Option<String>, Refusal> {
        let options = SpawnOptions::read(params, &self.config.providers)
            .map_err(|text| (422, "bad_spawn", text))?;
        // The request of a command is that command: coming again it gives the same session.
        let of_command = match asker {
            Asker::Command(id) => Some(id.clone()),
            Asker::Ticket(_) => None,
        };
        let told = options.spawn_request_id.clone().or(of_command);
        let known = |session: &&Session| Some(&session.record.spawn_request_id) == told.as_ref();
        if let Some(session) = self.sessions.values().find(known) {
            let name = session.record.name.clone();
            self.join(&name, asker.clone());
            return Ok(None);
        }
        let request = told.unwrap_or_else(|| self.rng.uuid());
        let record = self.new_record(&options, request);
        self.check_names(&record)?;
        self.check_room(&options)?;
        let name = record.name.clone();
        self.sessions.insert(name.clone(), Session::new(record, Some(options)));
        Ok(Some(name))
    }

    fn new_record(&mut self, options: &SpawnOptions, request: String) -> Record {
        let provider = &options.provider;
        let label = options.label.clone().filter(|label| !label.is_empty());
        let label = label.unwrap_or_else(|| format!("session-{}", self.now.wall.0));
        let random = self.rng.uuid();
        let hostname = &self.config.about.hostname;
        let agent_id = options.agent_id.clone();
        let agent_id =
            agent_id.unwrap_or_else(|| names::agent_id(hostname, provider, &label, &random[..8]));
        let name = names::session(&self.config.prefix, provider, &label, &request);
        let defaults = self.config.ceilings.get(provider).copied().unwrap_or_default();
        let files = super::config::SessionFiles::of(&self.config.about.home, &name);
        Record {
            label,
            agent_id,
            cwd: options.cwd.clone(),
            spawn_request_id: request,
            log_file: files.log,
            runner_info_file: files.runner_info,
            ..Record::new(name, options, options.ceilings.or(defaults))
        }
    }

    fn check_names(&self, record: &Record) -> Result<(), Refusal> {
        if self.sessions.contains_key(&record.name) {
            let text = format!(
                "there is a session {} already; stop it first: `agent-relay stop {0}`",
                record.name
            );
            return Err((409, "session_exists", text));
        }
        let same = |session: &&Session| session.record.agent_id == record.agent_id;
        if let Some(session) = self.sessions.values().find(same) {
            let text = format!(
                "the agent {} has the session {} already; stop that first, or give another agentId",
                record.agent_id, session.record.name
            );
            return Err((409, "agent_exists", text));
        }
        Ok(())
    }

    /// Whether one more session can be taken, as far as that is known without a look at the host.
    fn check_room(&mut self, options: &SpawnOptions) -> Result<(), Refusal> {
        if self.sessions.len() >= SESSIONS_MAX {
            let text = format!("{SESSIONS_MAX} sessions are there already; stop one first");
            return Err((503, "no_room", text));
        }
        if options.queue {
            return Ok(());
        }
        let (taken, room) = (self.taken(), self.config.room);
        admission::fits(&room, taken, 0, 0, None).map_err(|text| (503, "no_room", text))?;
        self.rate.take(self.now.tick).map_err(|wait| {
            let text = format!(
                "more than {} starts within {} s; try again in {} s, or let it wait with \"queue\": true",
                self.config.starts_burst,
                self.config.starts_time.as_secs(),
                wait.as_secs() + 1
            );
            (429, "too_many_starts", text)
        })
    }

    /// Who asks for a session that there is gets the same answer as who asked first.
    fn join(&mut self, name: &str, asker: Asker) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        if session.askers.is_empty() {
            let report = session.report();
            self.answer(asker, Ok(report));
        } else {
            session.askers.push(asker);
        }
    }

    /// The session that is meant. Names that are none of ours are refused.
    pub(super) fn meant(&self, keys: &Keys) -> Result<Option<String>, Refusal> {
        if keys.is_empty() {
            let text = "say which session: sessionName, spawnRequestId, agentId or policyName";
            return Err((422, "no_session", text.into()));
        }
        if let Some(name) = keys.session.as_deref()
            && !names::is_managed(&self.config.prefix, name)
        {
            let text = "session is not managed by this orchestrator";
            return Err((422, "not_managed", text.into()));
        }
        Ok(keys.select(self.records()).map(|record| record.name.clone()))
    }

    fn stop(&mut self, asker: Asker, params: &Map<String, Value>) {
        let name = match self.meant(&Keys::read(params)) {
            Ok(Some(name)) => name,
            Ok(None) => return self.answer(asker, Ok(stopped(false, false))),
            Err(refusal) => return self.answer(asker, Err(refusal)),
        };
        let graceful = params.get("graceful").and_then(Value::as_bool) != Some(false);
        let told = params.get("timeoutMs").and_then(Value::as_u64).filter(|ms| *ms > 0);
        let grace = match told.map(Duration::from_millis) {
            _ if !graceful => STOP_GRACE_HARD,
            Some(told) => told.min(STOP_GRACE_MAX),
            None => STOP_GRACE,
        };
        let reason = params.get("reason").and_then(Value::as_str).unwrap_or("asked for");
        let reason: String = reason.chars().take(200).collect();
        self.begin_session_stop(&name, StopWish { grace, reason }, asker);
    }

    fn recover(&mut self, asker: Asker, params: &Map<String, Value>) {
        let keys = Keys::read(params);
        let names: Vec<String> = if keys.is_empty() {
            self.sessions.keys().cloned().collect()
        } else {
            match self.meant(&keys) {
                Ok(Some(name)) => vec![name],
                Ok(None) => {
                    let text = "there is no such session; `agent-relay sessions` lists them";
                    return self.answer(asker, Err((404, "no_session", text.into())));
                }
                Err(refusal) => return self.answer(asker, Err(refusal)),
            }
        };
        let parked = |name: &String| self.sessions[name].phase == Phase::Parked;
        let parked: Vec<String> = names.into_iter().filter(parked).collect();
        for name in &parked {
            self.unpark(name);
        }
        let all: Vec<Value> = parked.iter().map(|name| self.sessions[name].listed()).collect();
        self.answer(asker, Ok(json!({"sessions": all})));
    }

    /// All sessions, and how the last ones ended.
    fn listing(&self) -> Value {
        let all: Vec<Value> = self.sessions.values().map(Session::listed).collect();
        let ended: Vec<Value> = self
            .ended
            .iter()
            .map(|(name, reason)| json!({"sessionName": name, "reason": reason}))
            .collect();
        let relay = json!({"url": self.config.about.relay_url, "state": self.link.state_name()});
        json!({"sessions": all, "ended": ended, "relay": relay})
    }

    /// What is looked at before a session is started.
    pub(super) fn prepare_order(&self, session: &Session) -> Work {
        let options = session.options.as_ref().map(|options| json!(options)).unwrap_or_default();
        let files = super::config::SessionFiles::of(&self.config.about.home, &session.record.name);
        let cwd = session.options.as_ref().map_or(&session.record.cwd, |options| &options.cwd);
        Work::Prepare { cwd: cwd.clone(), options_file: files.options, options }
    }
}

/// The answer to a stop.
pub(super) fn stopped(stopped: bool, was_running: bool) -> Value {
    json!({"stopped": stopped, "wasRunning": was_running})
}
