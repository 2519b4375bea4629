//! Tools inside an agent's session: they speak as that agent or not at all.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{BIN, Machine, Running, skip, wait_for};

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
fn before_the_first_token_tools_speak_through_the_runner_and_never_as_the_operator() {
    let machine = Machine::new("before-token");
    let mut runner = machine.runner("a");
    // The relay is away: after two seconds the provider starts without a token.
    let session = Session::of(&machine, "a");
    assert!(!session.env.contains_key("AGENT_RELAY_TOKEN") && session.token().is_empty());
    // A person's token lies there all the same, and is not touched.
    std::fs::write(machine.home.join("config.json"), json!({"token": "a-persons"}).to_string())
        .expect("config");
    assert!(session.ok(&["whoami"]).starts_with("a at "), "it knows its name");
    let queued = "queued; sent when the relay is back";
    assert_eq!(session.ok(&["send", "user", "said", "early"]), queued);
    let answer: Value =
        serde_json::from_str(&session.ok(&["send", "user", "--json", "--key", "k", "under a key"]))
            .expect("JSON");
    assert_eq!(answer, json!({"queued": true, "key": "k"}));
    for arguments in [
        &["inbox"][..],
        &["thread", "1"],
        &["send", "user", "--wait", "1", "x"],
        &["send", "user", "--task", "x"],
        &["tasks"],
    ] {
        let text = session.fails(3, arguments);
        assert!(
            !text.contains("config.json") && !text.contains("AGENT_RELAY_TOKEN"),
            "{arguments:?}: {text}"
        );
    }
    std::fs::remove_file(machine.home.join("config.json")).expect("removes");

    let _hub = machine.hub();
    machine.wait_status("a", "idle");
    for body in ["said early", "under a key"] {
        let message = wait_mail(&machine, body);
        assert_eq!(message["from"], "a");
    }
    // From now on there is a token, and only its owner reads it.
    wait_for("the token", 60, || (!session.token().is_empty()).then_some(()));
    let mode = std::fs::metadata(session.token_file()).expect("stands there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let who: Value = serde_json::from_str(&session.ok(&["whoami", "--json"])).expect("JSON");
    assert_eq!(
        (who["id"].as_str(), who["token"]["profileId"].as_str()),
        (Some("a"), Some("provider-agent"))
    );
    assert!(session.ok(&["send", "user", "said", "late"]).starts_with("message #"));
    assert_eq!(wait_mail(&machine, "said late")["from"], "a");
    assert_eq!(mail(&machine).iter().filter(|message| message["body"] == "under a key").count(), 1);
    runner.terminate();
    assert_eq!(runner.wait(60).0, 0);
    assert!(!session.token_file().exists(), "removed at an orderly end");
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
    assert!(session.fails(3, &["reply", "999", "to nobody"]).contains("away"));
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
fn over_many_renewals_tools_have_the_newest_token() {
    let mut machine = Machine::new("renewals");
    let _hub = machine.hub();
    // Short enough that it is renewed about once a second; a line has only the newest two.
    let made: Value = serde_json::from_str(
        &machine.ok(&["token", "create", "--agent", "a", "--ttl", "61", "--json"]),
    )
    .expect("JSON");
    let first = made["token"].as_str().expect("token").to_string();
    machine.set("AGENT_RELAY_TOKEN", &first);
    let _runner = machine.runner("a");
    machine.set("AGENT_RELAY_TOKEN", "");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    assert_eq!(session.env["AGENT_RELAY_TOKEN"], first);
    let mut seen = std::collections::BTreeSet::from([first.clone()]);
    while seen.len() < 5 {
        wait_for("the next token", 60, || seen.insert(session.token()).then_some(()));
        let said = format!("with token {}", seen.len());
        assert!(session.ok(&["send", "user", &said]).starts_with("message #"));
        assert_eq!(wait_mail(&machine, &said)["from"], "a");
    }
    // The first one has died long ago; whoever has only that is told nothing about other people's
    // tokens.
    let mut old = session.command(&["inbox"]);
    let old = old.env_remove("AGENT_RELAY_TOKEN_FILE").output().expect("runs");
    let text = String::from_utf8_lossy(&old.stderr).into_owned();
    assert!(old.status.code() == Some(3) && !text.contains("config.json"), "{text}");
}

#[test]
fn a_token_file_that_cannot_be_read_is_an_error_and_no_other_token_is_used() {
    let machine = Machine::new("unreadable");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let mut session = Session::of(&machine, "a");
    // A folder in its place refuses root as well; and where the folder is not, this is another
    // place.
    let folder = machine.work.join("folder");
    std::fs::create_dir_all(&folder).expect("makes");
    for path in [folder, machine.work.join("not-here/relay-token")] {
        session.env.insert("AGENT_RELAY_TOKEN_FILE".into(), path.to_string_lossy().into_owned());
        for arguments in [&["whoami"][..], &["send", "user", "x"], &["reply", "1", "x"], &["inbox"]]
        {
            let text = session.fails(2, arguments);
            assert!(text.contains("relay token cannot be read"), "{arguments:?}: {text}");
        }
    }
    assert!(mail(&machine).is_empty(), "nothing was sent");
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

#[test]
fn a_token_of_somebody_else_ends_the_start_with_the_way_to_a_right_one() {
    let mut machine = Machine::new("foreign-token");
    let _hub = machine.hub();
    for (options, words) in [
        (&["--agent", "b"][..], "a token of the agent b"),
        (
            &["--profile", "operator", "--scopes", "message:read,agent:self"],
            "a token of the profile operator",
        ),
    ] {
        let made: Value =
            serde_json::from_str(&machine.ok(&[&["token", "create", "--json"], options].concat()))
                .expect("JSON");
        machine.set("AGENT_RELAY_TOKEN", made["token"].as_str().expect("token"));
        for said in ["", "provider-agent"] {
            machine.set("AGENT_RELAY_TOKEN_PROFILE", said);
            let mut runner = machine.runner("a");
            let (code, text) = runner.wait(60);
            assert_eq!(code, 2, "{text}");
            assert!(
                text.contains(words) && text.contains("agent-relay token create --agent a"),
                "{text}"
            );
        }
        machine.set("AGENT_RELAY_TOKEN", "");
        machine.set("AGENT_RELAY_TOKEN_PROFILE", "");
    }
    let renewed = machine
        .ok(&["token", "list", "--json"])
        .lines()
        .filter(|line| line.contains("renewedFrom"))
        .count();
    assert_eq!(renewed, 0, "what may not register is never renewed");
    assert_eq!(machine.connected(), 0);
    // Its own one is handed on, and what was known of it is not: that says nothing about the next
    // one.
    let made: Value =
        serde_json::from_str(&machine.ok(&["token", "create", "--agent", "a", "--json"]))
            .expect("JSON");
    machine.set("AGENT_RELAY_TOKEN", made["token"].as_str().expect("token"));
    for (name, value) in [("PROFILE", "provider-agent"), ("JTI", "j"), ("EXPIRES_AT", "1")] {
        machine.set(&format!("AGENT_RELAY_TOKEN_{name}"), value);
    }
    let _runner = machine.runner("a");
    machine.set("AGENT_RELAY_TOKEN", "");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    assert_eq!(session.env["AGENT_RELAY_TOKEN"], made["token"].as_str().expect("token"));
    let stale: Vec<&String> = session
        .env
        .keys()
        .filter(|name| name.starts_with("AGENT_RELAY_TOKEN_") && !name.ends_with("_FILE"))
        .collect();
    assert!(stale.is_empty(), "{stale:?}");
}

#[test]
fn a_replacement_is_handed_over_at_the_control_port() {
    let machine = Machine::new("handed-over");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let session = Session::of(&machine, "a");
    let put = |token: &str| {
        let base = agent_relay::edge::http::Base::parse(&format!(
            "http://127.0.0.1:{}",
            session.env["AGENT_RELAY_RUNNER_PORT"]
        ))
        .expect("URL");
        let http = agent_relay::edge::http::Http::new(base, std::time::Duration::from_secs(10));
        let control =
            agent_relay::secret::Secret::new(session.env["AGENT_RELAY_RUNNER_TOKEN"].clone());
        http.call_bearer("PUT", "/token", Some(&json!({"token": token})), &control)
            .expect("answers")
            .0
    };
    let make = |options: &[&str]| {
        let made: Value =
            serde_json::from_str(&machine.ok(&[&["token", "create", "--json"], options].concat()))
                .expect("JSON");
        made["token"].as_str().expect("token").to_string()
    };
    let before = session.token();
    assert_eq!(put("unknown"), 401);
    assert_eq!(put(&make(&["--agent", "b"])), 403);
    assert_eq!(put(&make(&["--profile", "operator"])), 403);
    assert_eq!(session.token(), before);
    let fresh = make(&["--agent", "a"]);
    assert_eq!(put(&fresh), 200);
    wait_for("the new token in the file", 60, || (session.token() == fresh).then_some(()));
    machine.wait_status("a", "idle");
    assert!(session.ok(&["whoami"]).starts_with("a at "));
}

#[test]
fn a_token_of_a_script_has_a_mailbox_and_hears_only_whom_it_asked() {
    let machine = Machine::new("script");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let made: Value =
        serde_json::from_str(&machine.ok(&["token", "create", "--agent", "ci", "--json"]))
            .expect("JSON");
    let token = made["token"].as_str().expect("token").to_string();
    let script = |arguments: &[&str]| {
        machine
            .command(BIN)
            .env("AGENT_RELAY_TOKEN", &token)
            .args(arguments)
            .output()
            .expect("runs")
    };
    let asked = script(&["send", "a", "--wait", "20", "is it green?"]);
    let (out, said) = (
        String::from_utf8_lossy(&asked.stdout).into_owned(),
        String::from_utf8_lossy(&asked.stderr).into_owned(),
    );
    assert_eq!(out.trim(), "You wrote: is it green?", "{said}");
    assert!(said.contains("from a"), "who speaks: {said}");
    // Another one, without waiting: it stands in the script's own inbox.
    assert!(script(&["send", "a", "and now?"]).status.success());
    let stands = |words: &str| {
        let text = String::from_utf8_lossy(&script(&["inbox", "--all"]).stdout).into_owned();
        text.contains(words).then_some(text)
    };
    wait_for("the answer", 60, || stands("You wrote: and now?"));
    // Somebody else names the message: that is no answer of whom was asked.
    let runner = machine.runner_with("b", &[], &[]);
    wait_for("both agents", 60, || (machine.connected() == 2).then_some(()));
    let newest = || machine.delivered().keys().copied().max();
    let before = newest();
    let mut waits = machine.command(BIN);
    waits.args(["send", "a", "--wait", "3", "--json", "hang"]);
    let waits = waits
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let id = wait_for("the question", 60, || newest().filter(|_| newest() > before));
    let forged: Value = json!({"from": "b", "to": "user", "body": "forged", "replyTo": id, "payload": {"answers": [id]}});
    post(&machine, &forged);
    let output = waits.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("forged"));
    // One that says itself that it is no answer is printed and is none.
    let mut waits = machine.command(BIN);
    waits.args(["send", "b", "--wait", "30", "hang"]);
    let waits = waits
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let id = wait_for("the question", 60, || newest().filter(|newest| *newest > id));
    post(
        &machine,
        &json!({"from": "b", "to": "user", "body": "not today", "replyTo": id, "payload": {"answered": false}}),
    );
    let output = waits.wait_with_output().expect("ends");
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stdout).trim()),
        (Some(1), "not today")
    );
    drop(runner);
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

