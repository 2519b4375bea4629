//! What works beside the turn: subagents and shells in the background.

use std::collections::BTreeMap;

use serde_json::Value;

use super::out::Out;
use crate::core::session::SessionEvent;

/// Tasks that are remembered; more are not told of.
const TASKS_MAX: usize = 256;
/// Characters of a task's label.
const LABEL_CHARS_MAX: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Subagent,
    Shell,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Subagent => "subagent",
            Kind::Shell => "shell",
        }
    }

    fn parse(word: &str) -> Option<Kind> {
        match word {
            "subagent" => Some(Kind::Subagent),
            "shell" => Some(Kind::Shell),
            _ => None,
        }
    }
}

/// The tasks that run, by id. Every begin and end is told once.
#[derive(Debug, Default)]
pub(super) struct Background {
    running: BTreeMap<String, Kind>,
}

impl Background {
    pub fn started(&mut self, id: &str, kind: Kind, label: &str, out: &mut Out) {
        if id.is_empty() || self.running.len() >= TASKS_MAX {
            return;
        }
        if self.running.insert(id.to_string(), kind).is_none() {
            let label = label.chars().take(LABEL_CHARS_MAX).collect();
            out.emit(SessionEvent::Work { kind: kind.as_str(), id: id.into(), label, runs: true });
        }
    }

    pub fn ended(&mut self, id: &str, kind: Kind, out: &mut Out) {
        if self.running.remove(id).is_some() {
            let label = String::new();
            out.emit(SessionEvent::Work { kind: kind.as_str(), id: id.into(), label, runs: false });
        }
    }

    /// The whole list, as some hooks tell it. The list that comes with the end of a task still
    /// holds that task: `just_ended`.
    pub fn replace(&mut self, tasks: &[Value], just_ended: Option<&str>, out: &mut Out) {
        let mut listed: BTreeMap<&str, (Kind, &str)> = BTreeMap::new();
        for task in tasks.iter().take(TASKS_MAX) {
            let text = |field: &str| task.get(field).and_then(Value::as_str).unwrap_or_default();
            let Some(kind) = Kind::parse(text("type")) else { continue };
            if text("status") == "running" && just_ended != Some(text("id")) {
                listed.insert(text("id"), (kind, text("description")));
            }
        }
        self.end_where(|id, _| !listed.contains_key(id), out);
        for (id, (kind, label)) in listed {
            self.started(id, kind, label, out);
        }
    }

    pub fn has_subagents(&self) -> bool {
        self.running.values().any(|kind| *kind == Kind::Subagent)
    }

    /// The registry says that no subagent works any more: it is busy as long as one does.
    pub fn no_subagents(&mut self, out: &mut Out) {
        self.end_where(|_, kind| kind == Kind::Subagent, out);
    }

    /// The registry says that no shell works any more.
    pub fn no_shells(&mut self, out: &mut Out) {
        self.end_where(|_, kind| kind == Kind::Shell, out);
    }

    fn end_where(&mut self, is_over: impl Fn(&str, Kind) -> bool, out: &mut Out) {
        let over = self.running.iter().filter(|(id, kind)| is_over(id, **kind));
        for (id, kind) in over.map(|(id, kind)| (id.clone(), *kind)).collect::<Vec<_>>() {
            self.ended(&id, kind, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::session::Output;

    fn told(out: &mut Out) -> Vec<String> {
        let line = |output| match output {
            Output::Event(SessionEvent::Work { kind, id, runs, .. }) => {
                format!("{kind} {id} {}", if runs { "runs" } else { "ended" })
            }
            other => format!("{other:?}"),
        };
        out.take().into_iter().map(line).collect()
    }

    #[test]
    fn every_begin_and_end_is_told_once() {
        let (mut background, mut out) = (Background::default(), Out::default());
        background.started("a", Kind::Subagent, "", &mut out);
        background.started("a", Kind::Subagent, "", &mut out);
        background.started("", Kind::Subagent, "", &mut out);
        assert_eq!(told(&mut out), ["subagent a runs"]);
        let task =
            |kind: &str, id: &str, status: &str| json!({"type": kind, "id": id, "status": status});
        let tasks = [
            task("subagent", "a", "running"),
            task("shell", "s", "running"),
            task("shell", "t", "completed"),
            task("poem", "p", "running"),
            json!(5),
        ];
        background.replace(&tasks, Some("a"), &mut out);
        assert_eq!(told(&mut out), ["subagent a ended", "shell s runs"]);
        background.no_shells(&mut out);
        background.no_shells(&mut out);
        assert_eq!(told(&mut out), ["shell s ended"]);
    }

    #[test]
    fn a_flood_of_tasks_is_bounded() {
        let (mut background, mut out) = (Background::default(), Out::default());
        for number in 0..TASKS_MAX + 5 {
            background.started(&number.to_string(), Kind::Shell, "", &mut out);
        }
        assert_eq!(out.take().len(), TASKS_MAX);
    }
}
