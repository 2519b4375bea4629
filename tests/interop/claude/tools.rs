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
        let mut session = Session::start("terminal", Hooks::All, json!({}));
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
