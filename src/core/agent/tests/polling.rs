//! Without the bus: what is asked over HTTP, and how often.

use crate::core::agent::effect::{BusCommand, Effect, HeartbeatCommand, StoreCommand};
use crate::core::commit::Commit;
use crate::core::ids::CallNumber;
use serde_json::Value;

use super::*;

impl Bench {
    /// The bus is lost, if it was there, and registered by the next attempt, with what the relay
    /// says of itself.
    pub(super) fn register_anew(&mut self, server: Value) {
        self.tell(Event::Bus(BusEvent::Lost(Cause::Offline("cut".into()))));
        while !self.agent.relay_link.is_registered() {
            self.now.tick = self.agent.next_deadline().expect("an attempt").max(self.now.tick);
            self.agent.wake(self.now);
            self.tell(Event::Bus(BusEvent::Connected));
            let server = server.as_object().cloned().unwrap_or_default();
            let registered = Registered { epoch: 1, server, ..Default::default() };
            self.tell(Event::Bus(BusEvent::Framed(RelayFrame::Registered {
                id: "f9".into(),
                registered,
            })));
        }
    }

    /// Ready, with every call answered.
    pub(super) fn quiet() -> Bench {
        let mut bench = Bench::ready();
        for call in (1..20).map(CallNumber) {
            bench.tell(Event::Called { call, result: works("unread") });
        }
        bench.commit();
        assert!(bench.agent.http_calls.is_quiet());
        bench
    }

    fn next_call(effects: &[Effect]) -> Option<(CallNumber, String, Value)> {
        effects.iter().rev().find_map(|effect| match effect {
            Effect::Heartbeat(HeartbeatCommand::Call { call, method, path, body, .. }) => {
                Some((*call, format!("{method} {path}"), body.clone().unwrap_or_default()))
            }
            _ => None,
        })
    }

    /// Lets time pass up to a tick: every deadline fires, a bus attempt fails, a call is answered.
    /// What was called, when.
    fn live(
        &mut self,
        for_ms: u64,
        mut answer: impl FnMut(&str) -> Result<(u16, Value), Cause>,
    ) -> Vec<(u64, String, Value)> {
        let began = self.now.tick;
        let until = began + Duration::from_millis(for_ms);
        let mut calls = Vec::new();
        let mut effects = Vec::new();
        loop {
            if effects.iter().any(|effect| matches!(effect, Effect::Bus(BusCommand::Connect(_)))) {
                effects =
                    self.tell(Event::Bus(BusEvent::Lost(Cause::Offline("nobody listens".into()))));
            } else if let Some((call, what, body)) = Bench::next_call(&effects) {
                let result = answer(&what);
                calls.push(((self.now.tick - began).as_millis() as u64, what, body));
                effects = self.tell(Event::Called { call, result });
            } else if effects
                .iter()
                .any(|effect| matches!(effect, Effect::Store(StoreCommand::Commit(Commit { .. }))))
            {
                effects = self.commit();
            } else {
                let Some(at) = self.agent.next_deadline().filter(|at| *at <= until) else { break };
                self.now.tick = at.max(self.now.tick);
                effects = self.agent.wake(self.now);
            }
        }
        self.now.tick = until.max(self.now.tick);
        calls
    }
}

fn works(what: &str) -> Result<(u16, Value), Cause> {
    if what.contains("unread") {
        Ok((200, json!({"messages": []})))
    } else {
        Ok((200, json!({"ok": true, "commands": []})))
    }
}

fn of<'a>(calls: &'a [(u64, String, Value)], what: &str) -> Vec<&'a (u64, String, Value)> {
    calls.iter().filter(|(_, called, _)| called.contains(what)).collect()
}

