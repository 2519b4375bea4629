//! Stores of a hub that are damaged, empty, gone or held.

use super::*;

#[test]
fn a_damaged_page_of_a_hub_is_found_and_the_rest_is_saved_once() {
    let (machine, ids) = filled("page", 60);
    let pages = leaves(&hub_file(&machine), "messages");
    assert!(pages.len() > 8, "{pages:?}");
    let lost = pages[pages.len() / 2];
    damage(&hub_file(&machine), lost..lost + 1);
    // It is seen from outside, and a copy of it is refused.
    assert!(says(&doctor(&machine, "hub store"), "fail", "is damaged"));
    assert!(machine.fails(1, &["hub", "backup", "copy.sqlite"]).contains("cannot copy"));
    assert!(named(&machine.work, "copy").is_empty());
    // A start that reads over it refuses; one that does not meets it when somebody reads, and stops
    // in order.
    let port = machine.config()["relayUrl"]
        .as_str()
        .and_then(|url| url.rsplit(':').next())
        .unwrap_or("0")
        .to_string();
    let mut hub = machine.start(&["hub", "--port", &port]);
    let ended = wait_for("the hub to meet the damage", 60, || {
        let _ = machine.run(&["inbox", "--all", "--json", "--limit", "1000"]);
        hub.child.try_wait().expect("waits")
    });
    let (_, text) = hub.wait(60);
    assert_eq!((ended.code(), text.trim().lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("is damaged") && text.contains("agent-relay hub restore"), "{text}");
    let saved = named(&machine.home.join("hub"), "salvaged-");
    assert_eq!(saved.len(), 1, "{saved:?}");
    assert!(text.contains(&saved[0].display().to_string()), "{text}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&saved[0]).expect("there").permissions().mode() & 0o777, 0o600);
    // The next starts name the same file and save nothing again.
    for _ in 0..2 {
        let (code, again) = refused(&machine);
        assert_eq!((code, again.trim()), (1, text.trim()));
    }
    assert_eq!(named(&machine.home.join("hub"), "salvaged-"), saved);
    assert!(says(&doctor(&machine, "hub store"), "fail", "agent-relay hub restore"));
    assert!(says(&doctor(&machine, "hub store"), "warn", "saved from earlier damage"));
    // What was saved is a store: all but the page that was lost.
    bring_back(&machine, &saved[0]);
    let _hub = machine.hub();
    let found = ids_in_inbox(&machine);
    assert!(
        found.len() + 12 >= ids.len() && found.len() < ids.len(),
        "{} of {}",
        found.len(),
        ids.len()
    );
    assert!(found.contains(&ids[0]) && found.contains(ids.last().expect("some")));
    assert!(machine.send("user", "goes on") > *ids.last().expect("some"));
}

#[test]
fn damage_is_found_after_an_unclean_end_though_nobody_reads_it() {
    let machine = Machine::new("unclean");
    let mut hub = machine.hub();
    for n in 0..40 {
        machine.send("user", &format!("number {n} {}", "x".repeat(600)));
    }
    hub.terminate();
    hub.wait(60);
    let mut hub = machine.hub();
    let last = machine.send("user", "the last one stands in the log");
    hub.kill();
    let pages = {
        // Leaves as the file alone has them; the log stays for the hub.
        let copy = machine.work.join("copy.sqlite");
        std::fs::copy(hub_file(&machine), &copy).expect("copies");
        leaves(&copy, "messages")
    };
    damage(&hub_file(&machine), pages[1]..pages[1] + 1);
    let mut hub = machine.start(&["hub", "--port", "0"]);
    let (code, text) = hub.wait(60);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("is damaged") && text.contains("agent-relay hub restore"), "{text}");
    bring_back(&machine, &named(&machine.home.join("hub"), "salvaged-")[0]);
    let _hub = machine.hub();
    assert!(ids_in_inbox(&machine).contains(&last), "what stood in the log was saved too");
}

#[test]
fn a_damaged_head_of_a_hub_costs_nothing_else() {
    for (name, bytes) in [("head", 100), ("first-page", PAGE as usize)] {
        let (machine, ids) = filled(name, 30);
        let file = std::fs::OpenOptions::new().write(true).open(hub_file(&machine)).expect("opens");
        file.write_all_at(&vec![0xa5; bytes], 0).expect("writes");
        let (code, text) = refused(&machine);
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains("is damaged")
                && text.contains("30 messages")
                && text.contains("agent-relay hub restore"),
            "{text}"
        );
        bring_back(&machine, &named(&machine.home.join("hub"), "salvaged-")[0]);
        let _hub = machine.hub();
        assert_eq!(ids_in_inbox(&machine), ids, "{name}: with the tokens of before");
    }
}

