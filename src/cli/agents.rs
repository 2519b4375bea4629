//! `agents`, `status`, `approvals`, `command`.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::args::{Agents, Approvals, Issue, Status};
use super::client::Client;
use super::exit::{Failure, NO, OK, Outcome};
use super::print;
use crate::config::Global;
use crate::core::Cause;
use crate::core::session::Decision;
use crate::edge::http::{Base, Http};
use crate::secret::Secret;
use crate::wire::api::{command_is_final, encode, path};
use crate::wire::bus::RelayFrame;
use crate::wire::control::RunnerInfo;

fn text(value: &Value, at: &str) -> String {
    match value.pointer(at) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".into(),
        Some(other) => other.to_string(),
    }
}

/// The status that people see: the runner's finer word, while the relay agrees that it is there.
fn word(card: &Value) -> String {
    let status = text(card, "/status");
    let finer = text(card, "/meta/status");
    // What a runner said before it went away says nothing about now, unless it said that it failed for good.
    let failed = card.pointer("/meta/terminalStatus").is_some_and(|word| word == "error");
    let stale = card["connected"] == false && status == "offline" && !failed;
    if finer == "-" || stale { status } else { finer }
}

/// Whether it is connected, or heard of lately: without a bus a runner polls, and the relay counts it as offline after a
/// minute of silence.
pub(super) fn is_there(card: &Value) -> bool {
    card["connected"] == true || card["status"].as_str().is_some_and(|status| status != "offline")
}

/// Words of the relay for how an agent stands.
const COARSE: &[&str] = &["idle", "busy", "offline"];
/// Words of a runner.
const FINE: &[&str] = &["starting", "restarting", "blocked", "error", "parked"];

/// `agents`
pub fn agents(agents: &Agents) -> Outcome {
    if let Some(status) = agents.status.as_ref().filter(|status| ![COARSE, FINE].concat().contains(&status.as_str())) {
        return Err(Failure::usage(format!("--status must be one of {}, not {status:?}", [COARSE, FINE].concat().join(", "))));
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
        let filtered = [&agents.tag, &agents.label, &agents.status].iter().any(|value| value.is_some());
        print::line(if filtered {
            "no agent fits"
        } else {
            "no agents; start one with `agent-relay run acp -- <command>` or `agent-relay up`"
        });
        return Ok(OK);
    }
    print::table(&rows(&cards, false));
    Ok(OK)
}

fn cards(client: &Client, agents: &Agents) -> Result<Vec<Value>, Failure> {
    // Finer words are the runner's own; the relay knows them only as a part of what it said.
    let fine = agents.status.as_ref().filter(|status| FINE.contains(&status.as_str()));
    let coarse = agents.status.clone().filter(|_| fine.is_none());
    let filters = [("tag", &agents.tag), ("label", &agents.label), ("status", &coarse)];
    let query: Vec<String> = filters.iter().filter_map(|(name, value)| value.as_ref().map(|v| format!("{name}={}", encode(v)))).collect();
    let answer = client.call("GET", &format!("{}?{}", path::AGENTS, query.join("&")), None)?;
    let mut cards = answer["agents"].as_array().cloned().unwrap_or_default();
    cards.retain(|card| fine.is_none_or(|status| word(card) == *status));
    Ok(cards)
}

/// The table; with the end of each agent's token where it is watched.
fn rows(cards: &[Value], watched: bool) -> Vec<Vec<String>> {
    let mut head = ["AGENT", "STATUS", "SINCE", "LABEL", "QUEUED", "WHY"].map(String::from).to_vec();
    if watched {
        head.insert(5, "TOKEN".into());
    }
    let mut rows = vec![head];
    for card in cards {
        let since = card.pointer("/meta/statusSince").and_then(Value::as_i64).map(|at| print::span(print::now_ms() - at));
        let why = if word(card) == "offline" { "-".into() } else { text(card, "/meta/statusWhy") };
        let since = since.unwrap_or_else(|| "-".into());
        let mut row = vec![text(card, "/id"), word(card), since, text(card, "/label"), text(card, "/queued"), why];
        if watched {
            let end = card.pointer("/meta/auth/expiresAt").and_then(Value::as_i64).map(|end| end * 1000 - print::now_ms());
            let left = end.map_or("-".into(), |left| if left > 0 { print::span(left) } else { "over".into() });
            row.insert(5, left);
        }
        rows.push(row);
    }
    rows
}

