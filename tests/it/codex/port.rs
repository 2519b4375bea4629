//! A version of the program that has no unix sockets: it listens at a port, and a token keeps
//! everybody else out.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use tungstenite::client::IntoClientRequest;

use super::*;
use crate::support::BIN;

const NO_UNIX: [(&str, &str); 1] = [("FAKE_NO_UNIX", "1")];

impl Codex {
    /// The words of the server's command line.
    fn words(&self) -> Vec<String> {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid())).unwrap_or_default();
        line.split(|byte| *byte == 0).map(|it| String::from_utf8_lossy(it).into_owned()).collect()
    }

    fn token_file(&self) -> PathBuf {
        self.machine.home.join("agents/a/run/codex.token")
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.token_file()).expect("a token")
    }

    /// What came to the ports of all servers, and to which process.
    fn port_log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.machine.home.join("fake/port.log"));
        text.unwrap_or_default().lines().map(String::from).collect()
    }

    fn window(&self) -> Value {
        serde_json::from_str(&self.machine.ok(&["attach", "a", "--json"])).expect("JSON")
    }

    /// The address that the server's window is told.
    fn url(&self) -> String {
        self.window()["command"][3].as_str().unwrap_or_default().to_string()
    }

    /// How often a server was started in vain, since it has no unix sockets.
    fn refusals(&self) -> usize {
        let logs = self.machine.logs();
        logs.lines().filter(|line| line.contains("its server is started at a port")).count()
    }
}

/// What a client with this token is answered at the upgrade.
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

#[test]
fn without_unix_sockets_a_port_is_served_and_its_token_is_nobody_elses() {
    let faults = [NO_UNIX[0], ("FAKE_UNREADY", "3")];
    let mut codex = Codex::started("codex-port", &faults);
    let first = codex.machine.send("a", "one");
    assert_eq!(codex.answered(first), "done one");
    assert_eq!(codex.refusals(), 1, "{}", codex.machine.logs());
    let log = codex.port_log();
    let asked: Vec<&str> =
        log.iter().filter_map(|line| line.split_once(' ')).map(|it| it.1).collect();
    // A slow machine may ask once more.
    let first = |what: &str| asked.iter().position(|line| *line == what);
    assert_eq!(asked.iter().filter(|line| **line == "readyz 503").count(), 3, "{asked:?}");
    assert!(first("readyz 200") < first("upgrade 101"), "no upgrade before it is ready: {asked:?}");
    assert!(first("readyz 503") < first("readyz 200"), "{asked:?}");
    assert_eq!(first("upgrade 401"), None, "{asked:?}");
    // Who has not read the file is refused.
    let (url, token) = (codex.url(), codex.token());
    assert!(url.starts_with("ws://127.0.0.1:") && token.len() == 64, "{url}");
    let wrong = token.replace(|_: char| true, "0");
    for (given, status) in [(None, 401), (Some(wrong.as_str()), 401), (Some(token.as_str()), 101)] {
        assert_eq!(upgrade(&url, given), status);
    }
    let mode = |path: &std::path::Path| {
        std::fs::metadata(path).expect("is there").permissions().mode() & 0o777
    };
    let file = codex.token_file();
    assert_eq!((mode(&file), mode(file.parent().expect("a folder"))), (0o600, 0o700));
    // It stands nowhere else.
    let words = codex.words();
    assert!(words.contains(&file.to_string_lossy().into_owned()), "{words:?}");
    let environment = std::fs::read(format!("/proc/{}/environ", codex.pid())).expect("reads");
    let shown = [
        words.join(" "),
        String::from_utf8_lossy(&environment).into_owned(),
        codex.machine.logs(),
        codex.machine.status("a").to_string(),
        codex.window().to_string(),
    ];
    for text in shown {
        assert!(!text.contains(&token), "{text}");
    }
    codex.machine.ok(&["command", "a", "shutdown"]);
    codex.runner.take().expect("it runs").wait(30);
    assert!(!file.exists(), "the token goes with its server");
    wait_for("nothing to be left", 10, || (codex.machine.left_over().len() == 1).then_some(()));
}

#[test]
fn kills_of_server_and_runner_cost_no_message_at_a_port() {
    let mut codex = Codex::started("codex-port-kills", &NO_UNIX);
    let (before, token) = (codex.pid(), codex.token());
    let first = codex.machine.send("a", "sleep:60000 one");
    wait_for("the message to arrive", 30, || codex.delivered().contains_key(&first).then_some(()));
    codex.kill_server();
    wait_for("another server", 30, || (![0, before].contains(&codex.pid())).then_some(()));
    codex.machine.wait_status("a", "idle");
    assert_ne!(codex.token(), token, "each start has its own");
    assert_eq!(upgrade(&codex.url(), Some(&token)), 401, "that of the server before");
    // The way that works is kept: nothing is refused again.
    assert_eq!(codex.refusals(), 1);
    let server = codex.pid();
    let second = codex.machine.send("a", "sleep:60000 two");
    wait_for("the message to arrive", 30, || codex.delivered().contains_key(&second).then_some(()));
    let token = codex.token();
    codex.runner = None;
    codex.run();
    codex.machine.wait_status("a", "idle");
    assert!(!os::is_alive(os::process(server)), "what was left over is ended");
    assert_ne!(codex.token(), token);
    let third = codex.machine.send("a", "drop three");
    assert_eq!(codex.answered(third), "done three");
    assert_eq!(codex.delivered(), [(first, 1), (second, 1), (third, 1)].into());
}

/// Its token comes from the file: it is not in the words that the runner gives out.
#[test]
fn a_window_joins_at_a_port() {
    let codex = Codex::started("codex-port-window", &NO_UNIX);
    let thread = codex.machine.status("a")["providerProcess"]["session"].clone();
    let output = codex.machine.command(BIN).args(["attach", "a"]).output().expect("runs");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(shown.contains(thread.as_str().expect("a thread")), "{shown}");
    let spec = codex.window();
    assert_eq!(spec["envFiles"]["AGENT_RELAY_CODEX_TOKEN"], json!(codex.token_file()));
}

#[test]
fn either_way_can_be_asked_for() {
    // A version that has both, told to take the port.
    let mut codex = Codex::prepared("codex-port-chosen", &[]);
    codex.configure("appServer", json!("ws"));
    codex.run();
    codex.machine.wait_status("a", "idle");
    let id = codex.machine.send("a", "one");
    assert_eq!(codex.answered(id), "done one");
    assert!(codex.url().starts_with("ws://127.0.0.1:"));
    assert_eq!(codex.refusals(), 0);
    // One that has not what it was told to take: that is said, and nothing is tried again.
    let codex = Codex::prepared("codex-unix-chosen", &NO_UNIX);
    let words = ["run", "codex", "--headless", "--agent-id", "a", "--app-server", "unix"];
    let (code, told) = codex.machine.start(&words).wait(60);
    assert!(code != 0 && told.contains("--app-server"), "{code} {told}");
    let logs = codex.machine.logs();
    let tries = logs.lines().filter(|line| line.contains("no unix sockets")).count();
    assert!(!logs.contains("is started at a port") && tries > 0, "{logs}");
}
