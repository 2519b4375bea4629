//! Threads, channels and the turn: connects the pure machines with the edges.

pub mod agent;
pub mod control;
pub mod crew;
pub mod turn;
