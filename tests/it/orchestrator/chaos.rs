//! A host in a storm: sessions are spawned and stopped while orchestrator, runners and providers
//! are killed. In the end nothing is left, and of each session it is known what became of it.
//! `CHAOS_HOST_SECONDS` says how long.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use agent_relay::core::rng::Rng;
use agent_relay::os;
use rustix::process::Signal;
use serde_json::json;

use super::{Host, process_of};
use crate::manager::Manager;
use crate::support::{BIN, Machine, pause, wait_for};

/// Sessions at a time.
const SESSIONS: u64 = 20;
/// Length of an ordinary storm.
const SECONDS: u64 = 12;

fn seconds() -> u64 {
    std::env::var("CHAOS_HOST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS)
}

/// What was done, for the story of a failure.
#[derive(Default, Debug)]
struct Done {
    spawned: u32,
    stopped: u32,
    orchestrators: u32,
    runners: u32,
    providers: u32,
}

fn storm(host: &mut Host, rng: &mut Rng, done: &mut Done) {
    let agent = format!("a{}", rng.below(SESSIONS));
    let state = host.machine.home.join("demo").to_string_lossy().into_owned();
    match rng.below(10) {
        0 => {
            host.kill();
            pause(rng.below(100));
            host.start();
            done.orchestrators += 1;
        }
        1..=4 => {
            let rule = ["always", "on-failure", "never"][rng.below(3) as usize];
            let words = [
                "spawn",
                "--agent-id",
                &agent,
                "--label",
                &agent,
                "--approval",
                "open",
                "--restart",
                rule,
                "acp",
                "--",
                BIN,
                "demo-agent",
                "--state",
                &state,
            ];
            done.spawned += u32::from(host.machine.run(&words).status.success());
        }
        5 | 6 => {
            let now = ["--now"];
            let mut words = vec!["stop", agent.as_str()];
            words.extend(&now[..rng.below(2) as usize]);
            done.stopped += u32::from(host.machine.run(&words).status.success());
        }
        what => {
            let rows: Vec<_> =
                host.sessions().into_iter().filter(|row| row["state"] == "running").collect();
            if rows.is_empty() {
                return;
            }
            let runner = process_of(&rows[rng.below(rows.len() as u64) as usize]);
            if what == 7 {
                os::descendants(runner).into_iter().for_each(|one| os::kill(one, Signal::KILL));
                done.providers += 1;
            } else {
                os::kill(runner, Signal::KILL);
                done.runners += 1;
            }
        }
    }
}

fn weather(mut host: Host, seed: u64) {
    host.kill();
    // Starts are not bounded here: that is another test.
    let settings =
        json!({"startsMax": 10000, "restart": {"firstMs": 20, "mostMs": 100, "exitsMax": 4}});
    std::fs::write(host.machine.home.join("orchestrator.json"), settings.to_string())
        .expect("writes");
    host.start();
    let (mut rng, mut done) = (Rng::new(seed), Done::default());
    let end = Instant::now() + Duration::from_secs(seconds());
    while Instant::now() < end {
        storm(&mut host, &mut rng, &mut done);
    }
    println!("a storm of {} s: {done:?}", seconds());
    assert!(done.spawned > 3 && done.runners > 0, "nothing happened: {done:?}");
    // Each session has come to rest, and is one of few things.
    let rows = wait_for("all sessions to rest", 120, || {
        let rows = host.sessions();
        let rests = |word: &str| word == "running" || word == "parked";
        rows.iter().all(|row| rests(row["state"].as_str().unwrap_or_default())).then_some(rows)
    });
    for row in &rows {
        let parked = row["state"] == "parked";
        assert_eq!(parked, row["reason"].is_string(), "what is parked says why: {row}");
        let launch = host.record(row["agentId"].as_str().expect("an id"))["launchId"].clone();
        let all = host.of_launch(launch.as_str().unwrap_or("none"));
        assert_eq!(parked, all.is_empty(), "{row}: {all:?}");
    }
    let names: BTreeSet<_> = rows.iter().map(|row| row["name"].to_string()).collect();
    assert_eq!(names.len(), rows.len(), "no session stands there twice");
    for row in &rows {
        host.machine.ok(&["stop", row["name"].as_str().expect("a name")]);
    }
    assert_eq!((host.files(), host.records()), (vec![], vec![]), "no file is left");
    let own = [host.hub.child.id(), host.orchestrator.as_ref().expect("it runs").child.id()];
    let left = wait_for("nothing but hub and orchestrator to be left", 60, || {
        let mut left = host.machine.left_over();
        left.retain(|process| !own.contains(&process.pid));
        left.is_empty().then_some(left)
    });
    assert_eq!(left, []);
}

#[test]
fn nothing_is_left_of_process_groups_after_a_storm() {
    weather(Host::new("storm"), 1);
}

#[test]
fn nothing_is_left_of_units_after_a_storm() {
    let mut machine = Machine::new("storm-units");
    let Some(_manager) = Manager::start(&mut machine) else { return };
    let host = Host::on(machine);
    let watcher = host.machine.command("true");
    weather(host, 2);
    // The manager outlives the storm: it is asked from the same environment.
    let mut show = std::process::Command::new("systemctl");
    show.envs(watcher.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = show
        .args(["--user", "list-units", "--all", "--plain", "--no-legend", "agent-relay-managed-*"])
        .output();
    let said = said.expect("systemctl runs");
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "", "no unit is left");
}
