//! Texts on their way into the session.
//!
//! What people say is pasted ([`paste`]): it counts as the user's word. What agents and systems say
//! goes through the session's own socket ([`socket`]), which frames it as such. A terminal that is
//! not ours has a monitor that names what waits, and the session fetches it ([`monitor`]). However
//! a text went, only transcript, prompt hook or receipts prove that it arrived ([`proof`]).

mod item;
mod monitor;
mod paste;
mod proof;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::json;

pub(super) use self::item::first_line;
use self::item::{Item, OwnTexts};
use self::monitor::MonitorProof;
use self::paste::{Paste, PasteProof, Step};
use self::socket::{Socket, SocketProof};
use super::observed::{Observed, RegistryWord};
use super::out::Out;
use super::turn::Turns;
use crate::core::ids::VerbNumber;
use crate::core::session::{Delivery, SessionEvent, TurnEnd};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::Start;
use crate::provider::launch::TerminalKeys;

pub(super) use self::proof::{Due, EntryProof, HookProof};

/// An arrival that nothing proves is looked into after this.
const PROOF_TIME: Duration = Duration::from_secs(15);
/// What was submitted begins its turn within that time.
const BEGIN_TIME: Duration = Duration::from_secs(3);
/// Characters of an error of the terminal that are told.
const ERROR_CHARS_MAX: usize = 300;
/// Waiting texts of the runner itself.
const INJECTED_MAX: usize = 16;

/// What a sender sees of the session around it.
pub(super) struct SenderContext<'a> {
    pub now: Now,
    pub keys: TerminalKeys,
    /// What the registry says of the session's own turn.
    pub registry: RegistryWord,
    pub observed: &'a mut Observed,
    pub turns: &'a Turns,
    pub out: &'a mut Out,
}

impl SenderContext<'_> {
    /// No turn runs, and the registry says so; or the screen, where that says nothing.
    fn is_idle(&self) -> bool {
        let is_idle = match self.registry {
            RegistryWord::Idle { .. } => true,
            RegistryWord::Busy => false,
            RegistryWord::Nothing => self.observed.is_open() && !self.observed.screen_is_busy(),
        };
        is_idle && !self.turns.is_running()
    }

    /// No turn runs, and the registry knows of none.
    fn may_be_idle(&self) -> bool {
        self.registry != RegistryWord::Busy && !self.turns.is_running()
    }

    fn capture_soon(&mut self, pause: Duration) {
        self.observed.capture_soon(self.now, pause);
    }

    fn capture_now(&mut self) {
        self.observed.capture_now(self.now, self.out);
    }
}

/// How a text goes, and what proves it.
#[derive(Debug)]
enum Channel {
    Paste(PasteProof),
    Socket(SocketProof),
    /// A monitor names it; the session fetches it.
    Monitor(MonitorProof),
}

/// The same before it went.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Paste,
    Socket,
    Monitor,
}

/// A text that was submitted and is not proven yet.
#[derive(Debug)]
struct Sent {
    item: Item,
    /// First line, squeezed.
    first: String,
    channel: Channel,
    /// Wall clock, ms.
    at: i64,
    check_at: Tick,
    /// It went into a running turn: there, a prompt hook says only that it waits.
    joined: bool,
    /// It waits in the program's own queue.
    queued: bool,
}

/// A text that arrived.
#[derive(Debug)]
pub(super) struct Accepted {
    pub delivery: Option<Delivery>,
    pub verb: Option<VerbNumber>,
    /// First line, squeezed.
    pub first: String,
    /// When it was submitted, by the wall clock, ms.
    pub at: i64,
    pub joined: bool,
}

/// What delivery waits for, as people were told it.
#[derive(Debug, Default)]
struct DeliveryNotice {
    told: Option<String>,
}

impl DeliveryNotice {
    /// Told when it changes; `None`: it waits for nothing.
    fn tell(&mut self, why: Option<&str>, out: &mut Out) {
        if self.told.as_deref() != why {
            self.told = why.map(str::to_string);
            out.fact("delivery", json!(why));
        }
    }
}

/// Whether anything may go now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Gate {
    Open,
    /// The session is not open, or its context is being changed.
    Closed,
}

#[derive(Debug)]
pub(super) struct Sender {
    has_terminal: bool,
    queue: VecDeque<Item>,
    paste: Paste,
    socket: Socket,
    unproven: Vec<Sent>,
    own: OwnTexts,
    notice: DeliveryNotice,
    /// A hook or the transcript has told something: proofs can come.
    has_source: bool,
}

