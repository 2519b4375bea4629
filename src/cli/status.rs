//! `status`: how agents of this machine are, asked at their runners.

use std::time::Duration;

use serde_json::{Value, json};

use super::args::Status;
use super::cards::{is_there, reason, status_word, text};
use super::client::Client;
use super::exit::{Failure, OK, Outcome};
use super::{options, print};
use crate::config::Global;
use crate::core::Cause;
use crate::core::orchestrator::config::SessionFiles;
use crate::edge::http::{Base, Http};
use crate::secret::Secret;
use crate::wire::api::path;
use crate::wire::control::RunnerInfo;

fn read_info(file: &std::path::Path) -> Option<RunnerInfo> {
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}

/// The runner infos of this home.
pub(super) fn local_runners(global: &Global) -> Vec<RunnerInfo> {
    let dirs = std::fs::read_dir(global.home.join("agents")).into_iter().flatten().flatten();
    let read = |dir: std::fs::DirEntry| read_info(&dir.path().join("runner.json"));
    let mut runners: Vec<RunnerInfo> = dirs.filter_map(read).collect();
    // Those of an orchestrator's sessions lie apart.
    let files = std::fs::read_dir(global.home.join("runners")).into_iter().flatten().flatten();
    runners.extend(files.filter_map(|file| read_info(&file.path())));
    runners.sort_by(|a, b| a.agent_id.cmp(&b.agent_id));
    runners
}

/// The same, or the one of that agent.
fn runners_of(global: &Global, agent: Option<&str>) -> Vec<RunnerInfo> {
    let mut runners = local_runners(global);
    if let Some(agent) = agent {
        let own = super::paths::info_path(&global.home, agent);
        runners.extend(read_info(&own));
        runners.retain(|info| info.agent_id == agent);
        // A session of an orchestrator has a name of its own.
        let file = SessionFiles::of(&global.home.to_string_lossy(), agent).runner_info;
        runners.extend(read_info(std::path::Path::new(&file)));
        runners.truncate(1);
    }
    runners
}

/// The runner of an agent on this machine; without a name the only one.
pub(super) fn find_runner(agent: Option<&str>) -> Result<RunnerInfo, Failure> {
    let global = Global::load(None, None)?;
    let runners = runners_of(&global, agent);
    match runners.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::no(match agent {
            Some(agent) => {
                format!("no runner of {agent} is on this machine; `agent-relay status` lists them")
            }
            None => "no runner is on this machine; start one with `agent-relay run`".to_string(),
        })),
        more => {
            let names: Vec<&str> = more.iter().map(|info| info.agent_id.as_str()).collect();
            Err(Failure::usage(format!("say which agent: {}", names.join(", "))))
        }
    }
}

/// Asks a runner itself; `None` when it is gone.
pub(super) fn ask_runner(info: &RunnerInfo) -> Result<Option<Value>, Failure> {
    let http =
        Http::new(Base::parse(&info.control_url).map_err(Failure::usage)?, Duration::from_secs(5));
    match http.call_bearer("GET", "/status", None, &Secret::new(info.control_token.clone())) {
        Ok((200, body)) => Ok(Some(body)),
        // Another process may have the port by now: its refusal says that our runner is gone.
        Ok(_) | Err(Cause::Offline(_) | Cause::Protocol(_)) => Ok(None),
        Err(_) => Err(Failure::unreachable(format!(
            "the runner of {} (pid {}) does not answer within 5 s",
            info.agent_id, info.pid
        ))),
    }
}

/// `status`
pub fn status(status: &Status) -> Outcome {
    let global = Global::load(None, None)?;
    let runners = runners_of(&global, status.agent.as_deref());
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
            let example = options::example();
            print::line(&format!(
                "no agents on this machine; start one with `{example}` or `agent-relay up`"
            ));
        }
        return Ok(OK);
    };
    let card = Client::new(&global)?.call("GET", &path::agent(agent), None)?;
    let state = match (card["connected"] == true, is_there(&card)) {
        (true, _) => "registered",
        (false, true) => "polling",
        (false, false) => "away",
    };
    let (why, since) = match reason(&card) {
        (why, since) if why != "-" => (why, since),
        _ => ("no runner is connected for it".into(), None),
    };
    let there = is_there(&card);
    let evidence = card.pointer("/meta/statusEvidence").filter(|_| there);
    let remote = json!({
        "agentId": agent, "status": status_word(&card), "why": why, "since": since, "evidence": evidence,
        "connection": {"state": state}, "card": card,
    });
    show_status(&remote, status);
    Ok(OK)
}

