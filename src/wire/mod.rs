//! Shapes of everything that crosses a process boundary, and nothing else.
//!
//! All names of the protocol live in this room: [`bus`] holds the frames, [`api`] the HTTP paths
//! and bodies, [`control`] what a runner's control port speaks, [`ids`] the types of ids. Parsing
//! is lenient (unknown fields and enum values are ignored, missing optional fields get their
//! documented default), writing is strict. The protocol itself:
//!
#![doc = include_str!("PROTOCOL.md")]

pub mod api;
pub mod bus;
pub mod control;
pub mod ids;
pub mod words;

/// Version of the relay protocol that this program speaks. A peer with a higher number is served by
/// what both know.
pub const PROTOCOL: u32 = 1;
/// Largest JSON body and bus frame, bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Largest message body, bytes of UTF-8.
pub const MESSAGE_BODY_BYTES_MAX: usize = 512 << 10;
/// Most messages in one `POST /api/messages/batch`.
pub const BATCH_ROWS_MAX: usize = 64;
/// Version of the program, as sent in `registered`, `health` and meta.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
