//! Tools inside an agent's session: they speak as that agent or not at all.

mod mcp;
mod skills;
mod tokens;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{BIN, Machine, Running, skip, variable, wait_for};

/// A shell inside the session of an agent: the environment is that of its provider.
struct Session {
    env: BTreeMap<String, String>,
    work: PathBuf,
}

impl Session {
    #[track_caller]
    fn of(machine: &Machine, agent: &str) -> Session {
        let ready = || {
            let status = machine.status(agent);
            let ready = status["providerProcess"]["state"] == "ready";
            status["providerProcess"]["pid"].as_u64().filter(|_| ready)
        };
        let pid = wait_for("the provider", 60, ready);
        Session::in_process(machine, pid as u32).expect("its environment")
    }

    /// The same for the provider of a runner that only its process is known of.
    fn below(machine: &Machine, runner: u32) -> Option<Session> {
        let all = machine.left_over().into_iter().filter(|process| process.pid != runner);
        let mut sessions = all.filter_map(|process| Session::in_process(machine, process.pid));
        sessions.find(|session| session.env.contains_key("AGENT_RELAY_TOKEN_FILE"))
    }

    fn in_process(machine: &Machine, pid: u32) -> Option<Session> {
        let text = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let variables = text
            .split(|byte| *byte == 0)
            .map(|variable| String::from_utf8_lossy(variable).into_owned());
        let env = variables
            .filter_map(|variable| {
                variable.split_once('=').map(|(name, value)| (name.into(), value.into()))
            })
            .collect();
        Some(Session { env, work: machine.work.clone() })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BIN);
        command
            .env_clear()
            .envs(&self.env)
            .args(arguments)
            .stdin(Stdio::null())
            .current_dir(&self.work);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("runs")
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    }

    #[track_caller]
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "one clear sentence: {text}");
        text
    }

    fn token_file(&self) -> PathBuf {
        self.env["AGENT_RELAY_TOKEN_FILE"].clone().into()
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.token_file()).unwrap_or_default()
    }
}

