//! How a session starts and ends: the conversation opens, dialogs stand in the way, versions are
//! checked, and the last words of a program that refuses are explained.

use std::time::Duration;

use serde_json::{Value, json};

use super::out::Out;
use super::registry::Registry;
use crate::core::session::{DeliveryOutcome, MessageFingerprint, Opened, SessionEvent, StartFault};
use crate::core::time::{Now, Tick, sooner};
use crate::provider::Start;
use crate::provider::claude::refusal::refusal;
use crate::provider::claude::screen::{Dialog, ScreenState};
use crate::provider::claude::transcript::{Entry, Evidence};
use crate::provider::claude::{TESTED, too_old};

/// The session must be ready by then.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A dialog that stands in the way of the start is told after this.
const DIALOG_TIME: Duration = Duration::from_secs(4);
/// A dialog that only a person can answer is waited for so long at the start.
const PERSON_TIME: Duration = Duration::from_secs(600);
/// Lines of text at the top of the screen that hold the banner.
const BANNER_LINES: usize = 4;

/// How far the conversation is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Nobody has asked for it.
    New,
    /// It was asked for. A terminal of ours has until the deadline.
    Opening {
        deadline: Option<Tick>,
    },
    Open,
    /// It could not be opened, and that was told.
    Failed,
    /// The program has ended.
    Ended {
        was_open: bool,
    },
}

/// The record of an earlier life.
#[derive(Debug)]
enum Record {
    /// Nothing is looked for.
    None,
    Searching(Evidence),
    /// What it says of each message, in order.
    Searched(Vec<DeliveryOutcome>),
}

/// A dialog that stands in the way of the start.
#[derive(Debug, Clone, Copy, PartialEq)]
enum DialogWatch {
    None,
    Seen(Dialog, Tick),
    /// A person was told of one; nothing more is told.
    Told,
}

/// Whether the conversation has just opened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Opening {
    NotYet,
    Failed,
    /// `works`: a turn runs already.
    Done {
        works: bool,
    },
}

#[derive(Debug)]
pub(super) struct Startup {
    has_terminal: bool,
    start: Start,
    phase: Phase,
    record: Record,
    dialog: DialogWatch,
    /// Somebody has ended the session at its terminal: how.
    left: Option<String>,
}

impl Startup {
    pub fn new(start: &Start) -> Startup {
        Startup {
            has_terminal: start.terminal,
            start: start.clone(),
            phase: Phase::New,
            record: Record::None,
            dialog: DialogWatch::None,
            left: None,
        }
    }

