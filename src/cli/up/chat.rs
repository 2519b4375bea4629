//! The chat of `up`: lines that are typed go to the agent, what it says and asks is shown.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, select};
use serde_json::{Value, json};

use super::lines::next_line;
use super::{START_LIMIT, StartedProcess};
use crate::cli::args::Up;
use crate::cli::client::Client;
use crate::cli::exit::{Failure, NO, OK, Outcome};
use crate::cli::print;
use crate::config::Global;
use crate::core::ids::MessageId;
use crate::os;
use crate::wire::api::{Message, NewMessage, USER, encode, messages_of, path};
use crate::wire::bus::RelayFrame;

/// Longest wait that can be asked for: a year.
const WAIT_SECONDS_MAX: u64 = 365 * 24 * 3600;

/// What the chat waits for.
pub(super) enum ChatEvent {
    Typed(String),
    TypedEnd,
    Frame(Box<RelayFrame>),
    RelayLost(String),
    RelayBack,
    RunnerEnded,
    Signal,
}

/// This terminal as chat with one agent.
pub(super) struct Chat {
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
    /// More may be typed.
    is_open: bool,
    /// Something was sent.
    has_said: bool,
    /// Without a terminal an answer must be there by then.
    until: Instant,
}

impl Chat {
    pub(super) fn new(
        client: Client,
        global: Global,
        agent: String,
        options: Up,
        tty: bool,
    ) -> Chat {
        Chat {
            client,
            global,
            agent,
            options,
            tty,
            seen: HashSet::new(),
            asked: HashSet::new(),
            waiting: HashSet::new(),
            is_open: true,
            has_said: false,
            until: Instant::now(),
        }
    }

    pub(super) fn run(
        mut self,
        runner: &mut StartedProcess,
        heard: Sender<ChatEvent>,
        events: &Receiver<ChatEvent>,
    ) -> Outcome {
        self.follow(heard.clone())?;
        self.watch_runner(runner, heard.clone());
        if let Some(code) = self.wait_until_ready(events)? {
            return Ok(code);
        }
        print::line(&format!(
            "{} is ready.{}",
            self.agent,
            if self.tty { " Type a message; Ctrl-D or Ctrl-C ends." } else { "" }
        ));
        self.is_open = self.options.say.is_empty();
        for text in std::mem::take(&mut self.options.say) {
            self.say(&text)?;
        }
        if self.is_open {
            read_lines(heard);
        }
        self.has_said = !self.waiting.is_empty();
        self.be_patient();
        loop {
            if !self.is_open && self.waiting.is_empty() {
                if self.has_said {
                    return Ok(OK);
                }
                // Nothing was typed: show a conversation all the same.
                self.has_said = true;
                self.be_patient();
                self.say("Hello! Who are you, and what can you do?")?;
            }
            if let Some(code) = print::epipe_exit_code() {
                return Ok(code); // nobody reads any more: an orderly end
            }
            let limit = if self.is_open && self.tty {
                after(Duration::from_secs(3600))
            } else {
                after(self.until.saturating_duration_since(Instant::now()))
            };
            select! {
                recv(events) -> event => {
                    let event = event.unwrap_or(ChatEvent::Signal);
                    if let Some(code) = self.on_event(event)? {
                        return Ok(code);
                    }
                }
                recv(limit) -> _ => {
                    let wait = self.options.wait;
                    return Err(Failure::no(format!("no answer within {wait} s")));
                }
            }
        }
    }

    /// The time for an answer begins anew.
    fn be_patient(&mut self) {
        let seconds = self.options.wait.min(WAIT_SECONDS_MAX);
        self.until = Instant::now() + Duration::from_secs(seconds);
    }

