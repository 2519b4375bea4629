//! Changes of a runner's store, and the bound of its outbox.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, ToSql, Transaction, params};

use super::inbox::note_sender;
use crate::core::agent::store::{
    Generation, InboxMessage, InboxState, OutboxRow, ProviderRecord, StoreOp, TaskEnd,
};
use crate::core::ids::MessageRef;
use crate::wire::api::Command;

/// Rows that are dropped at once when the bound is reached.
const DROP_BLOCK: u64 = 64;

/// What table `counters` holds, so that nothing is counted row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counters {
    /// Outbox rows that are still to be sent.
    pub(super) rows: u64,
    /// Outbox rows that the relay refused for good.
    pub(super) poisoned: u64,
    /// Payload bytes of all outbox rows.
    pub(super) bytes: u64,
    /// Messages that were ever settled: the order in which they were.
    pub(super) settled: i64,
}

impl Counters {
    pub(super) fn save(&self, db: &Transaction<'_>) -> rusqlite::Result<()> {
        let mut statement =
            db.prepare_cached("INSERT OR REPLACE INTO counters (name, value) VALUES (?1, ?2)")?;
        for (name, value) in [
            ("rows", self.rows as i64),
            ("poisoned", self.poisoned as i64),
            ("bytes", self.bytes as i64),
            ("settled", self.settled),
        ] {
            statement.execute(params![name, value])?;
        }
        Ok(())
    }
}

/// One transaction, with the counters as they are once it is durable.
pub(super) struct Write<'a> {
    pub(super) db: &'a Transaction<'a>,
    pub(super) counters: Counters,
    /// Rows that were deleted.
    pub(super) deleted: u64,
}

