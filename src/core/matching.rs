//! Which messages are for this agent.

use crate::wire::api::Message;

/// Who an agent is, as far as targets name it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Identity {
    /// Agent id.
    pub agent_id: String,
    /// Label, if any.
    pub label: Option<String>,
    /// Registered tags. All of them count, also those of the environment: closes the hazard of R-94.
    pub tags: Vec<String>,
    /// Registered capabilities.
    pub capabilities: Vec<String>,
    /// False exactly when the profile has `relay.context` = false.
    pub broad_targets: bool,
}

/// Whether the message is for the agent; first hit decides.
pub fn matches(identity: &Identity, message: &Message) -> bool {
    if message.resolved_to_agent.as_deref() == Some(&identity.agent_id) || message.to == identity.agent_id {
        return true;
    }
    if let (Some(label), Some(wanted)) = (&identity.label, message.to.strip_prefix("label:"))
        && label == wanted
    {
        return true;
    }
    if !identity.broad_targets {
        return false;
    }
    if message.to == "broadcast" {
        return true;
    }
    if let Some(tag) = message.to.strip_prefix("tag:") {
        return identity.tags.iter().any(|t| t == tag);
    }
    if let Some(capability) = message.to.strip_prefix("cap:") {
        return identity.capabilities.iter().any(|c| c == capability);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row with two verdicts: of an agent that broad targets reach, and of a narrow one. Where two rules disagree the first
    /// one that hits wins.
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
            ("broadcast", Some("a1"), true, true),
            ("broadcast", Some("a2"), true, false),
            ("tag:acp", None, true, false),
            ("tag:env-tag", None, true, false),
            ("tag:code", None, false, false),
            ("tag:none", None, false, false),
            ("tag:none", Some("a1"), true, true),
            ("cap:code", None, true, false),
            ("cap:acp", None, false, false),
            ("cap:fly", None, false, false),
            ("cap:fly", Some("a1"), true, true),
            ("policy:p", None, false, false),
            ("policy:p", Some("a1"), true, true),
            ("policy:p", Some("a2"), false, false),
        ];
        for (to, resolved, broad, narrow) in rows {
            let message = Message { to: to.into(), resolved_to_agent: resolved.map(str::to_string), ..Default::default() };
            assert_eq!(matches(&identity(true, Some("web")), &message), broad, "{to} {resolved:?} broad");
            assert_eq!(matches(&identity(false, Some("web")), &message), narrow, "{to} {resolved:?} narrow");
            // Without a label no target of labels is a hit by itself; all else is as before.
            let unlabelled = to.starts_with("label:") && resolved != Some("a1");
            assert_eq!(matches(&identity(true, None), &message), broad && !unlabelled, "{to} {resolved:?} without a label");
        }
    }
}
