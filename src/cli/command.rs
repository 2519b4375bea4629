//! `command`: an order to an agent's runner, followed to its end.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::args::Issue;
use super::cards::{is_there, text};
use super::client::Client;
use super::exit::{Failure, NO, OK, Outcome};
use super::print;
use crate::config::Global;
use crate::wire::api::{AgentCommand, CommandStatus, path};
use crate::wire::bus::RelayFrame;

/// `command`
pub fn command(options: &Issue) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    let mut params = match &options.params {
        Some(text) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(params)) => params,
            Ok(_) => return Err(Failure::usage("--params must be a JSON object".to_string())),
            Err(error) => {
                return Err(Failure::usage(format!("--params is not valid JSON: {error}")));
            }
        },
        None => Map::new(),
    };
    if let Some(reason) = &options.reason {
        params.insert("reason".into(), json!(reason));
    }
    if let Some(ms) = options.timeout_ms {
        params.insert("timeoutMs".into(), json!(ms));
    }
    const KNOWN: [&str; 9] = [
        "shutdown",
        "kill",
        "restart",
        "reconnect",
        "interrupt",
        "compact",
        "clearContext",
        "injectContext",
        "permissionDecision",
    ];
    let word = options.command.strip_prefix("agent.").unwrap_or(&options.command);
    if !KNOWN.contains(&word) {
        return Err(Failure::usage(format!(
            "there is no command {word:?}; use one of {}",
            KNOWN.join(", ")
        )));
    }
    issue(
        &client,
        &options.target,
        &format!("agent.{word}"),
        params,
        !options.no_wait,
        options.json,
    )
}

/// Seconds for a command that waits for the end of a turn: longer than the runner gives it.
const WAITING_PATIENCE: u64 = 620;

/// Issues a command and waits for its final status.
pub(super) fn issue(
    client: &Client,
    target: &str,
    kind: &str,
    params: Map<String, Value>,
    wait: bool,
    as_json: bool,
) -> Outcome {
    use AgentCommand::*;
    let patience = match AgentCommand::parse(kind) {
        // They wait for the end of the turn, and a summary takes its time.
        Some(Compact | ClearContext | InjectContext) => WAITING_PATIENCE,
        Some(Shutdown | Kill | Restart | Reconnect | PermissionDecision | Interrupt) | None => {
            params.get("timeoutMs").and_then(Value::as_u64).unwrap_or(10_000) / 1000 + 90
        }
    };
    let mut follow =
        if wait { Some(client.follow(&["command.updated"], &[target])?) } else { None };
    let mut command = client.call(
        "POST",
        path::COMMANDS,
        Some(&json!({"type": kind, "target": target, "params": params})),
    )?;
    let id = text(&command, "/id");
    let card = client.raw("GET", &path::agent(target), None)?.1;
    // Without a bus it may still poll; only an offline one is really away.
    if !is_there(&card) {
        let line = format!(
            "{kind} pending: {target} is not connected; it gets the command if it comes back within 10 minutes"
        );
        print::line(&if as_json { command.to_string() } else { line });
        return Ok(OK);
    }
    let until = Instant::now() + Duration::from_secs(patience);
    while let Some(follow) = follow.as_mut().filter(|_| !status_of(&command).is_final()) {
        match follow.next(until.saturating_duration_since(Instant::now()))? {
            Some(RelayFrame::Event { data, .. }) if text(&data, "/commandId") == id => {
                command = client.call("GET", &path::command(&id), None)?
            }
            Some(_) => {}
            None => {
                let hint = if patience == WAITING_PATIENCE {
                    "; it waits for the end of the turn, which `interrupt` would end"
                } else {
                    ""
                };
                return Err(Failure::no(format!(
                    "the command {id} is still {} after {patience} s{hint}",
                    text(&command, "/status")
                )));
            }
        }
    }
    if as_json {
        print::json(&command);
    } else {
        let error = command
            .get("error")
            .and_then(Value::as_str)
            .map(|error| format!(": {error}"))
            .unwrap_or_default();
        print::line(&format!("{kind} {}{error}", text(&command, "/status")));
    }
    let status = status_of(&command);
    let failed = status.is_final() && status != CommandStatus::Succeeded;
    Ok(if failed { NO } else { OK })
}

fn status_of(command: &Value) -> CommandStatus {
    command["status"].as_str().unwrap_or_default().into()
}
