//! Bounds of every text and record that somebody fills in freely. They are checked each time, not
//! only when something is new, and a refusal names the field and its limit.

use serde_json::{Map, Value};

use super::Refusal;
use super::agents::is_label;
use crate::core::cost::{bytes_of, bytes_of_map};
use crate::core::limits::*;
use crate::wire::api::NewMessage;
use crate::wire::bus::Registration;

fn too_long(field: &str, bytes: usize, bytes_max: usize) -> Refusal {
    let text = format!("{field:?} may have {bytes_max} bytes, this one has {bytes}");
    (422, "field_too_long", text)
}

/// A text of at most so many bytes.
pub(super) fn text(field: &str, told: &str, bytes_max: usize) -> Result<(), Refusal> {
    let is_short = told.len() <= bytes_max || crate::planted::is("unbounded-field");
    if is_short { Ok(()) } else { Err(too_long(field, told.len(), bytes_max)) }
}

/// A record of at most so many bytes as JSON.
pub(super) fn record(
    field: &str,
    told: &Map<String, Value>,
    bytes_max: usize,
) -> Result<(), Refusal> {
    let bytes = bytes_of_map(told);
    if bytes <= bytes_max { Ok(()) } else { Err(too_long(field, bytes, bytes_max)) }
}

/// Any JSON of at most so many bytes; absent is short enough.
pub(super) fn json(field: &str, told: Option<&Value>, bytes_max: usize) -> Result<(), Refusal> {
    let bytes = told.map_or(0, bytes_of);
    if bytes <= bytes_max { Ok(()) } else { Err(too_long(field, bytes, bytes_max)) }
}

/// The short fields of a message; body and payload have bounds of their own.
pub(super) fn message(new: &NewMessage) -> Result<(), Refusal> {
    let absent = String::new();
    for (field, told) in [
        ("to", &new.to),
        ("from", new.from.as_ref().unwrap_or(&absent)),
        ("subject", new.subject.as_ref().unwrap_or(&absent)),
        ("channel", new.channel.as_ref().unwrap_or(&absent)),
        ("idempotencyKey", new.idempotency_key.as_ref().unwrap_or(&absent)),
        ("generation", new.generation.as_ref().unwrap_or(&absent)),
    ] {
        text(field, told, FIELD_BYTES_MAX)?;
    }
    Ok(())
}

/// What a component says of itself. Labels that are none are left out by the caller; too many are
/// refused.
pub(super) fn registration(told: &Registration) -> Result<(), Refusal> {
    for (field, told) in [
        ("role", &told.role),
        ("componentId", &told.component_id),
        ("instanceId", &told.instance_id),
        ("machine", &told.machine),
    ] {
        text(field, told, NAME_BYTES_MAX)?;
    }
    for (field, list) in [("tags", &told.tags), ("capabilities", &told.capabilities)] {
        let labels = list.iter().filter(|label| is_label(label)).count();
        if labels > LABELS_MAX {
            let text = format!("{field:?} may have {LABELS_MAX} entries, this one has {labels}");
            return Err((422, "too_many_labels", text));
        }
    }
    meta(&told.meta)
}

/// What an agent tells of itself.
pub(super) fn meta(told: &Map<String, Value>) -> Result<(), Refusal> {
    record("meta", told, META_BYTES_MAX)
}
