//! Simulation of an orchestrator with its disk, its relay and the processes of its host, from one
//! seed; a family of seeds of its own.
//!
//! Phase one: sessions are asked for and stopped while the orchestrator is killed, the host starts
//! anew, runners die, the relay goes and the disk does not write. After every step no session has
//! two processes, nothing runs that is not in the records, and nothing is called stopped that runs.
//! Phase two: everything heals. Each command has one answer, and each record a process or a reason.
//!
//! `HOST_SEED=42` repeats one seed with its story, `HOST_SEEDS=20000` runs more.

mod world;

use self::world::Host;
use crate::number;

/// Seeds of an ordinary run.
const SEEDS: u64 = 150;

fn run_seed(seed: u64, tell: bool) -> Result<u64, String> {
    let run = || Host::new(seed, tell).run();
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

#[test]
fn every_host_keeps_each_session_once() {
    if let Some(seed) = number("HOST_SEED") {
        run_seed(seed, true).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        return;
    }
    let count = number("HOST_SEEDS").unwrap_or(SEEDS);
    let (mut starts, mut failures) = (0, Vec::new());
    for seed in 1..=count {
        match run_seed(seed, false) {
            Ok(started) => starts += started,
            Err(error) => failures.push(format!("seed {seed}: {error}")),
        }
    }
    failures.truncate(5);
    assert!(failures.is_empty(), "repeat with HOST_SEED=<seed>:\n{}", failures.join("\n"));
    // A simulation in which nothing happens would hold too.
    assert!(starts > count * 5, "only {starts} starts in {count} seeds");
    println!("{count} seeds of hosts hold, with {starts} starts of sessions");
}
