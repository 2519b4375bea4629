//! `send`, `reply`, `react`. Inside an agent's session the runner takes what the relay cannot.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{React, Reply, Send};
use super::client::{Client, Follow};
use super::exit::{Failure, Kind, NO, OK, Outcome};
use super::inside::{self, ReceivedMessage};
use super::print;
use crate::config::Global;
use crate::core::ids::MessageId;
use crate::os;
use crate::provider::reader::without_mark;
use crate::wire::MESSAGE_BODY_BYTES_MAX;
use crate::wire::api::{ANSWERED, Message, NewMessage, TaskStatus, URGENT, USER, path};
use crate::wire::bus::RelayFrame;

/// Text of the command line or of standard input.
fn text(words: Vec<String>, stdin: bool, what: &str) -> Result<String, Failure> {
    let text = if stdin {
        let mut bytes = Vec::new();
        let read = std::io::stdin().take(MESSAGE_BODY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| Failure::usage(format!("standard input cannot be read: {error}")))?;
        let (text, foreign) = piped(&bytes);
        if foreign > 0 && text.len() <= MESSAGE_BODY_BYTES_MAX {
            print::notice(&format!(
                "{foreign} bytes of standard input are no UTF-8 text; \u{fffd} stands in their place"
            ));
        }
        text
    } else {
        words.join(" ")
    };
    if text.trim().is_empty() {
        return Err(Failure::usage(format!(
            "there is nothing to {what}: give a text, or --stdin to read it from a pipe"
        )));
    }
    if text.len() > MESSAGE_BODY_BYTES_MAX {
        return Err(Failure::usage(format!(
            "the text is longer than {} KiB",
            MESSAGE_BODY_BYTES_MAX >> 10
        )));
    }
    Ok(text)
}

/// What came by a pipe, as text, and how many bytes of it were none.
fn piped(bytes: &[u8]) -> (String, usize) {
    let end = bytes.iter().rposition(|byte| *byte != b'\n').map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&bytes[..end]);
    let foreign = bytes[..end].utf8_chunks().map(|chunk| chunk.invalid().len()).sum();
    (without_mark(&text).to_string(), foreign)
}

/// Said once, whichever way it goes: what the relay has taken although its answer was lost is the
/// same message there.
fn key(client: &Client, told: Option<String>) -> Option<String> {
    let fresh = |agent: &str| format!("tool:{agent}:{}", os::sha256_hex(&os::secret()));
    told.or_else(|| client.session().map(fresh))
}

/// To the relay; inside a session, where that cannot take it, to the runner.
fn say(client: &Client, message: &NewMessage) -> Result<Value, Failure> {
    let body = json!(message);
    client
        .call("POST", path::MESSAGES, Some(&body))
        .or_else(|failure| inside::through_runner(client, failure, "/messages", &body))
}

/// Tells that the runner has queued what the relay could not take; true: it has.
fn tell_queued(answer: &Value, as_json: bool) -> bool {
    let queued = answer["queued"] == true;
    if queued && as_json {
        print::json(answer);
    } else if queued {
        print::line("queued; sent when the relay is back");
    }
    queued
}

/// `send`
pub fn send(send: Send) -> Outcome {
    if send.task && send.urgent {
        return Err(Failure::usage(
            "a task waits until it is claimed: leave out --task or --urgent",
        ));
    }
    let body = text(send.text, send.stdin, "send")?;
    let client = Client::new(&Global::load(None, None)?)?;
    // Listening begins before sending, so that no answer can slip through between.
    let mut waiting = match send.wait {
        Some(seconds) => Some(Waiting::begin(&client, (&send.to, send.task), seconds, send.json)?),
        None => None,
    };
    if send.task {
        let title = send
            .subject
            .clone()
            .unwrap_or_else(|| body.lines().next().unwrap_or_default().chars().take(80).collect());
        let task = client.call(
            "POST",
            path::TASKS,
            Some(&json!({"to": send.to, "title": title, "body": body})),
        )?;
        if send.json {
            print::json(&task)
        } else {
            print::line(&format!("task {} as message #{}", task["id"], task["messageId"]))
        }
        let Some(waiting) = &mut waiting else { return Ok(OK) };
        waiting.task = Some(task["id"].clone());
        return waiting.wait(&task["messageId"]);
    }
    let message = NewMessage {
        from: client.session().map(str::to_string),
        to: send.to,
        subject: send.subject,
        body,
        reply_expected: send.no_reply.then_some(false),
        idempotency_key: key(&client, send.key),
        payload: send.urgent.then(|| (URGENT.to_string(), json!(true))).into_iter().collect(),
        ..Default::default()
    };
    let Some(waiting) = &mut waiting else {
        let sent = say(&client, &message)?;
        return told(&sent, send.json);
    };
    let sent = client.call("POST", path::MESSAGES, Some(&json!(message)))?;
    if send.json {
        print::json(&sent);
    }
    if let Some(agent) = sent["resolvedToAgent"].as_str() {
        waiting.to = agent.to_string();
    }
    waiting.wait(&sent["id"])
}