/// The table is drawn again at most this often, and at least so often, for its ages.
const REDRAW: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// `agents --watch`: drawn again whenever something happened; on a terminal in its place, else below.
fn watch(client: &Client, agents: &Agents) -> Outcome {
    let terminal = print::is_seen();
    let events = ["agent.registered", "agent.status", "agent.removed", "message.new", "message.read"];
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

/// The runner infos of this home.
fn local_runners(global: &Global) -> Vec<RunnerInfo> {
    let dirs = std::fs::read_dir(global.home.join("agents")).into_iter().flatten().flatten();
    let read = |dir: std::fs::DirEntry| -> Option<RunnerInfo> {
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("runner.json")).ok()?).ok()
    };
    let mut runners: Vec<RunnerInfo> = dirs.filter_map(read).collect();
    runners.sort_by(|a, b| a.agent_id.cmp(&b.agent_id));
    runners
}

/// The runner of an agent on this machine; without a name the only one.
pub(super) fn find_runner(agent: Option<&str>) -> Result<RunnerInfo, Failure> {
    let global = Global::load(None, None)?;
    let mut runners = local_runners(&global);
    if let Some(agent) = agent {
        let own = super::settings::info_path(&global.home, agent);
        let text = std::fs::read_to_string(own).ok();
        runners.extend(text.and_then(|text| serde_json::from_str::<RunnerInfo>(&text).ok()));
        runners.retain(|info| info.agent_id == agent);
        runners.truncate(1);
    }
    match runners.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::no(match agent {
            Some(agent) => format!("no runner of {agent} is on this machine; `agent-relay status` lists them"),
            None => "no runner is on this machine; start one with `agent-relay run`".to_string(),
        })),
        more => {
            let names: Vec<&str> = more.iter().map(|info| info.agent_id.as_str()).collect();
            Err(Failure::usage(format!("say which agent: {}", names.join(", "))))
        }
    }
}

/// Asks a runner itself; `None` when it is gone.
fn ask_runner(info: &RunnerInfo) -> Result<Option<Value>, Failure> {
    let http = Http::new(Base::parse(&info.control_url).map_err(Failure::usage)?, Duration::from_secs(5));
    match http.call_bearer("GET", "/status", None, &Secret::new(info.control_token.clone())) {
        Ok((200, body)) => Ok(Some(body)),
        // Another process may have the port by now: its refusal says that our runner is gone.
        Ok(_) | Err(Cause::Offline(_) | Cause::Protocol(_)) => Ok(None),
        Err(_) => Err(Failure::unreachable(format!("the runner of {} (pid {}) does not answer within 5 s", info.agent_id, info.pid))),
    }
}

/// `status`
pub fn status(status: &Status) -> Outcome {
    let global = Global::load(None, None)?;
    let mut runners = local_runners(&global);
    if let Some(agent) = &status.agent {
        let own = super::settings::info_path(&global.home, agent);
        if let Some(info) = std::fs::read_to_string(own).ok().and_then(|text| serde_json::from_str::<RunnerInfo>(&text).ok()) {
            runners.push(info);
        }
        runners.retain(|info| info.agent_id == *agent);
        runners.truncate(1);
    }
    let mut shown = 0;
    for info in &runners {
        let truth = ask_runner(info)?;
        let gone = json!({"agentId": info.agent_id, "status": "offline", "why": format!("its runner (pid {}) is gone", info.pid)});
        let truth = match (truth, &status.agent) {
            (Some(truth), _) => truth,
            (None, None) => gone,
            (None, Some(_)) => continue,
        };
        show_status(&truth, status);
        shown += 1;
    }
    let Some(agent) = status.agent.as_ref().filter(|_| shown == 0) else {
        if shown == 0 && !status.json {
            print::line("no agents on this machine; start one with `agent-relay run acp -- <command>` or `agent-relay up`");
        }
        return Ok(OK);
    };
    let card = Client::new(&global)?.call("GET", &path::agent(agent), None)?;
    let state = match (card["connected"] == true, is_there(&card)) {
        (true, _) => "registered",
        (false, true) => "polling",
        (false, false) => "away",
    };
    let why = if word(&card) == "offline" { "no runner is connected for it".into() } else { text(&card, "/meta/statusWhy") };
    let remote = json!({
        "agentId": agent, "status": word(&card), "why": why, "since": card.pointer("/meta/statusSince"),
        "connection": {"state": state}, "card": card,
    });
    show_status(&remote, status);
    Ok(OK)
}

