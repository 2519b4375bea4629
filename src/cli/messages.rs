//! `inbox`, `get-message`, `thread`, `tasks`.

use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Inbox, Tasks, Thread};
use super::client::Client;
use super::exit::{Failure, OK, Outcome};
use super::{inside, print};
use crate::config::Global;
use crate::core::ids::{MessageId, TaskId};
use crate::wire::api::{Message, encode, messages_of, path};
use crate::wire::bus::RelayFrame;

/// `inbox`
pub fn inbox(inbox: &Inbox) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    if inbox.follow {
        return follow_inbox(&client, inbox);
    }
    let whose = owner(&client, inbox)?;
    let messages = fetch(&client, inbox, &whose, MessageId(0))?;
    for message in &messages {
        show_line(inbox, message);
        mark(&client, inbox, &whose, message)?;
    }
    let ids: Vec<MessageId> = messages.iter().map(|message| message.id).collect();
    if !ids.is_empty() {
        super::hook::done_by_session("fetched", &ids);
    }
    if messages.is_empty() && !inbox.json {
        print::line(&format!("no {}messages for {whose}", if inbox.all { "" } else { "unread " }));
    }
    Ok(OK)
}

/// Whose inbox: as said, else that of the session or of the token.
fn owner(client: &Client, inbox: &Inbox) -> Result<String, Failure> {
    inbox.whose.clone().map_or_else(|| client.speaker(), Ok)
}

/// A page of an inbox; behind a message if `since` names one.
fn fetch(client: &Client, inbox: &Inbox, whose: &str, since: MessageId) -> Result<Vec<Message>, Failure> {
    let unread = if inbox.all { "" } else { "&unread=true" };
    let mirror = if inbox.mirror { "" } else { "&mirror=false" };
    let since = if !since.is_none() { format!("&since={since}") } else { String::new() };
    let query = format!("{}?for={}&limit={}{unread}{mirror}{since}", path::MESSAGES, encode(whose), inbox.limit.clamp(1, 1000));
    let mut messages = messages_of(&client.call("GET", &query, None)?);
    // A relay that does not know the wish sends the mirror all the same.
    messages.retain(|message| inbox.mirror || !message.is_session_mirror());
    Ok(messages)
}

fn show_line(inbox: &Inbox, message: &Message) {
    match inbox.json {
        true => print::json(&json!(message)),
        false => show(message, Some(300)),
    }
}

/// After it was shown: whoever is killed between sees it again, never not at all.
fn mark(client: &Client, inbox: &Inbox, whose: &str, message: &Message) -> Result<(), Failure> {
    if inbox.read {
        client.call("POST", &path::message_part(message.id, "read"), Some(&json!({"agentId": whose})))?;
    }
    Ok(())
}

/// Between two tries to reach the relay again.
const FOLLOW_RETRY: Duration = Duration::from_secs(2);

/// Shows what is there and what comes, over outages of the relay too.
fn follow_inbox(client: &Client, inbox: &Inbox) -> Outcome {
    // The highest id that was shown: ids ascend, so what comes has a higher one.
    let mut shown = MessageId(0);
    let mut away = false;
    loop {
        let lost = match follow_once(client, inbox, &mut shown, &mut away) {
            Ok(never) => match never {},
            Err(failure) if failure.kind == super::exit::Kind::Unreachable => failure,
            Err(failure) => return Err(failure),
        };
        if !away {
            print::note(&format!("{}; waiting for it", lost.text.split(';').next().unwrap_or_default()));
            away = true;
        }
        std::thread::sleep(FOLLOW_RETRY);
    }
}

