//! Which conversation it is: session ids, `/clear`, `/resume`, and the transcript that belongs to
//! it.

use std::time::Duration;

use super::out::Out;
use crate::core::session::Output;
use crate::core::time::{Now, Tick};
use crate::provider::Start;
use crate::provider::claude::transcript::{self, Entry, LINE_BYTES_MAX};
use crate::provider::lines::Lines;

/// So long after a session was left, its registry file may still name it.
const LEFT_TIME: Duration = Duration::from_secs(2);

/// A session's id, as it may stand in a command line and a file name.
fn is_id(text: &str) -> bool {
    (8..=64).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !text.starts_with('-')
}

/// The conversation before this one.
#[derive(Debug)]
struct LeftSession {
    id: String,
    until: Tick,
}

/// A conversation that a hook has told of; the registry does not name it yet.
#[derive(Debug)]
struct Announced {
    id: String,
    is_resumed: bool,
}

/// Where the content of a transcript comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Content {
    /// All of it is said in this conversation.
    New,
    /// What the file holds already was said by others, or before. A file that is still to come is
    /// read from its beginning in any case.
    Old,
}

/// What else decides whether a transcript is followed.
#[derive(Debug, Clone, Copy)]
pub(super) struct TranscriptUse {
    pub is_open: bool,
    /// The record is being searched for messages of an earlier life.
    pub searches: bool,
}

/// The session has another id from now on.
#[derive(Debug, PartialEq)]
pub(super) struct Adopted {
    /// A hook has said that this conversation was there before.
    pub was_announced_as_resumed: bool,
}

#[derive(Debug)]
pub(super) struct Identity {
    session: String,
    left: Option<LeftSession>,
    announced: Option<Announced>,
    resumes: bool,
    transcript: Option<String>,
    lines: Lines,
}

impl Identity {
    pub fn new(start: &Start) -> Identity {
        Identity {
            session: start.session.clone(),
            left: None,
            announced: None,
            resumes: start.resumes,
            transcript: start.transcript.clone(),
            lines: Lines::up_to(LINE_BYTES_MAX),
        }
    }

    pub fn session(&self) -> &str {
        &self.session
    }

    /// A hook speaks for another session: one that was left, or one that a tool has started in this
    /// environment. `is_named`: the registry names it, or there is no registry.
    pub fn is_foreign(&self, session: &str, is_named: bool) -> bool {
        let was_left = self.left.as_ref().is_some_and(|left| left.id == session);
        !session.is_empty() && session != self.session && (!is_named || was_left)
    }

    /// Whether a hook that tells of a begun session tells of this one. A session that a tool has
    /// started can say so too, but is never cleared; of ours, the registry says it as well.
    pub fn is_ours(&mut self, session: &str, source: &str, is_named: bool) -> bool {
        let is_resumed = source == "resume";
        if is_resumed && self.left.as_ref().is_some_and(|left| left.id == session) {
            self.left = None; // a person has gone back to it
        }
        let is_ours = session == self.session || source == "clear" || is_named;
        if !is_ours && !(crate::planted::is("foreign-session") && !session.is_empty()) {
            self.announced = Some(Announced { id: session.to_string(), is_resumed });
            return false;
        }
        true
    }

    /// `/clear` gives the session another id in the same process, `/resume` one that was there
    /// before. `None`: it is the same one, or one that was just left.
    pub fn adopt(&mut self, now: Now, session: &str, is_open: bool) -> Option<Adopted> {
        let left = self.left.as_ref();
        let just_left = left.is_some_and(|left| left.id == session && now.tick < left.until);
        if session == self.session || just_left || !is_id(session) {
            return None;
        }
        let before = std::mem::replace(&mut self.session, session.to_string());
        if is_open {
            self.left = Some(LeftSession { id: before, until: now.tick + LEFT_TIME });
        }
        let announced = self.announced.take();
        let known = announced.is_some_and(|told| told.is_resumed && told.id == session);
        Some(Adopted { was_announced_as_resumed: known })
    }

    /// Follows a transcript from the start on.
    pub fn follow_first(&mut self, path: String, whole: bool, out: &mut Out) {
        out.push(Output::Follow { path: path.clone(), whole });
        self.transcript = Some(path);
    }

