//! Periodic work: what has ended, what nobody asks for any more, what retention takes.

use std::time::Duration;

use super::Hub;
use super::event::{HubOp, Retired};
use super::messages::Unresolved;
use super::timer::Timer;
use crate::core::limits::*;

impl Hub {
    /// Periodic work: forgets agents, queues and unresolved messages, expires commands and tokens.
    pub(super) fn sweep_rest(&mut self) {
        let soonest = self.peers.values().filter_map(|peer| peer.token.expires_at).min();
        self.timers.set(Timer::Sweep, self.now.tick + PING_INTERVAL);
        self.sweep_at_end_of(soonest);
        let wall = self.now.wall.0;
        let forgotten: Vec<String> = self
            .agents
            .iter()
            .filter(|(_, a)| {
                a.peer.is_none() && a.stored.last_seen + (FORGOTTEN_AFTER.as_millis() as i64) < wall
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in forgotten {
            self.delete_agent(&id);
        }
        let old: Vec<String> = self
            .queues
            .iter()
            .filter(|(_, q)| q.until.is_some_and(|until| until < wall))
            .map(|(id, _)| id.clone())
            .collect();
        for recipient in old {
            self.queues.remove(&recipient);
            self.commits.write(HubOp::QueueDrop { recipient });
        }
        let gone: Vec<Unresolved> =
            self.unresolved.extract_if(.., |message| message.until < wall).collect();
        for message in gone {
            self.commits.write(HubOp::Unresolved { message: message.id, until: None });
        }
        self.recount();
        self.forget_lines();
        self.senders.retain(|_, until| *until > wall);
        self.loops.forget_old(self.now.tick);
        self.expire_commands();
        self.expire_tokens();
        self.rates.forget_full(self.now.tick);
        self.look_at_store();
    }

    /// Sweeps when this token ends: connections end with their token, not some time later.
    pub(super) fn sweep_at_end_of(&mut self, expires_at: Option<i64>) {
        let Some(end) = expires_at else { return };
        let left =
            (end * 1000 - self.now.wall.0).clamp(50, PING_INTERVAL.as_millis() as i64) as u64;
        let at = self.now.tick + Duration::from_millis(left);
        self.timers.set_by(Timer::Sweep, at);
    }

    /// Removes messages whose time of retention is over, a few at a time.
    pub(super) fn start_retention(&mut self) {
        self.timers.set(Timer::Retention, self.now.tick + RETENTION_INTERVAL);
        let before = |kept: Duration| self.now.wall.0 - kept.as_millis() as i64;
        let (session_before, before) = (before(SESSION_KEPT), before(MESSAGES_KEPT));
        self.commits.write(HubOp::Retain { session_before, before, limit: RETENTION_BATCH });
    }

    pub(super) fn on_retired(&mut self, retired: Retired) {
        self.meter.retired += retired.count;
        for message in retired.offers {
            self.forget_offer(message);
        }
        for (recipient, message) in retired.unacknowledged {
            if let Some(queue) = self.queues.get_mut(&recipient) {
                queue.ids.remove(&message);
            }
        }
        if retired.more {
            self.timers.set(Timer::Retention, self.now.tick + RETENTION_AGAIN);
        }
    }
}
