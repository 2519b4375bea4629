//! Ends the provider, by request first and then by force, and reads its last output.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal as OsSignal;

use super::process::{end_everything, reap};
use super::{Host, Provider};
use crate::core::agent::event::ProviderEvent;
use crate::core::session::Input;
use crate::os;

/// The last screen of a terminal whose program has ended may take this long.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// A stop under way.
pub(super) struct Stop {
    pub(super) term_at: Instant,
    pub(super) kill_at: Instant,
    pub(super) termed: bool,
    pub(super) killed: bool,
}

impl Provider {
    /// The provider or the server of its terminal has ended.
    pub(super) fn on_death(&mut self) -> bool {
        let Some(running) = &mut self.running else {
            return true;
        };
        match &mut running.tmux {
            Some(tmux) => {
                let asked = tmux.last_look().is_ok();
                running.dying = asked.then(|| Instant::now() + LAST_LOOK);
                if asked { true } else { self.on_exit() }
            }
            None => self.on_exit(),
        }
    }

    /// Polite first, then firmer: input closed, SIGTERM to the group, SIGKILL to everything it
    /// started.
    pub(super) fn escalate(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(stop) = &mut running.stop else {
            return;
        };
        let (process, now) = (running.process, Instant::now());
        if !stop.termed && now >= stop.term_at {
            stop.termed = true;
            // A stopped child could not die. In the terminal that we were started in, it shares our
            // own group.
            let inherited = self.launch.host == Host::Inherited && !running.is_server;
            for signal in [OsSignal::CONT, OsSignal::TERM] {
                if inherited {
                    os::kill(process, signal)
                } else {
                    os::kill_group(process.pid, signal)
                }
            }
        }
        if stop.termed && !stop.killed && now >= stop.kill_at {
            stop.killed = true;
            // The server of a terminal stays for the last words; it ends with everything else
            // afterwards.
            match running.tmux {
                Some(_) => os::kill(process, OsSignal::KILL),
                None => end_everything(&running.provider_session, process),
            }
        }
    }

    pub(super) fn on_exit(&mut self) -> bool {
        // Its last output still counts: the pipes are read to the end, but never waited for.
        for _ in 0..1024 {
            let Some(running) = &mut self.running else {
                return true;
            };
            let Some(stdout) = running.stdout.as_ref().filter(|_| running.tmux.is_none()) else {
                break;
            };
            let mut fds = [PollFd::new(stdout, PollFlags::IN)];
            os::wait(&mut fds, Some(Duration::ZERO));
            if !os::is_ready(&fds[0]) {
                break;
            }
            if !self.read_stdout() {
                return false;
            }
        }
        if !self.read_stderr()
            || !self.look_at_files()
            || !self.feed_last_words()
            || !self.feed(Input::Closed)
        {
            return false;
        }
        let Some(mut running) = self.running.take() else {
            return true;
        };
        // Also after a clean exit: children that outlived the provider, and the server of the
        // terminal.
        running.tmux = None;
        running.foreground.end();
        end_everything(&running.provider_session, running.server);
        let code = reap(running.child);
        let code = running.exit.unwrap_or(code);
        let _ = self.launch.child_registrations.send(None);
        log::debug!(target: "provider", "child gone start={} code={code}", running.process.start);
        let stderr = String::from_utf8_lossy(&running.last_words).into_owned();
        self.report(ProviderEvent::Exited { code, stderr })
    }

    /// What a program without a terminal has said at its end: why it has refused, for example.
    fn feed_last_words(&mut self) -> bool {
        let words = match &self.running {
            Some(running) if running.tmux.is_none() => running.last_words.as_slice(),
            _ => return true,
        };
        let words = String::from_utf8_lossy(words).into_owned();
        words.is_empty() || self.feed(Input::LastWords(words))
    }
}
