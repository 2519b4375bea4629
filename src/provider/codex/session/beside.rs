//! What works beside the turn: threads of subagents, commands that outlive their turn, and the
//! server's own window of a person.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use super::{CodexSession, Listens, Request};
use crate::core::ids::VerbNumber;
use crate::core::session::{GUEST_WINDOW, Output, SessionEvent};
use crate::core::time::{Now, Tick};
use crate::provider::codex::frames::{Item, Notice, text};
use crate::provider::codex::launch::TOKEN_ENV;
use crate::provider::codex::steps;
use crate::provider::jsonrpc::RpcError;

/// Other threads that are remembered; of more, those that do not work are forgotten.
const CHILDREN_MAX: usize = 64;
/// Commands of a turn, and those that outlived theirs, that are remembered.
pub(super) const COMMANDS_MAX: usize = 64;
/// A window that breaks is opened again, so often within [`BREAKS_WITHIN`].
const BREAKS_MAX: usize = 3;
const BREAKS_WITHIN: Duration = Duration::from_secs(60);

/// Another thread.
#[derive(Debug, Default)]
struct Child {
    /// What it is about; `None`: no item of ours has named it yet.
    label: Option<String>,
    works: bool,
}

impl Child {
    fn is_ours_at_work(&self) -> bool {
        self.works && self.label.is_some()
    }
}

/// What works beside the turn.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Threads of subagents, and others that work: they may be named later.
    children: BTreeMap<String, Child>,
    /// Commands that outlived their turn, by item.
    commands: BTreeMap<String, String>,
}

/// The server's own window, where a person wants one.
#[derive(Debug, Default)]
pub(super) struct Window {
    is_open: bool,
    breaks: VecDeque<Tick>,
    /// Somebody was told how to open another one elsewhere.
    pub has_guests: bool,
}

impl Window {
    /// A person may answer at it.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }
}

impl CodexSession {
    // ---- threads

    /// An item of our thread names threads that it has begun.
    pub(super) fn on_known_by_item(&mut self, item: &Item) {
        let label = match item.kind.as_str() {
            "collabAgentToolCall" => item.text("/prompt"),
            "subAgentActivity" => item.text("/agentPath"),
            _ => return,
        };
        let label = steps::summary(label);
        let many = item.record.get("receiverThreadIds").and_then(Value::as_array);
        let ids = many.into_iter().flatten().filter_map(Value::as_str);
        let ids: Vec<String> = ids.chain([item.text("/agentThreadId")]).map(String::from).collect();
        for id in ids.into_iter().filter(|id| !id.is_empty()) {
            if id == self.thread {
                continue;
            }
            let Some(child) = self.child(&id) else { continue };
            if child.label.is_none() {
                child.label = Some(label.clone());
                if child.works {
                    let (kind, label) = ("subagent", label.clone());
                    self.emit(SessionEvent::Work { kind, id, label, runs: true });
                }
            }
        }
    }

    /// What is known of another thread, if there is room for it.
    fn child(&mut self, id: &str) -> Option<&mut Child> {
        let children = &mut self.beside.children;
        if children.len() >= CHILDREN_MAX && !children.contains_key(id) {
            children.retain(|_, child| child.works);
        }
        let has_room = children.len() < CHILDREN_MAX || children.contains_key(id);
        has_room.then(|| children.entry(id.to_string()).or_default())
    }

    /// Another thread: a subagent's says whether it works; what nobody here began is nothing to us.
    pub(super) fn on_other_thread(&mut self, thread: &str, notice: Notice) {
        if let Notice::ItemStarted { item, .. } = &notice {
            self.approvals.note_change(item);
        }
        if let Notice::ItemCompleted { item, .. } = &notice {
            self.approvals.forget_change(&item.id);
        }
        let works = match notice {
            Notice::TurnStarted { .. } => true,
            Notice::Status { state, .. } => state == "active",
            Notice::TurnCompleted(record) => {
                self.approvals.withdraw_turn(&record.id, &mut self.out);
                false
            }
            Notice::Closed => false,
            _ => return,
        };
        self.set_works(thread, works);
    }

    fn set_works(&mut self, thread: &str, works: bool) {
        let Some(child) = self.child(thread) else { return };
        let changed = std::mem::replace(&mut child.works, works) != works;
        if let Some(label) = child.label.clone().filter(|_| changed) {
            let (kind, id) = ("subagent", thread.to_string());
            self.emit(SessionEvent::Work { kind, id, label, runs: works });
        }
    }

    /// Hears of the threads again that worked when the connection broke: they may be over, or ask.
    pub(super) fn rejoin_children(&mut self) {
        let children = self.beside.children.iter().filter(|(_, child)| child.is_ours_at_work());
        let working: Vec<String> = children.map(|(id, _)| id.clone()).collect();
        for id in working {
            let params = json!({"threadId": id, "excludeTurns": true});
            self.request(Request::Child(id), "thread/resume", params);
        }
    }

    pub(super) fn on_child(&mut self, thread: &str, result: Result<Value, RpcError>) {
        let is_active = |reply: &Value| text(reply, "/thread/status/type") == "active";
        self.set_works(thread, result.is_ok_and(|reply| is_active(&reply)));
    }

