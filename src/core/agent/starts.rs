//! What follows a start that has failed, or a provider that has ended. No start is repeated as it
//! was while its cause stands: each kind of cause has its next step.

use super::Agent;
use crate::core::agent::supervisor::State;
use crate::core::agent::tracker::Status;
use crate::core::backoff;
use crate::core::session::StartFault;
use crate::core::time::Now;
use crate::wire::control::LogLevel;

/// What the next start is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextStart {
    /// As before, after a pause: what was in the way may be gone by then.
    Same,
    /// At once, with a new conversation.
    Anew,
    /// At once, with its sockets in another folder.
    Elsewhere,
    /// At once, told to listen at a port.
    AtPort,
    /// There is none before a person has changed something and asks for it.
    Parked,
}

/// The next step of each kind of cause. `at_port`: the start that failed was told to listen at a
/// port; there is no third way.
fn next_start(fault: StartFault, at_port: bool) -> NextStart {
    match fault {
        StartFault::Passing => NextStart::Same,
        _ if crate::planted::is("repeated-start") => NextStart::Same,
        StartFault::Conversation => NextStart::Anew,
        StartFault::SocketFolder { is_last: false } => NextStart::Elsewhere,
        StartFault::Listening if !at_port || crate::planted::is("ports-for-ever") => {
            NextStart::AtPort
        }
        StartFault::SocketFolder { is_last: true } | StartFault::Listening | StartFault::Person => {
            NextStart::Parked
        }
    }
}

impl Agent {
    /// Nothing runs any more: starts again by what was in the way, or gives up. Whatever the cause,
    /// there are only so many ends in a while.
    pub(super) fn decide_next_start(&mut self, now: Now, reason: String, fault: StartFault) {
        let next = next_start(fault, self.supervisor.at_port);
        self.supervisor.note_exit(now.tick);
        if next == NextStart::Parked || self.supervisor.is_exhausted() {
            return self.park(now, reason, next == NextStart::Parked);
        }
        match next {
            NextStart::Anew => self.supervisor.refused = Some(reason.clone()),
            NextStart::Elsewhere => self.supervisor.folder += 1,
            NextStart::AtPort => self.supervisor.at_port = true,
            NextStart::Same | NextStart::Parked => {}
        }
        self.status.timeline("provider.restart_decision", now);
        if next != NextStart::Same {
            let how = match next {
                NextStart::Anew => "a new conversation is begun",
                NextStart::AtPort => "its server is started at a port, behind a token",
                _ => "its sockets go elsewhere",
            };
            self.log(LogLevel::Warn, "lifecycle", format!("{reason}: {how}"));
            return self.spawn();
        }
        let pause = backoff::restart(
            self.supervisor.attempt,
            self.supervisor.policy.first,
            self.supervisor.policy.most,
            &mut self.rng,
        );
        self.supervisor.attempt += 1;
        self.supervisor.restarting = true;
        self.supervisor.state = State::Waiting { until: now.tick + pause };
        self.supervisor.why = format!("{reason}; next start in {:.1} s", pause.as_secs_f64());
        self.tracker.set_terminal(Some(Status::Offline));
        let (ms, exits) = (pause.as_millis(), self.supervisor.exits());
        self.log(
            LogLevel::Warn,
            "lifecycle",
            format!("restart in {ms} ms, exit {exits} in the window"),
        );
    }

    /// Given up. An agent that never worked ends its runner with exit 1; one that did stays
    /// reachable, parked.
    fn park(&mut self, now: Now, reason: String, for_good: bool) {
        self.supervisor.state = State::Parked;
        self.supervisor.restarting = false;
        // Whoever asks for a start has changed something.
        (self.supervisor.folder, self.supervisor.at_port) = (0, false);
        self.supervisor.why = if for_good {
            reason.clone()
        } else {
            format!(
                "{reason}; given up after {} exits, `agent-relay command {} restart` tries again",
                self.supervisor.exits(),
                self.config.agent_id
            )
        };
        self.tracker.set_terminal(Some(Status::Error));
        self.status.timeline("provider.parked", now);
        self.log(LogLevel::Error, "lifecycle", format!("parked: {}", self.supervisor.why));
        self.on_restart_done(now, Err(reason.clone()));
        if !self.supervisor.was_ready() {
            self.begin_stop(now, super::stop::Why::ProviderFailed(reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_of_a_failed_start_has_its_next_step() {
        for (fault, want, at_port) in [
            (StartFault::Passing, NextStart::Same, NextStart::Same),
            (StartFault::Conversation, NextStart::Anew, NextStart::Anew),
            (
                StartFault::SocketFolder { is_last: false },
                NextStart::Elsewhere,
                NextStart::Elsewhere,
            ),
            (StartFault::SocketFolder { is_last: true }, NextStart::Parked, NextStart::Parked),
            (StartFault::Listening, NextStart::AtPort, NextStart::Parked),
            (StartFault::Person, NextStart::Parked, NextStart::Parked),
        ] {
            assert_eq!(next_start(fault, false), want, "{fault:?}");
            assert_eq!(next_start(fault, true), at_port, "{fault:?} at a port");
        }
    }
}
