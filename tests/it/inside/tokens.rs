//! As whom tools speak: which token they find, and which they leave.

use super::*;

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
fn over_many_renewals_tools_have_the_newest_token() {
    let mut machine = Machine::new("renewals");
    let _hub = machine.hub();
    // Short enough that it is renewed every 5 to 10 s; a line has only the newest two.
    let made: Value = serde_json::from_str(
        &machine.ok(&["token", "create", "--agent", "a", "--ttl", "20", "--json"]),
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
    machine.ok(&["label", "a", "builder"]);
    // Who speaks is told where that is not whom was asked by name.
    for (to, is_told) in [("a", false), ("label:builder", true)] {
        let asked = script(&["send", to, "--wait", "20", "is it green?"]);
        let (out, said) = (
            String::from_utf8_lossy(&asked.stdout).into_owned(),
            String::from_utf8_lossy(&asked.stderr).into_owned(),
        );
        assert_eq!(out.trim(), "You wrote: is it green?", "{said}");
        assert_eq!(said.contains("from a"), is_told, "who speaks: {said}");
    }
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
    let waiting = |arguments: &[&str]| {
        let mut command = machine.command(BIN);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().expect("starts")
    };
    let waits = waiting(&["send", "a", "--wait", "3", "--json", "hang"]);
    let id = wait_for("the question", 60, || newest().filter(|_| newest() > before));
    let forged: Value = json!({"from": "b", "to": "user", "body": "forged", "replyTo": id, "payload": {"answers": [id]}});
    post(&machine, &forged);
    let output = waits.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("forged"));
    // One that says itself that it is no answer is printed and is none.
    let waits = waiting(&["send", "b", "--wait", "30", "hang"]);
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
