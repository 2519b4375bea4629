//! Ends that the relay tells are in its own time, whatever our clock says; and what else a relay is
//! told of tokens and decisions.

use super::*;
use crate::core::agent::timer::Timer;
use crate::wire::api::AgentCommand;

/// Our clock is ten minutes behind, right, or ahead.
const OFF_MS: [i64; 3] = [-600_000, 0, 600_000];

impl Bench {
    /// At a relay whose clock says that.
    fn register(&mut self, time: i64) {
        self.tell(Event::Bus(BusEvent::Connected));
        let registered = Registered { epoch: 1, server_time: time, ..Default::default() };
        let frame = RelayFrame::Registered { id: "f1".into(), registered };
        self.tell(Event::Bus(BusEvent::Framed(frame)));
        self.commit();
    }
}

#[test]
fn a_lease_ends_by_the_clock_of_the_relay() {
    for off in OFF_MS {
        let mut bench = Bench::quiet();
        let time = bench.now.wall.0 + off;
        bench.agent.now = bench.now;
        bench.agent.note_clock(bench.now, time);
        let message = Message {
            id: MessageId(7),
            from: "user".into(),
            to: "a".into(),
            body: "do it".into(),
            claimable: true,
            ..Default::default()
        };
        let data = serde_json::to_value(message).expect("plain data");
        let frame = RelayFrame::Event { seq: 107, event: "message.new".into(), data, at: 0 };
        let mut effects = bench.tell(Event::Bus(BusEvent::Framed(frame)));
        effects.extend(bench.commit());
        let (call, _) = call_to(&effects, "/api/messages/7/claim").expect("it is claimed");
        let answer = json!({"ok": true, "claimExpiresAt": time + 60_000});
        bench.tell(Event::Called { call, result: Ok((200, answer)) });
        let left = bench.agent.tracker.next_expiry().expect("a lease") - bench.now.tick;
        let want = Duration::from_secs(59)..=Duration::from_secs(60);
        assert!(want.contains(&left), "a clock that is {off} ms off: {left:?}");
    }
}

#[test]
fn a_token_is_renewed_by_the_clock_of_the_relay() {
    for off in OFF_MS {
        let end = (1_000_000 + off) / 1000 + 600;
        // The relay tells nothing of the token, so what was said at the start counts; its clock is
        // known with the registration.
        let mut bench = Bench::begun(|config| config.token_expires_at = Some(end), false);
        let effects = std::mem::take(&mut bench.begun);
        let (call, _) = call_to(&effects, "/api/tokens/self").expect("it is looked at");
        bench.tell(Event::Called { call, result: Ok((404, json!({}))) });
        bench.register(1_000_000 + off);
        let at = bench.agent.timers.at(Timer::TokenRenewal).expect("it is renewed");
        let left = (at - bench.now.tick).as_secs();
        assert!((440..=480).contains(&left), "a clock that is {off} ms off: in {left} s");
    }
}

#[test]
fn a_token_that_was_handed_in_is_told_with_its_id() {
    let bench = Bench::restored();
    assert_eq!(bench.agent.registration_meta()["auth"]["jti"], "j0", "as the relay says");
    // A relay that tells nothing of tokens: what was said at the start.
    let mut bench = Bench::begun(|config| config.token_jti = Some("j7".into()), false);
    let effects = std::mem::take(&mut bench.begun);
    let (call, _) = call_to(&effects, "/api/tokens/self").expect("it is looked at");
    bench.tell(Event::Called { call, result: Ok((404, json!({}))) });
    assert_eq!(bench.agent.registration_meta()["auth"]["jti"], "j7");
}

#[test]
fn the_result_of_a_decision_names_it() {
    let mut bench = Bench::ready();
    let params = json!({"approvalId": "1-a", "decision": "approve"});
    let command = Command {
        id: "c1".into(),
        kind: AgentCommand::PermissionDecision.as_str().into(),
        target: "a".into(),
        params: params.as_object().cloned().unwrap_or_default(),
        ..Default::default()
    };
    let mut effects =
        bench.tell(Event::Bus(BusEvent::Framed(RelayFrame::Command { id: "c1".into(), command })));
    effects.extend(bench.commit());
    let number = effects
        .iter()
        .find_map(|effect| match effect {
            Effect::Provider(ProviderCommand::Verb {
                verb: Verb::Decide { .. }, number, ..
            }) => Some(*number),
            _ => None,
        })
        .expect("the session is asked");
    let result = Ok(json!({"approvalId": "1-a"}));
    let mut effects = bench.session_event(SessionEvent::Answered { verb: number, result });
    effects.extend(bench.commit());
    let told = effects.iter().filter_map(frame_of).find_map(|frame| match frame {
        ClientFrame::CommandUpdate { result, .. } => result,
        _ => None,
    });
    let want = json!({"approvalId": "1-a", "decision": "approve", "provider": "acp"});
    assert_eq!(told.expect("the end")["providerResult"], want);
}
