//! Claude Code from its package, through hub and runner, over both transports. The model server's
//! record is the judge.

use agent_relay::os;
use serde_json::{Value, json};

use super::model::Model;
use super::support::{Machine, Running, pause, wait_for};
use super::{LONG, installed};

/// One session with everything that it needs.
pub struct Session {
    pub transport: &'static str,
    pub machine: Machine,
    pub model: Model,
    pub hub: Option<Running>,
    pub runner: Option<Running>,
}

/// Bad luck of one kind for a run.
#[derive(Clone, Copy, PartialEq)]
pub enum Hooks {
    All,
    /// The prompt hook tells nothing.
    NoPrompt,
    /// All, and the agent answers by itself (reply mode `explicit`).
    Explicit,
}

impl Session {
    pub fn start(transport: &'static str, hooks: Hooks, restart: Value) -> Session {
        let dir = installed();
        let model = Model::start();
        let mut machine = Machine::new(&format!("claude-{transport}"));
        let temporary = machine.home.with_file_name("tmp");
        std::fs::create_dir_all(&temporary).expect("temp dir");
        machine.set("PATH", &format!("{}:/usr/bin:/bin", dir.join("bin").display()));
        machine.set("TMPDIR", &temporary.to_string_lossy());
        machine.set("TMUX_TMPDIR", &temporary.to_string_lossy());
        machine.set("LANG", "C.UTF-8");
        let hub = machine.hub();
        let mut env = json!({"ANTHROPIC_BASE_URL": format!("http://127.0.0.1:{}", model.port), "ANTHROPIC_API_KEY": "sk-fake-0123456789abcdef0123",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1",
            "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1,localhost"});
        if hooks == Hooks::NoPrompt {
            env["AGENT_RELAY_HOOKS"] = json!(
                "session-start stop stop-failure subagent-start subagent-stop pre-compact post-compact session-end permission-request"
            );
        }
        let providers = machine.home.join("providers");
        std::fs::create_dir_all(&providers).expect("folder");
        let mode = if hooks == Hooks::Explicit { "explicit" } else { "auto" };
        let config = json!({"env": env, "isolated": true, "transport": transport, "restart": restart, "replyMode": mode});
        std::fs::write(providers.join("claude.json"), config.to_string()).expect("config");
        let mut session = Session { transport, machine, model, hub: Some(hub), runner: None };
        if transport != "terminal" {
            session.run();
        }
        session
    }

    pub fn run(&mut self) {
        self.runner = Some(self.machine.start(&["run", "claude", "--headless", "--agent-id", "a"]));
        self.wait("idle");
    }

    pub fn kill_runner(&mut self) {
        let pid = self.pid();
        self.runner.take().expect("runs").kill();
        let gone = || (!os::is_alive(os::process(pid))).then_some(());
        wait_for("the end of its provider", 20, gone);
    }

    /// All of these are answered, each or together with others (one answer for a batch).
    #[track_caller]
    pub fn settled(&self, ids: &[u64]) {
        self.waits("answers to all", || {
            let inbox = self.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
            let messages: Vec<Value> =
                inbox.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let answered = |id: &u64| {
                messages.iter().any(|message| {
                    let also = message["payload"]["answers"]
                        .as_array()
                        .is_some_and(|ids| ids.contains(&json!(id)));
                    message["replyTo"] == *id || also
                })
            };
            ids.iter().all(answered).then_some(())
        });
    }

    /// Shut down; nothing of it is left.
    pub fn end(self) {
        let environment = std::fs::read(format!("/proc/{}/environ", self.pid())).expect("lives");
        let name = "AGENT_RELAY_PROVIDER_SESSION_ID";
        let id = String::from_utf8_lossy(&environment)
            .split('\0')
            .find_map(|variable| variable.strip_prefix(name)?.strip_prefix('=').map(str::to_string))
            .expect("a session");
        self.machine.ok(&["command", "a", "shutdown"]);
        wait_for("the end of all its processes", 30, || {
            os::processes_with_env(name, &id).is_empty().then_some(())
        });
    }

