//! Who may do what: scopes of profiles, and what a token that is made may have. Scopes decide; a
//! profile only says which scopes a token has when nobody names any.

use std::sync::Arc;

use super::Refusal;
use crate::wire::api::TokenRecord;

/// Everything: root has it, and whoever root gives it to.
pub const ADMIN: &str = "admin";
/// Make, list and revoke tokens of agents.
pub const TOKEN_ISSUE: &str = "token:issue";
/// See the whole card of agents that were made on one's own wish; off unless it is asked for.
pub const APPROVE_SPAWNED: &str = "approve:spawned";
/// Give orders to agents; whoever has it sees whole cards, since what is to be approved stands
/// there.
pub const COMMAND_ISSUE: &str = "command:issue";

/// The profile of what starts and stops agents on a machine. It has to do with its own agents, and
/// with those alone.
pub(super) const ORCHESTRATOR: &str = "orchestrator";

/// Scopes of a profile.
pub fn scopes_of(profile: &str) -> &'static [&'static str] {
    match profile {
        "root" => &[ADMIN],
        "operator" => &[
            "agent:self",
            "message:send",
            "message:read",
            "message:claim",
            "task:update",
            COMMAND_ISSUE,
            "command:update",
            "artifact:read",
            "artifact:write",
            "insight:write",
            "spawn",
            TOKEN_ISSUE,
        ],
        ORCHESTRATOR => &[
            "agent:self",
            "message:send",
            "message:read",
            COMMAND_ISSUE,
            "command:update",
            "spawn",
            TOKEN_ISSUE,
        ],
        "provider-agent" | "provider-interactive" => &[
            "agent:self",
            "message:send",
            "message:read",
            "message:claim",
            "task:update",
            "command:update",
            "artifact:read",
            "artifact:write",
            "insight:write",
        ],
        _ => &[],
    }
}

/// Scopes that a profile may have beside its own, if they are asked for.
fn further_scopes_of(profile: &str) -> &'static [&'static str] {
    match profile {
        "operator" => &[ADMIN],
        "provider-agent" | "provider-interactive" => &[APPROVE_SPAWNED],
        _ => &[],
    }
}

/// Whether a token has a scope; `admin` has all.
pub fn allows(token: &TokenRecord, scope: &str) -> bool {
    token.scopes.iter().any(|own| own == scope || own == ADMIN)
}

/// Whether a profile is an agent's.
pub(super) fn is_runtime(profile: &str) -> bool {
    matches!(profile, "provider-agent" | "provider-interactive")
}

/// What all renewals of one token have in common.
pub(super) fn line_of(record: &TokenRecord) -> &str {
    record.renewed_from.as_deref().unwrap_or(&record.jti)
}

/// What an orchestrator is called in the tokens of the agents that it makes.
pub(super) fn name_of(record: &TokenRecord) -> &str {
    record.name.as_deref().unwrap_or_else(|| line_of(record))
}

/// The record of a token that may do everything; only a planted defect uses it.
pub(super) fn everything() -> Arc<TokenRecord> {
    Arc::new(TokenRecord {
        profile_id: "root".into(),
        scopes: vec![ADMIN.into()],
        ..Default::default()
    })
}

pub(super) fn forbidden(text: impl Into<String>) -> Refusal {
    (403, "forbidden", text.into())
}

/// The token must have this scope.
pub(super) fn scope(actor: &TokenRecord, scope: &str) -> Result<(), Refusal> {
    if allows(actor, scope) {
        Ok(())
    } else {
        Err(forbidden(format!("the token lacks the scope {scope}")))
    }
}

/// As whom a token speaks and what it sees messages as: an agent as itself, an orchestrator under
/// its name, people as nobody in particular: they see everything that their scopes let them see,
/// and speak as the user.
pub(super) fn acts_as(record: &TokenRecord) -> Option<&str> {
    if record.profile_id == ORCHESTRATOR {
        Some(name_of(record))
    } else {
        record.agent_id.as_deref()
    }
}

/// A token of an agent acts only as that agent. What an orchestrator may do about agents depends on
/// whose they are.
pub(super) fn own(actor: &TokenRecord, id: &str) -> Result<(), Refusal> {
    match &actor.agent_id {
        Some(own) if own != id => Err(forbidden(format!("this token acts as {own}, not as {id}"))),
        _ => scope(actor, "agent:self"),
    }
}

/// As what a token may register: its profile says so, never the frame. An older client may leave
/// the role out.
pub(super) fn role(actor: &TokenRecord, role: &str) -> Result<(), Refusal> {
    let may = if actor.profile_id == ORCHESTRATOR {
        matches!(role, "" | "orchestrator" | "channel")
    } else if is_runtime(&actor.profile_id) {
        matches!(role, "" | "provider" | "channel")
    } else {
        role != "orchestrator"
    };
    if may {
        Ok(())
    } else {
        Err(forbidden(format!(
            "a token of the profile {} does not register as {role:?}",
            actor.profile_id
        )))
    }
}

/// Whether a token sees the whole card of an agent: pending approvals with their input, folders,
/// sockets. `maker`: whose wish that agent was made for.
pub(super) fn sees_whole(actor: &TokenRecord, agent: &str, maker: Option<&str>) -> bool {
    match acts_as(actor) {
        None => allows(actor, COMMAND_ISSUE),
        Some(own) if actor.profile_id == ORCHESTRATOR => maker == Some(own),
        Some(own) => own == agent || (maker == Some(own) && allows(actor, APPROVE_SPAWNED)),
    }
}