fn show_status(truth: &Value, options: &Status) {
    if options.json {
        return print::json(truth);
    }
    let since = truth.get("since").and_then(Value::as_i64).map(|at| format!(" for {}", print::span(print::now_ms() - at)));
    let since = since.unwrap_or_default();
    print::line(&format!("{}: {}{since}", text(truth, "/agentId"), text(truth, "/status")));
    if !options.why {
        return;
    }
    let line = |name: &str, value: String| print::line(&format!("  {name:<12}{value}"));
    line("why", text(truth, "/why"));
    if let Some(evidence) = truth.pointer("/evidence/text").and_then(Value::as_str) {
        let ago = truth.pointer("/evidence/since").and_then(Value::as_i64).map(|at| print::span(print::now_ms() - at));
        line("known by", format!("{evidence}, {} ago", ago.unwrap_or_default()));
    }
    for (name, fact) in [("start", "/session/start"), ("waits", "/session/delivery")] {
        if let Some(said) = truth.pointer(fact).and_then(Value::as_str) {
            line(name, said.to_string());
        }
    }
    if truth.get("prompt").is_some_and(Value::is_object) {
        line("prompt", format!("{} ({})", text(truth, "/prompt/state"), text(truth, "/prompt/decision")));
    }
    line("connection", format!("{} {}", text(truth, "/connection/state"), text(truth, "/connection/relayUrl")));
    if truth.get("providerProcess").is_some() {
        let (state, pid) = (text(truth, "/providerProcess/state"), text(truth, "/providerProcess/pid"));
        line("provider", format!("{state}, pid {pid}, {}", text(truth, "/providerProcess/agent")));
        line("delivery", text(truth, "/providerProcess/delivery"));
        if truth.pointer("/session/mode").is_some() {
            line("mode", text(truth, "/session/mode"));
        }
        if let Some(plan) = truth.pointer("/session/plan").filter(|plan| plan.is_object()) {
            let current = plan["current"].as_str().map(|step| format!(", now: {step}")).unwrap_or_default();
            line("plan", format!("{} of {} steps done{current}", plan["done"], plan["steps"]));
        }
        if let Some(share) = truth.pointer("/context/utilization").and_then(Value::as_f64) {
            let (used, window) = (text(truth, "/context/usedTokens"), text(truth, "/context/windowTokens"));
            line("context", format!("{:.0} % ({used} of {window} tokens)", share * 100.0));
        }
        let more = if truth.pointer("/queues/inboxMoreInStore") == Some(&json!(true)) { "+" } else { "" };
        let (inbox, outbox) = (text(truth, "/queues/inboxWaiting"), text(truth, "/queues/outbox/pending"));
        let (poisoned, dropped) = (text(truth, "/queues/outbox/poisoned"), text(truth, "/queues/outbox/dropped"));
        line("queues", format!("inbox {inbox}{more}, outbox {outbox} ({poisoned} set aside, {dropped} dropped)"));
    }
    if let Some(note) = truth.get("storeNote").and_then(Value::as_str) {
        line("store", note.to_string());
    }
    for approval in truth.get("approvals").and_then(Value::as_array).into_iter().flatten() {
        line("approval", format!("{}: {}", text(approval, "/approvalId"), print::asked(&text(approval, "/title"))));
    }
    for (edge, error) in truth.get("lastErrors").and_then(Value::as_object).into_iter().flatten() {
        if !error.is_null() {
            let ago = print::span(error["agoMs"].as_i64().unwrap_or(0));
            line("last error", format!("{edge}, {ago} ago: {}", text(error, "/text")));
        }
    }
}

