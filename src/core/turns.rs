//! Turns between those who ask: whoever asks much waits behind itself, not in front of others.
//!
//! Everything that waits belongs to a line, that of the token it came with. Lines are served in
//! turn, each for a few events, bytes and values; what is more than its share counts against its
//! next turns. A second ring is for what must not wait behind any crowd: people, and signs of life
//! and acknowledgements of agents.

use std::collections::{HashMap, VecDeque};

use super::cost::Cost;
use super::limits::{TURN_BYTES_MAX, TURN_EVENTS_MAX, TURN_MEMBERS_MAX, URGENT_BYTES_MAX};

/// Who is asked for: a token with its renewals, or all who have none together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LineId(pub u64);

impl LineId {
    /// All without a valid token.
    pub const STRANGERS: LineId = LineId(0);

    /// A line that is known by a name; two names are hardly ever one line, and then share turns.
    pub fn named(name: &str) -> LineId {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        LineId(name.bytes().fold(0xcbf2_9ce4_8422_2325, step))
    }
}

/// What was taken of one line in a row while others waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Row {
    /// Events.
    pub events: u64,
    /// Bytes before the last of them.
    pub bytes: u64,
    /// Values before the last of them.
    pub members: u64,
}

/// What is left of a share; below zero it is owed.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    bytes: i64,
    members: i64,
}

impl Share {
    fn is_left(self) -> bool {
        self.bytes > 0 && self.members > 0
    }

    fn add_turn(&mut self) {
        self.bytes = (self.bytes + TURN_BYTES_MAX as i64).min(TURN_BYTES_MAX as i64);
        self.members = (self.members + TURN_MEMBERS_MAX as i64).min(TURN_MEMBERS_MAX as i64);
    }

    fn take(&mut self, cost: Cost) {
        self.bytes -= cost.bytes as i64;
        self.members -= cost.members as i64;
    }
}

/// One that waits.
#[derive(Debug)]
struct Waiting<E> {
    source: u64,
    cost: Cost,
    event: E,
}

/// What waits of a line in one ring.
#[derive(Debug)]
struct Queue<E> {
    waiting: VecDeque<Waiting<E>>,
    share: Share,
}

/// A line in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    line: LineId,
    is_reserved: bool,
}

/// Whose turn it is.
#[derive(Debug)]
struct Turn {
    place: Place,
    events_left: usize,
}

/// The queue of all lines.
#[derive(Debug)]
pub struct Turns<E> {
    queues: HashMap<Place, Queue<E>>,
    /// Places with something that waits, but the one whose turn it is: the ordinary ones and the
    /// reserve.
    rings: [VecDeque<Place>; 2],
    turn: Option<Turn>,
    /// Where the last event came from.
    last: Option<Place>,
    row: Row,
    row_cost: Cost,
    most: Row,
    /// Events and bytes that wait, by line.
    held: HashMap<LineId, (usize, usize)>,
    /// Events that wait in each ring, by source.
    sources: HashMap<u64, [usize; 2]>,
    len: usize,
}

impl<E> Default for Turns<E> {
    fn default() -> Turns<E> {
        Turns {
            queues: HashMap::new(),
            rings: Default::default(),
            turn: None,
            last: None,
            row: Row::default(),
            row_cost: Cost::default(),
            most: Row::default(),
            held: HashMap::new(),
            sources: HashMap::new(),
            len: 0,
        }
    }
}

impl<E> Turns<E> {
    /// Adds an event of a line. Events of one source keep their order: an urgent one waits behind
    /// ordinary ones that are there already, and a small one does not pass urgent ones.
    pub fn push(&mut self, line: LineId, source: u64, is_urgent: bool, cost: Cost, event: E) {
        let waits = self.sources.entry(source).or_default();
        let follows = waits[1] > 0 && cost.bytes <= URGENT_BYTES_MAX;
        let is_reserved = waits[0] == 0 && (is_urgent || follows);
        waits[usize::from(is_reserved)] += 1;
        let place = Place { line, is_reserved };
        let held = self.held.entry(line).or_default();
        *held = (held.0 + 1, held.1 + cost.bytes);
        self.len += 1;
        let is_turn = self.turn.as_ref().is_some_and(|turn| turn.place == place);
        let queue = self.queues.entry(place).or_insert_with(|| {
            if !is_turn {
                self.rings[usize::from(is_reserved)].push_back(place);
            }
            Queue { waiting: VecDeque::new(), share: Share::default() }
        });
        queue.waiting.push_back(Waiting { source, cost, event });
    }

