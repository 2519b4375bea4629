//! Thread `calls`: what an orchestrator asks its relay for over HTTP, one call at a time: its own
//! token and those of its agents.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Value, json};

use crate::core::Cause;
use crate::core::orchestrator::effect::Call;
use crate::core::orchestrator::event::{Called, Event, OwnToken};
use crate::edge::http::{Base, Http};
use crate::os;
use crate::secret::Secret;
use crate::wire::api::{TokenRecord, encode, path};
use crate::wire::control::RunnerInfo;

/// One exchange may take this long.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// The runner answers from memory and its disk.
const RUNNER_LIMIT: Duration = Duration::from_secs(5);
/// Life of an orchestrator's token, seconds: it cannot be renewed.
const OWN_TOKEN_SECONDS: u64 = 365 * 24 * 3600;
/// The profile of its token.
const PROFILE: &str = "orchestrator";

/// Who asks, and what it may ask with.
pub struct Asking {
    /// The relay.
    pub base: Base,
    /// The name that the orchestrator wants.
    pub name: String,
    /// Where its token is kept.
    pub token_file: PathBuf,
    /// Where the hub of this machine keeps its root token.
    pub root_token_file: PathBuf,
    /// A token that was given by hand.
    pub given: Option<Secret>,
}

struct Caller {
    asking: Asking,
    http: Http,
}

/// Body of the thread.
pub fn run(asking: Asking, orders: Receiver<Call>, lane: Sender<Event>) {
    let caller = Caller { http: Http::new(asking.base.clone(), CALL_LIMIT), asking };
    for order in orders {
        let called = match order {
            Call::OwnToken { refused } => Called::OwnToken(caller.own_token(refused)),
            Call::AgentToken { session, body, own } => {
                let made = caller.call("POST", path::TOKENS, Some(&body), &own);
                let result = made.and_then(|answer| token_in(&answer));
                Called::AgentToken { session, result }
            }
            Call::HandToken { session, runner_info_file, token } => {
                Called::TokenHanded { session, result: hand_token(&runner_info_file, &token) }
            }
        };
        if lane.send(Event::Called(called)).is_err() {
            return;
        }
    }
}

/// To the control port of a runner, where its file says that it is.
fn hand_token(runner_info_file: &str, token: &Secret) -> Result<(), Cause> {
    let file = os::open_file(Path::new(runner_info_file));
    let told = file.map_err(|error| Cause::Failed(format!("{runner_info_file}: {error}")))?;
    let info: RunnerInfo = serde_json::from_reader(told)
        .map_err(|error| Cause::Failed(format!("{runner_info_file}: {error}")))?;
    let base = Base::parse(&info.control_url).map_err(Cause::Protocol)?;
    if !base.is_loopback() {
        return Err(Cause::Protocol(format!("{} is no port of this machine", info.control_url)));
    }
    let body = json!({"token": token.expose()});
    let control_token = Secret::new(info.control_token);
    let http = Http::new(base, RUNNER_LIMIT);
    match http.call_bearer("PUT", "/token", Some(&body), &control_token)? {
        (status, _) if status < 300 => Ok(()),
        (status, answer) => {
            let said = answer.get("error").and_then(Value::as_str);
            Err(Cause::Refused(status, said.unwrap_or("its runner gave no reason").to_string()))
        }
    }
}

fn token_in(answer: &Value) -> Result<Secret, Cause> {
    match answer.get("token").and_then(Value::as_str) {
        Some(token) => Ok(Secret::new(token)),
        None => Err(Cause::Protocol("the relay's answer holds no token".into())),
    }
}

impl Caller {
    /// The body of a success; every other status is a refusal.
    fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        token: &Secret,
    ) -> Result<Value, Cause> {
        let (status, answer) = self.http.call(method, path, body, token)?;
        if status < 300 {
            return Ok(answer);
        }
        let said = answer.get("error").and_then(Value::as_str);
        Err(Cause::Refused(status, said.unwrap_or("the relay gave no reason").to_string()))
    }

    /// The token that was kept, else one that the root token makes, else the one that was given.
    fn own_token(&self, refused: bool) -> Result<OwnToken, Cause> {
        if !refused && let Some(kept) = self.kept() {
            return Ok(kept);
        }
        let root = std::fs::read_to_string(&self.asking.root_token_file).unwrap_or_default();
        if !root.trim().is_empty() && self.asking.base.is_loopback() {
            match self.made_by(&Secret::new(root.trim())) {
                // Another hub's: the given token may fit all the same.
                Err(Cause::Refused(401, _)) => {}
                made => return made,
            }
        }
        self.given()
    }

    fn kept(&self) -> Option<OwnToken> {
        let text = std::fs::read_to_string(&self.asking.token_file).ok()?;
        let kept: Value = serde_json::from_str(&text).ok()?;
        let word = |field: &str| kept.get(field).and_then(Value::as_str).map(str::to_string);
        (word("relayUrl").as_deref() == Some(&self.asking.base.url))
            .then(|| Some(OwnToken { token: Secret::new(word("token")?), name: word("name")? }))?
    }

    fn made_by(&self, root: &Secret) -> Result<OwnToken, Cause> {
        let name = &self.asking.name;
        let known = self.call("GET", path::TOKENS, None, root)?;
        // The one before is lost or does not work; its name is needed again.
        for record in known["tokens"].as_array().into_iter().flatten() {
            let record: TokenRecord = serde_json::from_value(record.clone()).unwrap_or_default();
            if record.profile_id == PROFILE && record.name.as_deref() == Some(name) {
                let path = format!("{}/{}", path::TOKENS, encode(&record.jti));
                self.call("DELETE", &path, None, root)?;
            }
        }
        let body = json!({"profileId": PROFILE, "name": name, "ttlSeconds": OWN_TOKEN_SECONDS});
        let made = match self.call("POST", path::TOKENS, Some(&body), root) {
            Err(Cause::Refused(422, _)) => {
                // The relay still knows it under that name.
                let agent = format!("{}/{}", path::AGENTS, encode(name));
                let _ = self.call("DELETE", &agent, None, root);
                self.call("POST", path::TOKENS, Some(&body), root)?
            }
            made => made?,
        };
        let own = OwnToken { token: token_in(&made)?, name: name.clone() };
        let text = json!({
            "relayUrl": self.asking.base.url, "name": name, "token": own.token.expose(),
        });
        if let Err(error) = os::write_private_file(&self.asking.token_file, &text.to_string()) {
            log::warn!(target: "orchestrator", "cannot write {}: {error}", self.asking.token_file.display());
        }
        Ok(own)
    }

    fn given(&self) -> Result<OwnToken, Cause> {
        let cure = "make one on the relay's machine with `agent-relay token create --profile orchestrator --name NAME` and set it as AGENT_RELAY_TOKEN";
        let Some(token) = &self.asking.given else {
            return Err(Cause::Refused(
                403,
                format!("an orchestrator needs a token of its own: {cure}"),
            ));
        };
        let answer = self.call("GET", path::TOKEN_SELF, None, token)?;
        let record = TokenRecord::of_answer(&answer);
        if record.profile_id != PROFILE {
            return Err(Cause::Refused(
                403,
                format!(
                    "the token has the profile {}, an orchestrator needs one of its own: {cure}",
                    record.profile_id
                ),
            ));
        }
        let line = record.renewed_from.clone().unwrap_or_else(|| record.jti.clone());
        Ok(OwnToken { token: token.clone(), name: record.name.clone().unwrap_or(line) })
    }
}
