//! Thread `provider`: one child process and its session machine.
//!
//! It lives as long as the process: the kernel ends the child when the thread that spawned it ends.
//! It waits in poll(2) on the child's pipes, its pidfd and a wake descriptor. Bytes go through the
//! session machine here, so a flooding provider never reaches the state thread faster than that
//! thread takes it.

pub mod file_watcher;
mod foreground;
mod life;
mod orphans;
mod port;
mod process;
mod reply_socket;
mod setup;
mod start;
mod stop;
mod streams;
mod tmux;
mod websocket;

use crate::core::agent::effect::ProviderCommand;
use crate::edge::http::Base;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal as OsSignal;

use self::file_watcher::FileWatcher;
use self::foreground::Foreground;
use self::life::Heard;
use self::port::PortToken;
use self::reply_socket::ReplySocket;
use self::start::{SessionRelay, StartWay};
use self::stop::Stop;
use self::tmux::Tmux;
use self::websocket::Link;
use crate::clock::Clock;
use crate::core::agent::event::{Event, ProviderEvent};
use crate::core::ids::{ProcessNumber, ProcessRef};
use crate::core::session::{Input, Output, Session, Verb};
use crate::os::{self, Waker};
use crate::provider::launch::Conversation;
use crate::secret::Secret;

use self::process::reap;
pub use self::process::{end_everything, find_command};
pub use self::setup::{Planner, try_socket_folder};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes that wait for the child's input before verbs wait too.
const UNWRITTEN_MAX: usize = 8 << 20;
/// From SIGTERM to SIGKILL. With 3 s after closing the input before it, this ended every agent that
/// was tried.
const TERM_WAIT: Duration = Duration::from_secs(2);
/// Closing the input gets at most this share of the patience.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// Who hosts the provider's standard streams.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub enum Host {
    /// Pipes of ours.
    Pipes,
    /// A terminal server of our own.
    Tmux {
        /// Folder for small files, closed to others.
        dir: PathBuf,
        /// Name of its socket in versions of ours that left the folder to tmux.
        former: String,
    },
    /// The terminal that we were started in, with its foreground group and its signals.
    Inherited,
}

/// What does not change between starts of a provider.
#[allow(missing_docs)] // the names say it
pub struct Launch {
    /// Working directory of the provider.
    pub cwd: PathBuf,
    pub host: Host,
    /// Plans each start.
    pub planner: Planner,
    pub control: ControlAccess,
    /// Tells `main` which process to end if everything else dies, with its session id.
    pub child_registrations: Sender<Option<ChildRegistration>>,
    pub clock: Clock,
}

/// How the session's tools reach the control server of their runner.
#[allow(missing_docs)] // the names say it
pub struct ControlAccess {
    pub port: u16,
    pub token: Secret,
}

/// The child that has to end with us, whatever happens to our threads.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone)]
pub struct ChildRegistration {
    pub process: ProcessRef,
    /// Random id that stands in the environment of everything it started.
    pub provider_session: String,
}

struct Running {
    number: ProcessNumber,
    /// Child of ours: the provider, or the server of its terminal.
    child: Child,
    /// The same by pid and start time.
    server: ProcessRef,
    /// The provider: the child, or the process in the terminal.
    process: ProcessRef,
    provider_session: String,
    /// Exit of the child, and of the provider where that is another process.
    pidfds: Vec<OwnedFd>,
    stdin: Option<ChildStdin>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
    unwritten: VecDeque<u8>,
    last_words: Vec<u8>,
    session: Box<dyn Session>,
    stop: Option<Stop>,
    tmux: Option<Tmux>,
    /// The provider in the terminal has ended: its last words are read until then.
    dying: Option<Instant>,
    exit: Option<i32>,
    files: FileWatcher,
    reply_socket: Option<ReplySocket>,
    heard: Heard,
    /// It is a server that its session is connected to.
    is_server: bool,
    link: Option<Link>,
    /// Lets us in where it listens at a port.
    token: Option<PortToken>,
    foreground: Foreground,
}