    /// The conversation was opened, whether or not its program still runs.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Ended { was_open: true })
    }

    /// Nothing more can be done.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Failed | Phase::Ended { .. })
    }

    pub fn is_searching(&self) -> bool {
        matches!(self.record, Record::Searching(_))
    }

    /// The conversation is asked for, and what became of these messages of an earlier life.
    pub fn on_open(&mut self, now: Now, unsettled: &[MessageFingerprint], start: &Start) {
        if !unsettled.is_empty() && start.transcript.is_some() {
            self.record = Record::Searching(Evidence::new(unsettled));
        } else if !unsettled.is_empty() && start.has_no_record() {
            // Nothing of it was ever written down.
            self.record = Record::Searched(vec![DeliveryOutcome::Unseen; unsettled.len()]);
        }
        let deadline = self.has_terminal.then_some(now.tick + OPEN_TIMEOUT);
        if matches!(self.phase, Phase::New | Phase::Opening { .. }) {
            self.phase = Phase::Opening { deadline };
        }
    }

    /// An entry of the record. False: nothing is searched, the entry is news.
    pub fn search(&mut self, entry: &Entry) -> bool {
        if let Record::Searching(evidence) = &mut self.record {
            evidence.take(entry);
            return true;
        }
        false
    }

    /// The record was read to its end.
    pub fn on_caught_up(&mut self) {
        if let Record::Searching(evidence) = &self.record {
            self.record = Record::Searched(evidence.outcomes());
        }
    }

    /// Ready to be typed into: the registry says idle and the input box is on the screen. What is
    /// pasted before that loses its Enter.
    pub fn open_if_ready(
        &mut self,
        registry: Option<&Registry>,
        screen: Option<&ScreenState>,
        session: &str,
        model: Option<&str>,
        out: &mut Out,
    ) -> Opening {
        let is_asked = match self.phase {
            Phase::New => !self.has_terminal,
            Phase::Opening { .. } => true,
            Phase::Open | Phase::Failed | Phase::Ended { .. } => false,
        };
        let Some(registry) = registry.filter(|_| is_asked && !self.is_searching()) else {
            return Opening::NotYet;
        };
        // A prompt among its arguments, or something that it goes on with: it works already.
        let works = !registry.is_idle();
        let shown = !self.has_terminal || screen.is_some_and(ScreenState::is_open);
        if works && !screen.is_some_and(|screen| screen.busy) || !shown {
            return Opening::NotYet;
        }
        let version = registry.version();
        if let Some(reason) = too_old(version) {
            self.fail(reason, StartFault::Person, out);
            return Opening::Failed;
        }
        if !version.is_empty() && version != TESTED {
            out.info(format!(
                "Claude Code {version} runs; {TESTED} is the version that was tested"
            ));
        }
        self.phase = Phase::Open;
        self.tell_open(version, session, model, out);
        Opening::Done { works }
    }

    fn tell_open(&mut self, version: &str, session: &str, model: Option<&str>, out: &mut Out) {
        out.fact("start", Value::Null);
        let outcomes = match std::mem::replace(&mut self.record, Record::None) {
            Record::Searched(outcomes) => Some(outcomes),
            Record::None | Record::Searching(_) => None,
        };
        let how = self.start.how(outcomes);
        let evidence = "the session registry says idle and the input box is shown";
        out.emit(SessionEvent::Evidence(evidence.into()));
        out.emit(SessionEvent::Opened(Opened {
            session: session.into(),
            how,
            agent: format!("Claude Code {version}").trim().to_string(),
            model: model.map(str::to_string),
            has_evidence: true,
        }));
        let transport = if self.has_terminal {
            "terminal: attach to it with `agent-relay attach`"
        } else {
            "the terminal that it was started in"
        };
        out.fact("transport", json!(transport));
        let told = self.start.lost.iter().flat_map(|lost| lost.events());
        told.for_each(|event| out.emit(event));
    }

    /// It cannot be opened; told once.
    fn fail(&mut self, reason: String, fault: StartFault, out: &mut Out) {
        if !self.is_open() && !self.is_over() {
            self.phase = Phase::Failed;
            out.emit(SessionEvent::OpenFailed { reason, fault });
        }
    }

    /// A picture before the conversation is open: what the banner and a dialog say. Versions before
    /// the registry file say who they are in their banner only. True: it cannot be opened.
    pub fn on_screen(
        &mut self,
        now: Now,
        screen: &ScreenState,
        text: &str,
        has_registry: bool,
        out: &mut Out,
    ) -> bool {
        let banner = if has_registry { None } else { banner_version(text) };
        if let Some(reason) = banner.and_then(too_old) {
            self.fail(reason, StartFault::Person, out);
            return true;
        }
        self.dialog = match (self.dialog, screen.dialog) {
            (DialogWatch::Told, _) => DialogWatch::Told,
            (DialogWatch::Seen(known, since), Some(dialog)) if known == dialog => {
                DialogWatch::Seen(known, since)
            }
            (_, Some(dialog)) => DialogWatch::Seen(dialog, now.tick),
            (_, None) => DialogWatch::None,
        };
        false
    }

    /// Somebody has ended the session at its terminal on purpose.
    pub fn on_left(&mut self) {
        self.left = Some("it was ended at its terminal".into());
    }

    /// The program has ended; its last words may say why.
    pub fn on_closed(&mut self, last_words: &str, out: &mut Out) {
        if let Some((reason, fault)) = refusal(last_words) {
            self.fail(reason, fault, out);
        }
        self.phase = Phase::Ended { was_open: self.is_open() };
    }

    /// What is told last of a session that ended.
    pub fn tell_left(&mut self, out: &mut Out) {
        if let Some(reason) = self.left.take().filter(|_| self.is_open()) {
            out.emit(SessionEvent::EndedByUser { reason });
        }
    }

    pub fn wake(&mut self, now: Now, has_registry: bool, out: &mut Out) {
        if let DialogWatch::Seen(dialog, since) = self.dialog
            && now.tick - since >= DIALOG_TIME
        {
            self.on_dialog_stays(now, dialog, out);
        }
        if let Phase::Opening { deadline: Some(at) } = self.phase
            && at <= now.tick
        {
            let seen = if has_registry {
                "its session is registered, but no input box is shown"
            } else {
                "it has not registered a session"
            };
            let reason = format!("Claude Code did not get ready in time: {seen}");
            self.fail(reason, StartFault::Passing, out);
        }
    }

    fn on_dialog_stays(&mut self, now: Now, dialog: Dialog, out: &mut Out) {
        let told = format!("Claude Code does not get ready: {}", dialog.cure());
        if !matches!(dialog, Dialog::Other | Dialog::Held | Dialog::Permission) {
            self.dialog = DialogWatch::None;
            let fault = match dialog {
                Dialog::NoNetwork => StartFault::Passing,
                _ => StartFault::Person,
            };
            return self.fail(told, fault, out);
        }
        // Nobody can say what it asks: a person is waited for.
        self.dialog = DialogWatch::Told;
        if !self.is_open() && !self.is_over() {
            self.phase = Phase::Opening { deadline: Some(now.tick + PERSON_TIME) };
        }
        out.warn(told);
        out.fact("start", json!(dialog.cure()));
    }

    pub fn next_deadline(&self) -> Option<Tick> {
        let dialog = match self.dialog {
            DialogWatch::Seen(_, since) => Some(since + DIALOG_TIME),
            DialogWatch::None | DialogWatch::Told => None,
        };
        match self.phase {
            Phase::Opening { deadline } => sooner(dialog, deadline),
            _ => dialog,
        }
    }
}
/// The version in the banner at the top of the screen.
fn banner_version(text: &str) -> Option<&str> {
    const BANNER: &str = "Claude Code v";
    let head = text.lines().filter(|line| !line.trim().is_empty()).take(BANNER_LINES);
    head.filter_map(|line| line.split_once(BANNER))
        .find_map(|(_, rest)| rest.split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::session::{OpenMode, Output};
    use crate::provider::claude::screen::InputBox;

    fn at(seconds: u64) -> Now {
        Now { tick: Tick(seconds * 1_000_000), ..Now::default() }
    }

    fn asked(has_terminal: bool) -> Startup {
        let mut startup = Startup::new(&Start { terminal: has_terminal, ..Start::default() });
        startup.on_open(at(0), &[], &Start::default());
        startup
    }

    fn registry(status: &str, version: &str) -> Option<Registry> {
        Registry::read(&format!("{{\"status\":\"{status}\",\"version\":\"{version}\"}}"))
    }

    fn screen(dialog: Option<Dialog>, busy: bool) -> ScreenState {
        let input = dialog.is_none().then_some(InputBox::Empty);
        ScreenState { dialog, input, busy, ..ScreenState::default() }
    }

    #[test]
    fn registry_and_screen_together_open_a_session() {
        let (box_shown, working) = (screen(None, false), screen(None, true));
        let trusting = screen(Some(Dialog::Trust), false);
        let (idle, busy) = (registry("idle", TESTED), registry("busy", TESTED));
        let old = registry("idle", "1.0.0");
        let (done, works) = (Opening::Done { works: false }, Opening::Done { works: true });
        for (has_terminal, registry, screen, want) in [
            (true, &idle, Some(&box_shown), done),
            (true, &idle, Some(&trusting), Opening::NotYet),
            (true, &idle, None, Opening::NotYet),
            (true, &None, Some(&box_shown), Opening::NotYet),
            (true, &busy, Some(&box_shown), Opening::NotYet),
            (true, &busy, Some(&working), works),
            (true, &old, Some(&box_shown), Opening::Failed),
            (false, &idle, None, done),
            (false, &busy, None, Opening::NotYet),
        ] {
            let (mut startup, mut out) = (asked(has_terminal), Out::default());
            let found = startup.open_if_ready(registry.as_ref(), screen, "s", None, &mut out);
            assert_eq!(found, want, "{has_terminal} {registry:?} {screen:?}");
            assert_eq!(startup.is_open(), matches!(want, Opening::Done { .. }));
            let again = startup.open_if_ready(registry.as_ref(), screen, "s", None, &mut out);
            assert!(again == Opening::NotYet || found == Opening::NotYet, "told once");
        }
    }

    #[test]
    fn a_dialog_that_stays_fails_the_start_or_waits_for_a_person() {
        // dialog -> seconds until the start has failed
        for (dialog, want) in [
            (None, 60),
            (Some(Dialog::Trust), 4),
            (Some(Dialog::NoNetwork), 4),
            (Some(Dialog::Permission), 604),
            (Some(Dialog::Other), 604),
        ] {
            let (mut startup, mut out) = (asked(true), Out::default());
            startup.on_screen(at(0), &screen(dialog, false), "", false, &mut out);
            while let Some(deadline) = startup.next_deadline() {
                startup.wake(Now { tick: deadline, ..Now::default() }, false, &mut out);
                if startup.is_over() {
                    assert_eq!(deadline, at(want).tick, "{dialog:?}");
                    break;
                }
            }
            let failed =
                |output: &Output| matches!(output, Output::Event(SessionEvent::OpenFailed { .. }));
            assert_eq!(out.take().iter().filter(|output| failed(output)).count(), 1, "{dialog:?}");
        }
    }

    #[test]
    fn a_record_is_searched_to_its_end_before_anything_opens() {
        let (idle, shown) = (registry("idle", TESTED), screen(None, false));
        for (has_record, opens_at_once) in [(true, false), (false, true)] {
            let transcript = has_record.then(|| "/t/s.jsonl".to_string());
            let start = Start { terminal: true, transcript, ..Start::default() };
            let (mut startup, mut out) = (Startup::new(&start), Out::default());
            startup.on_open(at(0), &[MessageFingerprint::default()], &start);
            let mut open = |startup: &mut Startup| {
                startup.open_if_ready(idle.as_ref(), Some(&shown), "s", None, &mut out);
                startup.is_open()
            };
            assert_eq!(open(&mut startup), opens_at_once);
            startup.on_caught_up();
            assert!(open(&mut startup));
            let loaded = Output::Event(SessionEvent::Opened(Opened {
                session: "s".into(),
                how: OpenMode::Loaded(vec![DeliveryOutcome::Unseen]),
                agent: format!("Claude Code {TESTED}"),
                model: None,
                has_evidence: true,
            }));
            assert!(out.take().contains(&loaded));
        }
    }

    #[test]
    fn banners_tell_the_version() {
        let banner = "\n  ✻ Claude Code v1.2.3 \n";
        assert_eq!(banner_version(banner), Some("1.2.3"));
        assert_eq!(banner_version(&format!("a\nb\nc\nd\n{banner}")), None, "only at the top");
    }
}
