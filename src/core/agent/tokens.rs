//! The relay token: made at the start from a stronger one, renewed in time, replaced after its
//! end. A runner never ends a live session because of a token.

mod config_file;
mod file;
mod judged;

use std::time::Duration;

use serde_json::{Value, json};

use super::Agent;
use super::config::AgentConfig;
use super::http_calls::{CallKind, text_of};
use super::stop::Why;
use super::store::StoreOp;
use crate::core::agent::timer::Timer;
use crate::core::ids::Ticket;
use crate::core::limits::*;
use crate::core::time::{Now, Tick};
use crate::core::{Cause, backoff};
use crate::secret::Secret;
use crate::wire::api::{TokenRecord, path};
use crate::wire::control::LogLevel;

/// Name of the stored token.
const TOKEN_NOTE: &str = "token";
/// A stored token is used again only if it lives this much longer.
const REUSE_LEFT_MS: i64 = 600_000;
/// The first look into the configuration file after a refusal.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// The provider is started without a token if the relay does not give one by then: an absent relay
/// stops no start.
const TOKEN_WAIT: Duration = Duration::from_secs(2);

/// What is known of the token.
#[derive(Debug)]
pub(super) struct Tokens {
    /// What was handed in: perhaps an operator's.
    given: Option<Secret>,
    /// What is used for calls.
    own: Option<Secret>,
    record: TokenRecord,
    /// A token must be made from `given` before anything else works.
    make: bool,
    refused_once: bool,
    /// `own` is this agent's and no more: it may go to the provider.
    is_agents: bool,
    accepted_once: bool,
    /// The relay does not let us name the policy of the agent.
    without_policy: bool,
    /// The relay has refused to make a token from `given`.
    made_in_vain: bool,
    /// A token that was handed over at the control port, while the relay is asked whose it is.
    offered: Option<(Ticket, Secret)>,
    file: file::TokenFile,
    attempt: u32,
    recovered_at: Option<Tick>,
    /// How often the configuration file was looked at since the last token that worked.
    looks: u32,
    /// It is being read; one look at a time.
    reading: bool,
    /// The relay refused what we have, or wants a token where we have none.
    refused: bool,
    /// No token was given; the first start of a hub may write one at any moment.
    hopes: bool,
}

/// Whether it is an agent's: only those are renewed.
fn is_renewable(record: &TokenRecord) -> bool {
    matches!(record.profile_id.as_str(), "provider-agent" | "provider-interactive")
}

impl Tokens {
    pub fn new(config: &AgentConfig) -> Tokens {
        Tokens {
            given: config.token.clone(),
            own: None,
            record: judged::claimed(config),
            make: config.token.is_some(),
            refused_once: false,
            is_agents: false,
            accepted_once: false,
            without_policy: false,
            made_in_vain: false,
            offered: None,
            file: Default::default(),
            attempt: 0,
            recovered_at: None,
            looks: 0,
            reading: false,
            refused: false,
            hopes: config.token.is_none(),
        }
    }

    /// A token of an earlier run spares the calls, if it is for the same relay and lives long
    /// enough.
    pub fn restore(&mut self, now: Now, config: &AgentConfig, notes: &[(String, String)]) {
        let stored = notes
            .iter()
            .find(|(key, _)| key == TOKEN_NOTE)
            .and_then(|(_, text)| serde_json::from_str::<Value>(text).ok());
        // One that was handed in as this agent's own is meant to be used.
        let Some(stored) = stored.filter(|_| self.make && !is_renewable(&self.record)) else {
            return;
        };
        let record: TokenRecord =
            serde_json::from_value(stored["record"].clone()).unwrap_or_default();
        let lives = record.expires_at.is_some_and(|end| end * 1000 > now.wall.0 + REUSE_LEFT_MS);
        // The relay routes by the policy that stands in the token: one that names another, or was
        // made before that, is of no use.
        let policy = config.registration.meta.get("policyName").and_then(Value::as_str);
        let same = stored["url"] == json!(config.relay_url)
            && record.agent_id.as_deref() == Some(&config.agent_id)
            && record.policy_name.as_deref() == policy;
        if let (true, true, Some(token)) = (lives, same, stored["token"].as_str()) {
            self.own = Some(Secret::new(token));
            self.record = record;
            self.make = false;
            self.is_agents = true;
        }
    }