/// The scopes of a token that is made: those of its profile or those that are wanted, never more
/// than its maker has. An orchestrator gives its agents exactly what agents have, though it lacks
/// some of that itself.
pub(super) fn scopes_for(
    actor: &TokenRecord,
    profile: &str,
    wanted: Option<&[&str]>,
) -> Result<Vec<String>, Refusal> {
    let (all, further) = (scopes_of(profile), further_scopes_of(profile));
    let spawns = actor.profile_id == ORCHESTRATOR && is_runtime(profile);
    let has = |scope: &str| allows(actor, scope) || (spawns && all.contains(&scope));
    let Some(wanted) = wanted else {
        return Ok(all.iter().filter(|scope| has(scope)).map(|scope| scope.to_string()).collect());
    };
    // A slip of the pen must not make a token that can do nothing.
    if let Some(unknown) =
        wanted.iter().find(|scope| !all.contains(scope) && !further.contains(scope))
    {
        let text = format!(
            "the profile {profile} does not have the scope {unknown:?}; it has {}",
            [all, further].concat().join(", ")
        );
        return Err((422, "bad_scopes", text));
    }
    if let Some(lacking) = wanted.iter().find(|scope| !has(scope)) {
        return Err(forbidden(format!("no token gets a scope that its maker lacks: {lacking}")));
    }
    Ok(wanted.iter().map(|scope| scope.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(profile: &str, scopes: &[&str], agent: Option<&str>) -> TokenRecord {
        TokenRecord {
            profile_id: profile.into(),
            agent_id: agent.map(str::to_string),
            scopes: scopes.iter().map(|scope| scope.to_string()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn no_token_gets_more_than_its_maker_has() {
        let root = token("root", &[ADMIN], None);
        let operator = token("operator", scopes_of("operator"), None);
        let narrow = token("operator", &[TOKEN_ISSUE, "message:read"], None);
        let orchestrator = token("orchestrator", scopes_of("orchestrator"), None);
        let agent = scopes_of("provider-agent").len();
        for (maker, profile, wanted, want) in [
            (&root, "provider-agent", None, Ok(agent)),
            (&root, "operator", Some(&[ADMIN][..]), Ok(1)),
            (&operator, "provider-agent", None, Ok(agent)),
            (&operator, "provider-agent", Some(&["message:send"]), Ok(1)),
            (&operator, "provider-agent", Some(&[APPROVE_SPAWNED]), Err(403)),
            (&operator, "provider-agent", Some(&["spawn"]), Err(422)),
            (&operator, "operator", Some(&[ADMIN]), Err(403)),
            (&narrow, "provider-agent", None, Ok(1)),
            (&narrow, "provider-agent", Some(&["message:send"]), Err(403)),
            (&orchestrator, "provider-agent", None, Ok(agent)),
            (&orchestrator, "provider-agent", Some(&["task:update"]), Ok(1)),
            (&orchestrator, "operator", Some(&["task:update"]), Err(403)),
        ] {
            let got = scopes_for(maker, profile, wanted)
                .map(|scopes| scopes.len())
                .map_err(|(status, ..)| status);
            assert_eq!(got, want, "{} makes {profile} with {wanted:?}", maker.profile_id);
        }
    }

    #[test]
    fn the_profile_says_as_what_a_token_registers() {
        for (profile, may, may_not) in [
            (
                "provider-agent",
                &["provider", "channel", ""][..],
                &["orchestrator", "integration", "boss"][..],
            ),
            ("provider-interactive", &["provider", "channel"], &["orchestrator"]),
            ("orchestrator", &["orchestrator", "channel"], &["provider", "integration"]),
            ("operator", &["provider", "channel", "integration"], &["orchestrator"]),
            ("root", &["provider", "integration"], &["orchestrator"]),
        ] {
            let actor = token(profile, &[], None);
            assert!(may.iter().all(|word| role(&actor, word).is_ok()), "{profile}");
            assert!(may_not.iter().all(|word| role(&actor, word).is_err()), "{profile}");
        }
    }

    #[test]
    fn whole_cards_are_for_who_decides() {
        let plain = token("provider-agent", scopes_of("provider-agent"), Some("a"));
        let parent = token("provider-agent", &[APPROVE_SPAWNED], Some("a"));
        let reader = token("operator", &["message:read"], None);
        let operator = token("operator", scopes_of("operator"), None);
        let boss = TokenRecord {
            name: Some("boss".into()),
            ..token(ORCHESTRATOR, scopes_of(ORCHESTRATOR), None)
        };
        for (actor, agent, maker, whole) in [
            (&boss, "b", None, false),
            (&boss, "b", Some("boss"), true),
            (&plain, "a", None, true),
            (&plain, "b", None, false),
            (&plain, "b", Some("a"), false),
            (&parent, "b", Some("a"), true),
            (&parent, "b", Some("c"), false),
            (&parent, "b", None, false),
            (&reader, "b", None, false),
            (&operator, "b", None, true),
        ] {
            assert_eq!(sees_whole(actor, agent, maker), whole, "{actor:?} {agent} {maker:?}");
        }
    }
}