impl Write<'_> {
    pub(super) fn apply(&mut self, op: &StoreOp) -> rusqlite::Result<()> {
        match op {
            StoreOp::GenerationPut(generation) => put_generation(self.db, generation),
            StoreOp::InboxPut(message) => self.put_inbox(message),
            StoreOp::InboxMark { at, state, batch, evidence } => self.change_inbox(
                "UPDATE inbox SET state = ?3, batch = ?4, evidence = ?5
                 WHERE generation = ?1 AND id = ?2 RETURNING sender",
                params![at.generation, at.id, number_of(*state), batch.0 as i64, evidence],
            ),
            StoreOp::InboxSettle { at, read, ended } => self.settle(at, *read, ended.as_ref()),
            StoreOp::InboxForget { at } => {
                self.deleted += 1;
                self.change_inbox(
                    "DELETE FROM inbox WHERE generation = ?1 AND id = ?2 RETURNING sender",
                    params![at.generation, at.id],
                )
            }
            StoreOp::CommandPut(command) => {
                let doc = serde_json::to_string(command).expect("plain data");
                self.run(
                    "INSERT OR IGNORE INTO commands (id, doc) VALUES (?1, ?2)",
                    params![command.id, doc],
                )
            }
            StoreOp::CommandMark { id, status, result, error, reported } => {
                self.change_command(id, *reported, |command| {
                    command.status = status.clone();
                    command.result = result.clone();
                    command.error = error.clone();
                })
            }
            StoreOp::CommandForget { id } => {
                self.run("DELETE FROM commands WHERE id = ?1", params![id])
            }
            StoreOp::OutboxAppend(row) => self.append(row),
            StoreOp::OutboxDelete(seqs) => self.delete(seqs),
            StoreOp::OutboxPoison { seq, reason } => self.poison(*seq, reason),
            StoreOp::ProviderPut(record) => self.put_provider(record),
            StoreOp::PutMeta { key, value: Some(value) } => self.run(
                "INSERT OR REPLACE INTO notes (key, value) VALUES (?1, ?2)",
                params![key, value],
            ),
            StoreOp::PutMeta { key, value: None } => {
                self.run("DELETE FROM notes WHERE key = ?1", params![key])
            }
        }
    }

    fn run(&self, sql: &str, values: &[&dyn ToSql]) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute(values).map(|_| ())
    }

    fn put_inbox(&self, InboxMessage { at, message }: &InboxMessage) -> rusqlite::Result<()> {
        let doc = serde_json::to_string(message).expect("plain data");
        self.run(
            "INSERT OR IGNORE INTO inbox (generation, id, family, doc, state, sender)
             VALUES (?1, ?2, ?3, ?4, 0, ?5)",
            params![at.generation, at.id, at.family, doc, message.from],
        )?;
        note_sender(self.db, &message.from)
    }

    /// Changes a row of the inbox, by a statement that returns its sender.
    fn change_inbox(&self, sql: &str, values: &[&dyn ToSql]) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare_cached(sql)?;
        let sender: Option<String> = statement.query_row(values, |row| row.get(0)).optional()?;
        sender.map_or(Ok(()), |sender| note_sender(self.db, &sender))
    }

    fn settle(
        &mut self,
        at: &MessageRef,
        read: bool,
        ended: Option<&TaskEnd>,
    ) -> rusqlite::Result<()> {
        self.counters.settled += 1;
        let (task, status) = ended.map(|end| (end.task, end.status.as_str())).unzip();
        let number = self.counters.settled;
        self.change_inbox(
            "INSERT INTO inbox (generation, id, family, state, told, settled, task, ended)
             VALUES (?1, ?2, ?3, 3, ?4, ?5, ?6, ?7)
             ON CONFLICT (generation, id) DO UPDATE SET doc = NULL, state = 3, told = ?4,
               task = coalesce(?6, task), ended = coalesce(?7, ended),
               settled = CASE settled WHEN 0 THEN ?5 ELSE settled END RETURNING sender",
            params![at.generation, at.id, at.family, read, number, task, status],
        )
    }

    /// A command that is not there, or not readable, stays as it is.
    fn change_command(
        &self,
        id: &str,
        reported: bool,
        change: impl FnOnce(&mut Command),
    ) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare_cached("SELECT doc FROM commands WHERE id = ?1")?;
        let doc: Option<String> = statement.query_row([id], |row| row.get(0)).optional()?;
        let command = doc.and_then(|doc| serde_json::from_str::<Command>(&doc).ok());
        let Some(mut command) = command else { return Ok(()) };
        change(&mut command);
        let doc = serde_json::to_string(&command).expect("plain data");
        self.run(
            "UPDATE commands SET doc = ?2, reported = ?3 WHERE id = ?1",
            params![id, doc, reported],
        )
    }

    fn append(&mut self, row: &OutboxRow) -> rusqlite::Result<()> {
        let payload = row.payload.to_string();
        self.counters.rows += 1;
        self.counters.bytes += payload.len() as u64;
        let (kind, class) = (row.kind.as_str(), row.kind.class());
        self.run(
            "INSERT INTO outbox (kind, class, key, occurred_at, payload, generation)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![kind, class, row.key, row.occurred_at, payload, row.generation],
        )
    }

    fn delete(&mut self, seqs: &[u64]) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare_cached(
            "DELETE FROM outbox WHERE seq = ?1 RETURNING length(CAST(payload AS BLOB))",
        )?;
        for seq in seqs {
            let bytes =
                statement.query_row([*seq as i64], |row| row.get::<_, i64>(0)).optional()?;
            if let Some(bytes) = bytes {
                self.counters.rows = self.counters.rows.saturating_sub(1);
                self.note_deleted(bytes);
            }
        }
        Ok(())
    }

    fn note_deleted(&mut self, bytes: i64) {
        self.counters.bytes = self.counters.bytes.saturating_sub(bytes as u64);
        self.deleted += 1;
    }

    fn poison(&mut self, seq: u64, reason: &str) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare_cached(
            "UPDATE outbox SET poisoned = ?2 WHERE seq = ?1 AND poisoned IS NULL",
        )?;
        if statement.execute(params![seq as i64, reason])? > 0 {
            self.counters.rows = self.counters.rows.saturating_sub(1);
            self.counters.poisoned += 1;
        }
        Ok(())
    }

    fn put_provider(&self, record: &ProviderRecord) -> rusqlite::Result<()> {
        let ProviderRecord { process, provider_session, session } = record;
        self.run(
            "INSERT OR REPLACE INTO provider (one, pid, start, provider_session, session)
             VALUES (1, ?1, ?2, ?3, ?4)",
            params![process.pid as i64, process.start as i64, provider_session, session],
        )
    }

    /// Brings the outbox below `bound` bytes: poisoned rows go first, then those of the highest
    /// class (the mirror), oldest first. Gives how many of each kind were dropped; poisoned ones
    /// are not counted, since nobody waits for them.
    pub(super) fn enforce_bound(&mut self, bound: u64) -> rusqlite::Result<Vec<(String, u64)>> {
        self.drop_poisoned(bound)?;
        let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
        while self.counters.bytes > bound {
            if !self.drop_block(bound, &mut dropped)? {
                break;
            }
        }
        Ok(dropped.into_iter().collect())
    }

    fn drop_poisoned(&mut self, bound: u64) -> rusqlite::Result<()> {
        while self.counters.bytes > bound && self.counters.poisoned > 0 {
            let mut delete = self.db.prepare_cached(
                "DELETE FROM outbox WHERE seq =
                   (SELECT seq FROM outbox WHERE poisoned IS NOT NULL ORDER BY seq LIMIT 1)
                 RETURNING length(CAST(payload AS BLOB))",
            )?;
            let bytes = delete.query_row([], |row| row.get::<_, i64>(0)).optional()?;
            let Some(bytes) = bytes else { break };
            self.counters.poisoned -= 1;
            self.note_deleted(bytes);
        }
        Ok(())
    }

    /// False: there is nothing left to drop.
    fn drop_block(
        &mut self,
        bound: u64,
        dropped: &mut BTreeMap<String, u64>,
    ) -> rusqlite::Result<bool> {
        let mut victims = self.db.prepare_cached(
            "SELECT seq FROM outbox WHERE poisoned IS NULL ORDER BY class DESC, seq LIMIT ?1",
        )?;
        let seqs: Vec<i64> =
            victims.query_map([DROP_BLOCK as i64], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut delete = self.db.prepare_cached(
            "DELETE FROM outbox WHERE seq = ?1 RETURNING kind, length(CAST(payload AS BLOB))",
        )?;
        for seq in &seqs {
            if self.counters.bytes <= bound {
                break;
            }
            let (kind, bytes): (String, i64) =
                delete.query_row([*seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
            self.counters.rows = self.counters.rows.saturating_sub(1);
            self.note_deleted(bytes);
            *dropped.entry(kind).or_default() += 1;
        }
        Ok(!seqs.is_empty())
    }
}

/// How column `state` of the inbox stores a state; 3 is a settled message.
fn number_of(state: InboxState) -> i64 {
    match state {
        InboxState::Received => 0,
        InboxState::Delivering => 1,
        InboxState::Confirmed => 2,
    }
}

/// Notes a generation and removes those that no row belongs to.
fn put_generation(db: &Transaction<'_>, generation: &Generation) -> rusqlite::Result<()> {
    db.prepare_cached(
        "DELETE FROM generations WHERE number NOT IN
           (SELECT generation FROM inbox UNION SELECT generation FROM outbox)
           AND name <> coalesce((SELECT value FROM notes WHERE key = 'relay'), '')",
    )?
    .execute([])?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO generations (number, family, name, told) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![generation.number, generation.family, generation.name, generation.told])
    .map(|_| ())
}
