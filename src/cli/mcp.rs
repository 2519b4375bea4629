//! `mcp`: the tools of the relay on standard streams, for the program of an agent.
//!
//! Such a program starts its servers once, and some never again, so this one holds nothing that
//! could be lost: it opens no connection before a call and looks anew at each call where the relay
//! and its runner are, and for the token. What the relay cannot take now goes to the runner of this
//! session, as with the other commands of an agent ([`super::inside`]).

use std::io::Read;
use std::thread;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde_json::{Map, Value, json};

use super::client::Client;
use super::exit::{Failure, OK, Outcome};
use super::{inside, print};
use crate::config::{Global, env};
use crate::core::mcp::call::{ApiCall, KnownMessage, Next, ToolCall};
use crate::core::mcp::tools::{Tool, Verb};
use crate::core::mcp::{FRAME_BYTES_MAX, ReplyTo, Step, ToolResult, receive};
use crate::os;
use crate::provider::lines::Lines;
use crate::wire::api::{TokenRecord, path};
use crate::wire::control::ENV_PROVIDER_SESSION;

/// Calls that wait for the one that is under way.
const CALLS_WAITING_MAX: usize = 64;

/// A call that waits for its turn.
struct Waiting {
    reply: ReplyTo,
    tool: &'static Tool,
    arguments: Map<String, Value>,
}

/// `mcp`
pub fn mcp() -> Outcome {
    let (calls, waiting) = bounded(CALLS_WAITING_MAX);
    // A call may wait for the relay; everything else is answered at once.
    let caller = thread::Builder::new()
        .name("calls".into())
        .spawn(move || answer_calls(&waiting))
        .map_err(|error| Failure::system(format!("cannot start a thread: {error}")))?;
    read_frames(&calls)?;
    drop(calls);
    // What was asked before the end of the input is done.
    let _ = caller.join();
    Ok(OK)
}

/// Reads frames, one on a line, until the input ends.
fn read_frames(calls: &Sender<Waiting>) -> Result<(), Failure> {
    let mut lines = Lines::up_to(FRAME_BYTES_MAX);
    let mut buffer = vec![0u8; 16 << 10];
    let mut input = std::io::stdin().lock();
    let mut known = None;
    loop {
        let size = match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(size) => size,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(Failure::system(format!("standard input cannot be read: {error}")));
            }
        };
        lines.push(&buffer[..size], |line| on_frame(line, &mut known, calls));
    }
}

/// Answers one frame, or leaves it to the thread of the calls.
fn on_frame(line: &[u8], known: &mut Option<Vec<String>>, calls: &Sender<Waiting>) {
    if line.iter().all(u8::is_ascii_whitespace) {
        return;
    }
    // Only a list of tools depends on the rights; of those that were told last during an outage.
    if is_list(line) {
        *known = scopes().or(known.take());
    }
    match receive(line, None, known.as_deref()) {
        Step::Answer(_, body) => say(body.as_ref()),
        Step::Call { reply, tool, arguments } => {
            let waiting = Waiting { reply, tool, arguments };
            if let Err(TrySendError::Full(waiting) | TrySendError::Disconnected(waiting)) =
                calls.try_send(waiting)
            {
                let text = "Too many calls wait already: nothing was done. Wait for their results, then call again.";
                say(Some(&waiting.reply.result(&ToolResult::failed(text))));
            }
        }
    }
}

fn is_list(line: &[u8]) -> bool {
    const METHOD: &[u8] = b"\"tools/list\"";
    line.windows(METHOD.len()).any(|part| part == METHOD)
}

/// One line each. JSON that another program reads: its characters stay as they are.
fn say(frame: Option<&Value>) {
    if let Some(frame) = frame {
        print::frame(frame);
    }
}

fn client() -> Result<Client, Failure> {
    Client::new(&Global::load(None, None)?)
}