    #[track_caller]
    pub fn wait(&self, word: &str) {
        self.waits(word, || (self.machine.status("a")["status"] == word).then_some(()));
    }

    #[track_caller]
    pub fn waits<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        let found =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(what, LONG, look)));
        found.unwrap_or_else(|_| {
            for asked in self.model.asked().iter().rev().take(6) {
                println!("asked {:?}", asked.newest.chars().take(300).collect::<String>());
            }
            println!("screen: {}", self.screen());
            panic!(
                "{what} does not come over {}: {}\n{}",
                self.transport,
                self.machine.status("a"),
                self.machine.logs()
            )
        })
    }

    #[track_caller]
    pub fn asks(&self, text: &str) -> String {
        let id = self.machine.send("a", text);
        self.answer_of(id)
    }

    /// As another agent, with a token of its own.
    #[track_caller]
    pub fn send_as(&self, agent: &str, text: &str) {
        let made = self.machine.ok(&["token", "create", "--agent", agent, "--json"]);
        let token = serde_json::from_str::<Value>(&made).expect("JSON")["token"]
            .as_str()
            .expect("a token")
            .to_string();
        let sent = self
            .machine
            .command(super::support::BIN)
            .args(["send", "a", text])
            .env("AGENT_RELAY_TOKEN", token)
            .output()
            .expect("runs");
        assert!(sent.status.success(), "{sent:?}");
    }

    #[track_caller]
    pub fn answer_of(&self, id: u64) -> String {
        self.waits(&format!("the answer to {id}"), || {
            let inbox = self.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
            let messages =
                inbox.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            messages
                .into_iter()
                .find(|message| message["replyTo"] == id)
                .and_then(|m| m["body"].as_str().map(str::to_string))
        })
    }

    #[track_caller]
    pub fn wait_asked(&self, text: &str) {
        self.waits("the model to be asked", || {
            self.model.asked().iter().any(|asked| asked.newest.contains(text)).then_some(())
        });
    }

    #[track_caller]
    pub fn approval(&self) -> Value {
        self.waits("a question", || {
            serde_json::from_str::<Value>(self.machine.ok(&["approvals", "--json"]).lines().next()?)
                .ok()
        })
    }

    pub fn pid(&self) -> u32 {
        self.machine
            .status("a")
            .pointer("/providerProcess/pid")
            .and_then(Value::as_u64)
            .unwrap_or(0) as u32
    }

    pub fn kill_provider(&self) {
        let pid = self.pid();
        os::kill(os::process(pid), rustix::process::Signal::KILL);
    }

    fn tmux(&self, words: &[&str]) -> String {
        let status = self.machine.status("a");
        let socket = status
            .pointer("/terminal/tmuxSocket")
            .and_then(Value::as_str)
            .unwrap_or("none")
            .to_string();
        let output = self
            .machine
            .command("tmux")
            .args(["-L", &socket])
            .args(words)
            .output()
            .expect("tmux runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn screen(&self) -> String {
        if self.transport == "tmux" {
            self.tmux(&["capture-pane", "-p", "-t", "agent"])
        } else {
            String::new()
        }
    }

    pub fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "agent"], keys].concat());
    }
}

/// Exactly once in the conversation that the model sees.
#[track_caller]
fn once(session: &Session, mark: &str) {
    assert_eq!(
        session.model.most(mark),
        1,
        "{mark} over {}\n{}",
        session.transport,
        session.machine.logs()
    );
}

fn talks(session: &Session) {
    let heard = session.asks("MARK-ONE hello");
    assert!(heard.contains("Heard:") && heard.contains("MARK-ONE"), "{heard}");
    once(session, "MARK-ONE");
    session.wait("idle");
}

