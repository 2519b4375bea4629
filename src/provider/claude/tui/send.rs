//! Texts on their way into the session, and the proof that they arrived.
//!
//! What people say is pasted: look, keep a person's draft away with the program's own stash, paste, look whether the text
//! stands in the box, Enter. What agents and systems say goes through the session's own socket, which frames it as such.

mod proof;

use std::time::Duration;

use serde_json::{Value, json};

use super::TuiSession;
use super::witness::Registry;
use crate::core::ids::VerbNumber;
use crate::core::session::{Output, Parcel, Signal};
use crate::core::time::{Now, Tick};
use crate::provider::claude::sanitize::{escape_mentions, escape_prefix};
use crate::provider::claude::screen::InputBox;
use crate::provider::claude::transcript::squeezed;

/// An arrival that nothing proves is looked into after this.
const PROOF_TIME: Duration = Duration::from_secs(15);
/// A box that still holds our text this long after Enter did not get the Enter.
const ENTER_TIME: Duration = Duration::from_millis(1500);
/// The text must show in the box this long after the paste.
const PASTE_TIME: Duration = Duration::from_secs(3);
/// What a monitor has named and nobody has fetched is named again after this; each naming wakes the model.
const MONITOR_TIME: Duration = Duration::from_secs(120);
/// … and so long where the program does not draw anything.
const FROZEN_TIME: Duration = Duration::from_secs(20);
/// What was submitted begins its turn within that time.
const BEGIN_TIME: Duration = Duration::from_secs(3);
/// Times that Enter is pressed for one text.
const ENTERS_MAX: u32 = 3;
/// Between looks while something is being typed.
const STEP_TIME: Duration = Duration::from_millis(25);
/// A person's second draft, with one stashed already, is waited for.
const DRAFT_PAUSE: Duration = Duration::from_millis(500);
/// Rounds of wiping before it is given up and tried later.
const WIPES_MAX: u32 = 12;
/// A screen without an input box is told of after this.
const MENU_TIME: Duration = Duration::from_secs(2);
/// Wait after the socket said that it was too much.
const SOCKET_PAUSE: Duration = Duration::from_secs(5);
/// How texts of ours begin, squeezed.
const MESSAGE_MARK: &str = "[relaymessage#";
const RUNNER_MARK: &str = "[agent-relay]";
/// First lines that are remembered as ours.
const OURS_MAX: usize = 64;
/// Characters of a text without a header that are remembered.
const MARK_CHARS: usize = 4000;
/// Characters of a first line that are compared.
const FIRST_CHARS: usize = 120;

/// A text that waits.
#[derive(Debug, Clone, Default)]
pub(super) struct Item {
    pub parcel: Option<Parcel>,
    text: String,
    /// A person says it.
    person: bool,
    /// Who is told that it arrived, where it is no parcel.
    pub verb: Option<VerbNumber>,
    /// A command of the program, not a text for the model.
    pub command: bool,
    tries: u32,
}

impl Item {
    pub fn of_parcel(parcel: Parcel) -> Item {
        Item { text: escape_mentions(&typeable(&parcel.text)), person: parcel.person, parcel: Some(parcel), ..Item::default() }
    }

    /// A text of the runner, and who is told that it arrived.
    pub fn of_text(verb: VerbNumber, text: &str, person: bool) -> Item {
        Item { text: escape_prefix(&typeable(text)), person, verb: Some(verb), ..Item::default() }
    }

    pub fn of_command(text: String) -> Item {
        Item { text: typeable(&text), person: true, command: true, ..Item::default() }
    }

    fn is_urgent(&self) -> bool {
        self.parcel.as_ref().is_some_and(|parcel| parcel.urgent)
    }

    /// Its first line with anything in it, squeezed.
    fn first(&self) -> String {
        let line = self.text.lines().map(squeezed).find(|line| !line.is_empty());
        line.unwrap_or_default().chars().take(FIRST_CHARS).collect()
    }

