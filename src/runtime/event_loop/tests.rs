//! The loop under a model of its channels, in every order of pushes, wake-ups and takes; and with
//! the real channels.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::{Lanes, Received, Source, run};
use crate::clock::Clock;
use crate::core::cost::Cost;
use crate::core::rng::Rng;
use crate::core::time::{Now, Tick};
use crate::core::turns::LineId;
use crate::core::{Lane, Machine};
use crate::edge::turns::turns;
use crate::os::Waker;

/// One of the lanes, whichever.
#[derive(Clone, Copy)]
struct AnyLane;

impl Lane for AnyLane {
    const ALL: &'static [AnyLane] = &[AnyLane; 8];
}

/// Hands every event back as its effect. It never sets a deadline, so nothing but a wake-up can
/// help a lane that was forgotten.
#[derive(Default)]
struct Echo;

impl Machine for Echo {
    type Event = u32;
    type Effect = u32;
    type Lane = AnyLane;

    fn handle(&mut self, _now: Now, event: u32) -> Vec<u32> {
        vec![event]
    }

    fn wake(&mut self, _now: Now) -> Vec<u32> {
        Vec::new()
    }

    fn next_deadline(&self) -> Option<Tick> {
        None
    }

    fn may_take(&self, _lane: AnyLane) -> bool {
        true
    }
}

/// One step of an edge. Each push and the end are followed by a wake-up of their own, later.
#[derive(Debug, Clone, Copy)]
enum Step {
    Push(u32),
    Wake,
    End,
}

/// Decisions of one run: replays a prefix, then takes the first way everywhere.
/// [`Choices::advance`] gives the next run.
#[derive(Default)]
struct Choices {
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    fn choose(&mut self, ways: usize) -> usize {
        if self.at == self.made.len() {
            self.made.push((0, ways));
        }
        let (way, known) = self.made[self.at];
        assert_eq!(known, ways, "the same decisions lead to the same place");
        self.at += 1;
        way
    }

    /// False: every order was tried.
    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((way, ways)) = self.made.pop() {
            if way + 1 < ways {
                self.made.push((way + 1, ways));
                return true;
            }
        }
        false
    }
}

/// Nobody has a step left and the loop waits without end.
struct Asleep;

struct Model<'a> {
    queues: Vec<VecDeque<u32>>,
    ended: Vec<bool>,
    /// What each edge still does; edge and lane have the same number.
    scripts: Vec<VecDeque<Step>>,
    choices: &'a mut Choices,
    /// Times that a wait may still return for no reason at all.
    whims: usize,
}

impl Model<'_> {
    fn runnable(&self) -> Vec<usize> {
        (0..self.scripts.len()).filter(|edge| !self.scripts[*edge].is_empty()).collect()
    }

    /// One step of an edge; true: it woke whoever waits for its lane.
    fn step(&mut self, edge: usize) -> bool {
        match self.scripts[edge].pop_front() {
            Some(Step::Push(event)) => self.queues[edge].push_back(event),
            Some(Step::End) => self.ended[edge] = true,
            Some(Step::Wake) => return true,
            None => {}
        }
        false
    }

    /// Any number of steps of the edges happen before the loop goes on.
    fn let_others_run(&mut self) {
        loop {
            let runnable = self.runnable();
            match self.choices.choose(runnable.len() + 1) {
                0 => return,
                // A wake-up while nobody waits is lost, as it is in a real channel.
                way => drop(self.step(runnable[way - 1])),
            }
        }
    }
}

impl Lanes for &mut Model<'_> {
    type Event = u32;

    fn count(&self) -> usize {
        self.queues.len()
    }

    fn take(&mut self, lane: usize) -> Received<u32> {
        self.let_others_run();
        match self.queues[lane].pop_front() {
            Some(event) => Received::Event(event),
            None if self.ended[lane] => Received::Closed,
            None => Received::Empty,
        }
    }

    fn wait(&mut self, lanes: &[usize], timeout: Option<Duration>) {
        assert_eq!(timeout, None, "no timer helps");
        // It enters its name first and looks afterwards.
        if lanes.iter().any(|lane| !self.queues[*lane].is_empty() || self.ended[*lane]) {
            return;
        }
        if self.whims > 0 && self.choices.choose(2) == 1 {
            self.whims -= 1;
            return;
        }
        loop {
            let runnable = self.runnable();
            if runnable.is_empty() {
                resume_unwind(Box::new(Asleep));
            }
            let edge = runnable[self.choices.choose(runnable.len())];
            if self.step(edge) && lanes.contains(&edge) {
                return;
            }
        }
    }
}

