//! The server's own window beside the runner, in a terminal that tmux gives.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::support::BIN;

/// A runner with a window, in tmux.
pub struct Window {
    pub session: Session,
    socket: String,
}

impl Window {
    /// The runner in the window.
    fn start() -> Window {
        let session = Session::prepared("codex-window", "guarded");
        Window::of(session, &format!("{BIN} run codex --agent-id a --approval guarded"))
    }

    /// A session with a command in a terminal.
    pub fn of(session: Session, line: &str) -> Window {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        ran("codex-window");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = format!("relay-window-{}-{number}", std::process::id());
        let window = Window { session, socket };
        let line = format!("{line}; echo CODE=$?; sleep 100");
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

    pub fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "w"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "w"])
    }

    #[track_caller]
    pub fn shows(&self, text: &str) {
        let shown = || self.screen();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(text, LONG, || shown().contains(text).then_some(()))
        }));
        assert!(found.is_ok(), "{text:?} is not on\n{}\n{}", shown(), self.session.machine.logs());
    }
}

impl Window {
    /// It wants to be told once or twice, as it feels.
    pub fn leave(&self) {
        self.keys(&["C-c"]);
        let asked = std::time::Instant::now();
        while !self.screen().contains("CODE=") && asked.elapsed().as_secs() < 2 {
            pause(50);
        }
        if !self.screen().contains("CODE=") {
            self.keys(&["C-c"]);
        }
        self.shows("CODE=0");
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

pub fn is_codex(pid: u32) -> bool {
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
    assert_eq!(session.answered(first), "Heard: first from-relay");
    window.shows("Heard: first from-relay");
    // What a person types is a turn of the same thread, mirrored and answered to nobody.
    window.keys(&["-l", "typed by-hand"]);
    window.shows("typed by-hand");
    window.keys(&["Enter"]);
    window.shows("Heard: typed by-hand");
    wait_for("the mirror", LONG, || {
        let mirror = session.machine.ok(&["inbox", "--all", "--mirror", "--json"]);
        (mirror.contains("typed by-hand") && mirror.contains("Heard: typed by-hand")).then_some(())
    });
    assert!(!session.machine.ok(&["inbox", "--all", "--json"]).contains("Heard: typed by-hand"));
    // A question is shown in both places; whoever answers first ends it in the other.
    let outside = session.machine.home.with_file_name("outside");
    let id = session.send(&format!("ESC:touch {}; asked", outside.display()));
    let approval = session.approval();
    window.shows("May I?");
    session.machine.ok(&["approvals", "approve", &approval]);
    assert!(session.answered(id).ends_with("asked"));
    assert!(outside.exists());
    let id = session.send(&format!("ESC:touch {}2; again", outside.display()));
    session.approval();
    window.shows("May I?");
    window.keys(&["Enter"]);
    assert!(session.answered(id).ends_with("again"));
    wait_for("no question", LONG, || {
        session.machine.ok(&["approvals", "--json"]).trim().is_empty().then_some(())
    });
    session.once(first);
    session.once(id);
    // Whoever leaves the window ends the runner, and nothing is left.
    window.leave();
    wait_for("nothing to be left", LONG, || {
        let left = session.machine.left_over();
        left.iter().all(|process| !is_codex(process.pid)).then_some(())
    });
}

/// A person looks in on a headless agent: asked in both places, seen in both, and gone again
/// without a trace.
#[test]
#[ignore = "make interop runs it"]
fn codex_takes_a_guest() {
    let session = Session::start("codex-guest", "guarded");
    ran("codex-second");
    let first = session.send("first before-guest");
    assert!(session.answered(first).ends_with("before-guest"));
    let window = Window::of(session, &format!("{BIN} attach a"));
    let session = &window.session;
    window.shows("Heard: first before-guest");
    let outside = session.machine.home.with_file_name("outside");
    let asks = |word: &str| {
        let id = session.send(&format!("ESC:touch {}; {word}", outside.display()));
        session.approval();
        window.shows("May I?");
        id
    };
    let by_guest = asks("by-guest");
    window.keys(&["Enter"]);
    assert!(session.answered(by_guest).ends_with("by-guest"));
    assert!(outside.exists());
    session.waits("no question", || {
        session.machine.ok(&["approvals", "--json"]).trim().is_empty().then_some(())
    });
    let by_relay = asks("by-relay");
    session.machine.ok(&["approvals", "deny", &session.approval()]);
    assert!(session.answered(by_relay).ends_with("by-relay"));
    // A message waits for the turn that the guest has begun, and is a turn of its own.
    window.keys(&["-l", "SLOW guests-own"]);
    window.shows("SLOW guests-own");
    window.keys(&["Enter"]);
    session.is_asked("guests-own");
    let late = session.send("later word");
    assert_eq!(session.answered(late), "Heard: later word");
    for id in [first, by_guest, by_relay, late] {
        session.once(id);
    }
    assert!(!session.machine.ok(&["inbox", "--all", "--json"]).contains("guests-own"));
    let pid = session.pid();
    window.leave();
    let last = session.send("last after-guest");
    assert_eq!(session.answered(last), "Heard: last after-guest");
    assert_eq!(session.pid(), pid, "the runner goes on");
}
