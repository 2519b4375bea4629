//! The built-in demo agent: a real ACP agent without a model, for first steps and for tests.
//!
//! It keeps its conversations on disk, can load and resume them, and misbehaves on request.

pub mod agent;
pub mod run;
