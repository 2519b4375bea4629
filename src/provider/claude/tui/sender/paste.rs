//! The terminal's input box: look, keep a person's draft away with the program's own stash, paste,
//! look whether the text stands in the box, Enter. Nothing is typed without a fresh picture that
//! shows an empty box and no dialog.

use std::time::Duration;

use super::item::{Item, OwnTexts};
use super::{DeliveryNotice, PROOF_TIME, SenderContext};
use crate::core::session::Output;
use crate::core::time::{Now, Tick};
use crate::provider::claude::screen::InputBox;
use crate::provider::claude::tui::observed::RegistryWord;

/// A box that still holds our text this long after Enter did not get the Enter.
const ENTER_TIME: Duration = Duration::from_millis(1500);
/// Times that Enter is pressed for one text.
const ENTERS_MAX: u32 = 3;
/// The text must show in the box this long after the paste.
const PASTE_TIME: Duration = Duration::from_secs(3);
/// The same where the program does not draw anything.
const FROZEN_TIME: Duration = Duration::from_secs(20);
/// What is drawn so soon after a paste may not be of it.
const DRAW_LAG: Duration = Duration::from_millis(500);
/// Between pictures while something is being typed.
const STEP_TIME: Duration = Duration::from_millis(25);
/// Between pictures while something stands in the way.
const WAIT_TIME: Duration = Duration::from_millis(500);
/// Rounds of wiping before it is given up and tried later.
const WIPES_MAX: u32 = 12;
/// A screen without an input box is told of after this.
const MENU_TIME: Duration = Duration::from_secs(2);
/// A prompt that was withdrawn stands in the box again within that time.
const GIVEN_BACK_TIME: Duration = Duration::from_secs(3);
/// How the box shows a long paste.
const HIDDEN_PASTE: &str = "[Pasted text";
/// Leaves the shell mode of an empty box.
const LEAVE_SHELL: &str = "BSpace";
const WIPE: [&str; 6] = ["C-e", "C-u", "C-u", "C-u", "C-u", "C-k"];
const WIPE_ALL: [&str; 7] = ["C-e", "C-u", "C-u", "C-u", "C-u", "C-u", "C-k"];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// The box must be seen empty.
    Look {
        wipes: u32,
        /// A draft was stashed and is not gone from the box yet.
        stashing: bool,
    },
    /// The text must be seen in it.
    Pasted,
}

/// A text that is being typed.
#[derive(Debug)]
struct Typing {
    item: Item,
    stage: Stage,
    /// Begin of the stage, or when people were told of what is in the way.
    since: Tick,
}

/// What a picture led to.
pub(super) enum Step {
    Waits,
    /// The text has to wait, first in line.
    PutBack(Item),
    /// Enter was pressed.
    Entered(Item),
}

/// A text whose Enter was pressed.
#[derive(Debug)]
pub(super) struct PasteProof {
    /// What the box showed then.
    box_text: Option<String>,
    /// Times that Enter was pressed.
    enters: u32,
    /// When a picture has to show that the box is empty.
    enter_at: Option<Tick>,
}

impl PasteProof {
    pub fn new(around: &SenderContext<'_>) -> PasteProof {
        PasteProof {
            box_text: around.observed.input_text().map(str::to_string),
            enters: 1,
            enter_at: Some(around.now.tick + ENTER_TIME),
        }
    }

    pub fn enter_at(&self) -> Option<Tick> {
        self.enter_at
    }

    /// True: it is time to look whether the Enter was lost.
    pub fn enter_is_due(&self, now: Now) -> bool {
        self.enter_at.is_some_and(|at| at <= now.tick)
    }

    pub fn forget_enter_at(&mut self) {
        self.enter_at = None;
    }

    pub fn may_enter(&self) -> bool {
        self.enters < ENTERS_MAX
    }

    /// The box shows what it showed at the Enter.
    pub fn is_shown(&self, box_text: &str) -> bool {
        self.box_text.as_deref() == Some(box_text)
    }

    pub fn waits_for_enter(&self) -> bool {
        self.enter_at.is_some()
    }

    pub fn press_enter(&mut self, around: &mut SenderContext<'_>) {
        self.enter_at = Some(around.now.tick + ENTER_TIME);
        self.enters += 1;
        around.out.push(Output::Press(around.keys.submit));
    }
}

#[derive(Debug, Default)]
pub(super) struct Paste {
    typing: Option<Typing>,
    /// A paste of ours was left in the box.
    left_in_box: bool,
    /// A paste of ours was never seen in the box; it may still appear there.
    unseen: bool,
    /// The terminal drew something last.
    drawn_at: Option<Tick>,
    /// The next picture tells whether an Enter was lost.
    checks_enter: bool,
    /// The last turn ended without an answer: until then the box may hold its prompt again.
    given_back_until: Option<Tick>,
}