    /// Takes the next event.
    pub fn pop(&mut self) -> Option<E> {
        loop {
            let Some(Turn { place, events_left }) = self.turn else {
                self.begin_turn()?;
                continue;
            };
            let others = self.others_wait(place.line);
            let Some(queue) = self.queues.get_mut(&place) else {
                self.turn = None;
                continue;
            };
            let is_over = events_left == 0 || !queue.share.is_left();
            if others && is_over && !crate::planted::is("one-lane") {
                self.end_turn();
                continue;
            }
            let waiting = queue.waiting.pop_front()?;
            queue.share.take(waiting.cost);
            if queue.waiting.is_empty() {
                self.queues.remove(&place);
            }
            if let Some(turn) = &mut self.turn {
                turn.events_left = events_left.saturating_sub(1);
            }
            self.note_taken(place, &waiting);
            return Some(waiting.event);
        }
    }

    fn others_wait(&self, line: LineId) -> bool {
        self.len > self.held.get(&line).map_or(0, |held| held.0)
    }

    /// Chooses whose turn is next: the other ring, and another line, where something waits there.
    fn begin_turn(&mut self) -> Option<()> {
        let last = self.last;
        let first = last.is_some_and(|last| !last.is_reserved);
        let is_other = |place: &Place| last.is_none_or(|last| last.line != place.line);
        let rings = [usize::from(first), usize::from(!first)];
        let chosen = rings.iter().find_map(|ring| {
            // A line stands once in each ring: the first or the second is another one.
            let at = self.rings[*ring].iter().take(2).position(is_other)?;
            Some((*ring, at))
        });
        let (ring, at) = chosen.or_else(|| {
            rings.iter().find(|ring| !self.rings[**ring].is_empty()).map(|r| (*r, 0))
        })?;
        let place = self.rings[ring].remove(at)?;
        let queue = self.queues.get_mut(&place)?;
        queue.share.add_turn();
        self.turn = Some(Turn { place, events_left: TURN_EVENTS_MAX });
        Some(())
    }

    fn end_turn(&mut self) {
        let Some(Turn { place, .. }) = self.turn.take() else { return };
        if let Some(queue) = self.queues.get_mut(&place) {
            // What is left of a share is not kept, what is owed is.
            queue.share.bytes = queue.share.bytes.min(0);
            queue.share.members = queue.share.members.min(0);
            self.rings[usize::from(place.is_reserved)].push_back(place);
            self.last = Some(place);
        }
    }

    fn note_taken(&mut self, place: Place, taken: &Waiting<E>) {
        self.len -= 1;
        if let Some(held) = self.held.get_mut(&place.line) {
            *held = (held.0 - 1, held.1 - taken.cost.bytes);
            if held.0 == 0 {
                self.held.remove(&place.line);
            }
        }
        if let Some(waits) = self.sources.get_mut(&taken.source) {
            waits[usize::from(place.is_reserved)] -= 1;
            if *waits == [0, 0] {
                self.sources.remove(&taken.source);
            }
        }
        let goes_on = self.last.is_some_and(|last| last.line == place.line);
        if !goes_on || !self.others_wait(place.line) {
            (self.row, self.row_cost) = (Row::default(), Cost::default());
        }
        self.last = Some(place);
        if !self.others_wait(place.line) {
            return;
        }
        self.row.events += 1;
        (self.row.bytes, self.row.members) =
            (self.row_cost.bytes as u64, self.row_cost.members as u64);
        self.row_cost.bytes += taken.cost.bytes;
        self.row_cost.members += taken.cost.members;
        self.most.events = self.most.events.max(self.row.events);
        self.most.bytes = self.most.bytes.max(self.row.bytes);
        self.most.members = self.most.members.max(self.row.members);
    }

