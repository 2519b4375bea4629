//! The steps of the story that every transport goes through.

use super::*;

pub fn talks(session: &Session) {
    let heard = session.asks("MARK-ONE hello");
    assert!(heard.contains("Heard:") && heard.contains("MARK-ONE"), "{heard}");
    once(session, "MARK-ONE");
    session.wait("idle");
}

pub fn asks_before_it_acts(session: &Session) {
    let made = session.machine.work.join("made.txt");
    let id = session.machine.send("a", "MARK-DENY TOOL");
    let approval = session.approval();
    assert_eq!(approval["tool"], "Bash", "{approval}");
    assert_eq!(session.machine.status("a")["status"], "blocked");
    session.machine.ok(&["approvals", "deny", approval["approvalId"].as_str().expect("id")]);
    session.answer_of(id);
    assert!(!made.exists(), "what was denied was not done");
    let id = session.machine.send("a", "MARK-ALLOW TOOL");
    let approval = session.approval();
    assert!(!made.exists(), "nothing is done before the answer");
    session.machine.ok(&["approvals", "approve", approval["approvalId"].as_str().expect("id")]);
    assert!(session.answer_of(id).contains("MARK-ALLOW"));
    assert_eq!(std::fs::read_to_string(&made).expect("the command ran"), "hi\n");
    session.wait("idle");
    assert!(
        session.machine.ok(&["approvals", "--json"]).trim().is_empty(),
        "nothing is open any more"
    );
}

/// What is approved for the session is not asked again; anything else is.
pub fn remembers_for_the_session(session: &Session) {
    let folder = session.machine.work.display().to_string();
    let (one, two) = (format!("WRITE {folder}/one.txt"), format!("WRITE {folder}/two.txt"));
    for (mark, word) in [("MARK-SESSION", "MAKE"), ("MARK-WRITES", one.as_str())] {
        let id = session.machine.send("a", &format!("{mark}A {word}"));
        let approval = session.approval();
        session.machine.ok(&[
            "approvals",
            "approve-session",
            approval["approvalId"].as_str().expect("id"),
        ]);
        session.answer_of(id);
        session.wait("idle");
        // It would stand blocked for ever if it asked.
        assert!(session.asks(&format!("{mark}B {word}")).contains(mark));
        session.wait("idle");
    }
    let id = session.machine.send("a", &format!("MARK-OTHER {two}"));
    let approval = session.approval();
    assert!(
        approval["title"].as_str().is_some_and(|title| title.contains("two.txt")),
        "{approval}"
    );
    session.machine.ok(&["approvals", "deny", approval["approvalId"].as_str().expect("id")]);
    session.answer_of(id);
    session.wait("idle");
    let read = |name: &str| std::fs::read_to_string(session.machine.work.join(name)).ok();
    assert!(
        read("one.txt").is_some_and(|text| text.contains("MARK-WRITESB"))
            && read("two.txt").is_none()
    );
}

pub fn answers_questions(session: &Session) {
    let id = session.machine.send("a", "MARK-ASK ASK");
    let approval = session.approval();
    assert_eq!(
        (approval["kind"].as_str(), approval["questions"][0]["question"].as_str()),
        (Some("question"), Some("Which colour?"))
    );
    let refused = session.machine.run(&[
        "approvals",
        "approve",
        approval["approvalId"].as_str().expect("id"),
    ]);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stdout).contains("--answer"),
        "{refused:?}"
    );
    session.machine.ok(&[
        "approvals",
        "approve",
        approval["approvalId"].as_str().expect("id"),
        "--answer",
        "Blue",
    ]);
    session.answer_of(id);
    let told = session
        .model
        .asked()
        .iter()
        .any(|asked| asked.body.to_string().contains("\\\"Which colour?\\\"=\\\"Blue\\\""));
    assert!(told, "the model heard the answer");
    session.wait("idle");
}

