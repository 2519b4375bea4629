//! The first prompt of a runner: delivered once per start that asks for it, and followed through
//! crashes like a message.
//!
//! What counts as the same wish is the key of the start: an orchestrator's request; a person's
//! start, each of which is a new wish; else (units, containers, cron) the text itself. How the
//! newest prompt stands is one word in the store, which older versions read too; which prompts were
//! delivered, and how the last runner ended, stand beside it.

use serde_json::{Value, json};

use super::Agent;
use super::effect::Effect;
use super::store::{ProviderRecord, StoreOp};
use crate::core::ids::{MessageId, MessageRef, VerbNumber};
use crate::core::session::{
    DeliveryOutcome, MessageFingerprint, OpenMode, RESTART_MARK, TurnEnd, Verb,
};
use crate::wire::control::LogLevel;

/// Name of the note that tells how the newest prompt stands.
const NOTE: &str = "prompt";
/// It is with the provider: its record is asked after a crash.
const HANDED: &str = "handed";
/// Its turn is over.
const DONE: &str = "delivered";
/// Name of the note that tells which prompts there were, newest last.
const STARTS_NOTE: &str = "promptStarts";
/// Name of the note that tells how the last runner of this agent ended.
const END_NOTE: &str = "lastEnd";
/// A runner lives, or was killed.
const RUNNING: &str = "running";
/// It ended in order.
const ORDERLY: &str = "orderly";
/// Prompts that are remembered.
const STARTS_MAX: usize = 32;
/// Stands for it among the messages that the record is asked for; those have higher numbers.
pub(super) const PROMPT: MessageRef = MessageRef { family: 0, id: MessageId(0), generation: 0 };
/// Characters by which it is known again.
const FINGERPRINT_CHARS: usize = 100;

/// What makes a first prompt a new wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartKey {
    /// An orchestrator's request for a start; it keeps the id through recovery and restart.
    Request(String),
    /// A person sits at the terminal: every start after an orderly end is a wish of its own.
    Person,
    /// Nobody sits there: the text itself.
    Text,
}

/// The first prompt as a start asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What the provider gets.
    pub text: String,
    /// Hash of the text: the store keeps no prompts.
    pub digest: String,
    /// What makes it a new wish.
    pub key: StartKey,
    /// Deliver it whatever was delivered before.
    pub again: bool,
}

/// One prompt that was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Start {
    /// Hash of its text.
    digest: String,
    /// The orchestrator's request, if it had one.
    request: Option<String>,
    /// When it was delivered, ms.
    at: Option<i64>,
}

/// What the store says when a runner starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct PromptRecord {
    handed: bool,
    done: bool,
    /// Newest last; empty with a word: an older version wrote it and did not say which prompt it
    /// was.
    starts: Vec<Start>,
    /// The last runner of this agent ended in order, or there was none.
    in_order: bool,
}

/// What becomes of the prompt at a start.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// It is due.
    Deliver(&'static str),
    /// It was with the provider when the last runner died: the provider's record decides.
    AskRecord,
    /// It was delivered, at this time if that is known.
    Known(Option<i64>),
}

impl Start {
    fn is(&self, prompt: &Prompt) -> bool {
        match &prompt.key {
            StartKey::Request(id) => self.request.as_ref() == Some(id),
            StartKey::Person | StartKey::Text => self.digest == prompt.digest,
        }
    }

    fn of(value: &Value) -> Option<Start> {
        Some(Start {
            digest: value.get("digest")?.as_str()?.to_string(),
            request: value.get("request").and_then(Value::as_str).map(str::to_string),
            at: value.get("at").and_then(Value::as_i64),
        })
    }
}

impl PromptRecord {
    fn read(notes: &[(String, String)], provider: Option<&ProviderRecord>) -> PromptRecord {
        let note =
            |name: &str| notes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let starts: Value =
            note(STARTS_NOTE).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        // An older version did not note its end, but it never left a provider behind in order.
        let left_nothing = provider.is_none_or(|record| record.provider_session.is_empty());
        PromptRecord {
            handed: note(NOTE) == Some(HANDED),
            done: note(NOTE) == Some(DONE),
            starts: starts.as_array().into_iter().flatten().filter_map(Start::of).collect(),
            in_order: note(END_NOTE).map_or(left_nothing, |end| end == ORDERLY),
        }
    }

