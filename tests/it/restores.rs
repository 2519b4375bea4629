//! The hub's data are put back, replaced or emptied: nothing is delivered or answered twice,
//! nothing stays unread, no task runs a second time, and what a runner had acknowledged is
//! delivered.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Machine, Running, wait_for};

/// Messages that wait in the copy.
const WAITING: usize = 20;

impl Machine {
    fn store(&self) -> PathBuf {
        self.home.join("hub/hub.sqlite")
    }

    /// The mark as the hub that runs has written it: it stands there before the first answer that
    /// gives an id.
    fn mark(&self) -> Value {
        self.send("user", "the mark is written before this is answered");
        serde_json::from_str(
            &std::fs::read_to_string(self.home.join("hub-mark.json")).expect("a mark"),
        )
        .expect("JSON")
    }

    fn tasks(&self) -> Vec<Value> {
        let text = self.ok(&["tasks", "--json"]);
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Messages for the agent that the hub does not count as read; those of blocked tasks wait for
    /// a person.
    fn unread(&self) -> u64 {
        let info: Value =
            serde_json::from_str(&self.ok(&["hub", "status", "--json"])).expect("JSON");
        info["now"]["messagesUnacknowledged"].as_u64().expect("a number")
    }

    /// How often a text stands in the receiver's own record.
    fn heard(&self, text: &str) -> usize {
        std::fs::read_to_string(self.home.join("demo/log.jsonl"))
            .unwrap_or_default()
            .matches(text)
            .count()
    }

    /// A new message arrives and is answered; its id.
    #[track_caller]
    fn works(&self, text: &str) -> u64 {
        let id = wait_for("the hub to know the agent again", 60, || {
            let output = self.run(&["send", "a", "--json", text]);
            serde_json::from_slice::<Value>(&output.stdout).ok()?["id"].as_u64()
        });
        wait_for("the new message to be answered", 60, || {
            (self.heard(text) == 1 && self.answered().get(&id) == Some(&1)).then_some(())
        });
        id
    }
}

/// How the copy is put back.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// `hub backup`, then `hub restore`.
    Restore,
    /// `hub backup`, then `cp` over the store of a hub that was killed, whose log lies there still.
    BackupByHand,
    /// `cp` of the file of a stopped hub, and `cp` back.
    FileByHand,
    /// The file is emptied.
    Emptied,
    /// `cp` of the file onto a machine whose hub had given other ids.
    OtherMark,
}

/// A hub with a task and messages that wait for an agent which is not there, and a copy of it.
fn copied(machine: &Machine, way: Way) -> (Running, PathBuf, Vec<u64>) {
    let mut hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let first = machine.send("a", "before all");
    machine.settle(&[first], 60);
    runner.terminate();
    assert_eq!(runner.wait(60).0, 0);
    let waiting = (0..WAITING).map(|n| machine.send("a", &format!("waiting {n}."))).collect();
    machine.ok(&["send", "a", "--task", "the task"]);
    let copy = machine.home.join("copy.sqlite");
    match way {
        Way::Restore | Way::BackupByHand => {
            drop(machine.ok(&["hub", "backup", &copy.to_string_lossy()]))
        }
        Way::FileByHand | Way::Emptied | Way::OtherMark => {
            hub.terminate();
            hub.wait(60);
            std::fs::copy(machine.store(), &copy).expect("copies");
            hub = machine.hub();
        }
    }
    (hub, copy, waiting)
}

fn put_back(machine: &Machine, way: Way, hub: &mut Running, copy: &std::path::Path) {
    // A kill leaves the log of the store behind.
    hub.kill();
    match way {
        Way::Restore => {
            let text = machine.ok(&["hub", "restore", &copy.to_string_lossy()]);
            assert!(text.contains("not in it:") && text.contains("former files are in"), "{text}");
        }
        Way::BackupByHand | Way::FileByHand => {
            std::fs::copy(copy, machine.store()).expect("copies");
        }
        Way::Emptied => std::fs::write(machine.store(), "").expect("empties"),
        Way::OtherMark => {
            std::fs::remove_dir_all(machine.home.join("hub")).expect("removes");
            std::fs::create_dir_all(machine.home.join("hub")).expect("makes");
            std::fs::copy(copy, machine.store()).expect("copies");
            let mark = r#"{"generation": "another", "messageBlockEnd": 7, "taskBlockEnd": 7, "starts": 1, "revoked": []}"#;
            std::fs::write(machine.home.join("hub-mark.json"), mark).expect("writes");
        }
    }
}