/// Runs the loop in every order; how many orders there were.
#[track_caller]
fn every_order(scripts: &[&[Step]], whims: usize) -> u64 {
    let mut wanted: Vec<u32> = scripts
        .iter()
        .flat_map(|script| script.iter())
        .filter_map(|step| if let Step::Push(n) = step { Some(*n) } else { None })
        .collect();
    wanted.sort_unstable();
    let mut choices = Choices::default();
    let mut orders = 0;
    loop {
        orders += 1;
        let mut model = Model {
            queues: vec![VecDeque::new(); scripts.len()],
            ended: vec![false; scripts.len()],
            scripts: scripts.iter().map(|script| script.iter().copied().collect()).collect(),
            choices: &mut choices,
            whims,
        };
        let mut handled = Vec::new();
        let end = catch_unwind(AssertUnwindSafe(|| {
            run(&mut Echo, Clock::start(), &mut model, u32::to_string, |effects| {
                handled.extend(effects);
                true
            });
        }));
        match end {
            Err(end) if end.is::<Asleep>() => {}
            Err(other) => resume_unwind(other),
            Ok(()) => panic!("nothing ends the loop"),
        }
        let in_order = scripts.iter().all(|script| {
            let mut own = script
                .iter()
                .filter_map(|step| if let Step::Push(n) = step { Some(*n) } else { None });
            handled
                .iter()
                .filter(|n| script.iter().any(|step| matches!(step, Step::Push(m) if m == *n)))
                .all(|n| own.next() == Some(*n))
        });
        handled.sort_unstable();
        assert!(
            handled == wanted && in_order,
            "order {orders} left something behind: {handled:?} of {wanted:?}"
        );
        if !choices.advance() {
            return orders;
        }
    }
}

#[test]
fn every_pushed_event_is_handled_in_every_order_of_pushes_and_wake_ups() {
    use Step::{End, Push, Wake};
    let mut orders = 0;
    // One edge, and the wait may return for no reason.
    orders += every_order(&[&[Push(1), Wake, Push(2), Wake, Push(3), Wake]], 2);
    // Two edges; one of them ends.
    orders += every_order(&[&[Push(1), Wake, Push(2), Wake], &[Push(11), Wake]], 0);
    orders += every_order(&[&[Push(1), Wake, Push(2), Wake], &[End, Wake]], 1);
    // Two pushes before their wake-ups, as two senders of one lane do.
    orders += every_order(&[&[Push(1), Push(2), Wake, Wake], &[Push(11), Wake]], 0);
    assert!(orders > 10_000, "only {orders} orders were tried");
}

/// A sender that is held up at random, as an edge is that loses its core in the middle of its work.
struct Held {
    lane: Sender<u32>,
    rng: Rng,
}

impl Held {
    fn send(&mut self, event: u32) {
        for _ in 0..self.rng.below(3) {
            match self.rng.below(4) {
                0 => std::thread::yield_now(),
                1 => std::thread::park_timeout(Duration::from_micros(self.rng.below(60))),
                _ => (0..self.rng.below(400)).for_each(|_| std::hint::spin_loop()),
            }
        }
        self.lane.send(event).expect("the loop listens");
    }
}

