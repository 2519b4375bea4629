//! Sessions outlive their orchestrator, and are started again when they fail.

use agent_relay::os;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Host, process_of};
use crate::support::{BIN, Running, pause, wait_for};

/// Sessions and restarts of an ordinary run; `CHAOS_RESTARTS` asks for more.
const SESSIONS: usize = 20;
const RESTARTS: usize = 10;

#[test]
fn a_killed_orchestrator_costs_no_session_and_no_message() {
    let restarts = std::env::var("CHAOS_RESTARTS").ok().and_then(|text| text.parse().ok());
    let restarts: usize = restarts.unwrap_or(RESTARTS);
    let mut host = Host::new("adopt");
    let agents: Vec<String> = (1..=SESSIONS).map(|number| format!("a{number}")).collect();
    for agent in &agents {
        host.spawn(agent, &[]);
    }
    let before: Vec<_> = host.sessions().iter().map(process_of).collect();
    let mut sent = Vec::new();
    for _ in 0..restarts {
        // One message is in flight to each while the orchestrator is gone.
        for agent in &agents {
            sent.push(host.machine.send(agent, "hello"));
        }
        host.kill();
        host.start();
        let all = wait_for("all sessions to be adopted", 60, || {
            let all = host.sessions();
            all.iter().all(|row| row["state"] == "running").then_some(all)
        });
        let now: Vec<_> = all.iter().map(process_of).collect();
        assert_eq!(now, before, "none is lost, none is started twice");
    }
    host.machine.settle(&sent, 120);
    println!("restarts of an orchestrator with {SESSIONS} live sessions: {restarts}");
}

#[test]
fn a_session_that_fails_is_started_again_and_a_crash_loop_is_parked() {
    let host = Host::new("again");
    host.spawn("web", &["--prompt", "the first prompt"]);
    let first = host.session("web");
    let id = host.machine.send("web", "before the kill");
    host.machine.settle(&[id], 60);
    let record = host.record("web");
    os::kill(process_of(&first), Signal::KILL);
    let second = wait_for("another start", 60, || {
        Some(host.session("web"))
            .filter(|row| row["state"] == "running" && row["pid"] != first["pid"])
    });
    assert_eq!(second["spawnRequestId"], first["spawnRequestId"], "it is the same request");
    assert_ne!(host.record("web")["launchId"], record["launchId"], "and another start");
    assert_eq!(host.of_launch(record["launchId"].as_str().expect("an id")), []);
    let id = host.machine.send("web", "after the kill");
    host.machine.settle(&[id], 60);
    let log = std::fs::read_to_string(host.machine.home.join("demo/log.jsonl"))
        .expect("the agent's record");
    assert_eq!(log.matches("the first prompt").count(), 1, "its prompt is delivered once");
    // Its rule says that this one is not started again.
    host.spawn("once", &["--restart", "never"]);
    os::kill(process_of(&host.session("once")), Signal::KILL);
    let parked = host.wait_state("once", "parked");
    assert!(parked["reason"].as_str().is_some_and(|why| why.contains("signal 9")), "{parked}");
    host.machine.ok(&["recover", "once"]);
    host.wait_state("once", "running");
    host.machine.ok(&["stop", "once"]);
    assert_eq!(host.session("once"), Value::Null);
}

#[test]
fn a_crash_loop_is_parked_and_survives_a_restart_as_that() {
    let mut host = Host::new("loop");
    host.kill();
    let settings = json!({"restart": {"firstMs": 20, "mostMs": 40, "exitsMax": 3}});
    std::fs::write(host.machine.home.join("orchestrator.json"), settings.to_string())
        .expect("writes");
    host.start();
    host.spawn("web", &[]);
    for _ in 0..3 {
        let row = wait_for("it to run or to be parked", 60, || {
            Some(host.session("web"))
                .filter(|row| row["state"] == "running" || row["state"] == "parked")
        });
        assert_eq!(row["state"], "running", "{row}");
        let process = process_of(&row);
        os::kill(process, Signal::KILL);
        wait_for("the kill to be seen", 60, || {
            (host.session("web")["pid"] != row["pid"] || host.session("web")["state"] != "running")
                .then_some(())
        });
    }
    let parked = host.wait_state("web", "parked");
    assert!(parked["reason"].as_str().is_some_and(|why| why.contains("3 times")), "{parked}");
    host.kill();
    host.start();
    assert_eq!(host.wait_state("web", "parked")["reason"], parked["reason"]);
    host.machine.ok(&["recover"]);
    host.wait_state("web", "running");
    let id = host.machine.send("web", "hello");
    host.machine.settle(&[id], 60);
}

