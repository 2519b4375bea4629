//! Random kills, with hooks that are lost and late.

use super::*;

/// Seeds of an ordinary run.
const SEEDS: u64 = 20;

fn one(seed: u64) {
    let mut claude = Claude::start(
        &format!("claude-chaos{seed}"),
        &[("FAKE_HOOKS", "lossy"), ("FAKE_SEED", &seed.to_string())],
    );
    let mut rng = Rng::new(seed);
    let (mut ids, mut story) = (Vec::new(), Vec::new());
    for n in 0..10 {
        let word = ["", "SLOW", "PERM", "HANG", ""][rng.below(5) as usize];
        let id = claude.machine.send("a", &format!("MARK-{n}. {word}"));
        ids.push((id, word));
        story.push(format!("{n} {word}"));
        pause(rng.below(400));
        match rng.below(8) {
            0 => {
                claude.runner = None;
                claude.run();
                story.push("runner killed".into());
            }
            1 | 2 => {
                let pid = claude.pid();
                if pid > 1 {
                    os::kill(os::process(pid), Signal::KILL);
                }
                story.push("provider killed".into());
            }
            3 => {
                claude.tmux(&["kill-server"]);
                story.push("tmux killed".into());
            }
            _ => {}
        }
    }
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        help_until_answered(&claude, &ids);
    }));
    let told = || {
        format!(
            "seed {seed}: {story:?}\n{}\n{:?}\n{}\n{}",
            claude.screen(),
            claude.prompts(),
            claude.machine.status("a"),
            claude.machine.logs()
        )
    };
    assert!(settled.is_ok(), "{}", told());
    pause(300);
    let seen = claude.seen();
    for n in 0..10 {
        // Killed just after its end, a turn is answered and not on disk: it was there once, and is
        // never said again.
        let (mark, count) = (format!("MARK-{n}."), claude.count(&format!("MARK-{n}.")));
        assert!(count <= 1 && seen.contains(&mark), "MARK-{n} {count} {}", told());
    }
    assert!(!claude.seen().contains("ANSWERED-DIALOG"), "{}", told());
    claude.machine.ok(&["command", "a", "shutdown"]);
}

/// What hangs or asks is helped on until all is answered.
fn help_until_answered(claude: &Claude, ids: &[(u64, &str)]) {
    wait_for("answers to all", 240, || {
        for line in claude.machine.ok(&["approvals", "--json"]).lines() {
            let approval: Value = serde_json::from_str(line).unwrap_or_default();
            claude.machine.run(&[
                "approvals",
                "approve",
                approval["approvalId"].as_str().unwrap_or_default(),
            ]);
        }
        let status = claude.machine.status("a");
        let hangs = status["status"] == "busy" && status["sinceMs"].as_u64().unwrap_or(0) > 2500;
        if hangs {
            claude.machine.run(&["command", "a", "interrupt"]);
        }
        let inbox = claude.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
        let messages: Vec<Value> =
            inbox.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let answered = |id: &u64| {
            messages.iter().any(|m| {
                m["replyTo"] == *id
                    || m["payload"]["answers"]
                        .as_array()
                        .is_some_and(|ids| ids.contains(&json!(id)))
            })
        };
        // A turn that hangs may begin after the last answer: it is helped on as well.
        let idle = status["status"] == "idle";
        (idle && ids.iter().all(|(id, _)| answered(id))).then_some(())
    });
}

#[test]
fn random_kills_and_lossy_hooks_lose_and_double_nothing() {
    if !has_tmux() {
        return;
    }
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
