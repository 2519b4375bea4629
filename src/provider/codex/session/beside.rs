//! What works beside the turn: threads of subagents, commands that outlive their turn, and the
//! server's own window of a person.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use super::{CodexSession, Request};
use crate::core::ids::VerbNumber;
use crate::core::session::{GUEST_WINDOW, Output, SessionEvent};
use crate::core::time::{Now, Tick};
use crate::provider::codex::frames::{Item, Notice};
use crate::provider::codex::steps;
use crate::provider::jsonrpc::RpcError;

/// Subagents that are remembered.
const CHILDREN_MAX: usize = 64;
/// Commands that outlived their turn and are remembered.
const COMMANDS_MAX: usize = 64;
/// A window that breaks is opened again, so often within [`BREAKS_WITHIN`].
const BREAKS_MAX: usize = 3;
const BREAKS_WITHIN: Duration = Duration::from_secs(60);

/// What works beside the turn.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Threads of subagents: what they are about, and whether they work.
    children: BTreeMap<String, (String, bool)>,
    /// Commands that outlived their turn, by item.
    commands: BTreeMap<String, String>,
}

/// The server's own window, where a person wants one.
#[derive(Debug, Default)]
pub(super) struct Window {
    is_open: bool,
    breaks: VecDeque<Tick>,
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
        for id in ids.into_iter().filter(|id| !id.is_empty() && *id != self.thread) {
            if self.beside.children.len() < CHILDREN_MAX {
                self.beside.children.entry(id).or_insert_with(|| (label.clone(), false));
            }
        }
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
        let Some((label, worked)) = self.beside.children.get_mut(thread) else { return };
        if std::mem::replace(worked, works) != works {
            let (id, label) = (thread.to_string(), label.clone());
            self.emit(SessionEvent::Work { kind: "subagent", id, label, runs: works });
        }
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

    /// The thread is left, with all that worked for it.
    pub(super) fn leave_all(&mut self) {
        let Beside { children, commands } = std::mem::take(&mut self.beside);
        let works = children.into_iter().filter(|(_, (_, works))| *works);
        let threads = works.map(|(id, (label, _))| ("subagent", id, label));
        let commands = commands.into_iter().map(|(id, label)| ("shell", id, label));
        let all: Vec<_> = threads.chain(commands).collect();
        for (kind, id, label) in all {
            self.emit(SessionEvent::Work { kind, id, label, runs: false });
        }
    }

    // ---- window

    /// Opens the server's own window on the thread, where a person wants one, and tells how it is
    /// opened elsewhere.
    pub(super) fn open_window(&mut self) {
        let address = format!("unix://{}", self.start.socket);
        let words = ["resume", "--remote", &address, &self.thread];
        let arguments = words.map(String::from).to_vec();
        let program = self.start.program.clone();
        let command: Vec<&String> = [&program].into_iter().chain(&arguments).collect();
        self.fact(GUEST_WINDOW, json!({"command": command, "env": self.start.env}));
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