/// What the records say of another boot is not believed of this one: the same pid may be anybody's.
#[test]
fn after_a_reboot_sessions_are_started_again() {
    let mut host = Host::new("reboot");
    host.spawn("web", &[]);
    host.spawn("once", &["--restart", "never"]);
    let sleeps = host.machine.command("sleep").arg("600").spawn().expect("starts");
    let mut stranger = Running { child: sleeps };
    let rows = host.sessions();
    // The machine goes down: nothing of it is left.
    host.kill();
    for row in &rows {
        let launch = host.record(row["agentId"].as_str().expect("an id"))["launchId"].clone();
        let all = || host.of_launch(launch.as_str().expect("an id"));
        wait_for("its processes to end", 60, || {
            all().into_iter().for_each(|process| os::kill(process, Signal::KILL));
            all().is_empty().then_some(())
        });
    }
    let path = host.machine.home.join("orchestrator-sessions.json");
    let mut records = host.records();
    for record in &mut records {
        record["bootId"] = json!("another boot");
        record["pid"] = json!(stranger.child.id());
        record["startTime"] = json!(os::process(stranger.child.id()).start);
    }
    std::fs::write(&path, serde_json::to_string(&records).expect("plain data")).expect("writes");
    host.start();
    let web = host.wait_state("web", "running");
    assert_ne!(web["pid"], json!(stranger.child.id()));
    let parked = host.wait_state("once", "parked");
    assert!(
        parked["reason"].as_str().is_some_and(|why| why.contains("machine was started anew")),
        "{parked}"
    );
    assert!(
        stranger.child.try_wait().expect("waits").is_none(),
        "a stranger with that pid lives on"
    );
    let id = host.machine.send("web", "hello");
    host.machine.settle(&[id], 60);
    stranger.kill();
}

/// Killed at each point of a start, an orchestrator neither loses a session nor has two of it.
#[test]
fn a_start_that_is_cut_short_leaves_one_session_or_none() {
    for (place, count) in
        [("records", 1), ("records", 2), ("records", 3), ("worked", 1), ("worked", 2)]
    {
        let mut host = Host::new(&format!("cut-{place}{count}"));
        host.kill();
        host.machine.set("AGENT_RELAY_CRASH_AT", &format!("{place}:{count}"));
        let base = host.machine.work.to_string_lossy().into_owned();
        let mut broken = host.machine.start(&["orchestrator", "--base-dir", &base]);
        host.machine.set("AGENT_RELAY_CRASH_AT", "");
        wait_for("the orchestrator to answer", 60, || {
            host.machine.run(&["sessions"]).status.success().then_some(())
        });
        let state = host.machine.home.join("demo").to_string_lossy().into_owned();
        let words = [
            "spawn",
            "--agent-id",
            "web",
            "--approval",
            "open",
            "acp",
            "--",
            BIN,
            "demo-agent",
            "--state",
            &state,
        ];
        let _ = host.machine.run(&words);
        let crashed = broken.child.try_wait().expect("waits").is_some();
        if !crashed {
            // So many passages a start does not have: it has succeeded.
            broken.kill();
        }
        host.start();
        pause(100);
        let rows = wait_for("a state that lasts", 60, || {
            let rows = host.sessions();
            let settled = rows.iter().all(|row| row["state"] == "running");
            settled.then_some(rows)
        });
        assert!(rows.len() <= 1, "{place}:{count}: {rows:?}");
        if rows.is_empty() {
            host.spawn("web", &[]);
        }
        let runners = os::processes_with_env(
            "AGENT_RELAY_TMUX_SESSION",
            host.session("web")["name"].as_str().expect("a name"),
        );
        let main: Vec<_> = runners
            .iter()
            .filter(|process| {
                let line =
                    std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
                String::from_utf8_lossy(&line).contains("--agent-id")
            })
            .collect();
        assert_eq!(main.len(), 1, "{place}:{count}: one runner");
        let id = host.machine.send("web", "hello");
        host.machine.settle(&[id], 60);
    }
}

/// A backup of the hub knows no token of a session that was spawned after it was made.
#[test]
fn after_a_restore_of_the_hub_sessions_get_other_tokens() {
    let mut host = Host::new("restore");
    let backup = host.machine.work.join("hub.sqlite").to_string_lossy().into_owned();
    wait_for("the orchestrator to be registered", 60, || {
        (host.machine.connected() == 1).then_some(())
    });
    host.machine.ok(&["hub", "backup", &backup]);
    host.spawn("web", &[]);
    let id = host.machine.send("web", "before the restore");
    host.machine.settle(&[id], 60);
    host.hub.kill();
    host.machine.ok(&["hub", "restore", &backup]);
    host.hub = host.machine.hub();
    wait_for("orchestrator and agent to be registered", 60, || {
        (host.machine.connected() == 2).then_some(())
    });
    wait_for("another token to be handed over", 60, || {
        let log = std::fs::read_to_string(host.machine.home.join("logs/orchestrator.log")).ok()?;
        log.contains("has another token").then_some(())
    });
    // It is the orchestrator's word whose agent that is, never a person's token.
    let tokens = host.machine.ok(&["token", "list", "--json"]);
    let rows = tokens.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_web: Vec<Value> = rows.filter(|record| record["agentId"] == "web").collect();
    assert!(!of_web.is_empty() && of_web.iter().all(|record| record["spawnedBy"].is_string()));
    let id = host.machine.send("web", "after the restore");
    host.machine.settle(&[id], 60);
}
