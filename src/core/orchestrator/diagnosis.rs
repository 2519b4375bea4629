//! Why a session is as it is: what its record, its unit, the kernel, its log and its runner say,
//! as one answer for programs, and as one page for people. Pure, from recorded texts.

use serde_json::{Map, Value, json};

use super::log_text::{LogOptions, last_lines};
use super::record::Record;
use super::systemd::{Exit, UnitState};
use crate::core::limits::JOURNAL_LINES_DIAGNOSED;

/// What was found of a session.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// What is remembered of it.
    pub record: Record,
    /// When this was found, ms since 1970.
    pub detected_at: i64,
    /// Whether its main process lives.
    pub alive: bool,
    /// Its main process as it is known now; 0: none.
    pub current_pid: u32,
    /// Whether its terminal can be looked at.
    pub terminal: bool,
    /// Bytes of its log, and its last lines.
    pub log: Option<Result<(u64, Vec<String>), String>>,
    /// Id of the runner, if it has told where it is.
    pub runner: Option<String>,
    /// The text of `systemctl show`, or why there is none.
    pub unit: Option<Result<String, String>>,
    /// The text of `memory.events` of its control group.
    pub memory_events: Option<String>,
    /// What the service manager has written about its unit.
    pub journal: Option<String>,
    /// Sentences about its earlier ends, the last one last.
    pub ends: Vec<String>,
}

/// The answer.
pub fn diagnosis(facts: &Facts) -> Value {
    let mut told = about(facts);
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            told.insert(name.into(), value);
        }
    };
    let unit = facts.unit.as_ref().map(|text| text.as_ref().map(|text| UnitState::read(text)));
    let exit = (!facts.alive).then(|| exit(facts));
    if let Some(Ok((bytes, lines))) = &facts.log {
        put("logBytes", json!(bytes));
        put("logEmpty", json!(*bytes == 0));
        put("logTail", json!(lines));
    }
    put("runnerInfoPresent", json!(facts.runner.is_some()));
    put("runnerId", json!(facts.runner));
    put("systemd", unit.as_ref().map_or(Value::Null, |unit| systemd(&facts.record, unit)));
    put("memory", memory(facts, unit.as_ref().and_then(|unit| unit.as_ref().ok())));
    let journal = journal_lines(facts);
    put("journal", if journal.is_empty() { Value::Null } else { json!(journal) });
    put("ends", if facts.ends.is_empty() { Value::Null } else { json!(facts.ends) });
    put("parked", json!(facts.record.parked));
    let missing = unavailable(facts);
    put("unavailable", if missing.is_empty() { Value::Null } else { json!(missing) });
    if let Some(exit) = exit {
        put("exit", exit_json(exit));
        put("advice", json!(advice(exit)));
        put("lastError", json!(last_error(facts, unit.as_ref())));
    }
    Value::Object(told)
}

/// What is known without looking at anything.
fn about(facts: &Facts) -> Map<String, Value> {
    let record = &facts.record;
    let pid = |pid: u32| if pid == 0 { Value::Null } else { json!(pid) };
    let unit = record.supervisor.unit();
    let told = json!({
        "agentId": record.agent_id, "provider": record.provider,
        "workspaceMode": record.workspace_mode, "workspace": record.workspace(),
        "sessionName": record.name, "tmuxSession": record.name, "terminalSession": record.name,
        "cwd": record.cwd, "label": record.label, "approvalMode": record.approval_mode,
        "policyName": record.policy_name, "spawnRequestId": record.spawn_request_id,
        "automationRunId": record.automation_run_id,
        "supervisor": record.supervisor.name(), "systemdUnit": unit,
        "terminalAvailable": facts.terminal, "alive": facts.alive,
        "pid": pid(record.pid), "currentPid": pid(facts.current_pid),
        "startedAt": record.started_at, "detectedAt": facts.detected_at,
        "runtimeMs": (facts.detected_at - record.started_at).max(0),
        "logFile": record.log_file, "runnerInfoFile": record.runner_info_file,
    });
    let Value::Object(mut told) = told else { return Map::new() };
    told.retain(|_, value| !value.is_null());
    told
}