pub fn is_interrupted(session: &Session) {
    for (mark, word) in [("MARK-STOP", "HANG"), ("MARK-MUTE", "MUTE")] {
        let id = session.machine.send("a", &format!("{mark} {word}"));
        session.wait_asked(mark);
        session.wait("busy");
        session.machine.ok(&["command", "a", "interrupt"]);
        session.wait("idle");
        session.answer_of(id);
    }
    let heard = session.asks("MARK-NEXT after the interrupts");
    assert!(heard.contains("MARK-NEXT"), "{heard}");
    for mark in ["MARK-NEXT", "MARK-STOP", "MARK-MUTE"] {
        once(session, mark);
    }
}

pub fn tells_errors(session: &Session) {
    let heard = session.asks("MARK-ERR ERR400");
    assert!(heard.contains("the model says no"), "{heard}");
    session.wait("idle");
    assert!(session.asks("MARK-BUSY ERR529").contains("MARK-BUSY"));
    assert!(session.asks("MARK-WELL").contains("MARK-WELL"));
}

pub fn is_compacted_and_cleared(session: &Session) {
    session.machine.ok(&[
        "command",
        "a",
        "compact",
        "--params",
        r#"{"instructions": "keep the names"}"#,
    ]);
    session.wait("idle");
    assert!(session.asks("MARK-AFTER-COMPACT").contains("MARK-AFTER-COMPACT"));
    let before = session.machine.status("a").pointer("/providerProcess/session").cloned();
    session.machine.ok(&["command", "a", "clearContext"]);
    session.wait("idle");
    let after = session.machine.status("a").pointer("/providerProcess/session").cloned();
    assert_ne!(before, after, "a cleared session has another id");
    assert!(session.asks("MARK-AFTER-CLEAR").contains("MARK-AFTER-CLEAR"));
    let last = session.model.asked().last().map(|asked| asked.body.to_string()).unwrap_or_default();
    assert!(!last.contains("MARK-ONE"), "what was cleared is gone");
    if session.transport != "tmux" {
        return;
    }
    // A person goes back to what was cleared: the session is the old one again, and is heard and
    // reached there.
    let old = before.and_then(|before| before.as_str().map(str::to_string)).expect("an id");
    session.keys(&["-l", &format!("/resume {old}")]);
    session.keys(&["Enter"]);
    session.waits("the old session", || {
        let now = session.machine.status("a").pointer("/providerProcess/session").cloned();
        (now.as_ref().and_then(Value::as_str) == Some(old.as_str())).then_some(())
    });
    session.wait("idle");
    assert!(session.asks("MARK-BACK").contains("MARK-BACK"));
    let last = session.model.asked().last().map(|asked| asked.body.to_string()).unwrap_or_default();
    assert!(
        last.contains("MARK-AFTER-COMPACT") && !last.contains("MARK-AFTER-CLEAR"),
        "it is the conversation before"
    );
    once(session, "MARK-BACK");
}

pub fn survives_kills(session: &mut Session) {
    for mark in ["MARK-KILLA", "MARK-KILLB"] {
        let id = session.machine.send("a", &format!("{mark} HANG"));
        session.wait_asked(mark);
        if mark == "MARK-KILLB" {
            pause(400); // the other side of the moment in which the program writes it down
        }
        session.kill_provider();
        let heard = session.answer_of(id);
        assert!(heard.contains("Heard:"), "{mark}: {heard}\n{}", session.machine.logs());
        session.wait("idle");
        once(session, mark);
    }
    let id = session.machine.send("a", "MARK-RUNNER HANG");
    session.wait_asked("MARK-RUNNER");
    session.kill_runner();
    session.run();
    session.answer_of(id);
    session.wait("idle");
    once(session, "MARK-RUNNER");
}

pub fn tells_people_from_agents(session: &Session) {
    let id = session.machine.send("a", "MARK-PERSON hello");
    session.answer_of(id);
    session.send_as("helper", "MARK-PEER hello");
    session.wait_asked("MARK-PEER");
    session.wait("idle");
    once(session, "MARK-PERSON");
    once(session, "MARK-PEER");
    let framed = |mark: &str| {
        session.model.texts_with(mark).iter().all(|text| text.contains("Another Claude session"))
    };
    assert!(!framed("MARK-PERSON"), "a person's word stands bare");
    if session.transport == "tmux" {
        assert!(framed("MARK-PEER"), "{:?}", session.model.texts_with("MARK-PEER"));
    }
}