    /// `Some`: the chat is over, with this exit code.
    fn on_event(&mut self, event: ChatEvent) -> Result<Option<u8>, Failure> {
        match event {
            ChatEvent::Typed(line) => {
                if self.typed(line.trim())? {
                    self.has_said = true;
                    self.be_patient();
                }
            }
            ChatEvent::TypedEnd if self.tty => return Ok(Some(OK)),
            ChatEvent::TypedEnd => self.is_open = false,
            ChatEvent::Frame(frame) => return self.on_frame(*frame),
            ChatEvent::RelayLost(text) => print::notice(&format!("{text}; connecting again")),
            ChatEvent::RelayBack => self.catch_up()?,
            ChatEvent::RunnerEnded => return Err(Failure::no("the runner ended")),
            ChatEvent::Signal => return Ok(Some(OK)),
        }
        Ok(None)
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

    fn watch_runner(&self, runner: &StartedProcess, heard: Sender<ChatEvent>) {
        let process = os::process(runner.child.id());
        std::thread::spawn(move || {
            let raw = rustix::process::Pid::from_raw(process.pid as i32);
            let pidfd = raw.and_then(|pid| {
                rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
            });
            if let Some(pidfd) = pidfd.filter(|_| os::is_alive(process)) {
                os::wait(
                    &mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)],
                    None,
                );
            }
            let _ = heard.send(ChatEvent::RunnerEnded);
        });
    }

    /// Until the agent is ready; `Some` = ended before.
    fn wait_until_ready(&mut self, events: &Receiver<ChatEvent>) -> Result<Option<u8>, Failure> {
        let until = Instant::now() + START_LIMIT;
        loop {
            if let (200, card) = self.client.raw("GET", &path::agent(&self.agent), None)? {
                let word = card.pointer("/meta/status").and_then(Value::as_str).unwrap_or_default();
                if crate::cli::cards::is_there(&card) && matches!(word, "idle" | "busy" | "blocked")
                {
                    return Ok(None);
                }
            }
            match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(ChatEvent::Signal) => return Ok(Some(OK)),
                // Its own last line says why.
                Ok(ChatEvent::RunnerEnded) => return Ok(Some(NO)),
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
        let message =
            NewMessage { to: self.agent.clone(), body: text.into(), ..Default::default() };
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
        if let (Some(word @ ("/approve" | "/approve-session" | "/deny" | "/abort")), id) =
            (words.next(), words.next())
        {
            let open = self.open_approvals()?;
            let Some(id) = id.map(str::to_string).or_else(|| open.first().cloned()) else {
                print::line("no open approvals");
                return Ok(false);
            };
            let params = json!({"approvalId": id, "decision": &word[1..]});
            let body =
                json!({"type": "agent.permissionDecision", "target": self.agent, "params": params});
            self.client.call("POST", path::COMMANDS, Some(&body))?;
            return Ok(false);
        }
        if line == "/interrupt" {
            self.client.call(
                "POST",
                path::COMMANDS,
                Some(&json!({"type": "agent.interrupt", "target": self.agent})),
            )?;
            return Ok(false);
        }
        self.say(line)?;
        Ok(true)
    }

    fn open_approvals(&self) -> Result<Vec<String>, Failure> {
        let card = self.client.call("GET", &path::agent(&self.agent), None)?;
        let open = card
            .pointer("/meta/pendingApprovals")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
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
            let query = format!(
                "{}?for={}&unread=true&mirror=false&limit=100&since={since}",
                path::MESSAGES,
                encode(USER)
            );
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
        self.client.call(
            "POST",
            &path::message_part(message.id, "read"),
            Some(&json!({"agentId": USER})),
        )?;
        if message.is_session_mirror() {
            let kind = message
                .payload
                .get("session")
                .and_then(|s| s["type"].as_str())
                .unwrap_or_default()
                .to_string();
            if matches!(kind.as_str(), "tool" | "reasoning") {
                let short: String =
                    message.body.lines().next().unwrap_or_default().chars().take(100).collect();
                print::line(&format!("  · {kind}: {short}"));
            }
            return Ok(());
        }
        print::block(&format!("{}: ", self.agent), "  ", &message.body);
        let answers = message
            .payload
            .get("answers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
            .map(MessageId);
        for id in answers.chain(message.reply_to) {
            self.waiting.remove(&id);
        }
        Ok(())
    }

    /// A new approval is shown; without a terminal nobody can answer it.
    fn on_status(&mut self, card: &Value) -> Result<Option<u8>, Failure> {
        for approval in
            card.pointer("/meta/pendingApprovals").and_then(Value::as_array).into_iter().flatten()
        {
            let id = approval["approvalId"].as_str().unwrap_or_default();
            let title = print::approval_text(approval["title"].as_str().unwrap_or_default());
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
        let mut typed = std::io::stdin().lock();
        while let Some(line) = next_line(&mut typed) {
            if heard.send(ChatEvent::Typed(line)).is_err() {
                return;
            }
        }
        let _ = heard.send(ChatEvent::TypedEnd);
    });
}