/// How it ended. The kernel's count of kills says more than the exit code that follows from one.
fn exit(facts: &Facts) -> Exit {
    let state = match &facts.unit {
        Some(Ok(text)) => UnitState::read(text),
        _ => UnitState::default(),
    };
    // A unit that is forgotten says of itself that all went well.
    let is_gone = state.load_state == "not-found" || state.active_state.is_empty();
    let told = if is_gone { Exit::Unknown } else { state.exit() };
    let is_oom = oom_kills(facts).is_some_and(|kills| kills > 0)
        || facts.journal.as_deref().is_some_and(tells_of_oom);
    match told {
        Exit::OutOfMemory { .. } => told,
        _ if is_oom => Exit::OutOfMemory { peak: state.memory_peak },
        Exit::Unknown => match journal_exit(facts.journal.as_deref().unwrap_or_default()) {
            Exit::Unknown => facts
                .ends
                .last()
                .or(facts.record.parked.as_ref())
                .map_or(told, |said| exit_said(said)),
            told => told,
        },
        told => told,
    }
}

/// Processes that the kernel has killed in the control group for want of memory.
fn oom_kills(facts: &Facts) -> Option<u64> {
    let rows = facts.memory_events.as_deref()?.lines();
    rows.filter_map(|row| row.split_once(' '))
        .find(|(name, _)| *name == "oom_kill")
        .and_then(|(_, count)| count.trim().parse().ok())
}

/// Whether the service manager has said so.
fn tells_of_oom(journal: &str) -> bool {
    journal.contains("killed by the OOM killer")
        || journal.contains("Failed with result 'oom-kill'")
}

/// How the main process ended, from what the service manager has written about it last.
fn journal_exit(journal: &str) -> Exit {
    let last = journal.lines().rfind(|line| line.contains("Main process exited, code="));
    let Some((_, told)) = last.and_then(|line| line.split_once("code=")) else {
        return Exit::Unknown;
    };
    let (code, status) = told.split_once(", status=").unwrap_or((told, ""));
    let number = status.split('/').next().and_then(|number| number.trim().parse().ok());
    match (code, number) {
        ("exited", Some(0)) => Exit::Orderly,
        ("exited", Some(number)) => Exit::Code(number),
        ("killed" | "dumped", Some(number)) => Exit::Signal(number),
        _ => Exit::Unknown,
    }
}

/// How it ended, from the orchestrator's own sentence about it: its unit may be forgotten since.
fn exit_said(sentence: &str) -> Exit {
    let number = |before: &str| -> Option<i32> {
        let (_, rest) = sentence.split_once(before)?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[..digits].parse().ok()
    };
    let says = |exit: Exit| sentence.contains(&exit.to_string());
    let code = number("it ended with exit code ").map(Exit::Code);
    let signal = || number("it was ended by signal ").map(Exit::Signal);
    let others = [Exit::Orderly, Exit::OutOfMemory { peak: None }, Exit::TimedOut, Exit::Reboot];
    code.or_else(signal)
        .or_else(|| others.into_iter().find(|exit| says(*exit)))
        .unwrap_or(Exit::Unknown)
}

fn exit_json(exit: Exit) -> Value {
    let kind = match exit {
        Exit::Orderly => "orderly",
        Exit::Code(_) => "code",
        Exit::Signal(_) => "signal",
        Exit::OutOfMemory { .. } => "out-of-memory",
        Exit::TimedOut => "timed-out",
        Exit::Reboot => "reboot",
        Exit::Unknown => "unknown",
    };
    let mut told = json!({"kind": kind, "text": exit.to_string()});
    match exit {
        Exit::Code(code) => told["code"] = json!(code),
        Exit::Signal(signal) => {
            told["signal"] = json!(signal);
            told["signalName"] = signal_name(signal).map_or(Value::Null, |name| json!(name));
        }
        _ => {}
    }
    told
}

/// What people call a signal.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// What helps, as one sentence.
fn advice(exit: Exit) -> &'static str {
    match exit {
        Exit::Orderly => {
            "it was stopped, or its program had nothing more to do; `agent-relay spawn` starts another one"
        }
        Exit::Code(2) => {
            "its options or settings are wrong, and another start would end in the same way; the last lines of its log say which"
        }
        Exit::Code(3) => {
            "what it needs cannot be reached; look whether the relay runs: `agent-relay status`"
        }
        Exit::Code(70) => "that is a bug of agent-relay; its log holds what to report",
        Exit::Code(71) => {
            "the system refused something (disk, descriptors, memory, permissions): `agent-relay doctor` looks for it"
        }
        Exit::Code(_) => "its provider failed for good; the last lines of its log say why",
        Exit::Signal(9) => {
            "something killed it: a person, a script, or the kernel for want of memory (`dmesg` tells)"
        }
        Exit::Signal(1 | 2 | 15) => "somebody told it to end",
        Exit::Signal(_) => "its program crashed; the last lines of its log may say where",
        Exit::OutOfMemory { .. } => {
            "give it more with a higher memoryMax, or run fewer sessions on this host"
        }
        Exit::TimedOut => {
            "it did not keep a time of its unit: runtimeMax, or the time to start or to end"
        }
        Exit::Reboot => {
            "it is started again if it was wanted; `agent-relay recover` starts parked ones"
        }
        Exit::Unknown => "its log and the machine's own log (`journalctl`) may tell more",
    }
}

