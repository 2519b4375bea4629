//! The real server at a port, behind a token: as a version would be that has no unix sockets.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tungstenite::client::IntoClientRequest;

use super::window::{Window, is_codex};
use super::*;
use crate::support::{BIN, write_program};

/// A program in front of the real one that knows no unix sockets, and says so as such versions do.
const OLDER: &str = "case \"$*\" in *unix://*)
  echo \"error: invalid value 'unix' for '--listen <URL>': unsupported --listen URL \\`unix\\`; \
expected \\`stdio://\\` or \\`ws://IP:PORT\\`\" >&2
  exit 2 ;;
esac
";

impl Session {
    /// One more setting of the provider.
    fn set(&self, name: &str, value: Value) {
        let file = self.machine.home.join("providers/codex.json");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&file).expect("reads")).expect("JSON");
        config[name] = value;
        std::fs::write(&file, config.to_string()).expect("writes");
    }

    fn token_file(&self) -> PathBuf {
        self.machine.home.join("agents/a/run/codex.token")
    }

    fn attach_spec(&self) -> Value {
        serde_json::from_str(&self.machine.ok(&["attach", "a", "--json"])).expect("JSON")
    }
}

/// The program itself, behind the script of its package.
fn native() -> PathBuf {
    let vendors = installed().join("codex/node_modules/@openai");
    let packages = std::fs::read_dir(vendors).expect("packages").flatten();
    let vendors = packages.map(|package| package.path().join("vendor"));
    let triples = vendors.filter_map(|vendor| std::fs::read_dir(vendor).ok()).flatten().flatten();
    triples.map(|triple| triple.path().join("bin/codex")).find(|it| it.exists()).expect("codex")
}

/// What a client with this token is answered.
fn upgrade(url: &str, token: Option<&str>) -> u16 {
    let mut request = format!("{url}/").into_client_request().expect("an address");
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("a header");
        request.headers_mut().insert("authorization", value);
    }
    let stream = TcpStream::connect(url.trim_start_matches("ws://")).expect("somebody listens");
    match tungstenite::client(request, stream) {
        Ok(_) => 101,
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
            answer.status().as_u16()
        }
        Err(error) => panic!("{error}"),
    }
}

/// It is refused the better way first, and then talks, asks and survives kills as it does there.
#[test]
#[ignore = "make interop runs it"]
fn codex_at_a_port() {
    let mut session = Session::prepared("codex-port", "guarded");
    ran("codex-port");
    let script = session.machine.work.join("codex");
    write_program(&script, &format!("#!/bin/sh\n{OLDER}exec '{}' \"$@\"\n", native().display()));
    session.set("command", json!(script.to_string_lossy()));
    session.run();
    let logs = session.machine.logs();
    let told = |word: &str| logs.lines().filter(|line| line.contains(word)).count();
    assert_eq!(told("its server is started at a port"), 1, "{logs}");
    let first = session.send("hello one");
    assert_eq!(session.answered(first), "Heard: hello one");
    let outside = session.machine.home.with_file_name("outside");
    let asked = session.send(&format!("ESC:touch {}; asked", outside.display()));
    session.machine.ok(&["approvals", "approve", &session.approval()]);
    assert!(session.answered(asked).ends_with("asked") && outside.exists());
    // Nobody gets in without the token, which stands in one file and nowhere else.
    let (url, token) = (
        session.attach_spec()["command"][3].as_str().expect("an address").to_string(),
        std::fs::read_to_string(session.token_file()).expect("a token"),
    );
    for (given, status) in [(None, 401), (Some("0123"), 401), (Some(token.as_str()), 101)] {
        assert_eq!(upgrade(&url, given), status, "{given:?}");
    }
    let mode = std::fs::metadata(session.token_file()).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for name in ["cmdline", "environ"] {
        let read = std::fs::read(format!("/proc/{}/{name}", session.pid())).expect("reads");
        assert!(!String::from_utf8_lossy(&read).contains(&token), "{name}");
    }
    let shown = [session.machine.logs(), session.machine.status("a").to_string()].concat();
    assert!(!shown.contains(&token));
    let mut ids = vec![first, asked];
    for n in 0..4 {
        ids.push(session.send(&format!("SLOW n{n}")));
        session.is_asked(&format!("[relay message #{} from", ids[n + 2]));
        match n {
            0 => session.kill_provider(),
            2 => {
                session.kill_runner();
                session.run();
            }
            _ => {}
        }
        session.answered(ids[n + 2]);
    }
    ids.iter().for_each(|id| session.once(*id));
    let logs = session.machine.logs();
    let tries = logs.lines().filter(|line| line.contains("its server is started at a port"));
    assert_eq!(tries.count(), 2, "once for each runner\n{logs}");
    let file = session.token_file();
    session.end();
    assert!(!file.exists());
}

/// Its window, in the terminal of the runner and elsewhere, gets in by the same token.
#[test]
#[ignore = "make interop runs it"]
fn codex_has_windows_at_a_port() {
    let session = Session::prepared("codex-port-window", "guarded");
    ran("codex-port");
    let line = format!("{BIN} run codex --agent-id a --approval guarded --app-server ws");
    let window = Window::of(session, &line);
    let session = &window.session;
    session.machine.wait_status("a", "idle");
    window.shows("Ask Codex");
    let first = session.send("first from-relay");
    assert_eq!(session.answered(first), "Heard: first from-relay");
    window.shows("Heard: first from-relay");
    window.keys(&["-l", "typed by-hand"]);
    window.shows("typed by-hand");
    window.keys(&["Enter"]);
    window.shows("Heard: typed by-hand");
    let outside = session.machine.home.with_file_name("outside");
    let id = session.send(&format!("ESC:touch {}; asked", outside.display()));
    session.approval();
    window.shows("May I?");
    window.keys(&["Enter"]);
    assert!(session.answered(id).ends_with("asked"));
    assert!(outside.exists());
    session.once(first);
    session.once(id);
    window.leave();
    wait_for("nothing to be left", LONG, || {
        session.machine.left_over().iter().all(|it| !is_codex(it.pid)).then_some(())
    });
    // One that looks in from elsewhere.
    let mut session = Session::prepared("codex-port-guest", "guarded");
    session.words.extend(["--app-server", "ws"].map(String::from));
    session.run();
    let before = session.send("first before-guest");
    assert!(session.answered(before).ends_with("before-guest"));
    let window = Window::of(session, &format!("{BIN} attach a"));
    window.shows("Heard: first before-guest");
    window.leave();
}
