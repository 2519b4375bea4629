//! Codex from its package, through hub and runner: the real app server in front of a model server
//! of our own, whose record is the judge.

mod beside;
mod evidence;
mod port;
mod responses;
mod window;

use agent_relay::os;
use rustix::process::Signal;
use serde_json::{Value, json};

use self::responses::Responses;
use super::long::{self, Subject};
use super::support::{Machine, Running, pause, ran, wait_for};
use super::{LONG, installed};

/// One agent with everything that it needs.
pub struct Session {
    machine: Machine,
    model: Responses,
    hub: Option<Running>,
    runner: Option<Running>,
    /// Words of `run` besides the usual ones.
    words: Vec<String>,
}

impl Session {
    /// A cleared environment, a home of its own, loopback endpoints only.
    fn prepared(name: &str, approval: &'static str) -> Session {
        let dir = installed();
        let model = Responses::start();
        let mut machine = Machine::new(name);
        let path = format!("{}:{}:/usr/bin:/bin", dir.join("bin").display(), node(&dir));
        machine.set("PATH", &path);
        machine.set("LANG", "C.UTF-8");
        let config = format!(
            "model = \"gpt-5.5\"\nmodel_provider = \"fake\"\n\
             [notice.model_migrations]\n\"gpt-5.5\" = \"gpt-6-sol\"\n\
             [model_providers.fake]\nname = \"fake\"\nbase_url = \"http://127.0.0.1:{}/v1\"\n\
             wire_api = \"responses\"\nrequest_max_retries = 1\nstream_max_retries = 1\n",
            model.port
        );
        std::fs::create_dir_all(machine.home.join(".codex")).expect("a folder");
        std::fs::write(machine.home.join(".codex/config.toml"), config).expect("a file");
        // Its commands run in a login shell.
        let bin = std::path::Path::new(super::support::BIN).parent().expect("a folder");
        let profile = format!("PATH=\"{}:$PATH\"\n", bin.display());
        std::fs::write(machine.home.join(".profile"), profile).expect("a file");
        let restart = json!({"firstMs": 100, "mostMs": 500, "exitsMax": 1000});
        let env = json!({"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1,localhost"});
        std::fs::create_dir_all(machine.home.join("providers")).expect("a folder");
        let settings = json!({"restart": restart, "env": env}).to_string();
        std::fs::write(machine.home.join("providers/codex.json"), settings).expect("a file");
        let hub = machine.hub();
        let words = ["--approval", approval].map(String::from).to_vec();
        Session { machine, model, hub: Some(hub), runner: None, words }
    }

    /// One that is ready.
    pub fn start(name: &str, approval: &'static str) -> Session {
        let mut session = Session::prepared(name, approval);
        session.run();
        session
    }

    fn run(&mut self) {
        let usual = ["run", "codex", "--headless", "--agent-id", "a"];
        let words = self.words.iter().map(String::as_str);
        let words: Vec<&str> = usual.into_iter().chain(words).collect();
        self.runner = Some(self.machine.start(&words));
        self.machine.wait_status("a", "idle");
    }

    /// Output of tools, as the model got it.
    pub fn outputs(&self) -> String {
        self.model.outputs()
    }

    fn send(&self, text: &str) -> u64 {
        self.machine.send("a", text)
    }

    fn pid(&self) -> u32 {
        let status = self.machine.status("a");
        status.pointer("/providerProcess/pid").and_then(Value::as_u64).unwrap_or(0) as u32
    }

    fn answer(&self, id: u64) -> Option<Value> {
        let inbox = self.machine.ok(&["inbox", "--all", "--json", "--limit", "1000"]);
        let mut all = inbox.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        all.find(|message| {
            let ids = message["payload"]["answers"].as_array();
            let is_of = message["replyTo"] == id || ids.is_some_and(|ids| ids.contains(&json!(id)));
            message["kind"] == "chat" && is_of
        })
    }

