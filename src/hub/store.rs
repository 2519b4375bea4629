//! Thread `hub-store`: the hub's SQLite file. The only writer, with group commit.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde_json::Value;

use super::Trouble;
use super::mark::{MarkFile, Pending, persist};
use super::read::View;
use crate::core::hub::event::{
    Event, HubOp, HubSnapshot, Query, ReadAnswer, Retired, StoreCommand, StoreEvent, StoredAgent, StoredClaim, StoredOffer, StoredTask,
    StoredUnresolved,
};
use crate::core::hub::generations::{DataState, RESTORED, StoredGeneration};
use crate::core::ids::{MessageId, TaskId};
use crate::core::store::StoreError;
use crate::edge::database::{
    Opened, Place, copy_checked, drop_copies, error_of, give_back, open_database, open_for_reading, rows_of, sizes,
};
use crate::os::crash_point;
use crate::wire::api::{Command, CommandStatus, Message, Task, TaskStatus, TokenRecord, USER};

/// Messages that one message can answer.
const ANSWERS_MAX: usize = 4096;
/// Most commits in one transaction.
const GROUP_MAX: usize = 256;
pub(super) const SCHEMAS: &[&str] = &[FIRST, MIRROR_AND_RETENTION, INDEXES_OF_RETENTION, GENERATIONS, RIGHTS];

/// Version 1.
const FIRST: &str = "
CREATE TABLE messages (
  id INTEGER PRIMARY KEY, doc TEXT NOT NULL, sender TEXT NOT NULL, kind TEXT NOT NULL, target TEXT NOT NULL,
  key TEXT, reply_to INTEGER, thread INTEGER NOT NULL, wants_reply INTEGER NOT NULL, claimable INTEGER NOT NULL,
  task INTEGER, claimed_by TEXT, claim_expires_at INTEGER, offered INTEGER NOT NULL DEFAULT 0,
  unresolved_until INTEGER, created_at INTEGER NOT NULL);
CREATE UNIQUE INDEX messages_key ON messages(sender, key) WHERE key IS NOT NULL;
CREATE INDEX messages_thread ON messages(thread, id);
CREATE INDEX messages_reply ON messages(reply_to, sender) WHERE reply_to IS NOT NULL;
CREATE INDEX messages_offered ON messages(id) WHERE offered = 1;
CREATE INDEX messages_unresolved ON messages(id) WHERE unresolved_until IS NOT NULL;
CREATE TABLE recipients (
  recipient TEXT NOT NULL, message INTEGER NOT NULL, session INTEGER NOT NULL DEFAULT 0,
  acked INTEGER NOT NULL DEFAULT 0, read_at INTEGER, reason TEXT, PRIMARY KEY (recipient, message)) WITHOUT ROWID;
CREATE INDEX recipients_message ON recipients(message);
CREATE INDEX recipients_unacked ON recipients(recipient, message) WHERE acked = 0;
CREATE INDEX recipients_unread ON recipients(recipient, message) WHERE read_at IS NULL;
CREATE TABLE obligations (
  agent TEXT NOT NULL, message INTEGER NOT NULL, sender TEXT NOT NULL, subject TEXT, thread INTEGER NOT NULL,
  created_at INTEGER NOT NULL, PRIMARY KEY (agent, message)) WITHOUT ROWID;