/// A token of somebody else in the place of the session's own: nothing is said with it, not even by
/// root's.
#[test]
fn a_token_of_somebody_else_in_the_place_of_ones_own_is_not_used() {
    let machine = Machine::new("foreign-file");
    let _hub = machine.hub();
    let _runner = machine.runner("a");
    machine.wait_status("a", "idle");
    let mut session = Session::of(&machine, "a");
    let (other, fifo, link) =
        (machine.work.join("other"), machine.work.join("fifo"), machine.work.join("link"));
    std::os::unix::fs::symlink(session.token_file(), &link).expect("links");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("runs").success());
    let foreign = machine.ok(&["token", "create", "--agent", "c"]);
    for token in [foreign.as_str(), machine.config()["token"].as_str().expect("an operator's")] {
        std::fs::write(&other, token).expect("writes");
        session.env.insert("AGENT_RELAY_TOKEN_FILE".into(), other.to_string_lossy().into_owned());
        assert!(session.fails(2, &["send", "user", "x"]).contains("not as a"));
        assert!(session.fails(2, &["whoami"]).contains("this is the session of a"));
    }
    // Neither a link nor what keeps its reader waiting is a file of ours.
    for path in [&link, &fifo] {
        session.env.insert("AGENT_RELAY_TOKEN_FILE".into(), path.to_string_lossy().into_owned());
        assert!(session.fails(2, &["send", "user", "x"]).contains("relay token cannot be read"));
    }
    assert!(mail(&machine).is_empty(), "nothing was sent");
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
