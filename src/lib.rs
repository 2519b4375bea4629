//! agent-relay keeps coding agents alive and reachable on servers.
//!
//! The map, in reading order; ARCHITECTURE.md has the invariants.
//!
//! - [`wire`]: shapes of everything that crosses a process boundary.
//! - [`core`]: decisions without I/O; the machines `core::agent::Agent`, `core::hub::Hub` and
//!   `core::orchestrator::Orchestrator`.
//! - [`provider`]: what vendors write and expect; one pure session machine each.
//! - [`edge`]: I/O without decisions; one file is one thread.
//! - [`runtime`]: threads, channels and the turn of a runner.
//! - [`hub`]: the same for the hub, with its store.
//! - [`orchestrator`]: the same for the orchestrator of a host.
//! - [`demo`]: the built-in demo agent.
//! - [`cli`]: commands, texts and exit codes.
//! - [`clock`], [`config`], [`log`], [`notify`], [`os`], [`secret`]: leaves that anybody above
//!   `core` may use.
//! - [`planted`]: known defects in the build that tests the tests; a constant in every other.
//!
//! # Glossary
//!
//! One word per thing, in code, logs and on the command line. Wire names are those of
//! `wire/PROTOCOL.md`.
//!
//! | word | meaning |
//! | --- | --- |
//! | relay | the server that agents and people are connected to |
//! | hub | the relay that is built in: one per machine, a process of its own |
//! | runner | the process that supervises one provider session and connects it to the relay |
//! | agent | what people write to: a name at the relay, served by a runner |
//! | orchestrator | a service that starts, inspects and stops runners on a host |
//! | provider | the program that a runner supervises: Claude Code, Codex, or one that speaks ACP |
//! | transport | how a provider is talked to: its streams or its server; a terminal for some |
//! | window | the program of a provider for a person, beside the session that its server holds |
//! | conversation | what a provider remembers under one id, over restarts of its process |
//! | session | a provider process with its conversation; its machine is in `provider/<name>/` |
//! | verb, session event | what a runner asks of a session, and what it reports |
//! | turn | the provider works: from a prompt to the end of its answer |
//! | batch | messages that travel to the provider together and are settled together |
//! | delivery | one text of a batch on its way to the provider, under a key that a repetition keeps |
//! | damage | what of something that a provider has written could not be read |
//! | evidence | what shows that a delivery has arrived: the provider's record, hook or receipt |
//! | claim, lease | the exclusive right to work on a message or task; how long it lasts unrenewed |
//! | offer | a claimable message or task at the hub, and to whom it was offered |
//! | obligation | an answer that an agent still owes |
//! | settle | to end a message for good: answered, reported or given up |
//! | approval | a question of a provider that waits for a person's decision |
//! | mirror | a conversation shown in chat, for people to read along |
//! | inbox, outbox | a runner's durable rows: messages that came; calls that must reach the relay |
//! | pump | the thread that sends the outbox |
//! | bus | the WebSocket between runner and relay; frames travel on it |
//! | polling | the same over HTTP, where no WebSocket gets through |
//! | generation | one unbroken history of a relay's data; ids mean something only within it |
//! | machine | a state machine without I/O: events in, effects out ([`core::Machine`]) |
//! | edge, lane | a thread that does I/O, and the bounded channel on which it reports |
//! | credit | free places for the commits that an event may cause; without them a lane waits |
//! | gate | the server of hub and control port: sockets, limits, WebSocket peers |
//! | control port | a runner's own HTTP server on loopback, for hooks, tools and `status` |
//! | peer | who is connected to a gate by WebSocket or reads its events |
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
pub mod orchestrator;

pub mod cli;
