//! The runner's machine: owns claims and status of one agent.
//!
//! Dispatch lives here; each source of events has a file of its own. What an event makes durable is
//! one commit, and what tells of it waits for that ([`CommitQueue`]).

mod commands;
pub mod config;
mod control;
pub mod effect;
pub mod event;
mod generations;
mod hooks;
mod http_calls;
mod inbox;
mod life;
mod outbox;
mod outgoing;
mod polling;
mod posted;
pub mod prompt;
pub(in crate::core) mod prompt_text;
mod relay_link;
mod shorten;
mod starts;
mod status;
mod stop;
pub mod store;
mod supervisor;
#[cfg(test)]
mod tests;
mod timer;
mod tokens;
pub mod tracker;
mod turn;

use self::config::AgentConfig;
use self::effect::{Effect, Outcome};
use self::event::{Event, Lane, StoreEvent};
use self::store::{Snapshot, StoreOp};
use self::timer::Timer;
use self::tracker::Tracker;
use super::commit::{Closed, CommitQueue};
use super::limits::*;
use super::rng::Rng;
use super::session::{Approval, SessionEvent};
use super::store::StoreError;
use super::time::{Now, Tick};
use super::timers::{Timed, Timers};
use super::{Cause, Machine};
use crate::wire::api::{DetailedStatus, StatusSource};
use crate::wire::control::LogLevel;

/// One agent: owns its claims, its status, its provider's process and its part of the conversation
/// with the relay. What every machine may expect and has to keep stands at [`Machine`].
///
/// **In**, lane by lane ([`event::Lane`]):
/// - the store: first of all [`StoreEvent::Restored`], before which only the store and `main` are
///   heard; then `Committed` with the newest number that is durable, or `Stalled` until it is asked
///   again;
/// - the control port: requests of hooks, tools and people, each with a ticket that is answered
///   once, or stays as a peer until it is closed;
/// - the bus: `Connected` or `Lost` for every connect, then frames, at last `Lost`, unless it was
///   told to disconnect;
/// - HTTP calls and the outbox pump: one answer for every call and exchange; one of each is under
///   way;
/// - the provider: `Spawned` or `SpawnFailed` for every start, session events, one exit. All of
///   them belong to the newest process, since an edge hosts one at a time;
/// - `main`: wishes to stop, and threads that ended although nobody told them to.
///
/// **Out** ([`Effect`]): commands, grouped by the edge that gets them. In the effects of one event
/// what may go out at once comes first, in the order in which it was decided, then the commit.
/// Everything that tells of a change (acknowledgements, answers, verbs, the start of the provider)
/// comes behind the commit of that change, as effects of the event that says it is durable
/// ([`CommitQueue`]).
///
/// After every event `Agent::settle` drives what may follow from any of them, always in this order:
/// deliver the next batch, send the outbox, make the next call, publish the status, go on with the
/// stop. So a handler only changes state; it does not have to know who waits for that.
///
/// The end is [`Effect::Finish`], once and last. Until then a stop goes through phases with a limit
/// each: the provider ends, and the relay hears the last.
pub struct Agent {
    config: AgentConfig,
    /// The time of the event at hand.
    now: Now,
    rng: Rng,
    /// Effects of the event at hand that may go out at once.
    out: Vec<Effect>,
    commits: CommitQueue<StoreOp, Effect>,
    timers: Timers<Timer, { Timer::COUNT }>,
    restored: bool,
    finished: bool,
    generations: generations::Generations,
    inbox: inbox::Inbox,
    turn: turn::Turns,
    prompt: prompt::FirstPrompt,
    relay_link: relay_link::RelayLink,
    http_calls: http_calls::HttpCalls,
    outbox: outbox::Outbox,
    supervisor: supervisor::Supervisor,
    commands: commands::Commands,
    tokens: tokens::Tokens,
    tracker: Tracker,
    approvals: Vec<Approval>,
    hooks: hooks::Hooks,
    status: status::Publisher,
    life: life::Life,
    stop: Option<stop::Stop>,
    obligations: Vec<crate::wire::api::Obligation>,
    /// Numbers the idempotency keys of this process.
    mirrored: u64,
}