CREATE TABLE reactions (message INTEGER NOT NULL, agent TEXT NOT NULL, emoji TEXT NOT NULL, at INTEGER NOT NULL);
CREATE INDEX reactions_message ON reactions(message);
CREATE TABLE tasks (id INTEGER PRIMARY KEY, doc TEXT NOT NULL, status TEXT NOT NULL, message INTEGER NOT NULL);
CREATE INDEX tasks_open ON tasks(id) WHERE status NOT IN ('done', 'failed', 'cancelled');
CREATE TABLE commands (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, doc TEXT NOT NULL, target TEXT NOT NULL, status TEXT NOT NULL);
CREATE INDEX commands_open ON commands(seq) WHERE status IN ('pending', 'accepted', 'running');
CREATE TABLE agents (id TEXT PRIMARY KEY, registration TEXT NOT NULL, epoch INTEGER NOT NULL, label TEXT, last_seen INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens (hash TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
";

/// Version 2: mail is found without wading through the mirror of sessions, and old messages without a scan. Partial
/// indexes: each row stands in few of them.
const MIRROR_AND_RETENTION: &str = "
ALTER TABLE recipients ADD COLUMN mirror INTEGER NOT NULL DEFAULT 0;
UPDATE recipients SET mirror = 1 WHERE message IN (SELECT id FROM messages WHERE kind = 'session');
DROP INDEX recipients_unread;
CREATE INDEX recipients_unread_mail ON recipients(recipient, message) WHERE read_at IS NULL AND mirror = 0;
CREATE INDEX recipients_user_unread ON recipients(message) WHERE recipient = 'user' AND read_at IS NULL;
CREATE INDEX recipients_user_mail ON recipients(message) WHERE recipient = 'user' AND mirror = 0;
CREATE INDEX messages_old_session ON messages(id) WHERE kind = 'session';
CREATE INDEX messages_old ON messages(id) WHERE kind <> 'session' AND offered = 0;
";

/// Version 3: what hangs on an old message is found without a scan, and what waits for agents without what people get.
const INDEXES_OF_RETENTION: &str = "
CREATE INDEX obligations_message ON obligations(message);
CREATE INDEX tasks_message ON tasks(message);
DROP INDEX recipients_unacked;
CREATE INDEX recipients_unacked ON recipients(recipient, message) WHERE acked = 0 AND session = 0;
DELETE FROM reactions WHERE rowid NOT IN (SELECT min(rowid) FROM reactions GROUP BY message, agent, emoji);
CREATE UNIQUE INDEX reactions_once ON reactions(message, agent, emoji);
";

/// Version 4: the past of the data (`core/hub/generations.rs`).
const GENERATIONS: &str = "
CREATE TABLE generations (
  number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, first_message INTEGER NOT NULL, first_task INTEGER NOT NULL,
  follows_message INTEGER NOT NULL, follows_task INTEGER NOT NULL, at INTEGER NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
ALTER TABLE tasks ADD COLUMN restored INTEGER NOT NULL DEFAULT 0;
";

/// Version 5: what an agent's token says of it, and whose component ids are. An operator's token with all the scopes that there
/// were goes on having all; one that was made with fewer keeps just those.
const RIGHTS: &str = "
ALTER TABLE agents ADD COLUMN policy TEXT;
ALTER TABLE agents ADD COLUMN spawned_by TEXT;
ALTER TABLE agents ADD COLUMN components TEXT NOT NULL DEFAULT '[]';
UPDATE tokens SET record = json_insert(record, '$.scopes[#]', 'insight:write', '$.scopes[#]', 'token:issue')
  WHERE record ->> '$.profileId' = 'operator' AND (SELECT count(DISTINCT value) FROM json_each(record, '$.scopes') WHERE value IN
    ('agent:self', 'message:send', 'message:read', 'message:claim', 'task:update', 'command:issue', 'command:update', 'artifact:read',
     'artifact:write', 'spawn')) = 10;
";

// The queue has thousands of places.
const _: () = assert!(size_of::<StoreCommand>() <= 32);

/// The writer's connection.
pub struct HubStore {
    db: Connection,
    place: Place,
    alone: bool,
}

impl HubStore {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> Result<HubStore, StoreError> {
        let Opened { db, alone } = open_database(path, SCHEMAS)?;
        Ok(HubStore { db, place: Place::of(path), alone })
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
        Ok(HubStore { db, place: Place::default(), alone: true })
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

    /// All that a hub starts from: live indexes only; bodies stay in the file.
    pub fn snapshot(&self) -> rusqlite::Result<HubSnapshot> {
        let db = &self.db;
        let (last_message, last_task) = self.highest_ids()?;
        let mut unacknowledged: Vec<(String, Vec<MessageId>)> = Vec::new();
        let mut statement = db.prepare(
            "SELECT recipient, message FROM recipients WHERE acked = 0 AND session = 0 AND recipient <> 'user' ORDER BY recipient, message",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (recipient, id): (String, MessageId) = (row.get(0)?, row.get(1)?);
            match unacknowledged.last_mut() {
                Some((last, ids)) if *last == recipient => ids.push(id),
                _ => unacknowledged.push((recipient, vec![id])),
            }
        }
        let mut statement =
            db.prepare("SELECT id, registration, epoch, label, last_seen, policy, spawned_by, components FROM agents ORDER BY id")?;
        let agents = statement
            .query_map([], |row| {
                let (registration, components): (String, String) = (row.get(1)?, row.get(7)?);
                Ok(StoredAgent {
                    id: row.get(0)?,
                    registration: serde_json::from_str(&registration).unwrap_or_default(),
                    epoch: row.get::<_, i64>(2)? as u64,
                    label: row.get(3)?,
                    last_seen: row.get(4)?,
                    policy: row.get(5)?,
                    spawned_by: row.get(6)?,
                    components: serde_json::from_str(&components).unwrap_or_default(),
                })
            })?
            .collect::<Result<_, _>>()?;
        let mut statement = db.prepare(
            "SELECT DISTINCT m.sender FROM recipients r JOIN messages m ON m.id = r.message
             WHERE r.acked = 0 AND r.session = 0 AND r.recipient <> 'user' AND m.sender <> 'user'",
        )?;
        let senders = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut statement = db.prepare("SELECT id, task, claimed_by, claim_expires_at FROM messages WHERE offered = 1 ORDER BY id")?;
        let mut offers: Vec<StoredOffer> = statement
            .query_map([], |row| {
                let claimed_by: Option<String> = row.get(2)?;
                Ok(StoredOffer {
                    message: row.get(0)?,
                    task: row.get(1)?,
                    recipients: Vec::new(),
                    claim: claimed_by.map(|agent| StoredClaim { agent, expires_at: row.get(3).unwrap_or(0), is_read: false }),
                })
            })?
            .collect::<Result<_, _>>()?;
        for offer in &mut offers {
            let mut statement =
                db.prepare_cached("SELECT recipient, read_at IS NOT NULL FROM recipients WHERE message = ?1 ORDER BY recipient")?;
            let recipients: Vec<(String, bool)> =
                statement.query_map([offer.message], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
            if let Some(claim) = &mut offer.claim {
                claim.is_read = recipients.iter().any(|(recipient, read)| *recipient == claim.agent && *read);
            }
            offer.recipients = recipients.into_iter().map(|(recipient, _)| recipient).collect();
        }
        let mut statement = db.prepare(
            "SELECT t.id, t.message, t.status, t.restored, coalesce(m.sender, '') FROM tasks t LEFT JOIN messages m ON m.id = t.message
             WHERE t.status NOT IN ('done', 'failed', 'cancelled') ORDER BY t.id",
        )?;
        let tasks = statement
            .query_map([], |row| {
                Ok(StoredTask {
                    id: row.get(0)?,
                    message: row.get(1)?,
                    status: row.get::<_, String>(2)?.into(),
                    restored: row.get(3)?,
                    sender: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        let mut statement = db.prepare(
            "SELECT id, target, claimable, sender, unresolved_until FROM messages WHERE unresolved_until IS NOT NULL ORDER BY id",
        )?;
        let unresolved = statement
            .query_map([], |row| {
                Ok(StoredUnresolved {
                    id: row.get(0)?,
                    target: row.get(1)?,
                    claimable: row.get(2)?,
                    sender: row.get(3)?,
                    until: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        let commands = docs::<Command>(db, "SELECT doc FROM commands WHERE status IN ('pending', 'accepted', 'running') ORDER BY seq")?;
        let mut statement = db.prepare("SELECT hash, record FROM tokens ORDER BY hash")?;
        let tokens = statement
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?
            .filter_map(|row| row.ok())
            .filter_map(|(hash, record): (String, String)| Some((hash, serde_json::from_str::<TokenRecord>(&record).ok()?)))
            .collect();
        Ok(HubSnapshot {
            data: data_state(db)?,
            mark: None,
            last_message,
            last_task,
            unacknowledged,
            agents,
            senders,
            offers,
            tasks,
            unresolved,
            commands,
            tokens,
        })
    }

    /// Makes groups of changes durable in one transaction; tells which messages were there before under their key.
    pub fn commit(&mut self, groups: &[(u64, Vec<HubOp>)]) -> rusqlite::Result<Committed> {
        let transaction = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut committed = Committed::default();
        for op in groups.iter().flat_map(|(_, ops)| ops) {
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
        // Without statistics a planner may read a whole index where another one has a handful of rows.
        self.db.execute_batch("PRAGMA optimize; PRAGMA wal_checkpoint(TRUNCATE);")?;
        sizes(&self.db).map(|(bytes, _)| bytes)
    }
}

/// Pages that one step of a vacuum moves: other commits wait no longer than that.
const VACUUM_PAGES: u32 = 500;

/// Copies the store into a new file that only its owner may read, consistent, checked and durable, also while a hub writes.
pub fn backup(from: &Path, to: &Path) -> Result<u64, Trouble> {
    let what = format!("cannot copy {} to {}", from.display(), to.display());
    if !from.is_file() {
        return Err(Trouble::Use(format!("{what}: there is no hub's store; start a hub first, or set AGENT_RELAY_HOME")));
    }
    if to.exists() {
        return Err(Trouble::Use(format!("{what}: the file exists already; name another one or remove it")));
    }
    let bytes = copy_checked(&open_for_reading(from)?, to, &what)?;
    // A hub that finds it in its store's place knows it by that. A store that no hub of this version has run on has no such facts: there
    // the mark beside the hub's folder tells.
    let _ = Connection::open(to).and_then(|db| put_facts(&db, &[("copied", 1)]));
    Ok(bytes)
}

/// What a commit tells besides being durable.
#[derive(Debug, Default)]
pub struct Committed {
    /// Messages that were there before under their key: new id, first message.
    pub existing: Vec<(MessageId, Message)>,
    /// Messages as they were stored without what they answer: it is not there, or not for their sender to see.
    pub unattached: Vec<Message>,
    /// Reactions to what their sender cannot see: message and agent.
    pub unseen: Vec<(MessageId, String)>,
    /// What the retention took away.
    pub retired: Retired,
}

/// Deletes old messages with their claims, marks and reactions. The newest message and task stay, since further ids continue
/// from theirs. What is offered stays until it is settled.
fn retain(db: &Transaction<'_>, session_before: i64, before: i64, limit: u64, retired: &mut Retired) -> rusqlite::Result<()> {
    let newest: MessageId = db.query_row("SELECT coalesce(max(id), 0) FROM messages", [], |row| row.get(0))?;
    let oldest = |class: &str, before: i64| -> rusqlite::Result<Vec<MessageId>> {
        let below = if crate::planted::is("reused-id") { "<=" } else { "<" };
        let sql = format!("SELECT id, created_at FROM messages WHERE {class} AND id {below} ?1 ORDER BY id LIMIT ?2");
        let mut statement = db.prepare_cached(&sql)?;
        let rows: Vec<(MessageId, i64)> =
            statement.query_map(params![newest, limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(rows.into_iter().take_while(|(_, created)| *created < before).map(|(id, _)| id).collect())
    };
    let session = oldest("kind = 'session' AND offered = 0", session_before)?;
    let other = oldest("kind <> 'session' AND offered = 0", before)?;
    // Offered all that time, and nobody holds them. Blocked tasks wait for a person, however long.
    let blocked = "EXISTS (SELECT 1 FROM tasks t WHERE t.message = messages.id AND t.status = 'blocked')";
    let offers = oldest(&format!("offered = 1 AND claimed_by IS NULL AND NOT {blocked}"), before)?;
    retired.more |= [&session, &other, &offers].iter().any(|ids| ids.len() as u64 == limit);
    retired.offers.extend(offers.iter().copied());
    for id in session.iter().chain(&other).chain(&offers) {
        let mut waiting = db.prepare_cached("SELECT recipient FROM recipients WHERE message = ?1 AND acked = 0 AND session = 0")?;
        let waiting: Vec<String> = waiting.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        retired.unacknowledged.extend(waiting.into_iter().map(|recipient| (recipient, *id)));
        for sql in [
            "DELETE FROM recipients WHERE message = ?1",
            "DELETE FROM reactions WHERE message = ?1",
            "DELETE FROM obligations WHERE message = ?1",
            "DELETE FROM tasks WHERE message = ?1 AND id < (SELECT max(id) FROM tasks)",
            "DELETE FROM messages WHERE id = ?1",
        ] {
            db.prepare_cached(sql)?.execute([id])?;
        }
        retired.count += 1;
    }
    let mut commands = db.prepare_cached("SELECT seq, status, json_extract(doc, '$.createdAt') FROM commands ORDER BY seq LIMIT ?1")?;
    let old: Vec<(i64, String, Option<i64>)> =
        commands.query_map([limit as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_, _>>()?;
    let all_old = old.len() as u64 == limit
        && old.iter().all(|(_, status, created)| created.unwrap_or(0) < before && CommandStatus::from(status.as_str()).is_final());
    retired.more |= all_old;
    for (seq, status, created) in old {
        if created.unwrap_or(0) < before && CommandStatus::from(status).is_final() {
            db.prepare_cached("DELETE FROM commands WHERE seq = ?1")?.execute([seq])?;
        }
    }
    Ok(())
}

fn docs<T: serde::de::DeserializeOwned>(db: &Connection, sql: &str) -> rusqlite::Result<Vec<T>> {
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.filter_map(|row| row.ok()).filter_map(|doc| serde_json::from_str(&doc).ok()).collect())
}

fn put_message(
    db: &Transaction<'_>,
    message: &Message,
    recipients: &[String],
    (key, sees_all): (Option<&str>, bool),
    committed: &mut Committed,
) -> rusqlite::Result<()> {
    // Whoever cannot see a message neither answers it nor joins its thread.
    let mut visible = db.prepare_cached(&format!("SELECT thread {SEEN}"))?;
    let mut thread_of = |id: MessageId| -> rusqlite::Result<Option<MessageId>> {
        visible.query_row(params![id, message.from, sees_all], |row| row.get(0)).optional()
    };
    let mut thread = None;
    let mut stored = std::borrow::Cow::Borrowed(message);
    if let Some(id) = message.reply_to {
        thread = thread_of(id)?;
        if thread.is_none() {
            stored.to_mut().reply_to = None;
        }
    }
    if let Some(answers) = message.payload.get("answers").and_then(Value::as_array) {
        let mut seen = Vec::with_capacity(answers.len());
        for id in answers.iter().take(ANSWERS_MAX) {
            let known = match id.as_u64() {
                Some(id) => thread_of(MessageId(id))?.is_some(),
                None => false,
            };
            seen.extend(known.then(|| id.clone()));
        }
        if seen.len() < answers.len() {
            stored.to_mut().payload.insert("answers".into(), Value::Array(seen));
        }
    }
    if let std::borrow::Cow::Owned(alone) = &stored {
        // It is kept, but it hangs on nothing.
        committed.unattached.push(alone.clone());
    }
    let message = stored.as_ref();
    let reply_to = message.reply_to;
    let thread = thread.unwrap_or(message.id);
    let doc = serde_json::to_string(message).expect("plain data");
    let inserted = db
        .prepare_cached(
            "INSERT OR IGNORE INTO messages (id, doc, sender, kind, target, key, reply_to, thread, wants_reply, claimable, task, offered, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?10, ?12)",
        )?
        .execute(params![
            message.id,
            doc,
            message.from,
            message.kind.as_str(),
            message.to,
            key,
            reply_to,
            thread,
            message.expects_reply(),
            message.claimable,
            message.task_id(),
            message.created_at,
        ])?;
    if inserted == 0 {
        let mut statement = db.prepare_cached("SELECT doc FROM messages WHERE sender = ?1 AND key = ?2")?;
        let first: Option<String> = statement.query_row(params![message.from, key], |row| row.get(0)).optional()?;
        if let Some(first) = first.and_then(|doc| serde_json::from_str(&doc).ok()) {
            committed.existing.push((message.id, first));
        }
        return Ok(());
    }
    for recipient in recipients {
        add_recipient(db, message.id, recipient, message.is_session_mirror())?;
    }
    if reply_to.is_some() {
        // A reply settles what its sender owes: that message, what else it names, and the thread's other questions.
        db.prepare_cached("DELETE FROM obligations WHERE agent = ?1 AND (message = ?2 OR (sender = ?3 AND thread = ?4))")?
            .execute(params![message.from, reply_to, message.to, thread])?;
        for id in message.payload.get("answers").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_i64) {
            db.prepare_cached("DELETE FROM obligations WHERE agent = ?1 AND message = ?2")?.execute(params![message.from, id])?;
        }
    }
    Ok(())
}

/// A message, if it was sent by or to somebody, or by whom all is seen.
const SEEN: &str = "FROM messages m WHERE m.id = ?1 AND (?3 OR m.sender = ?2
  OR EXISTS (SELECT 1 FROM recipients r WHERE r.recipient = ?2 AND r.message = ?1))";

/// `session` marks rows that nobody has to acknowledge: the mirror, and whatever people get.
fn add_recipient(db: &Transaction<'_>, message: MessageId, recipient: &str, mirror: bool) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO recipients (recipient, message, session, mirror) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![recipient, message, mirror || recipient == USER, mirror])
        .map(|_| ())
}

fn apply(db: &Transaction<'_>, op: &HubOp, committed: &mut Committed) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| db.prepare_cached(sql)?.execute(values).map(|_| ());
    match op {
        HubOp::MessagePut { message, recipients, key, sees_all } => {
            put_message(db, message, recipients, (key.as_deref(), *sees_all), committed)
        }
        HubOp::Adopt { generation, messages_end, tasks_end, starts, copy, at } => {
            if let Some(generation) = generation {
                run(
                    "INSERT INTO generations (name, first_message, first_task, follows_message, follows_task, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    &[
                        &generation.name,
                        &generation.first_message,
                        &generation.first_task,
                        &generation.follows_message,
                        &generation.follows_task,
                        at,
                    ],
                )?;
            }
            put_facts(db, &[("messages_end", messages_end.0), ("tasks_end", tasks_end.0), ("starts", *starts), ("copied", 0)])?;
            if *copy { end_what_was_under_way(db, *at) } else { Ok(()) }
        }
        HubOp::Reserve { messages_end, tasks_end } => put_facts(db, &[("messages_end", messages_end.0), ("tasks_end", tasks_end.0)]),
        HubOp::RecipientAdd { message, recipient } => add_recipient(db, *message, recipient, false),
        HubOp::Acked { message, recipient } => {
            run("UPDATE recipients SET acked = 1 WHERE recipient = ?1 AND message = ?2", &[recipient, message])
        }
        HubOp::Read { message, recipient, at, reason } => {
            run(
                "UPDATE recipients SET read_at = coalesce(read_at, ?3), acked = 1, reason = coalesce(?4, reason) WHERE recipient = ?1 AND message = ?2",
                &[recipient, message, at, reason],
            )?;
            if reason.is_some() || recipient == USER {
                return Ok(());
            }
            run(
                "INSERT OR IGNORE INTO obligations (agent, message, sender, subject, thread, created_at)
                 SELECT ?1, m.id, m.sender, json_extract(m.doc, '$.subject'), m.thread, m.created_at FROM messages m
                 WHERE m.id = ?2 AND m.wants_reply = 1 AND m.sender <> ?1
                   AND EXISTS (SELECT 1 FROM recipients r WHERE r.recipient = ?1 AND r.message = ?2)
                   AND NOT EXISTS (SELECT 1 FROM messages a WHERE a.reply_to = ?2 AND a.sender = ?1)
                   AND NOT EXISTS (SELECT 1 FROM reactions x WHERE x.message = ?2 AND x.agent = ?1)",
                &[recipient, message],
            )
        }
        HubOp::Reacted { message, agent, emoji, at, sees_all } => {
            let sees = db.prepare_cached(&format!("SELECT 1 {SEEN}"))?.exists(params![message, agent, sees_all])?;
            if !sees {
                committed.unseen.push((*message, agent.clone()));
                return Ok(());
            }
            run("INSERT OR IGNORE INTO reactions (message, agent, emoji, at) VALUES (?1, ?2, ?3, ?4)", &[message, agent, emoji, at])?;
            run("DELETE FROM obligations WHERE agent = ?1 AND message = ?2", &[agent, message])
        }
        HubOp::ClaimPut { message, agent, expires_at } => {
            run("UPDATE messages SET claimed_by = ?2, claim_expires_at = ?3 WHERE id = ?1", &[message, agent, expires_at])
        }
        HubOp::ClaimEnd { message, reoffer, at } => {
            if !reoffer {
                run("UPDATE messages SET offered = 0 WHERE id = ?1", &[message])?;
                return run(
                    "UPDATE recipients SET acked = 1, read_at = ?2, reason = 'settled' WHERE message = ?1 AND read_at IS NULL",
                    &[message, at],
                );
            }
            run("UPDATE messages SET claimed_by = NULL, claim_expires_at = NULL WHERE id = ?1", &[message])?;
            run("UPDATE recipients SET acked = 0, read_at = NULL, reason = NULL WHERE message = ?1", &[message])
        }
        HubOp::OfferHeld { message, at } => {
            run("UPDATE messages SET claimed_by = NULL, claim_expires_at = NULL WHERE id = ?1", &[message])?;
            run("DELETE FROM obligations WHERE message = ?1", &[message])?;
            run("UPDATE recipients SET acked = 1, read_at = ?2, reason = 'blocked' WHERE message = ?1 AND read_at IS NULL", &[message, at])
        }
        HubOp::Unresolved { message, until } => run("UPDATE messages SET unresolved_until = ?2 WHERE id = ?1", &[message, until]),
        HubOp::TaskPut(task) => {
            let doc = serde_json::to_string(task).expect("plain data");
            run(
                "INSERT OR IGNORE INTO tasks (id, doc, status, message) VALUES (?1, ?2, ?3, ?4)",
                &[&task.id, &doc, &task.status.as_str(), &task.message_id],
            )
        }
        HubOp::TaskMark { id, status, agent, entry, at } => mark_task(db, *id, status, agent.as_deref(), entry, *at),
        HubOp::CommandPut(command) => {
            let doc = serde_json::to_string(command).expect("plain data");
            run(
                "INSERT INTO commands (id, doc, target, status) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET doc = ?2, status = ?4",
                &[&command.id, &doc, &command.target, &command.status.as_str()],
            )
        }
        HubOp::AgentPut(agent) => {
            let registration = serde_json::to_string(&agent.registration).expect("plain data");
            run(
                "INSERT OR REPLACE INTO agents (id, registration, epoch, label, last_seen, policy, spawned_by, components)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                &[
                    &agent.id,
                    &registration,
                    &(agent.epoch as i64),
                    &agent.label,
                    &agent.last_seen,
                    &agent.policy,
                    &agent.spawned_by,
                    &serde_json::to_string(&agent.components).expect("plain data"),
                ],
            )
        }
        HubOp::AgentDelete { id } => run("DELETE FROM agents WHERE id = ?1", &[id]),
        HubOp::QueueDrop { recipient } => {
            run("UPDATE recipients SET acked = 1, reason = 'agent deleted' WHERE recipient = ?1 AND acked = 0", &[recipient])
        }
        HubOp::TokenPut { hash, record } => {
            let record = serde_json::to_string(record).expect("plain data");
            run("INSERT OR REPLACE INTO tokens (hash, record) VALUES (?1, ?2)", &[hash, &record])
        }
        HubOp::TokenDelete { hash } | HubOp::TokenRevoke { hash, .. } => run("DELETE FROM tokens WHERE hash = ?1", &[hash]),
        HubOp::Retain { .. } => Ok(()), // by the caller, who tells what went
    }
}

/// Newest message and newest task.
pub(super) fn highest_ids(db: &Connection) -> rusqlite::Result<(MessageId, TaskId)> {
    let message = db.query_row("SELECT coalesce(max(id), 0) FROM messages", [], |row| row.get(0))?;
    let task = db.query_row("SELECT coalesce(max(id), 0) FROM tasks", [], |row| row.get(0))?;
    Ok((message, task))
}

fn put_facts(db: &Connection, facts: &[(&str, u64)]) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached("INSERT OR REPLACE INTO facts (name, value) VALUES (?1, ?2)")?;
    facts.iter().try_for_each(|(name, value)| statement.execute(params![name, *value as i64]).map(|_| ()))
}

/// What the store knows of its own past.
pub(super) fn data_state(db: &Connection) -> rusqlite::Result<DataState> {
    let fact = |name: &str| -> rusqlite::Result<u64> {
        let value: Option<i64> = db.query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0)).optional()?;
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

/// The data are a copy: tasks wait for a person, claims end, commands expire.
fn end_what_was_under_way(db: &Transaction<'_>, at: i64) -> rusqlite::Result<()> {
    let mut open = db.prepare("SELECT id, doc FROM tasks WHERE status NOT IN ('done', 'failed', 'cancelled')")?;
    let open: Vec<(i64, String)> = open.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    for (id, doc) in open {
        let Ok(mut task) = serde_json::from_str::<Task>(&doc) else { continue };
        task.status = TaskStatus::Blocked;
        task.updated_at = at;
        task.history.push(serde_json::json!({"status": TaskStatus::Blocked, "at": at, "by": null, "body": RESTORED}));
        let doc = serde_json::to_string(&task).expect("plain data");
        db.prepare_cached("UPDATE tasks SET doc = ?2, status = 'blocked', restored = 1 WHERE id = ?1")?.execute(params![id, doc])?;
    }
    db.execute("UPDATE messages SET claimed_by = NULL, claim_expires_at = NULL WHERE offered = 1", [])?;
    let mut pending = db.prepare("SELECT seq, doc FROM commands WHERE status IN ('pending', 'accepted', 'running')")?;
    let pending: Vec<(i64, String)> = pending.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    for (seq, doc) in pending {
        let Ok(mut command) = serde_json::from_str::<Command>(&doc) else { continue };
        (command.status, command.error, command.updated_at) = (CommandStatus::Expired, Some("the hub's data were put back".into()), at);
        let doc = serde_json::to_string(&command).expect("plain data");
        db.prepare_cached("UPDATE commands SET doc = ?2, status = 'expired' WHERE seq = ?1")?.execute(params![seq, doc])?;
    }
    Ok(())
}

fn mark_task(db: &Transaction<'_>, id: TaskId, status: &TaskStatus, agent: Option<&str>, entry: &Value, at: i64) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached("SELECT doc FROM tasks WHERE id = ?1")?;
    let doc: Option<String> = statement.query_row([id], |row| row.get(0)).optional()?;
    let Some(mut task) = doc.and_then(|doc| serde_json::from_str::<Task>(&doc).ok()) else {
        return Ok(());
    };
    task.status = status.clone();
    task.updated_at = at;
    task.agent_id = agent.map(str::to_string);
    if task.history.len() < 1000 {
        task.history.push(entry.clone());
    }
    let doc = serde_json::to_string(&task).expect("plain data");
    db.prepare_cached("UPDATE tasks SET doc = ?2, status = ?3, restored = 0 WHERE id = ?1")?.execute(params![id, doc, status.as_str()])?;
    if status.is_final() {
        // Who finished a task owes no answer for it.
        db.prepare_cached("DELETE FROM obligations WHERE agent = ?1 AND message = ?2")?.execute(params![agent, task.message_id])?;
    }
    Ok(())
}

pub(super) fn cause_of(error: &rusqlite::Error) -> crate::core::Cause {
    error_of("the hub's store", error).into()
}

/// The writer's thread.
pub fn run(mut store: HubStore, mut mark: MarkFile, orders: Receiver<StoreCommand>, lane: Sender<Event>) {
    let send = |event: StoreEvent| lane.send(Event::Store(event)).is_ok();
    match store.snapshot() {
        Ok(mut snapshot) => {
            snapshot.mark = mark.found();
            send(StoreEvent::Restored(Box::new(snapshot)))
        }
        Err(error) => {
            send(StoreEvent::Broken(error_of("the hub's store", &error)));
            return orders.iter().for_each(drop);
        }
    };
    let mut stalled: Vec<(u64, Vec<HubOp>)> = Vec::new();
    let mut pending = Pending::All;
    let mut broken = false;
    // Size of the file when a vacuum began that is under way.
    let mut vacuum: Option<u64> = None;
    loop {
        if let Some(before) = vacuum {
            // Some pages, then whatever waits: nobody waits for the whole of it.
            let outcome = match store.vacuum_step() {
                Ok(true) => None,
                Ok(false) => Some(store.after_vacuum().map(|after| (before, after))),
                Err(error) => Some(Err(error)),
            };
            if let Some(outcome) = outcome {
                vacuum = None;
                if !send(StoreEvent::Vacuumed(outcome.map_err(|error| cause_of(&error).to_string()))) {
                    break;
                }
            }
        }
        let first = match vacuum {
            None => match orders.recv() {
                Ok(first) => first,
                Err(_) => break,
            },
            Some(_) => match orders.try_recv() {
                Ok(first) => first,
                Err(crossbeam_channel::TryRecvError::Empty) => continue,
                Err(crossbeam_channel::TryRecvError::Disconnected) => break,
            },
        };
        let (mut retry, mut looks, mut reads) = (false, false, Vec::new());
        let was_stalled = !stalled.is_empty();
        let mut next = Some(first);
        while let Some(order) = next.take() {
            match order {
                StoreCommand::Commit(commit) => stalled.push((commit.number, commit.ops)),
                StoreCommand::Retry => retry = true,
                StoreCommand::Look => looks = true,
                StoreCommand::Read { number, query } => reads.push((number, *query)),
                StoreCommand::Vacuum => vacuum = vacuum.or(sizes(&store.db).ok().map(|(bytes, _)| bytes)).or(Some(0)),
            }
            if stalled.len() < GROUP_MAX && reads.len() < GROUP_MAX {
                next = orders.try_recv().ok();
            }
        }
        if looks && let Some(error) = store.look() {
            send(StoreEvent::Broken(error));
            return orders.iter().for_each(drop);
        }
        for (number, query) in reads {
            let answer = store.answer(&query);
            if !send(StoreEvent::Read { number, answer }) {
                return;
            }
        }
        if stalled.is_empty() || (was_stalled && !retry) {
            continue;
        }
        let mut listens = true;
        while listens && !stalled.is_empty() {
            crash_point("hub-before-commit");
            let event = match persist(&mut store, &mut mark, &stalled, &mut pending) {
                Ok((Committed { existing, unattached, unseen, retired }, count)) => {
                    crash_point("hub-after-commit");
                    let upto = stalled.drain(..count).next_back().map_or(0, |(number, _)| number);
                    // What went into a file that nobody will find again is not called durable.
                    match store.look() {
                        Some(error) => StoreEvent::Broken(error),
                        None => StoreEvent::Committed { upto, existing, unattached, unseen, retired },
                    }
                }
                Err(cause) => StoreEvent::Stalled(cause),
            };
            broken |= matches!(event, StoreEvent::Broken(_));
            let goes_on = matches!(event, StoreEvent::Committed { .. });
            listens = send(event);
            if !goes_on {
                break;
            }
        }
        if !listens {
            break;
        }
    }
    if broken {
        return;
    }
    if store.checkpoint() {
        drop_copies(store.place.path(), SCHEMAS.len());
    }
    // What was not made durable was promised to nobody.
    if let Ok(newest) = store.highest_ids() {
        mark.end(newest);
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::rows_of_recipient;
    use super::*;
    use serde_json::json;

    fn put(store: &mut HubStore, id: u64, kind: &str, to: &str, created_at: i64) {
        let message = Message {
            id: MessageId(id),
            from: "x".into(),
            to: to.into(),
            kind: kind.into(),
            body: "b".into(),
            created_at,
            ..Default::default()
        };
        let op = HubOp::MessagePut { message, recipients: vec![to.into()], key: Some(format!("k{id}")), sees_all: true };
        store.commit(&[(0, vec![op])]).expect("memory");
    }

    fn retain(store: &mut HubStore, session_before: i64, before: i64, limit: u64) -> Retired {
        store.commit(&[(0, vec![HubOp::Retain { session_before, before, limit }])]).expect("memory").retired
    }

    fn ids(store: &HubStore) -> Vec<i64> {
        let mut statement = store.db.prepare("SELECT id FROM messages ORDER BY id").expect("prepares");
        statement.query_map([], |row| row.get(0)).expect("asks").collect::<Result<_, _>>().expect("reads")
    }

    #[test]
    fn old_messages_go_by_class_a_few_at_a_time() {
        let mut store = HubStore::in_memory().expect("memory");
        for id in 1..=10 {
            let (kind, to) = if id % 2 == 0 { ("session", "user") } else { ("chat", "a") };
            put(&mut store, id, kind, to, id as i64 * 10);
        }
        // Session messages older than 90, others older than 40.
        let retired = retain(&mut store, 90, 40, 200);
        assert_eq!(ids(&store), [5, 7, 9, 10]);
        assert_eq!((retired.count, retired.more), (6, false));
        assert_eq!(retired.unacknowledged, [("a".to_string(), MessageId(1)), ("a".to_string(), MessageId(3))]);
        // The newest id stays for ever: what follows counts on from it.
        let retired = retain(&mut store, 1000, 1000, 2);
        assert_eq!((ids(&store), retired.more), (vec![9, 10], true));
        retain(&mut store, 1000, 1000, 200);
        assert_eq!(ids(&store), [10]);
        let left: i64 = store.db.query_row("SELECT count(*) FROM recipients", [], |row| row.get(0)).expect("counts");
        assert_eq!(left, 1);
        assert_eq!(store.snapshot().expect("reads").last_message, MessageId(10));
    }

    #[test]
    fn what_somebody_holds_stays_and_what_nobody_wants_goes() {
        let mut store = HubStore::in_memory().expect("memory");
        for id in [1, 2] {
            let message = Message { id: MessageId(id), from: "x".into(), to: "a".into(), claimable: true, ..Default::default() };
            store
                .commit(&[(0, vec![HubOp::MessagePut { message, recipients: vec!["a".into()], key: None, sees_all: true }])])
                .expect("memory");
        }
        store.commit(&[(0, vec![HubOp::ClaimPut { message: MessageId(1), agent: "a".into(), expires_at: 5 }])]).expect("memory");
        put(&mut store, 3, "chat", "a", 0);
        put(&mut store, 4, "chat", "a", 0);
        let retired = retain(&mut store, 100, 100, 200);
        assert_eq!((ids(&store), retired.offers), (vec![1, 4], vec![MessageId(2)]));
        store.commit(&[(0, vec![HubOp::ClaimEnd { message: MessageId(1), reoffer: false, at: 5 }])]).expect("memory");
        retain(&mut store, 100, 100, 200);
        assert_eq!(ids(&store), [4]);
    }

    /// Nobody is offered it, nobody owes anything for it, no retention takes it away; opened again it is unread for all.
    #[test]
    fn a_held_offer_stays_and_comes_back_unread() {
        let mut store = HubStore::in_memory().expect("memory");
        let payload = serde_json::json!({"taskId": 1}).as_object().cloned().unwrap_or_default();
        let message = Message {
            id: MessageId(1),
            from: "x".into(),
            to: "tag:t".into(),
            kind: "task".into(),
            claimable: true,
            payload,
            ..Default::default()
        };
        let task = Task { id: TaskId(1), status: "open".into(), message_id: MessageId(1), ..Default::default() };
        let mark = |status: &str| HubOp::TaskMark { id: TaskId(1), status: status.into(), agent: None, entry: Value::Null, at: 5 };
        let recipients = vec!["a".to_string(), "b".to_string()];
        store
            .commit(&[(0, vec![HubOp::MessagePut { message, recipients, key: None, sees_all: true }, HubOp::TaskPut(task)])])
            .expect("memory");
        let work = vec![
            HubOp::ClaimPut { message: MessageId(1), agent: "a".into(), expires_at: 50 },
            HubOp::Acked { message: MessageId(1), recipient: "a".into() },
            HubOp::Read { message: MessageId(1), recipient: "a".into(), at: 3, reason: None },
        ];
        store.commit(&[(0, work)]).expect("memory");
        let owed: i64 = store.db.query_row("SELECT count(*) FROM obligations", [], |row| row.get(0)).expect("counts");
        assert_eq!(owed, 1);
        store.commit(&[(0, vec![mark("blocked"), HubOp::OfferHeld { message: MessageId(1), at: 5 }])]).expect("memory");
        put(&mut store, 2, "chat", "a", 0);
        for _ in 0..2 {
            let snapshot = store.snapshot().expect("reads");
            assert!(snapshot.unacknowledged.iter().all(|(_, ids)| !ids.contains(&MessageId(1))), "{:?}", snapshot.unacknowledged);
            assert_eq!((snapshot.offers[0].message, snapshot.offers[0].claim.clone()), (MessageId(1), None));
            let task = StoredTask { id: TaskId(1), message: MessageId(1), status: "blocked".into(), sender: "x".into(), restored: false };
            assert_eq!(snapshot.tasks, [task]);
            let owed: i64 = store.db.query_row("SELECT count(*) FROM obligations", [], |row| row.get(0)).expect("counts");
            assert_eq!(owed, 0);
            put(&mut store, 3, "chat", "a", 0);
            assert_eq!(retain(&mut store, 100, 100, 200).offers, Vec::<MessageId>::new());
        }
        store.commit(&[(0, vec![mark("open"), HubOp::ClaimEnd { message: MessageId(1), reoffer: true, at: 7 }])]).expect("memory");
        let snapshot = store.snapshot().expect("reads");
        for recipient in ["a", "b"] {
            assert!(snapshot.unacknowledged.iter().any(|(who, ids)| who == recipient && ids.contains(&MessageId(1))), "{recipient}");
        }
    }

    #[test]
    fn polls_use_an_index_and_see_the_right_rows() {
        let mut store = HubStore::in_memory().expect("memory");
        for (id, kind, to) in [(1, "chat", "user"), (2, "session", "user"), (3, "chat", "a"), (4, "chat", "user")] {
            put(&mut store, id, kind, to, 0);
        }
        let ask = |recipient: &str, mirror: bool, unread: bool| -> Vec<u64> {
            let (recipient, since, limit) = (recipient.to_string(), 0, 10);
            let query = if unread {
                Query::Unread { recipient, since: MessageId(since), limit, mirror }
            } else {
                Query::Inbox { recipient, since: MessageId(since), limit, mirror }
            };
            let ReadAnswer::Json(answer) = store.answer(&query) else { panic!() };
            answer["messages"].as_array().expect("messages").iter().filter_map(|message| message["id"].as_u64()).collect()
        };
        for unread in [true, false] {
            assert_eq!(ask("user", true, unread), [1, 2, 4]);
            assert_eq!(ask("user", false, unread), [1, 4]);
            assert_eq!(ask("a", true, unread), [3]);
        }
        for (recipient, mirror, unread, index) in [
            ("user", true, true, "recipients_user_unread"),
            ("user", false, true, "recipients_unread_mail"),
            ("a", false, true, "recipients_unread_mail"),
            ("user", false, false, "recipients_user_mail"),
            ("user", true, false, "PRIMARY KEY"),
            ("a", false, false, "PRIMARY KEY"),
        ] {
            let rows = rows_of_recipient(recipient, mirror, unread);
            let sql = format!("EXPLAIN QUERY PLAN SELECT m.doc {rows} ORDER BY r.message LIMIT ?3");
            let mut statement = store.db.prepare(&sql).expect("prepares");
            let plan: Vec<String> =
                statement.query_map(params![recipient, 0, 10], |row| row.get(3)).expect("asks").collect::<Result<_, _>>().expect("reads");
            let plan = plan.join("; ");
            assert!(
                plan.contains(index) && !plan.contains("SCAN") && !plan.contains("TEMP B-TREE"),
                "{recipient} {mirror} {unread}: {plan}"
            );
        }
    }

    #[test]
    fn a_vacuum_gives_everything_back_in_steps() {
        let dir = std::env::temp_dir().join(format!("agent-relay-vacuum-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temp dir");
        let mut store = HubStore::open(&dir.join("hub.sqlite")).expect("opens");
        for id in 1..=400 {
            let body = "x".repeat(20_000);
            let message = Message {
                id: MessageId(id),
                from: "x".into(),
                to: "user".into(),
                kind: "chat".into(),
                body,
                created_at: 0,
                ..Default::default()
            };
            store
                .commit(&[(0, vec![HubOp::MessagePut { message, recipients: vec!["user".into()], key: None, sees_all: true }])])
                .expect("commits");
        }
        while retain(&mut store, 100, 100, 200).more {}
        let (bytes, free) = sizes(&store.db).expect("sizes");
        assert!(free > bytes / 2, "{free} of {bytes}");
        assert!(store.vacuum_step().expect("a step"), "it takes more than one");
        let (before, after) = store.vacuum().expect("vacuums");
        assert!(after < bytes / 4 && before > after && sizes(&store.db).expect("sizes").1 == 0, "{before} {after}");
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    /// Whoever names the id of a message that it cannot see answers nothing; what it says is kept.
    #[test]
    fn an_answer_hangs_only_on_what_its_sender_can_see() {
        for (from, sees_all, reply, answers) in [
            ("boss", false, Some(1), json!([1])),
            ("worker", false, Some(1), json!([1])),
            ("stranger", false, None, json!([])),
            ("user", true, Some(1), json!([1, 2])),
            ("bridge", true, Some(1), json!([1, 2])),
        ] {
            let mut store = HubStore::in_memory().expect("memory");
            let message = |id: u64, from: &str, to: &str| Message {
                id: MessageId(id),
                from: from.into(),
                to: to.into(),
                kind: "chat".into(),
                body: "b".into(),
                ..Default::default()
            };
            let put = |message: Message, to: &str| HubOp::MessagePut { message, recipients: vec![to.into()], key: None, sees_all };
            let mut answer = message(3, from, "boss");
            answer.reply_to = Some(MessageId(1));
            answer.payload.insert("answers".into(), json!([1, 2, 99, "x"]));
            let ops = vec![put(message(1, "boss", "worker"), "worker"), put(message(2, "else", "other"), "other"), put(answer, "boss")];
            let committed = store.commit(&[(0, ops)]).expect("memory");
            let stored = committed.unattached.first().expect("two of the answered are unknown");
            assert_eq!((stored.reply_to.map(|id| id.0), &stored.payload["answers"]), (reply, &answers), "{from}");
            let ReadAnswer::Json(kept) = store.answer(&Query::Message { id: MessageId(3), viewer: None }) else { panic!("kept") };
            assert_eq!((kept["replyTo"].as_u64(), &kept["payload"]["answers"]), (reply, &answers), "{from}");
            let ReadAnswer::Json(thread) = store.answer(&Query::Thread { id: MessageId(1), viewer: None }) else { panic!("a thread") };
            assert_eq!(thread["messages"].as_array().map(Vec::len), Some(1 + usize::from(reply.is_some())), "{from}");
        }
    }

    #[test]
    fn an_older_operators_token_keeps_all_scopes_if_it_had_all() {
        let dir = std::env::temp_dir().join(format!("agent-relay-hub-scopes-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temp dir");
        let path = dir.join("hub.sqlite");
        let before: Vec<&str> =
            crate::core::hub::scopes_of("operator").iter().copied().filter(|s| !matches!(*s, "insight:write" | "token:issue")).collect();
        {
            let db = open_database(&path, &SCHEMAS[..4]).expect("opens").db;
            for (hash, profile, scopes) in [
                ("full", "operator", before.clone()),
                ("other-order", "operator", before.iter().rev().copied().collect()),
                ("narrow", "operator", before[1..].to_vec()),
                ("twice", "operator", vec!["spawn"; before.len()]),
                ("agent", "provider-agent", before.clone()),
            ] {
                let record = json!({"jti": hash, "profileId": profile, "scopes": scopes}).to_string();
                db.execute("INSERT INTO tokens (hash, record) VALUES (?1, ?2)", [hash, &record]).expect("fills");
            }
        }
        let tokens = HubStore::open(&path).expect("opens").snapshot().expect("reads").tokens;
        for (hash, record) in tokens {
            let more = record.scopes.iter().filter(|scope| matches!(scope.as_str(), "insight:write" | "token:issue")).count();
            let full = hash == "full" || hash == "other-order";
            assert_eq!(more, if full { 2 } else { 0 }, "{hash}: {:?}", record.scopes);
        }
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn an_older_file_is_brought_up_to_date() {
        let dir = std::env::temp_dir().join(format!("agent-relay-hub-store-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temp dir");
        let path = dir.join("hub.sqlite");
        {
            let db = open_database(&path, &SCHEMAS[..1]).expect("opens").db;
            db.execute_batch(
                "INSERT INTO messages (id, doc, sender, kind, target, thread, wants_reply, claimable, created_at)
                 VALUES (1, '{}', 'a', 'session', 'user', 1, 0, 0, 0), (2, '{}', 'a', 'chat', 'user', 2, 0, 0, 0);
                 INSERT INTO recipients (recipient, message, session) VALUES ('user', 1, 1), ('user', 2, 1);",
            )
            .expect("fills");
        }
        let store = HubStore::open(&path).expect("opens");
        let mirror: i64 = store.db.query_row("SELECT sum(mirror * message) FROM recipients", [], |row| row.get(0)).expect("reads");
        assert_eq!(mirror, 1, "only the session message is mirror");
        let copy = dir.join("copy.sqlite");
        assert!(backup(&path, &copy).expect("copies") > 0);
        let original = store.rows().expect("reads");
        let copied = HubStore::open(&copy).expect("opens");
        assert!(copied.snapshot().expect("reads").data.copied && !store.snapshot().expect("reads").data.copied);
        let rows: Vec<String> = copied.rows().expect("reads").into_iter().filter(|row| !row.starts_with("facts: ")).collect();
        assert_eq!(rows, original);
        let Err(Trouble::Use(text)) = backup(&path, &copy) else { panic!("the file exists") };
        assert!(text.contains("exists already"));
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
