//! Tokens: made, renewed, listed and revoked. Only their hashes are kept.

use crate::core::http::{GateCommand, LineClass};
use std::sync::Arc;

use serde_json::{Value, json};

use super::Hub;
use super::Refusal;
use super::event::{Effect, HubOp};
use super::rights::{
    ADMIN, ORCHESTRATOR, TOKEN_ISSUE, allows, forbidden, is_runtime, line_of, name_of, scopes_for,
};
use crate::core::ids::PeerId;
use crate::core::limits::OLD_TOKEN_LIFE;
use crate::wire::api::{AGENT_ID_RULE, TokenRecord, is_agent_id};
use crate::wire::bus::CLOSE_UNAUTHORIZED;

/// Longest life of a token that is not the root's, seconds.
const TTL_SECONDS_MAX: i64 = 366 * 24 * 3600;
/// Longest name, policy and maker in a token's record.
const WORD_BYTES_MAX: usize = 200;

impl Hub {
    /// The record of a live token.
    pub(super) fn token_of(&self, token: &str) -> Option<Arc<TokenRecord>> {
        if token.is_empty() || token.len() > 512 {
            return None;
        }
        let record = self.tokens.get(&(self.config.hash)(token))?;
        let lives = record.expires_at.is_none_or(|end| end * 1000 > self.now.wall.0);
        lives.then(|| record.clone())
    }

    /// A token is valid from now on; the gate counts by its line what comes with it.
    pub(super) fn know_token(&mut self, hash: String, record: Arc<TokenRecord>) {
        let is_agent = is_runtime(&record.profile_id);
        let class = if is_agent { LineClass::Agent } else { LineClass::People };
        let line = line_of(&record).into();
        self.out.push(Effect::Gate(GateCommand::TokenKnown { hash: hash.clone(), line, class }));
        self.tokens.insert(hash, record);
    }

    /// It is not valid any more.
    pub(super) fn forget_token(&mut self, hash: &str) {
        self.tokens.remove(hash);
        self.out.push(Effect::Gate(GateCommand::TokenGone { hash: hash.to_string() }));
    }

    pub(super) fn make_token(
        &mut self,
        actor: &TokenRecord,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
        let profile = text("profileId");
        let runtime = is_runtime(profile);
        if !runtime && !matches!(profile, "operator" | "orchestrator") {
            let text = "\"profileId\" must be provider-agent, provider-interactive, orchestrator or operator";
            return Err((422, "bad_profile", text.into()));
        }
        if !allows(actor, if runtime { TOKEN_ISSUE } else { ADMIN }) {
            return Err(forbidden(
                "making this token needs the scope token:issue (tokens of agents) or admin",
            ));
        }
        let agent = self.agent_of_token(actor, runtime, text("agentId"), profile)?;
        let ttl = ttl_in(body)?;
        let wanted = scopes_in(body)?;
        let scopes = scopes_for(actor, profile, wanted.as_deref())?;
        let name = word_in(body, "name")?;
        let policy_name = word_in(body, "policyName")?;
        let spawned_by = word_in(body, "spawnedBy")?;
        if let Some(name) = name.as_deref().filter(|_| profile == ORCHESTRATOR) {
            self.check_orchestrators_name(name)?;
        }
        let spawned_by = if actor.profile_id == ORCHESTRATOR {
            Some(name_of(actor).to_string())
        } else {
            spawned_by
        };
        let record = TokenRecord {
            profile_id: profile.into(),
            agent_id: agent,
            scopes,
            name,
            policy_name,
            spawned_by,
            ..Default::default()
        };
        Ok(self.put_token(record, ttl))
    }

    /// The agent that a new token acts as. An orchestrator makes tokens for the agents that it has
    /// made, and for new ones.
    fn agent_of_token(
        &self,
        actor: &TokenRecord,
        runtime: bool,
        agent: &str,
        profile: &str,
    ) -> Result<Option<String>, Refusal> {
        match (runtime, agent) {
            (false, "") => return Ok(None),
            (true, "") => {
                return Err((422, "no_agent", "a runtime token needs an \"agentId\"".into()));
            }
            (false, _) => {
                return Err((
                    422,
                    "no_agent",
                    format!(
                        "a token of the profile {profile} acts as no agent; leave \"agentId\" out"
                    ),
                ));
            }
            (true, id) if !is_agent_id(id) => {
                return Err((
                    422,
                    "bad_agent_id",
                    format!("{id:?} cannot be an agent id: {AGENT_ID_RULE}"),
                ));
            }
            (true, _) => {}
        }
        if self.is_orchestrators_name(agent) {
            return Err((422, "name_taken", format!("{agent} is the name of an orchestrator")));
        }
        if actor.profile_id == ORCHESTRATOR {
            if self.agents.contains_key(agent) {
                self.may_act(actor, agent)?
            } else {
                self.must_be_new(actor, agent)?
            }
        }
        Ok(Some(agent.to_string()))
    }

