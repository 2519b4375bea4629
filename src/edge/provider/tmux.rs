//! A terminal server of our own: `tmux -D` as our child, so that it ends with us, and a control
//! client on pipes that carries our requests and tells when something was drawn. Nothing is asked
//! while nothing is drawn.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::core::session::{Screen, TERMINAL_SESSION};
use crate::os;
use crate::provider::launch::LaunchError;
use crate::provider::text::{shell_quoted, tmux_quoted};

/// Size that the provider draws for while nobody is attached.
const COLUMNS: &str = "200";
const ROWS: &str = "50";
/// The server must accept by then.
const START_TIME: Duration = Duration::from_secs(5);
/// File of the last words of a server that does not start.
const ERRORS: &str = "tmux.err";
/// Bytes of one line of the control client; what is longer is only output of the pane.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Settings of the server. A pane whose program has ended stays until its last output is read.
/// While a person is attached, the program draws for the size of that terminal, so that its input
/// box is visible there; afterwards for the standard size again.
const CONF: &str = "\
set -g remain-on-exit on
set -g remain-on-exit-format ''
set -g status off
set -g default-size 200x50
set -g exit-empty off
set -g mouse off
set -g focus-events on
set -g escape-time 0
set -g history-limit 2000
set -g default-terminal xterm-256color
set -g destroy-unattached off
set -g update-environment ''
setw -g allow-rename off
set-hook -g client-attached 'if -F \"#{client_control_mode}\" \"\" \"set -w window-size latest\"'
set-hook -g client-detached 'if -F \"#{e|<=|:#{session_attached},1}\" \"resize-window -x 200 -y 50\"'
";

/// What the terminal server reports.
#[derive(Debug, PartialEq)]
pub enum TmuxEvent {
    /// The pane has drawn something.
    Drawn,
    /// Process of the pane.
    Pane(u32),
    /// What the pane shows; with the exit of the program in it, if it has ended.
    Screen(Screen, Option<i32>),
    /// The text of a paste is in the terminal.
    Pasted,
    /// A request failed.
    Failed(String),
}

/// What to start, and where.
#[allow(missing_docs)] // the names say it
pub struct Plan<'a> {
    /// Path of its socket, in a folder of ours.
    pub socket: &'a str,
    /// Folder for small files, closed to others.
    pub dir: &'a Path,
    pub cwd: &'a Path,
    /// Program and arguments.
    pub command: &'a [String],
    /// Search path of the program.
    pub path: &'a str,
}

/// The control client.
pub struct Tmux {
    socket: String,
    client: Child,
    input: ChildStdin,
    /// Where the client speaks.
    pub output: ChildStdout,
    tail: Vec<u8>,
    /// The reply that is being read: fields of its beginning, and its lines.
    block: Option<(String, Vec<String>)>,
    /// The head of a look, until its picture comes.
    head: Option<PaneHeader>,
    paste_file: PathBuf,
}

/// Path of the socket that versions of ours had which left the folder to tmux.
pub fn former_socket(name: &str) -> PathBuf {
    let base = std::env::var_os("TMUX_TMPDIR").filter(|base| !base.is_empty());
    let base = base.map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    base.join(format!("tmux-{}", rustix::process::getuid().as_raw())).join(name)
}