#[test]
fn a_shut_bus_is_followed_by_a_round_at_once() {
    let mut bench = Bench::restored();
    bench.tell(Event::Bus(BusEvent::Lost(Cause::Protocol("no WebSocket here".into()))));
    let calls = bench.live(19_000, works);
    let first: Vec<&str> =
        calls.iter().map(|(_, what, _)| what.split('?').next().unwrap_or_default()).collect();
    let round = [
        "POST /api/agents",
        "PUT /api/agents/a/status",
        "PUT /api/agents/a/ready",
        "POST /api/agents/a/heartbeat",
        "GET /api/messages",
    ];
    assert_eq!(first[..5], round, "{first:?}");
    assert!(calls[0].0 < 100 && calls.len() <= 7, "{calls:?}");
    assert_eq!(calls[2].2["meta"]["status"], "starting", "a status goes with it: {:?}", calls[2]);
    assert_eq!(bench.agent.relay_link.state_name(), "polling");
    // From there every 20 s.
    let calls = bench.live(60_000, works);
    assert_eq!(of(&calls, "heartbeat").len(), 3, "{calls:?}");
}

/// A relay that is simply away hears of an agent not more often than before: once at the first
/// failure, then every 20 s.
#[test]
fn a_relay_that_is_away_is_not_asked_faster() {
    let mut bench = Bench::restored();
    bench.tell(Event::Bus(BusEvent::Lost(Cause::Offline("nobody listens".into()))));
    let calls = bench.live(100_000, |_| Err(Cause::Offline("nobody listens".into())));
    assert_eq!(calls.len(), 6, "{calls:?}");
    assert!(calls.windows(2).skip(1).all(|pair| pair[1].0 - pair[0].0 >= 19_000), "{calls:?}");
    assert_ne!(bench.agent.relay_link.state_name(), "polling");
}

#[test]
fn changes_are_told_soon_and_together() {
    let mut bench = Bench::quiet();
    bench.tell(Event::Bus(BusEvent::Lost(Cause::Offline("cut".into()))));
    bench.live(10_000, works);
    assert_eq!(bench.agent.relay_link.state_name(), "polling");
    // A storm of changes, ten a second for five seconds.
    let mut calls = Vec::new();
    for n in 0..50 {
        let state = json!({"state": "running", "detail": n.to_string()});
        let event =
            if n == 0 { SessionEvent::TurnStarted } else { SessionEvent::ProviderState(state) };
        bench.session_event(event);
        calls.extend(bench.live(100, works));
    }
    calls.extend(bench.live(3000, works));
    let told = of(&calls, "ready");
    assert!((2..=5).contains(&told.len()), "{told:?}");
    let last = &told.last().expect("told").2["meta"];
    assert_eq!(
        (last["status"].as_str(), last["providerState"]["detail"].as_str()),
        (Some("busy"), Some("49"))
    );
    assert_eq!(
        of(&calls, "PUT /api/agents/a/status").len(),
        told.len(),
        "the word of the wire goes with each"
    );
    // Nothing changes: nothing is told.
    let calls = bench.live(9000, works);
    assert!(of(&calls, "/status").len() <= 1, "at most the one of a whole round: {calls:?}");
}

/// The bus is back in the middle of a round: the round ends, and the newest status goes over the
/// bus.
#[test]
fn the_bus_takes_over_in_the_middle_of_a_round() {
    let mut bench = Bench::quiet();
    bench.tell(Event::Bus(BusEvent::Lost(Cause::Offline("cut".into()))));
    bench.live(10_000, works);
    bench.now.tick = bench.agent.timers.at(Timer::LivenessRound).expect("a round is due");
    let effects = bench.agent.wake(bench.now);
    let (call, what, _) = Bench::next_call(&effects).expect("a round");
    assert!(what.ends_with("/status"), "{what}");
    // By then it was connecting again.
    bench.register_anew(json!({}));
    let effects = bench.tell(Event::Called { call, result: works("") });
    assert_eq!(
        statuses(&effects),
        ["idle"],
        "said once more: the call may have come later than the frame"
    );
    assert!(
        !effects.iter().any(|effect| matches!(effect, Effect::Heartbeat(HeartbeatCommand::Call { path, .. }) if path.ends_with("/ready"))),
        "{effects:?}"
    );
}

