//! Banners of real servers, and of those that nobody should believe.

use super::*;

const REAL: &str = "\
WARNING: proceeding, even though we could not create PATH aliases\n\
\x1b[2m2026-11-29T07:05:59.836715Z\x1b[0m \x1b[31mERROR\x1b[0m \x1b[2mcodex_app_server\x1b[0m no bubblewrap\n\
codex app-server (WebSockets)\n  listening on: ws://127.0.0.1:35481\n  \
readyz: http://127.0.0.1:35481/readyz\n  note: binds localhost only\n";

fn read(text: &[u8]) -> Option<u16> {
    let mut banner = Banner::default();
    banner.read(text);
    banner.port()
}

#[test]
fn the_port_is_read_wherever_the_text_is_cut() {
    assert_eq!(read(REAL.as_bytes()), Some(35481));
    for at in 0..REAL.len() {
        let mut banner = Banner::default();
        let (head, tail) = REAL.as_bytes().split_at(at);
        let told = [banner.read(head), banner.read(tail)];
        assert_eq!((banner.port(), told[0] != told[1]), (Some(35481), true), "cut at {at}");
    }
    let mut banner = Banner::default();
    let told = REAL.bytes().filter(|byte| banner.read(&[*byte])).count();
    assert_eq!((banner.port(), told), (Some(35481), 1), "told once");
}

#[test]
fn only_a_line_that_tells_a_port_of_this_machine_counts() {
    let long = format!("listening on: ws://127.0.0.1:7{}\n", " ".repeat(1 << 20));
    let late = format!("{}\n  listening on: ws://127.0.0.1:7\n", "x".repeat(1 << 20));
    let cases: [(&[u8], Option<u16>); 22] = [
        (b"", None),
        (b"\n\n\r\n", None),
        (b"listening on: ws://127.0.0.1:7", None), // it may go on with another digit
        (b"listening on: ws://127.0.0.1:7\n", Some(7)),
        (b"\x1b[1m  listening on:\x1b[0m ws://127.0.0.1:7/\r\n", Some(7)),
        (b"listening on: ws://127.0.0.1:0\n", None),
        (b"listening on: ws://127.0.0.1:65536\n", None),
        (b"listening on: ws://127.0.0.1:-7\n", None),
        (b"listening on: ws://127.0.0.1:+7\n", None),
        (b"listening on: ws://127.0.0.1:\n", None),
        (b"listening on: ws://127.0.0.1\n", None),
        (b"listening on: ws://0.0.0.0:7\n", None),
        (b"listening on: ws://10.0.0.1:7\n", None),
        (b"listening on: ws://localhost:7\n", None),
        (b"listening on: http://127.0.0.1:7\n", None),
        (b"listening on: ws://127.0.0.1:7@10.0.0.1:8\n", None),
        (b"log: listening on: ws://127.0.0.1:7\n", None),
        (b"readyz: http://127.0.0.1:7/readyz\n", None),
        (b"\xff\xfe listening on: ws://127.0.0.1:7\n", None),
        // The first one counts.
        (b"listening on: ws://127.0.0.1:7\nlistening on: ws://127.0.0.1:8\n", Some(7)),
        (long.as_bytes(), None),
        (late.as_bytes(), Some(7)),
    ];
    for (text, want) in cases {
        let shown = String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned();
        assert_eq!(read(text), want, "{shown:?}");
        // However it comes, it is the same.
        let mut banner = Banner::default();
        for piece in text.chunks(999) {
            banner.read(piece);
        }
        assert_eq!(banner.port(), want, "{shown:?} in pieces");
    }
}

#[test]
fn what_comes_later_changes_nothing() {
    let mut banner = Banner::default();
    assert!(banner.read(b"listening on: ws://127.0.0.1:7\n"));
    assert!(!banner.read(b"listening on: ws://127.0.0.1:8\n"));
    assert_eq!(banner.port(), Some(7));
}

#[test]
fn a_refused_way_of_listening_is_told_from_other_ends() {
    let clap = |text: &str| {
        format!(
            "error: invalid value 'x' for '--listen <URL>': {text}\n\nFor more information, try '--help'.\n"
        )
    };
    for (words, want) in [
        (
            clap(
                "unsupported --listen URL `unix:///r/c.sock`; expected `stdio://` or `ws://IP:PORT`",
            ),
            Some(Refusal::UnixSocket),
        ),
        (
            clap("unsupported --listen URL `unix:///r/c.sock`; expected `stdio` or `stdio://`"),
            Some(Refusal::Listening),
        ),
        ("error: unexpected argument '--listen' found\n".into(), Some(Refusal::Listening)),
        ("Error: Address in use (os error 98)\n".into(), None),
        ("error: invalid value 'x' for '--sandbox'\n".into(), None),
        (REAL.into(), None),
        (String::new(), None),
    ] {
        assert_eq!(refusal(&words), want, "{words}");
    }
}
