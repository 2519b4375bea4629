//! Order of effects, credit and the end of an agent, event by event.

mod clock;
mod fair;
mod first;
mod life;
mod narrow;
mod polling;
mod posted;
mod recovery;
mod session;
mod tasks;
mod urgent;

use super::effect::{BusCommand, Effect, HeartbeatCommand, ProviderCommand, StoreCommand};
use crate::core::commit::Commit;
use std::time::Duration;

use serde_json::json;

use super::config::{AgentConfig, ReplyMode, RestartPolicy};
use super::event::{BusEvent, ControlRequest, Event, Lane, ProviderEvent, StopReason, StoreEvent};
use super::prompt::{Prompt, StartKey};
use super::store::StoreOp;
use super::*;

use crate::core::agent::store::RowKind;
use crate::core::ids::{BatchNumber, CallNumber, MessageId, ProcessRef, Ticket};
use crate::core::matching::Identity;
use crate::core::session::{
    Delivery, DeliveryOutcome, Mirror, OpenMode, Opened, RESTART_MARK, SessionCapabilities,
    StartFault, TurnEnd, Verb,
};
use crate::core::time::Wall;
use crate::secret::Secret;
use crate::wire::api::{AgentStatus, DetailedStatus};
use crate::wire::api::{Command, Message};
use crate::wire::bus::{ClientFrame, Registered, Registration, RelayFrame};

struct Bench {
    agent: Agent,
    now: Now,
    /// What it wanted first.
    begun: Vec<Effect>,
    /// How it ended.
    ended: Option<effect::Outcome>,
    /// What the session answers to probes, if it does.
    answers: Option<&'static str>,
}

impl Bench {
    /// An agent that is registered and has a ready provider; nothing is under way.
    fn ready() -> Bench {
        let mut bench = Bench::restored();
        bench.tell(Event::Bus(BusEvent::Connected));
        let registered = Registered { epoch: 1, ..Default::default() };
        bench.tell(Event::Bus(BusEvent::Framed(RelayFrame::Registered {
            id: "f1".into(),
            registered,
        })));
        bench.tell(Event::Provider(ProviderEvent::Spawned {
            process: ProcessRef { pid: 7, start: 1 },
            terminal: None,
        }));
        bench.commit();
        let opened = Opened {
            session: "s".into(),
            how: OpenMode::New,
            agent: "demo".into(),
            model: None,
            has_evidence: true,
        };
        bench.session_event(SessionEvent::Opened(opened));
        bench.commit();
        assert_eq!(bench.agent.wire_status(), AgentStatus::Idle);
        bench
    }

    fn restored() -> Bench {
        Bench::restored_with(|_| {})
    }

    fn restored_with(change: impl FnOnce(&mut AgentConfig)) -> Bench {
        Bench::begun(change, true)
    }

    /// `answers`: the relay says whose token was handed in.
    fn begun(change: impl FnOnce(&mut AgentConfig), answers: bool) -> Bench {
        let mut config = AgentConfig {
            store_note: None,
            agent_id: "a".into(),
            runner_id: "r".into(),
            instance_id: "i".into(),
            provider: "acp".into(),
            identity: Identity { agent_id: "a".into(), broad_targets: true, ..Default::default() },
            registration: Registration::default(),
            approval_mode: "open".into(),
            prompt: None,
            relay_url: "http://x".into(),
            url_by_hand: true,
            token_by_hand: true,
            token: Some(Secret::new("t")),
            token_profile: Some("provider-agent".into()),
            token_jti: None,
            token_expires_at: None,
            shutdown_timeout: Duration::from_secs(5),
            restart: RestartPolicy::default(),
            stuck_after: config::STUCK_AFTER,
            reply_mode: ReplyMode::Auto,
            session: SessionCapabilities::default(),
            in_user_terminal: false,
            started_at: 0,
        };
        change(&mut config);
        let mut bench = Bench {
            agent: Agent::new(config, 1),
            now: Now { tick: Tick(1_000_000), wall: Wall(1_000_000) },
            begun: Vec::new(),
            ended: None,
            answers: None,
        };
        let effects = bench.tell(Event::Store(StoreEvent::Restored(Box::default())));
        // The token that was handed in is this agent's own: the relay says so.
        if let Some(call) =
            call_to(&effects, "/api/tokens/self").map(|(call, _)| call).filter(|_| answers)
        {
            let record = json!({"jti": "j0", "profileId": "provider-agent", "agentId": "a"});
            bench.tell(Event::Called { call, result: Ok((200, json!({"record": record}))) });
        }
        bench.begun = effects;
        bench
    }

