//! Random kills of runner and server, and connections that break.

use agent_relay::core::rng::Rng;

use super::*;

/// Seeds of an ordinary run.
const SEEDS: u64 = 20;
/// Messages of one seed.
const MESSAGES: u64 = 8;

fn one(seed: u64) {
    // Each third one is a version that has no unix sockets.
    let faults: &[(&str, &str)] =
        if seed.is_multiple_of(3) { &[("FAKE_NO_UNIX", "1")] } else { &[] };
    let mut codex = Codex::started(&format!("codex-chaos{seed}"), faults);
    let mut rng = Rng::new(seed);
    let (mut ids, mut story) = (Vec::new(), Vec::new());
    for n in 0..MESSAGES {
        let words = ["", "sleep:300", "ask:touch", "drop", "sleep:50 drop sleep:300"];
        let word = words[rng.below(words.len() as u64) as usize];
        ids.push(codex.machine.send("a", &format!("{word} n{n}")));
        pause(rng.below(300));
        story.push(format!("{n} {word}"));
        match rng.below(6) {
            0 => {
                codex.runner = None;
                codex.run();
                story.push("runner killed".into());
            }
            1 | 2 => {
                codex.kill_server();
                story.push("server killed".into());
            }
            _ => {}
        }
    }
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("answers to all", 240, || {
            for open in codex.approvals() {
                let id = open["approvalId"].as_str().unwrap_or_default();
                codex.machine.run(&["approvals", "approve", id]);
            }
            ids.iter().all(|id| codex.answer(*id).is_some()).then_some(())
        });
    }));
    let told = || {
        let (status, said) = (codex.machine.status("a"), codex.said());
        format!("seed {seed}: {story:?}\n{said:#?}\n{status}\n{}", codex.machine.logs())
    };
    assert!(settled.is_ok(), "{}", told());
    let delivered = codex.delivered();
    for id in ids {
        assert_eq!(delivered.get(&id), Some(&1), "#{id} {}", told());
    }
    codex.machine.ok(&["command", "a", "shutdown"]);
}

#[test]
fn random_kills_and_breaks_lose_and_double_nothing() {
    let seeds =
        std::env::var("CHAOS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let next = std::sync::atomic::AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed > seeds {
                        return;
                    }
                    one(seed);
                }
            });
        }
    });
}
