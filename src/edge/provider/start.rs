//! Starts the provider: plan, environment, host, and the files that are watched.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::file_watcher::FileWatcher;
use super::foreground::Foreground;
use super::life::Heard;
use super::port::PortToken;
use super::process::{end_everything, find_command, first_pane, not_found, path_of, reap};
use super::reply_socket::ReplySocket;
use super::setup::program_behind;
use super::tmux::{self, Tmux};
use super::{ChildRegistration, Host, Provider, Running};
use crate::core::agent::event::ProviderEvent;
use crate::core::ids::ProcessNumber;
use crate::core::session::Input;
use crate::os;
use crate::provider::launch::{Conversation, LaunchError, LaunchPlan};
use crate::secret::Secret;
use crate::wire::control::{
    ENV_CONTROL_TOKEN, ENV_PORT, ENV_PROVIDER_SESSION, ENV_TOKEN, ENV_TOKEN_DATA,
};

/// The relay as the session's tools get it.
pub(super) struct SessionRelay {
    /// As far as it is known.
    pub(super) url: Option<String>,
    /// The agent's own.
    pub(super) token: Option<Secret>,
}

/// What one start does in another way than the first, because that has failed.
#[derive(Clone, Copy)]
pub(super) struct StartWay {
    /// Which folder its sockets go to.
    pub(super) folder: usize,
    /// Its server is told to listen at a port.
    pub(super) at_port: bool,
}

impl Provider {
    pub(super) fn spawn(
        &mut self,
        number: ProcessNumber,
        provider_session: String,
        conversation: Conversation<'_>,
        way: StartWay,
        relay: SessionRelay,
    ) -> bool {
        let plan = self.launch.planner.prepare(conversation, way);
        let started = plan.and_then(|plan| self.start(plan, &provider_session, &relay));
        match started {
            Ok((mut running, terminal)) => {
                running.number = number;
                let process = running.process;
                let child = os::process(running.child.id());
                let registration = ChildRegistration { process: child, provider_session };
                let _ = self.launch.child_registrations.send(Some(registration));
                let hosted = running.tmux.is_some() || self.launch.host == Host::Inherited;
                self.running = Some(running);
                (!hosted || self.feed(Input::ProcessStarted { pid: process.pid }))
                    && self.report(ProviderEvent::Spawned { process, terminal })
            }
            Err(LaunchError { text: reason, fault }) => {
                self.report(ProviderEvent::SpawnFailed { reason, fault })
            }
        }
    }

