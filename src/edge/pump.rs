//! Thread `pump`: takes outbox rows to the relay, one exchange of up to 64 rows at a time, one
//! attempt each.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use serde_json::{Value, json};

use super::http::{Http, RelayClient};
use crate::core::Cause;
use crate::core::agent::effect::PumpCommand;
use crate::core::agent::event::{Event, RowAnswer};
use crate::core::agent::store::{QueuedRow, RowKind};
use crate::core::ids::{MessageId, TaskId};
use crate::secret::Secret;
use crate::wire::api::path;

/// One exchange may take this long.
const POST_LIMIT: Duration = Duration::from_secs(20);

/// Body of the thread.
pub fn run(orders: Receiver<PumpCommand>, lane: Sender<Event>) {
    let mut relay_client = RelayClient::new(POST_LIMIT);
    let mut batches = true;
    for PumpCommand { relay, rows, token } in orders {
        // Another relay may know batches again.
        batches |= !relay_client.is_of(&relay);
        let http = relay_client.of(&relay);
        let result = http.and_then(|http| post(http, &rows, &token, &mut batches));
        if lane.send(Event::Pumped(result)).is_err() {
            return;
        }
    }
}

/// Messages go as batches where the relay offers them, everything else alone; order holds. Stops at
/// the first row that has to wait: rows behind it get no answer and stay.
fn post(
    http: &Http,
    rows: &[QueuedRow],
    token: &Secret,
    batches: &mut bool,
) -> Result<Vec<RowAnswer>, Cause> {
    let mut answers: Vec<RowAnswer> = Vec::new();
    let mut at = 0;
    let mut singly = false;
    while at < rows.len() {
        let run = rows[at..].iter().take_while(|row| row.row.kind.is_message()).count();
        let result = if run > 1 && *batches && !singly {
            post_batch(http, &rows[at..at + run], token, batches)
        } else {
            post_one(http, &rows[at], token).map(|a| vec![a])
        };
        match result {
            Ok(new) if new.is_empty() => {} // the relay knows no batches: again, one by one
            Ok(new) => {
                at += new.len();
                let waits = new.last().is_some_and(|answer| must_wait(answer.status));
                answers.extend(new);
                if waits {
                    break;
                }
            }
            // Something about the batch as a whole: row by row, so that one row cannot hold up the
            // others for ever.
            Err(Cause::Refused(400 | 413 | 422, _)) if !singly => singly = true,
            // What had arrived before the connection broke counts as sent.
            Err(_) if !answers.is_empty() => break,
            Err(cause) => return Err(cause),
        }
    }
    Ok(answers)
}

fn must_wait(status: u16) -> bool {
    matches!(status, 401 | 403 | 408 | 425 | 429) || status >= 500
}

fn error_of(body: &Value) -> String {
    body.get("error").and_then(Value::as_str).unwrap_or("no reason given").to_string()
}

fn code_of(body: &Value) -> String {
    body.get("code").and_then(Value::as_str).unwrap_or_default().to_string()
}

fn post_batch(
    http: &Http,
    rows: &[QueuedRow],
    token: &Secret,
    batches: &mut bool,
) -> Result<Vec<RowAnswer>, Cause> {
    let messages: Vec<&Value> = rows.iter().map(|row| &row.row.payload).collect();
    let (status, body) =
        http.call("POST", path::BATCH, Some(&json!({"messages": messages})), token)?;
    if matches!(status, 404 | 405) {
        *batches = false;
        return Ok(Vec::new());
    }
    if status >= 300 {
        return Err(Cause::Refused(status, error_of(&body)));
    }
    let results = body.get("results").and_then(Value::as_array).cloned().unwrap_or_default();
    if results.len() != rows.len() {
        return Err(Cause::Protocol(format!(
            "the relay answered {} rows of {}",
            results.len(),
            rows.len()
        )));
    }
    let answer = |(row, result): (&QueuedRow, &Value)| RowAnswer {
        seq: row.seq,
        status: result.get("status").and_then(Value::as_u64).unwrap_or(500) as u16,
        code: code_of(result),
        error: error_of(result),
    };
    Ok(rows.iter().zip(&results).map(answer).collect())
}

fn post_one(http: &Http, queued: &QueuedRow, token: &Secret) -> Result<RowAnswer, Cause> {
    let row = &queued.row;
    let (status, body) = match row.kind {
        RowKind::TaskUpdate => {
            let task = row.payload.get("taskId").and_then(Value::as_u64).unwrap_or_default();
            http.call("PATCH", &path::task(TaskId(task)), Some(&row.payload), token)?
        }
        RowKind::Reaction => {
            let message = row.payload.get("messageId").and_then(Value::as_u64).unwrap_or_default();
            http.call(
                "POST",
                &path::message_part(MessageId(message), "reactions"),
                Some(&row.payload),
                token,
            )?
        }
        RowKind::Insight => http.call("POST", path::INSIGHTS, Some(&row.payload), token)?,
        RowKind::Message | RowKind::SessionMessage | RowKind::Other(_) => {
            http.call("POST", path::MESSAGES, Some(&row.payload), token)?
        }
    };
    Ok(RowAnswer { seq: queued.seq, status, code: code_of(&body), error: error_of(&body) })
}
