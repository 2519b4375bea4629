//! Provider processes: a session machine and the demo agent with its own record, which survives
//! everything.

use std::collections::BTreeMap;
use std::time::Duration;

use agent_relay::core::agent::event::{Event, Lane, ProviderEvent};
use agent_relay::core::ids::{ProcessNumber, ProcessRef};
use agent_relay::core::session::{Input, Output, Session, Signs};
use agent_relay::demo::agent::{Abilities, DemoAgent, Disk, Entry, Output as DemoOutput};
use agent_relay::provider::acp::session::AcpSession;
use agent_relay::provider::{ApprovalMode, SessionSettings};

use super::World;
use super::schedule::Action;

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
pub(super) struct Process {
    pub(super) number: u64,
    /// Number in the life of its runner.
    pub(super) order: ProcessNumber,
    pub(super) session: AcpSession,
    pub(super) demo: DemoAgent,
    pub(super) dead: bool,
    /// Lines that it has written.
    lines: u64,
}

impl World {
    pub(super) fn spawn(&mut self, runner: usize, order: ProcessNumber, knows_leftover: bool) {
        let life = self.runners[runner].life;
        if self.runners[runner].orphan.is_some() {
            assert!(knows_leftover, "a provider of an earlier life was forgotten: runner {runner}");
            self.runners[runner].orphan = None;
        }
        assert!(
            self.runners[runner].process.as_ref().is_none_or(|p| p.dead),
            "two providers of runner {runner} at once"
        );
        let state = &mut self.runners[runner];
        state.processes += 1;
        let number = state.processes;
        let settings = SessionSettings {
            agent: "a".into(),
            cwd: "/work".into(),
            approval_mode: ApprovalMode::Open,
            mode: None,
            approval_timeout: Duration::from_secs(600),
            capture_full: false,
        };
        let resume = self.seed.is_multiple_of(2);
        let demo = DemoAgent::new(Abilities { load: true, resume });
        state.process = Some(Process {
            number,
            order,
            session: AcpSession::new(settings),
            demo,
            dead: false,
            lines: 0,
        });
        let event = Event::Provider(ProviderEvent::Spawned {
            process: ProcessRef { pid: number as u32 + 100, start: number },
            terminal: None,
        });
        self.send(
            format!("provider{runner}.{life}"),
            5,
            Action::Agent { runner, life, lane: Lane::Provider, event },
        );
    }

    /// What is seen of a provider from outside: what it has written is all that it does.
    pub(super) fn tell_signs(&mut self, runner: usize) {
        let life = self.runners[runner].life;
        let Some(process) = &self.runners[runner].process else { return };
        let signs = Signs { output: process.lines, ..Default::default() };
        let event = Event::Provider(ProviderEvent::Probed(signs));
        self.send(
            format!("provider{runner}.{life}"),
            2,
            Action::Agent { runner, life, lane: Lane::Provider, event },
        );
    }

    pub(super) fn provider_dies(&mut self, runner: usize, number: u64, code: i32) {
        let now = self.now;
        let life = self.runners[runner].life;
        let Some(process) =
            self.runners[runner].process.as_mut().filter(|p| p.number == number && !p.dead)
        else {
            return;
        };
        process.dead = true;
        let outputs = process.session.handle(now, Input::Closed);
        self.say(format!("provider {number} of runner {runner} dies with {code}"));
        self.session_outputs(runner, number, outputs);
        let event = Event::Provider(ProviderEvent::Exited { code, stderr: String::new() });
        self.send(
            format!("provider{runner}.{life}"),
            2,
            Action::Agent { runner, life, lane: Lane::Provider, event },
        );
    }

    pub fn crash_provider(&mut self, runner: usize) {
        if let Some(number) =
            self.runners[runner].process.as_ref().filter(|p| !p.dead).map(|p| p.number)
        {
            self.provider_dies(runner, number, 137);
        }
    }

    pub(super) fn session_outputs(&mut self, runner: usize, process: u64, outputs: Vec<Output>) {
        let life = self.runners[runner].life;
        for output in outputs {
            match output {
                Output::Write(bytes) => self.send(
                    format!("in{runner}.{process}"),
                    2,
                    Action::Demo { runner, process, bytes },
                ),
                Output::CloseInput => {}
                Output::Event(signal) => {
                    let event = Event::Provider(ProviderEvent::Session(signal));
                    self.send(
                        format!("provider{runner}.{life}"),
                        2,
                        Action::Agent { runner, life, lane: Lane::Provider, event },
                    );
                }
                other => panic!("an ACP session has no use for {other:?}"),
            }
        }
    }

    pub(super) fn demo_outputs(&mut self, runner: usize, process: u64, outputs: Vec<DemoOutput>) {
        for output in outputs {
            match output {
                DemoOutput::Line(line) => {
                    if let Some(process) = &mut self.runners[runner].process {
                        process.lines += 1;
                    }
                    let input = Input::Bytes((line + "\n").into_bytes());
                    self.send(
                        format!("out{runner}.{process}"),
                        2,
                        Action::Session { runner, process, input },
                    );
                }
                DemoOutput::Crash => {
                    self.after_ms(1, Action::ProviderDies { runner, process, code: 1 });
                    return;
                }
                DemoOutput::Flood { .. } | DemoOutput::LeaveChild | DemoOutput::GoDeaf => {}
            }
        }
    }
}