    /// Events and bytes of a line that wait.
    pub fn held_by(&self, line: LineId) -> (usize, usize) {
        self.held.get(&line).copied().unwrap_or_default()
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most that was taken of one line in a row while another one waited.
    pub fn most(&self) -> Row {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::rng::Rng;

    fn cost(bytes: usize, members: usize) -> Cost {
        Cost { bytes, members, depth: 1 }
    }

    /// Whatever one line has put in, another one waits for a turn of it at most.
    #[test]
    fn one_line_never_has_more_than_its_turn_while_another_waits() {
        for each in [cost(100, 5), cost(40 << 10, 5), cost(1000, 1500), cost(1 << 20, 4096)] {
            let mut turns = Turns::default();
            (0..500).for_each(|_| turns.push(LineId(1), 1, false, each, 1));
            let mut last = 0;
            for _ in 0..20 {
                assert_eq!(turns.pop(), Some(1), "alone it goes on");
            }
            for round in 0..10 {
                turns.push(LineId(2), 2, false, cost(100, 5), 2);
                let waits = (0..).take_while(|_| turns.pop() == Some(1)).count();
                assert!(waits <= TURN_EVENTS_MAX, "{waits} in round {round}");
                last = waits;
            }
            let most = turns.most();
            assert!(most.events <= TURN_EVENTS_MAX as u64, "{most:?}");
            assert!(most.bytes < TURN_BYTES_MAX as u64, "{most:?}");
            assert!(most.members < TURN_MEMBERS_MAX as u64, "{most:?}");
            assert!(last <= TURN_EVENTS_MAX);
        }
    }

    /// Whoever had much in one turn has less in the next ones: bytes are shared, not events.
    #[test]
    fn what_is_more_than_a_share_counts_against_the_next_turns() {
        let mut turns = Turns::default();
        (0..200).for_each(|_| turns.push(LineId(1), 1, false, cost(1 << 20, 1), 1usize));
        (0..2000).for_each(|_| turns.push(LineId(2), 2, false, cost(16 << 10, 1), 2));
        let first: Vec<usize> = (0..1000).filter_map(|_| turns.pop()).collect();
        let large = first.iter().filter(|line| **line == 1).count();
        assert!((10..=18).contains(&large), "{large} of 1 MB beside 1,000 of 16 KB");
    }

    /// People and signs of life do not wait behind any number of greedy lines.
    #[test]
    fn the_reserve_is_served_between_any_two_turns() {
        let mut turns = Turns::default();
        for line in 1..=1000 {
            (0..64).for_each(|_| turns.push(LineId(line), line, false, cost(500, 5), line));
        }
        (0..10).for_each(|_| assert!(turns.pop().is_some()));
        turns.push(LineId(5000), 5000, true, cost(100, 5), 5000);
        let waits = (0..).take_while(|_| turns.pop() != Some(5000)).count();
        assert!(waits <= TURN_EVENTS_MAX, "{waits}");
        // One more in the reserve waits for two turns at most.
        turns.push(LineId(7), 9999, true, cost(100, 5), 7777);
        let waits = (0..).take_while(|_| turns.pop() != Some(7777)).count();
        assert!(waits <= 2 * TURN_EVENTS_MAX, "{waits}");
    }

    /// At random: nothing is lost or doubled, what one source has put in keeps its order, and no
    /// row is longer than a turn.
    #[test]
    fn order_and_shares_hold_at_random() {
        for seed in 1..=300 {
            let mut rng = Rng::new(seed);
            let mut turns = Turns::default();
            let (mut put, mut got) = ([0u64; 12], [0u64; 12]);
            for _ in 0..2000 {
                if rng.percent(52) {
                    let source = rng.below(12);
                    let line = LineId(source / 3);
                    let large = if source.is_multiple_of(2) { 50 } else { 1 << 20 };
                    let bytes = [50, 200, 4000, large][rng.below(4) as usize];
                    let event = (source, put[source as usize]);
                    put[source as usize] += 1;
                    let urgent = rng.percent(30);
                    turns.push(line, source, urgent, cost(bytes, bytes / 200), event);
                } else if let Some((source, number)) = turns.pop() {
                    // Only what is large may be passed by what came before it.
                    let in_order = number == got[source as usize] || source % 2 == 1;
                    assert!(in_order, "seed {seed}");
                    got[source as usize] += 1;
                }
            }
            while let Some((source, number)) = turns.pop() {
                let in_order = number == got[source as usize] || source % 2 == 1;
                assert!(in_order, "seed {seed}");
                got[source as usize] += 1;
            }
            assert!(put == got && turns.is_empty() && turns.held.is_empty(), "seed {seed}");
            assert!(turns.queues.is_empty() && turns.sources.is_empty(), "seed {seed}");
            assert!(turns.most().events <= TURN_EVENTS_MAX as u64, "seed {seed}");
        }
    }
}