    /// Waits; on failure tells how everything stands.
    #[track_caller]
    fn waits<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        let found =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(what, LONG, look)));
        found.unwrap_or_else(|_| {
            let (status, logs) = (self.machine.status("a"), self.machine.logs());
            panic!("{what} does not come: {status}\n{:#?}\n{logs}", self.model.newest(6))
        })
    }

    #[track_caller]
    fn answered(&self, id: u64) -> String {
        let answer = self.waits(&format!("an answer to #{id}"), || self.answer(id));
        answer["body"].as_str().unwrap_or_default().to_string()
    }

    #[track_caller]
    fn is_asked(&self, text: &str) {
        self.waits("the model to be asked", || self.model.is_asked(text).then_some(()));
    }

    fn approval(&self) -> String {
        let open = self.waits("an approval", || {
            let open = self.machine.ok(&["approvals", "--json"]);
            open.lines().find_map(|line| serde_json::from_str::<Value>(line).ok())
        });
        open["approvalId"].as_str().unwrap_or_default().to_string()
    }

    /// The message stands once in the thread, and began one series of requests.
    #[track_caller]
    fn once(&self, id: u64) {
        let header = format!("[relay message #{id} from");
        assert_eq!(self.model.most(&header), 1, "#{id}\n{}", self.machine.logs());
        assert!(self.model.series(&header) <= 1, "#{id} began two turns");
    }
}

impl Subject for Session {
    fn name(&self) -> &'static str {
        "codex"
    }

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn hub(&mut self) -> &mut Option<Running> {
        &mut self.hub
    }

    fn run(&mut self) {
        Session::run(self);
    }

    fn kill_provider(&self) {
        os::kill(os::process(self.pid()), Signal::KILL);
    }

    fn kill_runner(&mut self) {
        let pid = self.pid();
        self.runner = None;
        let gone = || (!os::is_alive(os::process(pid))).then_some(());
        wait_for("the end of its server", LONG, gone);
    }

    fn wait(&self, word: &str) {
        self.waits(word, || (self.machine.status("a")["status"] == word).then_some(()));
    }

    fn wait_asked(&self, mark: &str) {
        self.is_asked(mark);
    }

    fn answer_of(&self, id: u64) -> String {
        self.answered(id)
    }

    fn settled(&self, ids: &[u64]) {
        ids.iter().for_each(|id| drop(self.answered(*id)));
    }

    fn approval_id(&self) -> String {
        self.approval()
    }

    fn most(&self, mark: &str) -> usize {
        self.model.most(mark)
    }

    fn escapes(&self) -> bool {
        false
    }

    /// Shut down; nothing of it is left but the hub.
    fn end(self) {
        let pid = self.pid();
        self.machine.ok(&["command", "a", "shutdown"]);
        wait_for("the end of the server", LONG, || {
            let left = self.machine.left_over();
            (!os::is_alive(os::process(pid)) && left.len() == 1).then_some(())
        });
    }
}

/// The script of the package wants node; the session itself does not.
fn node(dir: &std::path::Path) -> String {
    let found = std::fs::read_dir(dir.join("node/node_modules")).into_iter().flatten().flatten();
    let folder = found.map(|entry| entry.path().join("bin")).find(|path| path.is_dir());
    folder.map(|path| path.to_string_lossy().into_owned()).unwrap_or_else(|| "/usr/bin".into())
}

fn step(began: std::time::Instant, name: &str) {
    println!("interop: codex {:.1} s {name}", began.elapsed().as_secs_f32());
}