    /// An orchestrator speaks and gets mail under its name, so nobody else may have it.
    fn check_orchestrators_name(&self, name: &str) -> Result<(), Refusal> {
        if !is_agent_id(name) {
            return Err((
                422,
                "bad_name",
                format!("{name:?} cannot be an orchestrator's name: {AGENT_ID_RULE}"),
            ));
        }
        if self.has_mailbox(name) || self.is_orchestrators_name(name) {
            Err((
                422,
                "name_taken",
                format!("{name} is the name of an agent or of another orchestrator"),
            ))
        } else {
            Ok(())
        }
    }

    /// Whether this token may list and revoke that one.
    fn may_manage(&self, actor: &TokenRecord, record: &TokenRecord) -> bool {
        if allows(actor, ADMIN) {
            return true;
        }
        let spawned = actor.profile_id != ORCHESTRATOR
            || record.spawned_by.as_deref() == Some(name_of(actor));
        allows(actor, TOKEN_ISSUE) && is_runtime(&record.profile_id) && spawned
    }

    fn put_token(&mut self, record: TokenRecord, ttl: i64) -> Value {
        let token = (self.config.secret)();
        let now = self.now.wall.0 / 1000;
        let record = TokenRecord {
            jti: self.rng.uuid(),
            issued_at: now,
            expires_at: Some(now + ttl),
            ..record
        };
        let hash = (self.config.hash)(&token);
        self.know_token(hash.clone(), Arc::new(record.clone()));
        self.commits.write(HubOp::TokenPut { hash, record: record.clone() });
        json!({"token": token, "record": record})
    }

    /// The old token lives five more minutes, so that requests in flight succeed.
    pub(super) fn renew_token(&mut self, token: &str) -> Result<Value, Refusal> {
        let hash = (self.config.hash)(token);
        let Some(old) = self.tokens.get(&hash).cloned() else {
            return Err((401, "unauthorized", "the token is unknown or has expired".into()));
        };
        if !is_runtime(&old.profile_id) {
            return Err((
                403,
                "not_renewable",
                format!("tokens of the profile {} cannot be renewed", old.profile_id),
            ));
        }
        let now = self.now.wall.0 / 1000;
        // How long its line was to live: the life of an older token may have been cut short by an
        // earlier renewal.
        let life = |record: &TokenRecord| {
            record.expires_at.map_or(24 * 3600, |end| end - record.issued_at)
        };
        let of_line = |record: &TokenRecord| line_of(record) == line_of(&old);
        let ttl = self
            .tokens
            .values()
            .filter(|record| of_line(record))
            .map(|record| life(record))
            .max()
            .unwrap_or(1)
            .max(1);
        // A line has the newest token and the one before; what an answer that got lost had brought
        // goes.
        let line = line_of(&old).to_string();
        let others: Vec<(String, Arc<TokenRecord>)> =
            self.tokens_where(|record| line_of(record) == line && record.jti != old.jti);
        for (hash, record) in others {
            self.forget_token(&hash);
            self.commits.write(HubOp::TokenDelete { hash });
            self.close_peers_of(&record.jti);
        }
        let answer = self
            .put_token(TokenRecord { renewed_from: Some(line), ..TokenRecord::clone(&old) }, ttl);
        let end = old.expires_at.unwrap_or(i64::MAX).min(now + OLD_TOKEN_LIFE.as_secs() as i64);
        let record = TokenRecord { expires_at: Some(end), ..TokenRecord::clone(&old) };
        // Connections made with the old one end with it.
        let shared = Arc::new(record.clone());
        for peer in self.peers.values_mut().filter(|peer| peer.token.jti == old.jti) {
            peer.token = shared.clone();
        }
        self.know_token(hash.clone(), Arc::new(record.clone()));
        self.commits.write(HubOp::TokenPut { hash, record });
        Ok(answer)
    }

    fn tokens_where(&self, fits: impl Fn(&TokenRecord) -> bool) -> Vec<(String, Arc<TokenRecord>)> {
        self.tokens
            .iter()
            .filter(|(_, record)| fits(record))
            .map(|(hash, record)| (hash.clone(), record.clone()))
            .collect()
    }

    /// Records without their secrets: all for `admin`, those of agents for who may make them.
    pub(super) fn list_tokens(&self, actor: &TokenRecord) -> Result<Value, Refusal> {
        if !allows(actor, TOKEN_ISSUE) {
            return Err(forbidden("listing tokens needs the scope token:issue or admin"));
        }
        let mut records = self.tokens_where(|record| self.may_manage(actor, record));
        records.sort_by(|(_, a), (_, b)| (a.issued_at, &a.jti).cmp(&(b.issued_at, &b.jti)));
        Ok(json!({"tokens": records.iter().map(|(_, record)| &**record).collect::<Vec<_>>()}))
    }