    /// The token for this call; calls about a token that is not in use yet carry that one.
    pub fn for_purpose(&self, kind: &CallKind) -> Option<Secret> {
        match kind {
            CallKind::MakeToken | CallKind::CheckToken => self.given.clone(),
            CallKind::CheckOffered => self.offered.as_ref().map(|(_, token)| token.clone()),
            CallKind::RenewToken
            | CallKind::Claim(_)
            | CallKind::RenewClaim(_)
            | CallKind::Read(_)
            | CallKind::Obligations
            | CallKind::Unread
            | CallKind::Liveness(_)
            | CallKind::FetchCommand(_)
            | CallKind::PatchCommand(_)
            | CallKind::CommandProgress(_)
            | CallKind::HeldTask(_)
            | CallKind::ReleaseHeld(_) => self.for_call(),
        }
    }

    /// The token for a call; `None` while it has to be made first. Without any token the calls go
    /// without.
    pub fn for_call(&self) -> Option<Secret> {
        match &self.own {
            Some(own) => Some(own.clone()),
            None if self.make => None,
            None => Some(Secret::default()),
        }
    }

    /// For the provider's environment and its file: never the one that was handed in, unless it is
    /// this agent's own.
    pub fn for_provider(&self) -> Option<Secret> {
        if crate::planted::is("open-token") {
            return self.given.clone();
        }
        self.own.clone().filter(|_| self.is_agents)
    }

    /// Notes that the relay has accepted the token in use.
    pub fn note_accepted(&mut self) {
        self.accepted_once = true;
        (self.refused, self.hopes) = (false, false);
    }

    pub fn is_decided(&self) -> bool {
        !self.make || self.own.is_some()
    }

    /// The start of the provider should wait a moment for its token.
    fn is_awaited(&self) -> bool {
        !self.is_decided() || (self.hopes && self.own.is_none())
    }

    pub fn record(&self) -> &TokenRecord {
        &self.record
    }
}

impl Agent {
    pub(super) fn begin_tokens(&mut self, now: Now) {
        if self.tokens.is_awaited() {
            self.timers.set(Timer::TokenWait, now.tick + TOKEN_WAIT);
        }
        if self.tokens.is_decided() {
            self.keep_token_file();
            self.schedule_renewal(now);
            self.connect(now);
        } else {
            self.make_token();
        }
    }

    /// From what was handed in to a token of this agent's own. One that is said to be that already
    /// is only looked at.
    pub(super) fn make_token(&mut self) {
        self.tokens.made_in_vain = false;
        if is_renewable(&judged::claimed(&self.config)) {
            self.check_token()
        } else {
            self.post_token()
        }
    }

    fn post_token(&mut self) {
        let mut body = json!({
            "profileId": "provider-agent", "agentId": self.config.agent_id, "ttlSeconds": AGENT_TOKEN_LIFE.as_secs()
        });
        if let Some(policy) = self.policy() {
            body["policyName"] = policy;
        }
        self.ask(CallKind::MakeToken, "POST", path::TOKENS.into(), Some(body));
    }

    /// The policy that the token is to name: messages are routed by what stands there, never by
    /// what a registration claims.
    fn policy(&self) -> Option<Value> {
        let policy =
            self.config.registration.meta.get("policyName").filter(|policy| policy.is_string());
        policy.filter(|_| !self.tokens.without_policy).cloned()
    }

    pub(super) fn on_token_made(&mut self, now: Now, result: Result<(u16, Value), Cause>) {
        match result {
            Ok((200 | 201, body)) => self.take_token(now, &body),
            Ok((403, _)) if self.policy().is_some() => {
                self.tokens.without_policy = true;
                self.post_token();
            }
            // It may not make tokens, or the relay makes none: whose is it?
            Ok((403 | 404 | 405 | 422, _)) => {
                self.tokens.made_in_vain = true;
                self.check_token();
            }
            Ok((401, body)) => self.on_given_refused(now, &body),
            other => self.on_no_token(now, other),
        }
    }

