//! How a session comes to run: the host is looked at, its agent gets a token, it is written down,
//! and then it is started.

use std::time::Duration;

use serde_json::json;

use super::config::SessionFiles;
use super::effect::{Call, Effect, StartOrder, Work};
use super::event::{Prepared, StartFailure, Started};
use super::launch::{self, SessionNames};
use super::operations::stopped;
use super::options::SpawnOptions;
use super::sessions::{Phase, Session, Step};
use super::systemd::UnitOrder;
use super::{Orchestrator, admission, confine, names};
use crate::core::Cause;
use crate::secret::Secret;
use crate::wire::control::{ENV_TOKEN, LogLevel};

/// A session that waits for room is looked at again after this.
const ROOM_LOOK: Duration = Duration::from_secs(5);
/// One that waits for the relay.
const RELAY_LOOK: Duration = Duration::from_secs(1);
/// Who asks for a session waits so long for the relay.
const RELAY_PATIENCE: Duration = Duration::from_secs(10);
/// A runner must have told that it is ready in that time, seconds.
const START_SECONDS: u64 = 60;
/// What is left of a unit is killed so long after it was told to end, seconds.
const STOP_SECONDS: u64 = 20;

impl Orchestrator {
    /// Looks at the host.
    pub(super) fn prepare(&mut self, name: &str) {
        let Some(session) = self.sessions.get(name) else { return };
        let work = self.prepare_order(session);
        self.work(name, Phase::Preparing, work);
    }

    /// Ends a stop that was asked for meanwhile: nothing runs.
    pub(super) fn is_called_off(&mut self, name: &str) -> bool {
        let Some(session) = self.sessions.get(name) else { return true };
        if session.stop.is_none() {
            return false;
        }
        let text = "the session was stopped before it ran".to_string();
        self.answer_askers(name, Some((409, "stopped", text)));
        self.let_go(name, "it was stopped before it ran".into(), stopped(false, false));
        true
    }

    pub(super) fn on_prepared(&mut self, name: &str, result: Result<Prepared, String>) {
        if self.is_called_off(name) {
            return;
        }
        let ground = match result {
            Ok(ground) => ground,
            Err(text) => return self.give_up(name, (422, "bad_cwd", text)),
        };
        if !confine::is_within(&ground.base, &ground.cwd) {
            let text = format!("cwd must be within base directory: {}", self.config.base_dir);
            return self.give_up(name, (422, "outside", text));
        }
        let fits = self.fits(name, &ground.meminfo);
        let Some(session) = self.sessions.get_mut(name) else { return };
        session.record.cwd = ground.cwd;
        let waits = session.has_run || session.options.as_ref().is_some_and(|told| told.queue);
        match fits {
            Ok(()) => self.begin_token(name),
            Err(text) if waits => {
                self.put(name);
                self.wait(name, ROOM_LOOK, text, Step::Prepare);
                self.answer_askers(name, None);
            }
            Err(text) => self.give_up(name, (503, "no_room", text)),
        }
    }

    /// Whether the host has room for this session beside the others.
    pub(super) fn fits(&self, name: &str, meminfo: &str) -> Result<(), String> {
        let room = self.config.room;
        let need =
            |session: &Session| session.record.ceilings.memory_max.unwrap_or(room.memory_expected);
        let starts = |session: &&Session| {
            session.record.name != name
                && matches!(session.phase, Phase::Tokening | Phase::Starting)
        };
        let promised = self.sessions.values().filter(starts).map(need).sum();
        let own = self.sessions.get(name).map_or(0, need);
        let others = self.sessions.values().filter(|session| session.is_placed()).count();
        admission::fits(&room, others, own, promised, admission::available(meminfo))
    }

