//! The relay as an orchestrator knows it: commands that come until they are answered.

use agent_relay::wire::api::{Command, CommandStatus};
use agent_relay::wire::bus::{ClientFrame, Registered, RelayFrame};
use serde_json::{Map, Value, json};

struct Issued {
    command: Command,
    answer: Option<(CommandStatus, Option<Value>)>,
    acknowledged: bool,
}

#[derive(Default)]
pub struct Relay {
    pub up: bool,
    pub connected: bool,
    /// Registrations beyond the first.
    pub restarts: u64,
    registered: bool,
    issued: Vec<Issued>,
    wrong: Option<String>,
}

fn frame_of(command: &Command) -> RelayFrame {
    RelayFrame::Command { id: command.id.clone(), command: command.clone() }
}

impl Relay {
    /// A command for the orchestrator; what it gets of it now.
    pub fn issue(&mut self, id: String, kind: &str, params: Map<String, Value>) -> Vec<RelayFrame> {
        let command = Command { id, kind: kind.into(), params, ..Command::default() };
        let hears = self.connected && self.registered;
        let frames = if hears { vec![frame_of(&command)] } else { vec![] };
        self.issued.push(Issued { command, answer: None, acknowledged: false });
        frames
    }

    /// A frame of the orchestrator, and what follows.
    pub fn hear(&mut self, text: &str) -> Vec<RelayFrame> {
        match ClientFrame::parse(text) {
            Ok(ClientFrame::Register { id, .. }) => {
                self.restarts += u64::from(std::mem::replace(&mut self.registered, true));
                let registered =
                    Registered { heartbeat_interval_ms: 30_000, ..Registered::default() };
                let waits = |one: &&Issued| one.answer.is_none() && !one.acknowledged;
                let frames = self.issued.iter().filter(waits).map(|one| frame_of(&one.command));
                [RelayFrame::Registered { id, registered }].into_iter().chain(frames).collect()
            }
            Ok(ClientFrame::CommandUpdate { id, command_id, status, result, error }) => {
                let told = result.or(error.map(|text| json!(text)));
                self.on_update(&command_id, status, told);
                vec![RelayFrame::Ack { frame_id: id }]
            }
            Ok(ClientFrame::Ack { frame_id }) => {
                let named = |one: &&mut Issued| one.command.id == frame_id;
                self.issued.iter_mut().filter(named).for_each(|one| one.acknowledged = true);
                vec![]
            }
            _ => vec![],
        }
    }

    fn on_update(&mut self, id: &str, status: CommandStatus, told: Option<Value>) {
        let Some(one) = self.issued.iter_mut().find(|one| one.command.id == id) else {
            self.wrong = Some(format!("there is no command {id}"));
            return;
        };
        // The first answer counts, as in a hub.
        one.answer.get_or_insert((status, told));
    }

    /// What must hold at any time.
    pub fn check(&self) -> Result<(), String> {
        self.wrong.clone().map_or(Ok(()), Err)
    }

    /// Every command has its answer.
    pub fn judge(&self) -> Result<(), String> {
        match self.issued.iter().find(|one| one.answer.is_none()) {
            Some(one) => Err(format!("{} {} has no answer", one.command.kind, one.command.id)),
            None => Ok(()),
        }
    }

    /// Sessions that were said to be stopped.
    pub fn stopped(&self) -> impl Iterator<Item = &str> {
        let is_stopped =
            |one: &&Issued| matches!(&one.answer, Some((_, Some(told))) if told["stopped"] == true);
        let stopped = self.issued.iter().filter(is_stopped);
        stopped.filter_map(|one| one.command.params.get("sessionName")?.as_str())
    }
}