/// A command is told as running only when it is durable: a crash before that must leave it pending
/// at the relay.
#[test]
fn a_command_that_runs_is_told_when_it_is_durable() {
    let mut bench = Bench::quiet();
    bench.tell(Event::Bus(BusEvent::Lost(Cause::Offline("cut".into()))));
    bench.live(10_000, works);
    let command = Command {
        id: "c1".into(),
        kind: "agent.interrupt".into(),
        target: "a".into(),
        ..Default::default()
    };
    bench.agent.http_calls.forget(&super::super::http_calls::CallKind::Unread);
    let (number, now) = (bench.agent.commits.newest(), bench.now);
    bench.agent.now = now;
    bench.agent.on_command(now, command, None);
    let effects = bench.agent.settle(now);
    assert!(bench.agent.commits.newest() > number);
    let progress = |effects: &[Effect]| {
        effects.iter().any(|e| matches!(e, Effect::Heartbeat(HeartbeatCommand::Call { path, .. }) if path.ends_with("/commands/c1")))
    };
    assert!(!progress(&effects), "{effects:?}");
    assert!(progress(&bench.commit()));
}

/// The last status, with its reason; the agent stays known, whoever stopped it.
#[test]
fn the_end_is_told_without_a_bus() {
    for commanded in [false, true] {
        let mut bench = Bench::quiet();
        bench.tell(Event::Bus(BusEvent::Lost(Cause::Offline("cut".into()))));
        bench.live(10_000, works);
        let now = bench.now;
        bench.agent.now = now;
        if commanded {
            let command = Command {
                id: "c1".into(),
                kind: "agent.shutdown".into(),
                target: "a".into(),
                ..Default::default()
            };
            bench.agent.on_command(now, command, None);
        } else {
            bench.agent.begin_stop(now, super::super::stop::Why::Asked(StopReason::Terminated))
        }
        let mut effects = bench.agent.settle(now);
        let mut said = Vec::new();
        let mut ended = false;
        for _ in 0..60 {
            if effects.iter().any(|effect| matches!(effect, Effect::Finish(_))) {
                return_if_told(&said, commanded);
                ended = true;
                break;
            }
            effects = if let Some((call, what, body)) = Bench::next_call(&effects) {
                said.push((what.clone(), body));
                let mut more = bench.tell(Event::Called { call, result: works(&what) });
                more.extend(bench.commit());
                more
            } else if bench.agent.supervisor.is_gone() {
                bench.commit()
            } else {
                let mut more = bench.tell(Event::Provider(ProviderEvent::Exited {
                    code: 0,
                    stderr: String::new(),
                }));
                more.extend(bench.commit());
                more
            };
        }
        assert!(ended, "it never ended: {said:?}");
    }
}

fn return_if_told(said: &[(String, Value)], commanded: bool) {
    let find =
        |what: &str| said.iter().find(|(called, _)| called == what).map(|(_, body)| body.clone());
    assert_eq!(
        find("PUT /api/agents/a/status").expect("the word")["status"],
        "offline",
        "{said:?}"
    );
    let meta = find("PUT /api/agents/a/ready").expect("the record")["meta"].clone();
    assert_eq!(
        (meta["status"].as_str(), meta["lifecycleAction"].as_str()),
        (Some("offline"), Some("shutting-down")),
        "{said:?}"
    );
    let why =
        if commanded { "stopped by the command shutdown" } else { "stopped by a signal (SIGTERM)" };
    assert_eq!(meta["statusWhy"], why, "{said:?}");
    assert_eq!(find("DELETE /api/agents/a"), None, "{said:?}");
    assert_eq!(find("PATCH /api/commands/c1").is_some(), commanded, "{said:?}");
}
