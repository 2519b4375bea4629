//! What can be seen of the program from outside: its registry file and its screen.
//!
//! A picture of the screen is asked for, never pushed: [`Observed::capture_soon`] bounds how often.

use std::time::Duration;

use super::out::Out;
use super::registry::{Registry, Status};
use crate::core::screen::plain;
use crate::core::session::{Output, Screen};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::claude::screen::{InputBox, ScreenState};

/// Pause between pictures of a screen that keeps changing.
const CAPTURE_PAUSE: Duration = Duration::from_millis(400);
/// The same while the session starts, or where only pictures tell of a turn.
const CAPTURE_PAUSE_SHORT: Duration = Duration::from_millis(20);
/// The same while something is typed: the program draws a paste in one go, and its Enter waits for
/// this picture.
const CAPTURE_PAUSE_TYPING: Duration = Duration::from_millis(2);
/// A picture comes within a millisecond; one that was not there by then is asked for again.
const CAPTURE_TIMEOUT: Duration = Duration::from_secs(5);
/// Difference that is allowed between the program's clock and ours, ms.
const CLOCK_SLACK_MS: i64 = 2000;
/// Longest detail of a status that is reported, in characters.
const DETAIL_CHARS_MAX: usize = 200;

/// What the registry or the screen says of a turn.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Observation {
    Idle {
        /// When it became idle, by the program's clock, ms.
        since: i64,
    },
    Busy {
        /// The same of the word that it works.
        since: i64,
    },
    /// A turn waits for somebody's answer.
    Waiting { since: i64, detail: String },
    /// A dialog of the program's own: nothing can be typed, but no turn need run.
    Dialog { detail: String },
    /// The API is asked again.
    Retrying { attempt: String, detail: String },
}

/// What the registry says of the session's own turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RegistryWord {
    /// None runs since then, by the program's clock, ms.
    Idle { since: i64 },
    /// One runs that is not over as far as is known.
    Busy,
    /// It is missing, older than the end of the last turn, or busy with subagents: the screen
    /// decides.
    Nothing,
}

/// How the registry has changed.
#[derive(Debug, PartialEq)]
pub(super) struct RegistryChange {
    /// It waited for a key before, and now it does not.
    pub was_answered: bool,
}

/// The last picture that was asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Capture {
    Never,
    Asked(Now),
    /// It came, or could not be made; when it was asked for.
    Settled(Now),
}

impl Capture {
    fn asked_at(self) -> Option<Now> {
        match self {
            Capture::Never => None,
            Capture::Asked(at) | Capture::Settled(at) => Some(at),
        }
    }
}

#[derive(Debug)]
pub(super) struct Observed {
    /// Wall clock of the program's begin, ms.
    started_at: i64,
    registry: Option<Registry>,
    screen: Option<ScreenState>,
    /// When that picture was asked for, by the wall clock, ms.
    screen_at: i64,
    screen_text: String,
    /// There is a screen that can be asked for.
    captures: bool,
    capture: Capture,
    capture_at: Option<Tick>,
}

impl Observed {
    pub fn new(has_terminal: bool) -> Observed {
        Observed {
            started_at: 0,
            registry: None,
            screen: None,
            screen_at: 0,
            screen_text: String::new(),
            captures: has_terminal,
            capture: Capture::Never,
            capture_at: None,
        }
    }

    pub fn on_started(&mut self, now: Now) {
        self.started_at = now.wall.0;
    }

    // ---- registry

    pub fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    /// The file has another content; `None`: it is gone. Half a file changes nothing.
    pub fn on_registry(&mut self, text: Option<&str>) -> Option<RegistryChange> {
        let Some(text) = text else {
            self.registry = None;
            return None;
        };
        let found = Registry::read(text)?;
        let waits = found.is_waiting();
        let before = self.registry.replace(found);
        let was_waiting = before.as_ref().is_some_and(Registry::is_waiting);
        Some(RegistryChange { was_answered: was_waiting && !waits })
    }

    /// False for a file that an earlier process with the same pid has left.
    pub fn is_registry_current(&self) -> bool {
        self.registry.as_ref().is_some_and(|registry| {
            let since = registry.status_since();
            since == 0 || since >= self.started_at - CLOCK_SLACK_MS
        })
    }

