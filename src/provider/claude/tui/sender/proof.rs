//! The proof that a text arrived, and what is done about one that did not.

use super::monitor::{NAMED_AGAIN, announce};
use super::{Channel, PROOF_TIME, Sender, SenderContext, Sent};
use crate::core::time::Now;
use crate::provider::claude::transcript::{Prompt, squeezed, unwrapped};
use crate::provider::claude::tui::out::Out;
use crate::provider::claude::tui::turn::{LastEnd, Turns};

/// What the prompt hook says of our texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) enum HookProof {
    /// The prompt is not ours.
    NotOurs,
    /// It is ours and only waits in the program's queue.
    Waits,
    /// The text at that place arrived.
    Arrived(usize),
}

/// What a prompt in the transcript says of our texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) enum EntryProof {
    /// The text at that place arrived. `is_late`: the turn that ended last may have been its own.
    Arrived { at: usize, is_late: bool },
    /// It is ours, and proven already, or nothing.
    Known,
    /// A person typed it.
    Person,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) enum Due {
    Nothing,
    /// The text at that place counts as arrived, for this reason.
    Arrived(usize, &'static str),
    /// A text is sent again, or was refused: what waited for it goes on.
    Settled,
}

impl Sender {
    /// The prompt hook: proof, unless the text was pasted into a running turn, where it only waits.
    pub fn on_prompt_hook(&mut self, prompt: &str, turns: &Turns) -> HookProof {
        let text = squeezed(prompt);
        let is_it = |sent: &Sent| text.contains(&sent.first);
        let Some(at) = self.unproven.iter().position(is_it) else { return HookProof::NotOurs };
        let sent = &mut self.unproven[at];
        // A turn of somebody else began just before our Enter: then too.
        let foreign = turns.is_foreign();
        let only_waits = match (&sent.channel, crate::planted::is("queued-is-no-proof")) {
            (Channel::Paste(_), false) => sent.joined || foreign,
            (Channel::Monitor(_), true) => foreign,
            _ => false,
        };
        if !only_waits {
            return HookProof::Arrived(at);
        }
        sent.queued = true;
        HookProof::Waits
    }

    /// The transcript has a prompt: of a text of ours that is always proof.
    pub fn on_prompt_entry(&self, prompt: &Prompt, turns: &Turns) -> EntryProof {
        let text = squeezed(unwrapped(&prompt.text));
        let is_it = |sent: &Sent| {
            let by_key = matches!(&sent.channel, Channel::Socket(proof) if proof.is(&prompt.uuid));
            text.contains(&sent.first) || by_key
        };
        if let Some(at) = self.unproven.iter().position(is_it) {
            // Its turn may be over already, unless it waited in the queue for a turn of its own.
            // A turn that runs by now may be another one, or only a belief.
            let is_over = |last: &LastEnd| match (prompt.queued, prompt.at) {
                (true, _) => false,
                (false, 0) => !turns.is_running(),
                (false, at) => at <= last.at,
            };
            return EntryProof::Arrived { at, is_late: turns.last_end().is_some_and(is_over) };
        }
        if prompt.human && !self.own.is_prompt(&text) && !text.is_empty() {
            return EntryProof::Person;
        }
        EntryProof::Known
    }

    /// A text waits in the program's own queue.
    pub fn on_enqueued(&mut self, text: &str) {
        let text = squeezed(unwrapped(text));
        for sent in self.unproven.iter_mut().filter(|sent| text.contains(&sent.first)) {
            sent.queued = true;
        }
    }

    /// What is not proven in time is looked into: it waits, its Enter was lost, or it never
    /// arrived.
    pub fn wake(&mut self, around: &mut SenderContext<'_>) -> Due {
        let now = around.now;
        self.socket.wake(now);
        let is_due = |sent: &Sent| sent.check_at <= now.tick || enter_is_due(sent, now);
        let Some(at) = self.unproven.iter().position(is_due) else { return Due::Nothing };
        if enter_is_due(&self.unproven[at], now) {
            if let Channel::Paste(proof) = &mut self.unproven[at].channel {
                proof.forget_enter_at();
            }
            // Decided with a fresh picture.
            self.paste.check_enter(around);
            return Due::Nothing;
        }
        self.look_into(at, around)
    }

    fn look_into(&mut self, at: usize, around: &mut SenderContext<'_>) -> Due {
        let is_idle = around.is_idle();
        let is_open = around.observed.is_open();
        let in_box = around.observed.input_text().is_some_and(|text| {
            self.own.is_in_box(text) || matches!(&self.unproven[at].channel, Channel::Paste(proof) if proof.is_shown(text))
        });
        let sent = &mut self.unproven[at];
        let is_monitor = matches!(sent.channel, Channel::Monitor(_));
        sent.check_at = around.now.tick + if is_monitor { NAMED_AGAIN } else { PROOF_TIME };
        let queued = sent.queued;
        // An idle program has no queue: somebody took the text back, or it is proven by the next
        // picture.
        sent.queued &= !is_idle;
        around.observed.capture_soon(around.now, std::time::Duration::ZERO);
        let is_paste = matches!(sent.channel, Channel::Paste(_));
        if is_paste && is_idle && is_open && in_box && !queued {
            return self.stuck_in_box(at, around);
        }
        if queued || !is_idle || is_monitor || (is_paste && (!is_open || in_box)) {
            self.tell_waits(at, queued, around.out);
            return Due::Nothing;
        }
        self.missed(at, around)
    }

    fn tell_waits(&mut self, at: usize, queued: bool, out: &mut Out) {
        let why = if queued {
            "it waits in the session's own queue"
        } else {
            "the session is not at its prompt"
        };
        self.notice.tell(Some(&format!("not proven yet: {why}")), out);
        let sent = &self.unproven[at];
        if matches!(sent.channel, Channel::Monitor(_)) {
            announce(&sent.item, out);
        }
    }

    /// An idle session has nothing of it.
    fn missed(&mut self, at: usize, around: &mut SenderContext<'_>) -> Due {
        let sent = &self.unproven[at];
        let a_turn_ran = around.turns.ended_since(sent.at);
        if !self.has_source {
            // Neither hook nor transcript ever told anything: sent again it would be said twice. A
            // turn that ran is all the proof there can be.
            let why = "a turn ran just after it; this session has neither hooks nor a transcript";
            return if a_turn_ran { Due::Arrived(at, why) } else { Due::Nothing };
        }
        if sent.item.tries > 0 && a_turn_ran {
            // It ran twice into a turn and was recognised neither time: once more would be too
            // often.
            return Due::Arrived(at, "a turn ran just after it, twice");
        }
        let tries = sent.item.tries + 1;
        around.out.warn(format!("a text did not arrive (try {tries}), it is sent again"));
        self.send_again(at);
        Due::Settled
    }

    /// It stands in the box of an idle session, long after its Enter: something ate that, or gives
    /// the text back.
    fn stuck_in_box(&mut self, at: usize, around: &mut SenderContext<'_>) -> Due {
        if matches!(&self.unproven[at].channel, Channel::Paste(proof) if proof.may_enter()) {
            self.paste.check_enter(around);
            return Due::Nothing;
        }
        self.paste.on_given_back(around.now);
        let why = "the session does not take the text: it stays in its input box (a hook of its own may block it, or its keybindings.json binds Enter to something else)";
        self.refuse(at, why, around);
        Due::Settled
    }

    /// A fresh picture: if our text still stands in the box of an idle session, its Enter was lost.
    /// A dialog or a turn in between only delays the answer.
    pub(super) fn enter_again(&mut self, around: &mut SenderContext<'_>) {
        let is_quiet = around.is_idle() && !around.observed.screen_is_busy();
        let may = is_quiet && around.observed.is_open() && !self.paste.is_typing();
        if !self.paste.checks_enter() || !may {
            return;
        }
        self.paste.forget_enter_check();
        let Some(text) = around.observed.input_text().map(str::to_string) else { return };
        let is_ours = self.own.is_in_box(&text);
        let proofs = self.unproven.iter_mut().filter_map(|sent| match &mut sent.channel {
            Channel::Paste(proof) => Some(proof),
            Channel::Socket(_) | Channel::Monitor(_) => None,
        });
        let mut waiting =
            proofs.filter(|proof| !proof.waits_for_enter() && (is_ours || proof.is_shown(&text)));
        if let Some(proof) = waiting.next().filter(|proof| proof.may_enter()) {
            proof.press_enter(around);
        }
    }
}

fn enter_is_due(sent: &Sent, now: Now) -> bool {
    matches!(&sent.channel, Channel::Paste(proof) if proof.enter_is_due(now))
}
