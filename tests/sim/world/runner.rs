//! Runners: their starts, their crashes, and what their machine orders.

use std::collections::VecDeque;
use std::time::Duration;

use agent_relay::core::agent::Agent;
use agent_relay::core::agent::config::{AgentConfig, ReplyMode, RestartPolicy};
use agent_relay::core::agent::effect::{
    BusCommand, Effect, HeartbeatCommand, ProviderCommand, PumpCommand, StoreCommand,
};
use agent_relay::core::agent::event::{Event, Lane, RowAnswer, StoreEvent};
use agent_relay::core::agent::store::{QueuedRow, StoreOp};
use agent_relay::core::commit::Commit;
use agent_relay::core::http::Request;
use agent_relay::core::matching::Identity;
use agent_relay::core::session::{Input, SessionCapabilities, Verb};
use agent_relay::edge::store::Store;
use agent_relay::secret::Secret;
use agent_relay::wire::bus::Registration;
use serde_json::json;

use super::process::{Process, Record};
use super::schedule::{Action, From};
use super::{OPERATOR, World, agent_name};

/// A runner with its disk, its lanes and its provider process.
pub struct Runner {
    pub agent: Option<Agent>,
    pub life: u64,
    pub store: Store,
    pub record: Record,
    pub(super) lanes: Vec<VecDeque<Event>>,
    pub(super) process: Option<Process>,
    /// A process that outlived its runner.
    pub(super) orphan: Option<u64>,
    pub(super) processes: u64,
    pub(super) pending: VecDeque<Commit<StoreOp>>,
    pub(super) stalled: bool,
    pub(super) stall_told: bool,
    pub(super) conn: Option<u64>,
    pub(super) pumping: Option<(Vec<QueuedRow>, Vec<RowAnswer>, Secret)>,
    /// Instances that have said goodbye.
    pub silent: bool,
    /// The hub has registered it once.
    pub(super) known: bool,
    pub trace: Vec<Vec<StoreOp>>,
    pub finished: Option<u8>,
}

impl World {
    pub(super) fn start_runner(&mut self, runner: usize) {
        if self.runners[runner].agent.is_some() || self.runners[runner].finished.is_some() {
            return;
        }
        let life = self.runners[runner].life + 1;
        self.say(format!("runner {runner} starts, life {life}"));
        let seed = self.rng.bits();
        let config = config(runner, life, self.now.wall.0);
        let state = &mut self.runners[runner];
        state.life = life;
        state.silent = false;
        state.agent = Some(Agent::new(config, seed));
        let snapshot = state.store.snapshot().expect("memory");
        let event = Event::Store(StoreEvent::Restored(Box::new(snapshot)));
        self.send(
            format!("store{runner}.{life}"),
            2,
            Action::Agent { runner, life, lane: Lane::Store, event },
        );
    }

    pub fn crash_runner(&mut self, runner: usize) {
        if self.runners[runner].agent.take().is_none() {
            return;
        }
        self.say(format!("runner {runner} crashes"));
        let reached = self.rng.below(self.runners[runner].pending.len() as u64 + 1) as usize;
        let state = &mut self.runners[runner];
        state.lanes.iter_mut().for_each(VecDeque::clear);
        let done: Vec<_> = state.pending.drain(..).take(reached).collect();
        for Commit { ops, .. } in done.into_iter().filter(|_| !state.stalled) {
            state.store.commit_ops(&ops).expect("memory");
            state.trace.push(ops);
        }
        state.pumping = None;
        state.stall_told = false;
        // The provider dies with its runner, or lives on until the next start ends it.
        if let Some(process) = state.process.take().filter(|p| !p.dead)
            && self.rng.percent(self.faults.linger)
        {
            self.runners[runner].orphan = Some(process.number);
        }
        if let Some(conn) = self.runners[runner].conn.take() {
            self.cut(conn, false, true);
        }
        let later = if self.faults.restart_runner_late {
            2000 + self.rng.below(20_000)
        } else {
            50 + self.rng.below(2000)
        };
        self.after_ms(later, Action::StartRunner { runner });
    }

    pub(super) fn agent_effects(&mut self, runner: usize, effects: Vec<Effect>) {
        let mut finished = false;
        for effect in effects {
            assert!(!finished, "an effect after Finish");
            match effect {
                Effect::Store(command) => self.store_command(runner, command),
                Effect::Bus(BusCommand::Connect(to)) => self.connect(runner, to.token),
                Effect::Bus(BusCommand::Send(text)) => self.frame_up(runner, text),
                Effect::Bus(BusCommand::Disconnect { .. }) => {
                    if let Some(conn) = self.runners[runner].conn {
                        self.cut(conn, false, true);
                    }
                }
                Effect::Heartbeat(command) => self.heartbeat_command(runner, command),
                Effect::Tell { .. } | Effect::Gate(_) => {}
                Effect::Pump(PumpCommand { rows, token, .. }) => {
                    assert!(self.runners[runner].pumping.is_none(), "one exchange at a time");
                    self.runners[runner].pumping = Some((rows, Vec::new(), token));
                    self.pump_next(runner);
                }
                Effect::Provider(command) => self.provider_command(runner, command),
                Effect::Log { text, level, .. } => {
                    if self.tell {
                        println!("{:>12} r{runner} {level}: {text}", self.now.tick.0);
                    }
                }
                Effect::Finish(outcome) => {
                    self.say(format!("runner {runner} finishes: {outcome:?}"));
                    self.runners[runner].finished = Some(outcome.code);
                    self.runners[runner].agent = None;
                    finished = true;
                }
            }
        }
    }

