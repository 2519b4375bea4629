//! The event loop of a state thread, for every machine: take events from the lanes, round robin and
//! only with credit, handle each, carry out its effects, remember the last ones.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, TryRecvError};

use crate::clock::Clock;
use crate::core::{Lane, Machine};
use crate::edge::turns::{Taken, TurnsOut};

#[cfg(test)]
mod tests;

/// Events of one lane before the next lane has its turn.
const LANE_QUOTA: usize = 16;
/// Recent events that are printed when something dies.
const RECENT_MAX: usize = 64;

thread_local! {
    static RECENT: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

/// The last events of this thread, oldest first; for panic messages.
pub fn recent() -> Vec<String> {
    RECENT.with(|recent| recent.borrow().iter().cloned().collect())
}

fn remember(text: String) {
    RECENT.with(|recent| {
        let mut recent = recent.borrow_mut();
        if recent.len() >= RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(text);
    });
}

/// What a lane gives when it is asked.
#[derive(Debug, PartialEq)]
pub enum Received<E> {
    /// Its oldest event.
    Event(E),
    /// Nothing for now.
    Empty,
    /// Nothing ever again: its edge is gone and everything that it had put in was taken.
    Closed,
}

/// The lanes of a state thread, as far as the event loop may rely on them. A small contract, so
/// that the same loop also runs under a model that tries every order of pushes and wake-ups.
pub trait Lanes {
    /// What is in them.
    type Event;
    /// How many there are.
    fn count(&self) -> usize;
    /// Takes from a lane without waiting. Only this tells whether a lane is closed.
    fn take(&mut self, lane: usize) -> Received<Self::Event>;
    /// Waits until one of these lanes may have something, or the time is over. It may return early
    /// and for no reason: a push and its wake-up are two steps, and the event may have been taken
    /// between them.
    fn wait(&mut self, lanes: &[usize], timeout: Option<Duration>);
}

/// One lane of a state thread: a channel, or a gate's queue.
pub enum Source<E> {
    /// First come, first served.
    Channel(Receiver<E>),
    /// Token lines in turn.
    Turns(TurnsOut<E>),
}

impl<E> Clone for Source<E> {
    fn clone(&self) -> Source<E> {
        match self {
            Source::Channel(lane) => Source::Channel(lane.clone()),
            Source::Turns(lane) => Source::Turns(lane.clone()),
        }
    }
}

impl<E> Source<E> {
    fn take(&self) -> Received<E> {
        match self {
            Source::Channel(lane) => match lane.try_recv() {
                Ok(event) => Received::Event(event),
                Err(TryRecvError::Empty) => Received::Empty,
                Err(TryRecvError::Disconnected) => Received::Closed,
            },
            Source::Turns(lane) => match lane.take() {
                Taken::Event(event) => Received::Event(event),
                Taken::Empty => Received::Empty,
                Taken::Closed => Received::Closed,
            },
        }
    }

    /// Throws away what is in it, so that no edge waits for room.
    pub fn drain(&self) {
        while matches!(self.take(), Received::Event(_)) {}
    }
}

impl<E> Lanes for &[Source<E>] {
    type Event = E;

    fn count(&self) -> usize {
        self.len()
    }

    fn take(&mut self, lane: usize) -> Received<E> {
        self[lane].take()
    }

    fn wait(&mut self, lanes: &[usize], timeout: Option<Duration>) {
        let mut select = Select::new();
        for lane in lanes {
            match &self[*lane] {
                Source::Channel(lane) => select.recv(lane),
                Source::Turns(lane) => select.recv(lane.bell()),
            };
        }
        // Which lane it names is not used: it may be empty again by now.
        match timeout {
            Some(left) => drop(select.ready_timeout(left)),
            None => drop(select.ready()),
        }
    }
}

/// Runs a machine until `dispatch` says that it has finished. Never blocks but in one wait for all
/// lanes.
pub fn run<M: Machine>(
    machine: &mut M,
    clock: Clock,
    mut lanes: impl Lanes<Event = M::Event>,
    summary: impl Fn(&M::Event) -> String,
    mut dispatch: impl FnMut(Vec<M::Effect>) -> bool,
) {
    let count = lanes.count();
    let (mut first, mut waited) = (0, false);
    // A closed lane would be ready for ever, so it is left out; the end of its thread is an event
    // of its own.
    let mut closed = vec![false; count];
    loop {
        let now = clock.now();
        if machine.next_deadline().is_some_and(|at| at <= now.tick) {
            remember("wake".into());
            if !dispatch(machine.wake(now)) {
                return;
            }
        }
        let mut taken = 0;
        for lane in (first..count).chain(0..first) {
            for _ in 0..LANE_QUOTA {
                if closed[lane] || !machine.may_take(M::Lane::ALL[lane]) {
                    break;
                }
                let event = match lanes.take(lane) {
                    Received::Event(event) => event,
                    Received::Empty => {
                        closed[lane] = crate::planted::is("deaf-lane") && waited;
                        break;
                    }
                    Received::Closed => {
                        closed[lane] = true;
                        break;
                    }
                };
                taken += 1;
                remember(summary(&event));
                crate::os::crash_point("event");
                if !dispatch(machine.handle(clock.now(), event)) {
                    return;
                }
            }
        }
        first = (first + 1) % count;
        if taken == 0 {
            let open: Vec<usize> = (0..count)
                .filter(|lane| !closed[*lane] && machine.may_take(M::Lane::ALL[*lane]))
                .collect();
            let left =
                machine.next_deadline().map(|at| at - clock.now().tick + Duration::from_micros(50));
            lanes.wait(&open, left);
            waited = true;
        }
    }
}