/// What this session's token may do; none where nobody tells.
fn scopes() -> Option<Vec<String>> {
    let (status, answer) = client().ok()?.raw("GET", path::TOKEN_SELF, None).ok()?;
    let record = TokenRecord::of_answer(&answer);
    (status == 200 && !record.scopes.is_empty()).then_some(record.scopes)
}

fn answer_calls(waiting: &Receiver<Waiting>) {
    for Waiting { reply, tool, arguments } in waiting {
        say(Some(&reply.result(&carry_out(tool, &arguments))));
    }
}

/// Everything is looked at anew: the settings, the relay, the token and the runner.
fn carry_out(tool: &'static Tool, arguments: &Map<String, Value>) -> ToolResult {
    let client = match client() {
        Ok(client) => client,
        Err(failure) => return ToolResult::failed(failure.text),
    };
    // Said once, whichever way it goes.
    let name = client.session().unwrap_or("user");
    let key = format!("tool:{name}:{}", os::sha256_hex(&os::secret()));
    let mut call = match ToolCall::new(tool, arguments, Some(key)) {
        Ok(call) => call,
        Err(result) => return result,
    };
    if let Some(id) = call.message() {
        match inside::given(&client, id) {
            Ok(Some(given)) => {
                call.know(KnownMessage { from: given.from, generation: given.generation });
            }
            Ok(None) => {}
            Err(failure) => return ToolResult::failed(failure.text),
        }
    }
    let result = ask_on(&client, &mut call);
    if !result.is_error {
        tell_runner(&client, &call, arguments);
    }
    result
}

fn ask_on(client: &Client, call: &mut ToolCall) -> ToolResult {
    let mut ask = call.first();
    loop {
        let next = match exchange(client, call, &ask) {
            Ok((status, answer)) => call.next(status, &answer),
            Err(why) => return call.unreachable(&why),
        };
        match next {
            Next::Ask(further) => ask = further,
            Next::Done(result) => return result,
        }
    }
}

/// Whether the relay cannot take it now, though there is nothing wrong with it.
fn is_for_now(status: u16) -> bool {
    matches!(status, 401 | 408 | 429 | 500..)
}

/// Asks the relay; what it cannot take now goes to the runner of this session, which sends it when
/// it can. `Err`: why neither takes it.
fn exchange(client: &Client, call: &ToolCall, ask: &ApiCall) -> Result<(u16, Value), String> {
    let answered = client.raw(ask.method, &ask.path, ask.body.as_ref());
    let lost = |answer: &Value| answer["code"] == crate::wire::api::OTHER_GENERATION;
    let why = match &answered {
        Ok((status, answer)) if !is_for_now(*status) && !lost(answer) => {
            return answered.map_err(|failure| failure.text);
        }
        Ok((status, answer)) => {
            format!("{} (HTTP {status})", answer["error"].as_str().unwrap_or("no reason given"))
        }
        Err(failure) => failure.text.clone(),
    };
    let queued = call.queueable().filter(|_| client.session().is_some());
    let taken = queued.and_then(|(way, body)| inside::ask(client, "POST", &way, Some(body)));
    match taken {
        Some((status, answer)) if status < 500 && status != 404 && status != 405 => {
            Ok((status, answer))
        }
        // The relay has said no, and no runner knows better.
        _ => match answered {
            Ok((status, answer)) if !is_for_now(status) => Ok((status, answer)),
            _ => Err(why),
        },
    }
}

/// What the agent has answered or fetched itself, its runner need not do.
fn tell_runner(client: &Client, call: &ToolCall, arguments: &Map<String, Value>) {
    let event = match call.tool().verb {
        Verb::Reply | Verb::React => "replied",
        Verb::GetMessage => "fetched",
        _ => return,
    };
    let Ok(read) = call.tool().read(arguments) else { return };
    let mut body = json!({"payload": {"ids": [read["messageId"]]}});
    if let Some(session) = env(ENV_PROVIDER_SESSION) {
        body["providerSessionId"] = json!(session);
    }
    inside::ask(client, "POST", &format!("/hook/{event}"), Some(&body));
}