impl Paste {
    pub fn start(&mut self, item: Item, around: &mut SenderContext<'_>) {
        let stage = Stage::Look { wipes: 0, stashing: false };
        self.typing = Some(Typing { item, stage, since: around.now.tick });
        around.capture_now();
    }

    pub fn is_typing(&self) -> bool {
        self.typing.is_some()
    }

    pub fn stop(&mut self) {
        self.typing = None;
    }

    pub fn drop_command(&mut self) {
        self.typing.take_if(|typing| typing.item.is_command);
    }

    pub fn on_drawn(&mut self, now: Now) {
        self.drawn_at = Some(now.tick);
    }

    pub fn on_box_empty(&mut self) {
        (self.left_in_box, self.given_back_until) = (false, None);
    }

    pub fn on_given_back(&mut self, now: Now) {
        self.given_back_until = Some(now.tick + GIVEN_BACK_TIME);
        self.left_in_box = true;
    }

    pub fn checks_enter(&self) -> bool {
        self.checks_enter
    }

    /// The next picture tells whether an Enter was lost.
    pub fn check_enter(&mut self, around: &mut SenderContext<'_>) {
        self.checks_enter = true;
        around.capture_now();
    }

    pub fn forget_enter_check(&mut self) {
        self.checks_enter = false;
    }

    /// A fresh picture: the next step, if it may be made.
    pub fn step(
        &mut self,
        own: &OwnTexts,
        notice: &mut DeliveryNotice,
        around: &mut SenderContext<'_>,
    ) -> Step {
        let (Some(screen), Some(typing)) = (around.observed.screen(), &self.typing) else {
            return Step::Waits;
        };
        let may_be_idle = around.registry != RegistryWord::Busy;
        let is_quiet = around.may_be_idle() && !screen.busy;
        let may = screen.is_open() && is_quiet || crate::planted::is("typed-into-a-turn");
        let input = screen.input.clone();
        match (typing.stage, input) {
            (Stage::Look { .. }, _) if !may => self.wait_for_prompt(notice, around),
            (Stage::Look { .. }, Some(InputBox::Empty)) => self.paste(around),
            (Stage::Look { .. }, Some(InputBox::Text(text))) => {
                self.on_draft(&text, own, notice, around);
                Step::Waits
            }
            (Stage::Look { .. }, Some(InputBox::Shell(text))) => {
                self.on_shell_mode(&text, own, notice, around);
                Step::Waits
            }
            (Stage::Look { .. }, None) => {
                around.capture_soon(WAIT_TIME);
                Step::Waits
            }
            (Stage::Pasted, _) if crate::planted::is("typed-into-a-dialog") => {
                self.enter(notice, around)
            }
            (Stage::Pasted, Some(InputBox::Text(_))) if may || may_be_idle => {
                self.enter(notice, around)
            }
            // Somebody has just switched to it: there our text would run as a command.
            (Stage::Pasted, Some(InputBox::Shell(_))) => self.put_back(around),
            (Stage::Pasted, _) => self.wait_for_paste(around),
        }
    }

    /// A dialog is open or a turn has begun: typing now would answer it, or be queued.
    fn wait_for_prompt(
        &mut self,
        notice: &mut DeliveryNotice,
        around: &mut SenderContext<'_>,
    ) -> Step {
        if around.turns.is_running() {
            return self.put_back(around);
        }
        if self.waited(around.now) >= MENU_TIME && !around.observed.is_open() {
            let why = "a menu or a dialog is open in the terminal: `agent-relay attach` shows it";
            notice.tell(Some(why), around.out);
        }
        around.capture_soon(WAIT_TIME);
        Step::Waits
    }

    fn waited(&self, now: Now) -> Duration {
        self.typing.as_ref().map_or(Duration::ZERO, |typing| now.tick - typing.since)
    }

    fn paste(&mut self, around: &mut SenderContext<'_>) -> Step {
        if std::mem::take(&mut self.unseen) {
            // A slow program may show the paste before this one only now: then this goes behind it
            // and wipes it.
            around.out.press(&WIPE);
            around.capture_soon(STEP_TIME * 2);
        } else if let Some(typing) = &mut self.typing {
            (typing.stage, typing.since) = (Stage::Pasted, around.now.tick);
            around.out.push(Output::Paste(typing.item.text.clone()));
            around.capture_soon(STEP_TIME);
        }
        Step::Waits
    }

