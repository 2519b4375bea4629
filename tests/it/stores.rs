//! Stores that are damaged, empty, deleted, replaced, locked, read-only or full: judged by what
//! people and scripts see, and by no loss.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::{Machine, Running, skip, wait_for};

const PAGE: u64 = 4096;

fn hub_file(machine: &Machine) -> PathBuf {
    machine.home.join("hub/hub.sqlite")
}

fn runner_file(machine: &Machine, agent: &str) -> PathBuf {
    machine.home.join("agents").join(agent).join("store.sqlite")
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(end);
    name.into()
}

/// Files in a folder whose names begin so.
fn named(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start))
        })
        .collect();
    found.sort();
    found
}

/// Writes nonsense over pages, counted from 0.
fn damage(path: &Path, pages: std::ops::Range<u64>) {
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opens");
    for page in pages {
        file.write_all_at(&[0xa5; PAGE as usize], page * PAGE).expect("writes");
    }
}

/// The pages of the leaves of a table, from the first to the last.
fn leaves(path: &Path, table: &str) -> Vec<u64> {
    let root: u64 = {
        let db = Connection::open(path).expect("opens");
        db.query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [table], |row| {
            row.get::<_, i64>(0)
        })
        .expect("a table") as u64
    };
    let file = std::fs::File::open(path).expect("opens");
    let (mut open, mut found) = (vec![root], Vec::new());
    while let Some(number) = open.pop() {
        let mut page = [0u8; PAGE as usize];
        file.read_exact_at(&mut page, (number - 1) * PAGE).expect("reads");
        let at = if number == 1 { 100 } else { 0 };
        let cells = usize::from(u16::from_be_bytes([page[at + 3], page[at + 4]]));
        match page[at] {
            13 | 10 => found.push(number - 1),
            5 | 2 => {
                let last = u32::from_be_bytes(page[at + 8..at + 12].try_into().expect("four"));
                let mut children: Vec<u64> = (0..cells)
                    .map(|cell| {
                        let place = at + 12 + cell * 2;
                        let cell = usize::from(u16::from_be_bytes([page[place], page[place + 1]]));
                        u64::from(u32::from_be_bytes(
                            page[cell..cell + 4].try_into().expect("four"),
                        ))
                    })
                    .collect();
                children.push(last.into());
                open.extend(children.into_iter().rev());
            }
            other => panic!("page {number} of {table} has type {other}"),
        }
    }
    found
}

/// A hub with many messages to the user; it has ended in order.
fn filled(name: &str, messages: usize) -> (Machine, Vec<u64>) {
    let machine = Machine::new(name);
    let mut hub = machine.hub();
    let ids = (0..messages)
        .map(|n| machine.send("user", &format!("number {n} {}", "x".repeat(600))))
        .collect();
    hub.terminate();
    assert_eq!(hub.wait(60).0, 0);
    (machine, ids)
}

/// Starts a hub that refuses: exit code and its only sentence.
fn refused(machine: &Machine) -> (i32, String) {
    let mut hub = machine.start(&["hub", "--port", "0"]);
    let (code, text) = hub.wait(60);
    assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    (code, text)
}

fn doctor(machine: &Machine, check: &str) -> Vec<Value> {
    let text = String::from_utf8_lossy(&machine.run(&["doctor", "--json"]).stdout).into_owned();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|finding| finding["check"] == check)
        .collect()
}

fn says(findings: &[Value], grade: &str, words: &str) -> bool {
    findings.iter().any(|finding| {
        finding["grade"] == grade
            && finding["found"].as_str().is_some_and(|found| found.contains(words))
    })
}

/// Puts a saved file in the place of the damaged one, as a restore does.
fn bring_back(machine: &Machine, from: &Path) {
    let file = hub_file(machine);
    ["", "-wal", "-shm"].iter().for_each(|end| drop(std::fs::remove_file(with_end(&file, end))));
    std::fs::copy(from, &file).expect("copies");
}

