//! `agents`: who the relay knows, and how they are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{Agents, AgentsAction, Forget};
use super::cards::{reason, status_word, text};
use super::client::Client;
use super::exit::{Failure, NO, OK, Outcome};
use super::{options, print};
use crate::config::Global;
use crate::wire::api::{AgentStatus, DetailedStatus, encode, path};

/// `agents`
pub fn agents(agents: &Agents) -> Outcome {
    if let Some(AgentsAction::Forget(wanted)) = &agents.action {
        return forget(wanted);
    }
    let asked = agents.status.as_ref();
    if let Some(status) = asked.filter(|status| DetailedStatus::parse(status).is_none()) {
        let known: Vec<&str> = DetailedStatus::ALL.iter().map(|status| status.as_str()).collect();
        let known = known.join(", ");
        return Err(Failure::usage(format!("--status must be one of {known}, not {status:?}")));
    }
    let client = Client::new(&Global::load(None, None)?)?;
    if agents.watch {
        return watch(&client, agents);
    }
    let cards = cards(&client, agents)?;
    if agents.ids {
        cards.iter().for_each(|card| print::line(&text(card, "/id")));
        return Ok(OK);
    }
    if agents.json {
        cards.iter().for_each(print::json);
        return Ok(OK);
    }
    if cards.is_empty() {
        let filtered =
            [&agents.tag, &agents.label, &agents.status].iter().any(|value| value.is_some());
        if filtered {
            print::line("no agent matches");
        } else {
            print::line(&format!(
                "no agents; start one with `{}` or `agent-relay up`",
                options::example()
            ));
        }
        return Ok(OK);
    }
    print::table(&rows(&cards, false));
    Ok(OK)
}

fn cards(client: &Client, agents: &Agents) -> Result<Vec<Value>, Failure> {
    // The relay filters by its own statuses; the finer ones of runners are filtered here.
    let fine = agents.status.as_ref().filter(|status| AgentStatus::parse(status).is_none());
    let coarse = agents.status.clone().filter(|_| fine.is_none());
    let filters = [("tag", &agents.tag), ("label", &agents.label), ("status", &coarse)];
    let query: Vec<String> = filters
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|v| format!("{name}={}", encode(v))))
        .collect();
    let answer = client.call("GET", &format!("{}?{}", path::AGENTS, query.join("&")), None)?;
    let mut cards = answer["agents"].as_array().cloned().unwrap_or_default();
    cards.retain(|card| fine.is_none_or(|status| status_word(card) == *status));
    Ok(cards)
}

/// The table; with the end of each agent's token where it is watched.
fn rows(cards: &[Value], watched: bool) -> Vec<Vec<String>> {
    let mut head =
        ["AGENT", "STATUS", "SINCE", "LABEL", "QUEUED", "WHY"].map(String::from).to_vec();
    if watched {
        head.insert(5, "TOKEN".into());
    }
    let mut rows = vec![head];
    for card in cards {
        let (why, since) = reason(card);
        let since = since.map(|at| print::format_duration(print::now_ms() - at));
        let since = since.unwrap_or_else(|| "-".into());
        let mut row = vec![
            text(card, "/id"),
            status_word(card),
            since,
            text(card, "/label"),
            text(card, "/queued"),
            why,
        ];
        if watched {
            let end = card
                .pointer("/meta/auth/expiresAt")
                .and_then(Value::as_i64)
                .map(|end| end * 1000 - print::now_ms());
            let left = end.map_or("-".into(), |left| {
                if left > 0 { print::format_duration(left) } else { "over".into() }
            });
            row.insert(5, left);
        }
        rows.push(row);
    }
    rows
}

/// `agents forget`
fn forget(wanted: &Forget) -> Outcome {
    if wanted.offline != wanted.ids.is_empty() {
        return Err(Failure::usage("say which agents, or --offline"));
    }
    let client = Client::new(&Global::load(None, None)?)?;
    let body = json!({"ids": wanted.ids, "offline": wanted.offline});
    let mut kept = Vec::new();
    let mut forgotten = 0;
    loop {
        let (status, answer) = client.raw("DELETE", path::AGENTS, Some(&body))?;
        if matches!(status, 404 | 405) {
            return Err(Failure::no("this relay cannot forget agents yet; update its hub"));
        }
        let answer = client.judged(status, answer)?;
        let list = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
        for id in list("forgotten") {
            forgotten += 1;
            if !wanted.json {
                print::line(&format!("{} is forgotten", id.as_str().unwrap_or_default()));
            }
        }
        kept.extend(list("kept"));
        if wanted.json {
            print::json(&answer);
        }
        if answer["more"] != true || list("forgotten").is_empty() {
            break;
        }
    }
    for one in kept.iter().filter(|_| !wanted.json) {
        print::notice(&format!("{} is kept: {}", text(one, "/id"), text(one, "/why")));
    }
    if forgotten == 0 && kept.is_empty() && !wanted.json {
        print::line("no agent is offline");
    }
    Ok(if kept.is_empty() { OK } else { NO })
}

/// The table is drawn again at most this often, and at least so often, for its ages.
const REDRAW: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// `agents --watch`: drawn again whenever something happened; on a terminal in its place, else
/// below.
fn watch(client: &Client, agents: &Agents) -> Outcome {
    let terminal = print::stdout_is_terminal();
    let events =
        ["agent.registered", "agent.status", "agent.removed", "message.new", "message.read"];
    let mut follow = client.follow(&events, &[])?;
    let mut last: Vec<Value> = Vec::new();
    loop {
        let cards = cards(client, agents)?;
        match (agents.json, terminal) {
            (true, _) => cards.iter().filter(|card| !last.contains(card)).for_each(print::json),
            (false, true) => {
                let summary = format!("{} agents at {}; Ctrl-C ends", cards.len(), client.base.url);
                print::clear();
                print::line(&summary);
                print::table(&rows(&cards, true));
            }
            (false, false) if cards != last => print::table(&rows(&cards, true)),
            _ => {}
        }
        last = cards;
        let drawn = Instant::now();
        // Everything that happens in a moment is one picture.
        let mut until = drawn + REDRAW.1;
        while let Some(_frame) = follow.next(until.saturating_duration_since(Instant::now()))? {
            until = until.min((drawn + REDRAW.0).max(Instant::now()));
            if Instant::now() >= until {
                break;
            }
        }
    }
}