    /// Until a hook names the transcript of a new session, it is expected beside the old one.
    pub fn follow_beside(&mut self, content: Content, reading: TranscriptUse, out: &mut Out) {
        let path = self.transcript.as_deref().and_then(|path| path.rsplit_once('/'));
        if let Some(path) = path.map(|(folder, _)| format!("{folder}/{}.jsonl", self.session)) {
            self.follow(&path, content, reading, out);
        }
    }

    /// The transcript that a hook names, if that can be the one of the session.
    pub fn follow_named(
        &mut self,
        session: &str,
        path: &str,
        content: Content,
        reading: TranscriptUse,
        out: &mut Out,
    ) {
        let folder = path.strip_suffix(".jsonl").and_then(|path| path.strip_suffix(session));
        let fits = folder.is_some_and(|folder| folder.ends_with('/'));
        if fits && path.starts_with('/') && !path.contains("/../") {
            self.follow(path, content, reading, out);
        }
    }

    fn follow(&mut self, path: &str, content: Content, reading: TranscriptUse, out: &mut Out) {
        if self.transcript.as_deref() == Some(path) {
            return;
        }
        // The same file in another spelling, while it is being searched.
        let name = |path: &str| path.rsplit('/').next().map(str::to_string);
        if reading.searches && self.transcript.as_deref().and_then(name) == name(path) {
            return;
        }
        let whole = content == Content::New && (!self.resumes || reading.is_open);
        self.transcript = Some(path.to_string());
        self.rewind();
        out.push(Output::Follow { path: path.to_string(), whole });
    }

    /// What comes now is the beginning of a file.
    pub fn rewind(&mut self) {
        self.lines = Lines::up_to(LINE_BYTES_MAX);
    }

    /// The entries that these bytes complete.
    pub fn entries(&mut self, bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.lines.push(bytes, |line| entries.extend(transcript::read(line)));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::time::Wall;

    const FIRST: &str = "11111111-aaaa";
    const SECOND: &str = "22222222-bbbb";
    const OPEN: TranscriptUse = TranscriptUse { is_open: true, searches: false };

    fn at(seconds: u64) -> Now {
        Now { tick: Tick(seconds * 1_000_000), wall: Wall(0) }
    }

    fn identity() -> Identity {
        let transcript = Some(format!("/t/{FIRST}.jsonl"));
        Identity::new(&Start { session: FIRST.into(), transcript, ..Start::default() })
    }

    #[test]
    fn ids_are_checked() {
        for (text, want) in
            [(FIRST, true), ("short", false), ("-rf-12345", false), ("../../etc/x", false)]
        {
            assert_eq!(is_id(text), want, "{text}");
        }
    }

    #[test]
    fn a_session_that_was_left_is_not_adopted_again_by_a_late_registry() {
        let mut identity = identity();
        assert_eq!(identity.adopt(at(1), FIRST, true), None);
        assert!(identity.adopt(at(1), SECOND, true).is_some());
        assert!(identity.is_foreign(FIRST, true));
        assert_eq!(identity.adopt(at(2), FIRST, true), None, "the registry lags");
        assert!(identity.adopt(at(4), FIRST, true).is_some(), "a person went back");
    }

    #[test]
    fn a_hook_alone_makes_no_session_ours() {
        // session, source, the registry names it -> ours
        for (session, source, is_named, want) in [
            (FIRST, "startup", false, true),
            (SECOND, "startup", false, false),
            (SECOND, "startup", true, true),
            (SECOND, "clear", false, true),
            (SECOND, "resume", false, false),
        ] {
            assert_eq!(identity().is_ours(session, source, is_named), want, "{session} {source}");
        }
        let mut identity = identity();
        identity.is_ours(SECOND, "resume", false);
        let adopted = identity.adopt(at(1), SECOND, true);
        assert_eq!(adopted, Some(Adopted { was_announced_as_resumed: true }));
    }

    #[test]
    fn only_a_transcript_of_the_session_is_followed() {
        for (path, follows) in [
            (format!("/u/{SECOND}.jsonl"), true),
            (format!("/u/{FIRST}.jsonl"), false),
            (format!("u/{SECOND}.jsonl"), false),
            (format!("/u/../{SECOND}.jsonl"), false),
            ("/etc/passwd".into(), false),
            (String::new(), false),
        ] {
            let mut out = Out::default();
            identity().follow_named(SECOND, &path, Content::New, OPEN, &mut out);
            assert_eq!(out.take().len(), usize::from(follows), "{path}");
        }
    }
}
