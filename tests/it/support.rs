//! One small machine per test: a home of its own, real processes, and waiting for states.

#[path = "../common/http.rs"]
pub mod http;
#[path = "../common/ran.rs"]
mod ran;
#[path = "../common/skip.rs"]
mod skip;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent_relay::core::ids::ProcessRef;
use agent_relay::os;
pub use ran::ran;
use rustix::process::Signal;
use serde_json::Value;
#[allow(unused_imports)] // each suite uses one of them
pub use skip::{ignored, skip};

pub const BIN: &str = env!("CARGO_BIN_EXE_agent-relay");

/// Waits for a state, not for a time.
#[track_caller]
pub fn wait_for<T>(what: &str, seconds: u64, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited {seconds} s in vain for: {what}");
        pause(15);
    }
}

/// Between two looks.
pub fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// A directory with everything of one test; what runs in it ends with it.
pub struct Machine {
    pub home: PathBuf,
    pub work: PathBuf,
    env: BTreeMap<String, String>,
    shared: bool,
    /// Runners reach the relay by this URL, and by polling only.
    pub detour: Option<String>,
}

/// A process that is killed and reaped with its value.
pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn terminate(&mut self) {
        let pid = self.child.id();
        os::kill(os::process(pid), Signal::TERM);
    }

    /// Exit code and standard error.
    #[track_caller]
    pub fn wait(&mut self, seconds: u64) -> (i32, String) {
        let status =
            wait_for("the process to end", seconds, || self.child.try_wait().expect("waits"));
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        use std::os::unix::process::ExitStatusExt;
        (status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()), text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A script that can be run.
pub fn write_program(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).expect("writes");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(path, mode).expect("sets");
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A port that stays this test's own while its hub is away: the system gives none of these to who
/// asks for any.
pub fn own_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(131);
    loop {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = 10_000 + number as u16;
        if !listens(port) {
            return port;
        }
    }
}

/// Somebody listens on that port of this machine. Nothing is bound to find out: a process that
/// another test starts just then would have the socket too, until its program runs.
fn listens(port: u16) -> bool {
    let local = format!(":{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|path| {
        let table = std::fs::read_to_string(path).unwrap_or_default();
        table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .any(|at| at.ends_with(&local))
    })
}

impl Machine {
    pub fn new(name: &str) -> Machine {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir()
            .join(format!("agent-relay-it-{}-{number}-{name}", std::process::id()));
        let (home, work) = (root.join("home"), root.join("work"));
        std::fs::create_dir_all(&work).expect("temp dir");
        Machine { home, work, env: BTreeMap::new(), shared: false, detour: None }
    }

