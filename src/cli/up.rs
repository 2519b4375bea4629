//! `up`: a hub if none runs, a runner, and this terminal as chat (D-30).

use std::collections::HashSet;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, select};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::args::Up;
use super::client::Client;
use super::exit::{Failure, Kind, NO, OK, Outcome};
use super::print;
use crate::config::Global;
use crate::core::ids::MessageId;
use crate::edge::signals;
use crate::hub::run;
use crate::os;
use crate::secret::Secret;
use crate::wire::api::{Message, NewMessage, USER, encode, messages_of, path};
use crate::wire::bus::RelayFrame;

/// The hub must listen and the agent be ready in that time.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Patience with a process at the end.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait that can be asked for: a year.
const WAIT_SECONDS_MAX: u64 = 365 * 24 * 3600;

/// What the chat waits for.
enum ChatEvent {
    Typed(String),
    TypedEnd,
    Frame(Box<RelayFrame>),
    RelayLost(String),
    RelayBack,
    RunnerEnded(Option<i32>),
    Signal,
}

/// A process that `up` started; ended when dropped.
struct Started {
    child: Child,
    what: &'static str,
}

impl Started {
    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        os::kill(os::process(self.child.id()), Signal::TERM);
        let until = Instant::now() + STOP_LIMIT;
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10)); // a wait with a limit
        }
        print::note(&format!("the {} did not stop in time; ending it", self.what));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.end();
    }
}

/// `up`
pub fn up(options: Up) -> Outcome {
    let program = std::env::current_exe().map_err(|error| Failure::system(format!("cannot find my own program file: {error}")))?;
    let (heard, events) = bounded(256);
    let on_signal = heard.clone();
    signals::watch(move |_| on_signal.send(ChatEvent::Signal).is_ok())
        .map_err(|error| Failure::system(format!("cannot watch signals: {error}")))?;

    print::stay();
    let hub = start_hub(&program)?;
    let global = if hub.is_some() { of_our_hub()? } else { Global::load(None, None)? };
    let client = Client::new(&global)?;
    let demo = options.command.is_empty();
    let command = match demo {
        true => vec![program.to_string_lossy().into_owned(), "demo-agent".into()],
        false => options.command.clone(),
    };
    let mut runner = start_runner(&program, &options, demo, &command, &global)?;
    let agent = runner.agent.clone();
    let own = agent.clone();
    let tty = std::io::stdin().is_terminal();
    let chat =
        Chat { client, global: global.clone(), agent, options, tty, seen: HashSet::new(), asked: HashSet::new(), waiting: HashSet::new() };
    let outcome = chat.run(&mut runner.process, heard, &events);
    drop(runner);
    if let Some(mut hub) = hub {
        // Others may have come to rely on it (D-30).
        let others = Client::new(&global).and_then(|client| client.call("GET", path::AGENTS, None)).ok();
        let other = |card: &Value| card["id"] != own.as_str() && super::agents::is_there(card);
        let used = others.is_some_and(|answer| answer["agents"].as_array().into_iter().flatten().any(other));
        match used {
            true => {
                print::line("other agents are connected: the hub goes on (stop it with SIGTERM to the pid in hub/hub.json)");
                std::mem::forget(hub);
            }
            false => hub.end(),
        }
    }
    outcome
}