/// `approvals`
pub fn approvals(approvals: &Approvals) -> Outcome {
    if let Some(decision) = approvals.decision.first().filter(|word| Decision::parse(word).is_none()) {
        return Err(Failure::usage(format!("{decision:?} is no decision; use approve, approve-session, deny or abort")));
    }
    let client = Client::new(&Global::load(None, None)?)?;
    let answer = client.call("GET", path::AGENTS, None)?;
    let mut open: Vec<(String, Value)> = Vec::new();
    for card in answer["agents"].as_array().into_iter().flatten().filter(|card| is_there(card)) {
        let agent = text(card, "/id");
        for approval in card.pointer("/meta/pendingApprovals").and_then(Value::as_array).into_iter().flatten() {
            if approvals.agent.as_ref().is_none_or(|wanted| *wanted == agent) {
                open.push((agent.clone(), approval.clone()));
            }
        }
    }
    if approvals.decision.len() > 2 {
        return Err(Failure::usage("say one decision and one approval id".to_string()));
    }
    let Some(decision) = approvals.decision.first() else {
        for (agent, approval) in &open {
            match approvals.json {
                true => {
                    let mut record = approval.clone();
                    record["agentId"] = json!(agent);
                    print::json(&record);
                }
                false => show_approval(agent, approval),
            }
        }
        if open.is_empty() && !approvals.json {
            print::line("no open approvals");
        }
        return Ok(OK);
    };
    let Some(id) = approvals.decision.get(1) else {
        return Err(Failure::usage("say which approval: `agent-relay approvals` lists them".to_string()));
    };
    let matching: Vec<&String> = open.iter().filter(|(_, approval)| text(approval, "/approvalId") == *id).map(|(agent, _)| agent).collect();
    let agent = match matching.as_slice() {
        [agent] => agent.to_string(),
        [] => {
            return Err(Failure::no(format!("no approval {id} is open; `agent-relay approvals` lists them")));
        }
        _ => {
            return Err(Failure::usage(format!("several agents have an approval {id}; say which with --agent ID")));
        }
    };
    let mut params = Map::new();
    params.insert("approvalId".into(), json!(id));
    params.insert("decision".into(), json!(decision));
    if let Some(reason) = &approvals.reason {
        params.insert("reason".into(), json!(reason));
    }
    if !approvals.answer.is_empty() {
        let asked = open.iter().find(|(_, approval)| text(approval, "/approvalId") == *id).map(|(_, approval)| approval.clone());
        params.insert("answers".into(), answers(&approvals.answer, &asked.unwrap_or_default())?);
    }
    issue(&client, &agent, "agent.permissionDecision", params, true, approvals.json)
}

/// What is asked for: whoever decides sees all of it that the runner tells, and as it is. One line at the margin is one
/// approval.
fn show_approval(agent: &str, approval: &Value) {
    print::line(&print::asked(&format!("{}  {agent} wants: {}", text(approval, "/approvalId"), text(approval, "/title"))));
    for question in approval["questions"].as_array().into_iter().flatten() {
        let labels = question["options"].as_array().into_iter().flatten().filter_map(|option| option["label"].as_str());
        let several = if question["multiSelect"] == true { ", several may be chosen" } else { "" };
        let line = format!("    {} [{}]{several}", text(question, "/question"), labels.collect::<Vec<_>>().join(" | "));
        print::line(&print::asked(&line));
    }
    if approval["questions"].is_array() {
        return;
    }
    for (name, value) in approval["input"].as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        print::block(&print::asked(&format!("    {name}: ")), "      ", &print::asked(&value));
    }
}

