//! Tokens and scopes (protocol sections 1 and 6, D-3). Only hashes are kept.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Hub;
use super::Refusal;
use super::event::{Effect, HubOp};
use crate::core::ids::PeerId;
use crate::core::limits::OLD_TOKEN_LIFE;
use crate::wire::api::TokenRecord;
use crate::wire::bus::CLOSE_UNAUTHORIZED;

/// Scopes of a profile.
pub fn scopes_of(profile: &str) -> &'static [&'static str] {
    match profile {
        "root" => &["admin"],
        "operator" => &[
            "agent:self",
            "message:send",
            "message:read",
            "message:claim",
            "task:update",
            "command:issue",
            "command:update",
            "artifact:read",
            "artifact:write",
            "spawn",
        ],
        "orchestrator" => &["agent:self", "message:send", "message:read", "command:issue", "command:update", "spawn"],
        "provider-agent" | "provider-interactive" => &[
            "agent:self",
            "message:send",
            "message:read",
            "message:claim",
            "task:update",
            "command:update",
            "artifact:read",
            "artifact:write",
            "insight:write",
        ],
        _ => &[],
    }
}

/// Whether a token has a scope; `admin` has all.
pub fn allows(token: &TokenRecord, scope: &str) -> bool {
    token.scopes.iter().any(|own| own == scope || own == "admin")
}

/// Whether a profile is an agent's.
pub(super) fn is_runtime(profile: &str) -> bool {
    matches!(profile, "provider-agent" | "provider-interactive")
}

/// What all renewals of one token have in common.
fn line_of(record: &TokenRecord) -> &str {
    record.renewed_from.as_deref().unwrap_or(&record.jti)
}

