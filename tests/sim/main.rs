//! Deterministic simulation: runners, a hub, their network, disks, providers and clocks from one
//! seed.
//!
//! Phase one: messages and tasks are sent while faults happen; invariants are checked after every
//! step. Phase two: everything heals, and within a bound all that was accepted must have been
//! delivered once, answered once, and be quiet.
//!
//! `SIM_SEED=42` repeats one seed with its story, `SIM_SEEDS=100000` runs more. Seeds that once
//! failed stand in `kept.txt` and are always run.

mod backlog;
mod checks;
mod faults;
mod host;
mod restores;
mod trace;
mod world;

use world::World;

/// Seeds of an ordinary run.
const SEEDS: u64 = 500;

fn run_seed(seed: u64, tell: bool) -> Result<World, String> {
    std::panic::catch_unwind(|| {
        let mut world = World::new(seed, tell);
        world.run().map(|()| world)
    })
    .unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|t| t.to_string()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn every_seed_holds() {
    if let Some(seed) = number("SIM_SEED") {
        if let Err(error) = run_seed(seed, true) {
            panic!("seed {seed}: {error}");
        }
        return;
    }
    let first = number("SIM_FIRST").unwrap_or(1);
    let count = number("SIM_SEEDS").unwrap_or(SEEDS);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let run = |worker: u64| {
            move || -> Vec<String> {
                let seeds = (first..first + count).filter(move |seed| seed % workers == worker);
                let failed = seeds.filter_map(|seed| {
                    run_seed(seed, false).err().map(|error| format!("seed {seed}: {error}"))
                });
                failed.take(3).collect()
            }
        };
        let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(run(worker))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("runs")).collect()
    });
    assert!(failures.is_empty(), "repeat with SIM_SEED=<seed>:\n{}", failures.join("\n"));
    println!("{count} seeds from {first} hold");
}

/// The greedy agent of a seed meets others in the queue: what is asserted in each step happens.
#[test]
fn a_greedy_agent_waits_behind_itself() {
    let worlds: Vec<World> =
        (1..=8).map(|tens| run_seed(tens * 10, false).expect("holds")).collect();
    assert!(worlds.iter().all(|world| world.gate.is_greedy));
    let longest = worlds.iter().map(|world| world.gate.longest).max().unwrap_or(0);
    assert!(longest > 1, "nobody waited beside the greedy agent: {longest}");
}

#[test]
fn kept_seeds_hold() {
    for line in include_str!("kept.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
    {
        let (seed, story) = line.split_once(' ').expect("a seed and its story");
        let seed = seed.parse().expect("a seed");
        if let Err(error) = run_seed(seed, false) {
            panic!("kept seed {seed} ({story}): {error}");
        }
    }
}

#[test]
fn a_seed_repeats_itself() {
    let (a, b) = (run_seed(7, false).expect("holds"), run_seed(7, false).expect("holds"));
    assert_eq!(a.fingerprint(), b.fingerprint());
}
