//! Decides whose a token is, by its own record. A token that is not this agent's never goes to the
//! provider and registers nothing.

use crate::core::http::GateCommand;
use serde_json::{Value, json};

use super::{Tokens, is_renewable};
use crate::core::Cause;
use crate::core::agent::Agent;
use crate::core::agent::config::AgentConfig;
use crate::core::agent::effect::Effect;
use crate::core::agent::http_calls::{CallKind, text_of};
use crate::core::agent::stop::Why;
use crate::core::ids::Ticket;
use crate::core::time::Now;
use crate::secret::Secret;
use crate::wire::api::{TokenRecord, error_body, path};
use crate::wire::control::LogLevel;

/// What whoever started the runner says of the token.
pub(super) fn claimed(config: &AgentConfig) -> TokenRecord {
    TokenRecord {
        profile_id: config.token_profile.clone().unwrap_or_default(),
        jti: config.token_jti.clone().unwrap_or_default(),
        expires_at: config.token_expires_at,
        ..Default::default()
    }
}

/// What a relay says of a token.
enum TokenAnswer {
    /// This is its record.
    Record(TokenRecord),
    /// The relay does not tell about tokens.
    Nothing,
    /// The relay does not know it.
    Unknown(Value),
    /// Nobody can say for now.
    Later(Result<(u16, Value), Cause>),
}

fn told(result: Result<(u16, Value), Cause>) -> TokenAnswer {
    match result {
        Ok((200, body)) => match TokenRecord::of_answer(&body) {
            record if record.profile_id.is_empty() => TokenAnswer::Nothing,
            record => TokenAnswer::Record(record),
        },
        Ok((403..=405, _)) => TokenAnswer::Nothing,
        Ok((401, body)) => TokenAnswer::Unknown(body),
        other => TokenAnswer::Later(other),
    }
}

/// A token in words, for who handed in the wrong one.
fn in_words(record: &TokenRecord) -> String {
    match &record.agent_id {
        Some(agent) => format!("a token of the agent {agent}"),
        None => format!("a token of the profile {}", record.profile_id),
    }
}

impl Tokens {
    /// From here on `own` is used: the one that was handed in, as far as it is known to be this
    /// agent's.
    fn adopt(&mut self, is_agents: bool, known: bool) -> Secret {
        self.is_agents = is_agents;
        self.accepted_once |= known;
        self.given.clone().unwrap_or_default()
    }
}

impl Agent {
    pub(super) fn check_token(&mut self) {
        self.ask(CallKind::CheckToken, "GET", path::TOKEN_SELF.into(), None);
    }

    fn is_own(&self, record: &TokenRecord) -> bool {
        is_renewable(record) && record.agent_id.as_deref() == Some(&self.config.agent_id)
    }

    pub(in crate::core::agent) fn on_token_checked(
        &mut self,
        now: Now,
        result: Result<(u16, Value), Cause>,
    ) {
        match told(result) {
            TokenAnswer::Record(record) if self.is_own(&record) => {
                let token = self.tokens.adopt(true, true);
                self.use_token(now, token, record);
            }
            TokenAnswer::Record(record) => {
                // What was said of it was wrong: it may be one that makes tokens.
                if record.agent_id.is_none() && !self.tokens.made_in_vain {
                    return self.post_token();
                }
                self.refuse_given(now, &record);
            }
            TokenAnswer::Nothing => {
                let record = claimed(&self.config);
                let token = self.tokens.adopt(is_renewable(&record), false);
                self.use_token(now, token, record);
            }
            TokenAnswer::Unknown(body) => self.on_given_refused(now, &body),
            TokenAnswer::Later(result) => self.on_no_token(now, result),
        }
    }

