//! What `doctor` says of the agents that run on this machine: whether their questions get out.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::Findings;
use crate::cli::status::{ask_runner, local_runners};
use crate::config::Global;

/// Runners that do not answer are not waited for longer than so, all together.
const BUDGET: Duration = Duration::from_secs(10);

pub(super) fn check(findings: &mut Findings, global: &Global) {
    let until = Instant::now() + BUDGET;
    for info in local_runners(global) {
        if Instant::now() >= until {
            break;
        }
        match ask_runner(&info) {
            Ok(Some(truth)) => unasked(findings, &info.agent_id, &truth),
            Ok(None) => {}
            Err(failure) => findings.weak(
                "agents",
                failure.text,
                "look at its log, in the folder logs of its home",
            ),
        }
    }
}

/// With its hooks switched off nobody at the relay is asked for a permission.
fn unasked(findings: &mut Findings, agent: &str, truth: &Value) {
    let Some(said) = truth.pointer("/session/hooks").and_then(Value::as_str) else { return };
    let cure = format!(
        "allow its hooks again and start it anew; until then answer it in `agent-relay attach {agent}`"
    );
    findings.weak("agents", format!("{agent}: {said}"), cure);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_whose_hooks_are_switched_off_is_a_warning_with_its_cure() {
        let mut findings = Findings::default();
        unasked(&mut findings, "well", &json!({"session": {"hooks": null}}));
        unasked(&mut findings, "new", &json!({"session": {}}));
        assert!(findings.0.is_empty());
        unasked(&mut findings, "a", &json!({"session": {"hooks": "its hooks are off"}}));
        let [finding] = findings.0.as_slice() else { panic!("one finding") };
        assert!(finding.grade == super::super::Grade::Weak);
        assert_eq!(finding.found, "a: its hooks are off");
        assert!(finding.cure.contains("`agent-relay attach a`"), "{}", finding.cure);
    }
}
