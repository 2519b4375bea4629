//! The queue between a gate and its state thread (not a thread): whoever asks much waits behind
//! itself ([`Turns`]). Putting in never waits; the gate looks for room before it reads more.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use crate::core::cost::Cost;
use crate::core::turns::{LineId, Row, Turns};
use crate::os::Waker;

/// What both ends share.
struct Shared<E> {
    turns: Mutex<Turns<E>>,
    /// The gate waits for room.
    is_wanted: AtomicBool,
    /// Batches of orders that the gate has not taken yet.
    orders: AtomicUsize,
    /// The state thread waits until the gate has taken some.
    is_behind: AtomicBool,
}

impl<E> Shared<E> {
    fn turns(&self) -> MutexGuard<'_, Turns<E>> {
        // A panic between two fields of the queue is a bug that ends the process anyway.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gate's end.
pub struct TurnsIn<E> {
    shared: Arc<Shared<E>>,
    bell: Sender<()>,
}

/// Counts the batches of orders that are on their way to the gate.
pub struct OrderCount<E>(Arc<Shared<E>>);

impl<E> OrderCount<E> {
    /// One is handed over.
    pub fn add(&self) {
        self.0.orders.fetch_add(1, Ordering::SeqCst);
    }
}

/// The state thread's end.
pub struct TurnsOut<E> {
    orders_max: usize,
    shared: Arc<Shared<E>>,
    bell: Receiver<()>,
    waker: Waker,
}

impl<E> Clone for TurnsOut<E> {
    fn clone(&self) -> TurnsOut<E> {
        let (shared, bell, waker) = (self.shared.clone(), self.bell.clone(), self.waker.clone());
        TurnsOut { orders_max: self.orders_max, shared, bell, waker }
    }
}

/// A queue; `waker` wakes the gate when there is room again. With `orders_max` batches of orders on
/// their way to the gate nothing more is taken, since their queue has an end.
pub fn turns<E>(waker: Waker, orders_max: usize) -> (TurnsIn<E>, TurnsOut<E>) {
    let (ring, bell) = bounded(1);
    let shared = Arc::new(Shared {
        turns: Mutex::default(),
        is_wanted: AtomicBool::new(false),
        orders: AtomicUsize::new(0),
        is_behind: AtomicBool::new(false),
    });
    (TurnsIn { shared: shared.clone(), bell: ring }, TurnsOut { orders_max, shared, bell, waker })
}

impl<E> TurnsIn<E> {
    /// Puts an event in. False: nobody takes any more.
    pub fn put(&self, line: LineId, source: u64, is_urgent: bool, cost: Cost, event: E) -> bool {
        self.shared.turns().push(line, source, is_urgent, cost, event);
        // Behind the push: whoever hears the bell finds the event.
        !matches!(self.bell.try_send(()), Err(TrySendError::Disconnected(())))
    }

    /// Whether fewer events and bytes of a line wait than told. If not, the gate is woken when some
    /// of them were taken.
    pub fn has_room(&self, line: LineId, events_max: usize, bytes_max: usize) -> bool {
        let (events, bytes) = self.shared.turns().held_by(line);
        let has_room = events < events_max && bytes < bytes_max;
        if !has_room {
            self.shared.is_wanted.store(true, Ordering::SeqCst);
        }
        has_room
    }

    /// A batch of orders was taken; the state thread goes on if it waited for that.
    pub fn note_order_taken(&self) {
        self.shared.orders.fetch_sub(1, Ordering::SeqCst);
        if self.shared.is_behind.swap(false, Ordering::SeqCst) {
            let _ = self.bell.try_send(());
        }
    }

    /// The most that was taken of one line in a row while another one waited.
    pub fn most(&self) -> Row {
        self.shared.turns().most()
    }
}

/// What the state thread finds.
pub enum Taken<E> {
    /// The event whose turn it is.
    Event(E),
    /// Nothing for now.
    Empty,
    /// Nothing ever again.
    Closed,
}

impl<E> TurnsOut<E> {
    /// Takes what is next, without waiting.
    pub fn take(&self) -> Taken<E> {
        // Before the look: what rings from here on is heard at the next wait.
        let is_closed = self.bell.try_recv() == Err(TryRecvError::Disconnected);
        let is_behind = || self.shared.orders.load(Ordering::SeqCst) >= self.orders_max;
        if is_behind() && !is_closed {
            self.shared.is_behind.store(true, Ordering::SeqCst);
            // Asked again: the gate may have taken them before it could know of the wish.
            if is_behind() {
                return Taken::Empty;
            }
        }
        let event = self.shared.turns().pop();
        if event.is_some() && self.shared.is_wanted.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
        match event {
            Some(event) => Taken::Event(event),
            None if is_closed => Taken::Closed,
            None => Taken::Empty,
        }
    }

    /// Counts the orders that go the other way.
    pub fn order_count(&self) -> OrderCount<E> {
        OrderCount(self.shared.clone())
    }

    /// Rings when something was put in, and always once the gate is gone.
    pub fn bell(&self) -> &Receiver<()> {
        &self.bell
    }
}
