//! SIGKILL at random moments under load, and at every named commit point. `CHAOS_SEEDS` runs more.

use agent_relay::core::rng::Rng;

use crate::support::{Machine, Running, pause, wait_for};

/// Seeds of an ordinary run.
const SEEDS: u64 = 20;

struct Party<'a> {
    machine: &'a Machine,
    hub: Option<Running>,
    runner: Option<Running>,
}

impl Party<'_> {
    fn kill_one(&mut self, rng: &mut Rng) -> &'static str {
        match rng.below(4) {
            0 => {
                self.hub = None;
                pause(rng.below(200));
                self.hub = Some(self.machine.hub());
                "hub"
            }
            1 | 2 => {
                self.runner = None;
                pause(rng.below(100));
                self.runner = Some(self.machine.runner("a"));
                "runner"
            }
            _ => {
                let pid =
                    self.machine.status("a")["providerProcess"]["pid"].as_u64().unwrap_or(0) as u32;
                if pid > 1 {
                    agent_relay::os::kill(
                        agent_relay::os::process(pid),
                        rustix::process::Signal::KILL,
                    );
                }
                "provider"
            }
        }
    }
}

/// A machine whose providers are started again soon and as often as it takes.
fn prepared(name: &str, seed: u64) -> (Machine, Rng) {
    let machine = Machine::new(&format!("{name}{seed}"));
    let config = r#"{"restart": {"firstMs": 50, "mostMs": 200, "exitsMax": 1000}}"#;
    std::fs::create_dir_all(machine.home.join("providers")).expect("dir");
    std::fs::write(machine.home.join("providers/acp.json"), config).expect("writes");
    (machine, Rng::new(seed))
}

/// A person repeats under the same key until the hub has it.
fn send(machine: &Machine, key: &str, text: &str) -> u64 {
    wait_for("the hub to take the message", 60, || {
        let output = machine.run(&["send", "a", "--json", "--key", key, text]);
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?["id"].as_u64()
    })
}

fn one(seed: u64) {
    let (machine, mut rng) = prepared("chaos", seed);
    let mut party =
        Party { machine: &machine, hub: Some(machine.hub()), runner: Some(machine.runner("a")) };
    machine.wait_status("a", "idle");
    let mut ids = Vec::new();
    let mut story = Vec::new();
    for n in 0..12 {
        let words = ["hello", "work 0", "garbage", "slow 1", "x"];
        let text = format!("{} {n}", words[rng.below(words.len() as u64) as usize]);
        ids.push(send(&machine, &format!("k{seed}-{n}"), &text));
        pause(rng.below(60));
        if rng.percent(45) {
            story.push(party.kill_one(&mut rng));
        }
    }
    println!("seed {seed}: killed {story:?}");
    machine.settle(&ids, 90);
    machine.wait_status("a", "idle");
    // Whatever was started in the course of it, one runner, one hub and one provider are left.
    assert_eq!(machine.left_over().len(), 3, "{}", machine.logs());
}

#[test]
fn random_kills_lose_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) =
        (number("CHAOS_FIRST").unwrap_or(1), number("CHAOS_SEEDS").unwrap_or(SEEDS));
    for seed in first..first + count {
        one(seed);
    }
}

/// Backups, kills, and backups that are put back, in the middle of traffic.
fn one_with_restores(seed: u64) {
    let (machine, mut rng) = prepared("restores", seed);
    let mut party =
        Party { machine: &machine, hub: Some(machine.hub()), runner: Some(machine.runner("a")) };
    machine.wait_status("a", "idle");
    let (mut ids, mut story, mut backups) = (Vec::new(), Vec::new(), Vec::new());
    // How many of the ids may be missing: those between a backup and its restore.
    let mut lost: Vec<u64> = Vec::new();
    let mut since = 0;
    for n in 0..16 {
        let text = format!("{} {n}", ["hello", "work 0", "slow 1", "x"][rng.below(4) as usize]);
        ids.push(send(&machine, &format!("k{seed}-{n}"), &text));
        pause(rng.below(60));
        if rng.percent(35) {
            let file = machine.home.join(format!("backup-{n}.sqlite"));
            machine.ok(&["hub", "backup", &file.to_string_lossy()]);
            backups.push((file, ids.len()));
            story.push("backup");
        }
        if rng.percent(25) {
            story.push(party.kill_one(&mut rng));
        }
        if rng.percent(20) && !backups.is_empty() {
            let (file, known) = backups[rng.below(backups.len() as u64) as usize].clone();
            party.hub = None;
            if rng.percent(60) {
                machine.ok(&["hub", "restore", &file.to_string_lossy()]);
            } else {
                std::fs::copy(&file, machine.home.join("hub/hub.sqlite")).expect("copies");
            }
            party.hub = Some(machine.hub());
            lost.extend(&ids[known..]);
            backups.retain(|(_, count)| *count <= known);
            since = ids.len();
            story.push("restore");
        }
    }
    println!("seed {seed}: {story:?}");
    let delivered = || machine.delivered();
    wait_for("everything that is left to be delivered", 90, || {
        let delivered = delivered();
        ids.iter().all(|id| delivered.contains_key(id) || lost.contains(id)).then_some(())
    });
    machine.settle(&ids[since..], 60);
    let twice: Vec<_> =
        delivered().into_iter().filter(|(id, times)| *times != 1 && *id > 0).collect();
    assert!(twice.is_empty(), "delivered more than once: {twice:?}\n{}", machine.logs());
    assert!(
        machine.answered().values().all(|times| *times == 1),
        "{:?}\n{}",
        machine.answered(),
        machine.logs()
    );
    machine.wait_status("a", "idle");
    assert_eq!(machine.left_over().len(), 3, "{}", machine.logs());
}

