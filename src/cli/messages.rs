//! `inbox`, `get-message`, `thread`.

use std::time::Duration;

use serde_json::json;

use super::args::{Inbox, Thread};
use super::client::Client;
use super::exit::{Failure, OK, Outcome};
use super::{inside, print};
use crate::config::Global;
use crate::core::ids::MessageId;
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
fn fetch(
    client: &Client,
    inbox: &Inbox,
    whose: &str,
    since: MessageId,
) -> Result<Vec<Message>, Failure> {
    let unread = if inbox.all { "" } else { "&unread=true" };
    let mirror = if inbox.mirror { "" } else { "&mirror=false" };
    let since = if !since.is_none() { format!("&since={since}") } else { String::new() };
    let query = format!(
        "{}?for={}&limit={}{unread}{mirror}{since}",
        path::MESSAGES,
        encode(whose),
        inbox.limit.clamp(1, 1000)
    );
    let mut messages = messages_of(&client.call("GET", &query, None)?);
    // A relay that does not know `mirror=false` sends the mirror anyway.
    messages.retain(|message| inbox.mirror || !message.is_session_mirror());
    Ok(messages)
}

fn show_line(inbox: &Inbox, message: &Message) {
    if inbox.json { print::json(&json!(message)) } else { show(message, Some(300)) }
}

/// Marks a message as read after it was shown: a kill in between shows it twice rather than never.
fn mark(client: &Client, inbox: &Inbox, whose: &str, message: &Message) -> Result<(), Failure> {
    if inbox.read {
        client.call(
            "POST",
            &path::message_part(message.id, "read"),
            Some(&json!({"agentId": whose})),
        )?;
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
            print::notice(&format!(
                "{}; waiting for it",
                lost.text.split(';').next().unwrap_or_default()
            ));
            away = true;
        }
        std::thread::sleep(FOLLOW_RETRY);
    }
}

fn follow_once(
    client: &Client,
    inbox: &Inbox,
    shown: &mut MessageId,
    away: &mut bool,
) -> Result<std::convert::Infallible, Failure> {
    let whose = &owner(client, inbox)?;
    // Listening begins before looking, so that nothing slips through between.
    let mut follow = client.follow(&["message.new"], &[whose])?;
    *away = false;
    // What was shown when the relay went may not be marked yet.
    let mut since = if inbox.read && !inbox.all { MessageId(0) } else { *shown };
    loop {
        // Page by page until there is no more: an event only says that it is time to look, so none
        // can be missed.
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
        while !matches!(follow.next(Duration::from_secs(3600))?, Some(RelayFrame::Event { event, .. }) if event == "message.new")
        {
        }
    }
}

/// In front of what others wrote, deeper than what we say about it.
pub(super) const BODY: &str = "    ";

/// One message as people read it.
fn show(message: &Message, chars_max: Option<usize>) {
    let age = print::format_duration(print::now_ms() - message.created_at);
    let reply = message.reply_to.map(|id| format!(", answers #{id}")).unwrap_or_default();
    print::line(&format!(
        "#{} from {} to {} ({age} ago{reply})",
        message.id, message.from, message.to
    ));
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
    let message: Message = serde_json::from_value(body)
        .map_err(|error| Failure::no(format!("the relay's answer is not valid: {error}")))?;
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
    for message in
        messages_of(&client.call("GET", &path::message_part(thread.id, "thread"), None)?)
    {
        if thread.json {
            print::json(&json!(message));
        } else {
            show(&message, None);
        }
    }
    Ok(OK)
}
