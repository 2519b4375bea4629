//! agent-relay keeps coding agents alive and reachable on servers.
//!
//! The map, in reading order; ARCHITECTURE.md has the invariants.
//!
//! - [`wire`]: shapes of everything that crosses a process boundary.
//! - [`core`]: decisions without I/O; the machines `core::agent::Agent` and `core::hub::Hub`.
//! - [`provider`]: what vendors write and expect; one pure session machine each.
//! - [`edge`]: I/O without decisions; one file is one thread.
//! - [`runtime`]: threads, channels and the turn of a runner.
//! - [`hub`]: the same for the hub, with its store.
//! - [`demo`]: the built-in demo agent.
//! - [`cli`]: commands, texts and exit codes.
//! - [`clock`], [`config`], [`log`], [`os`], [`secret`]: leaves that anybody above `core` may use.
//! - [`planted`]: known defects in the build that tests the tests; a constant in every other.
#![deny(unsafe_code)]

pub mod wire;

pub mod core;
pub mod provider;

pub mod clock;
pub mod config;
pub mod log;
pub mod notify;
pub mod os;
pub mod planted;
pub mod secret;

pub mod edge;
pub mod runtime;

pub mod demo;
pub mod hub;

pub mod cli;