    fn tell(&mut self, event: Event) -> Vec<Effect> {
        self.now.tick = self.now.tick + Duration::from_millis(1);
        let effects = self.agent.handle(self.now, event);
        self.ended = self.ended.take().or(effects.iter().find_map(|e| {
            if let Effect::Finish(outcome) = e { Some(outcome.clone()) } else { None }
        }));
        effects
    }

    fn session_event(&mut self, event: SessionEvent) -> Vec<Effect> {
        self.tell(Event::Provider(ProviderEvent::Session(event)))
    }

    /// Everything that was ordered is on disk.
    fn commit(&mut self) -> Vec<Effect> {
        let upto = self.agent.commits.newest();
        self.tell(Event::Store(StoreEvent::Committed { upto, dropped: Vec::new() }))
    }

    fn message(&mut self, id: u64) -> Vec<Effect> {
        let message = Message {
            id: MessageId(id),
            from: "user".into(),
            to: "a".into(),
            kind: "chat".into(),
            body: "do it".into(),
            ..Default::default()
        };
        let data = serde_json::to_value(message).expect("plain data");
        let frame = RelayFrame::Event { seq: 100 + id, event: "message.new".into(), data, at: 0 };
        self.tell(Event::Bus(BusEvent::Framed(frame)))
    }
}

/// Key of a batch that holds only message 1.
fn key_of_first() -> String {
    super::prompt_text::key("a", &[&Message { id: MessageId(1), ..Default::default() }])
}

/// A call that is made, with its token.
fn call_to(effects: &[Effect], wanted: &str) -> Option<(CallNumber, String)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Heartbeat(HeartbeatCommand::Call { call, path, token, .. }) if path == wanted => {
            Some((*call, token.expose().to_string()))
        }
        _ => None,
    })
}

/// The frame that goes to the relay.
fn frame_of(effect: &Effect) -> Option<ClientFrame> {
    match effect {
        Effect::Bus(BusCommand::Send(text)) => ClientFrame::parse(text).ok(),
        _ => None,
    }
}

fn is_ack(effect: &Effect) -> bool {
    matches!(frame_of(effect), Some(ClientFrame::Ack { .. }))
}

fn delivers(effect: &Effect) -> bool {
    matches!(effect, Effect::Provider(ProviderCommand::Verb { verb: Verb::Deliver(_), .. }))
}

fn statuses(effects: &[Effect]) -> Vec<String> {
    let word = |effect: &Effect| match frame_of(effect) {
        Some(ClientFrame::Status { agent_status, .. }) => Some(agent_status),
        _ => None,
    };
    effects.iter().filter_map(word).collect()
}

#[test]
fn a_message_is_durable_before_it_is_acknowledged_or_delivered() {
    let mut bench = Bench::ready();
    let effects = bench.message(1);
    assert!(effects.iter().any(
        |e| matches!(e, Effect::Store(StoreCommand::Commit(Commit { ops, .. })) if ops.iter().any(|op| matches!(op, StoreOp::InboxPut(_))))
    ));
    assert!(!effects.iter().any(|e| is_ack(e) || delivers(e)), "{effects:?}");
    let effects = bench.commit();
    assert!(effects.iter().any(is_ack) && effects.iter().any(delivers), "{effects:?}");
}

#[test]
fn a_repeated_frame_is_acknowledged_behind_the_first_copy() {
    let mut bench = Bench::ready();
    bench.message(1);
    let effects = bench.message(1);
    assert!(
        !effects
            .iter()
            .any(|e| is_ack(e) || matches!(e, Effect::Store(StoreCommand::Commit(Commit { .. })))),
        "{effects:?}"
    );
    assert_eq!(bench.commit().iter().filter(|e| is_ack(e)).count(), 2);
    assert!(bench.message(1).iter().any(is_ack));
}

#[test]
fn a_command_is_durable_before_it_is_acknowledged() {
    let mut bench = Bench::ready();
    let command = Command {
        id: "c1".into(),
        kind: "agent.interrupt".into(),
        target: "a".into(),
        ..Default::default()
    };
    let frame = RelayFrame::Command { id: "c1".into(), command };
    let effects = bench.tell(Event::Bus(BusEvent::Framed(frame.clone())));
    assert!(!effects.iter().any(is_ack));
    let effects = bench.commit();
    assert!(
        effects.iter().any(is_ack)
            && effects.iter().any(|e| matches!(
                e,
                Effect::Provider(ProviderCommand::Verb { verb: Verb::Interrupt, .. })
            ))
    );
    // A second copy does not interrupt again.
    let mut effects = bench.tell(Event::Bus(BusEvent::Framed(frame)));
    effects.extend(bench.commit());
    assert!(!effects.iter().any(|e| matches!(e, Effect::Provider(ProviderCommand::Verb { .. }))));
}