/// Starts a hub unless a relay answers already.
fn start_hub(program: &Path) -> Result<Option<Started>, Failure> {
    let global = Global::load(None, None)?;
    let client = Client::new(&global)?;
    let is_loopback = client.base.is_loopback();
    match client.health() {
        Ok(_) if global.token.is_some() => return Ok(None),
        // A relay that we have no token for is a stranger's: ours takes another port (D-29).
        Ok(_) if is_loopback => {}
        Ok(_) => {
            let text = format!(
                "a relay answers at {}, but there is no token for it; set \"token\" in config.json or AGENT_RELAY_TOKEN",
                global.relay_url
            );
            return Err(Failure::usage(text));
        }
        Err(failure) if !client.base.url.contains("127.0.0.1") && !client.base.url.contains("localhost") => {
            return Err(failure);
        }
        Err(_) => {}
    }
    let mut command = Command::new(program);
    command.args(["hub", "--any-port", "--temporary", "--port", &client.base.port.to_string()]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group_of_its_own()
        .env_remove(crate::notify::NOTIFY_SOCKET)
        .spawn()
        .map_err(|error| Failure::system(format!("cannot start the hub: {error}")))?;
    let stdout = child.stdout.take();
    let mut started = Started { child, what: "hub" };
    let mut line = String::new();
    if let Some(stdout) = stdout {
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    if line.is_empty() {
        // It has said why on standard error.
        let code = started.child.wait().ok().and_then(|status| status.code()).unwrap_or(1);
        let text = "the hub did not start; its log is in logs/hub.log of the home directory";
        return Err(Failure::new(Kind::of(code.clamp(0, 255) as u8), text));
    }
    if !line.contains(&format!(":{} ", client.base.port)) {
        print::line(&format!("port {} is taken; {}", client.base.port, line.trim()));
    }
    Ok(Some(started))
}

/// The settings with the hub that we have started, wherever it listens: `config.json` is for the one that comes after us.
fn of_our_hub() -> Result<Global, Failure> {
    let mut global = Global::load(None, None)?;
    let url = run::read_info(&global.home).and_then(|info| Some(info.get("url")?.as_str()?.to_string()));
    global.relay_url = url.ok_or_else(|| Failure::system("the hub has started and its hub/hub.json cannot be read"))?;
    // A token of another relay in config.json stays there, and is none here.
    if !matches!(Client::new(&global)?.raw("GET", path::AGENTS, None), Ok((200, _))) {
        let file = run::directory(&global.home).join("root-token");
        let root = std::fs::read_to_string(&file).map_err(|error| Failure::system(format!("cannot read {}: {error}", file.display())))?;
        global.token = Some(Secret::new(root.trim().to_string()));
    }
    Ok(global)
}

trait OwnGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    /// Ctrl-C in the terminal is for `up`, which ends its processes in order.
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

struct Runner {
    process: Started,
    agent: String,
}

fn start_runner(program: &Path, options: &Up, demo: bool, agent_command: &[String], global: &Global) -> Result<Runner, Failure> {
    let mut command = Command::new(program);
    command.args(["run", "acp"]);
    if let Some(id) = &options.agent_id {
        command.args(["--agent-id", id]);
    }
    if demo {
        command.args(["--label", "demo"]);
    }
    if let Some(mode) = &options.approval {
        command.args(["--approval", mode]);
    }
    command.env("AGENT_RELAY_URL", &global.relay_url);
    if let Some(token) = &global.token {
        command.env("AGENT_RELAY_TOKEN", token.expose());
    }
    command.arg("--").args(agent_command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // The runner goes with this process, also after a SIGKILL; its work goes on at the next start.
    os::prepare_child(&mut command, true);
    let mut child = command.spawn().map_err(|error| Failure::system(format!("cannot start the runner: {error}")))?;
    let stderr = child.stderr.take();
    let mut process = Started { child, what: "runner" };
    // The first line names the agent, or says why there is none.
    let mut reader = BufReader::new(stderr.expect("piped above"));
    let mut first = String::new();
    let _ = reader.read_line(&mut first);
    let agent = first.strip_prefix("agent-relay: agent ").and_then(|rest| rest.split(' ').next()).map(str::to_string);
    std::thread::spawn(move || {
        for line in reader.lines().map_while(Result::ok) {
            print::pass_on(&line);
        }
    });
    match agent {
        Some(agent) => Ok(Runner { process, agent }),
        None => {
            let code = process.child.wait().ok().and_then(|status| status.code()).unwrap_or(1) as u8;
            let text = match first.trim() {
                "" => "the runner ended before it had started",
                text => text.strip_prefix("agent-relay: ").unwrap_or(text),
            };
            let text = text.to_string();
            Err(Failure::new(Kind::of(code), text))
        }
    }
}

struct Chat {
    client: Client,
    global: Global,
    agent: String,
    options: Up,
    tty: bool,
    /// Messages that were shown.
    seen: HashSet<MessageId>,
    /// Approvals that were shown.
    asked: HashSet<String>,
    /// Messages that have no answer yet.
    waiting: HashSet<MessageId>,
}

impl Chat {
    fn run(mut self, runner: &mut Started, heard: Sender<ChatEvent>, events: &Receiver<ChatEvent>) -> Outcome {
        self.follow(heard.clone())?;
        self.watch_runner(runner, heard.clone());
        if let Some(code) = self.wait_until_ready(events)? {
            return Ok(code);
        }
        print::line(&format!("{} is ready.{}", self.agent, if self.tty { " Type a message; Ctrl-D or Ctrl-C ends." } else { "" }));
        let mut more = self.options.say.is_empty();
        for text in std::mem::take(&mut self.options.say) {
            self.say(&text)?;
        }
        if more {
            read_lines(heard);
        }
        let mut said = !self.waiting.is_empty();
        let patience = Duration::from_secs(self.options.wait.min(WAIT_SECONDS_MAX));
        let mut until = Instant::now() + patience;
        loop {
            if !more && self.waiting.is_empty() {
                if said {
                    return Ok(OK);
                }
                // Nothing was typed: show a conversation all the same.
                said = true;
                until = Instant::now() + patience;
                self.say("Hello! Who are you, and what can you do?")?;
            }
            if let Some(code) = print::broken() {
                return Ok(code); // nobody reads any more: an orderly end
            }
            let limit =
                if more && self.tty { after(Duration::from_secs(3600)) } else { after(until.saturating_duration_since(Instant::now())) };
            select! {
                recv(events) -> happening => match happening {
                    Ok(ChatEvent::Typed(line)) => {
                        if self.typed(line.trim())? {
                            said = true;
                            until = Instant::now() + patience;
                        }
                    }
                    Ok(ChatEvent::TypedEnd) if self.tty => return Ok(OK),
                    Ok(ChatEvent::TypedEnd) => more = false,
                    Ok(ChatEvent::Frame(frame)) => {
                        if let Some(code) = self.on_frame(*frame)? {
                            return Ok(code);
                        }
                    }
                    Ok(ChatEvent::RelayLost(text)) => {
                        print::note(&format!("{text}; connecting again"));
                    }
                    Ok(ChatEvent::RelayBack) => self.catch_up()?,
                    Ok(ChatEvent::RunnerEnded(code)) => {
                        return Err(Failure::new(Kind::of(code.unwrap_or(1).clamp(0, 255) as u8), "the runner ended"));
                    }
                    Ok(ChatEvent::Signal) | Err(_) => return Ok(OK),
                },
                recv(limit) -> _ => {
                    return Err(Failure::no(format!("no answer within {} s", self.options.wait)));
                }
            }
        }
    }

    /// Listens on a thread of its own; connects again for ever.
    fn follow(&self, heard: Sender<ChatEvent>) -> Result<(), Failure> {
        const EVENTS: [&str; 3] = ["message.new", "agent.status", "agent.registered"];
        let mut follow = self.client.follow(&EVENTS, &[USER, &self.agent])?;
        let (client, agent) = (Client::new(&self.global)?, self.agent.clone());
        std::thread::spawn(move || {
            loop {
                match follow.next(Duration::from_secs(3600)) {
                    Ok(Some(frame)) => {
                        if heard.send(ChatEvent::Frame(Box::new(frame))).is_err() {
                            return;
                        }
                    }
                    Ok(None) => {}
                    Err(failure) => {
                        if heard.send(ChatEvent::RelayLost(failure.text)).is_err() {
                            return;
                        }
                        follow = loop {
                            std::thread::sleep(Duration::from_secs(1)); // pause between attempts
                            if let Ok(follow) = client.follow(&EVENTS, &[USER, &agent]) {
                                break follow;
                            }
                        };
                        if heard.send(ChatEvent::RelayBack).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(())
    }

    fn watch_runner(&self, runner: &Started, heard: Sender<ChatEvent>) {
        let process = os::process(runner.child.id());
        std::thread::spawn(move || {
            let raw = rustix::process::Pid::from_raw(process.pid as i32);
            let pidfd = raw.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
            if let Some(pidfd) = pidfd.filter(|_| os::is_alive(process)) {
                os::wait(&mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)], None);
            }
            let _ = heard.send(ChatEvent::RunnerEnded(None));
        });
    }

    /// Until the agent is ready; `Some` = ended before.
    fn wait_until_ready(&mut self, events: &Receiver<ChatEvent>) -> Result<Option<u8>, Failure> {
        let until = Instant::now() + START_LIMIT;
        loop {
            if let (200, card) = self.client.raw("GET", &path::agent(&self.agent), None)? {
                let word = card.pointer("/meta/status").and_then(Value::as_str).unwrap_or_default();
                if super::agents::is_there(&card) && matches!(word, "idle" | "busy" | "blocked") {
                    return Ok(None);
                }
            }
            match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(ChatEvent::Signal) => return Ok(Some(OK)),
                // Its own last line says why.
                Ok(ChatEvent::RunnerEnded(_)) => return Ok(Some(NO)),
                Ok(_) => {}
                Err(_) => {
                    let text = format!(
                        "the agent was not ready within {} s; `agent-relay status {} --why` tells more",
                        START_LIMIT.as_secs(),
                        self.agent
                    );
                    return Err(Failure::no(text));
                }
            }
        }
    }

    fn say(&mut self, text: &str) -> Result<(), Failure> {
        let message = NewMessage { to: self.agent.clone(), body: text.into(), ..Default::default() };
        let sent = self.client.call("POST", path::MESSAGES, Some(&json!(message)))?;
        self.waiting.extend(sent["id"].as_u64().map(MessageId));
        if !self.tty {
            print::block("you: ", "  ", text);
        }
        Ok(())
    }

    /// A typed line: a message, or the answer to an approval. True: something was sent.
    fn typed(&mut self, line: &str) -> Result<bool, Failure> {
        if line.is_empty() {
            return Ok(false);
        }
        let mut words = line.split_whitespace();
        if let (Some(word @ ("/approve" | "/approve-session" | "/deny" | "/abort")), id) = (words.next(), words.next()) {
            let open = self.open_approvals()?;
            let Some(id) = id.map(str::to_string).or_else(|| open.first().cloned()) else {
                print::line("no open approvals");
                return Ok(false);
            };
            let params = json!({"approvalId": id, "decision": &word[1..]});
            let body = json!({"type": "agent.permissionDecision", "target": self.agent, "params": params});
            self.client.call("POST", path::COMMANDS, Some(&body))?;
            return Ok(false);
        }
        if line == "/interrupt" {
            self.client.call("POST", path::COMMANDS, Some(&json!({"type": "agent.interrupt", "target": self.agent})))?;
            return Ok(false);
        }
        self.say(line)?;
        Ok(true)
    }

    fn open_approvals(&self) -> Result<Vec<String>, Failure> {
        let card = self.client.call("GET", &path::agent(&self.agent), None)?;
        let open = card.pointer("/meta/pendingApprovals").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(open.iter().filter_map(|a| a["approvalId"].as_str().map(str::to_string)).collect())
    }

    fn on_frame(&mut self, frame: RelayFrame) -> Result<Option<u8>, Failure> {
        let RelayFrame::Event { event, data, .. } = frame else {
            return Ok(None);
        };
        match event.as_str() {
            "message.new" => {
                if let Ok(message) = serde_json::from_value(data) {
                    self.show(message)?;
                }
                Ok(None)
            }
            "agent.status" => self.on_status(&data),
            _ => Ok(None),
        }
    }

    /// After a gap in the connection: what came meanwhile stands in the inbox.
    fn catch_up(&mut self) -> Result<(), Failure> {
        let mut since = MessageId(0);
        loop {
            let query = format!("{}?for={}&unread=true&mirror=false&limit=100&since={since}", path::MESSAGES, encode(USER));
            let page = messages_of(&self.client.call("GET", &query, None)?);
            let Some(last) = page.last().map(|message| message.id) else { return Ok(()) };
            since = last;
            for message in page {
                self.show(message)?;
            }
        }
    }

    fn show(&mut self, message: Message) -> Result<(), Failure> {
        if message.from != self.agent || !self.seen.insert(message.id) {
            return Ok(());
        }
        self.client.call("POST", &path::message_part(message.id, "read"), Some(&json!({"agentId": USER})))?;
        if message.is_session_mirror() {
            let kind = message.payload.get("session").and_then(|s| s["type"].as_str()).unwrap_or_default().to_string();
            if matches!(kind.as_str(), "tool" | "reasoning") {
                let short: String = message.body.lines().next().unwrap_or_default().chars().take(100).collect();
                print::line(&format!("  · {kind}: {short}"));
            }
            return Ok(());
        }
        print::block(&format!("{}: ", self.agent), "  ", &message.body);
        let answers =
            message.payload.get("answers").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_u64).map(MessageId);
        for id in answers.chain(message.reply_to) {
            self.waiting.remove(&id);
        }
        Ok(())
    }

    /// A new approval is shown; without a terminal nobody can answer it.
    fn on_status(&mut self, card: &Value) -> Result<Option<u8>, Failure> {
        for approval in card.pointer("/meta/pendingApprovals").and_then(Value::as_array).into_iter().flatten() {
            let id = approval["approvalId"].as_str().unwrap_or_default();
            let title = print::asked(approval["title"].as_str().unwrap_or_default());
            if !self.tty {
                return Err(Failure::no(format!(
                    "{} asks for permission ({title}) and there is no terminal to answer; run `agent-relay up` in a terminal, or with --approval open",
                    self.agent
                )));
            }
            if self.asked.insert(id.to_string()) {
                print::line(&format!("{} asks for permission: {title}", self.agent));
                print::line("  type /approve, /approve-session, /deny or /abort");
            }
        }
        Ok(None)
    }
}

fn read_lines(heard: Sender<ChatEvent>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if heard.send(ChatEvent::Typed(line)).is_err() {
                return;
            }
        }
        let _ = heard.send(ChatEvent::TypedEnd);
    });
}
