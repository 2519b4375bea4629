//! Starts that would fail again and again if they were repeated as they were.

use std::path::Path;

use super::*;
use crate::support::write_program;

impl Claude {
    /// The transcript that the session of the agent has now.
    fn transcript(&self) -> PathBuf {
        let status = self.machine.status("a");
        let session = status.pointer("/providerProcess/session").and_then(Value::as_str);
        let name = format!("{}.jsonl", session.expect("a session"));
        self.machine.home.join("agents/a/claude/projects/-fake").join(name)
    }

    fn says_that_it_is_lost(&self) -> bool {
        self.machine.status("a")["session"]["conversation"].to_string().contains("lost")
    }

    /// Another program in the place of the usual one.
    fn configure(&self, name: &str, value: Value) {
        let file = self.machine.home.join("providers/claude.json");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&file).expect("reads")).expect("JSON");
        config[name] = value;
        std::fs::write(&file, config.to_string()).expect("writes");
    }
}

/// After a full disk, a power cut or a kill in the first moments of its first turn.
#[test]
fn a_record_in_which_nothing_was_said_is_not_resumed() {
    if !has_tmux() {
        return;
    }
    const BOOKKEEPING: &str = "{\"type\":\"mode\",\"mode\":\"default\"}\n";
    let cut = "{\"parentUuid\":null,\"type\":\"user\",\"message\":{\"role\":\"user\",\"con";
    for (number, record) in ["", cut, BOOKKEEPING].into_iter().enumerate() {
        let mut claude = Claude::start(&format!("claude-record{number}"), &[]);
        let id = claude.machine.send("a", "MARK-HANG HANG");
        claude.once("MARK-HANG");
        let transcript = claude.transcript();
        let pid = claude.pid();
        claude.runner = None;
        wait_for("its end", 60, || (!os::is_alive(os::process(pid))).then_some(()));
        std::fs::write(&transcript, record).expect("writes");
        claude.run();
        assert!(claude.answered(id).contains("MARK-HANG"), "{record}");
        claude.once("MARK-HANG");
        assert!(claude.says_that_it_is_lost(), "{}", claude.machine.status("a"));
        assert!(claude.asks("MARK-TWO").contains("MARK-TWO"));
        assert_ne!(claude.transcript(), transcript);
    }
}

/// The program knows better than its record.
#[test]
fn a_conversation_that_is_refused_is_begun_anew() {
    if !has_tmux() {
        return;
    }
    let claude = Claude::start("claude-refused", &[("FAKE_REFUSES", "once")]);
    claude.asks("MARK-ONE");
    // The answer is told before the record is on the disk.
    claude.once("MARK-ONE");
    let before = claude.transcript();
    claude.machine.ok(&["command", "a", "restart"]);
    assert!(claude.asks("MARK-TWO").contains("MARK-TWO"));
    assert!(claude.says_that_it_is_lost(), "{}", claude.machine.status("a"));
    assert_ne!(claude.transcript(), before);
    for mark in ["MARK-ONE", "MARK-TWO"] {
        claude.once(mark);
    }
    assert_eq!(claude.machine.status("a")["providerProcess"]["exitsInWindow"], 1, "one try");
}

/// Launchers of companies start the program as their child.
#[test]
fn a_program_below_a_script_is_known_by_its_family() {
    if !has_tmux() {
        return;
    }
    let mut claude = Claude::prepared("claude-script", &[]);
    let script = claude.machine.work.join("launcher.sh");
    let text = format!("#!/bin/sh\n'{}' \"$@\"\ncode=$?\nexit $code\n", program().display());
    write_program(&script, &text);
    claude.configure("command", json!(script.to_string_lossy()));
    claude.run();
    claude.machine.wait_status("a", "idle");
    assert!(claude.asks("MARK-ONE").contains("MARK-ONE"));
    let pid = claude.pid();
    claude.machine.ok(&["command", "a", "restart"]);
    assert_ne!(claude.pid(), pid);
    assert!(claude.asks("MARK-TWO").contains("MARK-TWO"));
    claude.machine.ok(&["command", "a", "shutdown"]);
    assert_eq!(claude.runner.as_mut().expect("runs").wait(60).0, 0);
    let hub = claude.hub.as_ref().map(|hub| hub.child.id());
    let left = claude.machine.left_over();
    assert!(left.iter().all(|process| Some(process.pid) == hub), "{left:?}");
}

