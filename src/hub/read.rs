//! Thread `hub-read`: answers questions from a read-only connection, so that no reader waits for
//! the disk.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Value, json};

use crate::core::cost::cut_depth;
use crate::core::hub::event::{CommandParties, Event, Query, ReadAnswer, StoreEvent};
use crate::core::ids::{MessageId, ReadNumber, TaskId};
use crate::core::limits::{JSON_DEPTH_MAX, UNACKED_BYTES_MAX};
use crate::core::store::StoreError;
use crate::edge::database::{error_of, open_for_reading, sizes};
use crate::wire::api::{Message, USER};

/// Bytes of messages in one answer; a single larger one is given all the same.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest thread that is shown.
const THREAD_MAX: i64 = 1000;

/// Whether viewer ?2 sees task `t`: as its sender or a recipient; an absent one sees all.
const TASK_SEEN: &str = "(?2 IS NULL
  OR EXISTS (SELECT 1 FROM recipients r WHERE r.recipient = ?2 AND r.message = t.message)
  OR EXISTS (SELECT 1 FROM messages m WHERE m.id = t.message AND m.sender = ?2))";

/// What is read of a task.
const TASK: &str = "SELECT t.id, t.doc, t.status, t.agent, t.updated_at";

/// The reader's connection.
pub struct HubReader {
    db: Connection,
}

/// Questions to a connection, whoever owns it.
pub(super) struct View<'a> {
    pub(super) db: &'a Connection,
}

impl HubReader {
    /// Opens the file for reading only; the writer has made it.
    pub fn open(path: &Path) -> Result<HubReader, StoreError> {
        let db = open_for_reading(path)?;
        let small = db.execute_batch("PRAGMA cache_size = -2048;");
        small.map_err(|error| {
            error_of(format!("cannot open {} for reading", path.display()), &error)
        })?;
        Ok(HubReader { db })
    }

    /// Answers one question.
    pub fn answer(&self, query: &Query) -> ReadAnswer {
        View { db: &self.db }.answer(query)
    }
}