    fn judge(&self, prompt: &Prompt) -> Verdict {
        if prompt.again {
            return Verdict::Deliver("--prompt-again asks for it");
        }
        if self.done && crate::planted::is("dropped-prompt") {
            return Verdict::Known(None);
        }
        let person = prompt.key == StartKey::Person;
        if person && self.in_order {
            return Verdict::Deliver("a person started this agent");
        }
        if self.starts.is_empty() && (self.handed || self.done) {
            // Noted by an older version, which kept no text: an update is no reason to repeat it.
            return if self.done { Verdict::Known(None) } else { Verdict::AskRecord };
        }
        let newest = self.starts.last().is_some_and(|start| start.is(prompt));
        // After a crash only the prompt that was under way counts: an earlier one that a person
        // repeats is a new wish.
        let known = self
            .starts
            .iter()
            .rev()
            .take(if person { 1 } else { STARTS_MAX })
            .find(|start| start.is(prompt));
        match known {
            _ if newest && self.handed => Verdict::AskRecord,
            Some(start) => Verdict::Known(start.at),
            None => Verdict::Deliver(match &prompt.key {
                _ if self.starts.is_empty() => "it is the first one of this agent",
                StartKey::Request(_) => "it belongs to a new request",
                StartKey::Person => "it is another one than the one before",
                StartKey::Text => "its text is new",
            }),
        }
    }
}

/// The state of the first prompt.
#[derive(Debug, Default)]
pub(super) struct FirstPrompt {
    noted: PromptRecord,
    handed: bool,
    done: bool,
    /// Our question to the session, until the session has it.
    asked: Option<VerbNumber>,
    /// The session has it: the end of a turn is the end of its own.
    taken: bool,
    /// It stands in the record, unanswered.
    seen: bool,
    /// What was decided at the start, in one sentence.
    why: String,
    /// When it was delivered, ms.
    at: Option<i64>,
}

impl Agent {
    /// Decides at the start whether the prompt is due.
    pub(super) fn restore_prompt(
        &mut self,
        notes: &[(String, String)],
        provider: Option<&ProviderRecord>,
    ) {
        let noted = PromptRecord::read(notes, provider);
        self.note_end(RUNNING);
        self.prompt = FirstPrompt { noted, ..Default::default() };
        let Some(prompt) =
            self.config.prompt.clone().filter(|prompt| !prompt.text.trim().is_empty())
        else {
            return;
        };
        match self.prompt.noted.judge(&prompt) {
            Verdict::Deliver(why) => self.prompt.why = format!("delivered at this start: {why}"),
            Verdict::AskRecord => {
                self.prompt.handed = true;
                self.prompt.why =
                    "the last runner died with it: the record of the conversation decides".into();
            }
            Verdict::Known(at) => {
                self.prompt.done = true;
                self.prompt.at = at;
                let when =
                    at.map_or("before the update".to_string(), |at| format!("on {}", date(at)));
                self.prompt.why =
                    format!("the prompt was delivered {when}; --prompt-again repeats it");
                if self.prompt.noted.starts.is_empty() {
                    self.remember_start(&prompt, None);
                }
                self.out.push(Effect::Tell { text: self.prompt.why.clone() });
            }
        }
        self.log(LogLevel::Info, "runner", format!("first prompt: {}", self.prompt.why));
    }

    fn first_prompt(&self) -> Option<&str> {
        let text = self.config.prompt.as_ref().map(|prompt| prompt.text.as_str());
        text.filter(|text| !text.trim().is_empty() && !self.prompt.done)
    }

    /// The prompt as `GET /status` shows it; null without one.
    pub(super) fn prompt_json(&self) -> Value {
        if self.prompt.why.is_empty() {
            return Value::Null;
        }
        let state = match (self.prompt.done, self.prompt.handed) {
            (true, _) => DONE,
            (false, true) => HANDED,
            (false, false) => "waiting",
        };
        json!({"state": state, "decision": self.prompt.why, "deliveredAt": self.prompt.at.filter(|_| self.prompt.done)})
    }

    /// Puts the prompt into the session, if it is still due.
    pub(super) fn begin_prompt(&mut self) -> bool {
        let Some(text) =
            self.first_prompt().map(str::to_string).filter(|_| self.prompt.asked.is_none())
        else {
            return false;
        };
        let text = if std::mem::take(&mut self.prompt.seen) {
            format!(
                "{RESTART_MARK} while you worked on your first prompt. It stands in the conversation above; please go on with it."
            )
        } else {
            text
        };
        self.note_prompt(HANDED);
        let (number, order) = self.supervisor.verb(Verb::Inject { text, person: true });
        self.prompt.asked = Some(number);
        self.commits.defer(order);
        true
    }

    /// How it is known again in the provider's record, while nobody knows whether it arrived.
    pub(super) fn prompt_fingerprint(&self) -> Option<MessageFingerprint> {
        let text = self.first_prompt().filter(|_| self.prompt.handed)?;
        Some(MessageFingerprint {
            header: String::new(),
            start: text.chars().take(FINGERPRINT_CHARS).collect(),
            is_whole: text.chars().count() <= FINGERPRINT_CHARS,
        })
    }

