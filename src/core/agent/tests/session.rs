//! What the tools inside the session have: a token that is always the newest, and their runner
//! where the relay is away.

mod tools;

use crate::core::agent::effect::{
    BusCommand, Effect, HeartbeatCommand, ProviderCommand, StoreCommand,
};
use crate::core::commit::Commit;
use crate::core::http::{Body, GateCommand};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Bench, call_to, key_of_first};
use crate::core::agent::config::AgentConfig;
use crate::core::agent::event::{BusEvent, ControlRequest, Event, StoreEvent};
use crate::core::agent::store::{Generation, OutboxRow, Settled, Snapshot, StoreOp, Unsettled};
use crate::core::ids::{BatchNumber, CallNumber, MessageId, MessageRef, Ticket};
use crate::core::limits::AGENT_TOKEN_LIFE;
use crate::core::session::{SessionEvent, TurnEnd};
use crate::core::{Cause, Machine};
use crate::secret::Secret;
use crate::wire::api::Message;
use crate::wire::bus::RelayFrame;
use crate::wire::control::LogLevel;

/// Started with a token that may be anybody's.
fn plain(config: &mut AgentConfig) {
    (config.token, config.token_profile) = (Some(Secret::new("given")), None);
}

fn written(effects: &[Effect]) -> Vec<String> {
    let token = |effect: &Effect| {
        if let Effect::Heartbeat(HeartbeatCommand::WriteToken { token }) = effect {
            Some(token.expose().to_string())
        } else {
            None
        }
    };
    effects.iter().filter_map(token).collect()
}

fn answer(
    bench: &mut Bench,
    effects: &[Effect],
    path: &str,
    status: u16,
    body: Value,
) -> Vec<Effect> {
    let (call, _) = call_to(effects, path).unwrap_or_else(|| panic!("asks {path}: {effects:?}"));
    bench.tell(Event::Called { call, result: Ok((status, body)) })
}

fn rows(effects: &[Effect]) -> Vec<OutboxRow> {
    let ops = effects.iter().filter_map(|effect| {
        if let Effect::Store(StoreCommand::Commit(Commit { ops, .. })) = effect {
            Some(ops)
        } else {
            None
        }
    });
    ops.flatten()
        .filter_map(|op| if let StoreOp::OutboxAppend(row) = op { Some(row.clone()) } else { None })
        .collect()
}

fn reply(effects: &[Effect]) -> Option<(u16, Value)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Gate(GateCommand::Respond { status, body: Body::Json(body), .. }) => {
            Some((*status, body.clone()))
        }
        _ => None,
    })
}

/// The sentence with which the runner ends, once its provider is gone.
fn end(bench: &mut Bench) -> Option<(u8, String)> {
    bench.agent.stop.as_ref()?;
    for _ in 0..200 {
        bench.commit();
        if let Some(outcome) = &bench.ended {
            return Some((outcome.code, outcome.message.clone()));
        }
        bench.now.tick = bench.now.tick + Duration::from_secs(1);
        let late = bench.agent.wake(bench.now);
        bench.ended = late.into_iter().find_map(|effect| {
            if let Effect::Finish(outcome) = effect { Some(outcome) } else { None }
        });
    }
    panic!("it does not end")
}

/// The call that is made, with its path and its token.
fn first_call(effects: &[Effect]) -> Option<(CallNumber, String, String)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Heartbeat(HeartbeatCommand::Call { call, path, token, .. }) => {
            Some((*call, path.clone(), token.expose().to_string()))
        }
        _ => None,
    })
}

fn made(token: &str, bench: &Bench) -> Value {
    let end = bench.now.wall.0 / 1000 + AGENT_TOKEN_LIFE.as_secs() as i64;
    json!({"token": token, "record": {"jti": token, "profileId": "provider-agent", "agentId": "a", "expiresAt": end}})
}

