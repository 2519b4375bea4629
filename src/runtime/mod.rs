//! Threads, channels and the event loop: connects the pure machines with the edges.

pub mod control;
pub mod event_loop;
pub mod runner;
pub mod threads;
