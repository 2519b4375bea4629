//! What the program says when it refuses to start, and what helps against it.

use crate::core::session::StartFault;

/// What its last words hold, the sentence for people, and what kind of cause that is.
const REFUSALS: [(&str, &str, StartFault); 6] = [
    (
        "cannot be used with root/sudo",
        "bypass mode is not possible as root: run as another user, choose --approval guarded, or set IS_SANDBOX=1 in a container",
        StartFault::Person,
    ),
    // Its record is empty, cut or only bookkeeping, or was removed meanwhile.
    (
        "No conversation found with session ID",
        "it finds no conversation in its record",
        StartFault::Conversation,
    ),
    // The same record makes it refuse to begin again under that id.
    ("is already in use", "the id of the conversation is in use", StartFault::Conversation),
    (
        "Unable to connect to Anthropic services",
        "it cannot reach its vendor: check the network, proxies and ANTHROPIC_BASE_URL",
        StartFault::Passing,
    ),
    ("Invalid session ID", "it does not take the id of the conversation", StartFault::Conversation),
    (
        "unknown option",
        "it does not know an option; its version may be too old (`claude --version`)",
        StartFault::Person,
    ),
];

/// The sentence that helps, for last words that tell a refused start.
pub fn refusal(last_words: &str) -> Option<(String, StartFault)> {
    let (_, cure, fault) = REFUSALS.iter().find(|(mark, ..)| last_words.contains(mark))?;
    Some((format!("Claude Code refused to start: {cure}"), *fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_explained() {
        for (words, want) in [
            ("error: unknown option '--x'", Some(StartFault::Person)),
            (
                "No conversation found with session ID: 11111111-1111-4111-8111-111111111111",
                Some(StartFault::Conversation),
            ),
            (
                "Error: Session ID 11111111-1111-4111-8111-111111111111 is already in use.",
                Some(StartFault::Conversation),
            ),
            ("Error: Invalid session ID. Must be a valid UUID.", Some(StartFault::Conversation)),
            ("Unable to connect to Anthropic services", Some(StartFault::Passing)),
            (
                "--dangerously-skip-permissions cannot be used with root/sudo privileges",
                Some(StartFault::Person),
            ),
            ("bye", None),
        ] {
            assert_eq!(refusal(words).map(|(_, fault)| fault), want, "{words}");
        }
    }
}