    pub(super) fn delete_token(&mut self, actor: &TokenRecord, jti: &str) -> Result<(), Refusal> {
        if !allows(actor, TOKEN_ISSUE) {
            return Err(forbidden("revoking tokens needs the scope token:issue or admin"));
        }
        // Also by the id of the first one, which is what its maker knows.
        let Some((_, record)) =
            self.tokens_where(|record| record.jti == jti || line_of(record) == jti).pop()
        else {
            return Err((404, "not_found", "there is no such token".into()));
        };
        if !self.may_manage(actor, &record) {
            return Err(forbidden("revoking this token needs the root token"));
        }
        // Whoever renewed a token that got into wrong hands must not stay: the whole line goes.
        let line = line_of(&record).to_string();
        let whole = self.tokens_where(|record| line_of(record) == line);
        let at = self.now.wall.0 / 1000;
        // A copy of the data may hold ones of the line that are not known any more; none of them
        // lives longer than the longest.
        let expires_at = whole
            .iter()
            .map(|(_, record)| record.expires_at.unwrap_or(i64::MAX))
            .max()
            .filter(|end| *end < i64::MAX);
        for (hash, record) in whole {
            self.forget_token(&hash);
            self.commits.write(HubOp::TokenRevoke { hash, jti: line.clone(), expires_at, at });
            self.close_peers_of(&record.jti);
        }
        Ok(())
    }

    /// Connections of a token that is gone.
    fn close_peers_of(&mut self, jti: &str) {
        let peers: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.token.jti == jti)
            .map(|(number, _)| *number)
            .collect();
        for peer in peers {
            self.send_error(peer, None, "token_expired", "the token was revoked or has expired");
            self.on_peer_closed(peer);
            self.out.push(Effect::Gate(GateCommand::PeerClose {
                peer,
                code: CLOSE_UNAUTHORIZED,
                reason: "token expired".into(),
            }));
        }
    }

    pub(super) fn expire_tokens(&mut self) {
        let now = self.now.wall.0;
        let over = |record: &TokenRecord| record.expires_at.is_some_and(|end| end * 1000 <= now);
        let ended: Vec<String> = self
            .peers
            .values()
            .filter(|peer| over(&peer.token))
            .map(|peer| peer.token.jti.clone())
            .collect();
        for jti in ended {
            self.close_peers_of(&jti);
        }
        let late: Vec<String> = self
            .tokens
            .iter()
            .filter(|(_, record)| record.expires_at.is_some_and(|end| end * 1000 + 3_600_000 < now))
            .map(|(hash, _)| hash.clone())
            .collect();
        for hash in late {
            self.forget_token(&hash);
            self.commits.write(HubOp::TokenDelete { hash });
        }
    }
}

/// How long a new token is to live, seconds.
fn ttl_in(body: &Value) -> Result<i64, Refusal> {
    let ttl = match body.get("ttlSeconds").filter(|ttl| !ttl.is_null()) {
        None => 24 * 3600,
        Some(ttl) => ttl.as_i64().ok_or((
            400,
            "bad_ttl",
            "\"ttlSeconds\" must be a whole number".to_string(),
        ))?,
    };
    if !(1..=TTL_SECONDS_MAX).contains(&ttl) {
        return Err((422, "bad_ttl", format!("\"ttlSeconds\" must be 1 to {TTL_SECONDS_MAX}")));
    }
    Ok(ttl)
}

/// The scopes that a new token is to have; `None`: those of its profile.
fn scopes_in(body: &Value) -> Result<Option<Vec<&str>>, Refusal> {
    let Some(told) = body.get("scopes").filter(|scopes| !scopes.is_null()) else {
        return Ok(None);
    };
    let texts = told
        .as_array()
        .and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<&str>>>());
    match texts {
        Some(texts) => Ok(Some(texts)),
        None => Err((400, "bad_scopes", "\"scopes\" must be a list of texts".to_string())),
    }
}

/// A name in the record of a new token: one line, not too long; empty is as good as absent.
fn word_in(body: &Value, field: &str) -> Result<Option<String>, Refusal> {
    let told = match body.get(field) {
        None | Some(Value::Null) => "",
        Some(told) => {
            told.as_str().ok_or((400, "bad_word", format!("{field:?} must be a text")))?
        }
    };
    if told.len() > WORD_BYTES_MAX || told.chars().any(char::is_control) {
        return Err((
            422,
            "bad_word",
            format!("{field:?} must be a text of one line, at most {WORD_BYTES_MAX} bytes"),
        ));
    }
    Ok(Some(told).filter(|told| !told.is_empty()).map(str::to_string))
}
