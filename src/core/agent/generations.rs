//! Generations of relays' data: which ids belong together, and which generations this runner has
//! rows of.
//!
//! Ids of messages and tasks mean something only together with the generation in which they were
//! given. A relay that was restored from a copy tells a new generation and goes on above all its
//! ids; what is in the copy keeps its own. A relay without generations is known by its id, else by
//! its URL. A relay that knows less than this runner had acknowledged of the same generation (a
//! snapshot of its machine, a copied home) is another one for this runner.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Agent;
use super::store::{Generation, StoreOp};
use crate::core::ids::{MessageId, MessageRef};
use crate::wire::api::{GENERATION_BYTES_MAX, Message};
use crate::wire::control::LogLevel;

/// How an answer begins whose message the relay may no longer have; the numbers follow.
const OLD_ANSWER: &str = "[agent-relay] This answers message";

/// Name of the note that holds the relay that was met last.
const RELAY_NOTE: &str = "relay";

/// Highest message id by number of generation.
pub(super) type Highest = BTreeMap<u32, MessageId>;

/// Generations that are known, and the one of the relay that is talked to.
#[derive(Debug, Default)]
pub(super) struct Generations {
    known: Vec<Generation>,
    /// Number of the newest one of the relay that was met last; 0 = none was met.
    current: u32,
    /// Why this relay is taken for another one although it says the same name.
    pub doubt: Option<String>,
}

impl Generations {
    pub fn restore(&mut self, known: Vec<Generation>, notes: &[(String, String)]) {
        self.known = known;
        let relay = notes.iter().find(|(key, _)| key == RELAY_NOTE).map(|(_, name)| name.as_str());
        self.current =
            relay.and_then(|name| self.named(name)).map_or(0, |generation| generation.number);
    }

    fn named(&self, name: &str) -> Option<&Generation> {
        self.known.iter().find(|generation| generation.name == name)
    }

    fn numbered(&self, number: u32) -> Option<&Generation> {
        self.known.iter().find(|generation| generation.number == number)
    }

    /// The newest one that goes by this name on the wire.
    fn told(&self, told: &str) -> Option<&Generation> {
        self.known.iter().rev().find(|generation| generation.told.as_deref() == Some(told))
    }

    pub fn current(&self) -> Option<&Generation> {
        self.numbered(self.current)
    }

    /// Whether the relay that is talked to has generations, and with them the rules that came
    /// together with them.
    pub fn relay_has_them(&self) -> bool {
        self.current().is_some_and(|generation| generation.told.is_some())
    }

    /// What a call about this generation may carry, if the relay can be told about it at all:
    /// without generations on both sides an old id would name something else there.
    pub fn on_wire(&self, number: u32) -> Option<Option<&str>> {
        let generation = self.numbered(number)?;
        match (&generation.told, number == self.current) {
            (told, true) => Some(told.as_deref()),
            (Some(told), false) if self.relay_has_them() => Some(Some(told)),
            _ => None,
        }
    }

    /// Its name at its relay, if it has one there.
    pub fn told_name(&self, number: u32) -> Option<&str> {
        self.numbered(number)?.told.as_deref()
    }

    /// Whether that name means this generation.
    pub fn is_called(&self, number: u32, name: &str) -> bool {
        self.numbered(number).is_some_and(|generation| {
            generation.told.as_deref() == Some(name) || generation.name == name
        })
    }

    /// Whether it is the newest one of the relay that is talked to.
    pub fn is_current(&self, number: u32) -> bool {
        number == self.current
    }

    /// For a question to the relay: see [`Agent::note_relay`].
    pub fn highest(&self) -> Highest {
        self.known.iter().map(|generation| (generation.number, generation.highest)).collect()
    }

    pub fn name(&self, number: u32) -> &str {
        self.numbered(number).map(|generation| generation.name.as_str()).unwrap_or_default()
    }

    pub fn summary(&self) -> Value {
        json!({"generation": self.current().map(|generation| &generation.name), "known": self.known.len(), "doubt": self.doubt})
    }

    fn note_id(&mut self, at: MessageRef) {
        if let Some(generation) =
            self.known.iter_mut().find(|generation| generation.number == at.generation)
        {
            generation.highest = generation.highest.max(at.id);
        }
    }
}

/// An answer that cannot hang on what it answers says so in words.
pub(super) fn old_answer(answered: &[MessageId], body: &str) -> String {
    let numbers = answered.iter().map(|id| format!("#{id}")).collect::<Vec<_>>().join(", ");
    format!(
        "{OLD_ANSWER} {numbers} from before the relay's data were put back or replaced.\n\n{body}"
    )
}

/// The generation that a record of the wire names.
fn told_in(text: Option<&str>) -> Option<String> {
    text.filter(|told| !told.is_empty() && told.len() <= GENERATION_BYTES_MAX).map(str::to_string)
}

impl Agent {
    /// Adds a generation; one of the same family shares its order.
    fn add_generation(&mut self, name: String, told: Option<String>, family: Option<u32>) -> u32 {
        let number =
            self.generations.known.iter().map(|generation| generation.number).max().unwrap_or(0)
                + 1;
        let generation = Generation {
            number,
            family: family.unwrap_or(number),
            name,
            told,
            highest: MessageId::default(),
        };
        self.commits.write(StoreOp::GenerationPut(generation.clone()));
        self.generations.known.push(generation);
        number
    }

    fn set_current_generation(&mut self, number: u32) {
        let name = self.generations.name(number).to_string();
        let before = self.generations.current;
        if before == number {
            return;
        }
        self.generations.current = number;
        self.commits.write(StoreOp::PutMeta { key: RELAY_NOTE.into(), value: Some(name.clone()) });
        if before != 0 {
            self.log(
                LogLevel::Warn,
                "runner",
                format!("this is another relay, or its data were put back ({name}); what waits is delivered all the same"),
            );
            // What it was told of the messages under way may be gone with its data.
            self.turn.forget_reads();
            self.report_ended_tasks_again(number);
        }
    }