fn ids_in_inbox(machine: &Machine) -> Vec<u64> {
    let text = machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["id"].as_u64())
        .collect()
}

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
        match gone {
            true => std::fs::remove_file(hub_file(&machine)).expect("removes"),
            false => std::fs::File::create(hub_file(&machine)).map(drop).expect("empties"),
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

/// A folder on a file system that is full, or that may not be written; needs the right to mount.
/// `None`: not here.
struct Disk(PathBuf);

impl Disk {
    fn new(machine: &Machine, folder: &str, bytes: u64) -> Option<Disk> {
        let path = machine.home.join(folder);
        std::fs::create_dir_all(&path).expect("folder");
        let options = format!("size={bytes},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Disk(path));
        }
        skip("to mount a disk of its own needs root; run the tests in a container as root");
        None
    }

    fn remount(&self, options: &str) {
        let done =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(done.expect("mount is there").success());
    }

    /// Takes the last byte.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("ballast")).expect("makes");
        let block = [0u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("removes");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn post(machine: &Machine, text: &str) -> (u16, String, Duration) {
    let url = machine.config()["relayUrl"]
        .as_str()
        .expect("url")
        .trim_start_matches("http://")
        .to_string();
    let token = machine.config()["token"].as_str().expect("token").to_string();
    let body =
        json!({"to": "user", "kind": "chat", "body": text, "idempotencyKey": text}).to_string();
    let started = Instant::now();
    let mut socket = TcpStream::connect(&url).expect("connects");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("sets");
    write!(
        socket,
        "POST /api/messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Agent-Relay-Token: {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("writes");
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, answer, started.elapsed())
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound").port().to_string()
}

fn listens(machine: &Machine) -> bool {
    let url = machine.config()["relayUrl"]
        .as_str()
        .unwrap_or_default()
        .trim_start_matches("http://")
        .to_string();
    TcpStream::connect(url).is_ok()
}

#[test]
fn a_full_disk_is_said_at_once_and_a_hub_starts_on_it_to_be_read() {
    let machine = Machine::new("fulldisk");
    let Some(disk) = Disk::new(&machine, "hub", 4 << 20) else { return };
    let port = free_port();
    let mut hub = machine.start(&["hub", "--port", &port]);
    wait_for("the hub", 60, || listens(&machine).then_some(()));
    let before = machine.send("user", "before");
    disk.fill();
    // Small changes may still find room in the log's last page; the one that does not is answered
    // at once, not after the patience of its client.
    let mut kept = Vec::new();
    let (status, answer, took) = (0..400)
        .map(|n| (n, post(&machine, &format!("full {n} {}", "x".repeat(9_000)))))
        .find_map(|(n, answer)| match answer.0 {
            201 => {
                kept.push(n);
                None
            }
            _ => Some(answer),
        })
        .expect("the disk is full");
    assert_eq!(status, 503, "{answer}");
    assert!(
        answer.contains("Retry-After")
            && answer.contains("same idempotency key")
            && answer.contains("free space"),
        "{answer}"
    );
    assert!(took < Duration::from_secs(20), "{took:?}");
    hub.kill();
    for end in ["-wal", "-shm"] {
        // Without room for what SQLite shares between connections.
        let _ = (end == "-shm").then(|| std::fs::remove_file(with_end(&hub_file(&machine), end)));
    }
    disk.fill();
    let mut hub = machine.start(&["hub", "--port", &port]);
    wait_for("the hub on the full disk", 60, || listens(&machine).then_some(()));
    let found = ids_in_inbox(&machine);
    assert!(
        found.contains(&before) && found.len() == kept.len() + 1,
        "all that was called durable: {found:?} {kept:?}"
    );
    assert_eq!(post(&machine, &format!("refused {}", "x".repeat(9_000))).0, 503);
    assert!(machine.ok(&["hub", "status"]).contains("free space"), "its trouble is told");
    // Room is back: no restart is needed, and what was asked again is there once.
    disk.free();
    wait_for("writes to work again", 60, || (post(&machine, "room").0 / 100 == 2).then_some(()));
    let text = machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
    assert_eq!(text.matches("\"body\":\"room\"").count(), 1, "{text}");
    hub.terminate();
    assert_eq!(hub.wait(60).0, 0);
}

#[test]
fn a_runner_starts_on_a_full_disk_and_keeps_its_provider() {
    let machine = Machine::new("fullrunner");
    let Some(disk) = Disk::new(&machine, "agents/a", 1 << 20) else { return };
    let _hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let first = machine.send("a", "before");
    machine.settle(&[first], 60);
    runner.kill();
    let _ = std::fs::remove_file(with_end(&runner_file(&machine, "a"), "-shm"));
    disk.fill();
    let _runner = machine.runner("a");
    let second = machine.send("a", "while it is full");
    wait_for("the agent to be there", 60, || machine.ok(&["agents"]).contains("a ").then_some(()));
    disk.free();
    machine.settle(&[first, second], 60);
}

#[test]
fn a_disk_that_may_not_be_written_is_told_at_the_start() {
    let machine = Machine::new("readonly");
    let Some(disk) = Disk::new(&machine, "hub", 4 << 20) else { return };
    let mut hub = machine.hub();
    machine.send("user", "before");
    hub.terminate();
    hub.wait(60);
    disk.remount("ro");
    let (code, text) = refused(&machine);
    assert_eq!(code, 71, "{text}");
    assert!(text.contains("ead-only file system") && text.contains("writable"), "{text}");
    disk.remount("rw");
    let _hub = machine.hub();
    assert_eq!(ids_in_inbox(&machine).len(), 1);
}

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
        match whole {
            true => damage(&path, 0..std::fs::metadata(&path).expect("there").len() / PAGE),
            false => std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|file| file.write_all_at(&[0xa5; 100], 0))
                .expect("writes"),
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