    /// It acts as somebody else, or as nobody: with it this agent is never registered.
    fn refuse_given(&mut self, now: Now, record: &TokenRecord) {
        let agent = &self.config.agent_id;
        let text = format!(
            "the token is {}, which may neither act as {agent} nor make a token for it; make one with `agent-relay token create --agent {agent}` and set \
             AGENT_RELAY_TOKEN to it",
            in_words(record)
        );
        if !self.relay_link.known_instance {
            return self.begin_stop(now, Why::Refused(text));
        }
        if self.status.may_log(now, &text) {
            self.log(LogLevel::Warn, "runner", text);
        }
        self.look_again(now);
    }

    /// The relay will not have this agent with this token. Before it ever had it that is a mistake
    /// of whoever started the runner; later the token has become useless, which is mended like any
    /// other such case.
    pub(in crate::core::agent) fn on_registration_refused(&mut self, now: Now, text: &str) {
        // Whoever has no token at all still hopes for one.
        if self.relay_link.known_instance || self.stop.is_some() || self.tokens.own.is_none() {
            return self.on_auth_trouble(now, "registration");
        }
        let agent = &self.config.agent_id;
        let message = format!(
            "the relay {} refuses to register {agent}: {text}; the token must be an operator's, or this agent's: `agent-relay token create --agent {agent}`",
            self.config.relay_url
        );
        self.begin_stop(now, Why::Refused(message));
    }

    /// A token is handed over at the control port. The relay is asked whose it is; the answer
    /// follows then.
    pub(in crate::core::agent) fn on_token_offered(
        &mut self,
        ticket: Ticket,
        token: Secret,
    ) -> Option<(u16, Value)> {
        if self.tokens.offered.is_some() {
            return Some((409, error_body("busy", "another token is being looked at; try again")));
        }
        if self.stop.is_some() {
            return Some((409, error_body("stopping", "the runner is stopping")));
        }
        self.tokens.offered = Some((ticket, token));
        self.ask(CallKind::CheckOffered, "GET", path::TOKEN_SELF.into(), None);
        None
    }

    pub(in crate::core::agent) fn on_offer_checked(
        &mut self,
        now: Now,
        result: Result<(u16, Value), Cause>,
    ) {
        let Some((ticket, token)) = self.tokens.offered.take() else { return };
        let (status, body) = match told(result) {
            TokenAnswer::Record(record) if self.is_own(&record) => {
                self.take_offered(now, &token, &record, true);
                (200, json!({"ok": true, "record": record}))
            }
            TokenAnswer::Record(record) => {
                let text =
                    format!("that is {}, not one of {}", in_words(&record), self.config.agent_id);
                (403, error_body("forbidden", &text))
            }
            TokenAnswer::Nothing => {
                let record = claimed(&self.config);
                self.take_offered(now, &token, &record, is_renewable(&record));
                (200, json!({"ok": true}))
            }
            TokenAnswer::Unknown(_) => {
                (401, error_body("unauthorized", "the relay does not know that token"))
            }
            TokenAnswer::Later(result) => {
                let text = match result {
                    Ok((status, body)) => text_of(status, &body),
                    Err(cause) => cause.to_string(),
                };
                (
                    503,
                    error_body(
                        "unreachable",
                        &format!("the relay cannot say whose token that is: {text}; try again"),
                    ),
                )
            }
        };
        self.commits.defer(Effect::Gate(GateCommand::Respond {
            ticket,
            status,
            body: body.into(),
        }));
    }

    fn take_offered(&mut self, now: Now, token: &Secret, record: &TokenRecord, is_agents: bool) {
        self.log(LogLevel::Info, "runner", "another relay token was handed over");
        // One that makes tokens stays what new ones are made from.
        if self.tokens.given.is_none() || is_renewable(&claimed(&self.config)) {
            self.tokens.given = Some(token.clone());
        }
        if is_agents {
            return self.take_token(now, &json!({"token": token.expose(), "record": record}));
        }
        // Nobody says whose it is: it is not for the provider.
        self.tokens.is_agents = false;
        self.use_token(now, token.clone(), record.clone());
    }
}