/// The server process, with the environment that the provider gets. Its socket has a path of ours:
/// the usual one depends on a variable and on a folder that others may have taken.
pub fn server(
    plan: &Plan,
    prepare: impl FnOnce(&mut Command),
) -> Result<(Child, Command), LaunchError> {
    let passing = |what: &str, path: &Path, error: io::Error| {
        LaunchError::passing(format!("cannot {what} {}: {error}", path.display()))
    };
    os::make_private_dir(plan.dir).map_err(|error| passing("make", plan.dir, error))?;
    let (conf, script) = (plan.dir.join("tmux.conf"), plan.dir.join("launch.sh"));
    let words: Vec<String> = plan.command.iter().map(|word| shell_quoted(word)).collect();
    // A file of its own: the client's message to the server is limited to 16 kB.
    let launch = format!("#!/bin/sh\nexec {}\n", words.join(" "));
    let errors = plan.dir.join(ERRORS);
    for (path, text) in [(&conf, CONF), (&script, launch.as_str()), (&errors, "")] {
        os::replace_private_file(path, text, false)
            .map_err(|error| passing("write", path, error))?;
    }
    let told = os::open_private(&errors, std::fs::OpenOptions::new().append(true))
        .map_err(|error| passing("write", &errors, error))?;
    let mut server = Command::new("tmux");
    server.args(["-u", "-D", "-S", plan.socket, "-f"]).arg(&conf).current_dir(plan.cwd);
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(told);
    prepare(&mut server);
    server.env_remove("TMUX").env_remove("TMUX_PANE");
    let child = server.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LaunchError::permanent(
            "tmux was not found; install it with: sudo apt-get install tmux (3.2 or newer)",
        ),
        _ => LaunchError::passing(format!("cannot start tmux: {error}")),
    })?;
    let mut client = Command::new("tmux");
    client.args([
        "-u",
        "-N",
        "-S",
        plan.socket,
        "-C",
        "new-session",
        "-s",
        TERMINAL_SESSION,
        "-x",
        COLUMNS,
        "-y",
        ROWS,
    ]);
    // The size stays until somebody looks on; set in the configuration, 3.3a dies of it.
    // The folder is the client's own: in an argument tmux would read signs of its own into it.
    client.current_dir(plan.cwd).args([
        "/bin/sh",
        &script.to_string_lossy(),
        ";",
        "set",
        "-w",
        "window-size",
        "manual",
    ]);
    client
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .env_remove("TMUX")
        .env_remove("TMUX_PANE");
    client.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
    // The one variable that a new session takes from its client, not from the server.
    if !plan.path.is_empty() {
        client.env("PATH", plan.path);
    }
    Ok((child, client))
}

impl Tmux {
    /// Connects to the server; it starts the program.
    pub fn connect(plan: &Plan, server: &mut Child, mut client: Command) -> Result<Tmux, String> {
        let until = Instant::now() + START_TIME;
        while UnixStream::connect(plan.socket).is_err() {
            if Instant::now() > until || server.try_wait().is_ok_and(|status| status.is_some()) {
                return Err(not_serving(plan));
            }
            std::thread::sleep(Duration::from_millis(2)); // a socket file cannot be waited for
        }
        let mut client = client.spawn().map_err(|error| format!("cannot start tmux: {error}"))?;
        let (Some(input), Some(output)) = (client.stdin.take(), client.stdout.take()) else {
            return Err("tmux has no pipes".into());
        };
        let paste_file = plan.dir.join("paste");
        let mut tmux = Tmux {
            socket: plan.socket.into(),
            client,
            input,
            output,
            tail: Vec::new(),
            block: None,
            head: None,
            paste_file,
        };
        tmux.ask_pane().map_err(|error| error.to_string())?;
        Ok(tmux)
    }

    /// Asks for the process of the pane.
    pub fn ask_pane(&mut self) -> io::Result<()> {
        self.send(&format!("display-message -p -t {TERMINAL_SESSION} '@pane #{{pane_pid}}'"))
    }

    /// The process of the client, a child of ours.
    pub fn client(&self) -> u32 {
        self.client.id()
    }

