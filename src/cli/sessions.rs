//! `spawn`, `stop`, `sessions`, `recover`: what a person asks of this machine's orchestrator.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::args::{Recover, Sessions, Spawn, Stop};
use super::exit::{Failure, NO, OK, Outcome, path_failure};
use super::print;
use crate::core::Cause;
use crate::edge::http::{Base, Http};
use crate::orchestrator::place::OrchestratorInfo;

/// A start or a stop may take long; the orchestrator itself has a limit.
const CALL_LIMIT: Duration = Duration::from_secs(160);

/// The orchestrator of this machine.
pub struct Host {
    http: Http,
    info: OrchestratorInfo,
}

impl Host {
    /// As its file tells it.
    pub fn find() -> Result<Host, Failure> {
        let home = crate::config::home()?;
        let info = OrchestratorInfo::read(&home).filter(OrchestratorInfo::is_live);
        let info = info.ok_or_else(|| {
            Failure::unreachable(format!(
                "no orchestrator runs on {}; start one with `agent-relay orchestrator`",
                home.display()
            ))
        })?;
        let base = Base::parse(&info.url).map_err(Failure::usage)?;
        Ok(Host { http: Http::new(base, CALL_LIMIT), info })
    }

    /// One operation; an error is the orchestrator's own sentence.
    pub fn ask(&self, operation: &str, params: &Value) -> Result<Value, Failure> {
        let path = format!("/{operation}");
        let answer = self.http.call_bearer("POST", &path, Some(params), &self.info.secret());
        let (status, body) = answer.map_err(|cause| match cause {
            Cause::TimedOut(_) => Failure::unreachable("the orchestrator gave no answer in time"),
            _ => Failure::unreachable(format!(
                "the orchestrator (pid {}) does not answer at {}",
                self.info.pid, self.info.url
            )),
        })?;
        if status < 300 {
            return Ok(body);
        }
        let said = body.get("error").and_then(Value::as_str);
        let said = said.unwrap_or("the orchestrator gave no reason").to_string();
        Err(match status {
            400 | 401 | 405 | 422 => Failure::usage(said),
            504 => Failure::unreachable(said),
            _ => Failure::no(said),
        })
    }

    /// The name of the session that a person means: its own, its agent's id or its label.
    pub fn named(&self, word: &str) -> Result<String, Failure> {
        let listed = self.ask("orchestrator.sessions", &json!({}))?;
        let all = listed["sessions"].as_array().cloned().unwrap_or_default();
        for field in ["name", "agentId", "label"] {
            let found: Vec<&Value> = all.iter().filter(|row| row[field] == word).collect();
            match found.as_slice() {
                [] => {}
                [one] => return Ok(text(one, "name").to_string()),
                more => {
                    let names: Vec<&str> = more.iter().map(|row| text(row, "name")).collect();
                    return Err(Failure::usage(format!(
                        "{word} are several sessions: {}; give a name",
                        names.join(", ")
                    )));
                }
            }
        }
        Err(Failure::no(format!("there is no session {word}; `agent-relay sessions` lists them")))
    }
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

/// Bytes, with K, M or G behind a number.
fn bytes(told: &str) -> Result<u64, Failure> {
    let (number, unit) = match told.chars().last() {
        Some('K' | 'k') => (&told[..told.len() - 1], 1 << 10),
        Some('M' | 'm') => (&told[..told.len() - 1], 1 << 20),
        Some('G' | 'g') => (&told[..told.len() - 1], 1 << 30),
        _ => (told, 1u64),
    };
    let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number.ok_or_else(|| {
        Failure::usage(format!("{told:?} is no amount of memory; give one like 512M or 2G"))
    })
}

fn list(told: &Option<String>) -> Vec<String> {
    let parts = told.iter().flat_map(|text| text.split(','));
    parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_string).collect()
}

fn spawn_params(spawn: &Spawn) -> Result<Value, Failure> {
    let Some((provider, args)) = spawn.command.split_first() else {
        return Err(Failure::usage(format!(
            "say which provider to start: {}; for example `agent-relay spawn {}`",
            crate::provider::registry::names(),
            super::options::example_arguments()
        )));
    };
    let here = std::env::current_dir().map_err(|error| {
        path_failure(&error, format!("the current folder cannot be used: {error}; give --cwd"))
    })?;
    let cwd = here.join(spawn.cwd.as_deref().unwrap_or_default());
    let mut env = Map::new();
    for pair in &spawn.env {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Failure::usage(format!("--env {pair:?} is not of the form NAME=VALUE")));
        };
        env.insert(name.into(), json!(value));
    }
    Ok(json!({
        "provider": provider, "providerArgs": args, "cwd": cwd.to_string_lossy(),
        "approvalMode": spawn.approval.as_deref().unwrap_or("guarded"), "label": spawn.label,
        "agentId": spawn.agent_id, "prompt": spawn.prompt, "model": spawn.model,
        "effort": spawn.effort, "policyName": spawn.policy, "tags": list(&spawn.tags),
        "capabilities": list(&spawn.caps), "env": env, "restart": spawn.restart,
        "workspaceMode": spawn.workspace_mode, "spawnRequestId": spawn.request_id,
        "memoryMax": spawn.memory_max.as_deref().map(bytes).transpose()?,
        "cpuWeight": spawn.cpu_weight, "cpuQuota": spawn.cpu_quota, "tasksMax": spawn.tasks_max,
        "runtimeMax": spawn.runtime_max, "queue": spawn.queue,
    }))
}

