//! The hub's SQLite file.

mod message;
mod retention;
pub(super) mod schema;
mod snapshot;
mod tasks;
#[cfg(test)]
mod tests;
mod thread;
mod write;

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use self::retention::retain;
use self::schema::SCHEMAS;
pub use self::thread::run;
use self::write::apply;
use super::Trouble;
use super::read::View;
use crate::core::commit::Commit;
use crate::core::hub::event::{HubOp, Query, ReadAnswer, Retired};
use crate::core::hub::generations::{DataState, StoredGeneration};
use crate::core::ids::{MessageId, TaskId};
use crate::core::store::StoreError;
use crate::edge::database::{
    NamedFile, Opened, copy_checked, error_of, give_back, open_database, open_for_reading, rows_of,
    sizes,
};
use crate::wire::api::Message;

/// Pages that many commits change, as those of an agent's mail, go into the file once and not with
/// each of them: the log may hold 16 MB, and the pages of a few thousand agents fit into memory.
const SETTINGS: &str = "PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 16777216; PRAGMA cache_size = -8192;";
/// Statements that are not parsed again: more than a hub uses all the time.
const STATEMENTS_CACHED: usize = 64;

/// The writer's connection.
pub struct HubStore {
    db: Connection,
    place: NamedFile,
    alone: bool,
}

impl HubStore {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> Result<HubStore, StoreError> {
        let Opened { db, alone } = open_database(path, SCHEMAS)?;
        db.execute_batch(SETTINGS).map_err(|error| {
            error_of(format!("cannot open the store {}", path.display()), &error)
        })?;
        db.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
        Ok(HubStore { db, place: NamedFile::of(path), alone })
    }

    /// No other connection can open the file while this one has it.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Whether the file is still where it was; else what it holds is saved.
    pub fn look(&mut self) -> Option<StoreError> {
        let moved = self.place.look()?;
        Some(super::salvage::save_open(&self.db, self.place.path(), moved))
    }

    /// A store without a file, for the simulation: it has exactly what was committed.
    pub fn in_memory() -> rusqlite::Result<HubStore> {
        let db = Connection::open_in_memory()?;
        SCHEMAS.iter().try_for_each(|schema| db.execute_batch(schema))?;
        Ok(HubStore { db, place: NamedFile::default(), alone: true })
    }

    /// Answers a question on the writer's own connection.
    pub fn answer(&self, query: &Query) -> ReadAnswer {
        View { db: &self.db }.answer(query)
    }

    /// Every row of every table, for comparisons in tests.
    pub fn rows(&self) -> rusqlite::Result<Vec<String>> {
        rows_of(&self.db)
    }

    /// Highest ids of messages and tasks.
    pub fn highest_ids(&self) -> rusqlite::Result<(MessageId, TaskId)> {
        highest_ids(&self.db)
    }

    /// Brings everything into the main file. False: that was not possible now.
    pub(super) fn checkpoint(&self) -> bool {
        self.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);").is_ok()
    }

    /// When the newest message was accepted, ms; 0 = there is none.
    pub fn newest_at(&self) -> rusqlite::Result<i64> {
        self.db.query_row(
            "SELECT coalesce(max(created_at), 0) FROM (SELECT created_at FROM messages ORDER BY id DESC LIMIT 1)",
            [],
            |row| row.get(0),
        )
    }

    /// Marks the store as a backup in which no hub has run.
    pub fn set_copied(&mut self) -> rusqlite::Result<()> {
        put_facts(&self.db, &[("copied", 1)])
    }

    /// Makes the operations of all commits durable in one transaction. On an error nothing changed.
    pub fn commit(&mut self, commits: &[Commit<HubOp>]) -> rusqlite::Result<Committed> {
        self.write(&mut commits.iter().flat_map(|commit| &commit.ops))
    }

    /// The same for operations that no machine waits for.
    pub fn commit_ops(&mut self, ops: &[HubOp]) -> rusqlite::Result<Committed> {
        self.write(&mut ops.iter())
    }

    fn write(&mut self, ops: &mut dyn Iterator<Item = &HubOp>) -> rusqlite::Result<Committed> {
        let transaction =
            self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut committed = Committed::default();
        for op in ops {
            match op {
                HubOp::Retain { session_before, before, limit } => {
                    retain(&transaction, *session_before, *before, *limit, &mut committed.retired)?;
                }
                op => apply(&transaction, op, &mut committed)?,
            }
        }
        transaction.commit()?;
        Ok(committed)
    }

    /// Gives free pages back to the disk until none is left; bytes of the file before and after.
    pub fn vacuum(&mut self) -> rusqlite::Result<(u64, u64)> {
        let before = sizes(&self.db)?.0;
        while self.vacuum_step()? {}
        self.after_vacuum().map(|after| (before, after))
    }

    /// Gives some pages back; false: no free page is left.
    fn vacuum_step(&mut self) -> rusqlite::Result<bool> {
        let before = sizes(&self.db)?.1;
        give_back(&self.db, VACUUM_PAGES)?;
        // A file that was made without the setting keeps its pages: only a full VACUUM would do.
        let after = sizes(&self.db)?.1;
        Ok(after > 0 && after < before)
    }

    fn after_vacuum(&mut self) -> rusqlite::Result<u64> {
        // Without statistics a planner may read a whole index where another one has a handful of
        // rows.
        self.db.execute_batch("PRAGMA optimize; PRAGMA wal_checkpoint(TRUNCATE);")?;
        sizes(&self.db).map(|(bytes, _)| bytes)
    }
}

