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

    #[test]
    fn first_hit_decides() {
        let identity = |broad| Identity {
            agent_id: "a1".into(),
            label: Some("web".into()),
            tags: vec!["acp".into(), "env-tag".into()],
            capabilities: vec!["code".into()],
            broad_targets: broad,
        };
        let rows = [
            ("a1", None, true, true),
            ("a2", Some("a1"), true, true),
            ("a2", None, false, false),
            ("label:web", None, true, true),
            ("label:other", None, false, false),
            ("broadcast", None, true, false),
            ("tag:acp", None, true, false),
            ("tag:env-tag", None, true, false),
            ("tag:none", None, false, false),
            ("cap:code", None, true, false),
            ("cap:fly", None, false, false),
            ("policy:p", None, false, false),
            ("policy:p", Some("a1"), true, true),
        ];
        for (to, resolved, broad, narrow) in rows {
            let message = Message { to: to.into(), resolved_to_agent: resolved.map(str::to_string), ..Default::default() };
            assert_eq!(matches(&identity(true), &message), broad, "{to} broad");
            assert_eq!(matches(&identity(false), &message), narrow, "{to} narrow");
        }
    }
}