#[test]
#[ignore = "make interop runs it"]
fn codex_talks_asks_and_is_steered() {
    let began = std::time::Instant::now();
    let session = Session::start("codex", "guarded");
    step(began, "talks");
    let first = session.send("hello one");
    assert_eq!(session.answered(first), "Heard: hello one");
    let second = session.send("THINK RUN:echo from-a-tool; two");
    assert!(session.answered(second).ends_with("two"));
    assert!(session.model.outputs().contains("from-a-tool"));
    let mirror = session.machine.ok(&["inbox", "--all", "--mirror", "--json"]);
    assert!(
        mirror.contains("thought of a tool") && mirror.contains("echo from-a-tool"),
        "{mirror}"
    );
    step(began, "permissions");
    let outside = session.machine.home.with_file_name("outside");
    for (decision, there) in [("deny", false), ("approve", true)] {
        let id = session.send(&format!("ESC:touch {}; {decision}", outside.display()));
        let approval = session.approval();
        session.machine.ok(&["approvals", decision, &approval]);
        assert!(session.answered(id).ends_with(decision));
        assert_eq!(outside.exists(), there, "{decision}");
    }
    step(began, "the sandbox");
    let whoami = format!("RUN:{} whoami 2>&1; end", super::support::BIN);
    let id = session.send(&whoami);
    session.answered(id);
    let outputs = session.model.outputs();
    assert!(outputs.contains("cannot") || outputs.contains("denied"), "{outputs}");
    // Outside of it those of ours that read and answer are permitted unasked.
    let id = session.send("ESC:agent-relay whoami --json; own");
    assert!(session.answered(id).ends_with("own"));
    assert!(session.model.outputs().contains("\\\"a\\\""), "{}", session.model.outputs());
    step(began, "urgent");
    let main = session.send("SLOW main");
    session.machine.wait_status("a", "busy");
    session.is_asked("SLOW main");
    let sent = session.machine.ok(&["send", "a", "--json", "--urgent", "joined"]);
    let sent: Value = serde_json::from_str(&sent).expect("JSON");
    let joined = sent["id"].as_u64().expect("an id");
    assert_eq!(session.answered(main), "Heard: joined");
    session.once(joined);
    step(began, "interrupts");
    let cut = session.send("SLOW cut");
    session.is_asked("SLOW cut");
    session.machine.ok(&["command", "a", "interrupt"]);
    session.machine.wait_status("a", "idle");
    step(began, "errors");
    let failed = session.send("ERR400");
    assert!(session.answered(failed).contains("no such thing"));
    step(began, "compact and clear");
    session.machine.ok(&["command", "a", "compact"]);
    session.machine.ok(&["command", "a", "clearContext"]);
    let last = session.send("after last");
    assert_eq!(session.answered(last), "Heard: after last");
    for id in [first, second, main, cut, last] {
        session.once(id);
    }
    step(began, "end");
    session.end();
}

/// Without a sandbox the tools of a session reach the relay as this agent.
#[test]
#[ignore = "make interop runs it"]
fn codex_tools_speak_as_the_agent() {
    let session = Session::start("codex-open", "open");
    let id = session.send(&format!("RUN:{} whoami 2>&1; end", super::support::BIN));
    session.answered(id);
    let outputs = session.model.outputs();
    assert!(outputs.contains("a") && !outputs.contains("cannot"), "{outputs}");
}

/// Kills of each process and an outage of the relay, in twenty turns.
#[test]
#[ignore = "make interop runs it"]
fn codex_survives_kills_and_an_outage() {
    let mut session = Session::start("codex-kills", "guarded");
    let mut ids = Vec::new();
    for n in 0..20 {
        let word = if n % 3 == 0 { "SLOW " } else { "" };
        ids.push(session.send(&format!("{word}n{n}")));
        let header = format!("[relay message #{} from", ids[n]);
        match n {
            3 | 9 => {
                session.is_asked(&header);
                session.kill_provider();
            }
            6 | 12 => {
                session.runner = None;
                session.run();
            }
            15 => {
                session.hub = None;
                std::thread::sleep(std::time::Duration::from_millis(500));
                session.hub = Some(session.machine.hub());
            }
            _ => {}
        }
        session.answered(ids[n]);
    }
    ids.iter().for_each(|id| session.once(*id));
    ran("codex-kills");
}

/// The same in random order, with interrupts and compactions.
#[test]
#[ignore = "make interop runs it"]
fn codex_survives_bad_luck() {
    let outcome = long::run(Session::start("codex-luck", "guarded"), long::SHORT, 1);
    println!("interop: codex: {outcome:?}");
    assert!(outcome.lost.is_empty() && outcome.twice.is_empty(), "{outcome:?}");
    ran("codex-kills");
}