    /// What the registry says; `None`: nothing.
    pub fn registry_observation(&self) -> Option<Observation> {
        let registry = self.registry.as_ref()?;
        let detail = || registry.waiting_for().to_string();
        match registry.status() {
            Status::Idle | Status::Shell => {
                Some(Observation::Idle { since: registry.status_since() })
            }
            Status::Busy => Some(Observation::Busy { since: registry.status_since() }),
            Status::Waiting if registry.waiting_for().contains("dialog") => {
                Some(Observation::Dialog { detail: detail() })
            }
            Status::Waiting => {
                let since = registry.status_since();
                Some(Observation::Waiting { since, detail: detail() })
            }
            Status::Unknown => None,
        }
    }

    /// What the registry says of the session's own turn, where none ran at `quiet_at` (ms).
    /// `explained`: subagents work in the background, which keep it busy although the box is open.
    pub fn registry_word(&self, quiet_at: i64, explained: bool) -> RegistryWord {
        let Some(registry) = &self.registry else { return RegistryWord::Nothing };
        let since = registry.status_since();
        let is_news =
            since > quiet_at && !explained || crate::planted::is("deaf-behind-a-subagent");
        match registry.status() {
            Status::Idle | Status::Shell => RegistryWord::Idle { since },
            Status::Busy | Status::Waiting if is_news => RegistryWord::Busy,
            Status::Busy | Status::Waiting | Status::Unknown => RegistryWord::Nothing,
        }
    }

    /// The registry says that no shell works in the background.
    pub fn has_no_shells(&self) -> bool {
        self.registry.as_ref().is_some_and(|registry| registry.status() == Status::Idle)
    }

    // ---- screen

    pub fn screen(&self) -> Option<&ScreenState> {
        self.screen.as_ref()
    }

    /// The last picture as text.
    pub fn screen_text(&self) -> &str {
        &self.screen_text
    }

    pub fn input(&self) -> Option<&InputBox> {
        self.screen.as_ref().and_then(|screen| screen.input.as_ref())
    }