#[test]
fn random_restores_lose_nothing_that_was_acknowledged() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = (number("CHAOS_FIRST").unwrap_or(1), number("CHAOS_SEEDS").unwrap_or(6));
    for seed in first..first + count {
        one_with_restores(seed);
    }
}

/// The runner dies exactly before and exactly after each of its commits.
#[test]
fn every_commit_point_is_survived() {
    for place in ["before-commit", "after-commit"] {
        for nth in 1..=9 {
            let mut machine = Machine::new(&format!("{place}-{nth}"));
            let _hub = machine.hub();
            machine.set("AGENT_RELAY_CRASH_AT", &format!("{place}:{nth}"));
            let mut doomed = machine.runner("a");
            machine.set("AGENT_RELAY_CRASH_AT", "");
            // Messages until it dies; what the hub took must not be lost.
            let mut ids = Vec::new();
            let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while doomed.child.try_wait().expect("waits").is_none()
                && std::time::Instant::now() < until
            {
                let output = machine.run(&["send", "a", "--json", "hello"]);
                ids.extend(
                    serde_json::from_slice::<serde_json::Value>(&output.stdout)
                        .ok()
                        .and_then(|sent| sent["id"].as_u64()),
                );
            }
            let (code, _) = doomed.wait(1);
            assert_eq!(code, 137, "{place}:{nth} is reached\n{}", machine.logs());
            let _runner = machine.runner("a");
            machine.wait_status("a", "idle");
            ids.push(machine.send("a", "hello again"));
            machine.settle(&ids, 60);
        }
    }
}

/// The hub dies exactly before and exactly after each of its commits.
#[test]
fn every_commit_point_of_the_hub_is_survived() {
    for place in ["hub-before-commit", "hub-after-commit"] {
        for nth in 1..=6 {
            let mut machine = Machine::new(&format!("{place}-{nth}"));
            let mut hub = machine.hub();
            hub.kill();
            machine.set("AGENT_RELAY_CRASH_AT", &format!("{place}:{nth}"));
            // Its first commit is its start: it may be gone before it listens.
            let port = machine.config()["relayUrl"]
                .as_str()
                .and_then(|url| url.rsplit(':').next())
                .unwrap_or("0")
                .to_string();
            let mut doomed = machine.start(&["hub", "--port", &port]);
            machine.set("AGENT_RELAY_CRASH_AT", "");
            let _runner = machine.runner("a");
            let mut hub = None;
            let sent = wait_for("the message to be taken", 60, || {
                if hub.is_none() && doomed.child.try_wait().expect("waits").is_some() {
                    hub = Some(machine.hub());
                }
                let output = machine.run(&["send", "a", "--json", "--key", "once", "hello"]);
                serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()
            });
            let id = sent["id"]
                .as_u64()
                .unwrap_or_else(|| panic!("no id in {sent}\n{}", machine.logs()));
            let mut ids = vec![id];
            if hub.is_none() {
                // Commits are grouped: how many there were so far is chance, so there will be more.
                wait_for("the commit that kills", 60, || {
                    let output = machine.run(&["send", "a", "--json", "more"]);
                    ids.extend(
                        serde_json::from_slice::<serde_json::Value>(&output.stdout)
                            .ok()
                            .and_then(|sent| sent["id"].as_u64()),
                    );
                    doomed.child.try_wait().expect("waits")
                });
                assert_eq!(doomed.wait(1).0, 137, "{place}:{nth} is reached\n{}", machine.logs());
                hub = Some(machine.hub());
            }
            machine.settle(&ids, 60);
            drop(hub);
        }
    }
}
