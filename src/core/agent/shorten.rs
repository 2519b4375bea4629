//! Shortens what a runner tells of itself, so that it is taken whatever a session has put into it:
//! an approval is asked, if need be without its input, and a status is a status without its lists.

use serde_json::{Map, Value, json};

use crate::core::cost::{Room, bytes_of, cut_depth, members_of};
use crate::core::limits::SENT_DEPTH_MAX;

/// The lists of open approvals: all but this much of them goes without input.
const APPROVALS_ROOM: Room = Room { bytes: 256 << 10, members: 1500 };
/// Any other field.
const FIELD_ROOM: Room = Room { bytes: 24 << 10, members: 200 };
/// The field with all open approvals, and the one with the first of them.
const APPROVALS: &str = "pendingApprovals";
const FIRST: &str = "pendingApproval";

/// Shortens a status record.
pub(super) fn shorten(meta: &mut Map<String, Value>) {
    meta.values_mut().for_each(|value| cut_depth(value, SENT_DEPTH_MAX - 1));
    if let Some(Value::Array(approvals)) = meta.get_mut(APPROVALS) {
        let mut room = APPROVALS_ROOM;
        approvals.iter_mut().for_each(|approval| shorten_approval(approval, &mut room));
        let first = approvals.first().cloned().unwrap_or(Value::Null);
        meta.insert(FIRST.into(), first);
    }
    for (_, value) in meta.iter_mut().filter(|(name, _)| *name != APPROVALS && *name != FIRST) {
        let mut room = FIELD_ROOM;
        match value {
            Value::Array(items) => items.retain(|item| room.take(item)),
            other if !room.take(other) => *other = Value::Null,
            _ => {}
        }
    }
}

/// One for which there is no room is asked by its title.
fn shorten_approval(approval: &mut Value, room: &mut Room) {
    let (bytes, members) = (bytes_of(approval), members_of(approval));
    let fits = bytes <= room.bytes && members <= room.members;
    if !fits && let Value::Object(fields) = approval {
        fields
            .retain(|name, _| ["approvalId", "title", "kind", "options"].contains(&name.as_str()));
        fields.insert("input".into(), json!("not shown: too much is asked at once"));
    }
    room.take(approval);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cost::{Cost, bytes_of_map};
    use crate::core::limits::{APPROVALS_MAX, META_BYTES_MAX};

    /// The worst that a session can put into its record is taken by a relay, and every approval is
    /// still asked.
    #[test]
    fn whatever_a_session_tells_of_itself_is_taken() {
        let mut deep = json!(1);
        (0..200).for_each(|_| deep = json!([deep]));
        let wide: Vec<u32> = (0..2500).collect();
        let approval = |number: usize| {
            json!({"approvalId": number, "title": "t", "input": {"a": wide, "d": deep},
                   "detail": "x".repeat(10_000), "options": ["allow"]})
        };
        let approvals: Vec<Value> = (0..APPROVALS_MAX).map(approval).collect();
        let work: Vec<Value> =
            (0..500).map(|id| json!({"id": id, "label": "x".repeat(1000)})).collect();
        let mut meta = Map::new();
        for (name, value) in [
            (APPROVALS, json!(approvals)),
            ("activeWork", json!(work)),
            ("providerFacts", json!({"a": "x".repeat(1 << 20)})),
            ("context", deep.clone()),
            ("status", json!("busy")),
        ] {
            meta.insert(name.into(), value);
        }
        shorten(&mut meta);
        assert!(bytes_of_map(&meta) <= META_BYTES_MAX / 2 + (64 << 10));
        assert_eq!(Cost::of(json!(meta).to_string().as_bytes()).refusal(), None);
        let asked = meta[APPROVALS].as_array().expect("a list");
        assert_eq!(asked.len(), APPROVALS_MAX);
        assert!(asked.iter().all(|it| it["title"] == "t" && !it["input"].is_null()));
        assert_eq!(meta[FIRST], asked[0]);
        assert_eq!(meta["status"], "busy");
    }
}