    /// What stands in the input box, if it is not empty.
    pub fn input_text(&self) -> Option<&str> {
        match self.input() {
            Some(InputBox::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Text may be put into the box.
    pub fn is_open(&self) -> bool {
        self.screen.as_ref().is_some_and(ScreenState::is_open)
    }

    /// An empty box is shown and nothing that works.
    pub fn screen_is_quiet(&self) -> bool {
        let is_quiet = |screen: &ScreenState| {
            screen.is_open() && !screen.busy && screen.input == Some(InputBox::Empty)
        };
        self.screen.as_ref().is_some_and(is_quiet)
    }

    /// When the last picture was asked for, by the wall clock, ms.
    pub fn screen_at(&self) -> i64 {
        self.screen_at
    }

    pub fn screen_is_busy(&self) -> bool {
        self.screen.as_ref().is_some_and(|screen| screen.busy)
    }

    /// A picture: what it shows, and what is left of it when the program is dead.
    pub fn on_screen(&mut self, screen: &Screen) -> Option<ScreenState> {
        self.on_capture_settled();
        self.screen_at = self.capture.asked_at().map_or(0, |asked| asked.wall.0);
        self.screen_text = plain(&screen.text);
        (!screen.dead).then(|| ScreenState::read(screen))
    }

    pub fn keep_screen(&mut self, screen: ScreenState) {
        self.screen = Some(screen);
    }

    // ---- pictures

    pub fn stop_captures(&mut self) {
        self.captures = false;
    }

    pub fn capture_soon(&mut self, now: Now, pause: Duration) {
        if self.captures {
            self.capture_at = sooner(self.capture_at, Some(now.tick + pause));
        }
    }

    /// Asks for a picture; again after a while, so that a lost answer does not stop them for ever.
    pub fn capture_now(&mut self, now: Now, out: &mut Out) {
        let pending =
            matches!(self.capture, Capture::Asked(at) if now.tick - at.tick < CAPTURE_TIMEOUT);
        if self.captures && !pending {
            self.capture = Capture::Asked(now);
            out.push(Output::CaptureScreen);
        }
    }

    /// The terminal has drawn something.
    pub fn on_drawn(&mut self, now: Now, hurry: Hurry) {
        let pause = match (hurry, self.capture.asked_at()) {
            (Hurry::Typing, _) => CAPTURE_PAUSE_TYPING,
            (Hurry::Watching, _) => CAPTURE_PAUSE_SHORT,
            (Hurry::None, Some(at)) => CAPTURE_PAUSE.saturating_sub(now.tick - at.tick),
            (Hurry::None, None) => Duration::ZERO,
        };
        self.capture_soon(now, pause);
    }

    /// The picture came, or could not be made.
    pub fn on_capture_settled(&mut self) {
        if let Capture::Asked(at) = self.capture {
            self.capture = Capture::Settled(at);
        }
    }

    pub fn wake(&mut self, now: Now, out: &mut Out) {
        if self.capture_at.take_if(|at| *at <= now.tick).is_some() {
            self.capture_now(now, out);
        }
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        self.capture_at
    }
}

/// What waits for the next picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hurry {
    /// Nothing does.
    None,
    /// The session starts, or a turn shows in pictures only.
    Watching,
    /// A text was pasted: its Enter.
    Typing,
}

/// A status line that says that the API is asked again. The seconds count down; only another
/// attempt is news.
pub(super) fn retrying(screen: &ScreenState) -> Option<Observation> {
    let line = screen.retrying.as_ref().filter(|_| screen.busy)?;
    let detail: String = line.chars().take(DETAIL_CHARS_MAX).collect();
    let attempt = detail.split("attempt").nth(1).unwrap_or_default().trim().to_string();
    Some(Observation::Retrying { attempt, detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::time::Wall;

    fn at(ms: u64) -> Now {
        Now { tick: Tick(ms * 1000), wall: Wall(1_000_000 + ms as i64) }
    }

    #[test]
    fn a_registry_is_told_apart() {
        let idle = |since| Some(Observation::Idle { since });
        let waiting = |detail: &str| Some(Observation::Waiting { since: 0, detail: detail.into() });
        let dialog = |detail: &str| Some(Observation::Dialog { detail: detail.into() });
        for (record, want) in [
            (r#"{"status":"idle","statusUpdatedAt":5}"#, idle(5)),
            (r#"{"status":"shell"}"#, idle(0)),
            (r#"{"status":"busy","statusUpdatedAt":7}"#, Some(Observation::Busy { since: 7 })),
            (r#"{"status":"waiting","waitingFor":"permission"}"#, waiting("permission")),
            (r#"{"status":"waiting","waitingFor":"dialog open"}"#, dialog("dialog open")),
            ("{}", None),
        ] {
            let mut observed = Observed::new(true);
            observed.on_registry(Some(record));
            assert_eq!(observed.registry_observation(), want, "{record}");
        }
    }

    #[test]
    fn an_answer_is_seen_when_the_program_waits_no_more() {
        let mut observed = Observed::new(true);
        for (text, want) in [
            (Some(r#"{"status":"waiting"}"#), Some(false)),
            (Some("half"), None),
            (Some(r#"{"status":"busy"}"#), Some(true)),
            (Some(r#"{"status":"busy"}"#), Some(false)),
            (None, None),
        ] {
            let change = observed.on_registry(text).map(|change| change.was_answered);
            assert_eq!(change, want, "{text:?}");
        }
    }

    #[test]
    fn one_picture_is_asked_for_at_a_time_and_a_lost_one_again() {
        let (mut observed, mut out) = (Observed::new(true), Out::default());
        let mut asked = |observed: &mut Observed, ms| {
            observed.capture_now(at(ms), &mut out);
            out.take().len()
        };
        assert_eq!(asked(&mut observed, 0), 1);
        assert_eq!(asked(&mut observed, 10), 0);
        assert_eq!(asked(&mut observed, 5000), 1);
        observed.on_capture_settled();
        assert_eq!(asked(&mut observed, 5010), 1);
        observed.stop_captures();
        observed.on_capture_settled();
        assert_eq!(asked(&mut observed, 6000), 0);
    }

    #[test]
    fn a_screen_that_keeps_changing_is_looked_at_at_intervals() {
        let (mut observed, mut out) = (Observed::new(true), Out::default());
        observed.on_drawn(at(0), Hurry::None);
        assert_eq!(observed.next_deadline(), Some(at(0).tick));
        observed.wake(at(0), &mut out);
        observed.on_capture_settled();
        observed.on_drawn(at(100), Hurry::None);
        assert_eq!(observed.next_deadline(), Some(at(400).tick));
        observed.on_drawn(at(100), Hurry::Watching);
        assert_eq!(observed.next_deadline(), Some(at(120).tick));
        observed.on_drawn(at(101), Hurry::Typing);
        assert_eq!(observed.next_deadline(), Some(at(103).tick));
    }

    #[test]
    fn only_another_attempt_is_news() {
        let line = "Overloaded · retrying in 4 s · attempt 2/10".to_string();
        let mut screen =
            ScreenState { busy: true, retrying: Some(line.clone()), ..Default::default() };
        let told = Observation::Retrying { attempt: "2/10".into(), detail: line };
        assert_eq!(retrying(&screen), Some(told));
        screen.busy = false;
        assert_eq!(retrying(&screen), None);
    }
}
