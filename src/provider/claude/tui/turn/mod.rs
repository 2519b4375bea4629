//! Whether a turn runs. Nobody tells all of it: hooks say when a turn begins and ends, but not
//! after Escape; the registry says busy or idle, a little late; the screen shows it while nothing
//! stands in the box; the transcript tells what was said, a tenth of a second later still.
//!
//! Here the sources are fused: [`table`] is the whole rule. Every word is judged by the time at
//! which it was so, never by when it was read. A hook or the registry begins a turn; a hook ends it
//! at once, registry and screen together as soon as its last words had time to come.

mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use self::table::transition;
use super::observed::RegistryWord;
use crate::core::ids::BatchNumber;
use crate::core::limits::REPLY_BODY_BYTES_MAX;
use crate::core::session::TurnEnd;
use crate::core::time::{Now, Tick, sooner};
use crate::provider::claude::transcript::Answer;
use crate::provider::text::push_bounded;

pub(super) use self::table::{Event, Seen, Transition};

/// A turn that is over by registry or screen gets so long for its last words: hook and transcript
/// may still be on their way.
const IDLE_TIME: Duration = Duration::from_secs(1);
/// A turn that one source alone has told of is given up when none has told of it for so long.
const LOST_TIME: Duration = Duration::from_secs(60);
/// Prompts whose turns have ended that are remembered, to know a late hook of theirs.
const PROMPTS_MAX: usize = 8;

#[derive(Debug)]
enum State {
    Idle {
        /// A picture has shown an idle session since the last turn.
        quiet_screen: bool,
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
    /// Wall clock of its begin, ms, as whoever told it says.
    began: i64,
    /// Text of the last message, and of all, as far as the transcript has them.
    last: String,
    whole: String,
    /// The transcript has the last message of it.
    answered: bool,
    /// Somebody pressed Escape then, by the wall clock, ms.
    interrupted_at: Option<i64>,
    /// The transcript has told its end, with that time, ms.
    over_at: Option<i64>,
    /// A picture has shown that it works.
    seen_busy: bool,
    /// Since the last look something has told of it.
    signed: bool,
    /// It is a context command, not a conversation.
    local: bool,
    activity: Activity,
    /// First line of the text of ours that it took, squeezed; empty: none of ours.
    ours: String,
    /// The model has said or done something.
    spoke: bool,
    /// A prompt began it that is not ours.
    foreign: bool,
    /// First line of the prompt that began it, squeezed, as far as a hook has told it.
    prompt: String,
    /// Id of its prompt, as soon as a hook or the transcript has told it.
    prompt_id: String,
    /// Registry and screen agree on idle since then.
    idle_since: Option<Tick>,
    /// Wall clock of that idle, ms, where the registry has told it.
    idle_at: Option<i64>,
    /// One source alone has told of it, and it is looked for since then.
    lost_since: Option<Tick>,
}

impl Turn {
    /// Registry and screen agree on idle for so long.
    fn was_idle_for(&self, time: Duration, now: Now) -> bool {
        self.idle_since.is_some_and(|since| now.tick - since >= time)
    }

    /// What the table says of the running turn.
    fn keep(&mut self, event: &Event, next: &Transition) {
        match next {
            Transition::WatchIdle(at) => {
                self.idle_since.get_or_insert(*at);
                if let Event::RegistryIdle { since } = event {
                    self.idle_at = Some(*since);
                }
            }
            Transition::RestartIdle(at) | Transition::CaptureAgain(at) => {
                self.idle_since = Some(*at);
            }
            Transition::ForgetIdle => (self.idle_since, self.lost_since) = (None, None),
            Transition::SeenBusy => {
                (self.seen_busy, self.signed, self.idle_since) = (true, true, None);
            }
            Transition::LookAfter(at) => self.over_at = Some(*at),
            Transition::StillThere(at) => (self.lost_since, self.signed) = (Some(*at), false),
            _ => {}
        }
    }

