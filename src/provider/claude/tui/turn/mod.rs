//! Whether a turn runs. Nobody tells all of it: hooks say when a turn begins and ends, but not
//! after Escape; the registry says busy or idle, a little late; the screen shows it while nothing
//! stands in the box; the transcript tells what was said, a tenth of a second later still.
//!
//! Here the sources are fused: [`table`] is the whole rule. A hook or the
//! registry begins a turn; a hook ends it at once, registry and screen together after a second.

mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use self::table::transition;
use crate::core::ids::BatchNumber;
use crate::core::limits::REPLY_BODY_BYTES_MAX;
use crate::core::session::TurnEnd;
use crate::core::time::{Now, Tick};
use crate::provider::claude::transcript::Answer;
use crate::provider::text::push_bounded;

pub(super) use self::table::{Event, Seen, Transition};

/// Registry and screen must agree on idle that long before they end a turn that no hook ended.
const IDLE_TIME: Duration = Duration::from_secs(1);
/// A turn that only a hook has told of is believed that much longer.
const HOOK_LAG: Duration = Duration::from_secs(2);
/// A registry that still says busy so long after the end of a turn means it.
const REGISTRY_LAG: Duration = Duration::from_millis(200);
/// Prompts whose turns have ended that are remembered, to know a late hook of theirs.
const PROMPTS_MAX: usize = 8;

#[derive(Debug)]
enum State {
    Idle {
        /// The registry says busy, perhaps only late.
        recheck_busy_at: Option<Tick>,
    },
    Running(Turn),
}

/// What the program was last told to do in a turn.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Activity {
    #[default]
    Running,
    /// It waits for somebody's answer.
    Waiting,
    Compacting,
    /// The API is asked again; which attempt.
    Retrying(String),
}

/// A turn that runs.
#[derive(Debug, Default)]
struct Turn {
    number: u64,
    batch: Option<BatchNumber>,
    /// Wall clock of its begin, ms.
    began: i64,
    /// Text of the last message, and of all, as far as the transcript has them.
    last: String,
    whole: String,
    /// The transcript has the last message of it.
    answered: bool,
    /// Somebody pressed Escape.
    interrupted: bool,
    /// It is a context command, not a conversation.
    local: bool,
    activity: Activity,
    /// First line of the text of ours that it took, squeezed; empty: none of ours.
    ours: String,
    /// The model has said or done something.
    spoke: bool,
    /// A prompt began it that is not ours.
    foreign: bool,
    /// Id of its prompt, as soon as a hook or the transcript has told it.
    prompt_id: String,
    /// Registry and screen agree on idle since then.
    idle_since: Option<Tick>,
}

impl Turn {
    /// Registry and screen agree on idle for so long.
    fn was_idle_for(&self, time: Duration, now: Now) -> bool {
        self.idle_since.is_some_and(|since| now.tick - since >= time)
    }
}

/// How the last turn ended; evidence for its texts may come after it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LastEnd {
    pub end: TurnEnd,
    pub text: String,
    /// Wall clock, ms.
    pub at: i64,
}

/// All about a turn that is over.
#[derive(Debug, PartialEq)]
pub(super) struct Finished {
    pub number: u64,
    pub batch: Option<BatchNumber>,
    pub end: TurnEnd,
    /// What was said; empty where that is no answer.
    pub text: String,
    /// It took a text of ours and said nothing: the box may hold the text again.
    pub may_give_back: bool,
}

/// Where a piece of an answer belongs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AnswerPlace {
    pub turn: u64,
    /// It is of the running turn.
    pub is_current: bool,
}

/// A text of ours that a turn has taken.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub batch: BatchNumber,
    /// First line, squeezed.
    pub first: String,
    /// When it was submitted, by the wall clock, ms.
    pub at: i64,
    /// It went into a running turn.
    pub joined: bool,
}

/// The turns of a session. The caller tells what each source says ([`Turns::observe`]), and
/// answers a [`Transition`] of `Begin` with [`Turns::begin`], one of `End` with [`Turns::finish`].
#[derive(Debug)]
pub(super) struct Turns {
    state: State,
    /// Turns that have begun.
    count: u64,
    last_end: Option<LastEnd>,
    /// Ids of the prompts whose turns have ended, newest last.
    over_prompts: VecDeque<String>,
    /// All text of a turn is its answer; else only the last message.
    captures_full: bool,
}

impl Turns {
    pub fn new(captures_full: bool) -> Turns {
        Turns {
            state: State::Idle { recheck_busy_at: None },
            count: 0,
            last_end: None,
            over_prompts: VecDeque::new(),
            captures_full,
        }
    }

