//! Hooks and monitors of the provider: their reports go to the session, and the answers they wait
//! for come from it.

use crate::core::http::GateCommand;
use std::collections::{BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::Agent;
use super::effect::Effect;
use super::event::StopReason;
use super::outgoing::DONE;
use super::stop::Why;
use super::store::StoreOp;
use crate::core::agent::tracker::Work;
use crate::core::ids::{BatchNumber, MessageId, MessageRef, PeerId, Ticket};
use crate::core::limits::CONTROL_HELD_MAX;
use crate::core::session::Verb;
use crate::core::time::{Now, Wall};
use crate::wire::api::Obligation;
use crate::wire::control::LogLevel;

/// Hooks that wait and monitors: connections to the control port that outlast a request.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    waiting: BTreeSet<Ticket>,
    /// Monitors by peer.
    monitors: BTreeSet<PeerId>,
    /// The batch that the session wants to have announced.
    announced: Option<BatchNumber>,
    /// Messages that the agent has answered with its own tool, or that the relay has told as owed
    /// once, newest last: of these the snapshot knows better than we.
    known: VecDeque<MessageId>,
    /// Those that it has answered, newest last; generation 0: not known of which relay's data.
    replied: VecDeque<(MessageId, u32)>,
}

/// Answered and owed messages that are remembered.
const KNOWN_MAX: usize = 512;
/// Name of the note that lists the messages that the agent has answered itself and that are not
/// settled yet.
const ANSWERED_NOTE: &str = "answered";
/// A hook that claims to be older than that has no clock that could be believed, ms.
const HOOK_AGE_MS_MAX: i64 = 600_000;
/// Monitors of one agent; more than one is a mistake, but a harmless one.
const MONITORS_MAX: usize = 8;

impl Agent {
    /// Takes the report of a hook. One that waits stays connected until the session answers; the
    /// others were answered at the gate.
    pub(super) fn on_hook(&mut self, ticket: Ticket, event: String, body: Value, waits: bool) {
        let of = body.get("providerSessionId").and_then(Value::as_str).filter(|id| !id.is_empty());
        let stale = of.is_some_and(|id| id != self.supervisor.record.provider_session)
            || !self.supervisor.is_alive();
        if waits {
            self.out.push(Effect::Gate(GateCommand::Accept { ticket }));
            if stale || self.hooks.waiting.len() >= CONTROL_HELD_MAX {
                self.out.push(Effect::close(ticket.peer()));
                return;
            }
            self.hooks.waiting.insert(ticket);
        }
        if event == "replied" {
            let ids = body
                .pointer("/payload/ids")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .map(MessageId);
            let told = body.pointer("/payload/generation").and_then(Value::as_str);
            let all: Vec<(MessageId, u32)> = ids
                .take(KNOWN_MAX)
                .map(|id| (id, self.meant(id, told).map_or(0, |at| at.generation)))
                .collect();
            return self.note_answered(all);
        }
        if !stale {
            let payload = body.get("payload").cloned().unwrap_or(Value::Null);
            let at = self.hook_time(&body);
            self.tell_hook(if waits { ticket } else { Ticket::NOBODY }, event, payload, at);
        }
    }

    /// The relay has told what is owed.
    pub(super) fn note_owed(&mut self) {
        for owed in &self.obligations {
            if !self.hooks.known.contains(&owed.message_id) {
                self.hooks.known.push_back(owed.message_id);
            }
        }
        let surplus = self.hooks.known.len().saturating_sub(KNOWN_MAX);
        self.hooks.known.drain(..surplus);
    }

    /// What the agent owes: the snapshot, and what came since and the relay has not told yet,
    /// without what it has answered. From memory alone: a turn may be over before the relay was
    /// asked.
    pub(super) fn owed(&self) -> Vec<Obligation> {
        let mut all = self.obligations.clone();
        let here = self
            .under_way()
            .filter(|message| message.expects_reply() && !self.hooks.known.contains(&message.id));
        all.extend(here.map(|message| Obligation {
            message_id: message.id,
            from: message.from.clone(),
            subject: message.subject.clone(),
            created_at: message.created_at,
        }));
        all.retain(|owed| !self.hooks.replied.iter().any(|(id, _)| *id == owed.message_id));
        all
    }

    /// The agent has answered these with its own tool. Durable as long as they are not settled:
    /// after a crash nobody else may be there to say so.
    pub(super) fn note_answered(&mut self, all: Vec<(MessageId, u32)>) {
        self.hooks.replied.retain(|known| !all.contains(known));
        self.hooks.replied.extend(all);
        let surplus = self.hooks.replied.len().saturating_sub(KNOWN_MAX);
        self.hooks.replied.drain(..surplus);
        self.keep_answered();
    }

    fn keep_answered(&mut self) {
        let open =
            |(id, _): &&(MessageId, u32)| self.given(*id).iter().any(|given| given.state != DONE);
        let open: Vec<&(MessageId, u32)> = self.hooks.replied.iter().filter(open).collect();
        let value = (!open.is_empty()).then(|| json!(open).to_string());
        self.commits.write(StoreOp::PutMeta { key: ANSWERED_NOTE.into(), value });
    }