/// What became readable.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ready {
    Woken,
    Died,
    Output,
    Errors,
    Input,
    Files,
    Replies,
    /// Some child has ended.
    Orphans,
    Link,
    Foreground,
}

/// Body of the thread.
pub fn run(launch: Launch, orders: Receiver<ProviderCommand>, waker: Waker, lane: Sender<Event>) {
    let orphans = orphans::watch();
    let mut edge = Provider { launch, orders, waker, lane, orphans, running: None };
    while edge.turn() {}
    // Nobody gives orders any more: nothing is left behind.
    if let Some(running) = edge.running.take() {
        end_everything(&running.provider_session, running.server);
        reap(running.child);
    }
    let _ = edge.launch.child_registrations.send(None);
}

struct Provider {
    launch: Launch,
    orders: Receiver<ProviderCommand>,
    waker: Waker,
    lane: Sender<Event>,
    /// Readable when a child has ended that others may have left to us.
    orphans: Option<UnixStream>,
    running: Option<Running>,
}

impl Running {
    /// When something is due although nothing becomes readable.
    fn timeout(&self, clock: &Clock) -> Option<Duration> {
        if self.files.has_more || self.link.as_ref().is_some_and(|link| link.has_more) {
            return Some(Duration::ZERO);
        }
        let now = clock.now();
        let session = self.session.next_deadline().map(|at| at - now.tick);
        let stop = self
            .stop
            .as_ref()
            .filter(|stop| !stop.killed)
            .map(|stop| if stop.termed { stop.kill_at } else { stop.term_at });
        let next = [stop, self.dying].into_iter().flatten().min();
        let next = next.map(|at| at.saturating_duration_since(Instant::now()));
        session.into_iter().chain(next).chain(self.files.poll_after()).min()
    }

    /// Waits for all that may happen.
    fn wait(
        &self,
        waker: &Waker,
        orphans: Option<&UnixStream>,
        timeout: Option<Duration>,
    ) -> Vec<Ready> {
        let mut sources: Vec<(Ready, BorrowedFd<'_>, PollFlags)> =
            vec![(Ready::Woken, waker.as_fd(), PollFlags::IN)];
        sources.extend(orphans.map(|fd| (Ready::Orphans, fd.as_fd(), PollFlags::IN)));
        if self.dying.is_none() {
            sources.extend(self.pidfds.iter().map(|fd| (Ready::Died, fd.as_fd(), PollFlags::IN)));
        }
        let output = self
            .stdout
            .as_ref()
            .map(AsFd::as_fd)
            .or(self.tmux.as_ref().map(|tmux| tmux.output.as_fd()));
        sources.extend(output.map(|fd| (Ready::Output, fd, PollFlags::IN)));
        sources.extend(self.stderr.as_ref().map(|fd| (Ready::Errors, fd.as_fd(), PollFlags::IN)));
        let stdin = self.stdin.as_ref().filter(|_| !self.unwritten.is_empty());
        sources.extend(stdin.map(|fd| (Ready::Input, fd.as_fd(), PollFlags::OUT)));
        sources.extend(self.files.descriptor().map(|fd| (Ready::Files, fd.as_fd(), PollFlags::IN)));
        sources.extend(
            self.reply_socket
                .iter()
                .flat_map(ReplySocket::descriptors)
                .map(|fd| (Ready::Replies, fd, PollFlags::IN)),
        );
        sources.extend(self.link.as_ref().map(|link| {
            let (fd, flags) = link.waits_for();
            (Ready::Link, fd, flags)
        }));
        let foreground = self.foreground.descriptor();
        sources.extend(foreground.map(|fd| (Ready::Foreground, fd, PollFlags::IN)));
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        os::wait(&mut fds, timeout);
        let ready = sources
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|((ready, ..), _)| *ready);
        ready.collect()
    }
}