/// Only the word for it decides about a permission, whatever else a command says.
#[test]
fn an_unknown_command_does_nothing() {
    for (kind, verbs) in [("agent.permissionDecision", 1), ("agent.dance", 0), ("agent", 0)] {
        let mut bench = Bench::ready();
        let params = serde_json::json!({"approvalId": "p", "decision": "approve"});
        let command = Command {
            id: "c1".into(),
            kind: kind.into(),
            target: "a".into(),
            params: params.as_object().cloned().unwrap_or_default(),
            ..Default::default()
        };
        let frame = RelayFrame::Command { id: "c1".into(), command };
        let mut effects = bench.tell(Event::Bus(BusEvent::Framed(frame)));
        effects.extend(bench.commit());
        assert!(effects.iter().any(is_ack), "{kind} is not sent again");
        let is_verb = |e: &&Effect| matches!(e, Effect::Provider(ProviderCommand::Verb { .. }));
        assert_eq!(effects.iter().filter(is_verb).count(), verbs, "{kind}");
    }
}

#[test]
fn reply_and_batch_done_are_one_transaction() {
    let mut bench = Bench::ready();
    bench.message(1);
    bench.commit();
    bench.session_event(SessionEvent::Accepted {
        batch: BatchNumber(1),
        key: key_of_first(),
        evidence: "seen".into(),
    });
    bench.commit();
    let mut effects = bench.session_event(SessionEvent::TurnEnded {
        batch: Some(BatchNumber(1)),
        end: TurnEnd::Completed,
        text: "done".into(),
    });
    // The relay is asked which answers are owed; it does not answer, so all are sent.
    bench.now.tick = bench.now.tick + Duration::from_secs(6);
    effects.extend(bench.agent.wake(bench.now));
    let together = effects.iter().any(|effect| match effect {
        Effect::Store(StoreCommand::Commit(Commit { ops, .. })) => {
            let reply =
                ops.iter().any(|op| matches!(op, StoreOp::OutboxAppend(row) if row.kind == RowKind::Message && row.key == "reply:a:1"));
            reply && ops.iter().any(|op| matches!(op, StoreOp::InboxSettle { at, .. } if at.id == MessageId(1)))
        }
        _ => false,
    });
    let settles = |effect: &Effect| matches!(effect, Effect::Store(StoreCommand::Commit(Commit { ops, .. })) if ops.iter().any(|op| matches!(op, StoreOp::InboxSettle { .. })));
    assert!(
        together && effects.iter().filter(|effect| settles(effect)).count() == 1,
        "{effects:?}"
    );
}

#[test]
fn a_flood_without_a_disk_is_not_taken() {
    let mut bench = Bench::ready();
    let mirror = || {
        SessionEvent::Mirror(Mirror {
            kind: "tool",
            body: "x".into(),
            label: None,
            status: None,
            turn: 1,
            key: None,
        })
    };
    let mut taken = 0;
    while bench.agent.may_take(Lane::Provider) {
        bench.session_event(mirror());
        taken += 1;
        assert!(taken < 10_000, "the flood is taken without end");
    }
    // The store and a person at the control port are still heard.
    assert!(
        bench.agent.may_take(Lane::Store)
            && bench.agent.may_take(Lane::Control)
            && !bench.agent.may_take(Lane::Bus)
    );
    bench.tell(Event::Control(Ticket(9), ControlRequest::Status));
    assert!(bench.agent.commits_in_flight() <= COMMITS_IN_FLIGHT_MAX);
    bench.commit();
    assert!(bench.agent.may_take(Lane::Provider) && bench.agent.may_take(Lane::Bus));
}

#[test]
fn no_status_follows_the_last_offline() {
    let mut bench = Bench::ready();
    let effects = bench.tell(Event::StopRequested(StopReason::Terminated));
    assert_eq!(statuses(&effects), ["offline"]);
    let busy = json!({"status": "busy", "reason": "x"});
    for event in [
        Event::Control(Ticket(1), ControlRequest::StatusPosted(busy)),
        Event::Provider(ProviderEvent::Session(SessionEvent::TurnStarted)),
        Event::Provider(ProviderEvent::Exited { code: 0, stderr: String::new() }),
    ] {
        let effects = bench.tell(event);
        assert_eq!(statuses(&effects), Vec::<String>::new(), "{effects:?}");
    }
    bench.commit();
    // A call is still open; it gets its time, then that is the end.
    bench.now.tick = bench.now.tick + Duration::from_secs(3);
    let effects = bench.agent.wake(bench.now);
    assert!(
        matches!(effects.last(), Some(Effect::Finish(outcome)) if outcome.code == 0),
        "{effects:?}"
    );
    assert!(bench.commit().is_empty(), "nothing after Finish");
}

