//! Thread `watch`: waits for the ends of sessions' main processes, by descriptors of the kernel, so
//! that nothing has to look again and again.

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;

use crate::core::ids::ProcessRef;
use crate::core::orchestrator::event::Event;
use crate::core::orchestrator::systemd::Exit;
use crate::os::{self, Waker};

/// A process to watch, and what its end is told as.
#[allow(missing_docs)] // the names say it
#[derive(Debug)]
pub struct Watched {
    pub session: String,
    pub launch: String,
    pub process: ProcessRef,
}

/// Body of the thread.
pub fn run(orders: Receiver<Watched>, waker: Waker, lane: Sender<Event>) {
    let mut watched: Vec<(Watched, OwnedFd)> = Vec::new();
    loop {
        let (woken, ended) = {
            let mut fds: Vec<PollFd> = vec![PollFd::new(&waker, PollFlags::IN)];
            fds.extend(watched.iter().map(|(_, end)| PollFd::new(end, PollFlags::IN)));
            os::wait(&mut fds, None);
            let ready: Vec<bool> = fds.iter().map(os::is_ready).collect();
            (ready[0], ready[1..].to_vec())
        };
        let mut at = 0;
        let (over, left) = watched.into_iter().partition(|_| {
            at += 1;
            ended[at - 1]
        });
        watched = left;
        let over: Vec<(Watched, OwnedFd)> = over;
        for (one, _) in over {
            if !tell(&lane, one) {
                return;
            }
        }
        if !woken {
            continue;
        }
        waker.clear();
        loop {
            match orders.try_recv() {
                Ok(one) => match os::end_of(one.process) {
                    Some(end) => watched.push((one, end)),
                    None if !tell(&lane, one) => return,
                    None => {}
                },
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }
}

fn tell(lane: &Sender<Event>, one: Watched) -> bool {
    let exit = os::reap(one.process.pid).map(|(code, signal)| match (code, signal) {
        (_, Some(signal)) => Exit::Signal(signal),
        (Some(0), None) => Exit::Orderly,
        (Some(code), None) => Exit::Code(code),
        (None, None) => Exit::Unknown,
    });
    lane.send(Event::Gone { session: one.session, launch: one.launch, exit }).is_ok()
}