impl View<'_> {
    pub(super) fn answer(&self, query: &Query) -> ReadAnswer {
        self.try_answer(query).unwrap_or_else(|error| {
            ReadAnswer::Failed(error_of("cannot read the hub's store", &error))
        })
    }

    fn try_answer(&self, query: &Query) -> rusqlite::Result<ReadAnswer> {
        Ok(match query {
            Query::Unread { recipient, since, limit, mirror } => {
                let rows = rows_of_recipient(recipient, *mirror, true);
                let sql = format!("{rows} ORDER BY r.message LIMIT ?3");
                let values = params![recipient, since, *limit as i64];
                list(self.messages(&sql, values, Some(recipient))?)
            }
            Query::Inbox { recipient, since, limit, mirror } => {
                let rows = rows_of_recipient(recipient, *mirror, false);
                // The newest ones; for whoever goes on from somewhere, the next ones.
                let order = if since.is_none() { "DESC" } else { "ASC" };
                let sql = format!("{rows} ORDER BY r.message {order} LIMIT ?3");
                let values = params![recipient, since, *limit as i64];
                let mut messages = self.messages(&sql, values, Some(recipient))?;
                messages.sort_by_key(|message| message.id);
                list(messages)
            }
            Query::Queued { limit } => {
                let sql = "FROM recipients r JOIN messages m ON m.id = r.message
                           WHERE r.acked = 0 AND r.session = 0 ORDER BY m.id LIMIT ?1";
                list(self.messages(sql, params![*limit as i64], None)?)
            }
            Query::Message { id, viewer } => self.message(*id, viewer.as_deref())?,
            Query::Thread { id, viewer } => self.thread(*id, viewer.as_deref())?,
            Query::Deliver { recipient, ids } => {
                ReadAnswer::Messages(self.to_deliver(recipient, ids)?)
            }
            Query::Tasks { status, viewer } => {
                let sql = format!(
                    "{TASK} FROM tasks t WHERE (?1 IS NULL OR status = ?1) AND {TASK_SEEN} \
                     ORDER BY id DESC LIMIT 500"
                );
                let tasks = self.tasks(&sql, &[status, viewer])?;
                ReadAnswer::Json(json!({"tasks": tasks}))
            }
            Query::Task { id, viewer } => {
                let sql = format!("{TASK} FROM tasks t WHERE id = ?1 AND {TASK_SEEN}");
                ReadAnswer::Json(self.tasks(&sql, &[id, viewer])?.pop().unwrap_or(Value::Null))
            }
            Query::Commands { target, status, own } => {
                let commands = self.commands(target, status, own.as_ref())?;
                ReadAnswer::Json(json!({"commands": commands}))
            }
            Query::Command { id, own } => self.command(id, own.as_ref())?,
            Query::StoreStats => {
                let (bytes, free) = sizes(self.db)?;
                ReadAnswer::Json(json!({"bytes": bytes, "freeBytes": free}))
            }
            Query::Obligations { agent } => {
                ReadAnswer::Json(json!({"obligations": self.obligations(agent)?}))
            }
        })
    }

    /// Null: there is none, or not for this viewer to see.
    fn message(&self, id: MessageId, viewer: Option<&str>) -> rusqlite::Result<ReadAnswer> {
        let found = self.messages("FROM messages m WHERE m.id = ?1", params![id], viewer)?;
        let sees = |message: &Message| self.may_see(message, viewer).unwrap_or(false);
        Ok(ReadAnswer::Json(found.into_iter().find(sees).map_or(Value::Null, |seen| json!(seen))))
    }

    /// What a viewer sees of the thread of a message. Null: there is none, or the viewer cannot see
    /// the message that was asked by, and so does not hear which thread it is in.
    fn thread(&self, id: MessageId, viewer: Option<&str>) -> rusqlite::Result<ReadAnswer> {
        let sql = "SELECT thread, sender FROM messages WHERE id = ?1";
        let found: Option<(i64, String)> =
            self.db.query_row(sql, [id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((thread, from)) = found else { return Ok(ReadAnswer::Json(Value::Null)) };
        if !self.may_see(&Message { id, from, ..Default::default() }, viewer)? {
            return Ok(ReadAnswer::Json(Value::Null));
        }
        let sql = "FROM messages m WHERE m.thread = ?1 ORDER BY m.id LIMIT ?2";
        let mut messages = self.messages(sql, params![thread, THREAD_MAX], None)?;
        messages.retain(|message| self.may_see(message, viewer).unwrap_or(false));
        Ok(list(messages))
    }

    /// As many as a connection may have unacknowledged; the rest is asked for again.
    fn to_deliver(&self, recipient: &str, ids: &[MessageId]) -> rusqlite::Result<Vec<Message>> {
        let (mut messages, mut bytes): (Vec<Message>, usize) = (Vec::new(), 0);
        for id in ids {
            if bytes > UNACKED_BYTES_MAX {
                break;
            }
            bytes += messages.last().map_or(0, |message| message.body.len());
            let sql = "FROM messages m WHERE m.id = ?1";
            messages.extend(self.messages(sql, params![id], Some(recipient))?);
        }
        Ok(messages)
    }

    fn commands(
        &self,
        target: &Option<String>,
        status: &Option<String>,
        own: Option<&CommandParties>,
    ) -> rusqlite::Result<Vec<Value>> {
        let whose = |part: fn(&CommandParties) -> &String| own.map(part);
        self.docs(
            "SELECT doc FROM commands WHERE (?1 IS NULL OR target = ?1) AND (?2 IS NULL OR status = ?2)
               AND (?3 IS NULL OR coalesce(doc ->> '$.agentId' = ?3, target IN (?3, ?4)) OR doc ->> '$.issuedBy' = ?5)
             ORDER BY seq DESC LIMIT 500",
            &[
                target,
                status,
                &whose(|own| &own.agent),
                &whose(|own| &own.component),
                &whose(|own| &own.issuer),
            ],
        )
    }

    fn command(&self, id: &str, own: Option<&CommandParties>) -> rusqlite::Result<ReadAnswer> {
        let whose = |part: fn(&CommandParties) -> &String| own.map(part);
        let found = self.docs(
            "SELECT doc FROM commands WHERE id = ?1
               AND (?2 IS NULL OR coalesce(doc ->> '$.agentId' = ?2, target IN (?2, ?3)) OR doc ->> '$.issuedBy' = ?4)",
            &[
                &id,
                &whose(|own| &own.agent),
                &whose(|own| &own.component),
                &whose(|own| &own.issuer),
            ],
        );
        Ok(ReadAnswer::Json(found?.pop().unwrap_or(Value::Null)))
    }

    fn obligations(&self, agent: &str) -> rusqlite::Result<Vec<Value>> {
        let mut statement = self.db.prepare_cached(
            "SELECT message, sender, subject, created_at FROM obligations WHERE agent = ?1 ORDER BY message LIMIT 1000",
        )?;
        let owed = statement.query_map([agent], |row| {
            let subject: Option<String> = row.get(2)?;
            let (id, from, at): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(3)?);
            Ok(json!({"messageId": id, "from": from, "subject": subject, "createdAt": at}))
        })?;
        owed.collect()
    }

    fn docs(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> rusqlite::Result<Vec<Value>> {
        let mut statement = self.db.prepare_cached(sql)?;
        let rows = statement.query_map(values, |row| row.get::<_, String>(0))?;
        let mut bytes = 0;
        // The newest ones, as many as an answer may hold.
        Ok(rows
            .filter_map(|row| row.ok())
            .take_while(|doc| {
                let is_first = bytes == 0;
                bytes += doc.len();
                is_first || bytes <= ANSWER_BYTES_MAX
            })
            .filter_map(|doc| serde_json::from_str(&doc).ok())
            .map(|mut doc| {
                cut_depth(&mut doc, JSON_DEPTH_MAX);
                doc
            })
            .collect())
    }

    /// Messages with their claims, read marks and reactions; `viewer` gets the copy that was sent
    /// to it.
    fn messages(
        &self,
        rest: &str,
        values: impl rusqlite::Params,
        viewer: Option<&str>,
    ) -> rusqlite::Result<Vec<Message>> {
        let mut statement = self
            .db
            .prepare_cached(&format!("SELECT m.doc, m.claimed_by, m.claim_expires_at {rest}"))?;
        let read = |row: &Row<'_>| -> rusqlite::Result<(String, Option<String>, Option<i64>)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        };
        let mut rows = Vec::new();
        let mut bytes = 0;
        for row in statement.query_map(values, read)? {
            let row = row?;
            bytes += row.0.len();
            if bytes > ANSWER_BYTES_MAX && !rows.is_empty() {
                break; // whoever asks goes on behind the last one
            }
            rows.push(row);
        }
        let mut messages = Vec::with_capacity(rows.len());
        for (doc, claimed_by, claim_expires_at) in rows {
            let Ok(mut message) = serde_json::from_str::<Message>(&doc) else {
                continue;
            };
            if message.generation.is_none() {
                message.generation = self.first_generation()?;
            }
            // An older hub took what no client can read once it stands in an answer.
            message.payload.values_mut().for_each(|value| cut_depth(value, JSON_DEPTH_MAX));
            message.claimed_by = claimed_by;
            message.claim_expires_at = claim_expires_at;
            let mut readers = self.db.prepare_cached(
                "SELECT recipient FROM recipients WHERE message = ?1 AND read_at IS NOT NULL ORDER BY recipient LIMIT 1000",
            )?;
            message.read_by =
                readers.query_map([message.id], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let mut reactions = self.db.prepare_cached(
                "SELECT agent, emoji FROM reactions WHERE message = ?1 LIMIT 1000",
            )?;
            let reaction = |row: &Row<'_>| {
                Ok(json!({"agentId": row.get::<_, String>(0)?, "emoji": row.get::<_, String>(1)?}))
            };
            message.reactions =
                reactions.query_map([message.id], reaction)?.collect::<Result<_, _>>()?;
            if let Some(viewer) = viewer.filter(|viewer| {
                *viewer != USER && (*viewer != message.from || *viewer == message.to)
            }) {
                message.resolved_to_agent = Some(viewer.to_string());
            }
            messages.push(message);
        }
        Ok(messages)
    }

    /// Tasks, each with its generation and the newest of its history; as many as an answer holds.
    fn tasks(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> rusqlite::Result<Vec<Value>> {
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query(values)?;
        let mut tasks = Vec::new();
        let (mut docs_left, mut left) = (ANSWER_BYTES_MAX, ANSWER_BYTES_MAX);
        while let Some(row) = rows.next()? {
            let doc: String = row.get(1)?;
            if doc.len() > docs_left && !tasks.is_empty() {
                break;
            }
            docs_left = docs_left.saturating_sub(doc.len());
            let Ok(Value::Object(mut task)) = serde_json::from_str(&doc) else { continue };
            if task.get("generation").is_none_or(Value::is_null) {
                task.insert("generation".into(), json!(self.first_generation()?));
            }
            task.insert("status".into(), row.get::<_, String>(2)?.into());
            task.insert("updatedAt".into(), row.get::<_, i64>(4)?.into());
            match row.get::<_, Option<String>>(3)? {
                Some(agent) => task.insert("agentId".into(), agent.into()),
                None => task.remove("agentId"),
            };
            task.insert("history".into(), self.history(row.get(0)?, &mut left)?.into());
            let mut task = Value::Object(task);
            cut_depth(&mut task, JSON_DEPTH_MAX);
            tasks.push(task);
        }
        Ok(tasks)
    }

    /// The newest of a task's history, oldest first: as much as there is room for, and one entry
    /// at least.
    fn history(&self, task: TaskId, left: &mut usize) -> rusqlite::Result<Vec<Value>> {
        let mut statement = self.db.prepare_cached(
            "SELECT entry FROM task_history WHERE task = ?1 ORDER BY number DESC",
        )?;
        let mut rows = statement.query([task])?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next()? {
            let entry: String = row.get(0)?;
            if entry.len() > *left && !entries.is_empty() {
                break;
            }
            *left = left.saturating_sub(entry.len());
            entries.extend(serde_json::from_str::<Value>(&entry));
        }
        entries.reverse();
        Ok(entries)
    }

    /// What was stored before there were generations belongs to the first one.
    fn first_generation(&self) -> rusqlite::Result<Option<String>> {
        self.db
            .prepare_cached("SELECT name FROM generations ORDER BY number LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()
    }

    fn may_see(&self, message: &Message, viewer: Option<&str>) -> rusqlite::Result<bool> {
        let Some(viewer) = viewer else {
            return Ok(true);
        };
        if message.from == viewer {
            return Ok(true);
        }
        let mut statement = self
            .db
            .prepare_cached("SELECT 1 FROM recipients WHERE recipient = ?1 AND message = ?2")?;
        statement.exists(params![viewer, message.id])
    }
}

fn list(messages: Vec<Message>) -> ReadAnswer {
    ReadAnswer::Json(json!({"messages": messages}))
}

/// Rows of a recipient that are wanted, by the partial index that has just them; the planner would
/// take the primary key. Only people see the mirror of sessions.
pub(super) fn rows_of_recipient(recipient: &str, mirror: bool, unread: bool) -> String {
    let (index, class) = match (recipient == USER, mirror, unread) {
        (true, true, true) => ("INDEXED BY recipients_user_unread", "r.recipient = 'user'"),
        (true, true, false) => ("", "r.recipient = 'user'"),
        (true, false, false) => {
            ("INDEXED BY recipients_user_mail", "r.recipient = 'user' AND r.mirror = 0")
        }
        (_, _, true) => ("INDEXED BY recipients_unread_mail", "r.mirror = 0"),
        (false, _, false) => ("", "r.mirror = 0"),
    };
    let unread = if unread { "AND r.read_at IS NULL" } else { "" };
    format!(
        "FROM recipients r {index} JOIN messages m ON m.id = r.message WHERE {class} {unread} AND r.recipient = ?1 AND r.message > ?2"
    )
}

/// Body of the reader's thread.
pub fn run(reader: HubReader, orders: Receiver<(ReadNumber, Query)>, lane: Sender<Event>) {
    for (number, query) in orders {
        let answer = reader.answer(&query);
        if lane.send(Event::Store(StoreEvent::Read { number, answer })).is_err() {
            return;
        }
    }
}
