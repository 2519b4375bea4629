//! `monitor`: names waiting messages for a session whose terminal belongs to a person.
//!
//! What it prints may be cut or dropped, and the model reads it as "not user input". So it prints
//! one short line that says what to run, and its acknowledgement proves nothing. Its end would wake
//! the model: it reconnects for ever and ends with the session.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use super::exit::{OK, Outcome};
use super::print;
use crate::config::env;
use crate::core::chars::one_line;
use crate::os;
use crate::provider::registry;
use crate::wire::control::{ENV_CONTROL_TOKEN, ENV_PORT, ENV_PROVIDER_SESSION};

/// Pause before the next attempt: first, longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Between two lines: more are dropped for ever.
const LINE_PAUSE: Duration = Duration::from_secs(2);
/// Characters of a line: what is longer is cut.
const LINE_CHARS_MAX: usize = 480;
/// A frame that has begun must be complete by then.
const FRAME_TIME: Duration = Duration::from_secs(10);

/// `monitor`
pub fn monitor() -> Outcome {
    // Without a session to end with it would stay for ever.
    let session = registry::session_pid_env()
        .find_map(env)
        .and_then(|pid| pid.parse::<i32>().ok())
        .or_else(|| rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()));
    let Some(alive) =
        session.and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    else {
        return Ok(OK);
    };
    let mut pause = PAUSES.0;
    loop {
        let began = Instant::now();
        if env(ENV_PORT).is_some() && serve(&alive).is_none() {
            return Ok(OK);
        }
        if began.elapsed() > PAUSES.1 {
            pause = PAUSES.0;
        }
        if ended(&alive, pause) {
            return Ok(OK);
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Waits; true: the session has ended.
fn ended(alive: &OwnedFd, pause: Duration) -> bool {
    let mut fds = [PollFd::new(alive, PollFlags::IN)];
    os::wait(&mut fds, Some(pause));
    os::is_ready(&fds[0])
}

/// One connection, until it breaks (`Some`) or the session ends (`None`).
fn serve(alive: &OwnedFd) -> Option<()> {
    let Some(mut socket) = connect() else { return Some(()) };
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => {
                let Some((line, answer)) = told(text.as_str()) else { continue };
                print::line(&line);
                if socket.send(Message::text(answer.to_string())).is_err() {
                    return Some(());
                }
                if ended(alive, LINE_PAUSE) {
                    return None;
                }
            }
            Ok(Message::Close(_)) => return Some(()),
            Ok(_) => {}
            // All that has come is read, also what came together with another frame.
            Err(tungstenite::Error::Io(error))
                if error.kind() == std::io::ErrorKind::WouldBlock =>
            {
                let mut fds = [
                    PollFd::new(alive, PollFlags::IN),
                    PollFd::new(socket.get_ref(), PollFlags::IN),
                ];
                os::wait(&mut fds, None);
                if os::is_ready(&fds[0]) {
                    return None;
                }
            }
            Err(_) => return Some(()),
        }
    }
}

fn connect() -> Option<WebSocket<TcpStream>> {
    let port: u16 = env(ENV_PORT)?.parse().ok()?;
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(FRAME_TIME)).ok()?;
    stream.set_write_timeout(Some(FRAME_TIME)).ok()?;
    let session = env(ENV_PROVIDER_SESSION).unwrap_or_default();
    let mut request =
        format!("ws://127.0.0.1:{port}/monitor?session={session}").into_client_request().ok()?;
    let token = format!("Bearer {}", env(ENV_CONTROL_TOKEN).unwrap_or_default());
    request.headers_mut().insert("Authorization", token.parse().ok()?);
    let (socket, _) = tungstenite::client(request, stream).ok()?;
    socket.get_ref().set_nonblocking(true).ok()?;
    Some(socket)
}

/// The line for a delivery, and its acknowledgement.
fn told(frame: &str) -> Option<(String, Value)> {
    let frame: Value = serde_json::from_str(frame).ok()?;
    let messages =
        frame.get("messages").filter(|_| frame["type"] == "message.deliver")?.as_array()?;
    let ids: Vec<u64> = messages.iter().filter_map(|message| message["id"].as_u64()).collect();
    let first = ids.first()?;
    let names: Vec<String> = messages
        .iter()
        .map(|message| {
            format!("#{} from {}", message["id"], message["from"].as_str().unwrap_or("?"))
        })
        .collect();
    let command = if ids.len() == 1 {
        format!("agent-relay get-message {first}")
    } else {
        "agent-relay inbox".to_string()
    };
    let tail = format!("; read and answer with: {command}");
    let head = format!("{} relay message(s) wait: {}", ids.len(), names.join(", "));
    let head: String = one_line(&head).chars().take(LINE_CHARS_MAX - tail.len()).collect();
    let id = frame["deliveryId"].as_str().unwrap_or_default();
    Some((head + &tail, json!({"type": "message.delivered", "deliveryId": id, "messageIds": ids})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_say_what_to_run() {
        let many: Vec<Value> = (1..200).map(|id| json!({"id": id, "from": "a\nb"})).collect();
        let (line, answer) = told(
            &json!({"type": "message.deliver", "deliveryId": "d", "messages": many}).to_string(),
        )
        .expect("a line");
        assert!(
            line.chars().count() <= LINE_CHARS_MAX
                && line.ends_with("agent-relay inbox")
                && !line.contains('\n'),
            "{line}"
        );
        assert_eq!(
            (answer["deliveryId"].clone(), answer["messageIds"].as_array().map(Vec::len)),
            (json!("d"), Some(199))
        );
        let (line, _) = told(r#"{"type":"message.deliver","messages":[{"id":5,"from":"user"}]}"#)
            .expect("a line");
        assert!(
            line.contains("#5 from user") && line.ends_with("agent-relay get-message 5"),
            "{line}"
        );
        for frame in [
            "{}",
            "x",
            r#"{"type":"message.deliver","messages":[]}"#,
            r#"{"type":"other","messages":[{"id":1}]}"#,
        ] {
            assert_eq!(told(frame), None, "{frame}");
        }
    }
}