    /// A conversation is open: its record tells what became of the prompt.
    pub(super) fn judge_prompt(&mut self, how: &OpenMode, outcome: Option<DeliveryOutcome>) {
        (self.prompt.asked, self.prompt.taken) = (None, false);
        if self.first_prompt().is_none() || !self.prompt.handed {
            return;
        }
        match (how, outcome) {
            (_, Some(DeliveryOutcome::Answered(_))) => self.note_prompt(DONE),
            (OpenMode::Loaded(_), Some(DeliveryOutcome::Unanswered)) => self.prompt.seen = true,
            // It never arrived, or nobody can say: sent again, so that it arrives at least once.
            _ => {}
        }
    }

    /// The session has the prompt; `Err`: it was withdrawn, for example by an interrupt.
    pub(super) fn on_prompt_answered(
        &mut self,
        verb: VerbNumber,
        result: &Result<serde_json::Value, String>,
    ) {
        match (self.prompt.asked == Some(verb), result) {
            (false, _) => {}
            (true, Ok(_)) => self.prompt.taken = true,
            (true, Err(error)) => {
                self.log(
                    LogLevel::Warn,
                    "provider",
                    format!("the first prompt went nowhere: {error}"),
                );
                self.note_prompt(DONE);
            }
        }
    }

    /// A turn has ended: its own, perhaps with messages that joined it.
    pub(super) fn on_prompt_turn(&mut self, end: &TurnEnd) {
        let lost = *end == TurnEnd::Cancelled && self.supervisor.is_ending();
        if std::mem::take(&mut self.prompt.taken) && !lost {
            self.note_prompt(DONE);
        }
    }

    fn note_prompt(&mut self, word: &str) {
        (self.prompt.handed, self.prompt.done) = (word == HANDED, word == DONE);
        self.prompt.at = Some(self.now.wall.0);
        if let Some(prompt) = self.config.prompt.clone() {
            self.remember_start(&prompt, Some(self.now.wall.0));
        }
        self.commits.write(StoreOp::PutMeta { key: NOTE.into(), value: Some(word.into()) });
        self.status.touch();
    }

    /// The newest of the prompts that there were; one that is there already moves up.
    fn remember_start(&mut self, prompt: &Prompt, at: Option<i64>) {
        let request = match &prompt.key {
            StartKey::Request(id) => Some(id.clone()),
            StartKey::Person | StartKey::Text => None,
        };
        let starts = &mut self.prompt.noted.starts;
        starts.retain(|start| start.digest != prompt.digest || start.request != request);
        starts.push(Start { digest: prompt.digest.clone(), request, at });
        let surplus = starts.len().saturating_sub(STARTS_MAX);
        starts.drain(..surplus);
        let show = |start: &Start| json!({"digest": start.digest, "request": start.request, "at": start.at});
        let text = Value::Array(starts.iter().map(show).collect()).to_string();
        self.commits.write(StoreOp::PutMeta { key: STARTS_NOTE.into(), value: Some(text) });
    }

    /// The runner ends in order: the next start of a person is a wish of its own.
    pub(super) fn note_orderly_end(&mut self) {
        self.note_end(ORDERLY);
    }

    fn note_end(&mut self, word: &str) {
        self.commits.write(StoreOp::PutMeta { key: END_NOTE.into(), value: Some(word.into()) });
    }
}

