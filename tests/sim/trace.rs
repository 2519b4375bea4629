//! The simulated disk and real SQLite files give the same rows for the same trace, however it is
//! grouped and however often the file is closed in between.

use agent_relay::core::commit::Commit;
use agent_relay::core::rng::Rng;
use agent_relay::edge::store::Store;
use agent_relay::hub::store::HubStore;

use crate::run_seed;

struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir =
            std::env::temp_dir().join(format!("agent-relay-sim-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temp dir");
        Folder(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Splits a trace at random into groups.
fn groups<T: Clone>(trace: &[Vec<T>], rng: &mut Rng) -> Vec<Vec<Commit<T>>> {
    let mut all = Vec::new();
    let mut rest = trace.to_vec();
    while !rest.is_empty() {
        let size = (1 + rng.below(20) as usize).min(rest.len());
        let numbered = rest.drain(..size).enumerate();
        all.push(numbered.map(|(at, ops)| Commit { number: at as u64, ops }).collect());
    }
    all
}

#[test]
fn the_simulated_disk_is_sqlite() {
    for seed in [3, 11, 42] {
        let world = run_seed(seed, false).expect("holds");
        let folder = Folder::new(&seed.to_string());
        let mut rng = Rng::new(seed);
        for (at, runner) in world.runners.iter().enumerate() {
            let path = folder.0.join(format!("agent{at}.sqlite"));
            let open = || Store::open(&path, 1 << 30).expect("opens");
            let mut store = open();
            for group in groups(&runner.trace, &mut rng) {
                store.commit(&group).expect("commits");
                if rng.percent(20) {
                    drop(store);
                    store = open();
                }
            }
            assert_eq!(
                store.rows().expect("reads"),
                runner.store.rows().expect("reads"),
                "seed {seed} runner {at}"
            );
            assert_eq!(store.snapshot().expect("reads"), runner.store.snapshot().expect("reads"));
        }
        let path = folder.0.join("hub.sqlite");
        let mut hub = HubStore::open(&path).expect("opens");
        for group in groups(&world.hub_trace, &mut rng) {
            hub.commit(&group).expect("commits");
            if rng.percent(20) {
                drop(hub);
                hub = HubStore::open(&path).expect("opens");
            }
        }
        assert_eq!(
            hub.rows().expect("reads"),
            world.hub_store.rows().expect("reads"),
            "seed {seed} hub"
        );
    }
}
