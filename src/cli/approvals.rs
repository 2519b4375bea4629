//! `approvals`: what agents ask, and a person's decision.

use serde_json::{Map, Value, json};

use super::args::Approvals;
use super::cards::{is_there, text, unasked};
use super::client::Client;
use super::command::issue;
use super::exit::{Failure, OK, Outcome};
use super::print;
use crate::config::Global;
use crate::core::session::Decision;
use crate::wire::api::path;

/// A question of an agent that waits for a decision.
struct Open {
    agent: String,
    approval: Value,
}

/// `approvals`
pub fn approvals(options: &Approvals) -> Outcome {
    if let Some(decision) = options.decision.first().filter(|word| Decision::parse(word).is_none())
    {
        return Err(Failure::usage(format!(
            "{decision:?} is not a decision; use approve, approve-session, deny or abort"
        )));
    }
    let client = Client::new(&Global::load(None, None)?)?;
    let cards = wanted_cards(&client, options.agent.as_deref())?;
    let open = open_approvals(&cards);
    match options.decision.as_slice() {
        [] => {
            list(&open, options.json);
            // Whoever reads an empty list must know whose questions cannot stand in it.
            cards.iter().filter_map(unasked).for_each(|said| print::notice(&said));
            Ok(OK)
        }
        [_] => Err(Failure::usage("say which approval: `agent-relay approvals` lists them")),
        [decision, id] => decide(&client, options, &open, decision, id),
        _ => Err(Failure::usage("say one decision and one approval id")),
    }
}

/// The cards of the agents that are there, or of that one.
fn wanted_cards(client: &Client, agent: Option<&str>) -> Result<Vec<Value>, Failure> {
    let answer = client.call("GET", path::AGENTS, None)?;
    let is_wanted =
        |card: &&Value| is_there(card) && agent.is_none_or(|wanted| wanted == text(card, "/id"));
    Ok(answer["agents"].as_array().into_iter().flatten().filter(is_wanted).cloned().collect())
}

fn open_approvals(cards: &[Value]) -> Vec<Open> {
    let mut open = Vec::new();
    for card in cards {
        let name = text(card, "/id");
        let approvals = card.pointer("/meta/pendingApprovals").and_then(Value::as_array);
        let approvals = approvals.into_iter().flatten();
        open.extend(
            approvals.map(|approval| Open { agent: name.clone(), approval: approval.clone() }),
        );
    }
    open
}

fn list(open: &[Open], as_json: bool) {
    for Open { agent, approval } in open {
        if as_json {
            let mut record = approval.clone();
            record["agentId"] = json!(agent);
            print::json(&record);
        } else {
            show_approval(agent, approval);
        }
    }
    if open.is_empty() && !as_json {
        print::line("no open approvals");
    }
}

fn decide(
    client: &Client,
    options: &Approvals,
    open: &[Open],
    decision: &str,
    id: &str,
) -> Outcome {
    let matching: Vec<&Open> =
        open.iter().filter(|open| text(&open.approval, "/approvalId") == id).collect();
    let [Open { agent, approval }] = matching.as_slice() else {
        return Err(if matching.is_empty() {
            Failure::no(format!("no approval {id} is open; `agent-relay approvals` lists them"))
        } else {
            Failure::usage(format!(
                "several agents have an approval {id}; say which with --agent ID"
            ))
        });
    };
    let mut params = Map::new();
    params.insert("approvalId".into(), json!(id));
    params.insert("decision".into(), json!(decision));
    if let Some(reason) = &options.reason {
        params.insert("reason".into(), json!(reason));
    }
    if !options.answer.is_empty() {
        params.insert("answers".into(), answers(&options.answer, approval)?);
    }
    issue(client, agent, "agent.permissionDecision", params, true, options.json)
}

/// What is asked for: whoever decides sees all of it that the runner tells, and as it is. One line
/// at the margin is one approval.
fn show_approval(agent: &str, approval: &Value) {
    print::line(&print::approval_text(&format!(
        "{}  {agent} wants: {}",
        text(approval, "/approvalId"),
        text(approval, "/title")
    )));
    for question in approval["questions"].as_array().into_iter().flatten() {
        let labels = question["options"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|option| option["label"].as_str());
        let several = if question["multiSelect"] == true { ", several may be chosen" } else { "" };
        let line = format!(
            "    {} [{}]{several}",
            text(question, "/question"),
            labels.collect::<Vec<_>>().join(" | ")
        );
        print::line(&print::approval_text(&line));
    }
    if approval["questions"].is_array() {
        return;
    }
    for (name, value) in approval["input"].as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        print::block(
            &print::approval_text(&format!("    {name}: ")),
            "      ",
            &print::approval_text(&value),
        );
    }
}

/// Answers by question; where there is one question, its text may be left out.
fn answers(words: &[String], approval: &Value) -> Result<Value, Failure> {
    let questions: Vec<String> = approval["questions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|q| q["question"].as_str().map(str::to_string))
        .collect();
    let mut all: Map<String, Value> = Map::new();
    for word in words {
        let named = questions.iter().find_map(|question| {
            Some((question, word.strip_prefix(question.as_str())?.strip_prefix('=')?))
        });
        let (question, choice) = match (named, questions.as_slice()) {
            (Some((question, choice)), _) => (question, choice),
            (None, [only]) => (only, word.as_str()),
            (None, []) => {
                return Err(Failure::usage(
                    "this approval is not a question; leave --answer out".to_string(),
                ));
            }
            (None, _) => {
                return Err(Failure::usage(format!(
                    "say which question: --answer \"<question>=<choice>\"; there are: {}",
                    questions.join(" | ")
                )));
            }
        };
        // Several choices of one question are a list.
        match all.get_mut(question) {
            Some(Value::Array(list)) => list.push(json!(choice)),
            Some(other) => *other = json!([other.clone(), choice]),
            None => {
                all.insert(question.clone(), json!(choice));
            }
        }
    }
    Ok(Value::Object(all))
}
