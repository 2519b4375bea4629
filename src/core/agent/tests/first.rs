//! Table tests of the first start: relay and token may be written only after the runner was
//! started.

use super::{Bench, call_to};
use crate::core::agent::config::AgentConfig;
use crate::core::agent::effect::{BusCommand, Effect, HeartbeatCommand, ProviderCommand};
use crate::core::agent::event::{BusEvent, Event};
use crate::core::ids::CallNumber;
use crate::core::{Cause, Machine};
use crate::secret::Secret;
use serde_json::json;

impl Bench {
    /// Lets time pass, and every commit succeed, until that happens; gives the effects that show
    /// it. The relay stays away.
    #[track_caller]
    fn until(&mut self, wanted: impl Fn(&[Effect]) -> bool) -> Vec<Effect> {
        for _ in 0..10_000 {
            let effects = self.commit();
            if wanted(&effects) {
                return effects;
            }
            let Some(at) = self.agent.next_deadline() else { break };
            self.now.tick = self.now.tick.max(at);
            let effects = self.agent.wake(self.now);
            if wanted(&effects) {
                return effects;
            }
            if let Some(call) = effects.iter().find_map(|e| {
                if let Effect::Heartbeat(HeartbeatCommand::Call { call, .. }) = e {
                    Some(*call)
                } else {
                    None
                }
            }) {
                self.tell(Event::Called {
                    call,
                    result: Err(Cause::Offline("connection refused".into())),
                });
            }
            if effects.iter().any(|effect| matches!(effect, Effect::Bus(BusCommand::Connect(_)))) {
                self.tell(lost(Cause::Refused(401, "token required".into())));
            }
        }
        panic!("it does not happen")
    }
}

/// Started on an empty home: nobody named a relay or a token.
fn fresh(config: &mut AgentConfig) {
    (config.url_by_hand, config.token_by_hand) = (false, false);
    (config.token, config.token_profile) = (None, None);
}

fn lost(cause: Cause) -> Event {
    Event::Bus(BusEvent::Lost(cause))
}

fn looks(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|effect| matches!(effect, Effect::Heartbeat(HeartbeatCommand::ReadConfigToken)))
}

fn told(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .filter_map(
            |effect| if let Effect::Tell { text } = effect { Some(text.clone()) } else { None },
        )
        .collect()
}

fn ended(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::Finish(_) | Effect::Provider(ProviderCommand::Stop { .. }))
    })
}

fn config(url: Option<&str>, token: Option<&str>) -> Event {
    Event::ConfigToken { url: url.map(String::from), token: token.map(Secret::new) }
}

#[test]
fn a_missing_token_is_looked_for_with_growing_pauses_and_said_once() {
    let mut bench = Bench::restored_with(fresh);
    bench.tell(lost(Cause::Refused(401, "token required".into())));
    let (mut said, mut pauses, mut all) = (Vec::new(), Vec::new(), 0);
    while all < 40 {
        let before = bench.now.tick;
        let effects = bench.until(looks);
        pauses.push(bench.now.tick - before);
        assert!(!ended(&effects), "{effects:?}");
        let effects = bench.tell(config(None, None));
        assert!(!ended(&effects), "{effects:?}");
        said.extend(told(&effects));
        all += 1;
    }
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("wants a token") && said[0].contains("config.json"), "{said:?}");
    let late = &pauses[10..];
    assert!(
        late.iter().sum::<std::time::Duration>() > std::time::Duration::from_secs(60),
        "no fast polling: {pauses:?}"
    );
    assert!(
        late.iter().all(|pause| *pause <= std::time::Duration::from_secs(16)),
        "bounded: {pauses:?}"
    );
    // There it is.
    bench.until(looks);
    let effects = bench.tell(config(None, Some("operator")));
    let (call, token) = call_to(&effects, "/api/tokens").expect("makes its own from it");
    assert_eq!(token, "operator");
    let made = json!({"token": "own", "record": {"jti": "j", "profileId": "provider-agent", "expiresAt": 100_000}});
    bench.tell(Event::Called { call, result: Ok((200, made)) });
    let connects = |effects: &[Effect]| {
        effects.iter().any(
            |e| matches!(e, Effect::Bus(BusCommand::Connect(to)) if to.token.expose() == "own"),
        )
    };
    bench.tell(lost(Cause::Refused(401, "token required".into())));
    bench.until(connects);
}

#[test]
fn a_token_of_the_file_that_is_refused_is_looked_for_and_one_by_hand_ends_the_start() {
    for by_hand in [false, true] {
        let mut bench = Bench::restored_with(|config| {
            fresh(config);
            (config.token, config.token_by_hand) = (Some(Secret::new("old")), by_hand);
        });
        // Its first call asks for a token of its own.
        bench.tell(Event::Called {
            call: CallNumber(1),
            result: Ok((401, json!({"error": "unknown token"}))),
        });
        bench.commit();
        assert_eq!(bench.agent.stop.is_some(), by_hand);
        if !by_hand {
            bench.until(looks);
            let effects = bench.tell(config(None, Some("new")));
            assert_eq!(
                call_to(&effects, "/api/tokens").map(|(_, token)| token).as_deref(),
                Some("new")
            );
        }
    }
}

/// Whether a call goes to that relay.
fn goes_to(effects: &[Effect], wanted: &str) -> bool {
    let is_call = |effect: &Effect| matches!(effect, Effect::Heartbeat(HeartbeatCommand::Call { relay, .. }) if relay == wanted);
    effects.iter().any(is_call)
}

#[test]
fn a_relay_that_the_file_names_later_is_followed_until_the_first_registration() {
    for by_hand in [false, true] {
        let mut bench = Bench::restored_with(|config| {
            fresh(config);
            config.url_by_hand = by_hand;
        });
        let effects = bench.tell(lost(Cause::Offline("connection refused".into())));
        assert!(looks(&effects), "{effects:?}");
        let effects = bench.tell(config(Some("http://127.0.0.1:4999"), Some("operator")));
        assert_eq!(goes_to(&effects, "http://127.0.0.1:4999"), !by_hand, "{effects:?}");
        assert!(
            call_to(&effects, "/api/tokens").is_some(),
            "the token is taken in any case: {effects:?}"
        );
    }
    let mut bench = Bench::ready();
    bench.agent.config.url_by_hand = false;
    let effects = bench.tell(config(Some("http://127.0.0.1:4999"), None));
    assert!(!goes_to(&effects, "http://127.0.0.1:4999"), "{effects:?}");
    let effects = bench.tell(lost(Cause::Offline("connection refused".into())));
    assert!(!goes_to(&effects, "http://127.0.0.1:4999"), "{effects:?}");
}

#[test]
fn a_provider_waits_two_seconds_for_the_first_token_and_not_longer() {
    let mut bench = Bench::restored_with(fresh);
    let spawns = |effects: &[Effect]| {
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Provider(ProviderCommand::Spawn { .. })))
    };
    let before = bench.now.tick;
    assert!(!spawns(&bench.commit()), "not before");
    bench.until(spawns);
    let waited = bench.now.tick - before;
    assert!(waited <= std::time::Duration::from_secs(3), "{waited:?}");
}