    /// What it is known by in the box and in the transcript: its header, or where it has none, all of it.
    fn mark(&self) -> String {
        let first = self.first();
        if is_marked(&first) { first } else { squeezed(&self.text).chars().take(MARK_CHARS).collect() }
    }

    /// Numbers of the messages in it.
    fn numbers(&self) -> Vec<u64> {
        let heads = self.text.lines().filter_map(|line| line.strip_prefix("[relay message #"));
        let all: Vec<u64> = heads.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
        if !all.is_empty() {
            return all;
        }
        // A word to go on names them within its line.
        let named = self.text.split('#').skip(1);
        named.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
    }
}

fn is_marked(squeezed: &str) -> bool {
    [MESSAGE_MARK, RUNNER_MARK].iter().any(|mark| squeezed.starts_with(mark))
}

/// Without control characters: one of them could end the paste and press keys.
fn typeable(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let harmless = |c: &char| matches!(c, '\n' | '\t') || !c.is_control() || crate::planted::is("escaped-paste");
    let mut text: String = text.chars().filter(harmless).collect();
    if text.ends_with('\\') {
        // With Enter it would be a line break.
        text.push(' ');
    }
    text
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// The box must be seen empty.
    Look,
    /// The text must be seen in it.
    Pasted,
}

/// A text that is being typed.
#[derive(Debug)]
pub(super) struct Sending {
    item: Item,
    step: Step,
    since: Tick,
    wipes: u32,
    stashing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Channel {
    Paste,
    Socket,
    /// A monitor names it; the session fetches it.
    Monitor,
}

/// A text that was submitted and is not proven yet.
#[derive(Debug)]
pub(super) struct Sent {
    item: Item,
    first: String,
    by: Channel,
    /// Wall clock, ms.
    at: i64,
    check_at: Tick,
    enter_at: Option<Tick>,
    enters: u32,
    /// It went into a running turn: there, a prompt hook says only that it waits.
    joined: bool,
    queued: bool,
    post: u64,
    /// Its UUID, where it went by the socket.
    key: String,
    /// Numbers of its messages that the session has not fetched.
    unfetched: Vec<u64>,
    /// What the box showed when Enter was pressed.
    box_text: Option<String>,
}

impl TuiSession {
    /// Takes the next text that may go now.
    pub(super) fn next_item(&mut self, now: Now) {
        // What comes while the conversation is being shortened or dropped could fall on either side.
        let crosses = self.crossing.as_ref().is_some_and(|crossing| crossing.begun);
        if !self.open || self.over || self.sending.is_some() || crosses {
            return;
        }
        let idle = self.registry.as_ref().is_none_or(Registry::is_idle);
        let quiet = self.turn.is_none() && self.sent.is_empty() && idle;
        let urgent = self.turn.is_some().then(|| self.queue.iter().position(Item::is_urgent)).flatten();
        let (at, channel) = match (quiet, urgent) {
            (true, _) if !self.queue.is_empty() => (0, self.channel(&self.queue[0])),
            // Into a running turn nothing is typed: a dialog may open at any moment, and our Enter would answer it.
            (false, Some(at)) if self.has_socket() && crate::planted::is("typed-into-a-turn") => (at, Channel::Paste),
            (false, Some(at)) if self.has_socket() => (at, Channel::Socket),
            (false, Some(at)) if !self.start.terminal => (at, Channel::Monitor),
            _ => return,
        };
        if channel == Channel::Socket && self.socket_pause.is_some_and(|until| until > now.tick) {
            return;
        }
        let Some(item) = self.queue.remove(at) else { return };
        if !item.command {
            self.remember(item.mark());
        }
        match channel {
            Channel::Socket => self.post(now, item),
            Channel::Monitor => {
                let batch = item.parcel.as_ref().map(|parcel| parcel.batch).unwrap_or_default();
                self.submitted(now, item, Channel::Monitor, 0);
                self.signal(Signal::Announce { batch });
            }
            Channel::Paste => {
                self.sending = Some(Sending { item, step: Step::Look, since: now.tick, wipes: 0, stashing: false });
                self.look_now(now);
            }
        }
    }