    fn is_lost(&self, now: Now) -> bool {
        self.lost_since.is_some_and(|since| now.tick - since >= LOST_TIME)
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
    /// The latest time, by the wall clock, ms, of which it is known that no turn ran.
    quiet_at: i64,
    /// Registry and screen alone have told the end of a turn: the transcript may still tell what
    /// was said in it, with times about that end.
    is_unwritten: bool,
    /// Ids of the prompts whose turns have ended, newest last.
    over_prompts: VecDeque<String>,
    /// All text of a turn is its answer; else only the last message.
    captures_full: bool,
}

impl Turns {
    pub fn new(captures_full: bool) -> Turns {
        Turns {
            state: State::Idle { quiet_screen: true },
            count: 0,
            last_end: None,
            quiet_at: 0,
            is_unwritten: false,
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
        let next = transition(self, event, now);
        match (&mut self.state, &next) {
            (State::Idle { .. }, Transition::Quiet(at)) => self.was_quiet(*at),
            (State::Idle { quiet_screen }, Transition::QuietScreen(_)) => *quiet_screen = true,
            (State::Running(turn), next) => turn.keep(event, next),
            (State::Idle { .. }, _) => {}
        }
        if let Transition::End(at, ..) = &next {
            self.note_end(event, *at);
        }
        next
    }

    /// An end is told: nothing ran then. A picture may be older than the next turn, which is not
    /// drawn yet; so of it only the begin of its own turn is certain.
    fn note_end(&mut self, event: &Event, at: i64) {
        let is_exact = !matches!(event, Event::ScreenIdle { .. } | Event::Wake(_));
        let is_told = |turn: &Turn| turn.answered || turn.local || turn.over_at.is_some();
        self.is_unwritten = !is_exact
            && !self.turn().is_none_or(is_told)
            && !crate::planted::is("phantom-after-interrupt");
        let certain = self.turn().map(|turn| turn.over_at.or(turn.idle_at).unwrap_or(turn.began));
        self.was_quiet(if is_exact { at } else { certain.unwrap_or(0) });
    }

    fn was_quiet(&mut self, at: i64) {
        self.quiet_at = self.quiet_at.max(at);
    }

    /// A turn begins, as somebody has told with that time. `local`: a compaction or a fresh start.
    pub fn begin(&mut self, now: Now, at: i64, local: bool, registry: RegistryWord) {
        self.count += 1;
        self.is_unwritten = false;
        let is_idle = matches!(registry, RegistryWord::Idle { since } if since >= at);
        self.state = State::Running(Turn {
            number: self.count,
            began: at,
            local,
            idle_since: is_idle.then_some(now.tick),
            // A hook may be late or doubled, and the prompt may have come to nothing.
            lost_since: (registry != RegistryWord::Busy).then_some(now.tick),
            ..Turn::default()
        });
    }

    /// The turn was over then; `text` is what a hook says was said last. `None`: none ran.
    pub fn finish(&mut self, at: i64, end: TurnEnd, text: Option<&str>) -> Option<Finished> {
        let idle = State::Idle { quiet_screen: false };
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
        self.last_end = Some(LastEnd { end: end.clone(), text: text.clone(), at });
        Some(Finished {
            number: turn.number,
            batch: turn.batch,
            may_give_back: end != TurnEnd::Completed && !turn.ours.is_empty() && !turn.spoke,
            end,
            text,
        })
    }

    /// A turn ended that nobody saw begin: the proof of a delivery may still come for it.
    pub fn finish_unseen(&mut self, at: i64, end: TurnEnd, text: Option<&str>) {
        let text = text.unwrap_or_default().to_string();
        self.last_end = Some(LastEnd { end, text, at });
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

    /// First line of the prompt of the running turn, squeezed; empty: not known. The box holds it
    /// again if the turn is taken back.
    pub fn prompt(&self) -> &str {
        self.turn().map_or("", |turn| if turn.ours.is_empty() { &turn.prompt } else { &turn.ours })
    }

    /// Number of the running turn, or of the last one.
    pub fn number(&self) -> u64 {
        self.turn().map_or(self.count, |turn| turn.number)
    }

    pub fn last_end(&self) -> Option<&LastEnd> {
        self.last_end.as_ref()
    }

    /// The latest time, by the wall clock, ms, of which it is known that no turn ran.
    pub fn quiet_at(&self) -> i64 {
        self.quiet_at
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

    /// The turn of that prompt is over.
    pub fn was_over(&self, prompt_id: &str) -> bool {
        self.over_prompts.iter().any(|over| over == prompt_id)
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
    pub fn set_prompt(&mut self, prompt_id: &str, first: String, is_ours: bool) {
        if let Some(turn) = self.turn_mut() {
            (turn.foreign, turn.prompt) = (!is_ours, first);
            turn.prompt_id = prompt_id.to_string();
        }
    }

    pub fn learn_prompt_id(&mut self, prompt_id: &str) {
        if let Some(turn) = self.turn_mut().filter(|turn| turn.prompt_id.is_empty()) {
            turn.prompt_id = prompt_id.to_string();
        }
    }

    /// The running turn has a text of ours: it began when that was submitted, but for what is known
    /// of the time before.
    pub fn take_text(&mut self, text: Taken) {
        let quiet_at = self.quiet_at;
        if let Some(turn) = self.turn_mut() {
            (turn.batch, turn.ours) = (Some(text.batch), text.first);
            if !text.joined {
                turn.began = turn.began.min(text.at.max(quiet_at));
            }
        }
    }

    /// Somebody ends the turn. False: none runs, or somebody did so before.
    pub fn interrupt(&mut self, now: Now) -> bool {
        let turn = self.turn_mut().filter(|turn| turn.interrupted_at.is_none());
        turn.map(|turn| turn.interrupted_at = Some(now.wall.0)).is_some()
    }

    /// The transcript tells of an interrupt, at that time (ms). It is written a little late; what
    /// began meanwhile is another turn: false.
    pub fn interrupted_at(&mut self, at: i64) -> bool {
        self.is_unwritten = false;
        let turn = self.turn_mut().filter(|turn| at >= turn.began);
        turn.map(|turn| (turn.interrupted_at, turn.over_at) = (Some(at), Some(at))).is_some()
    }

    /// Nothing came of an interrupt: it may be tried again.
    pub fn forget_interrupt(&mut self) {
        if let Some(turn) = self.turn_mut() {
            turn.interrupted_at = None;
        }
    }

    /// The turn does something else from now on. False: no turn runs, or it is nothing new.
    pub fn set_activity(&mut self, activity: Activity) -> bool {
        let turn = self.turn_mut().filter(|turn| turn.activity != activity);
        turn.map(|turn| turn.activity = activity).is_some()
    }

    /// No picture has shown the running turn yet.
    pub fn is_unseen(&self) -> bool {
        self.turn().is_some_and(|turn| !turn.seen_busy)
    }

    pub fn is_retrying(&self) -> bool {
        self.turn().is_some_and(|turn| matches!(turn.activity, Activity::Retrying(_)))
    }

    /// The model has done something.
    pub fn spoke(&mut self) {
        if let Some(turn) = self.turn_mut() {
            (turn.spoke, turn.signed) = (true, true);
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
        (turn.spoke, turn.signed) = (true, true);
        turn.answered = answer.ends_turn() && !answer.is_error;
        AnswerPlace { turn: turn.number, is_current: true }
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        match &self.state {
            State::Idle { .. } => None,
            State::Running(turn) => {
                let over = turn.idle_since.map(|since| since + IDLE_TIME);
                sooner(over, turn.lost_since.map(|since| since + LOST_TIME))
            }
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