/// `spawn`
pub fn spawn(spawn: &Spawn) -> Outcome {
    let params = spawn_params(spawn)?;
    let report = Host::find()?.ask("agent.spawn", &params)?;
    if spawn.json {
        print::json(&report);
        return Ok(OK);
    }
    let reason = report["reason"].as_str().map(|reason| format!(": {reason}"));
    print::line(&format!(
        "{} is {}{}; its agent is {}",
        text(&report, "sessionName"),
        text(&report, "state"),
        reason.unwrap_or_default(),
        text(&report, "agentId")
    ));
    if let Some(note) = report["note"].as_str() {
        print::notice(note);
    }
    Ok(OK)
}

/// `stop`
pub fn stop(stop: &Stop) -> Outcome {
    let host = Host::find()?;
    let name = host.named(&stop.session)?;
    let answer = host.ask(
        "agent.stop",
        &json!({
            "sessionName": name, "graceful": !stop.now, "reason": stop.reason,
            "timeoutMs": stop.timeout.map(|seconds| seconds.saturating_mul(1000)),
        }),
    )?;
    let left = answer["left"].as_str();
    if stop.json {
        print::json(&answer);
    } else if let Some(left) = left {
        return Err(Failure::no(format!("{name} still runs: {left}")));
    } else {
        let was =
            if answer["wasRunning"] == true { "is stopped" } else { "is gone; it did not run" };
        print::line(&format!("{name} {was}"));
    }
    Ok(if left.is_some() { NO } else { OK })
}

fn show(rows: &[Value], as_json: bool) {
    if as_json {
        rows.iter().for_each(print::json);
        return;
    }
    let head = ["SESSION", "STATE", "AGENT", "AGE", "KEPT BY", "WHY"];
    let mut table = vec![head.map(String::from).to_vec()];
    for row in rows {
        let started = row["startedAt"].as_i64().filter(|at| *at > 0);
        let age = started.map(|at| print::format_duration(print::now_ms() - at));
        table.push(vec![
            text(row, "name").into(),
            text(row, "state").into(),
            text(row, "agentId").into(),
            age.unwrap_or_else(|| "-".into()),
            text(row, "supervisor").into(),
            text(row, "reason").into(),
        ]);
    }
    print::table(&table);
}

/// `sessions`
pub fn sessions(options: &Sessions) -> Outcome {
    let listed = Host::find()?.ask("orchestrator.sessions", &json!({}))?;
    show(listed["sessions"].as_array().map_or(&[], Vec::as_slice), options.json);
    let ended = listed["ended"].as_array().filter(|_| options.ended);
    for row in ended.into_iter().flatten() {
        if options.json {
            let mut row = row.clone();
            row["state"] = json!("ended");
            print::json(&row);
        } else {
            print::line(&format!("{} ended: {}", text(row, "sessionName"), text(row, "reason")));
        }
    }
    Ok(OK)
}

/// `recover`
pub fn recover(options: &Recover) -> Outcome {
    let host = Host::find()?;
    let params = match &options.session {
        Some(word) => json!({"sessionName": host.named(word)?}),
        None => json!({}),
    };
    let answer = host.ask("orchestrator.recover", &params)?;
    let rows = answer["sessions"].as_array().cloned().unwrap_or_default();
    if rows.is_empty() && !options.json {
        print::line("no session is parked");
    } else {
        show(&rows, options.json);
    }
    Ok(OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_are_read() {
        for (told, want) in [
            ("1048576", Some(1 << 20)),
            ("512M", Some(512 << 20)),
            ("2G", Some(2 << 30)),
            ("7k", Some(7 << 10)),
            ("", None),
            ("G", None),
            ("-5", None),
            ("99999999999G", None),
            ("\u{fc}", None),
        ] {
            assert_eq!(bytes(told).ok(), want, "{told:?}");
        }
    }
}
