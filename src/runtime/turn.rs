//! The turn of a state thread, for every machine: take events from the lanes, round robin and only with credit, handle
//! each, carry out its effects, remember the last ones.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use crossbeam_channel::{Receiver, Select};

use crate::clock::Clock;
use crate::core::Machine;

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

/// Runs a machine until `dispatch` says that it has finished. Never blocks but in one wait for all lanes.
pub fn run<M: Machine>(
    machine: &mut M,
    clock: Clock,
    lanes: &[Receiver<M::Event>],
    summary: impl Fn(&M::Event) -> String,
    mut dispatch: impl FnMut(Vec<M::Effect>) -> bool,
) {
    let mut first = 0;
    let mut closed = vec![false; lanes.len()];
    loop {
        let now = clock.now();
        if machine.next_deadline().is_some_and(|at| at <= now.tick) {
            remember("wake".into());
            if !dispatch(machine.wake(now)) {
                return;
            }
        }
        let mut taken = 0;
        for turn in 0..lanes.len() {
            let lane = (first + turn) % lanes.len();
            for _ in 0..LANE_QUOTA {
                if !machine.may_take(lane) {
                    break;
                }
                let Ok(event) = lanes[lane].try_recv() else {
                    break;
                };
                taken += 1;
                remember(summary(&event));
                crate::os::crash_point("event");
                if !dispatch(machine.handle(clock.now(), event)) {
                    return;
                }
            }
        }
        first = (first + 1) % lanes.len();
        if taken == 0 {
            wait(machine, &clock, lanes, &mut closed);
        }
    }
}

/// Waits for a lane that may be served, or for the next deadline.
fn wait<M: Machine>(machine: &M, clock: &Clock, lanes: &[Receiver<M::Event>], closed: &mut [bool]) {
    let mut select = Select::new();
    let mut places = Vec::with_capacity(lanes.len());
    for (at, lane) in lanes.iter().enumerate() {
        if machine.may_take(at) && !closed[at] {
            select.recv(lane);
            places.push(at);
        }
    }
    let left = machine.next_deadline().map(|at| at - clock.now().tick);
    let ready = match left {
        Some(left) => select.ready_timeout(left + Duration::from_micros(50)).ok(),
        None => Some(select.ready()),
    };
    // A lane whose edge is gone is ready for ever: it is left out from now on. Its bell is an event of its own.
    match ready.map(|place| places[place]) {
        Some(lane) if lanes[lane].is_empty() => closed[lane] = true,
        _ => {}
    }
}