#[test]
fn a_stalled_disk_releases_nothing_and_is_tried_again() {
    let mut bench = Bench::ready();
    bench.message(1);
    let effects = bench.tell(Event::Store(StoreEvent::Stalled(Cause::Failed("disk full".into()))));
    assert!(!effects.iter().any(is_ack));
    bench.now.tick = bench.now.tick + Duration::from_secs(1);
    assert!(bench.agent.wake(bench.now).contains(&Effect::Store(StoreCommand::Retry)));
    assert!(bench.commit().iter().any(is_ack));
}

#[test]
fn damage_of_the_store_ends_the_runner_so_that_its_next_start_mends_it() {
    let broken = crate::core::store::StoreError::new(
        crate::core::store::StoreKind::Corrupt,
        "the store",
        "malformed",
    );
    for event in [StoreEvent::Broken(broken.clone()), StoreEvent::Stalled(broken.clone().into())] {
        let mut bench = Bench::ready();
        bench.message(1);
        let mut effects = bench.tell(Event::Store(event));
        assert!(
            effects
                .iter()
                .any(|effect| matches!(effect, Effect::Provider(ProviderCommand::Stop { .. }))),
            "{effects:?}"
        );
        bench.tell(Event::Provider(ProviderEvent::Exited { code: 0, stderr: String::new() }));
        for _ in 0..60 {
            bench.now.tick = bench.now.tick + Duration::from_secs(1);
            effects = bench.agent.wake(bench.now);
            assert!(
                !effects.contains(&Effect::Store(StoreCommand::Retry)),
                "damage is not tried again"
            );
            if let Some(Effect::Finish(outcome)) = effects.last() {
                assert_eq!((outcome.code, outcome.message.contains("malformed")), (1, true));
                break;
            }
        }
        assert!(matches!(effects.last(), Some(Effect::Finish(_))), "it ends in time");
    }
}

#[test]
fn the_restart_budget_parks() {
    let mut bench = Bench::ready();
    let mut starts = 0;
    for _ in 0..20 {
        bench.tell(Event::Provider(ProviderEvent::Exited { code: 1, stderr: String::new() }));
        bench.commit();
        if bench.agent.word() == DetailedStatus::Parked {
            break;
        }
        bench.now.tick = bench.now.tick + Duration::from_secs(61);
        let mut effects = bench.agent.wake(bench.now);
        effects.extend(bench.commit());
        starts += effects
            .iter()
            .filter(|e| matches!(e, Effect::Provider(ProviderCommand::Spawn { .. })))
            .count();
        bench.tell(Event::Provider(ProviderEvent::Spawned {
            process: ProcessRef { pid: 8, start: 2 },
            terminal: None,
        }));
        bench.commit();
    }
    // Five exits in ten minutes: four starts, then it waits for a person.
    assert_eq!(
        (starts, bench.agent.word(), bench.agent.wire_status()),
        (4, DetailedStatus::Parked, AgentStatus::Offline)
    );
}

#[test]
fn a_token_is_renewed_in_time_and_never_ends_the_session() {
    let mut bench = Bench::ready();
    let answer = |end: i64| json!({"token": "new", "record": {"jti": "j", "profileId": "provider-agent", "expiresAt": end}});
    // The relay refuses the token once: one renewal at once.
    let refused = Cause::Refused(401, "expired".into());
    let mut effects = bench.tell(Event::Bus(BusEvent::Lost(refused)));
    // The unread fetch of the registration is still under way.
    effects.extend(
        bench.tell(Event::Called {
            call: CallNumber(2),
            result: Ok((200, json!({"messages": []}))),
        }),
    );
    let (call, old) = call_to(&effects, "/api/tokens/renew").expect("a renewal");
    assert_eq!(old, "t");
    let in_an_hour = bench.now.wall.0 / 1000 + 3600;
    let effects = bench.tell(Event::Called { call, result: Ok((200, answer(in_an_hour))) });
    assert!(
        effects.iter().any(
            |e| matches!(e, Effect::Bus(BusCommand::Connect(to)) if to.token.expose() == "new")
        ),
        "{effects:?}"
    );
    bench.commit();
    // Four fifths of its life later the next renewal is due.
    let due = bench.agent.timers.at(timer::Timer::TokenRenewal).expect("a renewal");
    let left = (due - bench.now.tick).as_secs();
    assert!((2500..=2880).contains(&left), "{left}");
    assert!(bench.agent.supervisor.is_ready(), "the provider was never touched");
}

/// What is delivered by these effects.
fn deliveries(effects: &[Effect]) -> Vec<Delivery> {
    let delivery = |effect: &Effect| match effect {
        Effect::Provider(ProviderCommand::Verb { verb: Verb::Deliver(delivery), .. }) => {
            Some(delivery.clone())
        }
        _ => None,
    };
    effects.iter().filter_map(delivery).collect()
}
