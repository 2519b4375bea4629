//! Session events as lines of a fixture.

use agent_relay::core::session::{SessionEvent, StartFault};
use agent_relay::wire::control::LogLevel;

fn cut(text: &str) -> String {
    text.chars().take(90).collect()
}

/// One line for one event.
pub fn event(event: &SessionEvent) -> String {
    match event {
        SessionEvent::Opened(opened) => format!(
            "opened {} how={:?} model={:?} evidence={}",
            opened.agent, opened.how, opened.model, opened.has_evidence
        ),
        SessionEvent::OpenFailed { reason, fault } => {
            let permanent = *fault == StartFault::Person;
            format!("open failed permanent={permanent}: {}", cut(reason))
        }
        SessionEvent::Accepted { batch, key, evidence } => {
            format!("taken {batch} {key}: {evidence}")
        }
        SessionEvent::Refused { batch, key, why } => format!("refused {batch} {key}: {why}"),
        SessionEvent::TurnStarted => "turn started".into(),
        SessionEvent::Evidence(text) => format!("evidence: {text}"),
        SessionEvent::ProviderState(state) => format!("state {state}"),
        SessionEvent::TurnEnded { batch, end, text } => {
            format!("turn ended {batch:?} {end:?} text={:?}", cut(text))
        }
        SessionEvent::Mirror(m) => {
            format!(
                "mirror {} {:?} {:?} turn={} {:?}",
                m.kind,
                m.label,
                m.status,
                m.turn,
                cut(&m.body)
            )
        }
        SessionEvent::ApprovalOpened(approval) => {
            let questions = approval.detail.get("questions");
            let questions = questions.map(|questions| format!(" {}", cut(&questions.to_string())));
            format!(
                "approval {:?} kind={} options={:?}{}",
                cut(&approval.title),
                approval.kind,
                approval.options,
                questions.unwrap_or_default()
            )
        }
        SessionEvent::ApprovalClosed { reason, .. } => format!("approval closed: {reason}"),
        SessionEvent::Context(context) => {
            format!("context {} of {}", context["usedTokens"], context["windowTokens"])
        }
        SessionEvent::Fact { name, value } => format!("fact {name} {value}"),
        SessionEvent::Answered { result, .. } => format!("answered {result:?}"),
        SessionEvent::Work { kind, label, runs, .. } => {
            format!("work {kind} runs={runs} {label:?}")
        }
        SessionEvent::Log { level, text } => {
            format!("note warn={}: {}", *level == LogLevel::Warn, cut(text))
        }
        other => format!("{other:?}"),
    }
}