/// All messages to the user, as the hub has them.
fn mail(machine: &Machine) -> Vec<Value> {
    let text = machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[track_caller]
fn wait_mail(machine: &Machine, body: &str) -> Value {
    wait_for(body, 60, || mail(machine).into_iter().find(|message| message["body"] == body))
}

#[test]
fn while_the_relay_is_away_an_answer_of_a_tool_is_the_answer() {
    let machine = Machine::new("away");
    let mut hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    let slow = machine.send("a", "slow 12");
    wait_for("the turn", 60, || machine.delivered().contains_key(&slow).then_some(()));
    hub.kill();
    let number = slow.to_string();
    assert_eq!(
        session.ok(&["reply", &number, "answered", "meanwhile"]),
        "queued; sent when the relay is back"
    );
    assert_eq!(session.ok(&["react", &number, "ok"]), "queued; sent when the relay is back");
    assert!(
        session
            .fails(3, &["reply", "999", "to nobody"])
            .contains("cannot be reached; its runner keeps trying")
    );
    // The turn ends while nobody can say what is owed.
    wait_for("the end of the turn", 60, || (machine.status("a")["status"] == "idle").then_some(()));
    let _hub = machine.hub();
    machine.wait_status("a", "idle");
    let answer = wait_mail(&machine, "answered meanwhile");
    assert_eq!((answer["replyTo"].as_u64(), answer["from"].as_str()), (Some(slow), Some("a")));
    wait_for("the reaction", 60, || {
        machine.ok(&["get-message", &number]).contains("ok by a").then_some(())
    });
    // Nothing else is on its way: another message and its answer come behind it.
    let next = machine.send("a", "hello");
    machine.settle(&[next], 60);
    assert_eq!(machine.answered().get(&slow), Some(&1), "{:?}", mail(&machine));
}

#[test]
fn a_persons_commands_need_the_persons_word() {
    let machine = Machine::new("as-operator");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    for arguments in [
        &["agents"][..],
        &["status"],
        &["status", "b"],
        &["approvals"],
        &["command", "a", "interrupt"],
        &["token", "list"],
        &["label", "b", "x"],
        &["hub", "status"],
        &["up", "--say", "x"],
        &["service", "list"],
        &["service", "install", "hub"],
        &["run", "acp", "--agent-id", "b", "--", BIN, "demo-agent"],
    ] {
        let text = session.fails(2, arguments);
        assert!(
            text.contains("AGENT_RELAY_ID")
                && text.contains("env -u AGENT_RELAY_ID")
                && text.contains("--as-operator"),
            "{text}"
        );
    }
    // Help and what needs no relay work as ever, and its own label is the agent's.
    for arguments in [
        &["run", "--help"][..],
        &["agents", "--help"],
        &["guide"],
        &["generate", "man"],
        &["version"],
        &["hook", "busy"],
        &["status", "a", "--why"],
    ] {
        session.ok(arguments);
    }
    assert!(
        session.ok(&["doctor"]).contains("token      provider-agent"),
        "it looks with the agent's token"
    );
    assert!(session.ok(&["label", "a", "web"]).contains("has the label web"));
    assert!(session.ok(&["guide"]).contains("AGENT_RELAY_TOKEN is only the first token"));
    assert!(session.ok(&["--help"]).contains("--as-operator"));
    // The switch leads out, on either side of the command; so does taking the name away.
    for arguments in [&["--as-operator", "whoami"][..], &["whoami", "--as-operator"]] {
        assert!(session.ok(arguments).starts_with("user at "), "{arguments:?}");
    }
    assert!(session.ok(&["agents", "--ids", "--as-operator"]).contains('a'));
    let mut outside = session.command(&["whoami"]);
    let outside = outside.env_remove("AGENT_RELAY_ID").output().expect("runs");
    assert!(String::from_utf8_lossy(&outside.stdout).starts_with("user at "));
}

#[test]
fn a_runner_inside_a_session_takes_nothing_of_it() {
    let machine = Machine::new("run-inside");
    let _hub = machine.hub();
    let mut parent = machine.command(BIN);
    let info = machine.work.join("parent.json");
    parent.env("AGENT_RELAY_RUNNER_INFO_FILE", &info).env("AGENT_RELAY_LABEL", "parents");
    let state = machine.home.join("demo").to_string_lossy().into_owned();
    parent.args(["run", "acp", "--agent-id", "a", "--", BIN, "demo-agent", "--state", &state]);
    let parent = parent
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let parent = Running { child: parent };
    wait_for("the parent", 60, || (machine.connected() == 1 && info.exists()).then_some(()));
    let before = std::fs::read_to_string(&info).expect("stands there");
    let session = wait_for("its provider", 60, || Session::below(&machine, parent.child.id()));
    let (token, first) = (session.token(), session.env["AGENT_RELAY_TOKEN"].clone());
    assert_eq!(token, first);

    let child = [
        "run",
        "acp",
        "--as-operator",
        "--agent-id",
        "b",
        "--",
        BIN,
        "demo-agent",
        "--state",
        &state,
    ];
    let refused: Vec<&str> =
        child.iter().copied().filter(|word| *word != "--as-operator").collect();
    session.fails(2, &refused);
    let child = session
        .command(&child)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut child = Running { child };
    wait_for("both agents", 60, || (machine.connected() == 2).then_some(()));
    let card: Value = serde_json::from_str(
        machine
            .ok(&["agents", "--json"])
            .lines()
            .find(|line| line.contains("\"id\":\"b\""))
            .expect("the child"),
    )
    .expect("JSON");
    assert_ne!(card["label"], "parents", "{card}");
    child.terminate();
    assert_eq!(child.wait(60).0, 0);
    // Nothing of the parent's was renewed, overwritten or removed.
    assert_eq!(std::fs::read_to_string(&info).expect("still there"), before);
    assert_eq!(session.token(), token);
    assert!(session.ok(&["whoami"]).starts_with("a at "));
    let renewed = machine
        .ok(&["token", "list", "--json"])
        .lines()
        .filter(|line| line.contains("renewedFrom"))
        .count();
    assert_eq!(renewed, 0, "nobody's token was renewed");
}

/// Root says something in another's name.
fn post(machine: &Machine, message: &Value) {
    let root = std::fs::read_to_string(machine.home.join("hub/root-token")).expect("root");
    let url = machine.config()["relayUrl"].as_str().expect("URL").to_string();
    let base = agent_relay::edge::http::Base::parse(&url).expect("URL");
    let http = agent_relay::edge::http::Http::new(base, std::time::Duration::from_secs(10));
    let root = agent_relay::secret::Secret::new(root.trim());
    let (status, body) = http.call("POST", "/api/messages", Some(message), &root).expect("answers");
    assert_eq!(status, 201, "{body}");
}

#[test]
fn a_number_of_two_hubs_is_no_number_to_answer() {
    let machine = Machine::new("two-numbers");
    let mut hub = machine.hub();
    let url = machine.config()["relayUrl"].clone();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let first = machine.send("a", "hello");
    machine.settle(&[first], 60);
    let session = Session::of(&machine, "a");
    assert!(
        session.fails(1, &["reply", "999", "x"]).contains("999"),
        "what is not there is not answered"
    );
    // Everything of the hub is thrown away: another one begins to count anew.
    hub.terminate();
    hub.wait(60);
    for name in ["hub", "hub-mark.json", "config.json"] {
        let path = machine.home.join(name);
        let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
    }
    std::fs::write(machine.home.join("config.json"), json!({"relayUrl": url}).to_string())
        .expect("config");
    let _hub = machine.hub();
    wait_for("the new relay", 90, || (machine.connected() == 1).then_some(()));
    let again = machine.send("a", "hello again");
    assert_eq!(again, first, "the same number");
    wait_for("its answer", 60, || machine.answered().get(&again).copied());
    let number = first.to_string();
    for arguments in
        [&["reply", &number, "x"][..], &["get-message", &number], &["react", &number, "ok"]]
    {
        let text = session.fails(1, arguments);
        assert_eq!(text.matches("one from user").count(), 2, "{text}");
    }
}

/// Another user, or a sandbox without network: an error with its reason, never another token.
#[test]
fn a_sandbox_or_another_user_is_told_why_and_speaks_as_nobody() {
    let works = |words: &[&str]| {
        Command::new(words[0])
            .args(&words[1..])
            .args(["true"])
            .output()
            .is_ok_and(|out| out.status.success())
    };
    let machine = Machine::new("sandbox");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    // Where it can be read by others, only the file of the token refuses them: not the way to it.
    let home = machine.home.clone();
    for folder in [
        home.clone(),
        home.join("agents"),
        session.token_file().parent().expect("a folder").to_path_buf(),
    ] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).expect("mode");
    }
    let rows: [(&[&str], i32, &str); 2] = [
        (
            &["unshare", "--user", "--map-current-user", "--net"],
            3,
            "its runner does not answer either",
        ),
        (&["setpriv", "--reuid", "65534", "--clear-groups"], 2, "relay token cannot be read"),
    ];
    // Whether these work is a matter of the machine's kernel and rights, which nothing can install.
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|(words, ..)| works(words));
    for (words, code, reason) in here {
        let said = |arguments: &[&str]| {
            let mut command = Command::new(words[0]);
            command
                .args(&words[1..])
                .arg(BIN)
                .args(arguments)
                .env_clear()
                .envs(&session.env)
                .stdin(Stdio::null())
                .current_dir("/");
            let output = command.output().expect("runs");
            assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
            (output.status.code(), String::from_utf8_lossy(&output.stderr).trim().to_string())
        };
        let (got, text) = said(&["send", "user", "x"]);
        assert!(got == Some(code) && text.contains(reason), "{words:?}: {got:?} {text}");
        let (got, text) = said(&["whoami"]);
        assert!(got == Some(code) && !text.contains("config.json"), "{words:?}: {got:?} {text}");
    }
    assert!(mail(&machine).is_empty(), "nothing was sent");
    if let Some((words, ..)) = elsewhere.first() {
        skip(&format!("{} is not possible here", words.join(" ")));
    }
}