fn nothing_happens_twice(way: Way) {
    let machine = Machine::new("restores");
    let (mut hub, copy, waiting) = copied(&machine, way);
    let _runner = machine.runner("a");
    machine.settle(&waiting, 60);
    wait_for("the end of the task", 60, || {
        machine.tasks().iter().all(|task| task["status"] == "done").then_some(())
    });
    let newest = machine.send("a", "after the copy");
    machine.settle(&[newest], 60);
    let generation = machine.mark()["generation"].clone();
    put_back(&machine, way, &mut hub, &copy);
    let _hub = machine.hub();
    assert_ne!(machine.mark()["generation"], generation, "{way:?}: another generation");
    let id = machine.works("after all");
    if way != Way::OtherMark {
        assert!(id > newest, "{way:?}: ids go on above all that were given: {id} and {newest}");
    }
    wait_for("everything to be read", 60, || (machine.unread() == 0).then_some(()));
    if way != Way::Emptied {
        wait_for("the end of the task to be told again", 60, || {
            machine.tasks().iter().all(|task| task["status"] == "done").then_some(())
        });
    }
    for text in (0..WAITING)
        .map(|n| format!("waiting {n}."))
        .chain(["before all", "Subject: the task", "after the copy"].map(String::from))
    {
        assert_eq!(machine.heard(&text), 1, "{way:?}: {text}\n{}", machine.logs());
    }
    // What was answered after the copy was made is answered no second time: those answers went with
    // the data.
    let again: Vec<u64> =
        machine.answered().into_keys().filter(|id| waiting.contains(id)).collect();
    assert_eq!(again, Vec::<u64>::new(), "{way:?}\n{}", machine.logs());
}

#[test]
fn a_restored_backup_repeats_nothing() {
    nothing_happens_twice(Way::Restore);
}

#[test]
fn a_backup_that_is_copied_over_a_killed_hubs_store_repeats_nothing() {
    nothing_happens_twice(Way::BackupByHand);
}

#[test]
fn an_older_file_that_is_put_back_repeats_nothing() {
    nothing_happens_twice(Way::FileByHand);
}

#[test]
fn an_emptied_store_repeats_nothing() {
    nothing_happens_twice(Way::Emptied);
}

#[test]
fn a_copy_on_another_machine_repeats_nothing() {
    nothing_happens_twice(Way::OtherMark);
}

#[test]
fn restore_refuses_what_would_do_harm_and_tells_what_is_missing() {
    let machine = Machine::new("restore-use");
    let backup = machine.home.join("backup.sqlite");
    let shown = backup.to_string_lossy().into_owned();
    let mut hub = machine.hub();
    let early = machine.send("user", "one");
    machine.ok(&["hub", "backup", &shown]);
    let late = machine.send("user", "two");
    assert!(
        machine.fails(2, &["hub", "restore", &shown]).contains("stop it first"),
        "while it runs"
    );
    hub.terminate();
    hub.wait(60);
    assert!(machine.fails(2, &["hub", "restore"]).contains("say from where"));
    assert!(machine.fails(2, &["hub", "restore", "/nonexistent"]).contains("there is no file"));
    assert!(
        machine
            .fails(2, &["hub", "restore", &machine.store().to_string_lossy()])
            .contains("own store")
    );
    let not_ours = machine.home.join("config.json");
    let refused = machine.run(&["hub", "restore", &not_ours.to_string_lossy()]);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).lines().count() == 1
    );
    // None of that changed anything.
    let mut hub = machine.hub();
    assert!(machine.ok(&["inbox", "--all"]).contains("two"));
    hub.terminate();
    hub.wait(60);
    let restore = || {
        serde_json::from_str::<Value>(&machine.ok(&["hub", "restore", &shown, "--json"]))
            .expect("JSON")
    };
    let told = restore();
    assert_eq!(
        restore()["missingMessages"],
        told["missingMessages"],
        "the same once more misses the same"
    );
    assert_eq!(
        (told["lastMessageId"].as_u64(), &told["exact"]),
        (Some(early), &Value::Bool(true)),
        "{told}"
    );
    assert_eq!(
        (told["missingMessages"]["first"].as_u64(), told["missingMessages"]["last"].as_u64()),
        (Some(early + 1), Some(late)),
        "{told}"
    );
    assert!(
        PathBuf::from(told["formerFiles"].as_str().expect("a folder")).join("hub.sqlite").is_file()
    );
    let _hub = machine.hub();
    let inbox = machine.ok(&["inbox", "--all"]);
    assert!(inbox.contains("one") && !inbox.contains("two"), "{inbox}");
}