impl Provider {
    fn turn(&mut self) -> bool {
        let Some(running) = &mut self.running else {
            self.idle();
            return self.take_orders();
        };
        let timeout = running.timeout(&self.launch.clock);
        let ready = running.wait(&self.waker, self.orphans.as_ref(), timeout);
        if ready.contains(&Ready::Woken) && !self.take_orders() {
            return false;
        }
        if ready.contains(&Ready::Orphans) {
            self.reap_orphans();
        }
        if ready.contains(&Ready::Input) {
            self.write();
        }
        if ready.contains(&Ready::Errors) && !self.read_stderr() {
            return false;
        }
        if ready.contains(&Ready::Output) && !self.read_output() {
            return false;
        }
        let due =
            |running: &Running| running.files.has_more || running.files.poll_after().is_some();
        if (ready.contains(&Ready::Files) || self.running.as_ref().is_some_and(due))
            && !self.look_at_files()
        {
            return false;
        }
        if !self.look_at_sockets(&ready) {
            return false;
        }
        if let Some(running) = &mut self.running {
            let now = self.launch.clock.now();
            if running.session.next_deadline().is_some_and(|at| at <= now.tick)
                && !self.feed(Input::Wake)
            {
                return false;
            }
        }
        self.escalate();
        // The exit status counts, not the end of the pipe: a grandchild may hold it open.
        if ready.contains(&Ready::Died) && !self.on_death() {
            return false;
        }
        let over = |running: &Running| {
            running.dying.is_some_and(|until| running.exit.is_some() || until <= Instant::now())
        };
        if self.running.as_ref().is_some_and(over) { self.on_exit() } else { true }
    }

