//! The deadlines of an agent: the one list of them.

use super::Agent;
use super::effect::{Effect, StoreCommand};
use crate::core::limits::COMMITS_RESERVED;
use crate::core::time::Tick;
use crate::core::timers::{Timed, timers};

timers! {
    /// What an agent waits for, in the order in which it is done when several are due.
    pub(crate) enum Timer {
        /// A commit that failed is tried again.
        StoreRetry,
        /// The relay is asked which answers are owed, once for several changes.
        Obligations,
        /// The next attempt at the bus, or the end of the patience with a registration.
        Connection,
        /// A heartbeat over the bus.
        Heartbeat,
        /// A whole round over HTTP while there is no bus.
        LivenessRound,
        /// A round that only tells a changed status.
        TellStatus,
        /// The next attempt to get a token.
        TokenRetry,
        /// The token is to be renewed.
        TokenRenewal,
        /// The next attempt to write the token file of the session.
        TokenFileRetry,
        /// The configuration file is looked at again.
        ConfigLook,
        /// The provider starts although no token is decided.
        TokenWait,
        /// The provider is started again.
        ProviderStart,
        /// A claim ends.
        ClaimLapse,
        /// Messages that could not be delivered are tried again.
        DeliveryRetry,
        /// A batch is settled whether or not the relay has said what is owed.
        SettleBatch,
        /// Claims of tasks are renewed.
        ClaimRenewal,
        /// The outbox is tried again.
        OutboxRetry,
        /// Calls that did not reach the relay are made again.
        CallsRetry,
        /// The session is probed while a turn runs.
        Probe,
        /// A command has taken too long.
        CommandLimit,
        /// A phase of the stop is over.
        StopLimit,
    }
}

impl Timed for Agent {
    type Timer = Timer;

    fn deadline(&self, timer: Timer) -> Option<Tick> {
        let has_credit = self.commits.has_credit(COMMITS_RESERVED);
        match timer {
            Timer::StoreRetry => self.commits.retry_at(),
            Timer::StopLimit => self.stop.as_ref().map(|stop| stop.deadline()),
            // Only what needs no commit may fire while the store has no credit.
            _ if !has_credit => None,
            Timer::Connection => self.relay_link.deadline(),
            Timer::Heartbeat => self.timers.at(timer).filter(|_| self.relay_link.is_registered()),
            Timer::LivenessRound | Timer::TellStatus => {
                self.timers.at(timer).filter(|_| self.relay_link.may_poll())
            }
            Timer::ProviderStart => self.supervisor.deadline().filter(|_| self.stop.is_none()),
            Timer::ClaimLapse => self.tracker.next_expiry(),
            Timer::CommandLimit => self.commands.deadline(),
            Timer::Obligations
            | Timer::TokenRetry
            | Timer::TokenRenewal
            | Timer::TokenFileRetry
            | Timer::ConfigLook
            | Timer::TokenWait
            | Timer::DeliveryRetry
            | Timer::SettleBatch
            | Timer::ClaimRenewal
            | Timer::OutboxRetry
            | Timer::CallsRetry
            | Timer::Probe => self.timers.at(timer),
        }
    }

    fn fire(&mut self, timer: Timer) {
        let now = self.now;
        match timer {
            Timer::StoreRetry => {
                self.commits.forget_retry();
                self.out.push(Effect::Store(StoreCommand::Retry));
            }
            Timer::Obligations => {
                self.timers.clear(timer);
                self.ask_obligations();
            }
            Timer::Connection => self.on_connection_due(now),
            Timer::Heartbeat => self.on_heartbeat_due(now),
            Timer::LivenessRound => self.on_liveness_due(now),
            Timer::TellStatus => self.begin_round(false),
            Timer::TokenRetry => {
                self.timers.clear(timer);
                self.make_token();
            }
            Timer::TokenRenewal => self.on_renewal_due(),
            Timer::TokenFileRetry => self.write_token_file(),
            Timer::ConfigLook => self.on_look_due(),
            Timer::TokenWait => {
                self.timers.clear(timer);
                self.begin_supervision();
            }
            Timer::ProviderStart => self.spawn(),
            Timer::ClaimLapse => self.on_claims_lapsed(now),
            Timer::DeliveryRetry => self.timers.clear(timer),
            Timer::SettleBatch => self.on_settle_due(now),
            Timer::ClaimRenewal => self.on_claim_renewal_due(now),
            Timer::OutboxRetry => self.on_outbox_due(),
            Timer::CallsRetry => self.on_calls_due(),
            Timer::Probe => self.on_probe_due(now),
            Timer::CommandLimit => self.on_command_late(now),
            // The stop goes on at the end of every event.
            Timer::StopLimit => {}
        }
    }
}
