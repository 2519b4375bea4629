//! The server's own window beside the runner, in a terminal that tmux gives.

use super::*;
use crate::support::{BIN, ran};

/// A runner with a window, in tmux.
struct Window {
    session: Session,
    socket: String,
}

impl Window {
    fn start() -> Window {
        let session = Session::prepared("codex-window", "guarded");
        ran("codex-window");
        let socket = format!("relay-window-{}", std::process::id());
        let window = Window { session, socket };
        let line =
            format!("{BIN} run codex --agent-id a --approval guarded; echo CODE=$?; sleep 100");
        window.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "120",
            "-y",
            "40",
            "-s",
            "w",
            &line,
        ]);
        window
    }

    fn tmux(&self, words: &[&str]) -> String {
        let mut command = self.session.machine.command("tmux");
        command.env("TERM", "xterm-256color").args(["-L", &self.socket]).args(words);
        let output = command.output().expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "w"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "w"])
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        let shown = || self.screen();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(text, LONG, || shown().contains(text).then_some(()))
        }));
        assert!(found.is_ok(), "{text:?} is not on\n{}\n{}", shown(), self.session.machine.logs());
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

fn is_codex(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.starts_with("codex")
}

#[test]
#[ignore = "make interop runs it"]
fn codex_has_a_window_beside_it() {
    let window = Window::start();
    let session = &window.session;
    session.machine.wait_status("a", "idle");
    window.shows("Ask Codex");
    // What comes from the relay is shown, and answered.
    let first = session.send("first from-relay");
    assert_eq!(session.answered(first), "said from-relay");
    window.shows("said from-relay");
    // What a person types is a turn of the same thread, mirrored and answered to nobody.
    window.keys(&["-l", "typed by-hand"]);
    window.shows("typed by-hand");
    window.keys(&["Enter"]);
    window.shows("said by-hand");
    wait_for("the mirror", LONG, || {
        let mirror = session.machine.ok(&["inbox", "--all", "--mirror", "--json"]);
        (mirror.contains("typed by-hand") && mirror.contains("said by-hand")).then_some(())
    });
    assert!(!session.machine.ok(&["inbox", "--all", "--json"]).contains("said by-hand"));
    // A question is shown in both places; whoever answers first ends it in the other.
    let outside = session.machine.home.with_file_name("outside");
    let id = session.send(&format!("ESC:touch {}; asked", outside.display()));
    let approval = session.approval();
    window.shows("May I?");
    session.machine.ok(&["approvals", "approve", &approval]);
    assert_eq!(session.answered(id), "said asked");
    assert!(outside.exists());
    let id = session.send(&format!("ESC:touch {}2; again", outside.display()));
    session.approval();
    window.shows("May I?");
    window.keys(&["Enter"]);
    assert_eq!(session.answered(id), "said again");
    wait_for("no question", LONG, || {
        session.machine.ok(&["approvals", "--json"]).trim().is_empty().then_some(())
    });
    session.once(first);
    session.once(id);
    // Whoever leaves the window ends the runner, and nothing is left.
    window.keys(&["C-c"]);
    let has_ended = || window.screen().contains("CODE=");
    let asked = std::time::Instant::now();
    while !has_ended() && asked.elapsed() < std::time::Duration::from_secs(2) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    if !has_ended() {
        window.keys(&["C-c"]); // it wants to be told twice
    }
    window.shows("CODE=0");
    wait_for("nothing to be left", LONG, || {
        let left = session.machine.left_over();
        left.iter().all(|process| !is_codex(process.pid)).then_some(())
    });
}
