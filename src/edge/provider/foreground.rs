//! A program beside the session, in the terminal that we were started in: the provider's own
//! window on a session that a server of it holds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal as OsSignal, pidfd_open};

use super::Provider;
use super::process::reap;
use crate::core::session::Input;
use crate::os;

/// From the request to end to the end by force: so long it may take to tidy up the terminal.
const END_WAIT: Duration = Duration::from_secs(1);

/// What is started there, and what runs.
pub struct Foreground {
    /// Program, folder and environment; the arguments come with each start.
    template: Option<Command>,
    running: Option<(Child, OwnedFd)>,
}

impl Foreground {
    /// A place for a program; without one nothing can be started.
    pub fn of(template: Option<Command>) -> Foreground {
        Foreground { template, running: None }
    }

    /// What becomes readable when it ends.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|(_, fd)| fd.as_fd())
    }

    /// What runs, which is waited for here.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|(child, _)| child.id())
    }

    /// Starts it, instead of an earlier one.
    fn start(&mut self, arguments: &[String]) -> std::io::Result<()> {
        self.end();
        let Some(template) = &self.template else {
            return Err(std::io::Error::other("the provider is no server"));
        };
        let mut command = Command::new(template.get_program());
        command.args(arguments).stdin(Stdio::inherit()).stdout(Stdio::inherit());
        command.stderr(Stdio::inherit());
        for (name, value) in template.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        template.get_current_dir().into_iter().for_each(|folder| {
            command.current_dir(folder);
        });
        os::prepare_child(&mut command, false);
        let mut child = command.spawn()?;
        let pid = Pid::from_raw(child.id() as i32).ok_or(rustix::io::Errno::SRCH);
        match pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Ok(fd) => {
                self.running = Some((child, fd));
                Ok(())
            }
            Err(error) => {
                let _ = child.kill();
                reap(child);
                Err(error.into())
            }
        }
    }

    /// Its exit code, once it has ended.
    fn take_exit(&mut self) -> Option<i32> {
        self.running.take().map(|(child, _)| reap(child))
    }

    /// Ends it, politely first: it has changed the modes of the terminal.
    pub fn end(&mut self) {
        let Some((child, fd)) = self.running.take() else { return };
        os::kill(os::process(child.id()), OsSignal::TERM);
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        os::wait(&mut fds, Some(END_WAIT));
        if !os::is_ready(&fds[0]) {
            os::kill(os::process(child.id()), OsSignal::KILL);
        }
        reap(child);
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        self.end();
    }
}

impl Provider {
    pub(super) fn start_foreground(&mut self, arguments: &[String]) {
        let Some(running) = &mut self.running else { return };
        if let Err(error) = running.foreground.start(arguments) {
            log::error!(target: "provider", "cannot start the provider's terminal program: {error}");
            self.feed(Input::ForegroundEnded(127));
        }
    }

    pub(super) fn on_foreground_ended(&mut self) -> bool {
        let code = self.running.as_mut().and_then(|running| running.foreground.take_exit());
        code.is_none_or(|code| self.feed(Input::ForegroundEnded(code)))
    }
}
