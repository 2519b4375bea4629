//! Stores of a runner that are damaged, empty or gone.

use super::*;

/// A runner that has answered one message and ended in order.
fn worked(name: &str) -> (Machine, Running, u64) {
    let machine = Machine::new(name);
    let hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let id = machine.send("a", "before");
    machine.settle(&[id], 60);
    runner.terminate();
    assert_eq!(runner.wait(60).0, 0);
    (machine, hub, id)
}

#[test]
fn a_damaged_store_of_a_runner_is_set_aside_and_the_agent_lives() {
    for (name, whole) in [("rhead", false), ("rpages", true)] {
        let (machine, _hub, first) = worked(name);
        let path = runner_file(&machine, "a");
        // What comes while the runner is away waits at the relay.
        let second = machine.send("a", "while it is damaged");
        if whole {
            damage(&path, 0..std::fs::metadata(&path).expect("there").len() / PAGE)
        } else {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|file| file.write_all_at(&[0xa5; 100], 0))
                .expect("writes")
        }
        assert!(says(&doctor(&machine, "stores"), "fail", "is damaged"), "{name}");
        let mut runner = machine.runner("a");
        machine.settle(&[second], 60);
        let note = machine.status("a")["storeNote"].as_str().unwrap_or_default().to_string();
        assert!(note.contains("was damaged") && note.contains(".damaged-"), "{note}");
        assert!(machine.ok(&["status", "a", "--why"]).contains(".damaged-"));
        assert_eq!(named(path.parent().expect("folder"), "store.sqlite.damaged-").len(), 1);
        assert!(says(&doctor(&machine, "stores"), "warn", ".damaged-"));
        if !whole {
            assert_eq!(
                machine.delivered().get(&first),
                Some(&1),
                "what was settled is known to be settled"
            );
        }
        runner.terminate();
        let (code, text) = runner.wait(60);
        let told = text.lines().filter(|line| line.contains("was damaged")).count();
        assert_eq!((code, told), (0, 1), "{text}");
    }
}

#[test]
fn an_empty_store_of_a_runner_gets_its_messages_from_the_relay() {
    let machine = Machine::new("rempty");
    let _hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    // Taken over by the runner, acknowledged, and not read: the agent works on something else.
    let first = machine.send("a", "work 600");
    machine.wait_status("a", "busy");
    let second = machine.send("a", "waits");
    wait_for("the second one in the store", 60, || {
        (machine.status("a")["queues"]["inboxWaiting"] == 1).then_some(())
    });
    runner.kill();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(with_end(&runner_file(&machine, "a"), end));
    }
    std::fs::File::create(runner_file(&machine, "a")).expect("empties");
    let _runner = machine.runner("a");
    wait_for("what was acknowledged and lost to come again", 60, || {
        machine.delivered().contains_key(&first).then_some(())
    });
    // The first one's work need not be awaited; by now it may wait, run, or be over.
    machine.run(&["command", "a", "interrupt"]);
    wait_for("the second one", 60, || machine.delivered().contains_key(&second).then_some(()));
    assert_eq!(machine.delivered().get(&second), Some(&1));
}

#[test]
fn a_store_that_is_deleted_under_a_runner_is_put_back() {
    let machine = Machine::new("rdeleted");
    let _hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let first = machine.send("a", "before");
    machine.settle(&[first], 60);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(with_end(&runner_file(&machine, "a"), end));
    }
    assert!(!says(&doctor(&machine, "stores"), "ok", "sound"), "a file that is gone is not sound");
    let second = machine.send("a", "after");
    let (code, text) = runner.wait(60);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("was deleted while the runner ran") && text.contains("put back"),
        "{text}"
    );
    let _runner = machine.runner("a");
    machine.settle(&[first, second], 60);
}

#[test]
fn a_runner_that_meets_damage_stops_and_its_next_start_goes_on() {
    let machine = Machine::new("rmeets");
    let _hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let first = machine.send("a", "before");
    machine.settle(&[first], 60);
    let path = runner_file(&machine, "a");
    {
        // All that is in the log goes into the file, and then the file is nonsense.
        let db = Connection::open(&path).expect("opens");
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);").expect("empties the log");
    }
    damage(&path, 1..std::fs::metadata(&path).expect("there").len() / PAGE);
    let second = machine.send("a", "meets it");
    let third = wait_for("the runner to meet it", 60, || {
        // What it has in memory may carry it for a while.
        let id = machine.send("a", "meets it too");
        std::thread::sleep(Duration::from_millis(200)); // between two messages
        runner.child.try_wait().expect("waits").map(|_| id)
    });
    let (code, text) = runner.wait(60);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("malformed") || text.contains("damaged"), "{text}");
    let _runner = machine.runner("a");
    wait_for("all to be delivered", 60, || {
        [second, third].iter().all(|id| machine.delivered().contains_key(id)).then_some(())
    });
    assert_eq!(named(path.parent().expect("folder"), "store.sqlite.damaged-").len(), 1);
}
