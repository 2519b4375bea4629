//! Permission modes, and a person at his own terminal.

use super::*;

/// In a person's own terminal (a tmux that is not the runner's): messages come by the socket, what
/// is typed is the person's, and `/exit` ends the runner too.
#[test]
#[ignore = "make interop runs it"]
fn claude_in_a_persons_terminal() {
    let session = Session::prepared("terminal", Hooks::All, json!({}));
    let personal = |words: &[&str]| {
        let output = session
            .machine
            .command("tmux")
            .args(["-L", "personal", "-f", "/dev/null"])
            .args(words)
            .output()
            .expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let code = session.machine.home.join("code");
    let run =
        format!("{} run claude --agent-id a; echo $? >{}", crate::support::BIN, code.display());
    personal(&["new-session", "-d", "-x", "160", "-y", "45", &run]);
    session.wait("idle");
    assert!(session.asks("MARK-ONE").starts_with("Heard:"));
    once(&session, "MARK-ONE");
    session.send_as("helper", "MARK-PEER");
    session.wait_asked("MARK-PEER");
    session.wait("idle");
    let pane = || personal(&["capture-pane", "-p"]);
    assert!(!pane().contains("agent-relay:"), "the runner writes nothing there: {}", pane());
    personal(&["send-keys", "-l", "MARK-TYPED by hand"]);
    personal(&["send-keys", "Enter"]);
    session.wait_asked("MARK-TYPED");
    session.wait("idle");
    let id = session.machine.send("a", "MARK-ASKS TOOL");
    let approval = session.approval();
    session.machine.ok(&["approvals", "approve", approval["approvalId"].as_str().expect("id")]);
    session.answer_of(id);
    session.wait("idle");
    let refused = session.machine.run(&["command", "a", "compact"]);
    assert!(
        String::from_utf8_lossy(&refused.stdout).contains("does not support compact"),
        "{refused:?}"
    );
    personal(&["send-keys", "-l", "/exit"]);
    personal(&["send-keys", "Enter"]);
    let ended = wait_for("the end of the runner", 30, || {
        std::fs::read_to_string(&code).ok().filter(|text| text.ends_with('\n'))
    });
    assert_eq!(ended.trim(), "0", "{}", session.machine.logs());
    personal(&["kill-server"]);
}

/// Nobody is asked in open mode (as root it must be said that this is a sandbox), and an urgent
/// message joins the turn that runs.
#[test]
#[ignore = "make interop runs it"]
fn claude_in_open_mode() {
    for transport in ["stream", "tmux"] {
        let mut session = Session::prepared("terminal", Hooks::All, json!({}));
        session.transport = transport;
        let arguments = [
            "run",
            "claude",
            "--headless",
            "--transport",
            transport,
            "--agent-id",
            "a",
            "--approval",
            "open",
        ];
        let refused = session.machine.run(&arguments);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        if rustix::process::geteuid().is_root() {
            assert!(
                refused.status.code() == Some(1) && told.contains("IS_SANDBOX=1"),
                "{refused:?}"
            );
        }
        session.machine.set("IS_SANDBOX", "1");
        session.runner = Some(session.machine.start(&arguments));
        session.wait("idle");
        let slow = session.machine.send("a", "MARK-NAP NAP");
        session.waits("the tool", || session.machine.work.join("napping").exists().then_some(()));
        let sent = session.machine.ok(&["send", "a", "--urgent", "--json", "MARK-URGENT"]);
        let urgent =
            serde_json::from_str::<Value>(&sent).expect("JSON")["id"].as_u64().expect("an id");
        session.settled(&[slow, urgent]);
        session.wait("idle");
        once(&session, "MARK-NAP");
        once(&session, "MARK-URGENT");
        let asked = session.model.asked();
        let first = asked
            .iter()
            .find(|asked| asked.body.to_string().contains("MARK-URGENT"))
            .expect("asked");
        assert!(
            !first.body.to_string().contains("Heard:"),
            "it did not wait for the end of the turn"
        );
        let heard = session.asks("MARK-FREE TOOL");
        assert!(heard.contains("MARK-FREE"), "{heard}");
        assert!(session.machine.work.join("made.txt").exists(), "done without a question");
        session.end();
    }
}

/// Read-only: what would ask is refused, in the terminal too, and the next message has its turn.
#[test]
#[ignore = "make interop runs it"]
fn claude_in_read_only_mode() {
    for transport in ["stream", "tmux"] {
        let mut session = Session::prepared("terminal", Hooks::All, json!({}));
        session.transport = transport;
        let arguments = [
            "run",
            "claude",
            "--headless",
            "--transport",
            transport,
            "--agent-id",
            "a",
            "--approval",
            "read-only",
        ];
        session.runner = Some(session.machine.start(&arguments));
        session.wait("idle");
        for mark in ["MARK-LOOK", "MARK-AGAIN"] {
            let heard = session.asks(&format!("{mark} TOOL"));
            assert!(heard.contains(mark), "{heard}");
            once(&session, mark);
        }
        session.wait("idle");
        assert!(!session.machine.work.join("made.txt").exists(), "nothing is done");
        session.end();
    }
}