fn texts(pairs: [(&str, &str); 7]) -> Map<String, Value> {
    let there = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    there.map(|(name, value)| (name.to_string(), json!(value))).collect()
}

/// What the service manager says of the unit.
fn systemd(record: &Record, unit: &Result<UnitState, &String>) -> Value {
    let name = record.supervisor.unit().unwrap_or_default();
    let state = match unit {
        Ok(state) => state,
        Err(why) => return json!({"unit": name, "unavailable": why}),
    };
    let mut told = texts([
        ("unit", name),
        ("activeState", &state.active_state),
        ("subState", &state.sub_state),
        ("result", &state.result),
        ("execMainCode", &state.exec_main_code),
        ("execMainStatus", &state.exec_main_status),
        ("statusText", &state.status_text),
    ]);
    if state.main_pid > 0 {
        told.insert("mainPid".into(), json!(state.main_pid));
    }
    if state.load_state == "not-found" {
        told.insert("loadState".into(), json!(state.load_state));
    }
    Value::Object(told)
}

/// What it may use and has used, and whether the kernel had to kill.
fn memory(facts: &Facts, unit: Option<&UnitState>) -> Value {
    let pairs = [
        ("max", facts.record.ceilings.memory_max),
        ("peak", unit.and_then(|unit| unit.memory_peak)),
        ("oomKills", oom_kills(facts)),
    ];
    let known = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let known: Map<String, Value> =
        known.map(|(name, value)| (name.to_string(), json!(value))).collect();
    if known.is_empty() { Value::Null } else { Value::Object(known) }
}

fn journal_lines(facts: &Facts) -> Vec<String> {
    let options = LogOptions { lines: JOURNAL_LINES_DIAGNOSED, raw: false };
    facts
        .journal
        .as_deref()
        .map(|text| last_lines(text.as_bytes(), true, options))
        .unwrap_or_default()
}

/// What could not be looked at.
fn unavailable(facts: &Facts) -> Vec<String> {
    let log = match &facts.log {
        Some(Err(error)) => Some(format!("stdout/stderr log unavailable: {error}")),
        Some(Ok((0, _))) => Some("stdout/stderr log empty".into()),
        _ => None,
    };
    let runner = facts.runner.is_none().then(|| "runner info unavailable".to_string());
    log.into_iter().chain(runner).collect()
}

/// The whole story on one line.
fn last_error(facts: &Facts, unit: Option<&Result<UnitState, &String>>) -> String {
    let record = &facts.record;
    let seconds = ((facts.detected_at - record.started_at).max(0) + 500) / 1000;
    let mut parts = vec![format!(
        "managed {} session {} exited after {seconds}s",
        record.provider, record.name
    )];
    let joined = |texts: [&str; 2]| {
        let known: Vec<&str> = texts.into_iter().filter(|text| !text.is_empty()).collect();
        if known.is_empty() { "unknown".to_string() } else { known.join("/") }
    };
    match unit {
        Some(Ok(state)) => parts.push(format!(
            "systemd {}.service state={} result={} exit={}",
            record.supervisor.unit().unwrap_or_default(),
            joined([&state.active_state, &state.sub_state]),
            joined([&state.result, ""]),
            joined([&state.exec_main_code, &state.exec_main_status])
        )),
        Some(Err(why)) => parts.push(format!("systemd status unavailable: {why}")),
        None => {}
    }
    match &facts.log {
        Some(Ok((0, _))) => parts.push("stdout/stderr log is empty".into()),
        Some(Err(_)) => parts.push("stdout/stderr log unavailable".into()),
        _ => {}
    }
    if facts.runner.is_none() {
        parts.push("runner info was not written".into());
    }
    parts.join("; ")
}

