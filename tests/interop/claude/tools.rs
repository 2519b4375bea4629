//! Tools of ours that the agent calls itself.

use super::*;

/// Where the agent answers itself, its Stop hook holds it back once for what it owes.
#[test]
#[ignore = "make interop runs it"]
fn claude_answers_itself_when_it_is_to() {
    for transport in ["stream", "tmux"] {
        let session = Session::start(transport, Hooks::Explicit, json!({}));
        let id = session.machine.send("a", "MARK-OWED");
        let approval = session.approval();
        assert!(
            approval["title"].as_str().is_some_and(|title| title.contains(&format!("reply {id}"))),
            "{approval}"
        );
        session.machine.ok(&["approvals", "approve", approval["approvalId"].as_str().expect("id")]);
        assert_eq!(session.answer_of(id), "my-own-answer");
        session.wait("idle");
        once(&session, "MARK-OWED");
        let inbox = session.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
        assert_eq!(
            inbox.lines().filter(|line| line.contains("\"replyTo\"")).count(),
            1,
            "the runner adds none: {inbox}"
        );
        session.end();
    }
}

/// The tools of a session speak as its agent: long after the token that it was started with has
/// ended, and while the relay is away.
#[test]
#[ignore = "make interop runs it"]
fn claude_tools_speak_as_the_agent_over_renewals_and_outages() {
    for transport in ["stream", "tmux"] {
        let mut session = Session::prepared("terminal", Hooks::All, json!({}));
        session.transport = transport;
        let first = run_with_short_token(&mut session);
        session.wait("idle");
        let who = |session: &Session| -> Vec<Value> {
            let text =
                std::fs::read_to_string(session.machine.work.join("who.txt")).unwrap_or_default();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        };
        session.asks("MARK-EARLY WHOAMI");
        let jti = |at: usize| {
            who(&session)[at]
                .pointer("/token/jti")
                .and_then(Value::as_str)
                .expect("a token")
                .to_string()
        };
        let used = jti(0);
        session.waits("the end of the token that was used", || {
            (!session.machine.ok(&["token", "list"]).contains(&used)).then_some(())
        });
        let mut asked = session.machine.command(crate::support::BIN);
        assert!(
            !asked
                .args(["whoami"])
                .env("AGENT_RELAY_TOKEN", &first)
                .output()
                .expect("runs")
                .status
                .success(),
            "nor does the first"
        );
        session.asks("MARK-LATER WHOAMI");
        let seen = who(&session);
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(
            seen.iter()
                .all(|who| who["id"] == "a" && who["token"]["profileId"] == "provider-agent"),
            "{seen:?}"
        );
        assert_ne!(used, jti(1), "with a newer token");
        let id = session.machine.send("a", "MARK-AWAY LATE");
        session.waits("the tool", || session.machine.work.join("waiting").exists().then_some(()));
        session.hub = None;
        std::fs::write(session.machine.work.join("go"), "").expect("writes");
        let said = session.waits("the tool to have spoken", || {
            std::fs::read_to_string(session.machine.work.join("late.txt"))
                .ok()
                .filter(|text| text.ends_with('\n'))
        });
        assert!(said.contains("queued"), "{said}");
        session.hub = Some(session.machine.hub());
        session.settled(&[id]);
        let late = || {
            session
                .machine
                .ok(&["inbox", "--all", "--json", "--limit", "1000"])
                .matches("late-words")
                .count()
        };
        session.waits("the words", || (late() > 0).then_some(()));
        assert_eq!(late(), 1);
        session.end();
    }
}

/// Starts the runner with a token that ends soon; that token.
fn run_with_short_token(session: &mut Session) -> String {
    session.machine.set("IS_SANDBOX", "1");
    let first = session.machine.ok(&["token", "create", "--agent", "a", "--ttl", "12"]);
    let mut command = session.machine.command(crate::support::BIN);
    command.args([
        "run",
        "claude",
        "--headless",
        "--transport",
        session.transport,
        "--agent-id",
        "a",
        "--approval",
        "open",
    ]);
    let child = command
        .env("AGENT_RELAY_TOKEN", &first)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null());
    session.runner = Some(Running {
        child: child.stderr(std::process::Stdio::piped()).spawn().expect("starts"),
    });
    first
}