/// Variables of the login, of a folder that is gone by now, or too long for a socket.
#[test]
fn the_terminal_needs_no_folder_of_others() {
    if !has_tmux() {
        return;
    }
    let long = format!("/tmp/{}", "x".repeat(100));
    for (number, folder) in ["", "/nonexistent/run/user/1000", &long].into_iter().enumerate() {
        let mut claude = Claude::prepared(&format!("claude-folder{number}"), &[]);
        claude.machine.set("TMUX_TMPDIR", folder);
        claude.machine.set("TMPDIR", folder);
        claude.run();
        claude.machine.wait_status("a", "idle");
        assert!(claude.asks("MARK-ONE").contains("MARK-ONE"), "{folder}");
        let spec = claude.machine.ok(&["attach", "a", "--json"]);
        let spec: Value = serde_json::from_str(&spec).expect("JSON");
        let socket = spec["command"][3].as_str().expect("a socket").to_string();
        assert!(socket.len() < 108 && Path::new(&socket).exists(), "{socket}");
        assert!(claude.screen().contains("manual mode"), "{}", claude.screen());
    }
}

/// Somebody has put something else where the sockets go: they go elsewhere.
#[test]
fn a_folder_that_takes_no_sockets_is_left_for_another() {
    if !has_tmux() {
        return;
    }
    let mut claude = Claude::prepared("claude-squatted", &[]);
    let agent = claude.machine.home.join("agents/a");
    std::fs::create_dir_all(&agent).expect("folder");
    std::fs::write(agent.join("run"), "a file").expect("writes");
    let shared = claude.machine.home.with_file_name("s");
    std::fs::create_dir_all(&shared).expect("folder");
    claude.machine.set("XDG_RUNTIME_DIR", &shared.to_string_lossy());
    claude.run();
    claude.machine.wait_status("a", "idle");
    assert!(claude.asks("MARK-ONE").contains("MARK-ONE"));
    let socket = claude.machine.status("a")["terminal"]["tmuxSocket"].to_string();
    assert!(socket.contains(&*shared.to_string_lossy()), "{socket}");
}

/// The next start ends what still listens at the socket that was used last, whatever it is.
#[test]
fn a_terminal_that_was_left_behind_is_ended() {
    if !has_tmux() {
        return;
    }
    let mut claude = Claude::start("claude-left", &[]);
    claude.asks("MARK-ONE");
    let pid = claude.pid();
    let socket = claude.machine.status("a")["terminal"]["tmuxSocket"].clone();
    let socket = socket.as_str().expect("a socket").to_string();
    claude.runner = None;
    wait_for("its end", 60, || (!os::is_alive(os::process(pid))).then_some(()));
    // Of an earlier start that nothing else tells of.
    let words = ["-S", &socket, "-f", "/dev/null", "new-session", "-d", "-P", "-F", "#{pane_pid}"];
    let output =
        claude.machine.command("tmux").args(words).arg("sleep 600").output().expect("tmux");
    let left: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a pid");
    let left = os::process(left);
    assert!(os::is_alive(left));
    claude.run();
    claude.machine.wait_status("a", "idle");
    wait_for("the end of what was left", 60, || (!os::is_alive(left)).then_some(()));
    assert!(claude.asks("MARK-TWO").contains("MARK-TWO"));
}

#[test]
fn a_working_folder_that_is_gone_is_named() {
    if !has_tmux() {
        return;
    }
    let mut claude = Claude::prepared("claude-gone-folder", &[]);
    let folder = claude.machine.home.with_file_name("tree");
    std::fs::create_dir_all(&folder).expect("folder");
    let cwd = folder.to_string_lossy().into_owned();
    let words = ["run", "claude", "--headless", "--agent-id", "a", "--cwd", &cwd];
    claude.runner = Some(claude.machine.start(&words));
    claude.machine.wait_status("a", "idle");
    std::fs::remove_dir_all(&folder).expect("removes");
    let output = claude.machine.run(&["command", "a", "restart"]);
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(told.contains(&cwd) && !told.contains("apt-get"), "{told}");
    assert_eq!(claude.machine.status("a")["status"], "parked", "at once");
    std::fs::create_dir_all(&folder).expect("folder");
    claude.machine.ok(&["command", "a", "restart"]);
    assert!(claude.asks("MARK-ONE").contains("MARK-ONE"));
}

/// A service without a user of its own has no HOME; the program takes that of the password file.
#[test]
fn without_a_home_that_of_the_password_file_is_taken() {
    if !has_tmux() {
        return;
    }
    let mut claude = Claude::prepared("claude-homeless", &[]);
    let words = ["-u", "HOME", BIN, "run", "claude", "--headless", "--agent-id", "a"];
    let mut command = claude.machine.command("env");
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    claude.runner = Some(Running { child: command.spawn().expect("starts") });
    claude.machine.wait_status("a", "idle");
    let environment = std::fs::read(format!("/proc/{}/environ", claude.pid())).expect("lives");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let uid = rustix::process::getuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").expect("reads");
    let home = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2) == Some(&uid.as_str())).then(|| fields[5].to_string())
    });
    let told = environment.split('\0').find_map(|line| line.strip_prefix("HOME="));
    assert_eq!(told, home.as_deref(), "what runs in it looks where we look");
}