#[test]
fn the_file_holds_the_newest_token_for_days_and_only_what_is_durable() {
    let mut bench = Bench::begun(plain, true);
    let effects = bench.commit();
    assert!(written(&effects).is_empty());
    let first = made("t0", &bench);
    let effects = bench.begin_with(first);
    assert!(written(&effects).is_empty(), "not before it is durable: {effects:?}");
    assert_eq!(written(&bench.commit()), ["t0"]);
    bench.tell(Event::TokenWritten(Ok(())));
    let began = bench.now.tick;
    let (mut renewals, mut in_file) = (0, "t0".to_string());
    while bench.now.tick - began < Duration::from_secs(7 * 24 * 3600) {
        let at = bench.agent.next_deadline().expect("a renewal is due some time");
        bench.now.wall.0 += (at - bench.now.tick).as_millis() as i64;
        bench.now.tick = bench.now.tick.max(at);
        let mut effects = bench.agent.wake(bench.now);
        while !effects.is_empty() {
            assert!(written(&effects).is_empty(), "what is not durable is not shown: {effects:?}");
            let call = first_call(&effects);
            let durable = bench.commit();
            if let Some(token) = written(&durable).pop() {
                assert_eq!(token, format!("t{renewals}"));
                in_file = token;
                bench.tell(Event::TokenWritten(Ok(())));
            }
            let Some((call, path, token)) = call.or(first_call(&durable)) else { break };
            let mut answer = json!({});
            if path == "/api/tokens/renew" {
                assert_eq!(token, in_file, "it is renewed while the tools have it");
                renewals += 1;
                answer = made(&format!("t{renewals}"), &bench);
            }
            effects = bench.tell(Event::Called { call, result: Ok((200, answer)) });
        }
        assert_eq!(in_file, format!("t{renewals}"), "the newest stands there");
    }
    assert!((7..=8).contains(&renewals), "{renewals}");
}

impl Bench {
    /// The first call, which makes a token, is answered.
    fn begin_with(&mut self, made: Value) -> Vec<Effect> {
        self.tell(Event::Called { call: CallNumber(1), result: Ok((201, made)) })
    }

    fn control(&mut self, request: ControlRequest) -> Vec<Effect> {
        self.tell(Event::Control(Ticket(9), request))
    }

    /// The turn of message 1 ends with these words; the relay is away and says nothing about what
    /// is owed.
    fn end_turn(&mut self) -> Vec<Effect> {
        let mut effects = self.session_event(SessionEvent::TurnEnded {
            batch: Some(BatchNumber(1)),
            end: TurnEnd::Completed,
            text: "final".into(),
        });
        self.now.tick = self.now.tick + Duration::from_secs(6);
        effects.extend(self.agent.wake(self.now));
        effects
    }

    fn with_message() -> Bench {
        let mut bench = Bench::ready();
        bench.message(1);
        bench.commit();
        bench.session_event(SessionEvent::Accepted {
            batch: BatchNumber(1),
            key: key_of_first(),
            evidence: "seen".into(),
        });
        bench.commit();
        bench
    }
}

#[test]
fn a_write_that_fails_is_told_and_tried_again_with_the_newest() {
    let mut bench = Bench::begun(plain, true);
    let first = made("t0", &bench);
    bench.begin_with(first);
    assert_eq!(written(&bench.commit()), ["t0"]);
    let effects = bench.tell(Event::TokenWritten(Err("no space".into())));
    let told = |effect: &Effect| matches!(effect, Effect::Log { level: LogLevel::Error, text, .. } if text.contains("no space"));
    assert!(effects.iter().any(told) && written(&effects).is_empty(), "{effects:?}");
    bench.now.tick = bench.now.tick + Duration::from_secs(3);
    let mut effects = bench.agent.wake(bench.now);
    effects.extend(bench.commit());
    assert_eq!(written(&effects), ["t0"]);
}

/// The token that the provider is started with, if it is started.
fn spawned_with(effects: &[Effect]) -> Option<Option<String>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Provider(ProviderCommand::Spawn { token, .. }) => {
            Some(token.as_ref().map(|token| token.expose().to_string()))
        }
        _ => None,
    })
}