/// Says that something is sent, or on its way.
fn told(sent: &Value, as_json: bool) -> Outcome {
    if !tell_queued(sent, as_json) {
        if as_json {
            print::json(sent)
        } else {
            let many = match sent["recipients"].as_u64() {
                None => String::new(),
                Some(0) => " (no agent matches yet; the relay keeps it for a day)".into(),
                Some(1) => " (one agent)".into(),
                Some(n) => format!(" ({n} agents)"),
            };
            print::line(&format!(
                "message #{} to {}{many}",
                sent["id"],
                sent["to"].as_str().unwrap_or_default()
            ));
        }
    }
    Ok(OK)
}

/// Name of an agent that a message may have gone to, if it waits for an approval.
fn asks(card: &Value, to: &str) -> Option<String> {
    let id = card["id"].as_str()?;
    let asks = card
        .pointer("/meta/pendingApprovals")
        .and_then(Value::as_array)
        .is_some_and(|open| !open.is_empty());
    (asks && super::cards::is_there(card) && (id == to || is_group(to))).then(|| id.to_string())
}

/// Whether a target may mean several.
fn is_group(to: &str) -> bool {
    to.contains(':') || to == "broadcast"
}

/// Somebody waits for an answer.
struct Waiting<'a> {
    client: &'a Client,
    follow: Follow,
    own: String,
    to: String,
    seconds: u64,
    json: bool,
    /// The task whose end belongs to the answer.
    task: Option<Value>,
}

impl<'a> Waiting<'a> {
    /// For an answer of whom it goes to; of a task its end belongs to that.
    fn begin(
        client: &'a Client,
        (to, is_task): (&str, bool),
        seconds: u64,
        json: bool,
    ) -> Result<Waiting<'a>, Failure> {
        let own = client.speaker()?;
        let follow = match is_task {
            // What happens to a task is told of whoever works on it.
            true => client.follow(&["message.new", "task.updated"], &[])?,
            false => client.follow(&["message.new"], &[&own])?,
        };
        Ok(Waiting { client, follow, own, to: to.into(), seconds, json, task: None })
    }

    /// Nothing more belongs to the answer: no task, or one that has ended or waits for a person.
    fn is_over(&self) -> bool {
        let Some(task) = &self.task else { return true };
        let Ok(task) = self.client.call("GET", &format!("{}/{task}", path::TASKS), None) else {
            return true; // it cannot be seen any more
        };
        let status = TaskStatus::from(task["status"].as_str().unwrap_or_default());
        status.is_final() || status == TaskStatus::Blocked
    }

    /// Whether it answers that message, and comes from whom that can have gone to.
    fn is_answer(&self, id: MessageId, message: &Message) -> bool {
        let listed = message
            .payload
            .get("answers")
            .and_then(Value::as_array)
            .is_some_and(|ids| ids.contains(&json!(id)));
        let from =
            if is_group(&self.to) { message.from != self.own } else { message.from == self.to };
        from && !message.is_session_mirror() && (listed || message.reply_to == Some(id))
    }

    fn wait(&mut self, id: &Value) -> Outcome {
        let id = MessageId(id.as_u64().unwrap_or(0));
        let until = Instant::now() + Duration::from_secs(self.seconds.min(365 * 24 * 3600));
        let mut answer: Option<Message> = None;
        while let Some(frame) = self.follow.next(until.saturating_duration_since(Instant::now()))? {
            let RelayFrame::Event { event, data, .. } = frame else {
                continue;
            };
            if event == "message.new" && answer.is_none() {
                let message = serde_json::from_value::<Message>(data).ok();
                answer = message.filter(|message| self.is_answer(id, message));
            }
            if answer.is_some() && self.is_over() {
                break;
            }
        }
        if let Some(answer) = answer {
            return self.show(&answer);
        }
        let open = match self.client.call("GET", path::AGENTS, None) {
            Ok(answer) => answer["agents"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|card| asks(card, &self.to))
                .collect::<Vec<_>>()
                .join(", "),
            Err(_) => String::new(),
        };
        let hint = if open.is_empty() {
            String::new()
        } else {
            format!("; {open} waits for an approval: `agent-relay approvals`")
        };
        let text = format!(
            "no answer to message #{id} within {} s{hint}; it will stand in `agent-relay inbox` when it comes",
            self.seconds
        );
        Err(Failure::no(text))
    }

    fn show(&self, message: &Message) -> Outcome {
        self.client.call(
            "POST",
            &path::message_part(message.id, "read"),
            Some(&json!({"agentId": self.own})),
        )?;
        if self.json {
            print::json(&json!(message))
        } else {
            // A script that has asked one agent gets its answer and nothing else.
            if message.from != self.to || print::stderr_is_terminal() {
                print::notice(&format!("message #{} from {}", message.id, message.from));
            }
            print::block("", "", &message.body);
        }
        // The turn that had it was answered to another sender: this says so, and is no answer.
        Ok(if message.payload.get(ANSWERED) == Some(&json!(false)) { NO } else { OK })
    }
}