impl Agent {
    /// An agent that waits for [`StoreEvent::Restored`].
    pub fn new(config: AgentConfig, seed: u64) -> Agent {
        let rng = Rng::new(seed);
        Agent {
            supervisor: supervisor::Supervisor::new(config.restart.clone()),
            tokens: tokens::Tokens::new(&config),
            status: status::Publisher::default(),
            config,
            now: Now::default(),
            rng,
            out: Vec::new(),
            commits: CommitQueue::default(),
            timers: Timers::default(),
            restored: false,
            finished: false,
            generations: generations::Generations::default(),
            inbox: inbox::Inbox::default(),
            turn: turn::Turns::default(),
            prompt: Default::default(),
            relay_link: relay_link::RelayLink::default(),
            http_calls: http_calls::HttpCalls::default(),
            outbox: outbox::Outbox::default(),
            commands: commands::Commands::default(),
            tracker: Tracker::default(),
            approvals: Vec::new(),
            hooks: hooks::Hooks::default(),
            life: life::Life::default(),
            stop: None,
            obligations: Vec::new(),
            mirrored: 0,
        }
    }

    /// Commits that are under way; never more than `COMMITS_IN_FLIGHT_MAX`.
    pub fn commits_in_flight(&self) -> usize {
        self.commits.in_flight()
    }

    fn log(&mut self, level: LogLevel, component: &str, text: impl Into<String>) {
        self.out.push(Effect::Log { level, component: component.into(), text: text.into() });
    }

    /// Closes an event: one commit for its changes, and everything that waits for it behind it.
    fn settle(&mut self, now: Now) -> Vec<Effect> {
        if self.restored && !self.finished {
            self.drain(now);
            self.pump_outbox();
            self.launch_call();
            self.watch_turn(now);
            self.publish(now);
            self.advance_stop(now);
        }
        let Closed { commit, visible } = self.commits.close(now.tick);
        self.out.extend(commit.map(Effect::from));
        self.out.extend(visible);
        std::mem::take(&mut self.out)
    }

    fn on_store(&mut self, now: Now, event: StoreEvent) {
        match event {
            StoreEvent::Restored(snapshot) => self.on_restored(now, *snapshot),
            StoreEvent::Committed { upto, dropped } => {
                if self.commits.on_accepted() {
                    self.log(LogLevel::Warn, "runner", "store accepts changes again");
                }
                while let Some(durable) = self.commits.next_durable(upto, now.tick) {
                    self.out.extend(durable.after);
                }
                self.tell_begun(upto);
                self.on_outbox_dropped(dropped);
            }
            StoreEvent::Broken(error) => self.on_store_broken(now, error),
            StoreEvent::Stalled(Cause::Store(error)) if error.kind.retry().is_none() => {
                self.on_store_broken(now, error)
            }
            StoreEvent::Stalled(cause) => {
                let news = format!(
                    "store cannot be written: {cause}; nothing new is accepted until it can"
                );
                if self.commits.on_stalled(now.tick, cause) {
                    self.log(LogLevel::Error, "runner", news);
                }
            }
            StoreEvent::InboxRows { rows, more } => self.on_inbox_rows(rows, more),
            StoreEvent::OutboxRows { rows } => self.on_outbox_rows(now, rows),
        }
    }

    /// Nothing that waits for the disk was called done. The next start sets a damaged file aside
    /// and goes on.
    fn on_store_broken(&mut self, now: Now, error: StoreError) {
        self.log(LogLevel::Error, "runner", error.text.clone());
        self.commits.on_broken(now.tick, error.clone().into());
        if !self.restored {
            return self.finish(1, error.text);
        }
        self.begin_stop(now, stop::Why::StoreBroken(error.text));
    }

    fn on_restored(&mut self, now: Now, snapshot: Snapshot) {
        self.restored = true;
        self.outbox.restore(snapshot.outbox_pending, snapshot.outbox_poisoned);
        self.generations.restore(snapshot.generations, &snapshot.notes);
        self.inbox.restore(snapshot.waiting, snapshot.more_waiting, snapshot.settled);
        self.restore_turn(snapshot.unsettled);
        self.restore_held(now, &snapshot.notes);
        self.restore_last(&snapshot.notes);
        self.restore_answered(&snapshot.notes);
        self.restore_commands(now, snapshot.commands);
        self.restore_prompt(&snapshot.notes, snapshot.provider.as_ref());
        self.supervisor.restore(snapshot.provider, &snapshot.notes);
        self.tokens.restore(now, &self.config, &snapshot.notes);
        self.begin_tokens(now);
        self.begin_supervision();
        self.status.touch();
    }

