//! The deadlines of a hub: the one list of them.

use super::Hub;
use super::event::Effect;
use crate::core::hub::event::StoreCommand;
use crate::core::limits::COMMITS_RESERVED;
use crate::core::time::Tick;
use crate::core::timers::{Timed, timers};

timers! {
    /// What a hub waits for, in the order in which it is done when several are due.
    pub(crate) enum Timer {
        /// A commit that failed is tried again.
        StoreRetry,
        /// Acknowledgements found no commit to go with.
        LateAcks,
        /// What two agents write to each other without end has waited.
        LoopDelay,
        /// A claim ends.
        ClaimEnd,
        /// An agent counts as offline.
        Presence,
        /// Whatever else ends some time is looked through.
        Sweep,
        /// Old messages go.
        Retention,
        /// The end waits no longer for the disk.
        StopLimit,
    }
}

impl Timed for Hub {
    type Timer = Timer;

    fn deadline(&self, timer: Timer) -> Option<Tick> {
        let has_credit = self.commits.has_credit(COMMITS_RESERVED);
        match timer {
            Timer::StoreRetry => self.commits.retry_at(),
            Timer::StopLimit => self.timers.at(timer),
            // Only what needs no commit may fire while the store has no credit.
            _ if !has_credit => None,
            Timer::LoopDelay => self.loops.next(),
            Timer::ClaimEnd => self.next_claim_end(),
            Timer::Presence => self.next_presence(),
            Timer::LateAcks | Timer::Sweep | Timer::Retention => self.timers.at(timer),
        }
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::StoreRetry => {
                self.commits.forget_retry();
                self.out.push(Effect::Store(StoreCommand::Retry));
            }
            Timer::LateAcks => {
                self.timers.clear(timer);
                if !crate::planted::is("forgotten-late-acks") {
                    self.commits.hurry();
                }
            }
            Timer::LoopDelay => self.release_held(),
            Timer::ClaimEnd => self.sweep_claims(),
            Timer::Presence => self.sweep_presence(),
            Timer::Sweep => self.sweep_rest(),
            Timer::Retention => self.start_retention(),
            // The hub ends with this event, whatever still waits.
            Timer::StopLimit => {}
        }
    }
}
