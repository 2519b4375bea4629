//! The relay's tools at the hub: each is some calls of its own API, made with the token of whoever
//! asked. No right is decided here.
//!
//! No tool waits for anything but the store, and the gate bounds that, so an answer is plain JSON
//! and no stream is ever open.

use std::collections::{HashMap, VecDeque};

use serde_json::Value;

use super::Hub;
use super::api::{Answer, Asked};
use crate::core::http::{Body, Request};
use crate::core::ids::Ticket;
use crate::core::limits::COMMITS_RESERVED;
use crate::core::mcp::call::{ApiCall, Next, ToolCall};
use crate::core::mcp::{ReplyTo, Step, ToolResult, receive};

/// Where the tools are.
pub(super) const PATH: &str = "/api/mcp";

/// Where a client looks for a login when its token is refused. There is none, and it is to hear so
/// although it has no token.
const LOGIN: [&str; 4] = [".well-known", "register", "authorize", "token"];

/// A call of a tool that waits for the answer of the API.
struct OpenCall {
    reply: ReplyTo,
    call: ToolCall,
    token: String,
}

/// All of them.
#[derive(Default)]
pub(super) struct OpenCalls {
    open: HashMap<Ticket, OpenCall>,
    /// What is asked next, once there is credit for the commit that it may need.
    next: VecDeque<(Ticket, ApiCall)>,
}

/// Whether a path is one where clients look for a login.
pub(super) fn is_of_login(parts: &[&str]) -> bool {
    parts.first().is_some_and(|first| LOGIN.contains(first))
}

impl Hub {
    /// `POST /api/mcp`
    pub(super) fn on_mcp(&mut self, asked: &Asked) -> Answer {
        let &Asked { ticket, actor, request, .. } = asked;
        match receive(&request.body, Some(&request.mcp), Some(&actor.scopes)) {
            Step::Answer(status, body) => Answer::Now(status, body.unwrap_or_default()),
            Step::Call { reply, tool, arguments } => match ToolCall::new(tool, &arguments, None) {
                Err(result) => Answer::Now(200, reply.result(&result)),
                Ok(mut call) => {
                    self.mcp.next.push_back((ticket, call.first()));
                    let token = request.token.clone();
                    self.mcp.open.insert(ticket, OpenCall { reply, call, token });
                    Answer::Later
                }
            },
        }
    }

    /// Asks what tools want to know or change next.
    pub(super) fn go_on_with_tools(&mut self) {
        while self.commits.has_credit(COMMITS_RESERVED)
            && let Some((ticket, ask)) = self.mcp.next.pop_front()
        {
            let Some(open) = self.mcp.open.get(&ticket) else { continue };
            let (path, query) = ask.path.split_once('?').unwrap_or((&ask.path, ""));
            let request = Request {
                method: ask.method.into(),
                path: path.into(),
                query: query.into(),
                token: open.token.clone(),
                body: ask.body.as_ref().map(Value::to_string).unwrap_or_default().into_bytes(),
                ..Default::default()
            };
            self.dispatch(ticket, &request);
        }
    }

    /// An answer of the API: if it belongs to a tool, what that says now, and nothing if it goes
    /// on.
    pub(super) fn for_tool(
        &mut self,
        ticket: Ticket,
        status: u16,
        body: Body,
    ) -> Option<(u16, Body)> {
        let Some(open) = self.mcp.open.get_mut(&ticket) else { return Some((status, body)) };
        let next = match body {
            Body::Json(answer) => open.call.next(status, &answer),
            Body::Empty => open.call.next(status, &Value::Null),
            Body::Text(_, text) => match serde_json::from_str(&text) {
                Ok(answer) => open.call.next(status, &answer),
                Err(_) => Next::Done(ToolResult::failed("The relay gave no answer of use.")),
            },
        };
        match next {
            Next::Ask(ask) => {
                self.mcp.next.push_back((ticket, ask));
                None
            }
            Next::Done(result) => {
                let open = self.mcp.open.remove(&ticket)?;
                Some((200, open.reply.result(&result).into()))
            }
        }
    }
}
