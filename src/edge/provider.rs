//! Thread `provider`: one child process and its session machine.
//!
//! It lives as long as the process, since the kernel's promise to end the child with its parent belongs to the thread
//! that spawned (D-23). It waits in poll(2) on the child's pipes, its pidfd and a wake descriptor. Bytes go through the
//! session machine here, so a flooding provider never reaches the state thread faster than that thread takes it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal as OsSignal, pidfd_open};

use crate::clock::Clock;
use crate::core::agent::event::{Event, ProviderEvent};
use crate::core::agent::store::ProviderRecord;
use crate::core::session::{Input, Output, Session, Verb};
use crate::os::{self, Waker};
use crate::secret::Secret;
use crate::wire::control::{ENV_CONTROL_TOKEN, ENV_PORT, ENV_PROVIDER_SESSION};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes that wait for the child's input before verbs wait too.
const UNWRITTEN_MAX: usize = 8 << 20;
/// Last words that are kept from standard error.
const STDERR_KEPT: usize = 4096;
/// After SIGTERM this long until SIGKILL (ACP FACTS section 8: 3 s after closing the input, then 2 s).
const TERM_WAIT: Duration = Duration::from_secs(2);
/// Closing the input gets at most this share of the patience.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// One order.
#[derive(Debug)]
pub enum Order {
    /// End what is left of an earlier life, then start.
    Spawn {
        /// Number of the process.
        process: u64,
        /// Random id of this provider process.
        provider_session: String,
        /// Token for its environment.
        token: Option<Secret>,
        /// Record of the earlier life.
        leftover: Option<ProviderRecord>,
    },
    /// A verb for the session of that process; dropped if it is another one by now.
    Verb {
        /// Number of the process.
        process: u64,
        /// Number for the answer.
        number: u64,
        /// The verb.
        verb: Verb,
    },
    /// Stop, politely for so many ms.
    Stop {
        /// 0 = by force at once.
        grace_ms: u64,
    },
}

/// What does not change between starts.
pub struct Launch {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory.
    pub cwd: std::path::PathBuf,
    /// Environment of the provider configuration and of the runner.
    pub env: Vec<(String, String)>,
    /// Port and token of the control server.
    pub control: (u16, Secret),
    /// Makes the session machine of a new process.
    pub session: Box<dyn Fn() -> Box<dyn Session> + Send>,
    /// Tells `main` which process to end if everything else dies: pid, start time and session id.
    pub custody: Sender<Option<(u32, u64, String)>>,
    /// Bytes for which the provider may be blamed go to the log at this level only.
    pub clock: Clock,
}

struct Running {
    process: u64,
    child: Child,
    start: u64,
    provider_session: String,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
    unwritten: VecDeque<u8>,
    last_words: Vec<u8>,
    session: Box<dyn Session>,
    stop: Option<Stop>,
}

struct Stop {
    term_at: Instant,
    kill_at: Instant,
    termed: bool,
    killed: bool,
}

/// Body of the thread.
pub fn run(launch: Launch, orders: Receiver<Order>, waker: Waker, lane: Sender<Event>) {
    let mut edge = Provider { launch, orders, waker, lane, running: None };
    while edge.turn() {}
    // Nobody gives orders any more: nothing is left behind.
    if let Some(running) = edge.running.take() {
        end_everything(&running.provider_session, running.child.id());
        reap(running.child);
    }
    let _ = edge.launch.custody.send(None);
}

struct Provider {
    launch: Launch,
    orders: Receiver<Order>,
    waker: Waker,
    lane: Sender<Event>,
    running: Option<Running>,
}