    fn store_command(&mut self, runner: usize, command: StoreCommand) {
        let life = self.runners[runner].life;
        let event = match command {
            StoreCommand::Commit(commit) => {
                self.runners[runner].pending.push_back(commit);
                if self.runners[runner].stall_told {
                    return;
                }
                return self.send(
                    format!("disk{runner}.{life}"),
                    3,
                    Action::Commit { runner, life },
                );
            }
            StoreCommand::Retry => {
                return self.send(
                    format!("disk{runner}.{life}"),
                    3,
                    Action::Commit { runner, life },
                );
            }
            // The real store reads behind the commits that were ordered before.
            StoreCommand::FetchInbox(choice) => {
                self.settle_disk(runner);
                let (rows, more) = self.runners[runner].store.inbox(&choice).expect("memory");
                StoreEvent::InboxRows { rows, more }
            }
            StoreCommand::FetchOutbox => {
                self.settle_disk(runner);
                let rows = self.runners[runner].store.outbox().expect("memory");
                StoreEvent::OutboxRows { rows: Ok(rows) }
            }
        };
        let action = Action::Agent { runner, life, lane: Lane::Store, event: Event::Store(event) };
        self.send(format!("store{runner}.{life}"), 2, action);
    }

    fn heartbeat_command(&mut self, runner: usize, command: HeartbeatCommand) {
        let life = self.runners[runner].life;
        let event = match command {
            HeartbeatCommand::Call { call, method, path, body, token, .. } => {
                if self.tell {
                    println!("{:>12} r{runner} -> call {call} {method} {path}", self.now.tick.0);
                }
                let (path, query) = path
                    .split_once('?')
                    .map_or((path.clone(), String::new()), |(p, q)| (p.into(), q.into()));
                let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
                let request = Request {
                    method: method.into(),
                    path,
                    query,
                    token: token.expose().into(),
                    body,
                    ..Default::default()
                };
                return self.http(From::Call { runner, life, call }, request);
            }
            HeartbeatCommand::ReadConfigToken => {
                Event::ConfigToken { url: None, token: Some(Secret::new(OPERATOR)) }
            }
            HeartbeatCommand::WriteToken { .. } => Event::TokenWritten(Ok(())),
        };
        self.after_ms(1, Action::Agent { runner, life, lane: Lane::Heartbeat, event });
    }

    fn provider_command(&mut self, runner: usize, command: ProviderCommand) {
        let alive = self.runners[runner].process.as_ref().filter(|p| !p.dead);
        match command {
            ProviderCommand::Spawn { process, leftover, .. } => {
                self.spawn(runner, process, leftover.is_some())
            }
            ProviderCommand::Verb { process: order, number, verb } => {
                let Some(process) = alive.filter(|p| p.order == order).map(|p| p.number) else {
                    return;
                };
                if let Verb::Deliver(delivery) = &verb {
                    self.use_tool(runner, delivery);
                }
                if verb == Verb::Probe {
                    self.tell_signs(runner);
                }
                let input = Input::Verb(number, verb);
                self.send(
                    format!("verb{runner}.{process}"),
                    1,
                    Action::Session { runner, process, input },
                );
            }
            ProviderCommand::Stop { grace_ms } => {
                if let Some(process) = alive.map(|p| p.number) {
                    let later = self.rng.below(grace_ms.min(300) + 1);
                    self.after_ms(later, Action::ProviderDies { runner, process, code: 0 });
                }
            }
        }
    }
}

pub fn config(runner: usize, life: u64, wall: i64) -> AgentConfig {
    let id = agent_name(runner);
    let tags = vec!["acp".to_string()];
    AgentConfig {
        store_note: None,
        agent_id: id.clone(),
        runner_id: format!("runner{runner}.{life}"),
        instance_id: format!("instance{runner}.{life}"),
        provider: "acp".into(),
        identity: Identity {
            agent_id: id.clone(),
            label: None,
            tags: tags.clone(),
            capabilities: Vec::new(),
            broad_targets: true,
        },
        registration: Registration {
            role: "provider".into(),
            component_id: format!("runner{runner}.{life}"),
            agent_id: Some(id),
            instance_id: format!("instance{runner}.{life}"),
            tags,
            meta: json!({"processStart": {"boot": "sim", "ticks": life}})
                .as_object()
                .cloned()
                .unwrap_or_default(),
            ..Default::default()
        },
        approval_mode: "open".into(),
        prompt: None,
        relay_url: "http://hub".into(),
        url_by_hand: false,
        token_by_hand: false,
        token: Some(Secret::new(OPERATOR)),
        token_profile: None,
        token_jti: None,
        token_expires_at: None,
        shutdown_timeout: Duration::from_secs(5),
        restart: RestartPolicy { exits_max: 1000, ..Default::default() },
        // Short, so that turns are probed and some are stuck for a while.
        stuck_after: Duration::from_secs(5),
        reply_mode: ReplyMode::Auto,
        session: SessionCapabilities { split_by_sender: runner % 2 == 1, ..Default::default() },
        in_user_terminal: false,
        started_at: wall,
    }
}