fn follow_once(client: &Client, inbox: &Inbox, shown: &mut MessageId, away: &mut bool) -> Result<std::convert::Infallible, Failure> {
    let whose = &owner(client, inbox)?;
    // Listening begins before looking, so that nothing slips through between.
    let mut follow = client.follow(&["message.new"], &[whose])?;
    *away = false;
    // What was shown when the relay went may not be marked yet.
    let mut since = if inbox.read && !inbox.all { MessageId(0) } else { *shown };
    loop {
        // Page by page until there is no more: an event only says that it is time to look, so none can be missed.
        loop {
            let page = fetch(client, inbox, whose, since)?;
            for message in &page {
                if message.id > *shown {
                    show_line(inbox, message);
                    *shown = message.id;
                }
                mark(client, inbox, whose, message)?;
                since = message.id;
            }
            if page.is_empty() {
                break;
            }
        }
        while !matches!(follow.next(Duration::from_secs(3600))?, Some(RelayFrame::Event { event, .. }) if event == "message.new") {}
    }
}

/// In front of what others wrote, deeper than what we say about it.
const BODY: &str = "    ";

/// One message as people read it.
fn show(message: &Message, chars_max: Option<usize>) {
    let age = print::span(print::now_ms() - message.created_at);
    let reply = message.reply_to.map(|id| format!(", answers #{id}")).unwrap_or_default();
    print::line(&format!("#{} from {} to {} ({age} ago{reply})", message.id, message.from, message.to));
    if let Some(subject) = &message.subject {
        print::line(&format!("  Subject: {subject}"));
    }
    let limit = chars_max.unwrap_or(usize::MAX);
    let body: String = message.body.chars().take(limit).collect();
    print::block(BODY, BODY, &body);
    if message.body.chars().count() > limit {
        print::line(&format!("  … all of it: agent-relay get-message {}", message.id));
    }
}

/// `get-message` and `message`
pub fn get_message(id: MessageId, as_json: bool) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    let given = inside::given(&client, id)?;
    let body = client.call("GET", &path::message(id), None)?;
    if let Some(given) = &given {
        given.must_be(id, &body)?;
    }
    if as_json {
        print::json(&body);
        return Ok(OK);
    }
    let message: Message =
        serde_json::from_value(body).map_err(|error| Failure::no(format!("the relay's answer makes no sense: {error}")))?;
    show(&message, None);
    super::hook::done_by_session("fetched", &[message.id]);
    for reaction in &message.reactions {
        let text = |field: &str| reaction[field].as_str().unwrap_or("?").to_string();
        print::line(&format!("  {} by {}", text("emoji"), text("agentId")));
    }
    Ok(OK)
}

/// `thread`
pub fn thread(thread: &Thread) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    for message in messages_of(&client.call("GET", &path::message_part(thread.id, "thread"), None)?) {
        match thread.json {
            true => print::json(&json!(message)),
            false => show(&message, None),
        }
    }
    Ok(OK)
}

/// Words of the command line for the statuses of a task.
const MOVES: [(&str, &str); 6] =
    [("start", "in_progress"), ("block", "blocked"), ("done", "done"), ("fail", "failed"), ("cancel", "cancelled"), ("reopen", "open")];

