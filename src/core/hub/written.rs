//! JSON that is written once: of a message's text is made what is stored, what its sender is
//! answered and what each recipient gets; of an event's, what each of its readers gets.

use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value;

use crate::wire::api::Message;

/// A message that does not change any more, with its JSON. Copies share both.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenMessage {
    message: Arc<Message>,
    text: Arc<str>,
}

impl From<Message> for WrittenMessage {
    fn from(message: Message) -> WrittenMessage {
        let text = serde_json::to_string(&message).expect("plain data").into();
        WrittenMessage { message: Arc::new(message), text }
    }
}

impl Deref for WrittenMessage {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl WrittenMessage {
    /// Its JSON, an object.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its JSON as this recipient gets it.
    pub(super) fn text_for(&self, recipient: &str) -> String {
        match self.resolved_to_agent.as_deref() {
            None => with_members(&self.text, &[("resolvedToAgent", recipient.into())]),
            Some(known) if known == recipient => self.text.to_string(),
            Some(_) => {
                let copy = Message {
                    resolved_to_agent: Some(recipient.into()),
                    ..self.message.as_ref().clone()
                };
                serde_json::to_string(&copy).expect("plain data")
            }
        }
    }
}

/// The text of an object with further members, which it does not have yet.
pub(super) fn with_members(object: &str, members: &[(&str, Value)]) -> String {
    let body = object.strip_suffix('}').expect("an object");
    let mut text = String::with_capacity(object.len() + 64 * members.len());
    text.push_str(body);
    for (name, value) in members {
        if !text.ends_with('{') {
            text.push(',');
        }
        text.push_str(&format!("\"{name}\":{value}"));
    }
    text.push('}');
    text
}

/// An event as a frame of the bus; `data` is JSON, and the event's name is one of ours.
pub(super) fn event_frame(seq: u64, event: &str, data: &str, at: i64) -> String {
    let payload = event_payload(seq, event, data, at);
    format!(r#"{{"type":"event","id":"e{seq}","payload":{payload}}}"#)
}

/// The same as a server-sent event.
pub(super) fn stream_event(seq: u64, event: &str, data: &str, at: i64) -> String {
    let payload = event_payload(seq, event, data, at);
    format!("id: {seq}\nevent: {event}\ndata: {payload}\n\n")
}

fn event_payload(seq: u64, event: &str, data: &str, at: i64) -> String {
    format!(r#"{{"seq":{seq},"event":"{event}","at":{at},"data":{data}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::MessageId;
    use crate::wire::bus::RelayFrame;
    use serde_json::json;

    #[test]
    fn what_is_put_together_reads_as_what_it_means() {
        let message = Message {
            id: MessageId(7),
            from: "a\"b".into(),
            to: "c".into(),
            body: "line\nend}".into(),
            ..Default::default()
        };
        let written = WrittenMessage::from(message.clone());
        let read: Message = serde_json::from_str(&written.text_for("c\\\"d")).expect("JSON");
        assert_eq!(read, Message { resolved_to_agent: Some("c\\\"d".into()), ..message.clone() });
        let resolved = Message { resolved_to_agent: Some("c".into()), ..message };
        let written = WrittenMessage::from(resolved.clone());
        for recipient in ["c", "other"] {
            let read: Message = serde_json::from_str(&written.text_for(recipient)).expect("JSON");
            assert_eq!(read.resolved_to_agent.as_deref(), Some(recipient));
        }
        let frame = event_frame(9, "message.new", written.text(), 5);
        let data = json!(resolved);
        let expected = RelayFrame::Event { seq: 9, event: "message.new".into(), data, at: 5 };
        assert_eq!(RelayFrame::parse(&frame), Ok(expected));
        assert_eq!(with_members("{}", &[("a", json!(1)), ("b", json!("x"))]), r#"{"a":1,"b":"x"}"#);
    }
}
