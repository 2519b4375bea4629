//! What a spawn gives, what it is refused for, and what it never shows.

use std::os::unix::fs::PermissionsExt;

use agent_relay::edge::http::{Base, Http};
use agent_relay::os;
use agent_relay::secret::Secret;
use serde_json::{Value, json};

use super::{Host, process_of};
use crate::support::{BIN, variable, wait_for};

#[test]
fn a_session_is_spawned_answers_and_is_stopped_with_all_that_it_started() {
    let host = Host::new("spawn");
    let report = host.spawn("web", &["--policy", "deploy", "--tags", "x,y", "--tasks-max", "500"]);
    assert!(report["note"].as_str().is_some_and(|note| note.contains("do not hold")), "{report}");
    assert_eq!((&report["state"], &report["supervisor"]), (&json!("running"), &json!("process")));
    let name = report["sessionName"].as_str().expect("a name").to_string();
    assert!(name.starts_with("agent-relay-acp-web-"), "{name}");
    let pid = process_of(&report).pid;
    assert_eq!(variable(pid, "AGENT_RELAY_SPAWN_REQUEST_ID"), report["spawnRequestId"]);
    assert_eq!(variable(pid, "AGENT_RELAY_TMUX_SESSION"), name);
    let id = host.machine.send("web", "hello");
    host.machine.settle(&[id], 60);
    // The policy stands in the record of its token: messages to it are routed.
    let by_policy = host.machine.send("policy:deploy", "for the policy");
    host.machine.settle(&[by_policy], 60);
    let listed = host.session("web");
    assert_eq!((&listed["state"], &listed["name"]), (&json!("running"), &json!(name)));
    // A label names it too.
    let launch = host.record("web")["launchId"].as_str().expect("an id").to_string();
    assert!(host.of_launch(&launch).len() >= 2, "runner and provider");
    host.machine.ok(&["stop", "web"]);
    assert_eq!(host.of_launch(&launch), [], "nothing of it is left");
    assert_eq!((host.files(), host.records()), (vec![], vec![]));
    assert!(host.machine.home.join("logs").join(format!("{name}.log")).is_file(), "its log stays");
    let ended = host.machine.ok(&["sessions", "--ended"]);
    assert!(ended.contains("it was stopped (asked for)"), "{ended}");
}

#[test]
fn what_cannot_be_is_refused_with_its_cure() {
    let host = Host::new("refused");
    let outside = host.machine.home.to_string_lossy().into_owned();
    let link = host.machine.work.join("link");
    std::os::unix::fs::symlink(&outside, &link).expect("a link");
    let link = link.to_string_lossy().into_owned();
    let demo = ["acp", "--", BIN, "demo-agent"];
    host.spawn("web", &["--request-id", "request-1"]);
    for (code, options, want) in [
        (2, &["--workspace-mode", "isolated"][..], "not there yet; use inherit or shared"),
        (2, &["--cwd", "missing"], "cwd does not exist"),
        (2, &["--cwd", &outside], "cwd must be within base directory"),
        (2, &["--cwd", &link], "cwd must be within base directory"),
        (2, &["--approval", "yolo"], "open, guarded or read-only"),
        (2, &["--memory-max", "5"], "memoryMax"),
        (2, &["--memory-max", "much"], "512M or 2G"),
        (1, &["--memory-max", "99999G"], "it does not fit"),
        (1, &["--agent-id", "web"], "has the session"),
        (2, &["--agent-id", "a b"], "cannot be an agent id"),
        (2, &["--restart", "often"], "always, on-failure or never"),
    ] {
        let words: Vec<&str> =
            ["spawn"].iter().chain(options).chain(demo.iter()).copied().collect();
        let said = host.machine.fails(code, &words);
        assert!(said.contains(want), "{options:?}: {said}");
    }
    let said = host.machine.fails(2, &["spawn", "nobody"]);
    assert!(said.contains("must be one of"), "{said}");
    // Wrong use of the provider ends the start with the runner's own words.
    let said = host.machine.fails(1, &["spawn", "--label", "bad", "acp", "--", "/no/such/agent"]);
    assert!(said.contains("exit code 2") && said.contains("/no/such/agent"), "{said}");
    assert!(host.machine.fails(1, &["stop", "nobody"]).contains("no session nobody"));
    // The same request gives the same session.
    let again = host.spawn("other", &["--request-id", "request-1"]);
    assert_eq!(again["agentId"], "web");
    assert_eq!(host.sessions().len(), 1, "nothing else was left behind");
    assert_eq!(host.records().len(), 1);
    let of_web = host.files();
    assert_eq!(of_web.len(), 3, "script, options and runner info of one session: {of_web:?}");
}