    fn turn(&self) -> Option<&Turn> {
        match &self.state {
            State::Running(turn) => Some(turn),
            State::Idle { .. } => None,
        }
    }

    fn turn_mut(&mut self) -> Option<&mut Turn> {
        match &mut self.state {
            State::Running(turn) => Some(turn),
            State::Idle { .. } => None,
        }
    }

    /// Keeps in mind what the table says; a begin and an end are the caller's.
    pub fn observe(&mut self, now: Now, event: &Event) -> Transition {
        let next = transition(&self.state, self.last_end.as_ref(), event, now);
        match (&mut self.state, &next) {
            (State::Idle { recheck_busy_at }, Transition::RecheckBusyAt(at)) => {
                *recheck_busy_at = Some(*at);
            }
            (State::Idle { recheck_busy_at }, Transition::ForgetRecheck) => *recheck_busy_at = None,
            (State::Running(turn), Transition::WatchIdle(at)) => {
                turn.idle_since.get_or_insert(*at);
            }
            (State::Running(turn), Transition::RestartIdle(at) | Transition::CaptureAgain(at)) => {
                turn.idle_since = Some(*at);
            }
            (State::Running(turn), Transition::ForgetIdle | Transition::End(..)) => {
                turn.idle_since = None;
            }
            _ => {}
        }
        next
    }

    /// `local`: a compaction or a fresh start. A hook may be late or doubled: a registry that stays
    /// idle ends what never ran.
    pub fn begin(&mut self, now: Now, local: bool, registry_is_idle: bool) {
        self.count += 1;
        self.state = State::Running(Turn {
            number: self.count,
            began: now.wall.0,
            local,
            idle_since: registry_is_idle.then_some(now.tick + HOOK_LAG),
            ..Turn::default()
        });
    }

    /// The turn is over; `text` is what a hook says was said last. `None`: none ran.
    pub fn finish(&mut self, now: Now, end: TurnEnd, text: Option<&str>) -> Option<Finished> {
        let idle = State::Idle { recheck_busy_at: None };
        let turn = match std::mem::replace(&mut self.state, idle) {
            State::Running(turn) => turn,
            idle => {
                self.state = idle;
                return None;
            }
        };
        self.remember_over(&turn.prompt_id);
        let said_last = text.filter(|text| !text.trim().is_empty()).unwrap_or(&turn.last);
        let said = if self.captures_full {
            with_last(turn.whole, said_last)
        } else {
            said_last.to_string()
        };
        let is_answer = !turn.local && !matches!(end, TurnEnd::Failed(_));
        let text = if is_answer { said } else { String::new() };
        self.last_end = Some(LastEnd { end: end.clone(), text: text.clone(), at: now.wall.0 });
        Some(Finished {
            number: turn.number,
            batch: turn.batch,
            may_give_back: end != TurnEnd::Completed && !turn.ours.is_empty() && !turn.spoke,
            end,
            text,
        })
    }

    /// A turn ended that nobody saw begin: the proof of a delivery may still come for it.
    pub fn finish_unseen(&mut self, now: Now, end: TurnEnd, text: Option<&str>) {
        let text = text.unwrap_or_default().to_string();
        self.last_end = Some(LastEnd { end, text, at: now.wall.0 });
    }

    /// The registry says busy at the end of a turn. It may go on at once with what was queued; then
    /// the file says nothing new.
    pub fn recheck_busy(&mut self, now: Now) {
        if let State::Idle { recheck_busy_at } = &mut self.state {
            *recheck_busy_at = Some(now.tick + REGISTRY_LAG);
        }
    }

    // ---- what is known of the turns

    pub fn is_running(&self) -> bool {
        self.turn().is_some()
    }

    /// Wall clock of the running turn's begin, ms.
    pub fn began(&self) -> Option<i64> {
        self.turn().map(|turn| turn.began)
    }

    /// A prompt of somebody else began the running turn.
    pub fn is_foreign(&self) -> bool {
        self.turn().is_some_and(|turn| turn.foreign)
    }

    /// First line of our text in the running turn, squeezed; empty: it has none.
    pub fn ours(&self) -> &str {
        self.turn().map_or("", |turn| &turn.ours)
    }

    /// Number of the running turn, or of the last one.
    pub fn number(&self) -> u64 {
        self.turn().map_or(self.count, |turn| turn.number)
    }

    pub fn last_end(&self) -> Option<&LastEnd> {
        self.last_end.as_ref()
    }

