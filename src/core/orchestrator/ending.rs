//! How a session is found again, how it ends, and what follows.

use std::time::Duration;

use serde_json::json;

use super::Orchestrator;
use super::budget::Next;
use super::config::SessionFiles;
use super::effect::Work;
use super::event::Inspected;
use super::operations::{Asker, stopped};
use super::record::Record;
use super::sessions::{Phase, Session, Step, StopWish};
use super::systemd::Exit;
use crate::core::time::Tick;
use crate::wire::control::LogLevel;

/// Something of a session that does not end is tried again after this.
const LEFT_LOOK: Duration = Duration::from_secs(2);
/// Time for a session to end whose stop was begun by an earlier orchestrator.
const STOP_GRACE: Duration = Duration::from_secs(15);

impl Orchestrator {
    /// A session of an earlier orchestrator: is it still there?
    pub(super) fn inspect(&mut self, record: Record) {
        let name = record.name.clone();
        self.sessions.insert(name.clone(), Session::new(record, None));
        self.inspect_again(&name);
    }

    pub(super) fn inspect_again(&mut self, name: &str) {
        let Some(session) = self.sessions.get(name) else { return };
        let files = SessionFiles::of(&self.config.about.home, name);
        let record = Box::new(session.record.clone());
        let work = Work::Inspect { record, options_file: files.options };
        self.work(name, Phase::Inspecting, work);
    }

    pub(super) fn on_inspected(&mut self, name: &str, found: Inspected) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        session.options = found.options.or(session.options.take());
        session.has_run = session.record.started_at > 0;
        if session.record.stopping && session.stop.is_none() {
            let reason = "it was being stopped".into();
            session.stop = Some(StopWish { grace: STOP_GRACE, reason });
        }
        if let Some(process) = found.process {
            let changed = session.record.process() != process || session.record.parked.is_some();
            (session.record.pid, session.record.start_time) = (process.pid, process.start);
            session.record.parked = None;
            session.has_run = true;
            session.started = self.now.tick;
            if changed {
                self.put(name);
            }
            return self.run_or_stop(name);
        }
        if let Err(left) = found.left {
            self.log(LogLevel::Error, format!("session={name} cannot be ended: {left}"));
            return self.wait(name, LEFT_LOOK, format!("does not end: {left}"), Step::Inspect);
        }
        if session.stop.is_some() {
            let text = "it was stopped while no orchestrator ran".to_string();
            return self.let_go(name, text, stopped(true, true));
        }
        if session.record.parked.is_some() {
            session.phase = Phase::Parked;
            return;
        }
        if session.record.launch_id.is_empty() && session.record.pid == 0 {
            return self.wait(name, Duration::ZERO, "is about to start", Step::Prepare);
        }
        session.has_run = true;
        self.after_end(name, found.exit, None);
    }

    /// The main process of a session is gone.
    pub(super) fn on_gone(&mut self, name: &str, launch: &str, exit: Option<Exit>) {
        let Some(session) = self.sessions.get(name) else { return };
        if !session.runs() || session.record.launch_id != launch {
            return;
        }
        let record = Box::new(session.record.clone());
        let work = Work::Collect { record, exit: exit.unwrap_or(Exit::Unknown) };
        self.work(name, Phase::Collecting, work);
        self.tell_status();
    }

    pub(super) fn on_collected(&mut self, name: &str, exit: Exit, left: Result<(), String>) {
        if let Err(left) = left {
            self.log(LogLevel::Error, format!("session={name} cannot be ended: {left}"));
            return self.wait(name, LEFT_LOOK, format!("does not end: {left}"), Step::Inspect);
        }
        let wanted = self.sessions.get(name).is_some_and(|session| session.stop.is_some());
        if wanted {
            return self.let_go(name, format!("{exit} while it was stopped"), stopped(true, true));
        }
        self.after_end(name, exit, None);
    }

    /// Nothing of it is there any more: what follows?
    pub(super) fn after_end(&mut self, name: &str, exit: Exit, said: Option<&str>) {
        let (now, policy) = (self.now.tick, self.config.restart.clone());
        let Some(session) = self.sessions.get_mut(name) else { return };
        let rule = session.record.restart_rule();
        let ran = if session.started == Tick(0) { Duration::ZERO } else { now - session.started };
        let next = session.ends.next(&policy, rule, exit, (now, ran), &mut self.rng);
        let has_options = session.options.is_some();
        let said = said.map(|said| format!(": {said}")).unwrap_or_default();
        match next {
            Next::StartAfter(_) if !has_options => {
                let text = format!(
                    "{exit}, and what it was asked for is not there any more; stop it and spawn it anew"
                );
                self.park(name, text);
            }
            Next::StartAfter(pause) => {
                let text = format!("{exit}{said}; it is started again");
                self.log(LogLevel::Warn, format!("session={name} {text}"));
                self.wait(name, pause, text, Step::Prepare);
            }
            Next::Done => self.let_go(name, exit.to_string(), stopped(true, true)),
            Next::Park(text) => self.park(name, format!("{text}{said}")),
        }
    }

    pub(super) fn begin_session_stop(&mut self, name: &str, wish: StopWish, asker: Asker) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        session.stoppers.push(asker);
        let grace = wish.grace;
        let text = format!("it was stopped ({})", wish.reason);
        session.stop.get_or_insert(wish);
        match session.phase {
            Phase::Running { .. } => {
                session.record.stopping = true;
                self.put(name);
                self.order_stop(name, grace);
            }
            Phase::Waiting { then: Step::Inspect, .. } => self.inspect_again(name),
            Phase::Waiting { .. } | Phase::Parked => self.let_go(name, text, stopped(false, false)),
            // What is under way ends first.
            _ => {}
        }
    }

    pub(super) fn order_stop(&mut self, name: &str, grace: Duration) {
        let Some(session) = self.sessions.get(name) else { return };
        let record = Box::new(session.record.clone());
        let work = Work::Stop { record, grace_ms: grace.as_millis() as u64 };
        self.work(name, Phase::Stopping, work);
    }

    pub(super) fn on_stopped(&mut self, name: &str, result: Result<(), String>) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        let result = result
            .or_else(|left| if crate::planted::is("hasty-success") { Ok(()) } else { Err(left) });
        let Err(left) = result else {
            let reason = session.stop.take().map(|stop| stop.reason).unwrap_or_default();
            return self.let_go(name, format!("it was stopped ({reason})"), stopped(true, true));
        };
        // Success is never told of something that runs.
        let (stoppers, _) = (std::mem::take(&mut session.stoppers), session.stop.take());
        session.record.stopping = false;
        self.put(name);
        self.log(LogLevel::Error, format!("session={name} does not end: {left}"));
        let mut answer = stopped(false, true);
        answer["left"] = json!(left);
        for asker in stoppers {
            self.answer(asker, Ok(answer.clone()));
        }
        self.inspect_again(name);
    }
}