/// Who is answered, and in which generation of the relay's data that message has its number.
fn addressee(
    client: &Client,
    id: MessageId,
    given: Option<&ReceivedMessage>,
) -> Result<(String, Option<String>), Failure> {
    let known = || {
        given
            .filter(|given| !given.from.is_empty())
            .map(|given| (given.from.clone(), given.generation.clone()))
    };
    let (status, asked) = match client.raw("GET", &path::message(id), None) {
        Ok(answer) => answer,
        // The runner knows who wrote it.
        Err(failure) => {
            return known().filter(|_| inside::is_away(client, &failure)).ok_or(failure);
        }
    };
    let text = |field: &str| asked[field].as_str().map(str::to_string);
    match (status, known()) {
        (200..=299, _) => {
            if let Some(given) = given {
                given.must_be(id, &asked)?;
            }
            Ok((text("from").unwrap_or_else(|| USER.into()), text("generation")))
        }
        // The relay has it no more, or takes the token no more: the agent was given it all the
        // same.
        (401 | 404, Some(known)) => Ok(known),
        // Whoever may not see it does not answer it.
        (403, _) => Err(Failure::no(
            text("error").unwrap_or_else(|| format!("message #{id} is not yours to see")),
        )),
        (404, None) => Err(Failure::no(format!("there is no message #{id}; nothing was sent"))),
        _ => client
            .judged(status, asked)
            .and(Err(Failure::no(format!("message #{id} cannot be seen")))),
    }
}

/// `reply`
pub fn reply(reply: Reply) -> Outcome {
    let body = text(reply.text, reply.stdin, "answer")?;
    let client = Client::new(&Global::load(None, None)?)?;
    let given = inside::given(&client, reply.id)?;
    let (to, generation) = addressee(&client, reply.id, given.as_ref())?;
    let message = NewMessage {
        from: client.session().map(str::to_string),
        to,
        body,
        reply_to: Some(reply.id),
        generation,
        reply_expected: Some(false),
        idempotency_key: key(&client, None),
        ..Default::default()
    };
    let sent = match say(&client, &message) {
        // What it answers is of other data of the relay than those of now: the runner puts it into
        // words.
        Err(failure) if failure.kind == Kind::No && given.is_some() => {
            inside::to_runner(&client, failure, "/messages", &json!(message))
        }
        said => said,
    }?;
    if sent["queued"] != true {
        super::hook::done_by_session("replied", &[reply.id]);
    }
    if sent["replyToUnknown"] == true {
        print::notice(&format!(
            "the relay no longer has message #{}: the answer is sent without a reference to it",
            reply.id
        ));
    }
    told(&sent, reply.json)
}

/// `react`
pub fn react(react: &React) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    let given = inside::given(&client, react.id)?;
    let mut body = json!({"agentId": client.speaker()?, "emoji": react.emoji});
    if let Some(generation) = given.and_then(|given| given.generation) {
        body["generation"] = json!(generation);
    }
    let way = format!("/messages/{}/reactions", react.id);
    let answer = client
        .call("POST", &path::message_part(react.id, "reactions"), Some(&body))
        .or_else(|failure| inside::through_runner(&client, failure, &way, &body))?;
    if !tell_queued(&answer, false) {
        super::hook::done_by_session("replied", &[react.id]);
        print::line(&format!("{} on message #{}", react.emoji, react.id));
    }
    Ok(OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_by_a_pipe_is_text_whatever_bytes_it_holds() {
        for (bytes, want, foreign) in [
            (&b"one\n\n"[..], "one", 0),
            (b"caf\xe9 \xff\xfe\n", "caf\u{fffd} \u{fffd}\u{fffd}", 3),
            (b"\xef\xbb\xbftext", "text", 0),
            (b"\n", "", 0),
        ] {
            assert_eq!(piped(bytes), (want.to_string(), foreign), "{bytes:?}");
        }
        // A character that lies on the limit makes a text too long, and not a text of another kind.
        let long = "ä".repeat(MESSAGE_BODY_BYTES_MAX / 2) + "ä";
        let (text, _) = piped(&long.as_bytes()[..MESSAGE_BODY_BYTES_MAX + 1]);
        assert!(text.len() > MESSAGE_BODY_BYTES_MAX);
    }
}