    /// Something stands in the box: ours is wiped, a person's is stashed.
    fn on_draft(
        &mut self,
        text: &str,
        own: &OwnTexts,
        notice: &mut DeliveryNotice,
        around: &mut SenderContext<'_>,
    ) {
        let is_hidden = || text.trim_start().starts_with(HIDDEN_PASTE);
        let is_ours = own.is_in_box(text) || (self.left_in_box || self.unseen) && is_hidden();
        let stashed = around.observed.screen().is_some_and(|screen| screen.stashed);
        let Some(Typing { stage: Stage::Look { wipes, stashing }, since, .. }) = &mut self.typing
        else {
            return;
        };
        if is_ours && *wipes < WIPES_MAX {
            *wipes += 1;
            around.out.press(&WIPE);
            return around.capture_soon(STEP_TIME * 2);
        }
        if !stashed && !*stashing {
            *stashing = true;
            // It comes back by itself after the next Enter.
            around.out.push(Output::Press(around.keys.stash));
            return around.capture_soon(STEP_TIME * 2);
        }
        // A second draft: stashing it would lose the first. The person is waited for.
        *stashing = stashed;
        if around.now.tick - *since >= PROOF_TIME {
            *since = around.now.tick;
            notice.tell(Some("somebody's draft stands in the input box"), around.out);
        }
        around.capture_soon(WAIT_TIME);
    }

    /// Somebody has left the box in its shell mode: what is submitted there would run as a command.
    /// An empty one is left; a command in it is somebody's, unless it is a text of ours.
    fn on_shell_mode(
        &mut self,
        text: &str,
        own: &OwnTexts,
        notice: &mut DeliveryNotice,
        around: &mut SenderContext<'_>,
    ) {
        if text.is_empty() && !crate::planted::is("stuck-in-shell-mode") {
            around.out.push(Output::Press(LEAVE_SHELL));
            return around.capture_soon(STEP_TIME * 2);
        }
        if own.is_in_box(text) || self.unseen && text.starts_with(HIDDEN_PASTE) {
            around.out.press(&WIPE);
            return around.capture_soon(STEP_TIME * 2);
        }
        let why = "somebody's shell command (`!`) stands in the input box: run it or delete it";
        notice.tell(Some(why), around.out);
        around.capture_soon(WAIT_TIME);
    }

    fn enter(&mut self, notice: &mut DeliveryNotice, around: &mut SenderContext<'_>) -> Step {
        let Some(typing) = self.typing.take() else { return Step::Waits };
        (self.left_in_box, self.unseen) = (false, false);
        around.out.push(Output::Press(around.keys.submit));
        notice.tell(None, around.out);
        let pause = if typing.item.is_command { STEP_TIME * 4 } else { ENTER_TIME };
        around.capture_soon(pause);
        Step::Entered(typing.item)
    }

    /// The paste is not seen: swallowed by something that was on the screen for a moment; or the
    /// program draws nothing at all.
    fn wait_for_paste(&mut self, around: &mut SenderContext<'_>) -> Step {
        let waited = self.waited(around.now);
        let drew = self
            .typing
            .as_ref()
            .is_some_and(|typing| self.drawn_at.is_some_and(|at| at > typing.since + DRAW_LAG));
        around.capture_soon(if waited < PASTE_TIME { STEP_TIME } else { WAIT_TIME });
        if waited < if drew { PASTE_TIME } else { FROZEN_TIME } {
            return Step::Waits;
        }
        self.put_back(around)
    }

    fn put_back(&mut self, around: &mut SenderContext<'_>) -> Step {
        let Some(typing) = self.typing.take() else { return Step::Waits };
        if typing.stage == Stage::Pasted {
            let holds_text = around.observed.input_text().is_some();
            self.left_in_box |= holds_text;
            self.unseen |= !holds_text;
        }
        around.capture_soon(WAIT_TIME);
        Step::PutBack(typing.item)
    }

    /// A prompt of ours that was given back is taken out of the box, so that nobody sends it by
    /// mistake.
    pub fn tidy_box(&mut self, own: &OwnTexts, around: &mut SenderContext<'_>) {
        let Some(text) = around.observed.input_text().filter(|_| around.observed.is_open()) else {
            return;
        };
        let is_ours = own.is_in_box(text) || text.trim_start().starts_with(HIDDEN_PASTE);
        let may = around.is_idle() && self.typing.is_none() && is_ours;
        if may && self.given_back_until.take_if(|until| *until > around.now.tick).is_some() {
            around.out.press(&WIPE_ALL);
            around.capture_soon(STEP_TIME * 2);
        }
    }
}
