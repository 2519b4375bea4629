//! What an agent starts from.

use rusqlite::{Connection, OptionalExtension};

use super::Store;
use super::inbox::place_of;
use crate::core::agent::store::{
    Choice, Generation, InboxState, ProviderRecord, Settled, Snapshot, TaskEnd, Unsettled,
};
use crate::core::ids::{BatchNumber, MessageId, ProcessRef, TaskId};
use crate::core::limits::SETTLED_IDS_MAX;
use crate::wire::api::Command;

impl Store {
    /// All that an agent starts from.
    pub fn snapshot(&self) -> rusqlite::Result<Snapshot> {
        let db = &self.db;
        let (waiting, more_waiting) = self.inbox(&Choice::InOrder)?;
        Ok(Snapshot {
            generations: generations(db)?,
            waiting,
            more_waiting,
            unsettled: unsettled(db)?,
            settled: settled(db)?,
            commands: commands(db)?,
            outbox_pending: self.counters.rows,
            outbox_poisoned: self.counters.poisoned,
            provider: provider(db)?,
            notes: notes(db)?,
        })
    }
}

/// Messages that were handed over and have no end yet. A row that cannot be read is left out.
fn unsettled(db: &Connection) -> rusqlite::Result<Vec<Unsettled>> {
    let mut statement = db.prepare(
        "SELECT family, id, generation, doc, state, batch FROM inbox
         WHERE state IN (1, 2) ORDER BY family, id, generation",
    )?;
    let rows = statement.query_map([], |row| {
        let (doc, state, batch): (String, i64, i64) = (row.get(3)?, row.get(4)?, row.get(5)?);
        Ok((place_of(row)?, doc, state, batch))
    })?;
    Ok(rows
        .filter_map(|row| row.ok())
        .filter_map(|(at, doc, state, batch)| {
            let state = if state == 2 { InboxState::Confirmed } else { InboxState::Delivering };
            let message = serde_json::from_str(&doc).ok()?;
            Some(Unsettled { at, message, state, batch: BatchNumber(batch as u64) })
        })
        .collect())
}

/// The newest of the settled messages, the newest one last.
fn settled(db: &Connection) -> rusqlite::Result<Vec<Settled>> {
    let mut statement = db.prepare(
        "SELECT family, id, generation, told, task, ended, sender FROM inbox
         WHERE state = 3 ORDER BY settled DESC LIMIT ?1",
    )?;
    let rows = statement.query_map([SETTLED_IDS_MAX as i64], |row| {
        let task: Option<TaskId> = row.get(4)?;
        let status: Option<String> = row.get(5)?;
        let ended = task.zip(status).map(|(task, status)| TaskEnd { task, status: status.into() });
        Ok(Settled { at: place_of(row)?, read: row.get(3)?, ended, from: row.get(6)? })
    })?;
    let mut settled: Vec<Settled> = rows.collect::<Result<_, _>>()?;
    settled.reverse();
    Ok(settled)
}

fn generations(db: &Connection) -> rusqlite::Result<Vec<Generation>> {
    let mut statement = db.prepare(
        "SELECT number, family, name, told, coalesce((SELECT max(id) FROM inbox WHERE generation = number), 0)
         FROM generations ORDER BY number",
    )?;
    let rows = statement.query_map([], |row| {
        let (number, family, highest): (i64, i64, MessageId) =
            (row.get(0)?, row.get(1)?, row.get(4)?);
        Ok(Generation {
            number: number as u32,
            family: family as u32,
            name: row.get(2)?,
            told: row.get(3)?,
            highest,
        })
    })?;
    rows.collect()
}

/// Commands, each with whether its end was reported.
fn commands(db: &Connection) -> rusqlite::Result<Vec<(Command, bool)>> {
    let mut statement = db.prepare("SELECT doc, reported FROM commands ORDER BY seq")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
    Ok(rows
        .filter_map(|row| row.ok())
        .filter_map(|(doc, reported)| Some((serde_json::from_str::<Command>(&doc).ok()?, reported)))
        .collect())
}

fn provider(db: &Connection) -> rusqlite::Result<Option<ProviderRecord>> {
    db.query_row("SELECT pid, start, provider_session, session FROM provider", [], |row| {
        let (pid, start): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok(ProviderRecord {
            process: ProcessRef { pid: pid as u32, start: start as u64 },
            provider_session: row.get(2)?,
            session: row.get(3)?,
        })
    })
    .optional()
}

fn notes(db: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = db.prepare("SELECT key, value FROM notes")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}