/// Answers by question; where there is one question, its text may be left out.
fn answers(words: &[String], approval: &Value) -> Result<Value, Failure> {
    let questions: Vec<String> =
        approval["questions"].as_array().into_iter().flatten().filter_map(|q| q["question"].as_str().map(str::to_string)).collect();
    let mut all: Map<String, Value> = Map::new();
    for word in words {
        let named = questions.iter().find_map(|question| Some((question, word.strip_prefix(question.as_str())?.strip_prefix('=')?)));
        let (question, choice) = match (named, questions.as_slice()) {
            (Some((question, choice)), _) => (question, choice),
            (None, [only]) => (only, word.as_str()),
            (None, []) => return Err(Failure::usage("this approval is no question; leave --answer out".to_string())),
            (None, _) => {
                return Err(Failure::usage(format!(
                    "say which question: --answer \"<question>=<choice>\"; there are: {}",
                    questions.join(" | ")
                )));
            }
        };
        // Several choices of one question are a list.
        match all.get_mut(question) {
            Some(Value::Array(list)) => list.push(json!(choice)),
            Some(other) => *other = json!([other.clone(), choice]),
            None => {
                all.insert(question.clone(), json!(choice));
            }
        }
    }
    Ok(Value::Object(all))
}

/// `command`
pub fn command(options: &Issue) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    let mut params = match &options.params {
        Some(text) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(params)) => params,
            Ok(_) => return Err(Failure::usage("--params must be a JSON object".to_string())),
            Err(error) => return Err(Failure::usage(format!("--params is no JSON: {error}"))),
        },
        None => Map::new(),
    };
    if let Some(reason) = &options.reason {
        params.insert("reason".into(), json!(reason));
    }
    if let Some(ms) = options.timeout_ms {
        params.insert("timeoutMs".into(), json!(ms));
    }
    const KNOWN: [&str; 9] =
        ["shutdown", "kill", "restart", "reconnect", "interrupt", "compact", "clearContext", "injectContext", "permissionDecision"];
    let word = options.command.strip_prefix("agent.").unwrap_or(&options.command);
    if !KNOWN.contains(&word) {
        return Err(Failure::usage(format!("there is no command {word:?}; use one of {}", KNOWN.join(", "))));
    }
    issue(&client, &options.target, &format!("agent.{word}"), params, !options.no_wait, options.json)
}

/// Seconds for a command that waits for the end of a turn: longer than the runner gives it.
const WAITING_PATIENCE: u64 = 620;

/// Issues a command and waits for its final status.
fn issue(client: &Client, target: &str, kind: &str, params: Map<String, Value>, wait: bool, as_json: bool) -> Outcome {
    let patience = match kind {
        // They wait for the end of the turn, and a summary takes its time.
        "agent.compact" | "agent.clearContext" | "agent.injectContext" => WAITING_PATIENCE,
        _ => params.get("timeoutMs").and_then(Value::as_u64).unwrap_or(10_000) / 1000 + 90,
    };
    let mut follow = if wait { Some(client.follow(&["command.updated"], &[target])?) } else { None };
    let mut command = client.call("POST", path::COMMANDS, Some(&json!({"type": kind, "target": target, "params": params})))?;
    let id = text(&command, "/id");
    let card = client.raw("GET", &path::agent(target), None)?.1;
    // Without a bus it may still poll; only an offline one is really away.
    if !is_there(&card) {
        let line = format!("{kind} pending: {target} is not connected; it gets the command if it comes back within 10 minutes");
        print::line(&if as_json { command.to_string() } else { line });
        return Ok(OK);
    }
    let until = Instant::now() + Duration::from_secs(patience);
    while let Some(follow) = follow.as_mut().filter(|_| !command_is_final(command["status"].as_str().unwrap_or_default())) {
        match follow.next(until.saturating_duration_since(Instant::now()))? {
            Some(RelayFrame::Event { data, .. }) if text(&data, "/commandId") == id => {
                command = client.call("GET", &path::command(&id), None)?
            }
            Some(_) => {}
            None => {
                let hint =
                    if patience == WAITING_PATIENCE { "; it waits for the end of the turn, which `interrupt` would end" } else { "" };
                return Err(Failure::no(format!("the command {id} is still {} after {patience} s{hint}", text(&command, "/status"))));
            }
        }
    }
    if as_json {
        print::json(&command);
    } else {
        let error = command.get("error").and_then(Value::as_str).map(|error| format!(": {error}")).unwrap_or_default();
        print::line(&format!("{kind} {}{error}", text(&command, "/status")));
    }
    let failed = matches!(command["status"].as_str(), Some("failed" | "expired" | "cancelled"));
    Ok(if failed { NO } else { OK })
}