    /// The last turn ended at that time (ms) or later.
    pub fn ended_since(&self, at: i64) -> bool {
        self.last_end.as_ref().is_some_and(|last| last.at >= at)
    }

    /// While a turn runs, the hook of that prompt comes late or twice.
    pub fn is_over(&self, prompt_id: &str) -> bool {
        self.turn().is_some_and(|turn| turn.prompt_id != prompt_id)
            && self.over_prompts.iter().any(|over| over == prompt_id)
    }

    // ---- what is learned of them

    pub fn remember_over(&mut self, prompt_id: &str) {
        if !prompt_id.is_empty() {
            self.over_prompts.push_back(prompt_id.to_string());
            if self.over_prompts.len() > PROMPTS_MAX {
                self.over_prompts.pop_front();
            }
        }
    }

    /// The prompt that has just begun the turn.
    pub fn set_prompt(&mut self, prompt_id: &str, is_ours: bool) {
        if let Some(turn) = self.turn_mut() {
            turn.foreign = !is_ours;
            turn.prompt_id = prompt_id.to_string();
        }
    }

    pub fn learn_prompt_id(&mut self, prompt_id: &str) {
        if let Some(turn) = self.turn_mut().filter(|turn| turn.prompt_id.is_empty()) {
            turn.prompt_id = prompt_id.to_string();
        }
    }

    /// The running turn has a text of ours. `begun`: it has just begun, by this proof.
    pub fn take_text(&mut self, text: Taken, begun: bool) {
        if let Some(turn) = self.turn_mut() {
            (turn.batch, turn.ours) = (Some(text.batch), text.first);
            if begun {
                turn.began = text.at;
            } else if !text.joined {
                turn.began = turn.began.min(text.at);
            }
        }
    }

    /// Somebody ends the turn. False: none runs, or somebody did so before.
    pub fn interrupt(&mut self) -> bool {
        let turn = self.turn_mut().filter(|turn| !turn.interrupted);
        turn.map(|turn| turn.interrupted = true).is_some()
    }

    /// The transcript tells of an interrupt, at that time (ms). It is written a little late; what
    /// began meanwhile is another turn: false.
    pub fn interrupted_at(&mut self, at: i64) -> bool {
        let turn = self.turn_mut().filter(|turn| at >= turn.began);
        turn.map(|turn| turn.interrupted = true).is_some()
    }

    /// Nothing came of an interrupt: it may be tried again.
    pub fn forget_interrupt(&mut self) {
        if let Some(turn) = self.turn_mut() {
            turn.interrupted = false;
        }
    }

    /// The turn does something else from now on. False: no turn runs, or it is nothing new.
    pub fn set_activity(&mut self, activity: Activity) -> bool {
        let turn = self.turn_mut().filter(|turn| turn.activity != activity);
        turn.map(|turn| turn.activity = activity).is_some()
    }

    pub fn is_retrying(&self) -> bool {
        self.turn().is_some_and(|turn| matches!(turn.activity, Activity::Retrying(_)))
    }

    /// The model has done something.
    pub fn spoke(&mut self) {
        if let Some(turn) = self.turn_mut() {
            turn.spoke = true;
        }
    }

    /// A piece of an answer. What was said before the turn began is the end of the one before it,
    /// written late.
    pub fn on_answer(&mut self, answer: &Answer) -> AnswerPlace {
        let count = self.count;
        let Some(turn) = self.turn_mut() else {
            return AnswerPlace { turn: count, is_current: false };
        };
        if answer.at != 0 && answer.at < turn.began {
            return AnswerPlace { turn: count.saturating_sub(1), is_current: false };
        }
        let text = answer.text();
        if !text.is_empty() && !answer.is_error {
            push_line(&mut turn.whole, &text);
            turn.last = text;
        }
        turn.spoke = true;
        turn.answered = answer.ends_turn() && !answer.is_error;
        AnswerPlace { turn: turn.number, is_current: true }
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        match &self.state {
            State::Idle { recheck_busy_at } => *recheck_busy_at,
            State::Running(turn) => turn.idle_since.map(|since| since + IDLE_TIME),
        }
    }
}

fn push_line(whole: &mut String, text: &str) {
    let between = if whole.is_empty() { "" } else { "\n" };
    push_bounded(whole, between, REPLY_BODY_BYTES_MAX);
    push_bounded(whole, text, REPLY_BODY_BYTES_MAX);
}

/// All that was said, with the last message even where the transcript does not have it yet.
fn with_last(mut whole: String, last: &str) -> String {
    if !last.trim().is_empty() && !whole.trim_end().ends_with(last.trim()) {
        push_line(&mut whole, last);
    }
    whole
}
