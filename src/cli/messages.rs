//! `send`, `inbox`, `get-message`, `reply`.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::{GetMessage, Inbox, Reply, Send};
use super::client::Client;
use super::exit::{Failure, OK, Outcome};
use super::print;
use crate::config::{Global, env};
use crate::wire::MESSAGE_BODY_BYTES_MAX;
use crate::wire::api::{Message, NewMessage, USER, encode, messages_of, path};
use crate::wire::bus::RelayFrame;

/// Text of the command line or of standard input.
fn text(words: Vec<String>, stdin: bool, what: &str) -> Result<String, Failure> {
    let text = match stdin {
        true => {
            let mut text = String::new();
            let read = std::io::stdin().take(MESSAGE_BODY_BYTES_MAX as u64 + 1).read_to_string(&mut text);
            read.map_err(|error| Failure::usage(format!("standard input is no text: {error}")))?;
            text.trim_end_matches('\n').to_string()
        }
        false => words.join(" "),
    };
    if text.trim().is_empty() {
        return Err(Failure::usage(format!("there is nothing to {what}: give a text, or --stdin to read it from a pipe")));
    }
    if text.len() > MESSAGE_BODY_BYTES_MAX {
        return Err(Failure::usage(format!("the text is longer than {} KiB", MESSAGE_BODY_BYTES_MAX >> 10)));
    }
    Ok(text)
}

/// Who this process speaks as: the agent inside an agent, else the user.
pub fn own_name() -> String {
    env("AGENT_RELAY_ID").unwrap_or_else(|| USER.into())
}

/// `send`
pub fn send(send: Send) -> Outcome {
    let body = text(send.text, send.stdin, "send")?;
    let client = Client::new(&Global::load(None, None)?)?;
    let own = own_name();
    // Listening begins before sending, so that no answer can slip through between.
    let mut follow = match send.wait {
        Some(_) => Some(client.follow(&["message.new"], &[&own])?),
        None => None,
    };
    if send.task {
        let title = send.subject.clone().unwrap_or_else(|| body.lines().next().unwrap_or_default().chars().take(80).collect());
        let task = client.call("POST", path::TASKS, Some(&json!({"to": send.to, "title": title, "body": body})))?;
        match send.json {
            true => print::line(&task.to_string()),
            false => print::line(&format!("task {} as message #{}", task["id"], task["messageId"])),
        }
        return wait_for_reply(&client, follow.as_mut(), task["messageId"].as_u64().unwrap_or(0), send.wait, send.json);
    }
    let message = NewMessage {
        to: send.to,
        subject: send.subject,
        body,
        reply_expected: send.no_reply.then_some(false),
        idempotency_key: send.key,
        ..Default::default()
    };
    let sent = client.call("POST", path::MESSAGES, Some(&json!(message)))?;
    match send.json {
        true => print::line(&sent.to_string()),
        false if send.wait.is_none() => print::line(&format!("message #{} to {}", sent["id"], sent["to"].as_str().unwrap_or_default())),
        false => {}
    }
    wait_for_reply(&client, follow.as_mut(), sent["id"].as_u64().unwrap_or(0), send.wait, send.json)
}

fn wait_for_reply(client: &Client, follow: Option<&mut super::client::Follow>, id: u64, seconds: Option<u64>, as_json: bool) -> Outcome {
    let (Some(follow), Some(seconds)) = (follow, seconds) else {
        return Ok(OK);
    };
    let until = Instant::now() + Duration::from_secs(seconds.min(365 * 24 * 3600));
    while let Some(frame) = follow.next(until.saturating_duration_since(Instant::now()))? {
        let RelayFrame::Event { event, data, .. } = frame else {
            continue;
        };
        let Ok(message) = serde_json::from_value::<Message>(data) else {
            continue;
        };
        let answers = |m: &Message| m.payload.get("answers").and_then(Value::as_array).is_some_and(|ids| ids.contains(&json!(id)));
        if event == "message.new" && !message.is_session_mirror() && (message.reply_to == Some(id) || answers(&message)) {
            let body = json!({"agentId": own_name()});
            client.call("POST", &path::message_part(message.id, "read"), Some(&body))?;
            match as_json {
                true => print::line(&json!(message).to_string()),
                false => print::line(&print::harmless(&message.body)),
            }
            return Ok(OK);
        }
    }
    Err(Failure::no(format!("no answer to message #{id} within {seconds} s; it will stand in `agent-relay inbox` when it comes")))
}

/// `inbox`
pub fn inbox(inbox: &Inbox) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    let whose = inbox.whose.clone().unwrap_or_else(own_name);
    let unread = if inbox.all { "" } else { "&unread=true" };
    let mirror = if inbox.mirror { "" } else { "&mirror=false" };
    let query = format!("{}?for={}&limit={}{unread}{mirror}", path::MESSAGES, encode(&whose), inbox.limit.clamp(1, 1000));
    let mut messages = messages_of(&client.call("GET", &query, None)?);
    // A relay that does not know the wish sends the mirror all the same.
    messages.retain(|message| inbox.mirror || !message.is_session_mirror());
    for message in &messages {
        match inbox.json {
            true => print::line(&json!(message).to_string()),
            false => show(message, Some(300)),
        }
        if inbox.read {
            client.call("POST", &path::message_part(message.id, "read"), Some(&json!({"agentId": whose})))?;
        }
    }
    if messages.is_empty() && !inbox.json {
        print::line(&format!("no {}messages for {whose}", if inbox.all { "" } else { "unread " }));
    }
    Ok(OK)
}

/// One message as people read it.
fn show(message: &Message, chars_max: Option<usize>) {
    let age = print::span(print::now_ms() - message.created_at);
    let reply = message.reply_to.map(|id| format!(", answers #{id}")).unwrap_or_default();
    print::line(&print::harmless(&format!("#{} from {} to {} ({age} ago{reply})", message.id, message.from, message.to)));
    if let Some(subject) = &message.subject {
        print::line(&print::harmless(&format!("  Subject: {subject}")));
    }
    let limit = chars_max.unwrap_or(usize::MAX);
    let body: String = message.body.chars().take(limit).collect();
    for line in body.lines() {
        print::line(&format!("  {}", print::harmless(line)));
    }
    if message.body.chars().count() > limit {
        print::line(&format!("  … all of it: agent-relay get-message {}", message.id));
    }
}

/// `get-message`
pub fn get_message(get: &GetMessage) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    let body = client.call("GET", &path::message(get.id), None)?;
    if get.json {
        print::line(&body.to_string());
        return Ok(OK);
    }
    let message: Message =
        serde_json::from_value(body).map_err(|error| Failure::no(format!("the relay's answer makes no sense: {error}")))?;
    show(&message, None);
    Ok(OK)
}

/// `reply`
pub fn reply(reply: Reply) -> Outcome {
    let body = text(reply.text, reply.stdin, "answer")?;
    let client = Client::new(&Global::load(None, None)?)?;
    let asked = client.call("GET", &path::message(reply.id), None)?;
    let to = asked["from"].as_str().unwrap_or(USER).to_string();
    let message = NewMessage { to, body, reply_to: Some(reply.id), reply_expected: Some(false), ..Default::default() };
    let sent = client.call("POST", path::MESSAGES, Some(&json!(message)))?;
    match reply.json {
        true => print::line(&sent.to_string()),
        false => print::line(&format!("message #{} to {}", sent["id"], sent["to"].as_str().unwrap_or_default())),
    }
    Ok(OK)
}
