//! The pump of a runner, as the real one does it.

use agent_relay::core::Cause;
use agent_relay::core::agent::event::{Event, Lane, RowAnswer};
use agent_relay::core::agent::store::{QueuedRow, RowKind};
use agent_relay::core::http::Request;
use agent_relay::core::ids::TaskId;
use agent_relay::wire::api::path;
use serde_json::{Value, json};

use super::World;
use super::schedule::{Action, From};

impl World {
    pub(super) fn pump_next(&mut self, runner: usize) {
        let life = self.runners[runner].life;
        let Some((rows, answers, token)) = self.runners[runner].pumping.as_ref() else { return };
        let at = answers.len();
        if at >= rows.len() {
            let (_, answers, _) = self.runners[runner].pumping.take().expect("looked at");
            let event = Event::Pumped(Ok(answers));
            return self.act(Action::Agent { runner, life, lane: Lane::Pump, event });
        }
        let run = rows[at..].iter().take_while(|row| row.row.kind.is_message()).count();
        let token = token.expose().to_string();
        let (method, path, body, count, single) = if run > 0 {
            let messages: Vec<&Value> =
                rows[at..at + run].iter().map(|row| &row.row.payload).collect();
            ("POST", path::BATCH.to_string(), json!({"messages": messages}), run, false)
        } else {
            let row = &rows[at].row;
            match row.kind {
                RowKind::TaskUpdate => (
                    "PATCH",
                    path::task(TaskId(row.payload["taskId"].as_u64().unwrap_or(0))),
                    row.payload.clone(),
                    1,
                    true,
                ),
                _ => ("POST", path::INSIGHTS.to_string(), row.payload.clone(), 1, true),
            }
        };
        let request = Request {
            method: method.into(),
            path,
            token,
            body: body.to_string().into_bytes(),
            ..Default::default()
        };
        self.http(From::Pump { runner, life, rows: count, single }, request);
    }

    pub(super) fn pump_answer(
        &mut self,
        runner: usize,
        count: usize,
        single: bool,
        result: Result<(u16, Value), Cause>,
    ) {
        let life = self.runners[runner].life;
        let Some((rows, answers, _)) = self.runners[runner].pumping.as_mut() else { return };
        let at = answers.len();
        let outcome = match result {
            Ok((status, body)) if single => Ok(vec![RowAnswer {
                seq: rows[at].seq,
                status,
                code: code_of(&body),
                error: String::new(),
            }]),
            Ok((status, body)) if status < 300 => {
                let results = body["results"].as_array().cloned().unwrap_or_default();
                assert_eq!(results.len(), count, "a result per row");
                let answer = |(row, result): (&QueuedRow, &Value)| RowAnswer {
                    seq: row.seq,
                    status: result["status"].as_u64().unwrap_or(500) as u16,
                    code: code_of(result),
                    error: result["error"].to_string(),
                };
                Ok(rows[at..at + count].iter().zip(&results).map(answer).collect())
            }
            Ok((status, body)) => Err(Cause::Refused(status, body.to_string())),
            Err(cause) => Err(cause),
        };
        match outcome {
            Ok(new) => {
                answers.extend::<Vec<RowAnswer>>(new);
                self.pump_next(runner);
            }
            Err(cause) => {
                let (_, answers, _) = self.runners[runner].pumping.take().expect("looked at");
                let event =
                    Event::Pumped(if answers.is_empty() { Err(cause) } else { Ok(answers) });
                self.act(Action::Agent { runner, life, lane: Lane::Pump, event });
            }
        }
    }
}

fn code_of(body: &Value) -> String {
    body["code"].as_str().unwrap_or_default().to_string()
}