    /// The running provider, and the socket of its terminal if it has one.
    fn start(
        &mut self,
        plan: LaunchPlan,
        provider_session: &str,
        relay: &SessionRelay,
    ) -> Result<(Running, Option<String>), LaunchError> {
        let Some((program, arguments)) = plan.argv.split_first() else {
            return Err(LaunchError::permanent("no command was given"));
        };
        may_work_in(&self.launch.cwd).map_err(|error| self.no_folder(&error))?;
        let found = find_command(program, &plan.env);
        let behind = found.as_deref().and_then(|found| program_behind(found, plan.behind));
        let program = behind.as_deref().or(found.as_deref()).unwrap_or(program);
        let token = plan.port.as_ref().map(PortToken::make).transpose()?;
        let prepare = |command: &mut Command| {
            self.set_environment(command, &plan, provider_session, relay);
            let apart = plan.is_server || self.launch.host != Host::Inherited;
            os::prepare_child(command, apart);
        };
        let mut child = match &self.launch.host {
            Host::Tmux { dir, .. } => {
                if found.is_none() {
                    return Err(not_found(program, &plan.env, plan.hint));
                }
                let command: Vec<String> =
                    [program.to_string()].into_iter().chain(arguments.iter().cloned()).collect();
                let Some(sockets) = plan.sockets.clone() else {
                    return Err(LaunchError::permanent("this provider has no terminal program"));
                };
                let (socket, cwd) = (sockets.terminal.as_str(), self.launch.cwd.as_path());
                let path = path_of(&plan.env);
                let terminal = tmux::Plan { socket, dir, cwd, command: &command, path: &path };
                let started = tmux::server(&terminal, prepare)?;
                return self.start_in_terminal(&terminal, started, plan, provider_session);
            }
            host => {
                let mut command = Command::new(program);
                command.args(arguments).current_dir(&self.launch.cwd);
                let inherits = *host == Host::Inherited && !plan.is_server;
                let stream = || if inherits { Stdio::inherit() } else { Stdio::piped() };
                let stdin = if plan.is_server { Stdio::null() } else { stream() };
                command.stdin(stdin).stdout(stream()).stderr(stream());
                prepare(&mut command);
                command.spawn().map_err(|error| self.why_not(program, &plan, &error))?
            }
        };
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let descriptors = [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ];
        for fd in descriptors.into_iter().flatten() {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        let pid = child.id();
        let foreground = plan.is_server.then(|| {
            let mut command = Command::new(program);
            command.current_dir(&self.launch.cwd);
            self.set_environment(&mut command, &plan, provider_session, relay);
            command.envs(token.iter().map(|token| (token.env, token.secret.expose())));
            command
        });
        let foreground = Foreground::of(foreground);
        let running = self.running(plan, provider_session, child, pid, None)?;
        Ok((Running { stdin, stdout, stderr, foreground, token, ..running }, None))
    }

    /// What a session's process and all that it starts find in their environment.
    fn set_environment(
        &self,
        command: &mut Command,
        plan: &LaunchPlan,
        provider_session: &str,
        relay: &SessionRelay,
    ) {
        // Where nobody says, programs differ in what they take for their home; we look in this one.
        if std::env::var_os("HOME").is_none_or(|home| home.is_empty()) {
            command.envs(os::user_home().map(|home| ("HOME", home)));
        }
        command.envs(plan.env.iter().map(|(k, v)| (k, v)));
        // Last, whoever set them: what is an operator's does not go to an agent, and what was known
        // of it says nothing about the agent's own token.
        let secrets = ["AGENT_RELAY_CRASH_AT", ENV_TOKEN].into_iter().chain(ENV_TOKEN_DATA);
        for name in secrets.chain(plan.unset.iter().map(String::as_str)) {
            command.env_remove(name);
        }
        // Where the relay is by now: the runner may have been started before it was known.
        match &relay.url {
            Some(url) => command.env("AGENT_RELAY_URL", url),
            None => command.env_remove("AGENT_RELAY_URL"),
        };
        command.env(ENV_PORT, self.launch.control.port.to_string());
        command.env(ENV_CONTROL_TOKEN, self.launch.control.token.expose());
        command.env(ENV_PROVIDER_SESSION, provider_session);
        if let Some(token) = relay.token.as_ref().filter(|token| !token.expose().is_empty()) {
            command.env(ENV_TOKEN, token.expose());
        }
    }

    fn start_in_terminal(
        &self,
        terminal: &tmux::Plan<'_>,
        (mut server, client): (Child, Command),
        plan: LaunchPlan,
        provider_session: &str,
    ) -> Result<(Running, Option<String>), LaunchError> {
        let connected = Tmux::connect(terminal, &mut server, client)
            .and_then(|tmux| first_pane(tmux).map_err(|error| error.to_string()));
        let (tmux, pid) = match connected {
            Ok(connected) => connected,
            Err(reason) => {
                end_everything(provider_session, os::process(server.id()));
                reap(server);
                return Err(LaunchError::passing(reason));
            }
        };
        let socket = Some(tmux.socket().to_string());
        Ok((self.running(plan, provider_session, server, pid, Some(tmux))?, socket))
    }

    fn running(
        &self,
        plan: LaunchPlan,
        provider_session: &str,
        mut child: Child,
        pid: u32,
        tmux: Option<Tmux>,
    ) -> Result<Running, LaunchError> {
        let mut pids = vec![child.id()];
        pids.extend((pid != child.id()).then_some(pid));
        let pidfds = match pids.into_iter().map(told_of_end).collect::<Result<Vec<OwnedFd>, _>>() {
            Ok(pidfds) => pidfds,
            Err(error) => {
                let _ = child.kill();
                end_everything(provider_session, os::process(child.id()));
                reap(child);
                return Err(LaunchError::passing(format!("cannot watch the child: {error}")));
            }
        };
        let reply_socket = plan.sockets.as_ref().and_then(|sockets| {
            let opened = ReplySocket::open(Path::new(&sockets.replies), Path::new(&sockets.session));
            opened.inspect_err(|error| log::warn!(target: "provider", "cannot listen at {}: {error}", sockets.replies)).ok()
        });
        Ok(Running {
            number: ProcessNumber::default(),
            server: os::process(child.id()),
            child,
            process: os::process(pid),
            provider_session: provider_session.into(),
            pidfds,
            stdin: None,
            stdout: None,
            stderr: None,
            unwritten: VecDeque::new(),
            last_words: Vec::new(),
            is_server: plan.is_server,
            link: None,
            token: None,
            foreground: Foreground::of(None),
            session: plan.session,
            stop: None,
            tmux,
            dying: None,
            exit: None,
            files: FileWatcher::new(),
            reply_socket,
            heard: Heard::of(plan.is_server),
        })
    }

    fn why_not(&self, program: &str, plan: &LaunchPlan, error: &std::io::Error) -> LaunchError {
        use std::io::ErrorKind::{InvalidInput, NotFound, PermissionDenied};
        let reason = format!("cannot start {program:?}: {error}");
        match error.kind() {
            NotFound if self.launch.cwd.is_dir() => not_found(program, &plan.env, plan.hint),
            NotFound => self.no_folder(error),
            PermissionDenied | InvalidInput => LaunchError::permanent(reason),
            _ => LaunchError::passing(reason),
        }
    }

    /// The sentence for a working directory that cannot be used.
    fn no_folder(&self, error: &std::io::Error) -> LaunchError {
        let cwd = self.launch.cwd.display();
        LaunchError::permanent(match error.kind() {
            std::io::ErrorKind::NotFound => {
                format!("the working directory {cwd} does not exist; make it again, then restart")
            }
            _ => format!("the working directory {cwd} cannot be used: {error}"),
        })
    }
}

/// A folder that a process may be in.
fn may_work_in(folder: &Path) -> std::io::Result<()> {
    if !std::fs::metadata(folder)?.is_dir() {
        return Err(std::io::Error::from(std::io::ErrorKind::NotADirectory));
    }
    Ok(rustix::fs::access(folder, rustix::fs::Access::EXEC_OK)?)
}

/// A descriptor that becomes readable with the end of a process. One that has refused to start may
/// have ended before this is asked, and its last words still count: then it is readable at once.
fn told_of_end(pid: u32) -> std::io::Result<OwnedFd> {
    let found = Pid::from_raw(pid as i32).ok_or(rustix::io::Errno::SRCH);
    match found.and_then(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        Err(rustix::io::Errno::SRCH) => Ok(UnixStream::pair()?.0.into()),
        opened => Ok(opened?),
    }
}