    fn channel(&self, item: &Item) -> Channel {
        let socket = self.has_socket();
        match (self.start.terminal, socket) {
            (true, true) if !item.person => Channel::Socket,
            (true, _) => Channel::Paste,
            (false, true) => Channel::Socket,
            (false, false) => Channel::Monitor,
        }
    }

    fn has_socket(&self) -> bool {
        self.start.mailbox.is_some() && self.socket_path().is_some() && self.socket_off.is_none()
    }

    /// A turn of our own is about to begin.
    pub(super) fn has_submitted(&self, now: Now) -> bool {
        let fresh = |sent: &Sent| now.wall.0 - sent.at < BEGIN_TIME.as_millis() as i64;
        self.sent.iter().any(|sent| sent.by != Channel::Monitor && !sent.queued && fresh(sent))
    }

    /// A text without messages can reach the session.
    pub(super) fn has_way_in(&self) -> bool {
        self.start.terminal || self.has_socket()
    }

    fn socket_path(&self) -> Option<String> {
        self.registry.as_ref().and_then(|registry| registry.socket.clone()).or_else(|| self.start.socket.clone())
    }

    fn remember(&mut self, first: String) {
        if !self.ours.contains(&first) {
            self.ours.push_back(first);
            if self.ours.len() > OURS_MAX {
                self.ours.pop_front();
            }
        }
    }

    fn is_ours(&self, text: &str) -> bool {
        let text = squeezed(text);
        let start: String = text.chars().take(40).collect();
        // Anything else could be the beginning of anybody's draft: there the whole text must be the same.
        let marked = is_marked(&start);
        let begins = |first: &String| marked && (first.starts_with(&start) || start.starts_with(first.as_str()));
        self.ours.iter().any(|first| !first.is_empty() && (begins(first) || *first == text))
    }

    // ---- by the socket

    fn post(&mut self, now: Now, item: Item) {
        let (Some(path), Some(mailbox)) = (self.socket_path(), self.start.mailbox.clone()) else {
            return;
        };
        self.posts += 1;
        let number = self.posts;
        let own = format!("{}{number:012x}", self.start.nonce.get(..24).unwrap_or("00000000-0000-4000-8000-"));
        let key = item.parcel.as_ref().map_or(own, |parcel| parcel.key.clone());
        let line = json!({"type": "user", "message": {"role": "user", "content": item.text}, "uuid": key, "msg_id": key,
            "from": format!("uds:{mailbox}")});
        self.submitted(now, item, Channel::Socket, number);
        self.sent.iter_mut().filter(|sent| sent.post == number).for_each(|sent| sent.key = key.clone());
        self.out.push(Output::Post { number, path, line: format!("{line}\n") });
    }

    pub(super) fn on_posted(&mut self, now: Now, number: u64, result: Result<(), String>) {
        let (Err(error), Some(at)) = (result, self.sent.iter().position(|sent| sent.post == number)) else {
            return;
        };
        self.note(true, format!("the session's socket cannot be written to: {error}"));
        self.socket_off = Some(error);
        self.send_again(now, at);
    }

