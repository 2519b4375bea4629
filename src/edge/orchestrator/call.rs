//! A program that is run to its end: what it may print and how long it may take are bounded, and
//! nothing of it stays.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::os;

/// Bytes of standard error that are kept: the first ones tell what is wrong.
const ERROR_BYTES_MAX: usize = 4 << 10;

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// Exit code; of a signal 128 and its number.
    pub code: i32,
    /// The last bytes of its output.
    pub output: Vec<u8>,
    /// The first bytes of its complaint, without white space around it.
    pub complaint: String,
}

impl Called {
    /// The output of a call that went well; else its complaint, or `<what> failed with exit code
    /// <n>` where it said nothing.
    pub fn output_of(self, what: &str) -> Result<Vec<u8>, String> {
        match (self.code, self.complaint.as_str()) {
            (0, _) => Ok(self.output),
            (code, "") => Err(format!("{what} failed with exit code {code}")),
            (_, complaint) => Err(complaint.into()),
        }
    }
}

/// Runs a program. Of its output the last `bytes_max` bytes are kept; after `limit` it is killed
/// with all that it has started, and the error says so.
pub fn run(mut command: Command, limit: Duration, bytes_max: usize) -> Result<Called, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    os::prepare_child(&mut command, true);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{name} was not found"),
        _ => format!("cannot start {name}: {error}"),
    })?;
    let until = Instant::now() + limit;
    let read = read_all(&mut child, until, bytes_max);
    let in_time = read.is_some() && ends_until(&child, until);
    os::kill_group(child.id(), Signal::KILL);
    let status = child.wait().map_err(|error| format!("{name} is lost: {error}"))?;
    match read.filter(|_| in_time) {
        Some((output, complaint)) => {
            use std::os::unix::process::ExitStatusExt;
            let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
            let complaint = String::from_utf8_lossy(&complaint).trim().to_string();
            Ok(Called { code, output: output.into(), complaint })
        }
        None => Err(format!("{name} did not answer within {} s", limit.as_secs_f32())),
    }
}

/// Output and complaint, until both have ended. `None`: the time was over.
fn read_all(
    child: &mut Child,
    until: Instant,
    bytes_max: usize,
) -> Option<(VecDeque<u8>, Vec<u8>)> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut output, mut complaint) = (VecDeque::new(), Vec::new());
    let mut piece = vec![0u8; 64 << 10];
    while stdout.is_some() || stderr.is_some() {
        let left = until.saturating_duration_since(Instant::now());
        let ready = {
            let flags = PollFlags::IN;
            let pipes = [stdout.as_ref().map(|pipe| PollFd::new(pipe, flags))];
            let more = [stderr.as_ref().map(|pipe| PollFd::new(pipe, flags))];
            let mut fds: Vec<PollFd<'_>> = pipes.into_iter().chain(more).flatten().collect();
            os::wait(&mut fds, Some(left));
            let mut ready = fds.iter().map(os::is_ready).collect::<VecDeque<bool>>();
            let mut next = |there: bool| there && ready.pop_front() == Some(true);
            (next(stdout.is_some()), next(stderr.is_some()))
        };
        if left.is_zero() {
            return None;
        }
        if ready.0
            && let Some(size) = read_piece(&mut stdout, &mut piece)
        {
            let surplus = (output.len() + size).saturating_sub(bytes_max);
            output.drain(..surplus.min(output.len()));
            output.extend(&piece[size - size.min(bytes_max)..size]);
        }
        if ready.1
            && let Some(size) = read_piece(&mut stderr, &mut piece)
        {
            let room = ERROR_BYTES_MAX.saturating_sub(complaint.len());
            complaint.extend_from_slice(&piece[..size.min(room)]);
        }
    }
    Some((output, complaint))
}

/// Reads once; a pipe that has ended is let go of.
fn read_piece(pipe: &mut Option<impl Read>, piece: &mut [u8]) -> Option<usize> {
    match pipe.as_mut()?.read(piece) {
        Ok(size) if size > 0 => Some(size),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
        _ => {
            *pipe = None;
            None
        }
    }
}

/// Waits for the end of a program that has closed its output.
fn ends_until(child: &Child, until: Instant) -> bool {
    let pid = Pid::from_raw(child.id() as i32);
    let Some(end) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return true; // it is waited for all the same, after it was killed
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&end, PollFlags::IN)];
        os::wait(&mut fds, Some(left));
        if os::is_ready(&fds[0]) || left.is_zero() {
            return os::is_ready(&fds[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_program_says_is_told() {
        let long = Duration::from_secs(60);
        for (script, code, output, complaint) in [
            ("echo a; echo b >&2", 0, "a\n", "b"),
            ("echo ' no ' >&2; exit 3", 3, "", "no"),
            ("kill -9 $$", 137, "", ""),
            // The last bytes of the output, the first ones of the complaint.
            ("printf 0123456789abcdef", 0, "89abcdef", ""),
            ("i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done", 0, "98\n2999\n", ""),
        ] {
            let called = run(shell(script), long, 8).expect(script);
            let got = String::from_utf8_lossy(&called.output).into_owned();
            assert_eq!(
                (called.code, got.as_str(), called.complaint.as_str()),
                (code, output, complaint),
                "{script}"
            );
        }
        let flood = run(shell("yes complaint | head -c 300000 >&2"), long, 8).expect("ends");
        assert!(flood.complaint.len() <= ERROR_BYTES_MAX);
        let nowhere = run(Command::new("/nowhere/x"), long, 8);
        assert_eq!(nowhere, Err("/nowhere/x was not found".into()));
    }

    #[test]
    fn failures_are_told_in_the_words_of_the_program_if_it_has_some() {
        let called =
            |code, complaint: &str| Called { code, output: vec![7], complaint: complaint.into() };
        assert_eq!(called(0, "a warning").output_of("x"), Ok(vec![7]));
        assert_eq!(called(1, "no server").output_of("x"), Err("no server".into()));
        assert_eq!(called(1, "").output_of("tmux y"), Err("tmux y failed with exit code 1".into()));
    }

    #[test]
    fn who_takes_too_long_is_ended_with_its_children() {
        let short = Duration::from_millis(300);
        let marker = format!("agent-relay-call-{}", std::process::id());
        for script in ["sleep 600", "sleep 600 & exit 0", "exec >&- 2>&-; sleep 600"] {
            let mut command = shell(script);
            command.env("AGENT_RELAY_TEST_MARK", &marker);
            let told = run(command, short, 8);
            assert_eq!(told, Err("/bin/sh did not answer within 0.3 s".into()), "{script}");
        }
        let until = Instant::now() + Duration::from_secs(60);
        while !os::processes_with_env("AGENT_RELAY_TEST_MARK", &marker).is_empty() {
            assert!(Instant::now() < until, "something of it is left");
            std::thread::yield_now();
        }
    }
}
