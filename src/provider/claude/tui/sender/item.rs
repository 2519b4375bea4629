//! Texts of ours: how they are put into words that the program reads as text, and how they are
//! known again in the box and in the transcript.

use std::collections::VecDeque;

use crate::core::ids::VerbNumber;
use crate::core::session::Delivery;
use crate::provider::claude::sanitize::{escape_mentions, escape_prefix};
use crate::provider::claude::transcript::squeezed;

/// How texts of ours begin, squeezed.
const MESSAGE_MARK: &str = "[relaymessage#";
const RUNNER_MARK: &str = "[agent-relay]";
/// Texts that are remembered as ours.
const OWN_MAX: usize = 64;
/// Characters of a text without a header that are remembered.
const MARK_CHARS: usize = 4000;
/// Characters of a first line that are compared.
const FIRST_CHARS: usize = 120;
/// Characters of a box that are compared with the beginning of a text.
const BEGIN_CHARS: usize = 40;

/// A text that waits, or is on its way.
#[derive(Debug, Clone, Default)]
pub(super) struct Item {
    pub delivery: Option<Delivery>,
    pub text: String,
    /// A person says it.
    pub person: bool,
    /// Who is told that it arrived, where it is no delivery.
    pub verb: Option<VerbNumber>,
    /// A command of the program, not a text for the model.
    pub is_command: bool,
    /// Times that it was sent and did not arrive.
    pub tries: u32,
}

impl Item {
    pub fn of_delivery(delivery: Delivery) -> Item {
        let text = escape_mentions(&typeable(&delivery.text));
        Item { text, person: delivery.person, delivery: Some(delivery), ..Item::default() }
    }

    /// A text of the runner, and who is told that it arrived.
    pub fn of_text(verb: VerbNumber, text: &str, person: bool) -> Item {
        Item { text: escape_prefix(&typeable(text)), person, verb: Some(verb), ..Item::default() }
    }

    pub fn of_command(text: &str) -> Item {
        Item { text: typeable(text), person: true, is_command: true, ..Item::default() }
    }

    pub fn is_urgent(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.urgent)
    }

    /// Its first line with anything in it, squeezed.
    pub fn first(&self) -> String {
        first_line(&self.text)
    }

    /// What it is known by in the box and in the transcript: its header, or where it has none, all
    /// of it.
    pub fn mark(&self) -> String {
        let first = self.first();
        if is_marked(&first) {
            first
        } else {
            squeezed(&self.text).chars().take(MARK_CHARS).collect()
        }
    }

    /// Numbers of the messages in it.
    pub fn numbers(&self) -> Vec<u64> {
        let heads = self.text.lines().filter_map(|line| line.strip_prefix("[relay message #"));
        let all: Vec<u64> = heads.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
        if !all.is_empty() {
            return all;
        }
        // A word to go on names them within its line.
        let named = self.text.split('#').skip(1);
        let digits = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
        named.filter_map(digits).collect()
    }
}

/// The first line with anything in it, squeezed.
pub(in super::super) fn first_line(text: &str) -> String {
    let line = text.lines().map(squeezed).find(|line| !line.is_empty());
    line.unwrap_or_default().chars().take(FIRST_CHARS).collect()
}

fn is_marked(squeezed: &str) -> bool {
    [MESSAGE_MARK, RUNNER_MARK].iter().any(|mark| squeezed.starts_with(mark))
}

/// Without control characters: one of them could end the paste and press keys.
fn typeable(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let harmless = |c: &char| {
        matches!(c, '\n' | '\t') || !c.is_control() || crate::planted::is("escaped-paste")
    };
    let mut text: String = text.chars().filter(harmless).collect();
    if text.ends_with('\\') {
        // With Enter it would be a line break.
        text.push(' ');
    }
    text
}

/// Marks of what we put in, newest last, so that it is not taken for a person's words.
#[derive(Debug, Default)]
pub(super) struct OwnTexts {
    marks: VecDeque<String>,
}

impl OwnTexts {
    pub fn remember(&mut self, mark: String) {
        if !self.marks.contains(&mark) {
            self.marks.push_back(mark);
            if self.marks.len() > OWN_MAX {
                self.marks.pop_front();
            }
        }
    }

    /// What stands in the box, perhaps only its beginning, is ours.
    pub fn is_in_box(&self, text: &str) -> bool {
        let text = squeezed(text);
        let start: String = text.chars().take(BEGIN_CHARS).collect();
        // Without a mark it could be the beginning of anybody's draft: there the whole text must be
        // the same.
        let marked = is_marked(&start);
        let begins = |own: &str| marked && (own.starts_with(&start) || start.starts_with(own));
        self.marks.iter().any(|own| !own.is_empty() && (begins(own) || *own == text))
    }

    /// A prompt of the transcript, squeezed, is ours. What has no mark of ours is so only as a
    /// whole: a person may begin with the same words.
    pub fn is_prompt(&self, text: &str) -> bool {
        self.marks.iter().any(|own| {
            let is_begin = || is_marked(own) || own.chars().count() >= MARK_CHARS;
            text == *own || (text.starts_with(own.as_str()) && is_begin())
        })
    }
}

/// The box holds the beginning of a text with this first line (squeezed), or hides a paste.
pub(super) fn begins_with(box_text: &str, first: &str) -> bool {
    let text = squeezed(box_text);
    let start: String = text.chars().take(BEGIN_CHARS).collect();
    // The lines of a text stand in the box one behind the other; without a header a longer one is
    // somebody's own.
    let holds = first.starts_with(&start) || is_marked(first) && start.starts_with(first);
    text.starts_with("[Pastedtext") || holds && !text.is_empty()
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
            Item::of_delivery(Delivery {
                text: "[relay message #1 from user]\nx".into(),
                ..Default::default()
            })
            .first(),
            "[relaymessage#1fromuser]"
        );
    }

    #[test]
    fn a_draft_that_begins_like_a_text_of_ours_is_not_ours() {
        let mut own = OwnTexts::default();
        own.remember(Item::of_text(VerbNumber(1), "look at this", true).mark());
        own.remember(squeezed("[relay message #1 from user]"));
        // in the box -> ours
        for (text, want) in [
            ("look at this", true),
            ("look at", false),
            ("look at this file", false),
            ("[relay message #1 from user]", true),
            ("[relay message #1", true),
            ("[relay message #2", false),
            ("", false),
        ] {
            assert_eq!(own.is_in_box(text), want, "{text}");
        }
        assert!(own.is_prompt(&squeezed("[relay message #1 from user]\nwhatever")));
        assert!(!own.is_prompt(&squeezed("look at this file")));
    }

    #[test]
    fn a_text_that_was_given_back_is_known_with_all_its_lines() {
        let header = "[relaymessage#1fromuser]";
        for (text, first, want) in [
            ("[relay message #1 from user]\ndo it", header, true),
            ("[relay message #1", header, true),
            ("[Pasted text #1 +2 lines]", header, true),
            ("[relay message #2 from user]\ndo it", header, false),
            ("hang", "hang", true),
            ("hang on", "hang", false),
            ("", "hang", false),
        ] {
            assert_eq!(begins_with(text, first), want, "{text}");
        }
    }

    #[test]
    fn messages_are_counted_by_header_or_by_name() {
        for (text, want) in [
            ("[relay message #1 from a]\nsee #9\n[relay message #2 from b]\n", vec![1, 2]),
            ("[agent-relay] go on with #3, #4.", vec![3, 4]),
            ("nothing", vec![]),
        ] {
            let item = Item { text: text.into(), ..Item::default() };
            assert_eq!(item.numbers(), want, "{text}");
        }
    }
}