    /// The relay does not know what was handed in.
    fn on_given_refused(&mut self, now: Now, body: &Value) {
        if !self.was_never_served() {
            self.log(
                LogLevel::Warn,
                "runner",
                "the relay refuses the token; looking for another one in the configuration file",
            );
            return self.look_again(now);
        }
        let text = body.get("error").and_then(Value::as_str).unwrap_or("unknown token").to_string();
        if !self.config.token_by_hand {
            return self.seek_token(now, &format!("refuses the token of config.json ({text})"));
        }
        if self.supervisor.was_ready() {
            return self.look_again(now);
        }
        let message = format!(
            "the relay {} refuses the token: {text}; check --token, AGENT_RELAY_TOKEN or \"token\" in config.json",
            self.config.relay_url
        );
        self.begin_stop(now, Why::Refused(message));
    }

    /// Asks again after a moment: nothing is known of the token yet.
    fn on_no_token(&mut self, now: Now, result: Result<(u16, Value), Cause>) {
        let text = match result {
            Ok((status, body)) => text_of(status, &body),
            Err(cause) => cause.to_string(),
        };
        if self.status.may_log(now, &format!("token: {text}")) {
            self.log(
                LogLevel::Warn,
                "runner",
                format!("cannot get a token from {}: {text}", self.config.relay_url),
            );
        }
        self.relay_link.last_error = Some((text, now.tick));
        self.look_while_away();
        let pause =
            backoff::reconnect(self.tokens.attempt, &mut self.rng).max(Duration::from_millis(100));
        self.tokens.attempt = self.tokens.attempt.saturating_add(1);
        self.timers.set(Timer::TokenRetry, now.tick + pause);
    }

    fn take_token(&mut self, now: Now, body: &Value) {
        let Some(token) = body.get("token").and_then(Value::as_str) else {
            self.timers.set(Timer::TokenRetry, now.tick + TOKEN_RETRY);
            return;
        };
        let old_profile = std::mem::take(&mut self.tokens.record.profile_id);
        let mut record: TokenRecord =
            serde_json::from_value(body["record"].clone()).unwrap_or_default();
        if record.profile_id.is_empty() {
            record.profile_id =
                if old_profile.is_empty() { "provider-agent".into() } else { old_profile };
        }
        record.agent_id.get_or_insert_with(|| self.config.agent_id.clone());
        let note =
            json!({"token": token, "record": record, "url": self.config.relay_url}).to_string();
        self.commits.write(StoreOp::PutMeta { key: TOKEN_NOTE.into(), value: Some(note) });
        self.tokens.is_agents = true;
        self.tokens.accepted_once = true;
        self.use_token(now, Secret::new(token), record);
    }

    /// Uses this token from now on, for calls, the bus and, if it is this agent's, the provider.
    fn use_token(&mut self, now: Now, token: Secret, record: TokenRecord) {
        self.tokens.own = Some(token);
        self.tokens.record = record;
        self.tokens.make = false;
        self.tokens.attempt = 0;
        self.timers.clear(Timer::TokenRetry);
        self.timers.clear(Timer::ConfigLook);
        self.tokens.looks = 0;
        (self.tokens.refused, self.tokens.hopes) = (false, false);
        self.keep_token_file();
        self.schedule_renewal(now);
        self.status.touch();
        self.on_auth_restored(now);
        self.begin_supervision();
    }

    fn schedule_renewal(&mut self, now: Now) {
        let renewable = is_renewable(&self.tokens.record);
        let clock = self.relay_link.clock(now);
        let ttl = self.tokens.record.expires_at.filter(|_| renewable).map(|end| end * 1000 - clock);
        let delay = ttl.and_then(|ttl| backoff::token_renewal(ttl, self.rng.unit()));
        match delay {
            Some(delay) => self.timers.set(Timer::TokenRenewal, now.tick + delay),
            None => self.timers.clear(Timer::TokenRenewal),
        }
        if ttl.is_some() && delay.is_none() {
            self.timers.set(Timer::ConfigLook, now.tick + TOKEN_RETRY);
        }
    }

