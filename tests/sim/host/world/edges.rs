//! What the edges of the orchestrator do on this host.

use agent_relay::core::Cause;
use agent_relay::core::Machine as _;
use agent_relay::core::agent::effect::BusCommand;
use agent_relay::core::agent::event::BusEvent;
use agent_relay::core::http::GateCommand;
use agent_relay::core::ids::ProcessRef;
use agent_relay::core::orchestrator::effect::{Call, Effect, RecordsCommand, StartOrder, Work};
use agent_relay::core::orchestrator::event::{
    Called, Done, Event, Inspected, OwnToken, Prepared, RecordsEvent, StartFailure, Started,
};
use agent_relay::core::orchestrator::record::{self, PROCESS, Supervisor};
use agent_relay::core::orchestrator::systemd::Exit;
use agent_relay::secret::Secret;
use agent_relay::wire::bus::RelayFrame;

use super::{Due, Host, Process};

impl Host {
    /// Something is due, for an orchestrator that may have died since.
    pub(super) fn happen(&mut self, instance: u64, due: Due) -> Result<(), String> {
        if instance != self.instance || self.machine.is_none() {
            return Ok(());
        }
        match due {
            Due::Event(event) => {
                let now = self.now();
                let effects = self.machine.as_mut().map(|machine| machine.handle(now, event));
                return self.dispatch(effects.unwrap_or_default());
            }
            Due::Work(session, work) => {
                let done = self.carry_out(&session, work)?;
                self.later(5, Due::Event(Event::Worked { session, done }));
            }
            Due::Records(command) => self.write(command),
            Due::Call(call) => {
                let called = self.call(call);
                self.later(20, Due::Event(Event::Called(called)));
            }
            Due::ToRelay(text) => {
                let frames = self.relay.hear(&text);
                self.relay_says(frames);
            }
            Due::Connect => {
                let event = if self.relay.up {
                    self.relay.connected = true;
                    BusEvent::Connected
                } else {
                    BusEvent::Lost(Cause::Offline("nobody listens".into()))
                };
                self.later(5, Due::Event(Event::Bus(event)));
            }
        }
        Ok(())
    }