/// After a restart somebody else may have the port that the session was started with.
#[test]
fn what_is_said_goes_to_the_own_runner_whoever_has_its_former_port() {
    let machine = Machine::new("former-port");
    let mut hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let mut session = Session::of(&machine, "a");
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = stranger.local_addr().expect("bound").port().to_string();
    session.env.insert("AGENT_RELAY_RUNNER_PORT".into(), port);
    hub.kill();
    assert_eq!(
        session.ok(&["send", "user", "for the person"]),
        "queued; sent when the relay is back"
    );
    stranger.set_nonblocking(true).expect("a listener");
    assert!(stranger.accept().is_err(), "the stranger was not even asked");
    let _hub = machine.hub();
    wait_mail(&machine, "for the person");
}

#[test]
fn a_session_finds_our_program() {
    let machine = Machine::new("found");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let pid = machine.status("a").pointer("/providerProcess/pid").and_then(Value::as_u64);
    let path = variable(pid.expect("a process") as u32, "PATH");
    let own = std::path::Path::new(BIN).parent().expect("a folder").display();
    assert_eq!(path, format!("/usr/bin:/bin:{own}"));
}

/// What is known of the runner's own token, and settings that a profile is isolated from, are not
/// the session's.
#[test]
fn a_session_has_only_variables_that_are_meant_for_it() {
    for (base, planted) in [("host", "planted"), ("isolated", "")] {
        let mut machine = Machine::new("variables");
        let _hub = machine.hub();
        let settings = machine.home.join("providers");
        std::fs::create_dir_all(&settings).expect("folder");
        let own = json!({"env": {"PLANTED": "planted", "EMPTY": "$env:NO_SUCH_VARIABLE"}});
        std::fs::write(settings.join("acp.json"), own.to_string()).expect("written");
        let profile = json!({"base": base}).to_string();
        machine.set("AGENT_RELAY_AGENT_PROFILE_JSON", &profile);
        machine.set("EMPTY", "inherited");
        let stale =
            ["AGENT_RELAY_TOKEN_JTI", "AGENT_RELAY_TOKEN_PROFILE", "AGENT_RELAY_TOKEN_EXPIRES_AT"];
        stale.iter().for_each(|name| machine.set(name, "stale"));
        let _runner = machine.runner("a");
        machine.wait_status("a", "idle");
        let pid = machine.status("a").pointer("/providerProcess/pid").and_then(Value::as_u64);
        let pid = pid.expect("a process") as u32;
        assert_eq!(variable(pid, "PLANTED"), planted, "{base}");
        assert_eq!(variable(pid, "EMPTY"), "inherited", "what is not set sets nothing");
        stale.iter().for_each(|name| assert_ne!(variable(pid, name), "stale", "{name}"));
        let said = machine.logs();
        assert!(said.contains("NO_SUCH_VARIABLE, which is not set"), "{said}");
        assert_eq!(said.contains("the profile is isolated"), base == "isolated", "{said}");
    }
}