/// Pages that one step of a vacuum moves: other commits wait no longer than that.
const VACUUM_PAGES: u32 = 500;

/// Copies the store into a new file that only its owner may read, consistent, checked and durable,
/// also while a hub writes.
pub fn backup(from: &Path, to: &Path) -> Result<u64, Trouble> {
    let what = format!("cannot copy {} to {}", from.display(), to.display());
    if !from.is_file() {
        return Err(Trouble::Use(format!(
            "{what}: there is no hub's store; start a hub first, or set AGENT_RELAY_HOME"
        )));
    }
    if to.exists() {
        return Err(Trouble::Use(format!(
            "{what}: the file exists already; name another one or remove it"
        )));
    }
    let bytes = copy_checked(&open_for_reading(from)?, to, &what)?;
    // A hub that finds it in its store's place knows it by that. A store that no hub of this
    // version has run on has no such facts: there the mark beside the hub's folder tells.
    let _ = Connection::open(to).and_then(|db| put_facts(&db, &[("copied", 1)]));
    Ok(bytes)
}

/// What a commit tells besides being durable.
#[derive(Debug, Default)]
pub struct Committed {
    /// Messages that were there before under their key: new id, first message.
    pub existing: Vec<(MessageId, Message)>,
    /// Messages as they were stored without what they answer: it is not there, or not for their
    /// sender to see.
    pub unattached: Vec<Message>,
    /// Reactions to what their sender cannot see: message and agent.
    pub unseen: Vec<(MessageId, String)>,
    /// What the retention took away.
    pub retired: Retired,
}

/// Newest message and newest task.
pub(super) fn highest_ids(db: &Connection) -> rusqlite::Result<(MessageId, TaskId)> {
    let message =
        db.query_row("SELECT coalesce(max(id), 0) FROM messages", [], |row| row.get(0))?;
    let task = db.query_row("SELECT coalesce(max(id), 0) FROM tasks", [], |row| row.get(0))?;
    Ok((message, task))
}

fn put_facts(db: &Connection, facts: &[(&str, u64)]) -> rusqlite::Result<()> {
    let mut statement =
        db.prepare_cached("INSERT OR REPLACE INTO facts (name, value) VALUES (?1, ?2)")?;
    facts
        .iter()
        .try_for_each(|(name, value)| statement.execute(params![name, *value as i64]).map(|_| ()))
}

/// What the store knows of its own past.
pub(super) fn data_state(db: &Connection) -> rusqlite::Result<DataState> {
    let fact = |name: &str| -> rusqlite::Result<u64> {
        let value: Option<i64> = db
            .query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0))
            .optional()?;
        Ok(value.unwrap_or(0) as u64)
    };
    let mut statement =
        db.prepare("SELECT name, first_message, first_task, follows_message, follows_task FROM generations ORDER BY number")?;
    let generations = statement
        .query_map([], |row| {
            Ok(StoredGeneration {
                name: row.get(0)?,
                first_message: row.get(1)?,
                first_task: row.get(2)?,
                follows_message: row.get(3)?,
                follows_task: row.get(4)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(DataState {
        generations,
        messages_end: MessageId(fact("messages_end")?),
        tasks_end: TaskId(fact("tasks_end")?),
        starts: fact("starts")?,
        copied: fact("copied")? > 0,
    })
}

pub(super) fn cause_of(error: &rusqlite::Error) -> crate::core::Cause {
    error_of("the hub's store", error).into()
}