impl Sender {
    pub fn new(start: &Start) -> Sender {
        Sender {
            has_terminal: start.terminal,
            queue: VecDeque::new(),
            paste: Paste::default(),
            socket: Socket::new(start),
            unproven: Vec::new(),
            own: OwnTexts::default(),
            notice: DeliveryNotice::default(),
            has_source: false,
        }
    }

    // ---- what is to be sent

    pub fn deliver(&mut self, delivery: Delivery) {
        self.queue.push_back(Item::of_delivery(delivery));
    }

    /// Why a text of the runner cannot be told to the session.
    pub fn refusal(&self, observed: &Observed) -> Option<&'static str> {
        let injected = self.queue.iter().filter(|item| item.verb.is_some()).count();
        if !self.has_terminal && !self.socket.is_usable(observed) {
            return Some(
                "this session can be told nothing: it has no terminal of ours and no socket",
            );
        }
        (injected >= INJECTED_MAX).then_some("too many texts wait for the end of the turn")
    }

    /// A text of the runner, and who is told that it arrived.
    pub fn inject(&mut self, verb: VerbNumber, text: &str, person: bool) {
        self.queue.push_back(Item::of_text(verb, text, person));
    }

    /// A command of the program goes first.
    pub fn command(&mut self, text: &str) {
        self.queue.push_front(Item::of_command(text));
    }

    /// The command never came to it: it leaves the queue.
    pub fn drop_command(&mut self) {
        self.queue.retain(|item| !item.is_command);
        self.paste.drop_command();
    }

    /// An interrupt drops what the runner wanted to say; who waits for it.
    pub fn drop_injected(&mut self) -> Vec<VerbNumber> {
        let dropped = self.queue.iter().filter_map(|item| item.verb).collect();
        self.queue.retain(|item| item.verb.is_none());
        dropped
    }

    pub fn stop(&mut self) {
        self.queue.clear();
        self.paste.stop();
    }

    // ---- what goes next

    /// Takes the next text that may go now.
    pub fn next(&mut self, gate: Gate, around: &mut SenderContext<'_>) {
        if gate == Gate::Closed || self.paste.is_typing() {
            return;
        }
        let Some((at, way)) = self.choose(around) else { return };
        if way == Way::Socket && self.socket.pauses(around.now) {
            return;
        }
        let Some(item) = self.queue.remove(at) else { return };
        if !item.is_command {
            self.own.remember(item.mark());
        }
        match way {
            Way::Paste => self.paste.start(item, around),
            Way::Socket => {
                let Some(proof) = self.socket.post(&item, around) else { return };
                self.submitted(item, Channel::Socket(proof), around);
            }
            Way::Monitor => {
                let proof = MonitorProof::new(&item);
                monitor::announce(&item, around.out);
                self.submitted(item, Channel::Monitor(proof), around);
            }
        }
    }

    /// The place of the next text in the queue, and how it goes.
    fn choose(&self, around: &SenderContext<'_>) -> Option<(usize, Way)> {
        let runs = around.turns.is_running();
        if self.unproven.is_empty() && around.may_be_idle() {
            return self.queue.front().map(|item| (0, self.way(item, around.observed)));
        }
        let urgent = self.queue.iter().position(Item::is_urgent).filter(|_| runs)?;
        // Into a running turn nothing is typed: a dialog may open at any moment, and our Enter
        // would answer it.
        if self.socket.is_usable(around.observed) {
            let typed = crate::planted::is("typed-into-a-turn");
            return Some((urgent, if typed { Way::Paste } else { Way::Socket }));
        }
        (!self.has_terminal).then_some((urgent, Way::Monitor))
    }

    fn way(&self, item: &Item, observed: &Observed) -> Way {
        match (self.has_terminal, self.socket.is_usable(observed)) {
            (true, true) if !item.person => Way::Socket,
            (true, _) => Way::Paste,
            (false, true) => Way::Socket,
            (false, false) => Way::Monitor,
        }
    }

    fn submitted(&mut self, item: Item, channel: Channel, around: &SenderContext<'_>) {
        self.unproven.push(Sent {
            first: item.first(),
            item,
            channel,
            at: around.now.wall.0,
            check_at: around.now.tick + PROOF_TIME,
            joined: around.turns.is_running(),
            queued: false,
        });
        self.paste.forget_enter_check();
    }

    // ---- what was sent

    pub fn has_unproven(&self) -> bool {
        !self.unproven.is_empty()
    }

    /// A turn of our own is about to begin.
    pub fn has_submitted(&self, now: Now) -> bool {
        let fresh = |sent: &Sent| now.wall.0 - sent.at < BEGIN_TIME.as_millis() as i64;
        self.unproven
            .iter()
            .any(|sent| !matches!(sent.channel, Channel::Monitor(_)) && !sent.queued && fresh(sent))
    }

    /// It arrived: whoever sent it can be told so.
    pub fn accept(&mut self, at: usize, out: &mut Out) -> Accepted {
        let Sent { item, first, at, joined, .. } = self.unproven.remove(at);
        self.notice.tell(None, out);
        Accepted { delivery: item.delivery, verb: item.verb, first, at, joined }
    }

    fn send_again(&mut self, at: usize) {
        let sent = self.unproven.remove(at);
        self.queue.push_front(Item { tries: sent.item.tries + 1, ..sent.item });
    }

    /// It will not arrive, and whoever sent it is told so.
    pub fn refuse(&mut self, at: usize, why: &str, around: &mut SenderContext<'_>) {
        let sent = self.unproven.remove(at);
        let out = &mut *around.out;
        out.warn(why);
        self.notice.tell(None, out);
        match sent.item.delivery {
            Some(Delivery { batch, key, .. }) => {
                out.emit(SessionEvent::Refused { batch, key, why: why.into() });
                if !around.turns.is_running() {
                    tell_no_turn(out);
                }
            }
            None => {
                if let Some(verb) = sent.item.verb {
                    out.answer(verb, Err(why.into()));
                }
                self.give_up_injected(around.turns, out);
            }
        }
    }

    /// A text of the runner's own goes nowhere: whoever waits for its turn need not.
    pub fn give_up_injected(&self, turns: &Turns, out: &mut Out) {
        if !turns.is_running() && self.unproven.is_empty() {
            tell_no_turn(out);
        }
    }

    /// What delivery waits for, for people.
    pub fn tell_delivery(&mut self, why: Option<&str>, out: &mut Out) {
        self.notice.tell(why, out);
    }

    // ---- the box

    /// A hook or the transcript has told something: proofs can come.
    pub fn on_source(&mut self) {
        self.has_source = true;
    }

    pub fn is_typing(&self) -> bool {
        self.paste.is_typing()
    }

    pub fn on_drawn(&mut self, now: Now) {
        self.paste.on_drawn(now);
    }

    /// The terminal could not do what was asked: perhaps it did not take the text.
    pub fn on_terminal_failed(&mut self, error: &str, out: &mut Out) {
        if self.paste.is_typing() {
            let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
            self.notice.tell(Some(&format!("the terminal refused: {error}")), out);
        }
    }

    /// A picture shows an empty box.
    pub fn on_box_empty(&mut self) {
        self.paste.on_box_empty();
    }

    /// The box may hold a text of ours again.
    pub fn on_given_back(&mut self, now: Now) {
        self.paste.on_given_back(now);
    }

    /// The box holds our text with this first line (squeezed) again.
    pub fn box_holds(&self, first: &str, observed: &Observed) -> bool {
        observed.input_text().is_some_and(|text| item::begins_with(text, first))
    }

    /// A fresh picture: the box is tidied, a lost Enter pressed again, and the next step of typing
    /// made. True: a command was submitted.
    pub fn on_screen(&mut self, around: &mut SenderContext<'_>) -> bool {
        self.paste.tidy_box(&self.own, around);
        self.enter_again(around);
        match self.paste.step(&self.own, &mut self.notice, around) {
            Step::Waits => false,
            Step::PutBack(item) => {
                self.queue.push_front(item);
                false
            }
            Step::Entered(item) if item.is_command => true,
            Step::Entered(item) => {
                let proof = PasteProof::new(around);
                self.submitted(item, Channel::Paste(proof), around);
                false
            }
        }
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        let check = |sent: &Sent| match &sent.channel {
            Channel::Paste(proof) => sooner(proof.enter_at(), Some(sent.check_at)),
            Channel::Socket(_) | Channel::Monitor(_) => Some(sent.check_at),
        };
        let checks = self.unproven.iter().filter_map(check).min();
        let pause = self.socket.paused_until().filter(|_| !self.queue.is_empty());
        sooner(checks, pause)
    }
}

/// Whoever waits for the end of a turn that will not come is told that it is over.
fn tell_no_turn(out: &mut Out) {
    let (end, text) = (TurnEnd::Cancelled, String::new());
    out.emit(SessionEvent::TurnEnded { batch: None, end, text });
}