    /// Path of the server's socket.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// Sends one request. The pipe holds 64 kB and tmux reads it at once, so a full pipe means that
    /// tmux is stuck.
    fn send(&mut self, line: &str) -> io::Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes())
    }

    /// Asks for the picture; title and state come first.
    pub fn look(&mut self) -> io::Result<()> {
        let format = "@look #{pane_dead} #{pane_dead_status},#{pane_dead_signal} #{session_attached} #{pane_title}";
        self.send(&format!("display-message -p -t {TERMINAL_SESSION} '{format}'\ncapture-pane -p -e -t {TERMINAL_SESSION}"))
    }

    /// The picture of a program that has ended: any further child makes this server notice the end
    /// of the first (seen in 3.3a: without it the exit status may stay empty for ever).
    pub fn last_look(&mut self) -> io::Result<()> {
        self.send("run-shell true")?;
        self.look()
    }

    /// The same again, for a server that had not noticed the end yet: it waits for a moment first.
    pub fn last_look_again(&mut self) -> io::Result<()> {
        self.send("run-shell 'sleep 0.02'")?;
        self.look()
    }

    /// A bracketed paste: the program takes it as one text, whatever line breaks it has.
    pub fn paste(&mut self, text: &str) -> io::Result<()> {
        os::replace_private_file(&self.paste_file, text, false)?;
        let file = tmux_quoted(&self.paste_file.to_string_lossy());
        self.send(&format!(
            "load-buffer -b agent-relay {file}\npaste-buffer -p -d -b agent-relay -t {TERMINAL_SESSION}\ndisplay-message -p '@pasted'"
        ))
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str) -> io::Result<()> {
        // Somebody may be looking back in copy mode, which would take the key.
        self.send(&format!(
            "copy-mode -q -t {TERMINAL_SESSION}\nsend-keys -t {TERMINAL_SESSION} {key}"
        ))
    }

    /// Parses output of the control client.
    pub fn parse(&mut self, bytes: &[u8]) -> Vec<TmuxEvent> {
        let mut told = Vec::new();
        for byte in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.tail.len() + byte.len() <= LINE_BYTES_MAX {
                self.tail.extend_from_slice(byte);
            }
            if byte.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.tail);
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                self.on_line(&String::from_utf8_lossy(line), &mut told);
            }
        }
        told
    }

    fn on_line(&mut self, line: &str, told: &mut Vec<TmuxEvent>) {
        let line = line.trim_end_matches('\r');
        if let Some((fields, _)) = &self.block {
            // What a pane shows may look like the end of a block: the fields of its beginning tell.
            let ends = line.strip_prefix("%end ") == Some(fields.as_str());
            if !ends && line.strip_prefix("%error ") != Some(fields.as_str()) {
                if let Some((_, block)) = &mut self.block {
                    block.push(line.to_string());
                }
                return;
            }
            let (_, block) = self.block.take().unwrap_or_default();
            if ends {
                self.on_block(block, told)
            } else {
                self.head = None;
                told.push(TmuxEvent::Failed(block.join(" ")));
            }
        } else if let Some(fields) = line.strip_prefix("%begin ") {
            self.block = Some((fields.to_string(), Vec::new()));
        } else if line.starts_with("%output ") && !told.contains(&TmuxEvent::Drawn) {
            told.push(TmuxEvent::Drawn);
        }
    }

    fn on_block(&mut self, block: Vec<String>, told: &mut Vec<TmuxEvent>) {
        let first = block.first().map(String::as_str).unwrap_or_default();
        // Behind the head of a look comes its picture, whatever that shows.
        if let Some(PaneHeader { dead, code, attended, title }) = self.head.take() {
            told.push(TmuxEvent::Screen(
                Screen { text: block.join("\n"), title, attended, dead },
                code,
            ));
        } else if let Some(pid) = first.strip_prefix("@pane") {
            // Before the session is there, the answer is empty and no error.
            told.push(
                pid.trim()
                    .parse()
                    .map_or_else(|_| TmuxEvent::Failed("no pane yet".into()), TmuxEvent::Pane),
            );
        } else if let Some(rest) = first.strip_prefix("@look ") {
            let mut parts = rest.splitn(4, ' ');
            let mut next = || parts.next().unwrap_or_default();
            let (dead, exit, attached, title) = (next() == "1", next(), next(), next());
            let (status, signal) = exit.split_once(',').unwrap_or((exit, ""));
            let code = status
                .parse()
                .ok()
                .or_else(|| signal_number(signal).map(|n| 128 + n))
                .filter(|_| dead);
            let attended = attached.parse::<u32>().is_ok_and(|n| n > 1);
            self.head = Some(PaneHeader { dead, code, attended, title: title.to_string() });
        } else if first == "@pasted" {
            let _ = std::fs::remove_file(&self.paste_file);
            told.push(TmuxEvent::Pasted);
        }
    }
}

/// Why the server does not accept, in its own words if it has some.
fn not_serving(plan: &Plan) -> String {
    let words = std::fs::read_to_string(plan.dir.join(ERRORS)).unwrap_or_default();
    match words.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(words) => format!("tmux does not serve at {}: {words}", plan.socket),
        None => {
            format!("tmux does not serve at {}; it must be 3.2 or newer", plan.socket)
        }
    }
}

/// What stands before the picture of a pane.
struct PaneHeader {
    dead: bool,
    /// Exit code of the program, once it is dead.
    code: Option<i32>,
    /// Somebody looks at it.
    attended: bool,
    title: String,
}

/// tmux tells a signal by number or by name.
fn signal_number(text: &str) -> Option<i32> {
    let known = [
        ("hup", 1),
        ("int", 2),
        ("quit", 3),
        ("abrt", 6),
        ("kill", 9),
        ("segv", 11),
        ("pipe", 13),
        ("term", 15),
    ];
    let word = text.trim().to_ascii_lowercase();
    let name = word.strip_prefix("sig").unwrap_or(&word);
    known.iter().find(|(known, _)| *known == name).map(|(_, n)| *n).or_else(|| name.parse().ok())
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(&self.paste_file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_or_numbers() {
        for (text, want) in [("9", Some(9)), ("SIGTERM", Some(15)), ("term", Some(15)), ("", None)]
        {
            assert_eq!(signal_number(text), want, "{text}");
        }
    }
}