/// Longest life of a token that is not the root's, seconds.
const TTL_SECONDS_MAX: i64 = 366 * 24 * 3600;

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

    pub(super) fn make_token(&mut self, actor: &TokenRecord, body: &Value) -> Result<Value, Refusal> {
        let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
        let profile = text("profileId");
        let runtime = is_runtime(profile);
        let may = allows(actor, "admin") || (runtime && actor.profile_id == "operator");
        if !may {
            return Err((403, "forbidden", "making this token needs an operator's token (runtime profiles) or the root token".into()));
        }
        if !runtime && !matches!(profile, "operator" | "orchestrator") {
            let text = "\"profileId\" must be provider-agent, provider-interactive, orchestrator or operator";
            return Err((422, "bad_profile", text.into()));
        }
        let agent = Some(text("agentId")).filter(|id| !id.is_empty()).map(str::to_string);
        if runtime && agent.is_none() {
            return Err((422, "no_agent", "a runtime token needs an \"agentId\"".into()));
        }
        if !runtime && agent.is_some() {
            return Err((422, "no_agent", format!("a token of the profile {profile} acts as no agent; leave \"agentId\" out")));
        }
        if let Some(agent) = agent.as_ref().filter(|agent| !crate::wire::api::is_agent_id(agent)) {
            return Err((422, "bad_agent_id", format!("{agent:?} cannot be an agent id: {}", crate::wire::api::AGENT_ID_RULE)));
        }
        let ttl = match body.get("ttlSeconds").filter(|ttl| !ttl.is_null()) {
            None => 24 * 3600,
            Some(ttl) => ttl.as_i64().ok_or((400, "bad_ttl", "\"ttlSeconds\" must be a whole number".to_string()))?,
        };
        if !(1..=TTL_SECONDS_MAX).contains(&ttl) {
            return Err((422, "bad_ttl", format!("\"ttlSeconds\" must be 1 to {TTL_SECONDS_MAX}")));
        }
        let all = scopes_of(profile);
        let scopes = match body.get("scopes").filter(|scopes| !scopes.is_null()) {
            None => all.iter().map(|s| s.to_string()).collect(),
            // Less than the profile has, never more; a slip of the pen must not make a token that can do nothing.
            Some(told) => {
                let list = told.as_array().ok_or((400, "bad_scopes", "\"scopes\" must be a list of texts".to_string()))?;
                let known = |scope: &Value| scope.as_str().filter(|scope| all.contains(scope)).map(str::to_string);
                let unknown = list.iter().find(|scope| known(scope).is_none());
                if let Some(unknown) = unknown {
                    let text = format!("the profile {profile} does not have the scope {unknown}; it has {}", all.join(", "));
                    return Err((422, "bad_scopes", text));
                }
                list.iter().filter_map(known).collect()
            }
        };
        Ok(self.put_token(profile, agent.filter(|_| runtime), scopes, ttl, None))
    }

    fn put_token(&mut self, profile: &str, agent_id: Option<String>, scopes: Vec<String>, ttl: i64, renewed_from: Option<String>) -> Value {
        let token = (self.config.secret)();
        let now = self.now.wall.0 / 1000;
        let record = TokenRecord {
            jti: self.rng.uuid(),
            profile_id: profile.into(),
            agent_id,
            renewed_from,
            scopes,
            issued_at: now,
            expires_at: Some(now + ttl),
        };
        let hash = (self.config.hash)(&token);
        self.tokens.insert(hash.clone(), Arc::new(record.clone()));
        self.ops.push(HubOp::TokenPut { hash, record: record.clone() });
        json!({"token": token, "record": record})
    }

    /// The old token lives five more minutes, so that requests in flight succeed (protocol section 6).
    pub(super) fn renew_token(&mut self, token: &str) -> Result<Value, Refusal> {
        let hash = (self.config.hash)(token);
        let Some(old) = self.tokens.get(&hash).cloned() else {
            return Err((401, "unauthorized", "the token is unknown or has expired".into()));
        };
        if !is_runtime(&old.profile_id) {
            return Err((403, "not_renewable", format!("tokens of the profile {} cannot be renewed", old.profile_id)));
        }
        let now = self.now.wall.0 / 1000;
        let ttl = old.expires_at.map_or(24 * 3600, |end| end - old.issued_at).max(1);
        let answer = self.put_token(&old.profile_id, old.agent_id.clone(), old.scopes.clone(), ttl, Some(line_of(&old).to_string()));
        let end = old.expires_at.unwrap_or(i64::MAX).min(now + OLD_TOKEN_LIFE.as_secs() as i64);
        let record = TokenRecord { expires_at: Some(end), ..TokenRecord::clone(&old) };
        // Connections made with the old one end with it.
        let shared = Arc::new(record.clone());
        for peer in self.peers.values_mut().filter(|peer| peer.token.jti == old.jti) {
            peer.token = shared.clone();
        }
        self.tokens.insert(hash.clone(), Arc::new(record.clone()));
        self.ops.push(HubOp::TokenPut { hash, record });
        Ok(answer)
    }

    /// Records without their secrets: all for `admin`, those of agents for operators.
    pub(super) fn list_tokens(&self, actor: &TokenRecord) -> Result<Value, Refusal> {
        let all = allows(actor, "admin");
        if !all && actor.profile_id != "operator" {
            return Err((403, "forbidden", "listing tokens needs an operator's token or the root token".into()));
        }
        let mut records: Vec<&TokenRecord> =
            self.tokens.values().map(|record| &**record).filter(|record| all || is_runtime(&record.profile_id)).collect();
        records.sort_by(|a, b| (a.issued_at, &a.jti).cmp(&(b.issued_at, &b.jti)));
        Ok(json!({"tokens": records}))
    }

    pub(super) fn delete_token(&mut self, actor: &TokenRecord, jti: &str) -> Result<(), Refusal> {
        let found = self.tokens.iter().find(|(_, record)| record.jti == jti).map(|(hash, record)| (hash.clone(), record.clone()));
        let Some((_, record)) = found else {
            return Err((404, "not_found", "there is no such token".into()));
        };
        let runtime = is_runtime(&record.profile_id);
        if !allows(actor, "admin") && !(runtime && actor.profile_id == "operator") {
            return Err((403, "forbidden", "revoking this token needs the root token".into()));
        }
        // Whoever renewed a token that got into wrong hands must not stay: the whole line goes.
        let line = line_of(&record).to_string();
        let whole: Vec<(String, Arc<TokenRecord>)> =
            self.tokens.iter().filter(|(_, record)| line_of(record) == line).map(|(hash, record)| (hash.clone(), record.clone())).collect();
        let at = self.now.wall.0 / 1000;
        for (hash, record) in whole {
            self.tokens.remove(&hash);
            self.ops.push(HubOp::TokenRevoke { hash, jti: record.jti.clone(), expires_at: record.expires_at, at });
            self.close_peers_of(&record.jti);
        }
        Ok(())
    }

    /// Connections of a token that is gone.
    fn close_peers_of(&mut self, jti: &str) {
        let peers: Vec<PeerId> = self.peers.iter().filter(|(_, peer)| peer.token.jti == jti).map(|(number, _)| *number).collect();
        for peer in peers {
            self.send_error(peer, None, "token_expired", "the token was revoked or has expired");
            self.on_peer_closed(peer);
            self.out.push(Effect::PeerClose { peer, code: CLOSE_UNAUTHORIZED, reason: "token expired".into() });
        }
    }

    pub(super) fn expire_tokens(&mut self) {
        let now = self.now.wall.0;
        let over = |record: &TokenRecord| record.expires_at.is_some_and(|end| end * 1000 <= now);
        let ended: Vec<String> = self.peers.values().filter(|peer| over(&peer.token)).map(|peer| peer.token.jti.clone()).collect();
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
            self.tokens.remove(&hash);
            self.ops.push(HubOp::TokenDelete { hash });
        }
    }
}
