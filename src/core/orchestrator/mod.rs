//! A host full of sessions, as decisions: how they are looked at and touched.

pub mod log_text;
