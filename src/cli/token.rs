//! `token`, `whoami`, `label`.

use serde_json::{Value, json};

use super::args::{Label, Token, Whoami};
use super::client::Client;
use super::exit::{Failure, OK, Outcome};
use super::print;
use crate::config::Global;
use crate::wire::api::{AGENT_ID_RULE, TokenRecord, USER, encode, is_agent_id, path};

/// Life of an agent's token by default, seconds.
const AGENT_TTL: u64 = 24 * 3600;
/// Life of other tokens by default, seconds.
const OTHER_TTL: u64 = 365 * 24 * 3600;

/// `token`
pub fn token(token: &Token) -> Outcome {
    let words: Vec<&str> = token.action.iter().map(String::as_str).collect();
    let client = Client::of_hub(&crate::config::home()?)?;
    match words.as_slice() {
        ["create"] => create(&client, token),
        ["list" | "create", more, ..] => {
            Err(Failure::usage(format!("{more:?} is too much; see `agent-relay token --help`")))
        }
        ["revoke", _, more, ..] => {
            Err(Failure::usage(format!("{more:?} is too much: one token at a time")))
        }
        ["list"] | [] => list(&client, token.json),
        ["revoke", jti] => {
            client.call("DELETE", &format!("{}/{}", path::TOKENS, encode(jti)), None)?;
            print::line(&format!("{jti} is revoked"));
            Ok(OK)
        }
        ["revoke"] => {
            Err(Failure::usage("say which token: `agent-relay token list` shows their ids"))
        }
        [word, ..] => Err(Failure::usage(format!(
            "there is no token action {word:?}; use create, list or revoke ID"
        ))),
    }
}

fn create(client: &Client, token: &Token) -> Outcome {
    if let (Some(agent), Some(profile)) = (&token.agent, &token.profile)
        && !profile.starts_with("provider-")
    {
        return Err(Failure::usage(format!(
            "a token of the profile {profile} acts for no agent: leave out --profile, or --agent {agent}"
        )));
    }
    if let Some(agent) = token.agent.as_ref().filter(|agent| !is_agent_id(agent)) {
        return Err(Failure::usage(format!("{agent:?} cannot be an agent id: {AGENT_ID_RULE}")));
    }
    if token.scopes.as_ref().is_some_and(|scopes| scopes.trim().is_empty()) {
        return Err(Failure::usage("--scopes needs at least one scope"));
    }
    let profile = token.profile.clone().unwrap_or_else(|| {
        if token.agent.is_some() { "provider-agent" } else { "operator" }.into()
    });
    let ttl = token.ttl.unwrap_or(if token.agent.is_some() { AGENT_TTL } else { OTHER_TTL });
    let mut body = json!({"profileId": profile, "ttlSeconds": ttl});
    if let Some(agent) = &token.agent {
        body["agentId"] = json!(agent);
    }
    if let Some(scopes) = &token.scopes {
        body["scopes"] = json!(
            scopes.split(',').map(str::trim).filter(|scope| !scope.is_empty()).collect::<Vec<_>>()
        );
    }
    for (field, word) in [("name", &token.name), ("policyName", &token.policy)] {
        if let Some(word) = word {
            body[field] = json!(word);
        }
    }
    let made = client.call("POST", path::TOKENS, Some(&body))?;
    if token.json {
        print::json(&made)
    } else {
        // Alone on standard output, for a pipe into a file of its own; the rest is for people.
        let record: TokenRecord =
            serde_json::from_value(made["record"].clone()).unwrap_or_default();
        print::notice(&format!("{} {}, {}", record.profile_id, record.jti, ends(&record)));
        print::line(made["token"].as_str().unwrap_or_default());
    }
    Ok(OK)
}

fn ends(record: &TokenRecord) -> String {
    match record.expires_at {
        None => "never ends".into(),
        Some(end) if end * 1000 > print::now_ms() => {
            format!("ends in {}", print::format_duration(end * 1000 - print::now_ms()))
        }
        Some(_) => "has ended".into(),
    }
}

fn list(client: &Client, as_json: bool) -> Outcome {
    let answer = client.call("GET", path::TOKENS, None)?;
    let tokens = answer["tokens"].as_array().cloned().unwrap_or_default();
    if as_json {
        tokens.iter().for_each(print::json);
        return Ok(OK);
    }
    let mut rows = vec![["ID", "PROFILE", "AGENT", "AGE", "END"].map(String::from).to_vec()];
    for token in tokens {
        let record: TokenRecord = serde_json::from_value(token).unwrap_or_default();
        let age = print::format_duration(print::now_ms() - record.issued_at * 1000);
        let end = ends(&record);
        rows.push(vec![
            record.jti,
            record.profile_id,
            record.agent_id.unwrap_or_else(|| "-".into()),
            age,
            end,
        ]);
    }
    print::table(&rows);
    Ok(OK)
}

/// `whoami`
pub fn whoami(whoami: &Whoami) -> Outcome {
    let global = Global::load(None, None)?;
    let client = Client::new(&global)?;
    // An agent knows its name before the relay has given it a token.
    let waits = global.session.is_some() && global.token.is_none();
    let (status, record) =
        if waits { (0, Value::Null) } else { client.raw("GET", path::TOKEN_SELF, None)? };
    if status == 401 {
        client.call("GET", path::AGENTS, None)?; // the relay's own sentence, with the cure
    }
    if status != 200 && !waits {
        client.health()?; // whatever answers there may be no relay at all
    }
    // Other relays may not tell about tokens.
    let record =
        if status == 200 { TokenRecord::of_answer(&record) } else { TokenRecord::default() };
    if let Some(agent) = global
        .session
        .as_ref()
        .filter(|agent| status == 200 && record.agent_id.as_ref() != Some(agent))
    {
        let whose = record.agent_id.as_deref().unwrap_or(&record.profile_id);
        return Err(Failure::usage(format!(
            "this is the session of {agent}, but its token is one of {whose}; AGENT_RELAY_TOKEN_FILE names another file"
        )));
    }
    let name = record.agent_id.clone().or(global.session).unwrap_or_else(|| USER.into());
    if whoami.json {
        print::json(
            &json!({"id": name, "relayUrl": global.relay_url, "home": global.home, "token": record}),
        );
        return Ok(OK);
    }
    print::line(&format!("{name} at {}", global.relay_url));
    if waits {
        print::line("  token   none yet: its runner keeps asking the relay for one");
    }
    if !record.profile_id.is_empty() {
        print::line(&format!("  token   {} {}, {}", record.profile_id, record.jti, ends(&record)));
        print::line(&format!("  scopes  {}", record.scopes.join(", ")));
    }
    Ok(OK)
}

/// `label`
pub fn label(label: &Label) -> Outcome {
    let new = match (&label.label, label.clear) {
        (Some(name), false) if !name.trim().is_empty() && !name.contains(':') => json!(name.trim()),
        (Some(name), false) => {
            return Err(Failure::usage(format!("{name:?} cannot be a label: not empty, no colon")));
        }
        (None, true) => Value::Null,
        _ => return Err(Failure::usage("say the new label, or --clear")),
    };
    let client = Client::new(&Global::load(None, None)?)?;
    let card = client.call(
        "PUT",
        &path::agent_part(&label.agent, "label"),
        Some(&json!({"label": new})),
    )?;
    let now = match (card["label"].as_str(), label.clear) {
        (Some(name), false) => format!("has the label {name}"),
        (Some(name), true) => {
            format!("has no label of yours any more; it calls itself {name}, by its own settings")
        }
        (None, _) => "has no label".into(),
    };
    print::line(&format!("{} {now}", label.agent));
    Ok(OK)
}