    /// Another home that talks to the same relay.
    pub fn second_home(&self) -> Machine {
        let home = self.home.with_file_name("home2");
        let config = self.config();
        std::fs::create_dir_all(&home).expect("temp dir");
        std::fs::write(home.join("config.json"), config.to_string()).expect("config");
        Machine { home, work: self.work.clone(), env: self.env.clone(), shared: true, detour: None }
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.into(), value.into());
    }

    pub fn config(&self) -> Value {
        serde_json::from_str(
            &std::fs::read_to_string(self.home.join("config.json")).unwrap_or_default(),
        )
        .unwrap_or_default()
    }

    /// A command with a clean environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &self.home)
            .env("AGENT_RELAY_HOME", &self.home);
        command
            .env("AGENT_RELAY_LOG_LEVEL", "debug")
            .envs(&self.env)
            .envs(agent_relay::planted::env())
            .current_dir(&self.work);
        command
    }

    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(BIN);
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        Running { child }
    }

    /// A bound of the program, as a test may hold it on the machine as it is now: with room for as
    /// much as a hundred starts of a process take here, which is little on a quiet machine and much
    /// where others keep it busy.
    pub fn within(&self, bound: Duration) -> Duration {
        let start = |_| {
            let begin = Instant::now();
            self.ok(&["version"]);
            begin.elapsed()
        };
        bound + (0..5).map(start).max().unwrap_or_default() * 100
    }

    /// Runs to the end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(BIN).args(arguments).stdin(Stdio::null()).output().expect("runs")
    }

    /// Runs to the end, must succeed, gives standard output.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    }

    /// Runs to the end, must fail with that code, gives standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "one clear sentence: {text}");
        text
    }

    /// A hub on a port of its own; waits until it answers.
    #[track_caller]
    pub fn hub(&self) -> Running {
        let port = self.config()["relayUrl"]
            .as_str()
            .and_then(|url| url.rsplit(':').next())
            .map_or_else(|| own_port().to_string(), str::to_string);
        let mut running = self.start(&["hub", "--port", &port]);
        self.wait_for_hub(&mut running);
        running
    }

    /// Waits until that hub serves, and gives what it says of itself; one that has ended says why.
    #[track_caller]
    pub fn wait_for_hub(&self, hub: &mut Running) -> Value {
        let pid = hub.child.id();
        let serves = || {
            let text = std::fs::read_to_string(self.home.join("hub/hub.json")).ok()?;
            serde_json::from_str::<Value>(&text).ok().filter(|info| info["pid"] == pid)
        };
        let info = wait_for("the hub to listen", 60, || {
            let ended = hub.child.try_wait().expect("waits").map(|_| None);
            serves().map(Some).or(ended)
        });
        info.unwrap_or_else(|| panic!("the hub has ended: {:?}{}", hub.wait(1), self.logs()))
    }

    /// From here on runners find a middleman between them and the hub who lets no WebSocket
    /// through; tools still go straight.
    pub fn shut_the_bus(&mut self) {
        let url = self.config()["relayUrl"].as_str().expect("a hub was started").to_string();
        let to = url.trim_start_matches("http://").to_string();
        // It passes bytes on and understands none of them: no server of HTTP.
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("bound").port();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let to = to.clone();
                std::thread::spawn(move || pass_on(client, &to));
            }
        });
        self.detour = Some(format!("http://127.0.0.1:{port}"));
    }

    /// How many agents are connected to the relay.
    pub fn connected(&self) -> usize {
        let output = self.run(&["agents", "--json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|card| card["connected"] == true)
            .count()
    }

    /// A runner of the demo agent.
    pub fn runner(&self, agent: &str) -> Running {
        self.runner_with(agent, &[], &[])
    }

    pub fn runner_with(&self, agent: &str, options: &[&str], demo: &[&str]) -> Running {
        let state = self.home.join("demo").to_string_lossy().into_owned();
        let mut arguments = vec!["run", "acp", "--agent-id", agent, "--approval", "open"];
        arguments.extend(options);
        arguments.extend(self.detour.iter().flat_map(|url| ["--relay-url", url.as_str()]));
        arguments.extend(["--", BIN, "demo-agent", "--state", &state]);
        arguments.extend(demo);
        self.start(&arguments)
    }

    pub fn status(&self, agent: &str) -> Value {
        let output = self.run(&["status", agent, "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    #[track_caller]
    pub fn wait_status(&self, agent: &str, word: &str) {
        let mut last = Value::Null;
        let until = Instant::now() + Duration::from_secs(60);
        let connected = if self.detour.is_some() { "polling" } else { "registered" };
        while Instant::now() < until {
            last = self.status(agent);
            if last["status"] == word && last["connection"]["state"] == connected {
                return;
            }
            pause(if self.detour.is_some() { 60 } else { 15 });
        }
        panic!("{agent} is not {word} but {last}\n{}", self.logs());
    }

    pub fn send(&self, to: &str, text: &str) -> u64 {
        let sent: Value =
            serde_json::from_str(&self.ok(&["send", to, "--json", text])).expect("JSON");
        sent["id"].as_u64().expect("id")
    }

    /// The receiver's own record: how often each message was delivered.
    pub fn delivered(&self) -> BTreeMap<u64, u32> {
        let text = std::fs::read_to_string(self.home.join("demo/log.jsonl")).unwrap_or_default();
        let mut times = BTreeMap::new();
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            for header in line["text"]
                .as_str()
                .unwrap_or_default()
                .lines()
                .filter_map(|l| l.strip_prefix("[relay message #"))
            {
                let id = header.split(' ').next().and_then(|id| id.parse().ok()).unwrap_or(0);
                *times.entry(id).or_default() += 1;
            }
        }
        times
    }

    /// Chat messages for the user: how often each message was answered.
    pub fn answered(&self) -> BTreeMap<u64, u32> {
        let mut times = BTreeMap::new();
        let output = self.run(&["inbox", "--all", "--json", "--limit", "1000"]);
        for line in String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        {
            if line["kind"] == "chat" {
                let more = line["payload"]["answers"].as_array().cloned().unwrap_or_default();
                let ids = more.iter().filter_map(Value::as_u64).chain(line["replyTo"].as_u64());
                let ids: std::collections::BTreeSet<u64> = ids.collect();
                ids.into_iter().for_each(|id| *times.entry(id).or_default() += 1);
            }
        }
        times
    }

    /// Everything was delivered once and answered once.
    #[track_caller]
    pub fn settle(&self, ids: &[u64], seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds);
        let (mut delivered, mut answered) = (BTreeMap::new(), BTreeMap::new());
        while Instant::now() < until {
            (delivered, answered) = (self.delivered(), self.answered());
            if ids.iter().all(|id| delivered.contains_key(id) && answered.contains_key(id)) {
                break;
            }
            pause(40);
        }
        for id in ids {
            assert_eq!(
                (delivered.get(id), answered.get(id)),
                (Some(&1), Some(&1)),
                "#{id} delivered and answered\n{}",
                self.logs()
            );
        }
    }

    pub fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.home.join("logs")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            all.push_str(&format!(
                "\n== {}\n{}",
                entry.path().display(),
                lines[lines.len().saturating_sub(60)..].join("\n")
            ));
        }
        all
    }

    /// Times that a runner told the relay that it is busy, by the log.
    pub fn turns_begun(&self) -> usize {
        let logs = std::fs::read_dir(self.home.join("logs")).expect("logs").flatten();
        let text = logs.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        text.map(|text| text.matches(" status busy: ").count()).sum()
    }

    /// Processes of this machine that still live.
    pub fn left_over(&self) -> Vec<ProcessRef> {
        os::processes_with_env("AGENT_RELAY_HOME", &self.home.to_string_lossy())
    }
}