fn asks_before_it_acts(session: &Session) {
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
fn remembers_for_the_session(session: &Session) {
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

fn answers_questions(session: &Session) {
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

fn is_interrupted(session: &Session) {
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

fn tells_errors(session: &Session) {
    let heard = session.asks("MARK-ERR ERR400");
    assert!(heard.contains("the model says no"), "{heard}");
    session.wait("idle");
    assert!(session.asks("MARK-BUSY ERR529").contains("MARK-BUSY"));
    assert!(session.asks("MARK-WELL").contains("MARK-WELL"));
}

fn is_compacted_and_cleared(session: &Session) {
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

fn survives_kills(session: &mut Session) {
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

fn tells_people_from_agents(session: &Session) {
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

fn has_subagents(session: &Session) {
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
fn is_typed_at(session: &Session) {
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
        &format!("{} attach a", super::support::BIN),
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

fn story(transport: &'static str) {
    let restart = json!({"firstMs": 100, "mostMs": 500, "exitsMax": 50});
    let mut session = Session::start(transport, Hooks::All, restart);
    let began = std::time::Instant::now();
    let step = |name: &str| {
        println!("interop: claude {transport} {:.1} s {name}", began.elapsed().as_secs_f32())
    };
    step("talks");
    talks(&session);
    step("permissions");
    asks_before_it_acts(&session);
    step("permissions for the session");
    remembers_for_the_session(&session);
    step("questions");
    answers_questions(&session);
    step("interrupts");
    is_interrupted(&session);
    step("people and agents");
    tells_people_from_agents(&session);
    step("subagents");
    has_subagents(&session);
    if transport == "tmux" {
        step("typing");
        is_typed_at(&session);
    }
    step("errors");
    tells_errors(&session);
    step("kills");
    survives_kills(&mut session);
    step("compact and clear");
    is_compacted_and_cleared(&session);
    step("end");
    session.end();
}

#[test]
#[ignore = "make interop runs it"]
fn claude_stream() {
    story("stream");
}

#[test]
#[ignore = "make interop runs it"]
fn claude_tmux() {
    story("tmux");
}

/// In a person's own terminal (a tmux that is not the runner's): messages come by the socket, what
/// is typed is the person's, and `/exit` ends the runner too.
#[test]
#[ignore = "make interop runs it"]
fn claude_in_a_persons_terminal() {
    let session = Session::start("terminal", Hooks::All, json!({}));
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
        format!("{} run claude --agent-id a; echo $? >{}", super::support::BIN, code.display());
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

/// Nobody is asked in open mode (as root it must be said that this is a sandbox), and an urgent
/// message joins the turn that runs.
#[test]
#[ignore = "make interop runs it"]
fn claude_in_open_mode() {
    for transport in ["stream", "tmux"] {
        let mut session = Session::start("terminal", Hooks::All, json!({}));
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

/// The tools of a session speak as its agent: long after the token that it was started with has
/// ended, and while the relay is away.
#[test]
#[ignore = "make interop runs it"]
fn claude_tools_speak_as_the_agent_over_renewals_and_outages() {
    for transport in ["stream", "tmux"] {
        let mut session = Session::start("terminal", Hooks::All, json!({}));
        session.transport = transport;
        session.machine.set("IS_SANDBOX", "1");
        let first = session.machine.ok(&["token", "create", "--agent", "a", "--ttl", "12"]);
        let mut command = session.machine.command(super::support::BIN);
        command.args([
            "run",
            "claude",
            "--headless",
            "--transport",
            transport,
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
        let mut asked = session.machine.command(super::support::BIN);
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

/// Read-only: what would ask is refused, in the terminal too, and the next message has its turn.
#[test]
#[ignore = "make interop runs it"]
fn claude_in_read_only_mode() {
    for transport in ["stream", "tmux"] {
        let mut session = Session::start("terminal", Hooks::All, json!({}));
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
