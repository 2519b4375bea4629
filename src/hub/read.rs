//! Thread `hub-read`: answers questions from a read-only connection, so that no reader waits for
//! the disk.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Value, json};

use crate::core::hub::event::{CommandParties, Event, Query, ReadAnswer, StoreEvent};
use crate::core::ids::ReadNumber;
use crate::core::limits::UNACKED_BYTES_MAX;
use crate::core::store::StoreError;
use crate::edge::database::{error_of, open_for_reading, sizes};
use crate::wire::api::{Message, USER};

/// Bytes of messages in one answer; a single larger one is given all the same.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Longest thread that is shown.
const THREAD_MAX: i64 = 1000;

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
        let list = |messages: Vec<Message>| ReadAnswer::Json(json!({"messages": messages}));
        Ok(match query {
            Query::Unread { recipient, since, limit, mirror } => {
                let rows = rows_of_recipient(recipient, *mirror, true);
                let values = params![recipient, since, *limit as i64];
                list(self.messages(&format!("{rows} ORDER BY r.message LIMIT ?3"), values, Some(recipient))?)
            }
            Query::Inbox { recipient, since, limit, mirror } => {
                let rows = rows_of_recipient(recipient, *mirror, false);
                let values = params![recipient, since, *limit as i64];
                // The newest ones; for whoever goes on from somewhere, the next ones.
                let order = if !since.is_none() { "ASC" } else { "DESC" };
                let mut messages = self.messages(&format!("{rows} ORDER BY r.message {order} LIMIT ?3"), values, Some(recipient))?;
                messages.sort_by_key(|message| message.id);
                list(messages)
            }
            Query::Queued { limit } => list(self.messages(
                "FROM recipients r JOIN messages m ON m.id = r.message WHERE r.acked = 0 AND r.session = 0 ORDER BY m.id LIMIT ?1",
                params![*limit as i64],
                None,
            )?),
            Query::Message { id, viewer } => {
                let found = self.messages("FROM messages m WHERE m.id = ?1", params![id], viewer.as_deref())?;
                match found.into_iter().find(|message| self.may_see(message, viewer.as_deref()).unwrap_or(false)) {
                    Some(message) => ReadAnswer::Json(json!(message)),
                    None => ReadAnswer::Json(Value::Null),
                }
            }
            Query::Thread { id, viewer } => {
                let found: Option<(i64, String)> = self
                    .db
                    .query_row("SELECT thread, sender FROM messages WHERE id = ?1", [id], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                // Whoever asks by what is not his to see does not hear which thread that is in.
                let asked = |from: &str| self.may_see(&Message { id: *id, from: from.into(), ..Default::default() }, viewer.as_deref());
                let Some((thread, sender)) = found else { return Ok(ReadAnswer::Json(Value::Null)) };
                if !asked(&sender)? {
                    return Ok(ReadAnswer::Json(Value::Null));
                }
                let mut messages =
                    self.messages("FROM messages m WHERE m.thread = ?1 ORDER BY m.id LIMIT ?2", params![thread, THREAD_MAX], None)?;
                messages.retain(|message| self.may_see(message, viewer.as_deref()).unwrap_or(false));
                list(messages)
            }
            Query::Deliver { recipient, ids } => {
                let (mut messages, mut bytes): (Vec<Message>, usize) = (Vec::new(), 0);
                for id in ids {
                    if bytes > UNACKED_BYTES_MAX {
                        break; // the rest is asked for again
                    }
                    bytes += messages.last().map_or(0, |message| message.body.len());
                    messages.extend(self.messages("FROM messages m WHERE m.id = ?1", params![id], Some(recipient))?);
                }
                ReadAnswer::Messages(messages)
            }
            Query::Tasks { status, viewer } => {
                let tasks = self.docs(
                    "SELECT doc FROM tasks t WHERE (?1 IS NULL OR status = ?1) AND (?2 IS NULL OR EXISTS
                       (SELECT 1 FROM recipients r WHERE r.recipient = ?2 AND r.message = t.message) OR EXISTS
                       (SELECT 1 FROM messages m WHERE m.id = t.message AND m.sender = ?2)) ORDER BY id DESC LIMIT 500",
                    &[status, viewer],
                )?;
                ReadAnswer::Json(json!({"tasks": self.with_generation(tasks)?}))
            }
            Query::Task { id, viewer } => {
                let sql = "SELECT doc FROM tasks t WHERE id = ?1 AND (?2 IS NULL OR EXISTS
                     (SELECT 1 FROM recipients r WHERE r.recipient = ?2 AND r.message = t.message) OR EXISTS
                     (SELECT 1 FROM messages m WHERE m.id = t.message AND m.sender = ?2))";
                let found = self.docs(sql, &[id, viewer])?;
                ReadAnswer::Json(self.with_generation(found)?.pop().unwrap_or(Value::Null))
            }
            Query::Commands { target, status, own } => {
                let whose = |part: fn(&CommandParties) -> &String| own.as_ref().map(part);
                let commands = self.docs(
                    "SELECT doc FROM commands WHERE (?1 IS NULL OR target = ?1) AND (?2 IS NULL OR status = ?2)
                       AND (?3 IS NULL OR coalesce(doc ->> '$.agentId' = ?3, target IN (?3, ?4)) OR doc ->> '$.issuedBy' = ?5)
                     ORDER BY seq DESC LIMIT 500",
                    &[target, status, &whose(|own| &own.agent), &whose(|own| &own.component), &whose(|own| &own.issuer)],
                )?;
                ReadAnswer::Json(json!({"commands": commands}))
            }
            Query::Command { id, own } => {
                let whose = |part: fn(&CommandParties) -> &String| own.as_ref().map(part);
                let sql = "SELECT doc FROM commands
                     WHERE id = ?1 AND (?2 IS NULL OR coalesce(doc ->> '$.agentId' = ?2, target IN (?2, ?3)) OR doc ->> '$.issuedBy' = ?4)";
                let values: [&dyn rusqlite::ToSql; 4] =
                    [id, &whose(|own| &own.agent), &whose(|own| &own.component), &whose(|own| &own.issuer)];
                ReadAnswer::Json(self.docs(sql, &values)?.pop().unwrap_or(Value::Null))
            }
            Query::StoreStats => {
                let (bytes, free) = sizes(self.db)?;
                ReadAnswer::Json(json!({"bytes": bytes, "freeBytes": free}))
            }
            Query::Obligations { agent } => {
                let mut statement = self.db.prepare_cached(
                    "SELECT message, sender, subject, created_at FROM obligations WHERE agent = ?1 ORDER BY message LIMIT 1000",
                )?;
                let owed: Vec<Value> = statement
                    .query_map([agent], |row| {
                        let subject: Option<String> = row.get(2)?;
                        let (id, from, at): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(3)?);
                        Ok(json!({"messageId": id, "from": from, "subject": subject, "createdAt": at}))
                    })?
                    .collect::<Result<_, _>>()?;
                ReadAnswer::Json(json!({"obligations": owed}))
            }
        })
    }

    fn docs(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> rusqlite::Result<Vec<Value>> {
        let mut statement = self.db.prepare_cached(sql)?;
        let rows = statement.query_map(values, |row| row.get::<_, String>(0))?;
        Ok(rows
            .filter_map(|row| row.ok())
            .filter_map(|doc| serde_json::from_str(&doc).ok())
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

    /// Tasks, each with its generation.
    fn with_generation(&self, mut tasks: Vec<Value>) -> rusqlite::Result<Vec<Value>> {
        for task in tasks.iter_mut().filter(|task| task["generation"].is_null()) {
            task["generation"] = json!(self.first_generation()?);
        }
        Ok(tasks)
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
