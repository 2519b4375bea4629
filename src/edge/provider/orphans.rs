//! What a session leaves behind becomes ours: it is ended with the session, and somebody takes note
//! of its end.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags};

use super::process::end_leftover;
use super::{Host, Provider, tmux};
use crate::core::agent::store::ProviderRecord;
use crate::os;

/// Asks the kernel for orphans, and for a descriptor that tells when a child has ended. `None`: one
/// of both is refused; then they go to the first process of the machine, as without us.
pub(super) fn watch() -> Option<UnixStream> {
    let watched = UnixStream::pair().and_then(|(ours, theirs)| {
        ours.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, theirs)?;
        os::adopt_orphans()?;
        Ok(ours)
    });
    watched
        .inspect_err(|error| log::warn!(target: "provider", "no orphans are adopted: {error}"))
        .ok()
}

impl Provider {
    /// Waits while nothing runs.
    pub(super) fn idle(&mut self) {
        let orphans = self.orphans.as_ref().map(AsFd::as_fd);
        let descriptors = [self.waker.as_fd()].into_iter().chain(orphans);
        let mut fds: Vec<PollFd<'_>> =
            descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        os::wait(&mut fds, None);
        if fds.get(1).is_some_and(os::is_ready) {
            self.reap_orphans();
        }
    }

    /// Those that we have started are waited for by whoever needs their exit codes.
    pub(super) fn reap_orphans(&mut self) {
        let mut told = [0u8; 256];
        while self.orphans.as_mut().is_some_and(|fd| fd.read(&mut told).is_ok_and(|n| n > 0)) {}
        let running = self.running.as_ref();
        let client = running.and_then(|running| running.tmux.as_ref()).map(tmux::Tmux::client);
        let beside = running.and_then(|running| running.foreground.pid());
        let child = running.map(|running| running.child.id());
        let own: Vec<u32> = child.into_iter().chain(client).chain(beside).collect();
        if !crate::planted::is("unreaped-orphans") {
            os::reap_adopted(&own);
        }
    }

    /// Ends what an earlier runner left, also one of another version or with other settings.
    pub(super) fn end_leftover(&self, record: &ProviderRecord, terminal: Option<String>) {
        let mut terminals: Vec<PathBuf> = terminal.into_iter().map(PathBuf::from).collect();
        if let Host::Tmux { former, .. } = &self.launch.host {
            terminals.push(tmux::former_socket(former));
        }
        end_leftover(record, &terminals);
    }
}