/// A time of the wall clock (ms) as people read it, in UTC: the machine knows no zone.
fn date(ms: i64) -> String {
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(digest: &str, request: Option<&str>) -> Start {
        Start { digest: digest.into(), request: request.map(str::to_string), at: Some(7) }
    }

    fn noted(word: &str, starts: &[Start], in_order: bool) -> PromptRecord {
        PromptRecord {
            handed: word == HANDED,
            done: word == DONE,
            starts: starts.to_vec(),
            in_order,
        }
    }

    #[derive(Debug, PartialEq)]
    enum Want {
        Deliver,
        AskRecord,
        Known(Option<i64>),
    }
    use Want::*;

    /// The prompt is judged so, and with `--prompt-again` is delivered whatever was noted.
    fn assert_judged(noted: &PromptRecord, key: &StartKey, digest: &str, want: Want) {
        let mut prompt =
            Prompt { text: digest.into(), digest: digest.into(), key: key.clone(), again: false };
        let got = match noted.judge(&prompt) {
            Verdict::Deliver(_) => Deliver,
            Verdict::AskRecord => AskRecord,
            Verdict::Known(at) => Known(at),
        };
        assert_eq!(got, want, "{prompt:?} with {noted:?}");
        prompt.again = true;
        assert!(
            matches!(noted.judge(&prompt), Verdict::Deliver(_)),
            "--prompt-again forces {prompt:?} with {noted:?}"
        );
    }

    /// Every kind of start, after every kind of end, with the same prompt and with another one.
    #[test]
    fn a_prompt_is_delivered_once_per_start_that_asks_for_it() {
        let (a, b) = (start("a", None), start("b", None));
        let (r1, r2) = (start("a", Some("r1")), start("b", Some("r2")));
        let (first, second) = (StartKey::Request("r1".into()), StartKey::Request("r2".into()));
        let (person, text) = (StartKey::Person, StartKey::Text);
        let none: &[Start] = &[];
        type Row<'a> = (&'a StartKey, &'a str, &'a str, Vec<Start>, bool, Want);
        #[rustfmt::skip]
        let rows: Vec<Row> = vec![
            // key, text of this start, word of the store, prompts before, last end in order
            // The first start of all.
            (&person, "a", "", none.to_vec(), true, Deliver),
            (&text, "a", "", none.to_vec(), true, Deliver),
            // A person: every start after an orderly end, with the same text or another one.
            (&person, "a", DONE, vec![a.clone()], true, Deliver),
            (&person, "b", DONE, vec![a.clone()], true, Deliver),
            (&person, "a", HANDED, vec![a.clone()], true, Deliver),
            // … after a crash: the evidence of that same prompt.
            (&person, "a", DONE, vec![a.clone()], false, Known(Some(7))),
            (&person, "a", HANDED, vec![a.clone()], false, AskRecord),
            (&person, "b", DONE, vec![a.clone()], false, Deliver),
            (&person, "b", HANDED, vec![a.clone()], false, Deliver),
            (&person, "a", HANDED, vec![a.clone(), b.clone()], false, Deliver),
            (&person, "a", "", none.to_vec(), false, Deliver),
            // Nobody at a terminal: a changed text is new, the same one is not, however the last
            // runner ended.
            (&text, "a", DONE, vec![a.clone()], true, Known(Some(7))),
            (&text, "a", DONE, vec![a.clone()], false, Known(Some(7))),
            (&text, "a", HANDED, vec![a.clone()], true, AskRecord),
            (&text, "a", HANDED, vec![a.clone()], false, AskRecord),
            (&text, "b", DONE, vec![a.clone()], true, Deliver),
            (&text, "b", HANDED, vec![a.clone()], false, Deliver),
            (&text, "a", DONE, vec![a.clone(), b.clone()], true, Known(Some(7))),
            (&text, "a", HANDED, vec![a.clone(), b.clone()], false, Known(Some(7))),
            // An orchestrator's request: once, through every recovery, whatever others asked for
            // between.
            (&first, "a", "", none.to_vec(), true, Deliver),
            (&first, "a", DONE, vec![r1.clone()], true, Known(Some(7))),
            (&first, "a", DONE, vec![r1.clone()], false, Known(Some(7))),
            (&first, "a", HANDED, vec![r1.clone()], false, AskRecord),
            (&first, "a", DONE, vec![r1.clone(), b.clone()], true, Known(Some(7))),
            (&second, "a", DONE, vec![r1.clone()], true, Deliver),
            (&second, "a", HANDED, vec![r1.clone()], false, Deliver),
            (&first, "a", DONE, vec![r2.clone()], true, Deliver),
            (&first, "a", DONE, vec![a.clone()], true, Deliver),
            // Noted by an older version, without a text: an update repeats nothing by itself.
            (&text, "a", DONE, none.to_vec(), true, Known(None)),
            (&text, "a", DONE, none.to_vec(), false, Known(None)),
            (&first, "a", DONE, none.to_vec(), true, Known(None)),
            (&text, "a", HANDED, none.to_vec(), false, AskRecord),
            (&person, "a", DONE, none.to_vec(), true, Deliver),
            (&person, "a", DONE, none.to_vec(), false, Known(None)),
            (&person, "a", HANDED, none.to_vec(), false, AskRecord),
        ];
        for (key, digest, word, starts, in_order, want) in rows {
            assert_judged(&noted(word, &starts, in_order), key, digest, want);
        }
    }

    #[test]
    fn how_an_older_runner_ended_is_seen_by_what_it_left() {
        let with = |session: &str| ProviderRecord {
            provider_session: session.into(),
            ..Default::default()
        };
        assert!(PromptRecord::read(&[], None).in_order);
        assert!(PromptRecord::read(&[], Some(&with(""))).in_order);
        assert!(!PromptRecord::read(&[], Some(&with("p"))).in_order);
        let end = |word: &str| vec![(END_NOTE.to_string(), word.to_string())];
        assert!(
            !PromptRecord::read(&end(RUNNING), Some(&with(""))).in_order,
            "killed while no provider ran"
        );
        assert!(PromptRecord::read(&end(ORDERLY), Some(&with(""))).in_order);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (ms, want) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400_000, "2000-02-29 00:00 UTC"),
            (1_760_000_000_000, "2025-10-09 08:53 UTC"),
            (1_798_761_599_000, "2026-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(ms), want);
        }
    }
}