    /// Carries out the orders that wait. False: there will be none any more.
    fn take_orders(&mut self) -> bool {
        self.waker.clear();
        loop {
            match self.orders.try_recv() {
                Ok(order) => {
                    if !self.carry_out(order) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn report(&mut self, event: ProviderEvent) -> bool {
        let mut late = Vec::new();
        let alive = super::report(&self.lane, &self.orders, Event::Provider(event), |order| {
            late.push(order)
        });
        late.into_iter().all(|order| self.carry_out(order)) && alive
    }

    /// Gives something to the session and carries out what it wants.
    fn feed(&mut self, input: Input) -> bool {
        let now = self.launch.clock.now();
        let Some(running) = &mut self.running else {
            return true;
        };
        let outputs = running.session.handle(now, input);
        self.carry_outputs(outputs)
    }

    fn feed_all(&mut self, inputs: Vec<Input>) -> bool {
        inputs.into_iter().all(|input| self.feed(input))
    }

    fn look_at_files(&mut self) -> bool {
        let Some(running) = &mut self.running else {
            return true;
        };
        running.files.drain_notices();
        let seen = running.files.read_changes();
        running.heard.note_files(&seen);
        self.feed_all(seen)
    }

    fn carry_out(&mut self, order: ProviderCommand) -> bool {
        match order {
            ProviderCommand::Spawn {
                process,
                provider_session,
                conversation,
                refused,
                fresh,
                folder,
                at_port,
                token,
                leftover,
                left_terminal,
                relay,
            } => {
                if let Some(record) = leftover {
                    self.end_leftover(&record, left_terminal);
                }
                // Written as everything else of ours writes it.
                let url = relay.map(|url| Base::parse(&url).map(|base| base.url).unwrap_or(url));
                let conversation = Conversation {
                    earlier: &conversation,
                    refused: refused.as_deref(),
                    fresh: &fresh,
                };
                let relay = SessionRelay { url, token };
                let way = StartWay { folder, at_port };
                self.spawn(process, provider_session, conversation, way, relay)
            }
            ProviderCommand::Verb { process, number, verb } => {
                let Some(running) =
                    self.running.as_mut().filter(|running| running.number == process)
                else {
                    return true;
                };
                // What the provider wrote before its hook ran is seen before the hook is heard.
                let hooked =
                    matches!(verb, Verb::Hook { .. }) && running.files.descriptor().is_some();
                let signs = (verb == Verb::Probe).then(|| {
                    life::look(running.process, &running.provider_session, &running.heard)
                });
                signs.is_none_or(|signs| self.report(ProviderEvent::Probed(signs)))
                    && (!hooked || self.look_at_files())
                    && self.feed(Input::Verb(number, verb))
            }
            ProviderCommand::Stop { grace_ms } => {
                if let Some(running) = &mut self.running {
                    let grace = Duration::from_millis(grace_ms);
                    let now = Instant::now();
                    let term_at = now + grace.min(CLOSE_WAIT).min(grace.saturating_sub(TERM_WAIT));
                    running.stop =
                        Some(Stop { term_at, kill_at: now + grace, termed: false, killed: false });
                    if grace.is_zero() {
                        self.escalate();
                    }
                }
                true
            }
        }
    }

    fn carry_outputs(&mut self, outputs: Vec<Output>) -> bool {
        for output in outputs {
            let Some(running) = &mut self.running else {
                return true;
            };
            match output {
                Output::Write(bytes) => {
                    if running.unwritten.len() + bytes.len() > UNWRITTEN_MAX {
                        log::error!(target: "provider", "the provider does not read its input; ending it");
                        os::kill_group(running.child.id(), OsSignal::KILL);
                        return true;
                    }
                    running.unwritten.extend(bytes);
                    self.write();
                }
                // In a terminal, and for a server, the polite way to end is the signal.
                Output::CloseInput
                    if running.tmux.is_some()
                        || running.is_server
                        || self.launch.host == Host::Inherited =>
                {
                    // A script in between might end without it.
                    let program = running.files.process().unwrap_or(running.process);
                    os::kill(program, OsSignal::TERM);
                }
                Output::CloseInput => {
                    if running.unwritten.is_empty() {
                        running.stdin = None;
                    }
                }
                Output::Event(signal) => {
                    if !self.report(ProviderEvent::Session(signal)) {
                        return false;
                    }
                }
                Output::CaptureScreen => self.at_terminal(Tmux::look),
                Output::Paste(text) => self.at_terminal(|tmux| tmux.paste(&text)),
                Output::Press(key) => self.at_terminal(|tmux| tmux.press(key)),
                Output::Follow { path, whole } => running.files.follow(&path, whole),
                Output::Unfollow => running.files.unfollow(),
                Output::WatchProcess { folder, suffix } => {
                    running.files.watch_process(&folder, suffix, running.process)
                }
                Output::WriteSocket { number, path, line } => {
                    let result = reply_socket::post(&path, &line);
                    if !self.feed(Input::SocketWritten { number, result }) {
                        return false;
                    }
                }
                Output::Connect { to } => {
                    let answer = running.connect(&to);
                    if !self.feed(answer) {
                        return false;
                    }
                }
                Output::SendText(text) => {
                    if !self.send_text(text) {
                        return false;
                    }
                }
                Output::StartForeground { arguments } => self.start_foreground(&arguments),
                Output::Kill { reason } => {
                    log::error!(target: "provider", "{reason}; ending the provider");
                    running.last_words.extend_from_slice(reason.as_bytes());
                    os::kill_group(running.child.id(), OsSignal::KILL);
                }
            }
        }
        true
    }

    fn at_terminal(&mut self, ask: impl FnOnce(&mut Tmux) -> std::io::Result<()>) {
        let failed = match self.running.as_mut().and_then(|running| running.tmux.as_mut()) {
            Some(tmux) => ask(tmux).err().map(|error| error.to_string()),
            None => Some("the provider has no terminal of ours".into()),
        };
        if let Some(failed) = failed {
            self.feed(Input::TerminalFailed(failed));
        }
    }
}