    /// The time of the relay is known better than before.
    pub(super) fn renew_by_clock(&mut self, now: Now) {
        if self.tokens.own.is_some() && !self.http_calls.has(&CallKind::RenewToken) {
            self.schedule_renewal(now);
        }
    }

    pub(super) fn on_token_renewed(&mut self, now: Now, result: Result<(u16, Value), Cause>) {
        match result {
            Ok((status, body))
                if status < 300 && body.get("token").is_some_and(Value::is_string) =>
            {
                self.log(LogLevel::Info, "runner", "runtime token renewed");
                self.status.timeline("runtime-token-renewed", now);
                self.take_token(now, &body);
            }
            other => {
                let text = match &other {
                    Ok((status, body)) => text_of(*status, body),
                    Err(cause) => cause.to_string(),
                };
                if self.status.may_log(now, &format!("renewal: {text}")) {
                    self.log(LogLevel::Warn, "runner", format!("token renewal failed: {text}"));
                }
                self.status.timeline("runtime-token-renewal-failed", now);
                // A refused token cannot renew itself: make one anew from what was handed in, or
                // look for another.
                if matches!(other, Ok((401 | 403, _))) {
                    self.replace_token(now);
                } else {
                    self.timers.set(Timer::TokenRenewal, now.tick + TOKEN_RETRY);
                }
            }
        }
    }

    fn replace_token(&mut self, now: Now) {
        self.timers.clear(Timer::TokenRenewal);
        let given_is_stronger =
            self.config.token_profile.as_deref().is_none_or(|p| !p.starts_with("provider-"));
        if self.tokens.given.is_some() && given_is_stronger && !self.tokens.refused_once {
            self.tokens.refused_once = true;
            self.make_token();
        } else {
            self.tokens.refused_once = false;
            self.timers.set(Timer::ConfigLook, now.tick + TOKEN_RETRY);
        }
    }

    /// A call was refused: one renewal at once, at most one such attempt in 60 s.
    pub(super) fn recover_token(&mut self, now: Now, place: &str) {
        if self.tokens.recovered_at.is_some_and(|at| now.tick - at < TOKEN_RETRY)
            || self.stop.is_some()
        {
            return;
        }
        self.tokens.recovered_at = Some(now.tick);
        self.log(
            LogLevel::Warn,
            "runner",
            format!("the relay refuses the token ({place}); trying to get another"),
        );
        if self.tokens.own.is_some()
            && self.tokens.accepted_once
            && is_renewable(&self.tokens.record)
        {
            self.ask(CallKind::RenewToken, "POST", path::TOKEN_RENEW.into(), None);
        } else if self.tokens.given.is_some() {
            // A stored or handed-in token that never worked in this supervisor: start over from
            // what was handed in.
            self.make_token();
        } else {
            self.seek_token(now, "wants a token, and there is none");
        }
    }

    /// No relay has taken us since this runner started.
    fn was_never_served(&self) -> bool {
        !self.tokens.accepted_once && self.relay_link.epoch == 0
    }

    /// Renews the token, which is old enough.
    pub(super) fn on_renewal_due(&mut self) {
        if self.tokens.accepted_once {
            self.timers.clear(Timer::TokenRenewal);
            self.ask(CallKind::RenewToken, "POST", path::TOKEN_RENEW.into(), None);
        } else {
            // Whether it is this agent's at all the relay has yet to say.
            self.timers.set(Timer::TokenRenewal, self.now.tick + TOKEN_RETRY);
        }
    }

    /// Whether the provider may be started: the token is decided, or it took too long.
    pub(super) fn may_spawn_without_token(&self) -> bool {
        !self.tokens.is_awaited() || !self.timers.is_set(Timer::TokenWait)
    }
}