    fn on_session_event(&mut self, now: Now, event: SessionEvent) {
        // What a session gives as evidence stands just before what it is evidence of.
        let said = self.take_said(&event);
        self.note_sign_of_life(now, &event);
        match event {
            SessionEvent::Opened(opened) => self.on_opened(now, opened, said),
            SessionEvent::OpenFailed { reason, fault } => self.on_open_failed(now, reason, fault),
            SessionEvent::Accepted { batch, key, evidence } => {
                self.on_taken(batch, &key, &evidence)
            }
            SessionEvent::Refused { batch, key, why } => self.on_refused(now, batch, &key, &why),
            SessionEvent::TurnStarted => self.on_turn_started(said),
            SessionEvent::Evidence(text) => self.status.note_said(text),
            SessionEvent::Work { kind, id, label, runs } => self.on_work(kind, id, label, runs),
            SessionEvent::Timeline(status) => self.status.timeline(status, now),
            SessionEvent::ConversationChanged { session } => self.on_moved(session),
            SessionEvent::EndedByUser { reason } => self.on_left(now, &reason),
            SessionEvent::HookAnswer { ticket, answer } => self.on_hook_answer(ticket, answer),
            SessionEvent::Announce { batch } => self.announce(batch),
            SessionEvent::ProviderState(state) => self.on_provider_state(state),
            SessionEvent::TurnEnded { batch, end, text } => {
                self.on_turn_ended(now, batch, end, text, said)
            }
            SessionEvent::Mirror(mirror) => self.on_mirror(now, mirror),
            SessionEvent::ApprovalOpened(approval) => {
                self.log(
                    LogLevel::Info,
                    "runner",
                    format!("approval wanted id={} kind={}", approval.id, approval.kind),
                );
                if self.approvals.len() < APPROVALS_MAX {
                    self.approvals.push(approval);
                }
                let text = "the session asks and waits".into();
                self.note_evidence(DetailedStatus::Blocked, StatusSource::Session, text);
            }
            SessionEvent::ApprovalClosed { id, reason } => {
                self.log(
                    LogLevel::Info,
                    "runner",
                    format!("approval closed id={id} reason={reason}"),
                );
                self.approvals.retain(|approval| approval.id != id);
                self.status.touch();
            }
            SessionEvent::Context(context) => self.status.set_context(context),
            SessionEvent::Fact { name, value } => self.status.set_fact(name, value),
            SessionEvent::Answered { verb, result } => self.on_answered(now, verb, result),
            SessionEvent::Log { level, text } => self.log(level, "provider", text),
        }
    }
}

impl Machine for Agent {
    type Event = Event;
    type Effect = Effect;
    type Lane = Lane;

    fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        if self.finished {
            return Vec::new();
        }
        self.now = now;
        match event {
            Event::Store(event) => self.on_store(now, event),
            Event::Control(ticket, request) => self.on_control(now, ticket, request),
            Event::Bus(event) => self.on_bus(now, event),
            Event::Called { call, result } => self.on_called(now, call, result),
            Event::Pumped(result) => self.on_pumped(now, result),
            Event::Provider(event) => self.on_provider(now, event),
            Event::ConfigToken { url, token } => self.on_config(now, url, token),
            Event::TokenWritten(result) => self.on_token_written(now, result),
            Event::StopRequested(reason) => self.begin_stop(now, stop::Why::Asked(reason)),
            Event::ThreadEnded { name, panic } => {
                let said = panic.map(|text| format!(" ({text})")).unwrap_or_default();
                let message = format!(
                    "thread {name} ended unexpectedly{said}; this is a bug, please report it"
                );
                self.begin_stop(now, stop::Why::Bug(message));
            }
        }
        self.settle(now)
    }

    fn wake(&mut self, now: Now) -> Vec<Effect> {
        if self.finished {
            return Vec::new();
        }
        self.now = now;
        self.fire_due(now.tick);
        self.settle(now)
    }

    fn next_deadline(&self) -> Option<Tick> {
        if self.finished { None } else { self.first_deadline() }
    }

    fn may_take(&self, lane: Lane) -> bool {
        match lane {
            Lane::Store | Lane::Main => true,
            _ if !self.restored => false,
            Lane::Control => self.commits.has_credit(1),
            Lane::Bus | Lane::Heartbeat | Lane::Pump | Lane::Provider => {
                self.commits.has_credit(COMMITS_RESERVED) || crate::planted::is("unbounded-lane")
            }
        }
    }
}

impl Agent {
    fn finish(&mut self, code: u8, message: impl Into<String>) {
        if !self.finished {
            self.finished = true;
            self.out.push(Effect::Finish(Outcome { code, message: message.into() }));
        }
    }
}