/// A page for people: one fact a line, the lines of log and journal behind a bar.
pub fn page(told: &Value) -> Vec<String> {
    let text = |at: &str| told.pointer(at).and_then(Value::as_str).unwrap_or_default().to_string();
    let number = |at: &str| told.pointer(at).and_then(Value::as_u64);
    let mut page = vec![headline(told)];
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            page.push(format!("  {name:<12}{value}"));
        }
    };
    fact("why", text("/exit/text"));
    fact("help", text("/advice"));
    fact("parked", text("/parked"));
    for end in told["ends"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        fact("before", end.into());
    }
    let named = [
        ("agent", text("/agentId")),
        ("provider", text("/provider")),
        ("mode", text("/approvalMode")),
    ];
    let named: Vec<String> = named
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    fact("who", named.join(", "));
    fact("folder", text("/cwd"));
    fact("request", text("/spawnRequestId"));
    fact("process", process_line(told));
    fact("unit", unit_line(told));
    fact("memory", memory_line(told));
    fact("runner", runner_line(told));
    let terminal =
        if told["terminalAvailable"] == json!(true) { "can be looked at" } else { "none" };
    fact("terminal", terminal.into());
    let size = number("/logBytes").map(|bytes| format!(" ({bytes} bytes)")).unwrap_or_default();
    fact("log", text("/logFile") + &size);
    fact("missing", listed(&told["unavailable"]).join("; "));
    let tails =
        [("the end of its log:", "logTail"), ("what the service manager wrote:", "journal")];
    for (head, name) in tails {
        let lines = listed(&told[name]);
        if !lines.is_empty() {
            page.push(format!("  {head}"));
            page.extend(lines.into_iter().map(|line| format!("    | {line}")));
        }
    }
    page
}

fn listed(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_string).collect()
}

/// A span of time as people say it.
fn span(ms: i64) -> String {
    match ms.max(0) / 1000 {
        s @ 0..=99 => format!("{s} s"),
        s @ 100..=5999 => format!("{} min", s / 60),
        s @ 6000..=172_799 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

fn headline(told: &Value) -> String {
    let name = told["sessionName"].as_str().unwrap_or("the session");
    let time = span(told["runtimeMs"].as_i64().unwrap_or(0));
    let is_alive = told["alive"] == json!(true);
    if is_alive {
        format!("{name} runs for {time}")
    } else {
        format!("{name} is over; it was started {time} ago")
    }
}

fn process_line(told: &Value) -> String {
    let pid = |name: &str| told[name].as_u64();
    let pids = match (pid("currentPid"), pid("pid")) {
        (Some(now), Some(before)) if now != before => format!("pid {now} (started as {before})"),
        (Some(pid), _) | (None, Some(pid)) => format!("pid {pid}"),
        (None, None) => return "none is known".into(),
    };
    let life = if told["alive"] == json!(true) { "lives" } else { "is gone" };
    format!("{pids}, {life}; kept by {}", told["supervisor"].as_str().unwrap_or("nobody"))
}

fn unit_line(told: &Value) -> String {
    let unit = &told["systemd"];
    let Some(name) = unit["unit"].as_str() else { return String::new() };
    if let Some(why) = unit["unavailable"].as_str() {
        return format!("{name}.service cannot be asked: {why}");
    }
    if unit["loadState"] == json!("not-found") {
        return format!("{name}.service is not there any more");
    }
    let text = |field: &str| unit[field].as_str().unwrap_or("unknown").to_string();
    let said = unit["statusText"].as_str().map(|said| format!(", it said: {said}"));
    format!(
        "{name}.service is {} ({}), result {}{}",
        text("activeState"),
        text("subState"),
        text("result"),
        said.unwrap_or_default()
    )
}

fn memory_line(told: &Value) -> String {
    let bytes = |name: &str| told["memory"][name].as_u64();
    let megabytes = |bytes: u64| format!("{} MB", bytes.div_ceil(1_000_000));
    let parts = [
        bytes("max").map(|max| format!("at most {}", megabytes(max))),
        bytes("peak").map(|peak| format!("used up to {}", megabytes(peak))),
        bytes("oomKills")
            .filter(|kills| *kills > 0)
            .map(|kills| format!("{kills} killed for want of it")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn runner_line(told: &Value) -> String {
    match told["runnerId"].as_str() {
        Some(id) => format!("{id} has told where it is"),
        None => format!(
            "has not told where it is ({})",
            told["runnerInfoFile"].as_str().unwrap_or_default()
        ),
    }
}

#[cfg(test)]
mod tests;