impl Provider {
    fn turn(&mut self) -> bool {
        let Some(running) = &mut self.running else {
            return match self.orders.recv() {
                Ok(order) => self.carry_out(order),
                Err(_) => false,
            };
        };
        let now = self.launch.clock.now();
        let mut timeout = running.session.next_deadline().map(|at| at - now.tick);
        if let Some(stop) = running.stop.as_ref().filter(|stop| !stop.killed) {
            let next = if stop.termed { stop.kill_at } else { stop.term_at };
            let left = next.saturating_duration_since(Instant::now());
            timeout = Some(timeout.map_or(left, |t| t.min(left)));
        }
        let writes = running.stdin.is_some() && !running.unwritten.is_empty();
        let (woken, died, out, err, may_write) = {
            let mut fds = vec![PollFd::new(&self.waker, PollFlags::IN), PollFd::new(&running.pidfd, PollFlags::IN)];
            let mut places = [None; 3];
            if let Some(stdout) = &running.stdout {
                places[0] = Some(fds.len());
                fds.push(PollFd::new(stdout, PollFlags::IN));
            }
            if let Some(stderr) = &running.stderr {
                places[1] = Some(fds.len());
                fds.push(PollFd::new(stderr, PollFlags::IN));
            }
            if let Some(stdin) = running.stdin.as_ref().filter(|_| writes) {
                places[2] = Some(fds.len());
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            os::wait(&mut fds, timeout);
            let ready = |place: Option<usize>| place.is_some_and(|at| !fds[at].revents().is_empty());
            (os::is_ready(&fds[0]), os::is_ready(&fds[1]), ready(places[0]), ready(places[1]), ready(places[2]))
        };
        if woken {
            self.waker.clear();
            loop {
                match self.orders.try_recv() {
                    Ok(order) => {
                        if !self.carry_out(order) {
                            return false;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return false,
                }
            }
        }
        if may_write {
            self.write();
        }
        if err {
            self.read_stderr();
        }
        if out && !self.read_stdout() {
            return false;
        }
        if let Some(running) = &mut self.running {
            let now = self.launch.clock.now();
            if running.session.next_deadline().is_some_and(|at| at <= now.tick) {
                let outputs = running.session.handle(now, Input::Wake);
                if !self.carry_outputs(outputs) {
                    return false;
                }
            }
        }
        self.escalate();
        // The exit status counts, not the end of the pipe: a child's child may hold it open (FACTS section 8).
        if died { self.on_exit() } else { true }
    }

    fn report(&mut self, event: ProviderEvent) -> bool {
        let mut late = Vec::new();
        let alive = super::report(&self.lane, &self.orders, Event::Provider(event), |order| late.push(order));
        late.into_iter().all(|order| self.carry_out(order)) && alive
    }

    fn carry_out(&mut self, order: Order) -> bool {
        match order {
            Order::Spawn { process, provider_session, token, leftover } => {
                if let Some(record) = leftover {
                    end_leftover(&record);
                }
                self.spawn(process, provider_session, token)
            }
            Order::Verb { process, number, verb } => {
                let now = self.launch.clock.now();
                let Some(running) = self.running.as_mut().filter(|running| running.process == process) else {
                    return true;
                };
                let outputs = running.session.handle(now, Input::Verb(number, verb));
                self.carry_outputs(outputs)
            }
            Order::Stop { grace_ms } => {
                if let Some(running) = &mut self.running {
                    let grace = Duration::from_millis(grace_ms);
                    let now = Instant::now();
                    let term_at = now + grace.min(CLOSE_WAIT).min(grace.saturating_sub(TERM_WAIT));
                    running.stop = Some(Stop { term_at, kill_at: now + grace, termed: false, killed: false });
                    if grace.is_zero() {
                        self.escalate();
                    }
                }
                true
            }
        }
    }

    fn spawn(&mut self, process: u64, provider_session: String, token: Option<Secret>) -> bool {
        let Some((program, arguments)) = self.launch.command.split_first() else {
            return self.report(ProviderEvent::SpawnFailed { reason: "no command was given".into(), permanent: true });
        };
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.launch.cwd);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_remove("AGENT_RELAY_CRASH_AT").env_remove("AGENT_RELAY_TOKEN");
        command.envs(self.launch.env.iter().map(|(k, v)| (k, v)));
        command.env(ENV_PORT, self.launch.control.0.to_string());
        command.env(ENV_CONTROL_TOKEN, self.launch.control.1.expose());
        command.env(ENV_PROVIDER_SESSION, &provider_session);
        if let Some(token) = token.filter(|token| !token.expose().is_empty()) {
            command.env("AGENT_RELAY_TOKEN", token.expose());
        }
        os::prepare_child(&mut command);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let permanent = matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::InvalidInput
                );
                let reason = match error.kind() {
                    std::io::ErrorKind::NotFound if !self.launch.cwd.is_dir() => {
                        format!("the working directory {} does not exist", self.launch.cwd.display())
                    }
                    std::io::ErrorKind::NotFound => {
                        format!("the command {program:?} was not found; check the name and PATH")
                    }
                    _ => format!("cannot start {program:?}: {error}"),
                };
                return self.report(ProviderEvent::SpawnFailed { reason, permanent });
            }
        };
        let pid = child.id();
        let start = os::start_time(pid).unwrap_or_default();
        let pidfd = Pid::from_raw(pid as i32).ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = match pidfd {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let _ = child.kill();
                reap(child);
                return self.report(ProviderEvent::SpawnFailed { reason: format!("cannot watch the child: {error}"), permanent: false });
            }
        };
        let _ = self.launch.custody.send(Some((pid, start, provider_session.clone())));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        for fd in
            [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)].into_iter().flatten()
        {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        self.running = Some(Running {
            process,
            child,
            start,
            provider_session,
            pidfd,
            stdin,
            stdout,
            stderr,
            unwritten: VecDeque::new(),
            last_words: Vec::new(),
            session: (self.launch.session)(),
            stop: None,
        });
        self.report(ProviderEvent::Spawned { pid, start })
    }

    fn carry_outputs(&mut self, outputs: Vec<Output>) -> bool {
        for output in outputs {
            match output {
                Output::Write(bytes) => {
                    let Some(running) = &mut self.running else {
                        return true;
                    };
                    if running.unwritten.len() + bytes.len() > UNWRITTEN_MAX {
                        log::error!(target: "provider", "the provider does not read its input; ending it");
                        os::kill_group(running.child.id(), OsSignal::KILL);
                        return true;
                    }
                    running.unwritten.extend(bytes);
                    self.write();
                }
                Output::CloseInput => {
                    if let Some(running) = &mut self.running {
                        self.launch.clock.now();
                        if running.unwritten.is_empty() {
                            running.stdin = None;
                        }
                    }
                }
                Output::Signal(signal) => {
                    if !self.report(ProviderEvent::Signal(signal)) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn write(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        while let (Some(stdin), false) = (&mut running.stdin, running.unwritten.is_empty()) {
            let (front, _) = running.unwritten.as_slices();
            match stdin.write(front) {
                Ok(0) => return,
                Ok(size) => {
                    running.unwritten.drain(..size);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    running.stdin = None; // it reads no more; its exit follows
                    return;
                }
            }
        }
        if running.stop.is_some() {
            running.stdin = None;
        }
    }

    fn read_stdout(&mut self) -> bool {
        let mut buffer = vec![0u8; READ_BYTES];
        let Some(running) = &mut self.running else {
            return true;
        };
        let Some(stdout) = &mut running.stdout else {
            return true;
        };
        match stdout.read(&mut buffer) {
            Ok(0) => {
                running.stdout = None;
                if running.stop.is_none() {
                    // Nothing can come from it any more: if it does not end by itself, it is ended.
                    let now = Instant::now();
                    running.last_words.extend_from_slice(b"\n[agent-relay] the agent closed its standard output");
                    running.stop = Some(Stop { term_at: now + TERM_WAIT, kill_at: now + TERM_WAIT * 2, termed: false, killed: false });
                }
                true
            }
            Ok(size) => {
                let now = self.launch.clock.now();
                let outputs = running.session.handle(now, Input::Bytes(buffer[..size].to_vec()));
                self.carry_outputs(outputs)
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => true,
            Err(_) => {
                running.stdout = None;
                true
            }
        }
    }

    fn read_stderr(&mut self) {
        let mut buffer = [0u8; 4096];
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(stderr) = &mut running.stderr else {
            return;
        };
        match stderr.read(&mut buffer) {
            Ok(0) => running.stderr = None,
            Ok(size) => {
                running.last_words.extend_from_slice(&buffer[..size]);
                let surplus = running.last_words.len().saturating_sub(STDERR_KEPT);
                running.last_words.drain(..surplus);
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(_) => running.stderr = None,
        }
    }

    /// Polite first, then firmer: input closed, SIGTERM to the group, SIGKILL to everything it started.
    fn escalate(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(stop) = &mut running.stop else {
            return;
        };
        let (pid, now) = (running.child.id(), Instant::now());
        if !stop.termed && now >= stop.term_at {
            stop.termed = true;
            os::kill_group(pid, OsSignal::CONT); // a stopped child could not die
            os::kill_group(pid, OsSignal::TERM);
        }
        if stop.termed && !stop.killed && now >= stop.kill_at {
            stop.killed = true;
            end_everything(&running.provider_session, pid);
        }
    }

    fn on_exit(&mut self) -> bool {
        // What it said last still counts: the pipes are read to the end, but never waited for.
        for _ in 0..1024 {
            let Some(running) = &mut self.running else {
                return true;
            };
            let Some(stdout) = &running.stdout else { break };
            let mut fds = [PollFd::new(stdout, PollFlags::IN)];
            os::wait(&mut fds, Some(Duration::ZERO));
            if !os::is_ready(&fds[0]) {
                break;
            }
            if !self.read_stdout() {
                return false;
            }
        }
        self.read_stderr();
        let Some(mut running) = self.running.take() else {
            return true;
        };
        let now = self.launch.clock.now();
        let outputs = running.session.handle(now, Input::Closed);
        for output in outputs {
            if let Output::Signal(signal) = output
                && !self.report(ProviderEvent::Signal(signal))
            {
                return false;
            }
        }
        // Also after a clean exit: stragglers (FACTS section 8).
        end_everything(&running.provider_session, running.child.id());
        let code = reap(running.child);
        let _ = self.launch.custody.send(None);
        log::debug!(target: "provider", "child gone start={} code={code}", running.start);
        let stderr = String::from_utf8_lossy(&running.last_words).into_owned();
        self.report(ProviderEvent::Exited { code, stderr })
    }
}

fn reap(mut child: Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    match child.wait() {
        Ok(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
        Err(_) => 255,
    }
}

/// Ends a process, its group, and whatever else carries the session id in its environment. New processes may appear
/// while the old ones are being ended, hence the rounds.
pub fn end_everything(provider_session: &str, pid: u32) {
    os::kill_group(pid, OsSignal::KILL);
    for _ in 0..5 {
        let rest = os::processes_with_env(ENV_PROVIDER_SESSION, provider_session);
        if rest.is_empty() {
            return;
        }
        for (pid, start) in rest {
            os::kill(pid, start, OsSignal::KILL);
        }
    }
}

/// What an earlier life left: that very process by pid and start time, and everything with its session id.
fn end_leftover(record: &ProviderRecord) {
    if os::is_alive(record.pid, record.start) {
        log::warn!(target: "lifecycle", "ending the provider of an earlier runner pid={}", record.pid);
        os::kill_group(record.pid, OsSignal::KILL);
        os::kill(record.pid, record.start, OsSignal::KILL);
    }
    for _ in 0..20 {
        let rest = os::processes_with_env(ENV_PROVIDER_SESSION, &record.provider_session);
        if rest.is_empty() && !os::is_alive(record.pid, record.start) {
            return;
        }
        for (pid, start) in rest {
            os::kill(pid, start, OsSignal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10)); // the kernel is taking them down
    }
}