/// A middleman that knows no WebSockets: what asks for the bus is hung up on, all else goes
/// through.
fn pass_on(mut client: TcpStream, to: &str) {
    let mut first = [0u8; 4096];
    let size = client.read(&mut first).unwrap_or(0);
    if size == 0 || String::from_utf8_lossy(&first[..size]).contains("GET /bus") {
        return;
    }
    let Ok(mut server) = TcpStream::connect(to) else { return };
    let _ = server.write_all(&first[..size]);
    let (Ok(mut from), Ok(mut back)) = (client.try_clone(), server.try_clone()) else { return };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut client);
        let _ = client.shutdown(std::net::Shutdown::Both);
    });
    let _ = std::io::copy(&mut from, &mut server);
    let _ = server.shutdown(std::net::Shutdown::Both);
}

impl Drop for Machine {
    fn drop(&mut self) {
        for process in self.left_over() {
            os::kill(process, Signal::KILL);
        }
        if !self.shared && !std::thread::panicking() {
            let _ =
                std::fs::remove_dir_all(self.home.parent().unwrap_or(Path::new("/nonexistent")));
        }
    }
}

/// A variable of a process of this user.
#[track_caller]
pub fn variable(pid: u32, name: &str) -> String {
    let all = std::fs::read(format!("/proc/{pid}/environ")).expect("the process lives");
    let all = String::from_utf8_lossy(&all).into_owned();
    let found = all.split('\0').find_map(|set| set.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_default().to_string()
}