/// The result of the newest tool, as the model saw it.
fn newest_result(session: &Session) -> String {
    let asked = session.model.asked();
    let all = asked.iter().rev().flat_map(|asked| {
        asked.body["messages"].as_array().cloned().unwrap_or_default().into_iter().rev()
    });
    let blocks = all.flat_map(|message| message["content"].as_array().cloned().unwrap_or_default());
    let mut results = blocks.filter(|block| block["type"] == "tool_result");
    results.next().map(|block| block["content"].to_string()).unwrap_or_default()
}

/// Reading and answering runs unasked and finds our program; whatever else a command could do is
/// asked.
#[test]
#[ignore = "make interop runs it"]
fn claude_reads_and_answers_unasked_and_asks_for_all_else() {
    for transport in ["stream", "tmux"] {
        let session = Session::start(transport, Hooks::All, json!({}));
        let long = format!("MARK-LONG {} the-end", "word ".repeat(18_000));
        let first = session.machine.send("a", &long);
        session.answer_of(first);
        let seen = session.model.texts_with("MARK-LONG");
        assert!(seen.iter().all(|text| text.contains("the-end")), "it came whole");
        session.send_as("b", &long.replace("MARK-LONG", "MARK-OTHER"));
        session.wait_asked("MARK-OTHER");
        let seen = session.model.texts_with("MARK-OTHER");
        assert!(seen.iter().all(|text| text.contains("the-end")), "from another agent too");
        session.wait("idle");

        let run = |number: usize, command: &str| {
            session.machine.send("a", &format!("MARK-{number} RUN {}", json!(command)))
        };
        let reply = format!("agent-relay reply {first} --stdin <<'END'\n$(id) is not run\nEND");
        let allowed = [
            (format!("agent-relay get-message {first}"), "MARK-LONG"),
            (format!("agent-relay thread {first} --json"), "MARK-LONG"),
            ("agent-relay inbox --all --limit 1".to_string(), ""),
            ("agent-relay whoami".to_string(), "a"),
            ("agent-relay guide".to_string(), "agent-relay"),
            ("agent-relay status a".to_string(), "busy"),
            (format!("agent-relay react {first} ok"), ""),
            (reply, ""),
        ];
        for (number, (command, says)) in allowed.iter().enumerate() {
            let id = run(number, command);
            // Nobody permits anything: an answer means that nobody was asked.
            session.answer_of(id);
            let result = newest_result(&session);
            assert!(result.contains(says) && !result.contains("not found"), "{command}: {result}");
        }
        let inbox = session.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
        assert!(inbox.contains("$(id) is not run"), "{inbox}");

        let secret = session.machine.work.join("secret.txt");
        std::fs::write(&secret, "secret-words").expect("written");
        let secret = secret.display();
        let asked = [
            format!("agent-relay reply {first} --file {secret}"),
            format!("agent-relay reply {first} --stdin < {secret}"),
            format!("agent-relay reply {first} --stdin <<END\n$(cat {secret})\nEND"),
            format!("cat {secret} | agent-relay reply {first} --stdin"),
            format!("agent-relay get-message {first}; rm {secret}"),
            format!("agent-relay get-message {first} | sh"),
            format!("agent-relay get-message $(rm {secret})"),
            "agent-relay send user secret-words".to_string(),
            "agent-relay status".to_string(),
        ];
        for (number, command) in asked.iter().enumerate() {
            let id = run(100 + number, command);
            let approval = session.approval();
            let approval_id = approval["approvalId"].as_str().expect("id").to_string();
            assert!(approval["input"]["command"] == *command, "{approval}");
            session.machine.ok(&["approvals", "deny", &approval_id]);
            session.answer_of(id);
        }
        let inbox = session.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
        assert!(!inbox.contains("\"secret-words"), "{inbox}");
        assert!(session.machine.work.join("secret.txt").exists());
        session.end();
    }
}
