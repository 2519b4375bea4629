//! What lines of a transcript say.

use super::*;

fn entry(text: &str) -> Option<Entry> {
    read(text.as_bytes()).pop()
}

#[test]
fn prompts_are_told_from_what_only_looks_like_one() {
    for (line, human) in [
        (
            r#"{"type":"user","uuid":"u","message":{"content":"hi"},"origin":{"kind":"human"},"promptSource":"typed"}"#,
            Some(true),
        ),
        (
            r#"{"type":"user","uuid":"u","message":{"content":"hi"},"promptSource":"sdk"}"#,
            Some(true),
        ),
        (
            r#"{"type":"user","isMeta":true,"message":{"content":[{"type":"text","text":"hi"}]},"origin":{"kind":"peer"},"promptSource":"system"}"#,
            Some(false),
        ),
        (
            r#"{"type":"user","message":{"content":"x"},"origin":{"kind":"task-notification"}}"#,
            Some(false),
        ),
        (r#"{"type":"user","isMeta":true,"message":{"content":"caveat"}}"#, None),
        (r#"{"type":"user","isSidechain":true,"message":{"content":"hi"}}"#, None),
        (r#"{"type":"user","isCompactSummary":true,"message":{"content":"summary"}}"#, None),
        (r#"{"type":"user","message":{"content":"<command-name>/compact</command-name>"}}"#, None),
        (
            r#"{"type":"user","uuid":7,"isMeta":null,"isSidechain":"no","timestamp":5,"message":{"content":"hi"},"promptSource":null}"#,
            Some(true),
        ),
        ("not json", None),
        ("{}", None),
    ] {
        let found = entry(line).map(|entry| match entry {
            Entry::Prompt(prompt) => prompt.human,
            other => panic!("{line}: {other:?}"),
        });
        assert_eq!(found, human, "{line}");
    }
    assert_eq!(
        entry(
            r#"{"type":"user","message":{"content":[{"type":"text","text":"[Request interrupted by user]"}]}}"#
        ),
        Some(Entry::Interrupted { at: 0 })
    );
}

#[test]
fn odd_numbers_lose_no_answer() {
    for usage in [
        r#"{"input_tokens":null,"output_tokens":7}"#,
        r#"{"input_tokens":"x","output_tokens":7.5}"#,
        r#"{"input_tokens":-1}"#,
        "{}",
    ] {
        let line = format!(
            r#"{{"type":"assistant","message":{{"id":null,"content":[{{"type":"text","text":"hi"}}],"usage":{usage}}}}}"#
        );
        assert!(
            matches!(entry(&line), Some(Entry::Answer(answer)) if answer.text() == "hi"),
            "{usage}"
        );
    }
}

#[test]
fn moments_are_read() {
    for (text, want) in [
        ("1970-01-01T00:00:00.000Z", Some(0)),
        ("2026-11-21T07:42:18.733Z", Some(1_795_246_938_733)),
        ("2024-02-29T23:59:59Z", Some(1_709_251_199_000)),
        ("2024-13-01T00:00:00Z", None),
        ("soon", None),
        ("", None),
    ] {
        assert_eq!(millis(text), want, "{text}");
    }
}

#[test]
fn pastes_are_unwrapped() {
    assert_eq!(
        unwrapped("\n\n<pasted_content id=\"f622\">\na\nb\n</pasted_content id=\"f622\">\n"),
        "a\nb"
    );
    assert_eq!(unwrapped(" plain "), "plain");
    assert_eq!(unwrapped("<pasted_content id="), "<pasted_content id=");
}
