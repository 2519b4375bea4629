//! Disks that are full or may not be written.

use super::*;
use crate::support::own_port;

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
    let key: String = text.chars().take(200).collect();
    let body =
        json!({"to": "user", "kind": "chat", "body": text, "idempotencyKey": key}).to_string();
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
    let port = own_port().to_string();
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
