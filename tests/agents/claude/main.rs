//! A program that behaves in its terminal as Claude Code does, as far as a runner can tell: input
//! box, registry file, hooks, transcript that is written a tenth of a second late, messaging
//! socket, dialogs. Its transcript is what its "model" saw.
//!
//! Words in a prompt: `SLOW` (0.6 s), `HANG` (until Escape or the end, once), `PERM` (asks for a
//! permission), else at once. FAKE_SOCKET: `refuse`, `hold`, `deny`, `drop`, `missing`. FAKE_SEED:
//! the same luck again, for each start another. FAKE_HOOKS: `lossy` (a seeded share of the hooks is
//! lost, late or doubled). FAKE_DIALOG: `trust` (a dialog at the start). FAKE_REFUSES: `once` (it
//! does not find the conversation that is there). FAKE_STATE: folder for
//! what it remembers and logs.

mod files;
mod socket;
mod terminal;
mod turns;

use socket::receipt;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_relay::core::rng::Rng;
use agent_relay::os;
use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};

const RULE: usize = 120;
/// What is written comes to the disk so much later.
const FLUSH: Duration = Duration::from_millis(100);

struct Turn {
    until: Option<Instant>,
    prompt: String,
    hook: Option<Child>,
}

struct Fake {
    config: PathBuf,
    state: PathBuf,
    session: String,
    plugins: Vec<PathBuf>,
    socket: Option<(PathBuf, UnixListener)>,
    draft: String,
    stash: Option<String>,
    dialog: Option<&'static str>,
    turn: Option<Turn>,
    queue: VecDeque<(String, Option<Value>)>,
    /// A text from the socket that a person will allow then.
    held: Option<(Instant, String, Value)>,
    /// Lines on their way to the disk.
    unwritten: Vec<String>,
    flush_at: Option<Instant>,
    seen: Vec<String>,
    rng: Rng,
    numbers: u64,
    prompt_id: String,
}

fn ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis() as i64).unwrap_or(0)
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

impl Fake {
    /// As its command line and its environment want it.
    fn new(words: &[String]) -> Fake {
        let values = |name: &str| {
            words
                .iter()
                .zip(words.iter().skip(1))
                .filter(|(word, _)| *word == name)
                .map(|(_, value)| value.clone())
                .collect::<Vec<_>>()
        };
        let value = |name: &str| values(name).pop();
        let config = PathBuf::from(env("CLAUDE_CONFIG_DIR"));
        let state = PathBuf::from(env("FAKE_STATE"));
        std::fs::create_dir_all(&state).expect("state");
        let session = value("--resume").or_else(|| value("--session-id")).expect("a session");
        let missing = env("FAKE_SOCKET") == "missing";
        let socket = value("--messaging-socket-path")
            .filter(|_| !missing)
            .map(PathBuf::from)
            .and_then(|path| {
                let _ = std::fs::remove_file(&path);
                let listener = UnixListener::bind(&path).ok()?;
                listener.set_nonblocking(true).ok()?;
                Some((path, listener))
            });
        let rng = luck(&state);
        Fake {
            config,
            state,
            session,
            plugins: values("--plugin-dir").into_iter().map(PathBuf::from).collect(),
            socket,
            draft: String::new(),
            stash: None,
            dialog: (env("FAKE_DIALOG") == "trust").then_some("trust"),
            turn: None,
            queue: VecDeque::new(),
            unwritten: Vec::new(),
            flush_at: None,
            held: None,
            seen: Vec::new(),
            rng,
            numbers: 0,
            prompt_id: String::new(),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let turn = self.turn.as_ref();
        let hook = turn
            .filter(|turn| turn.hook.is_some())
            .map(|_| Instant::now() + Duration::from_millis(20));
        let next = [
            self.held.as_ref().map(|(at, ..)| *at),
            self.flush_at,
            turn.and_then(|turn| turn.until),
            hook,
        ]
        .into_iter()
        .flatten()
        .min();
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

/// Now, in the program's spelling.
fn stamp() -> String {
    let output =
        Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"]).output().expect("date");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// Each start has luck of its own.
fn luck(state: &std::path::Path) -> Rng {
    let starts = std::fs::read_to_string(state.join("starts"))
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0)
        + 1;
    let _ = std::fs::write(state.join("starts"), starts.to_string());
    let seed = match env("FAKE_SEED").parse::<u64>() {
        Ok(seed) => seed.wrapping_mul(1000).wrapping_add(starts),
        Err(_) => u64::from_le_bytes(os::random_bytes::<8>()),
    };
    Rng::new(seed)
}

/// What was typed; nothing at the end.
fn read_typed(stdin: &std::io::Stdin) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = [0u8; 65536];
    // A paste comes in pieces; its end mark tells.
    loop {
        match rustix::io::read(stdin, &mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(size) => bytes.extend_from_slice(&piece[..size]),
        }
        let open = bytes.windows(6).filter(|six| six == b"\x1b[200~").count();
        if open == bytes.windows(6).filter(|six| six == b"\x1b[201~").count() {
            return Some(bytes);
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut fake = Fake::new(&words);
    if let Some(why) = fake.refusal(words.iter().any(|word| word == "--resume")) {
        eprintln!("{why}");
        std::process::exit(1);
    }
    let stdin = std::io::stdin();
    if let Ok(mut terminal) = tcgetattr(&stdin) {
        terminal.make_raw();
        let _ = tcsetattr(&stdin, OptionalActions::Now, &terminal);
    }
    print!("\u{1b}[?1049h\u{1b}[?2004h");
    if fake.dialog.is_none() {
        let source = if words.iter().any(|word| word == "--resume") { "resume" } else { "startup" };
        fake.hook("SessionStart", json!({"source": source}), false);
        fake.registry("idle");
    }
    fake.draw();
    loop {
        let wait = fake.deadline();
        let (typed, mailed) = {
            let mut fds = vec![PollFd::new(&stdin, PollFlags::IN)];
            fds.extend(
                fake.socket.as_ref().map(|(_, listener)| PollFd::new(listener, PollFlags::IN)),
            );
            os::wait(&mut fds, wait);
            (os::is_ready(&fds[0]), fds.get(1).is_some_and(os::is_ready))
        };
        if typed {
            let Some(bytes) = read_typed(&stdin) else { return };
            fake.keys(&bytes);
        }
        if mailed {
            fake.mail();
        }
        fake.turn_step();
        if let Some((_, text, line)) = fake.held.take_if(|(at, ..)| *at <= Instant::now()) {
            receipt(&line, "delivered", "");
            fake.begin(text, Some(line), true);
        }
        if fake.flush_at.is_some_and(|at| at <= Instant::now()) {
            fake.flush();
        }
        fake.draw();
    }
}