/// `tasks`
pub fn tasks(tasks: &Tasks) -> Outcome {
    let client = Client::new(&Global::load(None, None)?)?;
    let words: Vec<&str> = tasks.action.iter().map(String::as_str).collect();
    let id = |word: Option<&&str>| -> Result<TaskId, Failure> {
        let word = word.ok_or_else(|| Failure::usage("say which task: `agent-relay tasks` lists them"))?;
        word.parse().map_err(|_| Failure::usage(format!("{word:?} is no task id")))
    };
    match words.first().copied() {
        None => {
            let known = ["open", "claimed", "in_progress", "blocked", "done", "failed", "cancelled"];
            if let Some(status) = tasks.status.as_ref().filter(|status| !known.contains(&status.as_str())) {
                return Err(Failure::usage(format!("--status must be one of {}, not {status:?}", known.join(", "))));
            }
            let query = tasks.status.as_ref().map(|status| format!("?status={}", encode(status))).unwrap_or_default();
            let answer = client.call("GET", &format!("{}{query}", path::TASKS), None)?;
            list_tasks(answer["tasks"].as_array().map(Vec::as_slice).unwrap_or_default(), tasks.json)
        }
        Some("show") => {
            let task = client.call("GET", &path::task(id(words.get(1))?), None)?;
            if tasks.json {
                print::json(&task);
                return Ok(OK);
            }
            list_tasks(std::slice::from_ref(&task), false)?;
            let text = |value: &Value, field: &str| value[field].as_str().unwrap_or("-").to_string();
            print::block(BODY, BODY, &text(&task, "body"));
            for entry in task["history"].as_array().into_iter().flatten() {
                let age = print::span(print::now_ms() - entry["at"].as_i64().unwrap_or(0));
                let said = entry["body"].as_str().map(|body| format!(": {body}")).unwrap_or_default();
                print::line(&format!("  {age} ago {} by {}{said}", text(entry, "status"), text(entry, "by")));
            }
            Ok(OK)
        }
        Some("reopen") if tasks.all => reopen_all(&client, &words[1..].join(" ")),
        Some(word) => {
            let Some((_, status)) = MOVES.iter().find(|(known, _)| *known == word) else {
                let known: Vec<&str> = ["show"].into_iter().chain(MOVES.iter().map(|(word, _)| *word)).collect();
                return Err(Failure::usage(format!("tasks knows {}, not {word:?}", known.join(", "))));
            };
            let id = id(words.get(1))?;
            let note = words.get(2..).unwrap_or_default().join(" ");
            let mut change = json!({"status": status, "agentId": client.speaker()?});
            if !note.is_empty() {
                change["body"] = json!(note);
            }
            client.call("PATCH", &path::task(id), Some(&change))?;
            print::line(&format!("task {id} is {status}"));
            Ok(OK)
        }
    }
}

fn list_tasks(tasks: &[Value], as_json: bool) -> Outcome {
    if as_json {
        tasks.iter().for_each(print::json);
        return Ok(OK);
    }
    if tasks.is_empty() {
        print::line("no tasks; make one with `agent-relay send TARGET --task TEXT`");
        return Ok(OK);
    }
    let mut rows = vec![["TASK", "STATUS", "SINCE", "AGENT", "MESSAGE", "TITLE"].map(String::from).to_vec()];
    for task in tasks {
        let text = |field: &str| task[field].as_str().unwrap_or("-").to_string();
        let since = print::span(print::now_ms() - task["updatedAt"].as_i64().unwrap_or(0));
        rows.push(vec![task["id"].to_string(), text("status"), since, text("agentId"), format!("#{}", task["messageId"]), text("title")]);
    }
    print::table(&rows);
    // What waits for a person says why, and what the person can do.
    for task in tasks.iter().filter(|task| task["status"] == "blocked") {
        let last = task["history"].as_array().into_iter().flatten().rfind(|entry| entry["status"] == "blocked");
        let why = last.and_then(|entry| entry["body"].as_str()).map(|why| format!(": {why}")).unwrap_or_default();
        let why = why.lines().next().unwrap_or_default();
        let id = &task["id"];
        print::line(&format!("task {id} is blocked{why}; `agent-relay tasks reopen {id}` offers it again"));
    }
    Ok(OK)
}

/// `tasks reopen --all`
fn reopen_all(client: &Client, note: &str) -> Outcome {
    let mut opened = 0;
    let own = client.speaker()?;
    loop {
        let answer = client.call("GET", &format!("{}?status=blocked", path::TASKS), None)?;
        let listed = answer["tasks"].as_array().into_iter().flatten();
        let ids: Vec<TaskId> = listed.filter_map(|task| task["id"].as_u64()).map(TaskId).collect();
        if ids.is_empty() {
            print::line(if opened == 0 { "no task is blocked" } else { "no further task is blocked" });
            return Ok(OK);
        }
        for id in ids {
            let mut change = json!({"status": "open", "agentId": own});
            if !note.is_empty() {
                change["body"] = json!(note);
            }
            client.call("PATCH", &path::task(id), Some(&change))?;
            print::line(&format!("task {id} is open"));
            opened += 1;
        }
    }
}
