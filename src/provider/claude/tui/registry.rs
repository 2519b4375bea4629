//! What the program writes about itself in `sessions/<pid>.json`.

use serde_json::Value;

use crate::provider::reader::{self, Damage, is_sound, whole};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Status {
    /// The file does not say.
    #[default]
    Unknown,
    /// At its prompt.
    Idle,
    /// At its prompt; a shell or a monitor works in the background.
    Shell,
    /// Somebody must answer a dialog.
    Waiting,
    /// Any other word: a turn runs.
    Busy,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Registry {
    status: Status,
    waiting_for: String,
    session: String,
    version: String,
    socket: Option<String>,
    /// When the status changed, by the program's clock, ms.
    status_since: i64,
}

impl Registry {
    /// Fields of a wrong type count as missing; `None`: half a file.
    pub fn read(text: &str) -> Option<Registry> {
        let document = reader::read(text.as_bytes())?;
        if document.damage == Damage::Broken {
            return None; // it is being written
        }
        let record = document.value;
        let text =
            |field: &str| record.get(field).and_then(Value::as_str).unwrap_or_default().to_string();
        // What names something counts only as it was written.
        let name = |field: &str| Some(text(field)).filter(|name| is_sound(name));
        Some(Registry {
            status: match text("status").as_str() {
                "" => Status::Unknown,
                "idle" => Status::Idle,
                "shell" => Status::Shell,
                "waiting" => Status::Waiting,
                _ => Status::Busy,
            },
            waiting_for: text("waitingFor"),
            session: name("sessionId").unwrap_or_default(),
            version: text("version"),
            socket: name("messagingSocketPath").filter(|path| path.starts_with('/')),
            status_since: record.get("statusUpdatedAt").and_then(whole).unwrap_or(0),
        })
    }

    pub fn status(&self) -> Status {
        self.status
    }

    pub fn status_since(&self) -> i64 {
        self.status_since
    }

    pub fn waiting_for(&self) -> &str {
        &self.waiting_for
    }

    /// Id of the session; empty: the file does not say.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// Version of the program; empty: the file does not say.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn socket(&self) -> Option<&str> {
        self.socket.as_deref()
    }

    /// It is that session, or the file does not say which.
    pub fn may_be(&self, session: &str) -> bool {
        self.session.is_empty() || self.session == session
    }

    /// At its prompt; a background shell or a monitor may work.
    pub fn is_idle(&self) -> bool {
        matches!(self.status, Status::Idle | Status::Shell)
    }

    pub fn is_waiting(&self) -> bool {
        self.status == Status::Waiting
    }

    /// Somebody must answer a dialog that has opened since that time (ms).
    pub fn waits_since(&self, at: i64) -> bool {
        self.is_waiting() && self.status_since >= at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_read_leniently() {
        let text = r#"{"status":"shell","sessionId":"s","version":"2.1.329",
            "messagingSocketPath":"/t/1.sock","statusUpdatedAt":5}"#;
        let registry = Registry::read(text).expect("reads");
        assert!(registry.is_idle() && registry.status_since == 5);
        assert_eq!(registry.socket(), Some("/t/1.sock"));
        assert_eq!(Registry::read("{\"status\":7}"), Some(Registry::default()));
        assert_eq!(Registry::read("half"), None);
        assert_eq!(Registry::read("{\"status\":\"idle\",\"sess"), None, "it is being written");
        let text = "\u{feff}{\"status\":\"idle\",\"sessionId\":\"s\",\"name\":\"x\\ud83d\",
            \"statusUpdatedAt\":5.0,\"messagingSocketPath\":\"/t/\\ud83d\",\"n\":1e999}";
        let registry = Registry::read(text).expect("reads");
        assert!(registry.is_idle() && registry.status_since == 5);
        assert_eq!((registry.session(), registry.socket()), ("s", None));
    }

    #[test]
    fn any_word_that_is_not_known_is_work() {
        for (word, want) in [
            ("idle", Status::Idle),
            ("shell", Status::Shell),
            ("waiting", Status::Waiting),
            ("busy", Status::Busy),
            ("thinking", Status::Busy),
            ("", Status::Unknown),
        ] {
            let registry = Registry::read(&format!("{{\"status\":\"{word}\"}}")).expect("reads");
            assert_eq!(registry.status(), want, "{word}");
        }
    }
}