    /// What a relay says of itself. `asked_at`: the highest id of each generation that stood here
    /// when it was asked; only what it gave before that may be missing in its answer.
    pub(super) fn note_relay(&mut self, server: &Map<String, Value>, asked_at: Option<&Highest>) {
        let text = |field: &str| server.get(field).and_then(Value::as_str);
        let told = told_in(text("generation"));
        let name = told
            .clone()
            .or_else(|| text("id").map(str::to_string))
            .unwrap_or_else(|| self.config.relay_url.clone());
        let last = server.get("lastMessageId").and_then(Value::as_u64).map(MessageId);
        let by_name = || self.generations.named(&name).map(|generation| generation.number);
        let found = told
            .as_deref()
            .and_then(|told| self.generations.told(told))
            .map(|generation| generation.number)
            .or_else(by_name);
        let Some(number) = found else {
            let number = self.add_generation(name, told, None);
            self.generations.doubt = None;
            return self.set_current_generation(number);
        };
        self.tell_generation(number, &told);
        let highest =
            asked_at.and_then(|highest| highest.get(&number)).copied().unwrap_or_default();
        match (told, last) {
            // It has forgotten what it once gave: the ids that follow are not those that are known
            // here.
            (Some(told), Some(last)) if last < highest => {
                let text = format!(
                    "the relay's newest message is #{last}, but #{highest} came from it before: a copy of its machine or home runs; \
                     its ids are kept apart from those of the former one"
                );
                self.log(LogLevel::Warn, "runner", text.clone());
                self.generations.doubt = Some(text);
                let alias = format!("{told}~{}", &self.rng.uuid()[..8]);
                let number = self.add_generation(alias, Some(told), None);
                self.set_current_generation(number);
            }
            _ => self.set_current_generation(number),
        }
    }

    /// The same, where an answer of the relay carries it.
    pub(super) fn note_server_in(&mut self, body: &Value) {
        if let Some(server) = body.get("server").and_then(Value::as_object) {
            self.note_relay(server, None);
            let time = server.get("time").and_then(Value::as_i64);
            self.note_clock(self.now, time.unwrap_or_default());
        }
    }

    /// A relay that had no generations has them now: its first one is called as the relay itself
    /// was.
    fn tell_generation(&mut self, number: u32, told: &Option<String>) {
        let known =
            self.generations.known.iter_mut().find(|generation| generation.number == number);
        if let Some(generation) =
            known.filter(|generation| generation.told.is_none() && told.is_some())
        {
            generation.told = told.clone();
            let changed = generation.clone();
            self.commits.write(StoreOp::GenerationPut(changed));
        }
    }

    /// The place of a message that the relay has just given.
    pub(super) fn place_of(&mut self, message: &Message) -> MessageRef {
        let current = self.generations.current().cloned();
        let told =
            message.generation.as_deref().filter(|_| !crate::planted::is("ignored-generation"));
        let number = match told_in(told) {
            None => current.as_ref().map(|generation| generation.number),
            Some(told) => {
                let known = self.generations.told(&told).map(|generation| generation.number);
                let same_name = self.generations.named(&told).map(|generation| generation.number);
                if let (None, Some(number)) = (known, same_name) {
                    self.tell_generation(number, &Some(told.clone()));
                }
                // One that is older than the newest of this relay: its ids go before those.
                Some(known.or(same_name).unwrap_or_else(|| {
                    self.add_generation(
                        told.clone(),
                        Some(told),
                        current.as_ref().map(|c| c.family),
                    )
                }))
            }
        };
        let number = number.unwrap_or_else(|| {
            // Nothing was registered over the bus yet, and the relay names no generation.
            let name = self.config.relay_url.clone();
            let number = self
                .generations
                .named(&name)
                .map(|generation| generation.number)
                .unwrap_or_else(|| self.add_generation(name, None, None));
            self.set_current_generation(number);
            number
        });
        let family =
            self.generations.numbered(number).map_or(number, |generation| generation.family);
        MessageRef { family, id: message.id, generation: number }
    }

    /// Notes that a message stands in the records.
    pub(super) fn note_place(&mut self, at: MessageRef) {
        self.generations.note_id(at);
    }

    /// The same answer for a relay that does not have the message that it answers: it says so
    /// itself.
    pub(super) fn without_reply_to(&self, payload: &Value, generation: u32) -> Value {
        let mut payload = payload.clone();
        let Some(message) = payload.as_object_mut() else { return payload };
        let newest = message.remove("replyTo").and_then(|id| id.as_u64()).map(MessageId);
        message.remove("generation");
        let record = message.get_mut("payload").and_then(Value::as_object_mut);
        let all = record.and_then(|record| record.remove("answers")).and_then(|ids| {
            Some(ids.as_array()?.iter().filter_map(Value::as_u64).map(MessageId).collect())
        });
        let answered: Vec<MessageId> = all.unwrap_or_else(|| newest.into_iter().collect());
        let body = message.get("body").and_then(Value::as_str).unwrap_or_default().to_string();
        if !answered.is_empty() && !body.starts_with(OLD_ANSWER) {
            message.insert("body".into(), json!(old_answer(&answered, &body)));
        }
        if let Some(key) = message.get("idempotencyKey").and_then(Value::as_str) {
            let name = self.generations.name(generation);
            if !key.contains(name) {
                let key = format!("{key}:{name}");
                message.insert("idempotencyKey".into(), json!(key));
            }
        }
        payload
    }
}
