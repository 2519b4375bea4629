//! Deadlines of a machine: one list of names, one match that tells when, one that tells what then.

use super::time::Tick;

/// Declares the timers of a machine, in the order in which those that are due together fire. Both
/// matches of [`Timed`] have to know every name, so that none can be forgotten.
macro_rules! timers {
    ($(#[$about:meta])* $seen:vis enum $name:ident { $($(#[$what:meta])* $timer:ident,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $seen enum $name { $($(#[$what])* $timer,)+ }

        impl $name {
            /// How many there are.
            pub const COUNT: usize = [$($name::$timer),+].len();
        }

        impl $crate::core::timers::TimerName for $name {
            const ALL: &'static [$name] = &[$($name::$timer),+];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(crate) use timers;

/// The names of a machine's timers.
pub(crate) trait TimerName: Copy + 'static {
    /// Each of them, in the order in which they fire.
    const ALL: &'static [Self];

    /// Its place in [`TimerName::ALL`].
    fn index(self) -> usize;
}

/// Timers that are set and cleared by hand. What a machine knows anyway, for example the end of
/// each lease, needs no place here.
#[derive(Debug)]
pub(crate) struct Timers<T, const COUNT: usize> {
    at: [Option<Tick>; COUNT],
    names: std::marker::PhantomData<T>,
}

impl<T, const COUNT: usize> Default for Timers<T, COUNT> {
    fn default() -> Self {
        Timers { at: [None; COUNT], names: std::marker::PhantomData }
    }
}

impl<T: TimerName, const COUNT: usize> Timers<T, COUNT> {
    /// It is due then, whatever was set before.
    pub fn set(&mut self, timer: T, at: Tick) {
        self.at[timer.index()] = Some(at);
    }

    /// It is due then, unless it is set already.
    pub fn set_once(&mut self, timer: T, at: Tick) {
        self.at[timer.index()].get_or_insert(at);
    }

    /// It is due then at the latest.
    pub fn set_by(&mut self, timer: T, at: Tick) {
        let known = &mut self.at[timer.index()];
        *known = Some(known.map_or(at, |known| known.min(at)));
    }

    /// It is due never.
    pub fn clear(&mut self, timer: T) {
        self.at[timer.index()] = None;
    }

    /// When it is due, if it is set.
    pub fn at(&self, timer: T) -> Option<Tick> {
        self.at[timer.index()]
    }

    /// Whether it is set.
    pub fn is_set(&self, timer: T) -> bool {
        self.at(timer).is_some()
    }
}

/// A machine with timers.
pub(crate) trait Timed {
    /// Their names.
    type Timer: TimerName;

    /// When a timer is due, `None` while it is not set or may not fire.
    fn deadline(&self, timer: Self::Timer) -> Option<Tick>;

    /// What happens when it is due. Afterwards it is set anew or not at all.
    fn fire(&mut self, timer: Self::Timer);

    /// When the first one is due.
    fn first_deadline(&self) -> Option<Tick> {
        Self::Timer::ALL.iter().filter_map(|timer| self.deadline(*timer)).min()
    }

    /// Lets every timer fire that is due, each once. One that an earlier one has just made due
    /// fires too.
    fn fire_due(&mut self, now: Tick) {
        for timer in Self::Timer::ALL {
            if self.deadline(*timer).is_some_and(|at| at <= now) {
                self.fire(*timer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    timers! {
        /// Three of them.
        enum Letter {
            A,
            B,
            C,
        }
    }

    #[derive(Default)]
    struct Machine {
        timers: Timers<Letter, { Letter::COUNT }>,
        may_b: bool,
        fired: Vec<Letter>,
    }

    impl Timed for Machine {
        type Timer = Letter;

        fn deadline(&self, timer: Letter) -> Option<Tick> {
            self.timers.at(timer).filter(|_| self.may_b || timer != Letter::B)
        }

        /// The first one makes the last one due.
        fn fire(&mut self, timer: Letter) {
            self.timers.clear(timer);
            self.fired.push(timer);
            if timer == Letter::A {
                self.timers.set(Letter::C, Tick(1));
            }
        }
    }

    #[test]
    fn what_is_due_fires_in_the_order_of_the_names() {
        let mut machine = Machine { may_b: true, ..Machine::default() };
        assert_eq!(machine.first_deadline(), None);
        machine.timers.set(Letter::C, Tick(30));
        machine.timers.set(Letter::B, Tick(20));
        machine.timers.set(Letter::A, Tick(10));
        assert_eq!(machine.first_deadline(), Some(Tick(10)));
        machine.fire_due(Tick(9));
        assert_eq!(machine.fired, []);
        machine.fire_due(Tick(20));
        assert_eq!(
            machine.fired,
            [Letter::A, Letter::B, Letter::C],
            "the last one was made due by the first"
        );
        assert_eq!(machine.first_deadline(), None);
    }

    #[test]
    fn what_may_not_fire_keeps_its_time_and_wakes_nobody() {
        let mut machine = Machine::default();
        machine.timers.set(Letter::B, Tick(20));
        machine.fire_due(Tick(50));
        assert_eq!((machine.first_deadline(), machine.fired.len()), (None, 0));
        machine.may_b = true;
        assert_eq!(machine.first_deadline(), Some(Tick(20)));
        machine.fire_due(Tick(50));
        assert_eq!(machine.fired, [Letter::B]);
    }

    #[test]
    fn a_timer_is_set_again_or_only_once() {
        let mut timers = Timers::<Letter, { Letter::COUNT }>::default();
        timers.set_once(Letter::A, Tick(3));
        timers.set_once(Letter::A, Tick(2));
        assert_eq!(timers.at(Letter::A), Some(Tick(3)));
        timers.set_by(Letter::A, Tick(4));
        assert_eq!(timers.at(Letter::A), Some(Tick(3)));
        timers.set_by(Letter::A, Tick(1));
        assert_eq!(timers.at(Letter::A), Some(Tick(1)));
        timers.set(Letter::A, Tick(2));
        assert!(timers.is_set(Letter::A) && !timers.is_set(Letter::B));
        assert_eq!(timers.at(Letter::A), Some(Tick(2)));
        timers.clear(Letter::A);
        assert!(!timers.is_set(Letter::A));
    }
}