#[test]
fn only_a_token_of_this_agent_goes_to_the_provider() {
    let own = json!({"profileId": "provider-agent", "agentId": "a"});
    let other = json!({"profileId": "provider-agent", "agentId": "b"});
    let orchestrator = json!({"profileId": "orchestrator"});
    let operator = json!({"profileId": "operator", "scopes": ["message:read"]});
    let agents = Some("provider-agent");
    // What is said of the token; what the relay answers when a token is to be made, and when it is
    // asked whose this one is; what the provider gets, or the words that end the runner.
    type Row<'a> = (Option<&'a str>, u16, u16, &'a Value, Result<Option<&'a str>, &'a str>);
    let rows: Vec<Row<'_>> = vec![
        (None, 403, 200, &own, Ok(Some("given"))),
        (None, 403, 200, &other, Err("a token of the agent b")),
        (None, 403, 200, &orchestrator, Err("profile orchestrator")),
        (None, 403, 200, &operator, Err("profile operator")),
        (None, 403, 404, &Value::Null, Ok(None)),
        (None, 403, 405, &Value::Null, Ok(None)),
        (None, 404, 404, &Value::Null, Ok(None)),
        (None, 422, 200, &own, Ok(Some("given"))),
        (agents, 0, 200, &own, Ok(Some("given"))),
        (agents, 0, 200, &other, Err("a token of the agent b")),
        (agents, 0, 404, &Value::Null, Ok(Some("given"))),
        // Said of a token of an agent, found to be a person's: one is made from it.
        (agents, 201, 200, &operator, Ok(Some("made"))),
        (agents, 403, 200, &operator, Err("profile operator")),
        (Some("operator"), 403, 404, &Value::Null, Ok(None)),
    ];
    for (said, making, asking, record, want) in rows {
        let mut bench = Bench::begun(
            |config| {
                plain(config);
                config.token_profile = said.map(String::from);
            },
            false,
        );
        let (mut got, mut effects) = (None, std::mem::take(&mut bench.begun));
        for _ in 0..5 {
            effects.extend(bench.commit());
            got = got.or_else(|| spawned_with(&effects));
            let (call, (status, body)) =
                match (call_to(&effects, "/api/tokens"), call_to(&effects, "/api/tokens/self")) {
                    (Some((call, _)), _) if making == 201 => (call, (201, made("made", &bench))),
                    (Some((call, _)), _) => (call, (making, json!({"error": "no"}))),
                    (_, Some((call, _))) => (call, (asking, json!({"record": record}))),
                    _ => break,
                };
            effects = bench.tell(Event::Called { call, result: Ok((status, body)) });
        }
        let row = format!("said {said:?}, making {making}, asking {asking}, {record}");
        match want {
            Ok(token) => {
                assert!(bench.agent.stop.is_none(), "{row}");
                assert_eq!(got, Some(token.map(String::from)), "{row}");
            }
            Err(words) => {
                let (code, message) = end(&mut bench).unwrap_or_else(|| panic!("it ends: {row}"));
                assert_eq!(code, 2, "{row}");
                assert!(
                    message.contains(words)
                        && message.contains("agent-relay token create --agent a"),
                    "{row}: {message}"
                );
                assert_eq!(got, None, "{row}");
            }
        }
    }
}

#[test]
fn a_refused_registration_ends_the_start_and_later_only_the_token() {
    let error = |code: &str| RelayFrame::Error {
        id: Some("f1".into()),
        code: code.into(),
        message: "not yours".into(),
        retryable: false,
    };
    let mut bench = Bench::restored();
    bench.tell(Event::Bus(BusEvent::Connected));
    bench.tell(Event::Bus(BusEvent::Framed(error("forbidden"))));
    let (code, message) = end(&mut bench).expect("ends");
    assert!(code == 2 && message.contains("refuses to register a: not yours"), "{message}");
    // What is not about rights is said where the start is looked at, and tried again.
    let mut bench = Bench::restored();
    bench.tell(Event::Bus(BusEvent::Connected));
    let effects = bench.tell(Event::Bus(BusEvent::Framed(error("component_taken"))));
    let said = |effect: &Effect| matches!(effect, Effect::Tell { text } if text.contains("does not register a: not yours"));
    assert!(effects.iter().any(said) && bench.agent.stop.is_none(), "{effects:?}");
    // Once it was registered the token is to blame, and a live session goes on.
    let mut bench = Bench::ready();
    bench.tell(Event::Bus(BusEvent::Lost(Cause::Offline("gone".into()))));
    bench.now.tick = bench.now.tick + Duration::from_secs(1);
    bench.agent.wake(bench.now);
    bench.tell(Event::Bus(BusEvent::Connected));
    bench.tell(Event::Bus(BusEvent::Framed(error("forbidden"))));
    assert!(bench.agent.stop.is_none() && bench.agent.relay_link.auth_trouble);
    // In the middle of a connection the word is about something else.
    let mut bench = Bench::ready();
    bench.tell(Event::Bus(BusEvent::Framed(error("forbidden"))));
    assert!(bench.agent.stop.is_none() && !bench.agent.relay_link.auth_trouble);
}

