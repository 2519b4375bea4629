//! Threads, channels and the event loop: connects the pure machines with the edges.

pub mod agent;
pub mod control;
pub mod crew;
pub mod event_loop;