#[test]
fn rooms_are_bounded_and_who_asks_for_it_waits_in_sight() {
    let mut host = Host::new("room");
    host.kill();
    std::fs::write(host.machine.home.join("orchestrator.json"), r#"{"maxSessions": 1}"#)
        .expect("writes");
    host.start();
    host.spawn("first", &[]);
    let said = host.machine.fails(1, &["spawn", "acp", "--", BIN, "demo-agent"]);
    assert!(said.contains("maxSessions is 1"), "{said}");
    let queued = host.spawn("second", &["--queue"]);
    assert_eq!(queued["state"], "queued", "{queued}");
    assert!(queued["reason"].as_str().is_some_and(|why| why.contains("maxSessions is 1")));
    host.machine.ok(&["stop", "first"]);
    host.wait_state("second", "running");
}

/// Where secrets come from, none of them may be seen: not by other users, not in a log.
#[test]
fn no_secret_of_a_session_leaves_its_place() {
    let host = Host::new("handed");
    let report = host.spawn("web", &["--env", "API_KEY=s3cret-of-the-session"]);
    let pid = process_of(&report).pid;
    assert_eq!(variable(pid, "API_KEY"), "s3cret-of-the-session");
    let own = variable(pid, "AGENT_RELAY_TOKEN");
    assert!(own.len() > 20, "it has a token of its own");
    for word in ["s3cret-of-the-session", &own] {
        let mut open = vec![host.machine.home.clone()];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(std::fs::read_dir(&path).expect("lists").flatten().map(|e| e.path()));
                continue;
            }
            let text = std::fs::read(&path).unwrap_or_default();
            let holds = text.windows(word.len()).any(|part| part == word.as_bytes());
            let mode = std::fs::metadata(&path).map_or(0, |meta| meta.permissions().mode());
            let name = path.to_string_lossy().into_owned();
            assert!(!holds || mode & 0o077 == 0, "{name} is for its owner");
            let is_meant =
                name.ends_with(".spawn.json") || name.contains(".store/") || name.contains("/hub/");
            assert!(!holds || is_meant, "{name} holds a secret");
        }
        for process in host.machine.left_over() {
            let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&line).contains(word), "an argument holds a secret");
        }
    }
    // Its token says whose it is and who made it.
    let tokens = host.machine.ok(&["token", "list", "--json"]);
    let record: Value = tokens
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .find(|record: &Value| record["agentId"] == "web")
        .expect("a token of the agent");
    assert_eq!(record["profileId"], "provider-agent");
    assert!(record["spawnedBy"].as_str().is_some_and(|name| name.contains("orchestrator")));
}

/// The same by commands of the relay, as from another machine.
#[test]
fn commands_of_the_relay_do_the_same() {
    let host = Host::new("bus");
    let is_one = |card: &Value| card["id"].as_str().is_some_and(|id| id.contains("-orchestrator-"));
    let orchestrator = wait_for("an orchestrator to be registered", 60, || {
        let cards = host.machine.ok(&["agents", "--json"]);
        let mut cards = cards.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        cards.find(is_one).map(|card| card["id"].clone())
    });
    let config = host.machine.config();
    let base = Base::parse(config["relayUrl"].as_str().expect("a hub")).expect("a URL");
    let http = Http::new(base, std::time::Duration::from_secs(10));
    let token = Secret::new(config["token"].as_str().expect("a token"));
    let call = |method: &str, path: &str, body: Value| {
        let body = Some(&body).filter(|body| !body.is_null());
        http.call(method, path, body, &token).expect("an answer").1
    };
    let order = |kind: &str, params: Value| {
        let made = call(
            "POST",
            "/api/commands",
            json!({"type": kind, "target": orchestrator, "params": params}),
        );
        let id = made["id"].as_str().expect("an id").to_string();
        wait_for("the command to be answered", 60, || {
            let command = call("GET", &format!("/api/commands/{id}"), Value::Null);
            let ended = command["status"] == "succeeded" || command["status"] == "failed";
            ended.then_some(command)
        })
    };
    let state = host.machine.home.join("demo");
    let params = json!({
        "provider": "acp", "cwd": host.machine.work, "agentId": "far", "label": "far", "approvalMode": "open",
        "providerArgs": [BIN, "demo-agent", "--state", state],
    });
    let spawned = order("agent.spawn", params);
    assert_eq!(spawned["status"], "succeeded", "{spawned}");
    assert_eq!(spawned["result"]["agentId"], "far");
    assert_eq!(spawned["result"]["spawnRequestId"], spawned["id"], "a command is its own request");
    let listed = order("orchestrator.sessions", json!({}));
    assert_eq!(listed["result"]["sessions"][0]["agentId"], "far");
    let id = host.machine.send("far", "hello");
    host.machine.settle(&[id], 60);
    let refused = order("agent.spawn", json!({"provider": "acp", "cwd": "/no/such"}));
    assert_eq!(
        (&refused["status"], &refused["error"]),
        (&json!("failed"), &json!("cwd does not exist: /no/such"))
    );
    let foreign = order("agent.stop", json!({"sessionName": "somebody-elses"}));
    assert_eq!(foreign["error"], "session is not managed by this orchestrator");
    let process = process_of(&spawned["result"]);
    let stopped = order("agent.stop", json!({"agentId": "far"}));
    assert_eq!(stopped["result"], json!({"stopped": true, "wasRunning": true}));
    assert!(!os::is_alive(process));
    assert_eq!(order("agent.stop", json!({"agentId": "far"}))["result"]["stopped"], false);
}
