//! The file `hub-mark.json` beside the hub's folder: which ids were given here, whatever becomes of
//! the store (`core/hub/generations.rs`).

use std::io;
use std::path::{Path, PathBuf};

use super::store::{Committed, HubStore, cause_of};
use crate::core::Cause;
use crate::core::commit::Commit;
use crate::core::hub::event::HubOp;
use crate::core::hub::generations::{Mark, OrderlyEnd};
use crate::core::ids::{MessageId, TaskId};
use crate::edge::database::io_error_of;
use crate::os;

/// The file with its content.
pub struct MarkFile {
    path: PathBuf,
    mark: Mark,
    /// The file existed and was readable.
    existed: bool,
}

impl MarkFile {
    /// Its path: beside the folder, so that another folder in its place does not bring another
    /// mark.
    pub fn path(home: &Path) -> PathBuf {
        home.join("hub-mark.json")
    }

    /// Reads the file. One that cannot be parsed is reported and set aside, and counts as missing.
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

    /// The content at the start.
    pub fn found(&self) -> Option<Mark> {
        self.existed.then(|| self.mark.clone())
    }

    /// Takes over what is durable in the store. True: the file has to be saved.
    pub fn note(&mut self, op: &HubOp) -> bool {
        self.mark.note(op)
    }

    /// Writes the file, atomically and durably.
    pub fn save(&mut self) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&self.mark).expect("plain data") + "\n";
        os::write_private_file(&self.path, &text)
    }

    /// Notes the last ids at an orderly end. If that fails, the next start skips the rest of the
    /// reserved block.
    pub fn end(&mut self, (last_message_id, last_task_id): (MessageId, TaskId)) {
        self.mark.orderly_end = Some(OrderlyEnd { last_message_id, last_task_id });
        if let Err(error) = self.save() {
            log::warn!(target: "hub", "cannot write {}: {error}", self.path.display());
        }
    }
}

/// How far commits are that have to be tried again. A commit is durable once its changes are in
/// the store and its ids in the mark file.
pub enum Pending {
    /// Nothing of them is durable.
    All,
    /// This many of them stand in the store, but not in the mark yet.
    Mark(Committed, usize),
}

/// Makes commits durable, in the order that [`crate::core::hub::generations`] demands: the end of a
/// block of ids in the store, then in the mark, then what uses them. Gives how many commits that
/// was.
pub fn persist(
    store: &mut HubStore,
    mark: &mut MarkFile,
    commits: &[Commit<HubOp>],
    pending: &mut Pending,
) -> Result<(Committed, usize), Cause> {
    let failed =
        |error: io::Error| Cause::from(io_error_of("the hub's mark cannot be written", &error));
    if let Pending::Mark(..) = pending {
        mark.save().map_err(failed)?;
        if let Pending::Mark(committed, count) = std::mem::replace(pending, Pending::All) {
            return Ok((committed, count));
        }
    }
    let ops = || commits.iter().flat_map(|commit| &commit.ops);
    if let Some(reserve) = ops().rfind(|op| matches!(op, HubOp::Reserve { .. })) {
        mark.note(reserve);
        if crate::planted::is("mark-before-block") {
            mark.save().map_err(failed)?;
        } else {
            store.commit_ops(std::slice::from_ref(reserve)).map_err(|error| cause_of(&error))?;
        }
        os::crash_point("hub-between-block-and-mark");
        mark.save().map_err(failed)?;
    }
    let committed = store.commit(commits).map_err(|error| cause_of(&error))?;
    let mut noted = false;
    for op in ops().filter(|op| !matches!(op, HubOp::Reserve { .. })) {
        if let HubOp::Adopt { .. } = op {
            // From now on the main file itself names the start that it belongs to, so that a log of
            // another file beside it is recognized.
            store.checkpoint();
        }
        noted |= mark.note(op);
    }
    if noted && let Err(error) = mark.save() {
        *pending = Pending::Mark(committed, commits.len());
        return Err(failed(error));
    }
    Ok((committed, commits.len()))
}