    pub(super) fn restore_answered(&mut self, notes: &[(String, String)]) {
        let text =
            notes.iter().find(|(key, _)| key == ANSWERED_NOTE).map(|(_, text)| text.as_str());
        self.hooks.replied =
            text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    }

    /// The agent has answered it with its own tool.
    pub(super) fn has_answered(&self, at: MessageRef) -> bool {
        self.hooks.replied.iter().any(|(id, generation)| {
            *id == at.id && (*generation == 0 || *generation == at.generation)
        })
    }

    /// Forgets that the agent has answered these messages: it is given them once more.
    pub(super) fn forget_answered(&mut self, at: MessageRef) {
        if self.has_answered(at) {
            self.hooks.replied.retain(|(id, _)| *id != at.id);
            self.keep_answered();
        }
    }

    /// When the hook ran, as it says; one that does not say, or says the impossible, ran just now.
    fn hook_time(&self, body: &Value) -> Wall {
        let now = self.now.wall;
        let told = body.get("at").and_then(Value::as_i64).map(Wall);
        told.filter(|at| *at <= now && now.0 - at.0 <= HOOK_AGE_MS_MAX).unwrap_or(now)
    }

    pub(super) fn tell_hook(&mut self, ticket: Ticket, event: String, payload: Value, at: Wall) {
        let (_, order) = self.supervisor.verb(Verb::Hook { ticket, event, payload, at });
        self.commits.defer(order);
    }

    pub(super) fn on_hook_answer(&mut self, ticket: Ticket, answer: Option<Value>) {
        if self.hooks.waiting.remove(&ticket) {
            let said = answer.map(|answer| {
                Effect::Gate(GateCommand::PeerSend {
                    peer: ticket.peer(),
                    text: format!("data: {answer}\n\n").into(),
                })
            });
            self.out.extend(said);
            self.out.push(Effect::close(ticket.peer()));
        }
    }

    /// Drops the hooks and monitors of a process that is gone.
    pub(super) fn hooks_part(&mut self) {
        self.hooks.announced = None;
        let monitors = std::mem::take(&mut self.hooks.monitors);
        let waiting = std::mem::take(&mut self.hooks.waiting).into_iter().map(Ticket::peer);
        let all: Vec<PeerId> = waiting.chain(monitors).collect();
        self.out.extend(all.into_iter().map(Effect::close));
    }

    pub(super) fn on_gone(&mut self, ticket: Ticket) {
        self.hooks.monitors.remove(&ticket.peer());
        if self.hooks.waiting.remove(&ticket) {
            let (_, order) = self.supervisor.verb(Verb::HookGone { ticket });
            self.commits.defer(order);
        }
    }

    /// A monitor of another process of the provider is sent away; one that names none is of an
    /// older plugin and stays.
    pub(super) fn on_monitor(&mut self, ticket: Ticket, session: Option<String>) {
        self.out.push(Effect::Gate(GateCommand::Accept { ticket }));
        let stale =
            session.is_some_and(|session| session != self.supervisor.record.provider_session);
        if stale || self.hooks.monitors.len() >= MONITORS_MAX {
            self.out.push(Effect::close(ticket.peer()));
            return;
        }
        self.hooks.monitors.insert(ticket.peer());
        if let Some((batch, messages)) =
            self.unconfirmed().filter(|(batch, _)| self.hooks.announced == Some(*batch))
        {
            self.announce_to(ticket.peer(), batch, &messages);
        }
    }

    /// That a monitor printed something does not prove that the model saw it; it is only logged.
    pub(super) fn on_monitor_said(&mut self, text: &str) {
        let kind = serde_json::from_str::<Value>(text)
            .ok()
            .and_then(|frame| frame.get("type").and_then(Value::as_str).map(str::to_string));
        if kind.as_deref() == Some("message.delivered") {
            self.log(LogLevel::Debug, "provider", "a monitor has printed what waits");
        }
    }

    /// Tells every monitor which messages wait.
    pub(super) fn announce(&mut self, batch: BatchNumber) {
        self.hooks.announced = Some(batch);
        let Some((_, messages)) = self.unconfirmed().filter(|(number, _)| *number == batch) else {
            return;
        };
        for peer in self.hooks.monitors.iter().copied().collect::<Vec<_>>() {
            self.announce_to(peer, batch, &messages);
        }
    }

    fn announce_to(&mut self, peer: PeerId, batch: BatchNumber, messages: &[Value]) {
        let frame = json!({"type": "message.deliver", "deliveryId": format!("batch-{batch}"), "messages": messages});
        self.commits
            .defer(Effect::Gate(GateCommand::PeerSend { peer, text: frame.to_string().into() }));
    }

    /// Subagents and the like; they keep the agent busy, but no message waits for them.
    pub(super) fn on_work(&mut self, kind: &str, id: String, label: String, runs: bool) {
        if runs {
            self.tracker.start_work(Work {
                kind: kind.into(),
                id,
                label: Some(label),
                metadata: json!({}),
                ..Default::default()
            })
        } else {
            self.tracker.finish_work(kind, &id)
        }
        self.status.touch();
    }

    /// A person ended the provider at its terminal, so the runner ends too.
    pub(super) fn on_left(&mut self, now: Now, reason: &str) {
        self.log(LogLevel::Info, "lifecycle", format!("the provider was left: {reason}"));
        self.begin_stop(now, Why::Asked(StopReason::Left));
    }
}
