//! Disks that take their time, fill up, and keep a prefix of what was being written in a crash.

use agent_relay::core::Cause;
use agent_relay::core::agent::event::{Event, Lane, StoreEvent};
use agent_relay::core::hub::event::{
    Event as HubEvent, Lane as HubLane, StoreEvent as HubStoreEvent,
};
use agent_relay::hub::store::Committed;

use super::World;
use super::schedule::Action;

impl World {
    pub(super) fn commit(&mut self, runner: usize, life: u64) {
        let state = &mut self.runners[runner];
        if state.life != life || state.agent.is_none() || state.pending.is_empty() {
            return;
        }
        let event = if state.stalled {
            state.stall_told = true;
            StoreEvent::Stalled(Cause::Failed("disk full".into()))
        } else {
            let commits: Vec<_> = state.pending.drain(..).collect();
            state.stall_told = false;
            state.trace.extend(commits.iter().map(|commit| commit.ops.clone()));
            let dropped = state.store.commit(&commits).expect("memory");
            StoreEvent::Committed { upto: commits.last().expect("not empty").number, dropped }
        };
        self.send(
            format!("store{runner}.{life}"),
            2,
            Action::Agent { runner, life, lane: Lane::Store, event: Event::Store(event) },
        );
    }

    pub(super) fn hub_commit(&mut self, life: u64) {
        if self.hub_life != life || self.hub.is_none() || self.hub_pending.is_empty() {
            return;
        }
        let event = if self.hub_stalled {
            self.hub_stall_told = true;
            HubStoreEvent::Stalled(Cause::Failed("disk full".into()))
        } else {
            let commits: Vec<_> = self.hub_pending.drain(..).collect();
            self.hub_stall_told = false;
            let Committed { existing, unattached, unseen, retired } =
                self.hub_persist(&commits, true);
            HubStoreEvent::Committed {
                upto: commits.last().expect("not empty").number,
                existing,
                unattached,
                unseen,
                retired,
            }
        };
        let event = HubEvent::Store(event);
        self.send(format!("hub{life}"), 2, Action::Hub { life, lane: HubLane::Store, event });
    }

    /// Commits that stand in front of a read are carried out first, unless the disk is full: then
    /// the read waits too.
    pub(super) fn settle_disk(&mut self, runner: usize) {
        let life = self.runners[runner].life;
        if !self.runners[runner].pending.is_empty() && !self.runners[runner].stalled {
            self.commit(runner, life);
        }
    }
}