pub fn has_subagents(session: &Session) {
    let id = session.machine.send("a", "MARK-AGENT AGENT");
    session.waits("a subagent at work", || {
        let work = session.machine.status("a")["work"].clone();
        work.as_array()
            .is_some_and(|work| work.iter().any(|item| item["kind"] == "subagent"))
            .then_some(())
    });
    session.answer_of(id);
    session.wait("idle");
    assert_eq!(session.machine.status("a")["work"], json!([]));
}

/// What only a terminal has.
pub fn is_typed_at(session: &Session) {
    // Escape at the terminal: no hook tells.
    let id = session.machine.send("a", "MARK-ESC SLOW");
    session.wait_asked("MARK-ESC");
    session.wait("busy");
    pause(500);
    session.keys(&["Escape"]);
    session.wait("idle");
    session.answer_of(id);
    // A draft stays a person's own.
    session.keys(&["-l", "a draft of mine"]);
    session.waits("the draft", || session.screen().contains("a draft of mine").then_some(()));
    assert!(session.asks("MARK-DRAFT is delivered").contains("MARK-DRAFT"));
    session.waits("the draft again", || session.screen().contains("a draft of mine").then_some(()));
    assert!(
        session
            .model
            .asked()
            .iter()
            .all(|asked| !asked.body.to_string().contains("a draft of mine"))
    );
    session.keys(&["C-u"]);
    is_looked_on(session);
    mirrors_what_is_typed(session);
    // Signs that have a meaning at the beginning, and a long text.
    for text in ["/exit MARK-SLASH", "!ls MARK-BANG", "@x MARK-AT"] {
        let mark = text.split(' ').next_back().expect("a mark");
        assert!(session.asks(text).contains(mark), "{text}");
        once(session, mark);
    }
    let long = format!(
        "MARK-LONG {}\nend \u{1f600} \u{5e9}\u{5dc}\u{5d5}\u{5dd}",
        "zeile \u{e4}\u{f6}\n".repeat(300)
    );
    session.asks(&long);
    once(session, "MARK-LONG");
}

fn mirrors_what_is_typed(session: &Session) {
    // A prompt that is typed is mirrored, and is nobody's message.
    session.keys(&["-l", "MARK-TYPED by hand"]);
    session.keys(&["Enter"]);
    session.wait_asked("MARK-TYPED");
    session.wait("idle");
    session.waits("its mirror", || {
        let inbox =
            session.machine.ok(&["inbox", "--all", "--mirror", "--json", "--limit", "1000"]);
        inbox
            .lines()
            .any(|line| line.contains("MARK-TYPED by hand") && line.contains("\"prompt\""))
            .then_some(())
    });
}

fn is_looked_on(session: &Session) {
    // Somebody looks on with a small terminal: he sees the input box, and messages still arrive.
    let personal = |words: &[&str]| {
        let output = session
            .machine
            .command("tmux")
            .args(["-L", "onlooker", "-f", "/dev/null"])
            .args(words)
            .output()
            .expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let size = || {
        session
            .tmux(&["display", "-p", "-t", "agent", "#{window_width}x#{window_height}"])
            .trim()
            .to_string()
    };
    personal(&[
        "new-session",
        "-d",
        "-x",
        "90",
        "-y",
        "24",
        &format!("{} attach a", crate::support::BIN),
    ]);
    session.waits("the small size", || (size() == "90x24").then_some(()));
    personal(&["send-keys", "-l", "seen by me"]);
    session.waits("what is typed", || {
        personal(&["capture-pane", "-p"]).contains("seen by me").then_some(())
    });
    session.asks("MARK-WATCHED\nin a small\nterminal");
    once(session, "MARK-WATCHED");
    session.waits("the draft", || {
        personal(&["capture-pane", "-p"]).contains("seen by me").then_some(())
    });
    session.keys(&["C-u"]);
    personal(&["kill-server"]);
    session.waits("the canonical size", || (size() == "200x50").then_some(()));
}
