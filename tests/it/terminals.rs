//! Terminals that are looked at and typed into from elsewhere, and those of guests, in real tmux.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use agent_relay::core::orchestrator::input::tokens;
use agent_relay::core::orchestrator::picture::Picture;
use agent_relay::edge::orchestrator::terminal::{
    Guest, GuestPlan, Place, capture, is_there, resize, send,
};
use agent_relay::os;
use serde_json::{Value, json};

use crate::support::{Machine, http, ran, skip, wait_for};

/// A folder with a guest whose program is this script.
struct Scene {
    dir: PathBuf,
    guest: Option<Guest>,
}

impl Scene {
    /// `None`: this machine has no tmux.
    fn new(name: &str, script: &str, env: &[(&str, &str)]) -> Option<Scene> {
        let found = std::process::Command::new("tmux").arg("-V").output();
        if !found.is_ok_and(|output| output.status.success()) {
            skip("tmux is missing; install it with: sudo apt-get install tmux");
            return None;
        }
        ran("tmux");
        let dir = std::env::temp_dir().join(format!("ar-{name}-{}", std::process::id()));
        // Signs that tmux and the shell act on stand in the folder's own name.
        let cwd = dir.join("it's #{pid}; $HOME");
        std::fs::create_dir_all(&cwd).expect("folder");
        let env: BTreeMap<String, String> =
            env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let command = ["/bin/sh", "-c", script, "sh", "a word"].map(String::from);
        let (guests, cwd_text) = (dir.join("g"), cwd.to_string_lossy().into_owned());
        let plan = GuestPlan {
            dir: &guests,
            cwd: &cwd_text,
            command: &command,
            env: &env,
            size: (200, 50),
        };
        let guest = Guest::start(&plan).expect("it starts");
        Some(Scene { dir, guest: Some(guest) })
    }

    fn place(&self) -> &Place {
        &self.guest.as_ref().expect("it runs").place
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.join("it's #{pid}; $HOME").join(name)).unwrap_or_default()
    }

    fn shown(&self, text: &str) -> Picture {
        wait_for(text, 60, || {
            let picture = capture(self.place()).expect("it answers").expect("it is there");
            picture.content.contains(text).then_some(picture)
        })
    }

    fn type_in(&self, data: &str) {
        let tokens = tokens(data);
        assert_eq!(send(self.place(), &tokens), Ok(Some(tokens.len())));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.guest = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn what_is_typed_from_elsewhere_arrives_as_it_was_typed() {
    let script = "stty raw -echo; echo ready; exec dd bs=1 of=typed 2>/dev/null";
    let Some(scene) = Scene::new("typed", script, &[]) else { return };
    scene.shown("ready");
    let mut want = Vec::new();
    for (data, arrives) in [
        ("hello é 漢 \u{1f600}", None),
        ("-R", None),
        ("a;", None),
        (";", None),
        ("\\;", None),
        ("a\\\\;b; c", None),
        ("#{pid} $HOME `x` 'y' \"z\" ~ %0 {", None),
        ("Enter", None),
        ("x\r", Some("x\r")),
        ("\u{3}\t\u{1b}", Some("\u{3}\t\u{1b}")),
        ("\u{1b}[A\u{1b}[B\u{1b}[3~", Some("\u{1b}[A\u{1b}[B\u{1b}[3~")),
        ("a\u{9b}31m\u{1}b", Some("a31mb")),
    ] {
        scene.type_in(data);
        want.extend_from_slice(arrives.unwrap_or(data).as_bytes());
        wait_for("what was typed", 60, || (scene.file("typed").len() >= want.len()).then_some(()));
        let got = scene.file("typed");
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&want), "{data:?}");
    }
    // Many keys, in their order, over many calls.
    let many: String = (0..300).map(|n| format!("{n};\r")).collect();
    scene.type_in(&many);
    want.extend_from_slice(many.as_bytes());
    wait_for("all of it", 60, || (scene.file("typed").len() >= want.len()).then_some(()));
    assert_eq!(scene.file("typed"), want);
}

#[test]
fn a_terminal_is_shown_with_its_colours_its_size_and_its_cursor() {
    let script = "for n in $(seq 1 300); do echo line $n; done; printf '\\033[31mred\\033[0m go '; read x; \
                  echo \"$x\" > seen; read y";
    let Some(mut scene) = Scene::new("shown", script, &[]) else { return };
    let picture = scene.shown("go");
    assert!(picture.content.contains("\u{1b}[31mred"), "{:?}", picture.content);
    assert!(picture.content.contains("line 1\n"), "with its history");
    assert_eq!((picture.size, picture.cursor), (Some((200, 50)), Some((7, 49))));
    assert_eq!(resize(scene.place(), 80, 24), Ok(true));
    let picture = scene.shown("go");
    assert_eq!(picture.size, Some((80, 24)));
    // A person who looks back takes no keys away.
    let look_back = |scene: &Scene| {
        let mut tmux = std::process::Command::new("tmux");
        tmux.arg("-S").arg(&scene.place().socket).args(["copy-mode", "-t", "agent"]);
        assert!(tmux.status().expect("tmux runs").success());
    };
    look_back(&scene);
    scene.type_in("typed\r");
    wait_for("the line", 60, || (scene.file("seen") == b"typed\n").then_some(()));
    // When it is gone, that is an answer and no error.
    let place = scene.place().clone();
    assert!(is_there(&place));
    scene.guest = None;
    assert!(!is_there(&place));
    assert_eq!(capture(&place), Ok(None));
    assert_eq!(send(&place, &tokens("x")), Ok(None));
    assert_eq!(resize(&place, 80, 24), Ok(false));
}

