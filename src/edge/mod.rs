//! I/O without decisions: one file is one thread, it owns one resource, makes one attempt per order
//! and reports what happened. It never decides and never retries.
//!
//! An edge may wait for the state thread; the state thread waits for nobody. An edge that cannot
//! put an event into its full lane waits there, but still hears its orders, so a flood becomes
//! backpressure on its own edge only.

pub mod aside;
pub mod bus;
pub mod certificate;
pub mod database;
pub mod gate;
pub mod heartbeat;
pub mod http;
pub mod orchestrator;
pub mod provider;
pub mod proxy;
pub mod pump;
pub mod salvage;
pub mod signals;
pub mod store;
pub mod stream;
pub mod turns;

use crossbeam_channel::{Receiver, Select, Sender, TrySendError};

use crate::os::Waker;

/// Orders for an edge that waits in poll: a bounded channel and the descriptor that wakes it.
pub struct Port<T> {
    orders: Sender<T>,
    waker: Option<Waker>,
}

impl<T> Port<T> {
    /// For an edge that waits in `recv`.
    pub fn plain(orders: Sender<T>) -> Port<T> {
        Port { orders, waker: None }
    }

    /// For an edge that waits in poll.
    pub fn waking(orders: Sender<T>, waker: Waker) -> Port<T> {
        Port { orders, waker: Some(waker) }
    }

    /// Hands over an order. The machine's own count makes a full channel impossible; a gone edge is
    /// not an error, its end is an event of its own.
    pub fn order(&self, order: T) {
        match self.orders.try_send(order) {
            Ok(()) => {
                if let Some(waker) = &self.waker
                    && !crate::planted::is("lost-wake-up")
                {
                    waker.wake();
                }
            }
            Err(TrySendError::Full(_)) => panic!("an order was given without credit"),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

impl<T> Drop for Port<T> {
    /// The edge learns that no more orders come.
    fn drop(&mut self) {
        let (dead, _) = crossbeam_channel::bounded(0);
        self.orders = dead;
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

/// Puts an event into the lane; while the lane is full, orders are still carried out. False: nobody
/// listens any more.
pub fn report<E, O>(
    lane: &Sender<E>,
    orders: &Receiver<O>,
    event: E,
    mut carry_out: impl FnMut(O),
) -> bool {
    let event = match lane.try_send(event) {
        Ok(()) => return true,
        Err(TrySendError::Disconnected(_)) => return false,
        Err(TrySendError::Full(event)) => event,
    };
    loop {
        let mut select = Select::new();
        let room = select.send(lane);
        select.recv(orders);
        let ready = select.select();
        if ready.index() == room {
            return ready.send(lane, event).is_ok();
        }
        match ready.recv(orders) {
            Ok(order) => carry_out(order),
            // No more orders: the state thread is ending and empties the lane no more.
            Err(_) => {
                return lane.send_timeout(event, std::time::Duration::from_millis(200)).is_ok();
            }
        }
    }
}