/// One line; with `--why` all that is known.
fn show_status(truth: &Value, options: &Status) {
    if options.json {
        return print::json(truth);
    }
    let since = truth
        .get("since")
        .and_then(Value::as_i64)
        .map(|at| format!(" for {}", print::format_duration(print::now_ms() - at)));
    let since = since.unwrap_or_default();
    print::line(&format!("{}: {}{since}", text(truth, "/agentId"), text(truth, "/status")));
    if options.why {
        show_reasons(truth);
        if truth.get("providerProcess").is_some() {
            show_provider(truth);
        }
        show_troubles(truth);
    }
}

fn detail(name: &str, value: &str) {
    print::line(&format!("  {name:<12}{value}"));
}

fn show_reasons(truth: &Value) {
    detail("why", &text(truth, "/why"));
    if let Some(evidence) = truth.pointer("/evidence/text").and_then(Value::as_str) {
        let ago = truth
            .pointer("/evidence/since")
            .and_then(Value::as_i64)
            .map(|at| print::format_duration(print::now_ms() - at));
        detail("known by", &format!("{evidence}, {} ago", ago.unwrap_or_default()));
    } else if truth.get("source").is_some_and(Value::is_string) {
        detail("known by", "its runner, which sees the process");
    }
    for (name, fact) in
        [("start", "/session/start"), ("waits", "/session/delivery"), ("hooks", "/session/hooks")]
    {
        if let Some(said) = truth.pointer(fact).and_then(Value::as_str) {
            detail(name, said);
        }
    }
    if truth.get("prompt").is_some_and(Value::is_object) {
        detail(
            "prompt",
            &format!("{} ({})", text(truth, "/prompt/state"), text(truth, "/prompt/decision")),
        );
    }
    detail(
        "connection",
        &format!("{} {}", text(truth, "/connection/state"), text(truth, "/connection/relayUrl")),
    );
}

fn show_provider(truth: &Value) {
    let (state, pid) = (text(truth, "/providerProcess/state"), text(truth, "/providerProcess/pid"));
    detail("provider", &format!("{state}, pid {pid}, {}", text(truth, "/providerProcess/agent")));
    detail("delivery", &text(truth, "/providerProcess/delivery"));
    if truth.pointer("/session/mode").is_some() {
        detail("mode", &text(truth, "/session/mode"));
    }
    if let Some(plan) = truth.pointer("/session/plan").filter(|plan| plan.is_object()) {
        let current =
            plan["current"].as_str().map(|step| format!(", now: {step}")).unwrap_or_default();
        detail("plan", &format!("{} of {} steps done{current}", plan["done"], plan["steps"]));
    }
    if let Some(share) = truth.pointer("/context/utilization").and_then(Value::as_f64) {
        // Runners of earlier versions say them with a decimal point.
        let tokens = |at: &str| truth.pointer(at).and_then(Value::as_f64).unwrap_or(0.0);
        let (used, window) = (tokens("/context/usedTokens"), tokens("/context/windowTokens"));
        detail("context", &format!("{:.0} % ({used:.0} of {window:.0} tokens)", share * 100.0));
    }
    let more =
        if truth.pointer("/queues/inboxMoreInStore") == Some(&json!(true)) { "+" } else { "" };
    let (inbox, outbox) =
        (text(truth, "/queues/inboxWaiting"), text(truth, "/queues/outbox/pending"));
    let (poisoned, dropped) =
        (text(truth, "/queues/outbox/poisoned"), text(truth, "/queues/outbox/dropped"));
    detail(
        "queues",
        &format!("inbox {inbox}{more}, outbox {outbox} ({poisoned} set aside, {dropped} dropped)"),
    );
}

fn show_troubles(truth: &Value) {
    if let Some(note) = truth.get("storeNote").and_then(Value::as_str) {
        detail("store", note);
    }
    for approval in truth.get("approvals").and_then(Value::as_array).into_iter().flatten() {
        detail(
            "approval",
            &format!(
                "{}: {}",
                text(approval, "/approvalId"),
                print::approval_text(&text(approval, "/title"))
            ),
        );
    }
    for (edge, error) in truth.get("lastErrors").and_then(Value::as_object).into_iter().flatten() {
        if !error.is_null() {
            let ago = print::format_duration(error["agoMs"].as_i64().unwrap_or(0));
            detail("last error", &format!("{edge}, {ago} ago: {}", text(error, "/text")));
        }
    }
}