/// All command lines of this machine.
fn command_lines() -> Vec<u8> {
    let entries = std::fs::read_dir("/proc").expect("a table of processes").flatten();
    entries
        .flat_map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default())
        .collect()
}

#[test]
fn the_environment_of_a_guest_stands_in_no_command_line() {
    let secret = format!("{}-of-a-guest-{}", "secret", std::process::id());
    let script = "env > env; pwd > cwd; echo $# \"$1\" > words; echo ready; read x";
    let path = format!("/opt/guest:{}", std::env::var("PATH").expect("there is one"));
    let env = [("GUEST_SECRET", secret.as_str()), ("PATH", path.as_str())];
    let Some(scene) = Scene::new("secret", script, &env) else { return };
    scene.shown("ready");
    let told = String::from_utf8(scene.file("env")).expect("text");
    let value = |name: &str| {
        told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_string))
    };
    assert_eq!(value("GUEST_SECRET").as_deref(), Some(secret.as_str()));
    assert_eq!(value("PATH").as_deref(), Some(path.as_str()));
    // Nothing of this process but what a command needs: cargo has set many.
    assert!(std::env::var("CARGO_MANIFEST_DIR").is_ok() && value("CARGO_MANIFEST_DIR").is_none());
    assert!(value("TMUX").is_none(), "a client of another terminal would not run");
    assert!(String::from_utf8(scene.file("cwd")).expect("text").ends_with("it's #{pid}; $HOME\n"));
    assert_eq!(scene.file("words"), b"1 a word\n");
    let lines = command_lines();
    let needle = secret.as_bytes();
    assert!(!lines.windows(needle.len()).any(|part| part == needle), "others can read it");
    assert!(lines.windows(5).any(|part| part == b"tmux\0"), "command lines can be read here");
}

#[test]
fn nothing_of_a_guest_outlives_it() {
    let mark = format!("guest-{}", std::process::id());
    let script = "trap '' HUP TERM; sleep 600 & echo ready; while :; do sleep 600; done";
    let Some(mut scene) = Scene::new("ended", script, &[("GUEST_MARK", mark.as_str())]) else {
        return;
    };
    scene.shown("ready");
    let left = || os::processes_with_env("GUEST_MARK", &mark);
    assert!(left().len() >= 3, "the server, the script and what it has started");
    let folder = scene.place().socket.parent().expect("has one").to_path_buf();
    scene.guest = None;
    assert_eq!(left(), []);
    assert!(!folder.exists());
}

#[test]
fn a_guest_ends_with_its_program() {
    let Some(mut scene) = Scene::new("over", "echo ready; read x", &[]) else { return };
    scene.shown("ready");
    scene.type_in("\r");
    let guest = scene.guest.as_mut().expect("it runs");
    wait_for("its end", 60, || (!guest.is_running()).then_some(()));
}

#[test]
fn only_sockets_of_this_user_are_terminals() {
    let dir = std::env::temp_dir().join(format!("ar-places-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("folder");
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let _ours = UnixListener::bind(path("ours")).expect("a socket");
    let _foreign = UnixListener::bind(path("foreign")).expect("a socket");
    std::fs::write(path("file"), "").expect("writes");
    std::os::unix::fs::symlink(path("ours"), path("link")).expect("link");
    for (socket, session, want) in [
        (path("ours").as_str(), "agent", true),
        (path("ours").as_str(), "", false),
        (path("ours").as_str(), "agent:1", false),
        (path("ours").as_str(), "=agent.0", false),
        (path("file").as_str(), "agent", false),
        (path("link").as_str(), "agent", false),
        (path("nothing").as_str(), "agent", false),
        ("ours", "agent", false),
    ] {
        assert_eq!(Place::new(socket, session).is_some(), want, "{socket} {session}");
    }
    // Only root can make a socket somebody else's.
    if std::os::unix::fs::chown(path("foreign"), Some(65_534), None).is_ok() {
        assert_eq!(Place::new(&path("foreign"), "agent"), None);
    }
    // Somebody listens there who is no tmux: an error, in time.
    let place = Place::new(&path("ours"), "agent").expect("a socket");
    assert!(capture(&place).is_err());
    std::fs::remove_dir_all(Path::new(&dir)).expect("clean up");
}

/// Another user of the machine may take the port that a killed runner had.
#[test]
fn nobody_has_a_person_run_a_command_by_the_port_of_a_runner_that_is_gone() {
    let machine = Machine::new("port-taken");
    let hub = machine.hub();
    let mut runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let file = machine.home.join("agents/a/runner.json");
    let told = std::fs::read_to_string(&file).expect("the runner says where it is");
    runner.kill();
    let mark = machine.home.join("mark");
    let spec = json!({
        "mode": "guest", "provider": "demo", "cwd": "/", "env": {}, "envFiles": {},
        "command": ["/bin/sh", "-c", format!("touch '{}'", mark.display())],
    });
    let taken = http::serve(move |request, _| {
        http::respond(request, 200, "application/json", spec.to_string());
    });
    // The port itself cannot be bound on purpose: the file leads to another one.
    let mut told: Value = serde_json::from_str(&told).expect("JSON");
    told["controlUrl"] = json!(format!("http://127.0.0.1:{taken}"));
    std::fs::write(&file, told.to_string()).expect("writes");
    let said = machine.fails(1, &["attach", "a"]);
    assert!(said.contains("is gone") && !mark.exists(), "{said}");
    // A pid that another user's process has now is no runner either. Without root there is none.
    told["pid"] = json!(1);
    std::fs::write(&file, told.to_string()).expect("writes");
    if !rustix::process::geteuid().is_root() {
        let said = machine.fails(1, &["attach", "a"]);
        assert!(said.contains("is gone") && !mark.exists(), "{said}");
    }
    drop(hub);
}