#[test]
fn a_bus_that_is_refused_asks_over_http_who_refuses() {
    for (status, ends) in [(403, true), (404, true), (200, false), (500, false)] {
        let mut bench = Bench::restored();
        bench.tell(Event::Bus(BusEvent::Lost(Cause::Refused(403, "no sockets here".into()))));
        let effects = bench.agent.wake(bench.now);
        answer(&mut bench, &effects, "/api/agents", status, json!({"error": "not yours"}));
        assert_eq!(
            end(&mut bench).map(|(code, _)| code),
            ends.then_some(2),
            "HTTP answers {status}"
        );
        assert!(
            !bench.agent.relay_link.auth_trouble || ends,
            "{status}: the token is not to blame"
        );
    }
}

#[test]
fn the_policy_stands_in_the_token_unless_the_relay_forbids_that() {
    let body_of = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::Heartbeat(HeartbeatCommand::Call { path, body, .. })
                if path == "/api/tokens" =>
            {
                body.clone()
            }
            _ => None,
        })
    };
    let mut bench = Bench::begun(
        |config| {
            plain(config);
            config.registration.meta.insert("policyName".into(), json!("deploy"));
        },
        false,
    );
    assert_eq!(body_of(&bench.begun).expect("makes a token")["policyName"], "deploy");
    let effects = bench.tell(Event::Called {
        call: CallNumber(1),
        result: Ok((403, json!({"error": "no policies"}))),
    });
    let body = body_of(&effects).expect("makes one all the same");
    assert!(body.get("policyName").is_none() && bench.agent.stop.is_none(), "{body}");
}

#[test]
fn a_token_that_is_handed_over_is_looked_at_before_it_is_used() {
    let own = json!({"record": {"jti": "j", "profileId": "provider-agent", "agentId": "a", "expiresAt": 100_000}});
    let other = json!({"record": {"profileId": "provider-agent", "agentId": "b"}});
    for (answer, status) in [
        (Ok((200, own)), 200),
        (Ok((200, other)), 403),
        (Ok((200, json!({"record": {"profileId": "operator"}}))), 403),
        (Ok((401, json!({}))), 401),
        (Err(Cause::Offline("away".into())), 503),
    ] {
        let mut bench = Bench::ready();
        // The fetch of the registration comes first.
        bench.control(ControlRequest::TokenOffered(Secret::new("handed")));
        let second = bench
            .tell(Event::Control(Ticket(10), ControlRequest::TokenOffered(Secret::new("more"))));
        assert_eq!(reply(&second).map(|(status, _)| status), Some(409), "one at a time");
        let unread = CallNumber(2);
        let effects =
            bench.tell(Event::Called { call: unread, result: Ok((200, json!({"messages": []}))) });
        let (call, token) = call_to(&effects, "/api/tokens/self").expect("the relay is asked");
        assert_eq!(token, "handed", "by itself");
        let mut effects = bench.tell(Event::Called { call, result: answer });
        let connects = |effects: &[Effect]| {
            effects.iter().any(|e| matches!(e, Effect::Bus(BusCommand::Connect(to)) if to.token.expose() == "handed"))
        };
        assert_eq!(connects(&effects), status == 200);
        effects.extend(bench.commit());
        assert_eq!(reply(&effects).map(|(status, _)| status), Some(status), "{effects:?}");
        // What was written at the start is still on its way to the file in this bench.
        let mut late = bench.tell(Event::TokenWritten(Ok(())));
        late.extend(bench.commit());
        assert_eq!(written(&late), if status == 200 { vec!["handed"] } else { vec![] }, "{status}");
    }
}

#[test]
fn a_stored_token_is_used_again_only_if_it_names_the_policy() {
    for (wanted, named, used) in [
        (None, None, true),
        (Some("deploy"), Some("deploy"), true),
        (Some("deploy"), None, false),
        (None, Some("deploy"), false),
    ] {
        let bench = Bench::begun(
            |config| {
                plain(config);
                config
                    .registration
                    .meta
                    .extend(wanted.map(|policy| ("policyName".to_string(), json!(policy))));
            },
            false,
        );
        let config = &bench.agent.config;
        let end = bench.now.wall.0 / 1000 + 86_400;
        let record = crate::wire::api::TokenRecord {
            profile_id: "provider-agent".into(),
            agent_id: Some("a".into()),
            policy_name: named.map(str::to_string),
            expires_at: Some(end),
            ..Default::default()
        };
        let note = json!({"token": "stored", "record": record, "url": "http://x"}).to_string();
        let mut tokens = super::super::tokens::Tokens::new(config);
        tokens.restore(bench.now, config, &[("token".into(), note)]);
        assert_eq!(tokens.for_call().is_some(), used, "{wanted:?} is wanted, {named:?} is named");
    }
}