#[test]
fn an_empty_store_of_a_hub_is_told() {
    for gone in [false, true] {
        let (machine, _) = filled("empty", 2);
        if gone {
            std::fs::remove_file(hub_file(&machine)).expect("removes")
        } else {
            std::fs::File::create(hub_file(&machine)).map(drop).expect("empties")
        }
        assert!(says(
            &doctor(&machine, "hub store"),
            "fail",
            if gone { "does not exist" } else { "is empty" }
        ));
        let mut hub = machine.hub();
        assert!(says(&doctor(&machine, "hub store"), "warn", "begins anew"));
        assert!(machine.ok(&["hub", "status"]).contains("begins anew"));
        hub.terminate();
        let (code, text) = hub.wait(60);
        assert_eq!((code, text.lines().count()), (0, 1), "{text}");
        assert!(text.contains("begins anew") && text.contains("agent-relay hub restore"), "{text}");
    }
    // A first start has nothing to tell.
    let machine = Machine::new("first");
    let mut hub = machine.hub();
    hub.terminate();
    assert_eq!(hub.wait(60), (0, String::new()));
}

#[test]
fn a_store_that_is_deleted_under_a_hub_is_not_written_for_nobody() {
    let machine = Machine::new("deleted");
    let mut hub = machine.hub();
    let mut ids: Vec<u64> = (0..3).map(|n| machine.send("user", &format!("before {n}"))).collect();
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(with_end(&hub_file(&machine), end));
    }
    assert!(says(&doctor(&machine, "hub store"), "fail", "no longer has"));
    // Nobody hears 201 for what went into a file without a name.
    let refused = machine.run(&["send", "user", "--json", "into nothing"]);
    assert_ne!(refused.status.code(), Some(0), "{}", String::from_utf8_lossy(&refused.stdout));
    let (code, text) = hub.wait(60);
    assert_eq!((code, text.lines().count()), (1, 1), "{text}");
    assert!(text.contains("was deleted while the hub ran") && text.contains("put back"), "{text}");
    let _hub = machine.hub();
    ids.push(machine.send("user", "after"));
    let found = ids_in_inbox(&machine);
    assert!(ids.iter().all(|id| found.contains(id)), "{ids:?} {found:?}");
}

#[test]
fn a_store_that_is_replaced_under_an_idle_hub_is_noticed_and_saved() {
    let machine = Machine::new("replaced");
    let copy = machine.work.join("copy.sqlite");
    let mut hub = machine.hub();
    machine.ok(&["hub", "backup", copy.to_str().expect("UTF-8")]);
    let id = machine.send("user", "not in the copy");
    std::fs::rename(&copy, hub_file(&machine)).expect("replaces");
    // Nobody asks it anything: the hub looks by itself.
    let (code, text) = hub.wait(60);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("was replaced by another file") && text.contains("agent-relay hub restore"),
        "{text}"
    );
    bring_back(&machine, &named(&machine.home.join("hub"), "salvaged-")[0]);
    let _hub = machine.hub();
    assert!(ids_in_inbox(&machine).contains(&id));
}

#[test]
fn a_lost_log_loses_nothing() {
    let machine = Machine::new("log");
    let mut hub = machine.hub();
    let first = machine.send("user", "one");
    std::fs::remove_file(with_end(&hub_file(&machine), "-wal")).expect("removes");
    let _ = machine.run(&["send", "user", "--json", "two"]);
    let (code, text) = hub.wait(60);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("write-ahead log"), "{text}");
    let _hub = machine.hub();
    assert!(ids_in_inbox(&machine).contains(&first));
}

#[test]
fn a_hub_waits_for_whoever_holds_its_store() {
    let (machine, _) = filled("locked", 1);
    let hub = machine.hub();
    let other = Connection::open(hub_file(&machine)).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let output = machine.run(&["send", "user", "--json", "held up"]);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("another process holds it"), "{said}");
    assert!(machine.ok(&["hub", "status"]).contains("another process holds it"));
    other.execute_batch("ROLLBACK").expect("unlocks");
    let id = wait_for("the hub to take messages again", 60, || {
        let output = machine.run(&["send", "user", "--json", "goes on"]);
        serde_json::from_slice::<Value>(&output.stdout).ok().and_then(|sent| sent["id"].as_u64())
    });
    assert!(ids_in_inbox(&machine).contains(&id));
    drop((hub, other));
    // At a start too: told after a while, with a code that says that trying again helps.
    let mut held = machine.hub();
    held.terminate();
    held.wait(60);
    let other = Connection::open(hub_file(&machine)).expect("opens");
    other.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").expect("locks");
    let (code, text) = refused(&machine);
    assert_eq!(code, 71, "{text}");
    assert!(text.contains("another process holds it"), "{text}");
}

#[test]
fn a_newer_store_is_refused_and_not_changed() {
    let (machine, _) = filled("newer", 1);
    {
        let db = Connection::open(hub_file(&machine)).expect("opens");
        db.execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE);")
            .expect("writes");
    }
    let before = std::fs::read(hub_file(&machine)).expect("reads");
    let (code, text) = refused(&machine);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("update agent-relay"), "{text}");
    assert_eq!(std::fs::read(hub_file(&machine)).expect("reads"), before);
    for end in ["-wal", "-shm", "-journal"] {
        assert!(!with_end(&hub_file(&machine), end).exists(), "{end}");
    }
}
