//! Which messages are for this agent.

use crate::wire::api::Message;

/// Who an agent is, as far as targets name it.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Identity {
    pub agent_id: String,
    pub label: Option<String>,
    /// All registered tags, those of the environment included.
    pub tags: Vec<String>,
    /// All registered capabilities.
    pub capabilities: Vec<String>,
    /// False exactly when the profile has `relay.context` = false: the agent is narrow.
    pub broad_targets: bool,
}

/// Whether the message is for the agent, else why not; first hit decides. To whom the relay
/// resolved it is one of the hits, but it opens no narrow agent to a broad target: a relay that
/// does not know of narrow agents resolves those to everybody.
pub fn judge(identity: &Identity, message: &Message) -> Result<(), &'static str> {
    let to = message.to.as_str();
    let broad = to == "broadcast" || to.starts_with("tag:") || to.starts_with("cap:");
    if broad && !identity.broad_targets {
        return Err("this agent takes no messages for broadcast, tag: or cap:");
    }
    let hit = message.resolved_to_agent.as_deref() == Some(&identity.agent_id)
        || to == identity.agent_id
        || to == "broadcast"
        || matches!((&identity.label, to.strip_prefix("label:")), (Some(label), Some(wanted)) if label == wanted)
        || to.strip_prefix("tag:").is_some_and(|tag| identity.tags.iter().any(|t| t == tag))
        || to
            .strip_prefix("cap:")
            .is_some_and(|capability| identity.capabilities.iter().any(|c| c == capability));
    if hit { Ok(()) } else { Err("not for this agent") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row with two verdicts: of an agent that broad targets reach, and of a narrow one, to
    /// whom a broad target is refused whatever the relay resolved it to. Where two other rules
    /// disagree the first one that hits wins.
    #[test]
    fn first_hit_decides() {
        let identity = |broad, label: Option<&str>| Identity {
            agent_id: "a1".into(),
            label: label.map(str::to_string),
            tags: vec!["acp".into(), "env-tag".into()],
            capabilities: vec!["code".into()],
            broad_targets: broad,
        };
        let rows = [
            ("a1", None, true, true),
            ("a1", Some("a2"), true, true),
            ("a2", Some("a1"), true, true),
            ("a2", None, false, false),
            ("label:web", None, true, true),
            ("label:web", Some("a2"), true, true),
            ("label:other", None, false, false),
            ("label:other", Some("a1"), true, true),
            ("label:", None, false, false),
            ("broadcast", None, true, false),
            ("broadcast", Some("a1"), true, false),
            ("broadcast", Some("a2"), true, false),
            ("tag:acp", None, true, false),
            ("tag:env-tag", None, true, false),
            ("tag:code", None, false, false),
            ("tag:none", None, false, false),
            ("tag:none", Some("a1"), true, false),
            ("cap:code", None, true, false),
            ("cap:acp", None, false, false),
            ("cap:fly", None, false, false),
            ("cap:fly", Some("a1"), true, false),
            ("policy:p", None, false, false),
            ("policy:p", Some("a1"), true, true),
            ("policy:p", Some("a2"), false, false),
        ];
        for (to, resolved, broad, narrow) in rows {
            let message = Message {
                to: to.into(),
                resolved_to_agent: resolved.map(str::to_string),
                ..Default::default()
            };
            let hits = |identity: Identity| judge(&identity, &message).is_ok();
            assert_eq!(hits(identity(true, Some("web"))), broad, "{to} {resolved:?} broad");
            assert_eq!(hits(identity(false, Some("web"))), narrow, "{to} {resolved:?} narrow");
            // Without a label no target of labels is a hit by itself; all else is as before.
            let unlabelled = to.starts_with("label:") && resolved != Some("a1");
            assert_eq!(
                hits(identity(true, None)),
                broad && !unlabelled,
                "{to} {resolved:?} without a label"
            );
        }
    }
}