    /// A receipt: only refusals have one.
    pub(super) fn on_mail(&mut self, now: Now, line: &str) {
        let Ok(frame) = serde_json::from_str::<Value>(line) else { return };
        let text = |field: &str| frame.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("action") != "peer_message_status" {
            return;
        }
        let more = frame.get("dropped_msg_ids").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let keys: Vec<String> =
            std::iter::once(text("orig_msg_id")).chain(more).filter(|key| !key.is_empty()).map(str::to_string).collect();
        let (status, reason) = (text("status").to_string(), text("drop_reason").to_string());
        match status.as_str() {
            "delivered" => return,
            // A person is asked at the terminal; the text waits there.
            "held" => {
                for sent in self.sent.iter_mut().filter(|sent| keys.contains(&sent.key)) {
                    sent.queued = true;
                }
                return self.tell_delivery(Some("held by the session: allow it with `agent-relay attach`"));
            }
            "denied" => {
                for key in keys {
                    let at = self.sent.iter().position(|sent| sent.key == key);
                    at.into_iter().for_each(|at| self.refuse(now, at, "a person at the session's terminal refused the message"));
                }
                return;
            }
            "dropped" => self.socket_pause = Some(now.tick + SOCKET_PAUSE),
            _ => self.socket_off = Some(format!("the session answered {status} {}", text("status_detail"))),
        }
        self.note(true, format!("the session refused a message by its socket: {status} {reason}"));
        for key in keys {
            if let Some(at) = self.sent.iter().position(|sent| sent.key == key) {
                self.send_again(now, at);
            }
        }
    }

    // ---- by paste

    /// A fresh look at the screen: the next step, if it may be made.
    pub(super) fn step_sending(&mut self, now: Now) {
        let (Some(look), Some(sending)) = (&self.look, &self.sending) else { return };
        let idle = self.registry.as_ref().is_none_or(Registry::is_idle);
        let may = (look.is_open() && idle && !look.busy && self.turn.is_none()) || crate::planted::is("typed-into-a-turn");
        let (step, input) = (sending.step, look.input.clone());
        if !may && step == Step::Look {
            // A dialog is open or a turn has begun: typing now would answer it, or be queued.
            if self.turn.is_some() {
                self.put_back(now);
            } else {
                let waited = self.sending.as_ref().map_or(Duration::ZERO, |sending| now.tick - sending.since);
                if waited >= MENU_TIME && self.look.as_ref().is_some_and(|look| !look.is_open()) {
                    self.tell_delivery(Some("a menu or a dialog is open in the terminal: `agent-relay attach` shows it"));
                }
                self.look_soon(now, DRAFT_PAUSE);
            }
            return;
        }
        match (step, input) {
            (Step::Look, Some(InputBox::Empty)) if std::mem::take(&mut self.unseen_paste) => {
                // A slow program may show the paste before this one only now: then this goes behind it and wipes it.
                self.wipe();
                self.look_soon(now, STEP_TIME * 2);
            }
            (Step::Look, Some(InputBox::Empty)) => {
                let Some(sending) = &mut self.sending else { return };
                (sending.step, sending.since) = (Step::Pasted, now.tick);
                let text = sending.item.text.clone();
                self.out.push(Output::Paste(text));
                self.look_soon(now, STEP_TIME);
            }
            (Step::Look, Some(InputBox::Text(text))) => self.on_draft(now, &text),
            (Step::Pasted, _) if crate::planted::is("typed-into-a-dialog") => self.enter(now),
            (Step::Pasted, Some(InputBox::Text(_))) if may || idle => self.enter(now),
            (Step::Pasted, _) => {
                let waited = self.sending.as_ref().map_or(Duration::ZERO, |sending| now.tick - sending.since);
                // Swallowed by something that was on the screen for a moment; or the program draws nothing at all.
                let drew = self.drawn_at.is_some_and(|at| self.sending.as_ref().is_some_and(|sending| at > sending.since + PASTE_TIME / 6));
                if waited >= if drew { PASTE_TIME } else { FROZEN_TIME } {
                    self.put_back(now);
                }
                self.look_soon(now, if waited < PASTE_TIME { STEP_TIME } else { DRAFT_PAUSE });
            }
            (Step::Look, None) => self.look_soon(now, DRAFT_PAUSE),
        }
    }