    pub(super) fn dispatch(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        for effect in effects {
            match effect {
                // A thread of its own for each: in order within one, not between them.
                Effect::Records(command) => self.in_order(Due::Records(command)),
                Effect::Bus(BusCommand::Send(text)) if self.relay.connected => {
                    self.in_order(Due::ToRelay(text));
                }
                Effect::Bus(BusCommand::Connect(_)) => self.later(20, Due::Connect),
                Effect::Bus(BusCommand::Disconnect { .. }) => self.relay.connected = false,
                Effect::Call(call) => self.later(30, Due::Call(call)),
                Effect::Work { session, work } => self.later(400, Due::Work(session, work)),
                Effect::Watch { session, launch, process } => {
                    self.watch(&session, &launch, process);
                }
                Effect::Gate(GateCommand::Respond { ticket, .. }) => {
                    *self.tickets.entry(ticket).or_default() += 1;
                }
                Effect::Log { text, .. } => self.say(|| format!("  {text}")),
                Effect::Finish { code, message } => {
                    return Err(format!("it ended with {code}: {message}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Behind everything of its kind that is under way.
    fn in_order(&mut self, due: Due) {
        self.numbers += 1;
        self.due.insert((self.tick + 1500, self.numbers), (self.instance, due));
    }

    fn watch(&mut self, session: &str, launch: &str, process: ProcessRef) {
        let instance = self.instance;
        let found = self.processes.iter_mut().find(|one| one.process == process && one.alive);
        match found {
            Some(one) => one.watched = Some(instance),
            None => {
                let (session, launch) = (session.into(), launch.into());
                self.later(5, Due::Event(Event::Gone { session, launch, exit: None }));
            }
        }
    }

    fn write(&mut self, command: RecordsCommand) {
        if let RecordsCommand::Commit(commit) = command {
            self.stalled.push(commit);
        }
        let Some(upto) = self.stalled.last().map(|commit| commit.number) else { return };
        let event = if self.writable {
            for commit in std::mem::take(&mut self.stalled) {
                self.disk = record::changed(std::mem::take(&mut self.disk), &commit.ops);
            }
            RecordsEvent::Written { upto }
        } else {
            RecordsEvent::Stalled(Cause::Failed("the disk is full".into()))
        };
        self.later(3, Due::Event(Event::Records(event)));
    }

    fn call(&mut self, call: Call) -> Called {
        let offline = || Cause::Offline("nobody listens".into());
        let (up, odd) = (self.relay.up, self.happens(3));
        match call {
            Call::OwnToken { .. } => Called::OwnToken(if up {
                Ok(OwnToken { token: Secret::new("own"), name: "host-orchestrator".into() })
            } else {
                Err(offline())
            }),
            Call::AgentToken { session, .. } => {
                let result = match (up, odd) {
                    (false, _) => Err(offline()),
                    (true, true) => Err(Cause::Refused(401, "the token is unknown".into())),
                    (true, false) => Ok(Secret::new("agent")),
                };
                Called::AgentToken { session, result }
            }
            Call::HandToken { session, .. } => Called::TokenHanded { session, result: Ok(()) },
        }
    }

    fn of_launch(&self, launch: &str) -> Option<usize> {
        let fits = |process: &Process| process.launch == launch && !launch.is_empty();
        self.processes.iter().position(fits)
    }

    /// Does what was ordered; an error is something that must never be.
    pub(super) fn carry_out(&mut self, session: &str, work: Work) -> Result<Done, String> {
        Ok(match work {
            Work::Prepare { options_file, options, .. } => {
                if self.happens(3) {
                    return Ok(Done::Prepared(Err("cwd does not exist: /work".into())));
                }
                if !options.is_null() {
                    self.options.insert(options_file, options);
                }
                let (cwd, base) = ("/work".to_string(), "/work".to_string());
                Done::Prepared(Ok(Prepared { cwd, base, meminfo: String::new() }))
            }
            Work::Start(order) => Done::Started(self.start_session(session, &order)?),
            Work::Inspect { record, options_file } => {
                let at = self.of_launch(&record.launch_id);
                let alive = at.filter(|at| self.processes[*at].alive);
                let options = self.options.get(&options_file).cloned();
                let exit = match at {
                    _ if record.boot_id != format!("boot-{}", self.boot) => Exit::Reboot,
                    Some(at) => self.processes[at].exit,
                    None => Exit::Unknown,
                };
                Done::Inspected(Box::new(Inspected {
                    process: alive.map(|at| self.processes[at].process),
                    exit,
                    options: options.and_then(|options| serde_json::from_value(options).ok()),
                    left: Ok(()),
                }))
            }
            Work::Stop { record, .. } => {
                if self.happens(5) {
                    return Ok(Done::Stopped(Err("process 7 does not end".into())));
                }
                if let Some(at) = self.of_launch(&record.launch_id) {
                    self.end_process(at, Exit::Orderly);
                }
                Done::Stopped(Ok(()))
            }
            Work::Collect { record, exit } => {
                let at = self.of_launch(&record.launch_id);
                let left = if self.happens(3) { Err("something is left".into()) } else { Ok(()) };
                Done::Collected { exit: at.map_or(exit, |at| self.processes[at].exit), left }
            }
            Work::Clean { files } => {
                files.iter().for_each(|file| drop(self.options.remove(file)));
                Done::Cleaned
            }
        })
    }

    fn start_session(
        &mut self,
        session: &str,
        order: &StartOrder,
    ) -> Result<Result<Started, StartFailure>, String> {
        let launch = &order.record.launch_id;
        let is_it = |entry: &serde_json::Value| {
            entry["name"] == session && entry["launchId"] == launch.as_str()
        };
        if !self.disk.iter().any(is_it) {
            return Err(format!("{session} is started before that stands in the records"));
        }
        if let Some(at) = self.of_launch(&order.former_launch) {
            self.end_process(at, Exit::Signal(9));
        }
        if self.happens(10) {
            let exit = if self.rng.percent(50) { Exit::Code(1) } else { Exit::Code(2) };
            return Ok(Err(StartFailure { text: "it does not start".into(), exit }));
        }
        self.starts += 1;
        self.numbers += 1;
        let process = ProcessRef { pid: self.numbers as u32, start: self.tick };
        self.say(|| format!("{session} starts"));
        self.processes.push(Process {
            session: session.into(),
            launch: launch.clone(),
            process,
            alive: true,
            exit: Exit::Unknown,
            watched: None,
        });
        let supervisor = Supervisor { kind: PROCESS.into(), ..Supervisor::default() };
        Ok(Ok(Started { process, supervisor, note: None }))
    }

    /// What the relay sends.
    pub(super) fn relay_says(&mut self, frames: Vec<RelayFrame>) {
        for frame in frames {
            if self.machine.is_some() {
                self.in_order(Due::Event(Event::Bus(BusEvent::Framed(frame))));
            }
        }
    }

    pub(super) fn set_relay(&mut self, up: bool) {
        self.say(|| format!("the relay is up: {up}"));
        self.relay.up = up;
        if !up && std::mem::replace(&mut self.relay.connected, false) && self.machine.is_some() {
            let lost = BusEvent::Lost(Cause::Offline("the connection broke".into()));
            self.in_order(Due::Event(Event::Bus(lost)));
        }
    }
}
