//! The mark beside the hub's folder, `hub-mark.json`: what was given here, whatever becomes of the store
//! (`core/hub/generations.rs`).

use std::io;
use std::path::{Path, PathBuf};

use crate::core::hub::event::HubOp;
use crate::core::hub::generations::{Mark, OrderlyEnd};
use crate::os;

/// The file with its content.
pub struct MarkFile {
    path: PathBuf,
    mark: Mark,
    /// It was there, and readable.
    existed: bool,
}

impl MarkFile {
    /// Where it stands: beside the folder, so that whoever puts another folder in its place does not put another mark there.
    pub fn path(home: &Path) -> PathBuf {
        home.join("hub-mark.json")
    }

    /// Reads it. A missing one is as good as none; one that cannot be understood is told and set aside.
    pub fn open(home: &Path) -> io::Result<MarkFile> {
        let path = MarkFile::path(home);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(MarkFile { path, mark: Mark::default(), existed: false });
            }
            Err(error) => return Err(error),
        };
        match serde_json::from_str(&text) {
            Ok(mark) => Ok(MarkFile { path, mark, existed: true }),
            Err(error) => {
                let aside = path.with_extension("json.damaged");
                log::error!(target: "hub", "{} is not readable ({error}); it is kept as {}", path.display(), aside.display());
                std::fs::rename(&path, &aside)?;
                Ok(MarkFile { path, mark: Mark::default(), existed: false })
            }
        }
    }

    /// What stood there at the start.
    pub fn found(&self) -> Option<Mark> {
        self.existed.then(|| self.mark.clone())
    }

    /// Takes over what is durable in the store. True: it has to be saved.
    pub fn note(&mut self, op: &HubOp) -> bool {
        self.mark.note(op)
    }

    /// Writes it, atomically and durably.
    pub fn save(&mut self) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&self.mark).expect("plain data") + "\n";
        os::write_private_file(&self.path, &text)
    }

    /// The hub ends in order: what it gave last. If that cannot be written, the next start leaves the rest of the block alone.
    pub fn end(&mut self, (last_message_id, last_task_id): (u64, u64)) {
        self.mark.orderly_end = Some(OrderlyEnd { last_message_id, last_task_id });
        if let Err(error) = self.save() {
            log::warn!(target: "hub", "cannot write {}: {error}", self.path.display());
        }
    }
}