/// A token that was revoked after the backup was made stays so.
#[test]
fn a_revoked_token_does_not_come_back_with_a_backup() {
    let machine = Machine::new("restore-token");
    let backup = machine.home.join("backup.sqlite").to_string_lossy().into_owned();
    let mut hub = machine.hub();
    let make = |agent: &str| -> (String, String) {
        let made: Value =
            serde_json::from_str(&machine.ok(&["token", "create", "--agent", agent, "--json"]))
                .expect("JSON");
        (
            made["token"].as_str().expect("token").into(),
            made["record"]["jti"].as_str().expect("jti").into(),
        )
    };
    let ((revoked, jti), (kept, _)) = (make("x"), make("y"));
    machine.ok(&["hub", "backup", &backup]);
    machine.ok(&["token", "revoke", &jti]);
    hub.terminate();
    hub.wait(60);
    machine.ok(&["hub", "restore", &backup]);
    let _hub = machine.hub();
    let whoami = |token: &str| {
        let output = machine
            .command(crate::support::BIN)
            .env("AGENT_RELAY_TOKEN", token)
            .args(["whoami"])
            .output()
            .expect("runs");
        output.status.code()
    };
    assert_eq!((whoami(&revoked), whoami(&kept)), (Some(2), Some(0)));
}

/// The end of a block stands in the store and not yet in the mark: that is a kill, not a restore.
#[test]
fn a_kill_between_block_and_mark_is_not_taken_for_a_restore() {
    let mut machine = Machine::new("block");
    machine.set("AGENT_RELAY_CRASH_AT", "hub-between-block-and-mark:1");
    let mut hub = machine.hub();
    machine.set("AGENT_RELAY_CRASH_AT", "");
    let generation = machine.mark()["generation"].clone();
    let mut newest = 0;
    wait_for("the hub to die at the end of a block", 60, || {
        let output = machine.run(&["send", "user", "--json", "more"]);
        newest = serde_json::from_slice::<Value>(&output.stdout)
            .ok()
            .and_then(|sent| sent["id"].as_u64())
            .unwrap_or(newest);
        hub.child.try_wait().expect("waits").map(|_| ())
    });
    let _hub = machine.hub();
    assert_eq!(machine.mark()["generation"], generation);
    assert!(!machine.logs().contains("copy of the one that ran here"), "{}", machine.logs());
    assert!(machine.send("user", "again") > newest);
}

/// Messages that wait at the runner belong to the relay that gave them: another one may give their
/// ids to something else.
#[test]
fn what_waits_of_a_relay_that_is_gone_is_delivered_and_hides_nothing() {
    let machine = Machine::new("gone");
    let mut hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let long = machine.send("a", "work 8");
    machine.wait_status("a", "busy");
    let old: Vec<u64> =
        ["old one", "old two", "old three"].map(|text| machine.send("a", text)).into();
    wait_for("the runner to have them", 60, || (machine.unread() == 0).then_some(()));
    hub.kill();
    // All of it, its mark too: as on another machine.
    std::fs::remove_dir_all(machine.home.join("hub")).expect("removes");
    std::fs::remove_file(machine.home.join("hub-mark.json")).expect("removes");
    let _hub = machine.hub();
    wait_for("the agent at the new relay", 60, || {
        machine.ok(&["agents"]).contains("a ").then_some(())
    });
    let new: Vec<u64> =
        (0..old.len() + 1).map(|n| machine.send("a", &format!("new {n}."))).collect();
    assert!(
        old.iter().any(|id| new.contains(id)) && new.contains(&long),
        "ids are given again: {old:?} {new:?}"
    );
    for n in 0..new.len() {
        wait_for("the new message", 60, || {
            (machine.heard(&format!("new {n}.")) == 1).then_some(())
        });
    }
    for text in ["old one", "old two", "old three"] {
        wait_for("what waited", 60, || (machine.heard(text) == 1).then_some(()));
    }
    // Each new one is answered once, and no old answer hangs on it; the old ones are answered in
    // words.
    wait_for("the answers", 60, || {
        new.iter().all(|id| machine.answered().contains_key(id)).then_some(())
    });
    assert!(
        new.iter().all(|id| machine.answered()[id] == 1),
        "{:?}\n{}",
        machine.answered(),
        machine.logs()
    );
    wait_for("the old answers", 60, || {
        let inbox = machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
        old.iter().all(|id| inbox.contains(&format!("#{id}"))).then_some(())
    });
}
