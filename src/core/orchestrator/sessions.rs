//! The life of one session: looked at, given a token, started, watched, ended, and started again or
//! let go of. One order is under way for it at a time.

use std::time::Duration;

use serde_json::{Value, json};

use super::Orchestrator;
use super::budget::Ends;
use super::config::SessionFiles;
use super::effect::{Effect, Work};
use super::event::Done;
use super::operations::{Asker, Refusal, stopped};
use super::options::SpawnOptions;
use super::record::{Record, RecordOp};
use crate::core::limits::AGENT_TOKEN_LIFE;
use crate::core::time::Tick;
use crate::wire::control::LogLevel;

/// Where a session is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Phase {
    /// An earlier orchestrator had it: it is looked for.
    Inspecting,
    /// The host is looked at.
    Preparing,
    /// The next step is due then.
    Waiting {
        until: Tick,
        why: String,
        then: Step,
    },
    /// Its agent's token is being made.
    Tokening,
    Starting,
    Running {
        since: Tick,
    },
    /// Its main process is gone; what it has left is ended.
    Collecting,
    Stopping,
    /// It is not started any more without being asked for.
    Parked,
    /// It is over; its files go.
    Cleaning,
}

/// What follows a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Prepare,
    Token,
    Inspect,
}

/// Somebody wants a session to end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StopWish {
    pub grace: Duration,
    pub reason: String,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub record: Record,
    /// What it was asked for; none if that is not there any more.
    pub options: Option<SpawnOptions>,
    pub phase: Phase,
    /// Who waits for its start.
    pub askers: Vec<Asker>,
    /// Who waits for its end.
    pub stoppers: Vec<Asker>,
    pub stop: Option<StopWish>,
    pub ends: Ends,
    /// It has run, now or before: who asked for it has been answered.
    pub has_run: bool,
    /// Since when it waits for the relay.
    pub relay_since: Option<Tick>,
    pub started: Tick,
    /// Another token for its agent is being made.
    pub wants_token: bool,
    /// What people should know of how it was started.
    pub note: Option<String>,
    /// What is answered to who wanted it to end, once its files are gone.
    pub last_words: Value,
}

impl Session {
    pub fn new(record: Record, options: Option<SpawnOptions>) -> Session {
        Session {
            record,
            options,
            phase: Phase::Preparing,
            askers: Vec::new(),
            stoppers: Vec::new(),
            stop: None,
            ends: Ends::default(),
            has_run: false,
            relay_since: None,
            started: Tick(0),
            wants_token: false,
            note: None,
            last_words: Value::Null,
        }
    }

    pub fn runs(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Whether it was given room on the host, which nobody else gets then. Who only waits for room
    /// keeps nobody from it.
    pub fn is_placed(&self) -> bool {
        use Phase::{Collecting, Inspecting, Running, Starting, Stopping, Tokening};
        matches!(
            self.phase,
            Inspecting | Tokening | Starting | Running { .. } | Collecting | Stopping
        )
    }

    /// When its next step is due.
    pub fn due(&self) -> Option<Tick> {
        match self.phase {
            Phase::Waiting { until, .. } => Some(until),
            _ => None,
        }
    }

    /// What the relay is asked for to make a token for its agent.
    pub fn token_request(&self) -> Value {
        json!({
            "profileId": "provider-agent", "agentId": self.record.agent_id,
            "policyName": self.record.policy_name, "ttlSeconds": AGENT_TOKEN_LIFE.as_secs(),
        })
    }

    /// The word for people and for scripts, and why it is so.
    fn state(&self) -> (&'static str, Option<&str>) {
        match &self.phase {
            Phase::Inspecting => ("recovering", None),
            Phase::Preparing | Phase::Tokening | Phase::Starting => ("starting", None),
            Phase::Waiting { why, .. } if self.has_run => ("waiting", Some(why)),
            Phase::Waiting { why, .. } => ("queued", Some(why)),
            Phase::Running { .. } => ("running", None),
            Phase::Collecting => ("ending", None),
            Phase::Stopping | Phase::Cleaning => ("stopping", None),
            Phase::Parked => ("parked", self.record.parked.as_deref()),
        }
    }

    /// What a spawn is answered.
    pub fn report(&self) -> Value {
        let record = &self.record;
        let (state, reason) = self.state();
        let mut report = json!({
            "agentId": record.agent_id, "provider": record.provider, "model": record.model,
            "effort": record.effort, "profile": record.profile, "workspaceMode": record.workspace_mode,
            "workspace": record.workspace(), "sessionName": record.name, "tmuxSession": record.name,
            "supervisor": record.supervisor.name(), "terminalSession": record.name,
            "terminalAvailable": false, "cwd": record.cwd, "label": record.label,
            "approvalMode": record.approval_mode, "policyName": record.policy_name,
            "spawnRequestId": record.spawn_request_id, "automationRunId": record.automation_run_id,
            "pid": record.pid, "startedAt": record.started_at, "state": state, "reason": reason,
            "note": self.note,
        });
        if let Some(unit) = record.supervisor.unit() {
            report["systemdUnit"] = json!(unit);
        }
        report
    }

    /// A row of the list of sessions.
    pub fn listed(&self) -> Value {
        let record = &self.record;
        let (state, reason) = self.state();
        let mut row = json!({
            "name": record.name, "sessionName": record.name, "pid": record.pid, "alive": self.runs(),
            "supervisor": record.supervisor.name(), "terminalSession": record.name,
            "logFile": record.log_file, "agentId": record.agent_id, "label": record.label,
            "provider": record.provider, "cwd": record.cwd, "policyName": record.policy_name,
            "spawnRequestId": record.spawn_request_id, "startedAt": record.started_at,
            "restart": record.restart_rule().as_str(), "ceilings": record.ceilings,
            "state": state, "reason": reason,
            "note": self.note,
        });
        if let Some(unit) = record.supervisor.unit() {
            row["systemdUnit"] = json!(unit);
        }
        row
    }
}

impl Orchestrator {
    /// Sessions that have room on the host, or are about to be started again.
    pub(super) fn taken(&self) -> usize {
        let waits = |session: &Session| {
            matches!(session.phase, Phase::Waiting { .. } | Phase::Preparing) && session.has_run
        };
        self.sessions.values().filter(|session| session.is_placed() || waits(session)).count()
    }

