//! Starts of odd kinds, and those that would fail again and again if they were repeated as they
//! were.

use std::process::Stdio;

use super::*;
use crate::support::{BIN, variable, write_program};

/// What the program says of a thread that is gone, and of one whose file is empty or cut.
const REFUSALS: [&str; 2] = [
    "no rollout found for thread id t",
    "failed to read thread: thread-store internal error: failed to read session metadata /f: empty",
];

impl Codex {
    fn thread(&self) -> Value {
        self.machine.status("a")["providerProcess"]["session"].clone()
    }

    fn says_that_it_is_lost(&self) -> bool {
        self.machine.status("a")["session"]["conversation"].to_string().contains("lost")
    }
}

/// Launchers of companies bear the name of the program and start it as their child.
#[test]
fn a_script_named_as_the_program_is_served_and_ended() {
    let mut codex = Codex::prepared("codex-script", &[]);
    let script = codex.machine.work.join("codex");
    let text = format!("#!/bin/sh\n'{}' \"$@\"\ncode=$?\nexit $code\n", program().display());
    write_program(&script, &text);
    codex.configure("command", json!(script.to_string_lossy()));
    codex.run();
    codex.machine.wait_status("a", "idle");
    let first = codex.machine.send("a", "one");
    assert_eq!(codex.answered(first), "done one");
    let (pid, thread) = (codex.pid(), codex.thread());
    codex.machine.ok(&["command", "a", "restart"]);
    assert_ne!(codex.pid(), pid);
    let second = codex.machine.send("a", "two");
    assert_eq!(codex.answered(second), "done two");
    assert_eq!(codex.thread(), thread, "the same thread goes on");
    // Killed, it leaves the program behind: it is ended before the next start.
    codex.kill_server();
    let third = codex.machine.send("a", "three");
    assert_eq!(codex.answered(third), "done three");
    codex.machine.ok(&["command", "a", "shutdown"]);
    assert_eq!(codex.runner.as_mut().expect("it runs").wait(60).0, 0);
    let left = codex.machine.left_over();
    assert_eq!(left.len(), 1, "the hub alone: {left:?}");
    assert_eq!(codex.delivered(), [(first, 1), (second, 1), (third, 1)].into());
}

/// A service without a user of its own has no HOME; the program takes that of the password file.
#[test]
fn without_a_home_that_of_the_password_file_is_taken() {
    let mut codex = Codex::prepared("codex-homeless", &[]);
    let words = ["-u", "HOME", BIN, "run", "codex", "--headless", "--agent-id", "a"];
    let mut command = codex.machine.command("env");
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    codex.runner = Some(Running { child: command.spawn().expect("starts") });
    codex.machine.wait_status("a", "idle");
    let told = variable(codex.pid(), "HOME");
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").expect("reads");
    let home = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2) == Some(&uid.as_str())).then(|| fields[5].to_string())
    });
    assert_eq!(Some(told), home, "what runs in it looks where we look");
    let id = codex.machine.send("a", "one");
    assert_eq!(codex.answered(id), "done one");
}

#[test]
fn a_working_folder_that_is_gone_is_named() {
    let mut codex = Codex::prepared("codex-gone-folder", &[]);
    let folder = codex.machine.home.with_file_name("tree");
    std::fs::create_dir_all(&folder).expect("folder");
    let cwd = folder.to_string_lossy().into_owned();
    let words = ["run", "codex", "--headless", "--agent-id", "a", "--cwd", &cwd];
    codex.runner = Some(codex.machine.start(&words));
    codex.machine.wait_status("a", "idle");
    std::fs::remove_dir_all(&folder).expect("removes");
    let output = codex.machine.run(&["command", "a", "restart"]);
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(told.contains(&cwd) && !told.contains("npm"), "{told}");
    assert_eq!(codex.machine.status("a")["status"], "parked", "at once");
    std::fs::create_dir_all(&folder).expect("folder");
    codex.machine.ok(&["command", "a", "restart"]);
    let id = codex.machine.send("a", "one");
    assert_eq!(codex.answered(id), "done one");
}

/// After a full disk, a power cut or a kill in the first moments: the message is not in any thread
/// that is still there.
#[test]
fn a_first_turn_of_which_nothing_is_on_disk_is_begun_anew() {
    let codex = Codex::start("codex-vanished");
    let before = codex.thread();
    let id = codex.machine.send("a", "vanish one");
    assert_eq!(codex.answered(id), "done one");
    assert_ne!(codex.thread(), before);
    assert!(codex.says_that_it_is_lost(), "{}", codex.machine.status("a"));
    let second = codex.machine.send("a", "two");
    assert_eq!(codex.answered(second), "done two");
    // Once in the thread that is gone, once in the one that is there.
    assert_eq!(codex.delivered(), [(id, 2), (second, 1)].into());
}

/// The program knows better than the name of the thread.
#[test]
fn a_thread_that_is_refused_is_begun_anew() {
    for (number, why) in REFUSALS.into_iter().enumerate() {
        let faults = [("FAKE_REFUSES", why)];
        let codex = Codex::started(&format!("codex-refused{number}"), &faults);
        let first = codex.machine.send("a", "one");
        assert_eq!(codex.answered(first), "done one");
        let before = codex.thread();
        codex.machine.ok(&["command", "a", "restart"]);
        let second = codex.machine.send("a", "two");
        assert_eq!(codex.answered(second), "done two");
        assert!(codex.says_that_it_is_lost(), "{}", codex.machine.status("a"));
        assert_ne!(codex.thread(), before);
        assert_eq!(codex.delivered(), [(first, 1), (second, 1)].into());
        let exits = &codex.machine.status("a")["providerProcess"]["exitsInWindow"];
        assert_eq!(*exits, 0, "the same server begins it");
    }
}