#[test]
fn real_channels_under_stress_lose_no_event_and_no_lane() {
    const SENDERS: u32 = 8;
    const EACH: u32 = 4_000;
    let (senders, lanes): (Vec<Sender<u32>>, Vec<Source<u32>>) = (0..4)
        .map(|_| {
            let (sender, receiver) = bounded(4);
            (sender, Source::Channel(receiver))
        })
        .unzip();
    let (tell, told) = bounded(1);
    let loop_thread = std::thread::spawn(move || {
        let mut sum = 0u64;
        let mut left = SENDERS * EACH;
        run(&mut Echo, Clock::start(), &lanes[..], u32::to_string, |effects| {
            left -= effects.len() as u32;
            sum += effects.iter().map(|n| u64::from(*n)).sum::<u64>();
            left > 0
        });
        let _ = tell.send(sum);
    });
    let edges: Vec<_> = (0..SENDERS)
        .map(|number| {
            let mut held = Held {
                lane: senders[number as usize % 4].clone(),
                rng: Rng::new(u64::from(number)),
            };
            std::thread::spawn(move || (0..EACH).for_each(|n| held.send(number * EACH + n)))
        })
        .collect();
    // Nobody but these senders keeps the loop awake.
    drop(senders);
    let started = Instant::now();
    let sum = told
        .recv_timeout(Duration::from_secs(120))
        .expect("the loop handles everything without a timer");
    edges.into_iter().for_each(|edge| edge.join().expect("sends"));
    loop_thread.join().expect("ends");
    let all = u64::from(SENDERS * EACH);
    assert_eq!(sum, all * (all - 1) / 2, "after {:?}", started.elapsed());
}

/// The queue of a gate under the same stress: each event is handled though nobody but the gate
/// keeps the loop awake, and the end of the gate closes its lane.
#[test]
fn a_gates_queue_under_stress_loses_no_event() {
    const EACH: u32 = 20_000;
    let waker = Waker::new().expect("a descriptor");
    let (gate, lane) = turns::<u32>(waker, 64);
    let (tell, told) = bounded(1);
    let loop_thread = std::thread::spawn(move || {
        let (mut sum, mut left) = (0u64, EACH);
        let lanes = [Source::Turns(lane)];
        run(&mut Echo, Clock::start(), &lanes[..], u32::to_string, |effects| {
            left -= effects.len() as u32;
            sum += effects.iter().map(|n| u64::from(*n)).sum::<u64>();
            left > 0
        });
        let _ = tell.send(sum);
    });
    let mut rng = Rng::new(7);
    for number in 0..EACH {
        if rng.percent(20) {
            std::thread::park_timeout(Duration::from_micros(rng.below(60)));
        }
        let line = LineId(rng.below(5));
        let put = gate.put(line, line.0, rng.percent(20), Cost::default(), number);
        assert!(put, "the loop listens");
    }
    let sum = told
        .recv_timeout(Duration::from_secs(120))
        .expect("the loop handles everything without a timer");
    loop_thread.join().expect("ends");
    assert_eq!(sum, u64::from(EACH) * u64::from(EACH - 1) / 2);
    assert!(!gate.put(LineId(1), 1, false, Cost::default(), 0), "nobody takes any more");
    let (gate, lane) = turns::<u32>(Waker::new().expect("a descriptor"), 64);
    gate.put(LineId(1), 1, false, Cost::default(), 5);
    drop(gate);
    let source = Source::Turns(lane);
    assert!(matches!(source.take(), Received::Event(5)));
    assert!(matches!(source.take(), Received::Closed));
}

/// A gate that is behind with its orders is waited for, and wakes the loop when it has caught up.
#[test]
fn a_gate_that_is_behind_is_waited_for() {
    let (gate, lane) = turns::<u32>(Waker::new().expect("a descriptor"), 2);
    let count = lane.order_count();
    for number in 1..=3 {
        gate.put(LineId(1), 1, false, Cost::default(), number);
    }
    let source = Source::Turns(lane);
    for number in 1..=2 {
        assert!(matches!(source.take(), Received::Event(event) if event == number));
        count.add();
    }
    assert!(matches!(source.take(), Received::Empty), "two batches are on their way");
    let (tell, told) = bounded(1);
    let waiting = std::thread::spawn(move || {
        let lanes = [source];
        run(&mut Echo, Clock::start(), &lanes[..], u32::to_string, |_| false);
        let _ = tell.send(());
    });
    gate.note_order_taken();
    told.recv_timeout(Duration::from_secs(60)).expect("it goes on without a timer");
    waiting.join().expect("ends");
}