    pub(super) fn work(&mut self, name: &str, phase: Phase, work: Work) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        session.phase = phase;
        self.out.push(Effect::Work { session: name.into(), work });
    }

    pub(super) fn wait(&mut self, name: &str, pause: Duration, why: impl Into<String>, then: Step) {
        let until = self.now.tick + pause;
        let Some(session) = self.sessions.get_mut(name) else { return };
        session.phase = Phase::Waiting { until, why: why.into(), then };
    }

    /// Makes what is known of a session durable.
    pub(super) fn put(&mut self, name: &str) {
        let Some(session) = self.sessions.get(name) else { return };
        self.commits.write(RecordOp::Put(Box::new(session.record.clone())));
    }

    /// Who waits for the start of a session is told.
    pub(super) fn answer_askers(&mut self, name: &str, refusal: Option<Refusal>) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        let askers = std::mem::take(&mut session.askers);
        let report = session.report();
        for asker in askers {
            let answer = refusal.clone().map_or_else(|| Ok(report.clone()), Err);
            self.answer(asker, answer);
        }
    }

    /// The next steps that are due.
    pub(super) fn on_sessions_due(&mut self) {
        let now = self.now.tick;
        let due = |session: &&Session| session.due().is_some_and(|at| at <= now);
        let names: Vec<String> =
            self.sessions.values().filter(due).map(|session| session.record.name.clone()).collect();
        for name in names {
            let Some(Phase::Waiting { then, .. }) =
                self.sessions.get(&name).map(|session| session.phase.clone())
            else {
                continue;
            };
            match then {
                Step::Prepare => match self.rate.take(now) {
                    Ok(()) => self.prepare(&name),
                    Err(pause) => {
                        self.wait(&name, pause, "too many starts at a time", Step::Prepare)
                    }
                },
                Step::Token => self.begin_token(&name),
                Step::Inspect => self.inspect_again(&name),
            }
        }
    }

    pub(super) fn on_worked(&mut self, name: &str, done: Done) {
        match done {
            Done::Prepared(result) => self.on_prepared(name, result),
            Done::Started(result) => self.on_started(name, result),
            Done::Inspected(found) => self.on_inspected(name, *found),
            Done::Stopped(result) => self.on_stopped(name, result),
            Done::Collected { exit, left } => self.on_collected(name, exit, left),
            Done::Cleaned => self.on_cleaned(name),
        }
        self.tell_status();
    }

    /// It lives: it is watched, or told to end if somebody wants that.
    pub(super) fn run_or_stop(&mut self, name: &str) {
        let now = self.now.tick;
        let Some(session) = self.sessions.get_mut(name) else { return };
        if let Some(grace) = session.stop.as_ref().map(|stop| stop.grace) {
            return self.order_stop(name, grace);
        }
        session.phase = Phase::Running { since: now };
        let (launch, process) = (session.record.launch_id.clone(), session.record.process());
        let pid = process.pid;
        self.out.push(Effect::Watch { session: name.into(), launch, process });
        self.log(LogLevel::Info, format!("session={name} runs pid={pid}"));
    }

    pub(super) fn park(&mut self, name: &str, text: String) {
        self.log(LogLevel::Error, format!("session={name} is parked: {text}"));
        let Some(session) = self.sessions.get_mut(name) else { return };
        session.record.parked = Some(text);
        session.phase = Phase::Parked;
        self.put(name);
    }

    /// Somebody asks for a parked session again.
    pub(super) fn unpark(&mut self, name: &str) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        session.record.parked = None;
        session.ends.forget();
        self.put(name);
        self.wait(name, Duration::ZERO, "it was asked for again", Step::Prepare);
    }

    /// A session that cannot be started: a new one is refused, one that has run is parked.
    pub(super) fn give_up(&mut self, name: &str, refusal: Refusal) {
        let Some(session) = self.sessions.get(name) else { return };
        if session.has_run || session.askers.is_empty() {
            return self.park(name, refusal.2);
        }
        let text = refusal.2.clone();
        self.answer_askers(name, Some(refusal));
        self.let_go(name, text, stopped(false, false));
    }

    /// It is over: its record goes, then its files, then who waits for that is told. A record
    /// without its files would look like a session that somebody wants.
    pub(super) fn let_go(&mut self, name: &str, text: String, last_words: Value) {
        self.note_end(name, text);
        let files = SessionFiles::of(&self.config.about.home, name).passing();
        let Some(session) = self.sessions.get_mut(name) else { return };
        session.last_words = last_words;
        session.phase = Phase::Cleaning;
        self.commits.write(RecordOp::Remove(name.into()));
        self.commits.defer(Effect::Work { session: name.into(), work: Work::Clean { files } });
    }

    pub(super) fn on_cleaned(&mut self, name: &str) {
        let Some(session) = self.sessions.remove(name) else { return };
        for asker in session.stoppers {
            self.answer(asker, Ok(session.last_words.clone()));
        }
    }
}