    // ---- commands

    /// A turn has ended before these commands.
    pub(super) fn leave_commands(&mut self, commands: BTreeMap<String, String>) {
        for (id, label) in commands {
            if self.beside.commands.len() < COMMANDS_MAX {
                self.beside.commands.insert(id.clone(), label.clone());
                self.emit(SessionEvent::Work { kind: "shell", id, label, runs: true });
            }
        }
        self.ask_terminals();
    }

    pub(super) fn on_command_done(&mut self, item: &Item) {
        self.turn.iter_mut().for_each(|turn| {
            turn.commands.remove(&item.id);
        });
        if let Some(label) = self.beside.commands.remove(&item.id) {
            let id = item.id.clone();
            self.emit(SessionEvent::Work { kind: "shell", id, label, runs: false });
        }
    }

    /// Asks which commands still run: the end of one may have been missed.
    pub(super) fn ask_terminals(&mut self) {
        if !self.beside.commands.is_empty() {
            let params = json!({"threadId": self.thread});
            self.request(Request::Terminals, "thread/backgroundTerminals/list", params);
        }
    }

    pub(super) fn on_terminals(&mut self, result: Result<Value, RpcError>) {
        // Of a page that is not the last one nothing is missing for sure.
        let is_whole = |reply: &Value| reply.get("nextCursor").is_none_or(Value::is_null);
        let Some(reply) = result.ok().filter(is_whole) else { return };
        let Some(all) = reply.get("data").and_then(Value::as_array) else { return };
        let runs = |item: &String| all.iter().any(|command| text(command, "/itemId") == item);
        let (run, over) =
            std::mem::take(&mut self.beside.commands).into_iter().partition(|(item, _)| runs(item));
        self.beside.commands = over;
        self.end_commands();
        self.beside.commands = run;
    }

    /// Ends the commands that earlier turns left behind.
    pub(super) fn clean(&mut self, verb: VerbNumber) {
        if self.beside.commands.is_empty() || !self.link.is_up {
            return self.answer(verb, Ok(json!({"wasRunning": false})));
        }
        let params = json!({"threadId": self.thread});
        self.request(Request::Clean(verb), "thread/backgroundTerminals/clean", params);
    }

    pub(super) fn on_cleaned(&mut self, verb: VerbNumber, result: Result<Value, RpcError>) {
        let cleaned = self.beside.commands.len();
        let done = json!({"wasRunning": false, "commandsEnded": cleaned});
        self.answer(verb, result.map(|_| done).map_err(|error| error.text));
    }

    /// The thread was put away, and what it had left running with it.
    pub(super) fn end_commands(&mut self) {
        for (id, label) in std::mem::take(&mut self.beside.commands) {
            self.emit(SessionEvent::Work { kind: "shell", id, label, runs: false });
        }
    }

    /// The thread is left, with all that worked for it.
    pub(super) fn leave_all(&mut self) {
        self.end_commands();
        for (id, child) in std::mem::take(&mut self.beside.children) {
            if let Some(label) = child.label.filter(|_| child.works) {
                self.emit(SessionEvent::Work { kind: "subagent", id, label, runs: false });
            }
        }
    }

    // ---- window

    /// Opens the server's own window on the thread, where a person wants one, and tells how it is
    /// opened elsewhere.
    pub(super) fn open_window(&mut self) {
        let address = match (&self.start.listens, self.banner.port()) {
            (Listens::Socket { path, .. }, _) => format!("unix://{path}"),
            (Listens::Port { .. }, port) => format!("ws://127.0.0.1:{}", port.unwrap_or_default()),
        };
        let mut arguments = ["resume", "--remote", &address].map(String::from).to_vec();
        let mut files = BTreeMap::new();
        if let Listens::Port { token_file } = &self.start.listens {
            arguments.extend(["--remote-auth-token-env", TOKEN_ENV].map(String::from));
            files.insert(TOKEN_ENV, token_file.clone());
        }
        arguments.push(self.thread.clone());
        let program = self.start.program.clone();
        let command: Vec<&String> = [&program].into_iter().chain(&arguments).collect();
        let mut window = json!({"command": command, "env": self.start.env});
        if !files.is_empty() {
            window["envFiles"] = json!(files);
        }
        self.fact(GUEST_WINDOW, window);
        if !self.start.has_window {
            return;
        }
        self.window.is_open = true;
        self.out.push(Output::StartForeground { arguments });
    }

    /// A person has closed it, or it broke.
    pub(super) fn on_window_closed(&mut self, now: Now, code: i32) {
        self.window.is_open = false;
        if self.is_stopping {
            return;
        }
        if code == 0 {
            let reason = "its window was closed".to_string();
            return self.emit(SessionEvent::EndedByUser { reason });
        }
        self.window.breaks.retain(|at| now.tick - *at < BREAKS_WITHIN);
        self.window.breaks.push_back(now.tick);
        if self.window.breaks.len() > BREAKS_MAX {
            let reason = format!("its window ends with code {code} each time");
            return self.emit(SessionEvent::EndedByUser { reason });
        }
        self.warn(format!("the window ended with code {code}; it is opened again"));
        self.open_window();
    }
}