    /// Something stands in the box: ours is wiped, a person's is stashed and comes back by itself after our Enter.
    fn on_draft(&mut self, now: Now, text: &str) {
        let ours = self.is_ours(text) || ((self.left_ours || self.unseen_paste) && text.trim_start().starts_with("[Pasted text"));
        let stashed = self.look.as_ref().is_some_and(|look| look.stashed);
        let Some(sending) = &mut self.sending else { return };
        if ours && sending.wipes < WIPES_MAX {
            sending.wipes += 1;
            self.wipe();
            return self.look_soon(now, STEP_TIME * 2);
        }
        if !stashed && !sending.stashing {
            sending.stashing = true;
            self.out.push(Output::Press("C-s"));
            return self.look_soon(now, STEP_TIME * 2);
        }
        // A second draft: stashing it would lose the first. The person is waited for.
        sending.stashing = stashed;
        if now.tick - sending.since >= PROOF_TIME {
            sending.since = now.tick;
            self.tell_delivery(Some("somebody's draft stands in the input box"));
        }
        self.look_soon(now, DRAFT_PAUSE);
    }

    fn wipe(&mut self) {
        for key in ["C-e", "C-u", "C-u", "C-u", "C-u", "C-k"] {
            self.out.push(Output::Press(key));
        }
    }

    fn enter(&mut self, now: Now) {
        let Some(sending) = self.sending.take() else { return };
        (self.left_ours, self.unseen_paste) = (false, false);
        self.out.push(Output::Press("Enter"));
        self.tell_delivery(None);
        if sending.item.command {
            self.crossing_begins(now);
            return self.look_soon(now, STEP_TIME * 4);
        }
        self.submitted(now, sending.item, Channel::Paste, 0);
        self.look_soon(now, ENTER_TIME);
    }

    fn submitted(&mut self, now: Now, item: Item, by: Channel, post: u64) {
        let enter_at = (by == Channel::Paste).then_some(now.tick + ENTER_TIME);
        let box_text = match self.look.as_ref().and_then(|look| look.input.clone()).filter(|_| by == Channel::Paste) {
            Some(InputBox::Text(text)) => Some(text),
            _ => None,
        };
        let sent = Sent {
            box_text,
            first: item.first(),
            unfetched: item.numbers(),
            item,
            by,
            at: now.wall.0,
            check_at: now.tick + PROOF_TIME,
            enter_at,
            enters: u32::from(by == Channel::Paste),
            joined: self.turn.is_some(),
            queued: false,
            post,
            key: String::new(),
        };
        self.sent.push(sent);
        self.check_enter = false;
    }

    /// The text waits again, first in line.
    fn put_back(&mut self, now: Now) {
        if let Some(sending) = self.sending.take() {
            let holds_text = matches!(self.look.as_ref().and_then(|look| look.input.as_ref()), Some(InputBox::Text(_)));
            self.left_ours |= sending.step == Step::Pasted && holds_text;
            self.unseen_paste |= sending.step == Step::Pasted && !holds_text;
            self.queue.push_front(sending.item);
            self.look_soon(now, DRAFT_PAUSE);
        }
    }

    fn send_again(&mut self, now: Now, at: usize) {
        let sent = self.sent.remove(at);
        self.queue.push_front(Item { tries: sent.item.tries + 1, ..sent.item });
        self.settle_interrupt(now);
        self.next_item(now);
    }

    pub(super) fn on_term_failed(&mut self, now: Now, text: &str) {
        self.looking = false;
        self.note(true, format!("the terminal: {text}"));
        self.look_soon(now, DRAFT_PAUSE);
    }

    /// The command never came to it: it leaves the queue.
    pub(super) fn drop_command(&mut self) {
        self.queue.retain(|item| !item.command);
        if self.sending.as_ref().is_some_and(|sending| sending.item.command) {
            self.sending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_typed_can_press_keys() {
        assert_eq!(typeable("a\u{1b}[201~\r\nb\tc\u{9b}\u{7f}"), "a[201~\nb\tc");
        assert_eq!(typeable("C:\\"), "C:\\ ");
        assert_eq!(Item::of_text(VerbNumber(1), "/exit", true).text, "[prompt] /exit");
        assert_eq!(
            Item::of_parcel(Parcel { text: "[relay message #1 from user]\nx".into(), ..Default::default() }).first(),
            "[relaymessage#1fromuser]"
        );
    }
}