    pub(super) fn begin_token(&mut self, name: &str) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        let brings_one =
            session.options.as_ref().is_some_and(|options| options.env.contains_key(ENV_TOKEN));
        if brings_one {
            return self.start(name, None);
        }
        let Some(own) = self.link.own().map(|own| own.token.clone()) else {
            return self.wait_for_relay(name, "it has given no token to this orchestrator yet");
        };
        let body = session.token_request();
        session.phase = Phase::Tokening;
        self.out.push(Effect::Call(Call::AgentToken { session: name.into(), body, own }));
    }

    /// The relay has other data than before: each runner gets another token for its agent.
    pub(super) fn renew_agent_tokens(&mut self) {
        let Some(own) = self.link.own().map(|own| own.token.clone()) else { return };
        for session in self.sessions.values_mut().filter(|session| session.runs()) {
            session.wants_token = true;
            let (name, body) = (session.record.name.clone(), session.token_request());
            let call = Call::AgentToken { session: name, body, own: own.clone() };
            self.out.push(Effect::Call(call));
        }
    }

    /// A token for a runner that runs already.
    fn hand_token(&mut self, name: &str, result: Result<Secret, Cause>) {
        let Some(session) = self.sessions.get(name) else { return };
        let runner_info_file = session.record.runner_info_file.clone();
        match result {
            Ok(token) => self.out.push(Effect::Call(Call::HandToken {
                session: name.into(),
                runner_info_file,
                token,
            })),
            Err(cause) => self.on_token_handed(name, Err(cause)),
        }
    }

    pub(super) fn on_token_handed(&mut self, name: &str, result: Result<(), Cause>) {
        match result {
            Ok(()) => self.log(LogLevel::Info, format!("session={name} has another token")),
            Err(cause) => {
                self.log(LogLevel::Warn, format!("session={name} gets no other token: {cause}"))
            }
        }
    }

    /// The relay is away: who asks for a new session waits a moment, one that has run for ever.
    pub(super) fn wait_for_relay(&mut self, name: &str, why: &str) {
        let now = self.now.tick;
        let Some(session) = self.sessions.get_mut(name) else { return };
        let since = *session.relay_since.get_or_insert(now);
        let queued = session.options.as_ref().is_some_and(|options| options.queue);
        if !session.has_run && !queued && now - since >= RELAY_PATIENCE {
            let text = format!(
                "the relay {} makes no token for its agent: {why}; start one with `agent-relay hub`",
                self.config.about.relay_url
            );
            return self.give_up(name, (503, "no_relay", text));
        }
        self.wait(name, RELAY_LOOK, format!("waits for the relay: {why}"), Step::Token);
    }

    pub(super) fn on_agent_token(&mut self, name: &str, result: Result<Secret, Cause>) {
        let session = self.sessions.get_mut(name);
        if session.is_some_and(|one| one.runs() && std::mem::take(&mut one.wants_token)) {
            return self.hand_token(name, result);
        }
        if !self.sessions.get(name).is_some_and(|session| session.phase == Phase::Tokening)
            || self.is_called_off(name)
        {
            return;
        }
        match result {
            Ok(token) => self.start(name, Some(token)),
            Err(Cause::Refused(401, text)) => {
                self.ask_own_token(true);
                self.wait_for_relay(name, &text);
            }
            Err(Cause::Refused(status @ 400..=499, text)) if status != 429 => {
                let text = format!("the relay makes no token for its agent: {text}");
                self.give_up(name, (422, "no_token", text));
            }
            Err(cause) => self.wait_for_relay(name, &cause.to_string()),
        }
    }

    /// Writes down that it starts, and then starts it.
    pub(super) fn start(&mut self, name: &str, token: Option<Secret>) {
        let launch_id = self.rng.uuid();
        let Some(session) = self.sessions.get_mut(name) else { return };
        let Some(options) = session.options.clone() else {
            let text = "what it was asked for is not there any more; stop it and spawn it anew";
            return self.park(name, text.into());
        };
        let record = &mut session.record;
        let former_launch = std::mem::replace(&mut record.launch_id, launch_id.clone());
        (record.pid, record.start_time) = (0, 0);
        record.boot_id = self.config.boot_id.clone();
        session.phase = Phase::Starting;
        session.relay_since = None;
        let order = self.start_order(name, &options, former_launch, token);
        self.put(name);
        let order = Effect::Work { session: name.into(), work: Work::Start(Box::new(order)) };
        if crate::planted::is("start-before-record") {
            self.out.push(order);
        } else {
            self.commits.defer(order);
        }
    }

    pub(super) fn start_order(
        &self,
        name: &str,
        options: &SpawnOptions,
        former_launch: String,
        token: Option<Secret>,
    ) -> StartOrder {
        let record = self.sessions[name].record.clone();
        let files = SessionFiles::of(&self.config.about.home, name);
        let names = SessionNames {
            session: name.into(),
            agent_id: record.agent_id.clone(),
            label: record.label.clone(),
            log_file: files.log.clone(),
            runner_info_file: files.runner_info,
            environment_file: files.environment.clone(),
            launch_id: record.launch_id.clone(),
            cwd: record.cwd.clone(),
            spawn_request_id: record.spawn_request_id.clone(),
        };
        let about = &self.config.about;
        let (shown, hidden) = launch::environment(about, &names, options, token.as_ref());
        let command = launch::command(about, &names, options);
        let unit = UnitOrder {
            unit: names::unit(name),
            description: format!("agent-relay session {name}"),
            log: files.log,
            script: files.script.clone(),
            ceilings: record.ceilings,
            start_seconds: START_SECONDS,
            stop_seconds: STOP_SECONDS,
        };
        StartOrder {
            former_launch,
            script_file: files.script,
            script: launch::script(&shown, &record.cwd, &command),
            environment_file: files.environment,
            environment: Secret::new(json!(hidden).to_string()),
            unit,
            record,
        }
    }

    pub(super) fn on_started(&mut self, name: &str, result: Result<Started, StartFailure>) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(name) else { return };
        match result {
            Ok(started) => {
                let record = &mut session.record;
                (record.pid, record.start_time) = (started.process.pid, started.process.start);
                record.supervisor = started.supervisor;
                record.started_at = now.wall.0;
                session.has_run = true;
                session.started = now.tick;
                session.note = started.note.clone();
                if let Some(note) = started.note {
                    self.log(LogLevel::Warn, format!("session={name} {note}"));
                }
                self.put(name);
                self.run_or_stop(name);
                self.answer_askers(name, None);
            }
            Err(failure) if session.stop.is_some() => {
                let text = failure.text;
                self.answer_askers(name, Some((500, "not_started", text)));
                self.let_go(name, "it was stopped while it started".into(), stopped(false, false));
            }
            Err(failure) if session.has_run => {
                let text = failure.text;
                self.log(LogLevel::Warn, format!("session={name} did not start: {text}"));
                self.after_end(name, failure.exit, Some(&text));
            }
            Err(failure) => self.give_up(name, (500, "not_started", failure.text)),
        }
    }
}
