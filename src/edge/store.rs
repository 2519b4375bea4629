//! The agent's SQLite file: WAL, synchronous FULL, one owner. Every statement is O(1) in the
//! backlog.

pub(super) mod inbox;
mod schema;
mod snapshot;
#[cfg(test)]
mod tests;
mod thread;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

pub(super) use self::schema::SCHEMAS;
pub use self::thread::run;
use self::write::{Counters, Write};
use crate::core::Cause;
use crate::core::agent::store::{Choice, InboxMessage, OutboxRow, QueuedRow, StoreOp};
use crate::core::commit::Commit;
use crate::core::limits::*;
use crate::core::store::StoreError;
use crate::edge::database::{
    Check, NamedFile, error_of, give_back, open_database, quick_check_at_start, rows_of,
};
use crate::os;

/// After so many deleted rows free pages go back to the disk.
const DELETIONS_MAX: u64 = 4096;
/// Pages that go back to the disk at once.
const PAGES_BACK: u32 = 512;

/// The open file.
pub struct Store {
    db: Connection,
    place: NamedFile,
    outbox_bytes_max: u64,
    counters: Counters,
    /// Deleted rows since pages went back to the disk.
    deletions: u64,
}

/// An operating error as the state thread branches on it.
fn cause_of(error: rusqlite::Error) -> Cause {
    error_of("the runner's store", &error).into()
}

impl Store {
    /// Opens or makes the file.
    pub fn open(path: &Path, outbox_bytes_max: u64) -> Result<Store, StoreError> {
        let db = open_database(path, SCHEMAS)?.db;
        let counters = read_counters(&db).map_err(|error| {
            error_of(format!("cannot read the store {}", path.display()), &error)
        })?;
        Ok(Store { db, place: NamedFile::of(path), outbox_bytes_max, counters, deletions: 0 })
    }

    /// A store without a file, for the simulation: it has exactly what was committed.
    pub fn in_memory() -> rusqlite::Result<Store> {
        let db = Connection::open_in_memory()?;
        SCHEMAS.iter().try_for_each(|schema| db.execute_batch(schema))?;
        Ok(Store {
            db,
            place: NamedFile::default(),
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            counters: Counters::default(),
            deletions: 0,
        })
    }

    /// Every row of every table, for comparisons in tests.
    pub fn rows(&self) -> rusqlite::Result<Vec<String>> {
        rows_of(&self.db)
    }

    /// Looks at every page before the store is used, for at most so long.
    pub fn check(&self, budget: Duration) -> Result<Check, StoreError> {
        quick_check_at_start(&self.db, budget)
    }

    /// Waiting messages, as many as memory takes, and whether there are more.
    pub fn inbox(&self, choice: &Choice) -> rusqlite::Result<(Vec<InboxMessage>, bool)> {
        inbox::read(&self.db, choice)
    }

    /// The head of the outbox, as much as one exchange takes.
    pub fn outbox(&self) -> rusqlite::Result<Vec<QueuedRow>> {
        const HEAD: &str = "SELECT seq, kind, key, occurred_at, payload, generation FROM outbox WHERE poisoned IS NULL ORDER BY seq LIMIT ?1";
        let mut statement = if crate::planted::is("lost-row") {
            self.db.prepare_cached(&HEAD.replace("IS NULL", "IS NULL AND seq % 7 <> 3"))?
        } else {
            self.db.prepare_cached(HEAD)?
        };
        let mut rows = statement.query([PUMP_ROWS_MAX as i64])?;
        let (mut head, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let payload: String = row.get(4)?;
            bytes += payload.len();
            if bytes > PUMP_BYTES_MAX && !head.is_empty() {
                break;
            }
            let payload = serde_json::from_str(&payload).unwrap_or_default();
            let generation = row.get(5)?;
            let kind = row.get::<_, String>(1)?.into();
            let outbox =
                OutboxRow { kind, key: row.get(2)?, occurred_at: row.get(3)?, payload, generation };
            head.push(QueuedRow { seq: row.get::<_, i64>(0)? as u64, row: outbox });
        }
        Ok(head)
    }

    /// Makes the operations of all commits durable in one transaction; gives what the bound of the
    /// outbox dropped, by kind. On an error nothing changed.
    pub fn commit(&mut self, commits: &[Commit<StoreOp>]) -> rusqlite::Result<Vec<(String, u64)>> {
        self.write(&mut commits.iter().flat_map(|commit| &commit.ops))
    }

    /// The same for operations that no machine waits for.
    pub fn commit_ops(&mut self, ops: &[StoreOp]) -> rusqlite::Result<Vec<(String, u64)>> {
        self.write(&mut ops.iter())
    }

    fn write(
        &mut self,
        ops: &mut dyn Iterator<Item = &StoreOp>,
    ) -> rusqlite::Result<Vec<(String, u64)>> {
        let free = os::free_bytes(self.place.path()).unwrap_or(u64::MAX);
        let bound = self.outbox_bytes_max.min(free / 10 + self.counters.bytes);
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut write = Write { db: &transaction, counters: self.counters, deleted: 0 };
        for op in ops {
            write.apply(op)?;
        }
        let dropped = write.enforce_bound(bound)?;
        let Write { counters, deleted, .. } = write;
        if counters != self.counters {
            counters.save(&transaction)?;
        }
        transaction.commit()?;
        self.counters = counters;
        self.deletions += deleted;
        if self.deletions > DELETIONS_MAX {
            self.deletions = 0;
            // A little at a time: freed pages go back to the disk after a long backlog.
            let _ = give_back(&self.db, PAGES_BACK);
        }
        Ok(dropped)
    }
}

fn read_counters(db: &Connection) -> rusqlite::Result<Counters> {
    let mut statement = db.prepare("SELECT name, value FROM counters")?;
    let counters: BTreeMap<String, i64> =
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let value = |name: &str| counters.get(name).copied().unwrap_or(0);
    Ok(Counters {
        rows: value("rows") as u64,
        poisoned: value("poisoned") as u64,
        bytes: value("bytes") as u64,
        settled: value("settled"),
    })
}
