//! A server that listens at a port of its own choice, or not at all.

use agent_relay::core::session::{ServerAddress, StartFault};

use super::*;

fn at_port(window: bool) -> Played {
    let listens = Listens::Port { token_file: "/r/codex.token".into() };
    listening(ApprovalMode::Guarded, window, listens)
}

impl Played {
    /// Where it wants to connect to after this input.
    fn connects(&mut self, input: Input) -> Vec<ServerAddress> {
        let outputs = self.session.handle(self.now, input);
        let to = |output| match output {
            Output::Connect { to } => Some(to),
            _ => None,
        };
        outputs.into_iter().filter_map(to).collect()
    }
}

const BANNER: &[u8] = b"warning: x\n  listening on: ws://127.0.0.1:7001\n";

#[test]
fn nothing_is_connected_to_before_the_port_is_told() {
    let open = || Input::Verb(VerbNumber(1), Verb::Open { resume: None });
    let port = [ServerAddress::Port(7001)];
    let mut played = at_port(false);
    assert_eq!(played.connects(open()), []);
    assert_eq!(played.connects(Input::Errors(b"warning: x\n  listening on: ws://127".into())), []);
    assert_eq!(played.connects(Input::Errors(b".0.0.1:7001\n".into())), port);
    let later = Input::Errors(b"listening on: ws://127.0.0.1:7002\n".into());
    assert_eq!(played.connects(later), [], "the first one counts");
    assert_eq!(played.connects(Input::Disconnected("no".into())), []);
    played.now.tick = played.now.tick + Duration::from_millis(250);
    assert_eq!(played.connects(Input::Wake), port);
    // The banner may come before anything is asked of the session.
    let mut played = at_port(false);
    assert_eq!(played.connects(Input::Errors(BANNER.into())), []);
    assert_eq!(played.connects(open()), port);
    // A server at a socket has nothing to say about that.
    let mut played = machine(ApprovalMode::Guarded, false);
    assert_eq!(played.connects(open()), [ServerAddress::Socket("/s".into())]);
    assert_eq!(played.connects(Input::Errors(BANNER.into())), []);
}

#[test]
fn a_connection_that_breaks_is_made_anew_at_the_same_port() {
    let mut played = at_port(false);
    played.verb(Verb::Open { resume: None });
    played.input(Input::Errors(BANNER.into()));
    played.greet();
    played.reply("thread/start", json!({"thread": {"id": "t"}}));
    played.tells(&["opened"]);
    played.input(Input::Disconnected("gone".into()));
    played.now.tick = played.now.tick + Duration::from_millis(250);
    assert_eq!(played.connects(Input::Wake), [ServerAddress::Port(7001)]);
}

#[test]
fn a_port_that_takes_no_connection_is_tried_forty_times() {
    let mut played = at_port(false);
    played.verb(Verb::Open { resume: None });
    played.input(Input::Errors(BANNER.into()));
    played.told();
    for _ in 0..40 {
        played.input(Input::Disconnected("401 Unauthorized".into()));
        played.later(Duration::from_millis(250));
    }
    let told = played.told();
    assert_eq!(told.iter().filter(|line| *line == "> connect").count(), 40, "{told:?}");
    played.input(Input::Disconnected("401 Unauthorized".into()));
    played.tells(&["401 Unauthorized"]);
    played.later(Duration::from_secs(600));
    assert_eq!(played.told(), Vec::<String>::new(), "it is over");
}

#[test]
fn a_banner_that_never_comes_ends_the_start() {
    let mut played = at_port(false);
    played.verb(Verb::Open { resume: None });
    played.input(Input::Errors(vec![b'x'; 1 << 20]));
    played.input(Input::Errors(b"\nlistening on: ws://0.0.0.0:7\n".into()));
    assert_eq!(played.told(), Vec::<String>::new());
    played.later(Duration::from_secs(60));
    played.tells(&["does not say at which port it listens"]);
}

/// The fault that a start ends with when the server ends with these words.
fn fault(listens: Listens, is_asked: bool, words: &str) -> StartFault {
    let mut played = listening(ApprovalMode::Guarded, false, listens);
    if is_asked {
        played.verb(Verb::Open { resume: None });
    }
    played.input(Input::LastWords(words.into()));
    let outputs = played.session.handle(played.now, Input::Closed);
    let fault = |output: &Output| match output {
        Output::Event(SessionEvent::OpenFailed { fault, .. }) => Some(*fault),
        _ => None,
    };
    let faults: Vec<StartFault> = outputs.iter().filter_map(fault).collect();
    assert_eq!(faults.len(), 1, "{outputs:?}");
    faults[0]
}

/// A version without unix sockets ends before or after it is asked anything; each way of listening
/// is refused once, and what is no such refusal is not taken for one.
#[test]
fn a_refused_way_of_listening_decides_the_next_start() {
    let socket = |is_chosen| Listens::Socket { path: "/s".into(), is_chosen };
    let port = || Listens::Port { token_file: "/t".into() };
    let no_unix = "error: invalid value 'unix:///s' for '--listen <URL>': unsupported --listen URL `unix:///s`; expected `stdio://` or \
                   `ws://IP:PORT`\n\nFor more information, try '--help'.\n";
    let neither = "unsupported --listen URL `ws://127.0.0.1:0`; expected `stdio://`";
    let ancient = "error: unexpected argument '--listen' found";
    let taken = "Error: Address in use (os error 98)";
    for is_asked in [false, true] {
        for (listens, words, want) in [
            (socket(false), no_unix, StartFault::Listening),
            (socket(true), no_unix, StartFault::Person),
            (socket(false), ancient, StartFault::Person),
            (socket(false), taken, StartFault::Passing),
            (socket(false), "", StartFault::Passing),
            (port(), no_unix, StartFault::Person),
            (port(), neither, StartFault::Person),
            (port(), taken, StartFault::Passing),
        ] {
            assert_eq!(fault(listens.clone(), is_asked, words), want, "{listens:?} {words}");
        }
    }
}

/// The token is not among the words that everybody can read.
#[test]
fn the_window_gets_the_token_by_its_environment() {
    let mut played = at_port(true);
    played.verb(Verb::Open { resume: None });
    played.input(Input::Errors(BANNER.into()));
    played.greet();
    played.reply("thread/start", json!({"thread": {"id": "t"}}));
    played.tells(&[
        "opened",
        "> window resume --remote ws://127.0.0.1:7001 --remote-auth-token-env AGENT_RELAY_CODEX_TOKEN t",
    ]);
}
