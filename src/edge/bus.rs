//! Thread `bus`: one WebSocket to the relay. Waits in poll(2) on the socket and a wake descriptor.

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Error as WsError, HandshakeError, Message, WebSocket};

use super::http::Base;
use super::proxy::Route;
use super::stream::Stream;
use crate::core::Cause;
use crate::core::agent::effect::BusCommand;
use crate::core::agent::event::BusEvent;
use crate::core::limits::{PING_INTERVAL, SILENCE_MAX};
use crate::os::{self, Waker};
use crate::provider::reader::{self, Damage};
use crate::secret::Secret;
use crate::wire::bus::{FrameError, RelayFrame};
use crate::wire::{FRAME_BYTES_MAX, api};

/// Connecting, TLS and upgrade together take at most this long.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes that wait for a slow relay before the connection counts as lost.
const UNSENT_BYTES_MAX: usize = 8 << 20;
/// Opening the bus and an answer to a ping take at most this long where somebody looks at it.
const PROBE_LIMIT: Duration = Duration::from_secs(15);
/// The close handshake takes at most this long.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

// The queue has thousands of places.
const _: () = assert!(size_of::<BusCommand>() <= 32);

/// Limits of a WebSocket: small buffers, so that a thousand cost little.
pub fn ws_config(unsent_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(unsent_max)
        .max_message_size(Some(FRAME_BYTES_MAX + 1024))
        .max_frame_size(Some(FRAME_BYTES_MAX + 1024))
}

/// Body of the thread, for every machine that hears of the bus.
pub fn run<E: From<BusEvent>>(orders: Receiver<BusCommand>, waker: Waker, lane: Sender<E>) {
    let mut edge = Bus { orders, waker, lane, connection: None };
    while edge.turn() {}
}

struct Connection {
    socket: WebSocket<Stream>,
    heard: Instant,
    pinged: bool,
    unflushed: bool,
}

struct Bus<E> {
    orders: Receiver<BusCommand>,
    waker: Waker,
    lane: Sender<E>,
    connection: Option<Connection>,
}

impl<E: From<BusEvent>> Bus<E> {
    /// One step: wait, read, carry out orders. False: nobody gives orders any more.
    fn turn(&mut self) -> bool {
        let Some(connection) = &mut self.connection else {
            // Nothing to watch: wait for an order.
            return match self.orders.recv() {
                Ok(order) => self.carry_out(order),
                Err(_) => false,
            };
        };
        // Ping after 20 s of silence, give up after 45 s. The relay pings by itself, so this is
        // rare.
        let silent = connection.heard.elapsed();
        let limit =
            if connection.pinged { SILENCE_MAX } else { PING_INTERVAL + Duration::from_secs(2) };
        if silent >= limit {
            if connection.pinged {
                return self.lost(Cause::TimedOut(format!(
                    "the relay was silent for {} s",
                    silent.as_secs()
                )));
            }
            connection.pinged = true;
            let _ = connection.socket.write(Message::Ping(Vec::new().into()));
            connection.unflushed = true;
        }
        let wants =
            if connection.unflushed { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let has_more = connection.socket.get_mut().has_decrypted();
        let timeout = if has_more {
            Duration::ZERO
        } else {
            limit.saturating_sub(silent).max(Duration::from_millis(1))
        };
        let (readable, woken) = {
            let mut fds = [
                PollFd::new(connection.socket.get_ref(), wants),
                PollFd::new(&self.waker, PollFlags::IN),
            ];
            os::wait(&mut fds, Some(timeout));
            (!fds[0].revents().is_empty() || has_more, os::is_ready(&fds[1]))
        };
        if woken {
            self.waker.clear();
            loop {
                match self.orders.try_recv() {
                    Ok(order) => {
                        if !self.carry_out(order) {
                            return false;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.close("runner stopped");
                        return false;
                    }
                }
            }
        }
        if let Some(connection) = self.connection.as_mut().filter(|connection| connection.unflushed)
        {
            match connection.socket.flush() {
                Ok(()) => connection.unflushed = connection.socket.get_ref().has_unsent(),
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return self.lost(cause_of(error)),
            }
        }
        if readable { self.read() } else { true }
    }

    /// Reads until `WouldBlock`, so that nothing decrypted stays behind.
    fn read(&mut self) -> bool {
        loop {
            let Some(connection) = &mut self.connection else {
                return true;
            };
            match connection.socket.read() {
                Ok(message) => {
                    connection.heard = Instant::now();
                    connection.pinged = false;
                    if let Message::Text(text) = message {
                        match RelayFrame::parse(&text) {
                            Ok(frame) => {
                                if !self.report(BusEvent::Framed(frame)) {
                                    return false;
                                }
                            }
                            Err(FrameError::Unknown { kind }) => {
                                log::debug!(target: "bus", "ignored a frame of unknown type {kind:?}")
                            }
                            Err(FrameError::Malformed { reason, .. }) => match in_part(&text) {
                                Some(frame) => {
                                    let why = "it is nested too deeply to be read".to_string();
                                    if !self.report(BusEvent::FramedInPart(frame, why)) {
                                        return false;
                                    }
                                }
                                None => log::warn!(target: "bus", "malformed frame: {reason}"),
                            },
                        }
                    } else if let Some(connection) = &mut self.connection {
                        connection.unflushed = true; // a pong may be waiting
                    }
                }
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return true;
                }
                Err(error) => return self.lost(cause_of(error)),
            }
        }
    }

    fn report(&mut self, event: BusEvent) -> bool {
        let mut late = Vec::new();
        let alive = super::report(&self.lane, &self.orders, event.into(), |order| late.push(order));
        late.into_iter().all(|order| self.carry_out(order)) && alive
    }

    fn carry_out(&mut self, order: BusCommand) -> bool {
        match order {
            BusCommand::Connect(to) => {
                self.connection = None;
                let base = Base::parse(&to.relay).map_err(Cause::Protocol);
                match base.and_then(|base| connect(&base, &to.token)) {
                    Ok(socket) => {
                        self.connection = Some(Connection {
                            socket,
                            heard: Instant::now(),
                            pinged: false,
                            unflushed: false,
                        });
                        self.report(BusEvent::Connected)
                    }
                    Err(cause) => self.report(BusEvent::Lost(cause)),
                }
            }
            BusCommand::Send(text) => {
                let Some(connection) = &mut self.connection else {
                    return true;
                };
                match connection.socket.write(Message::text(text)) {
                    Ok(()) => {
                        connection.unflushed = match connection.socket.flush() {
                            Ok(()) => connection.socket.get_ref().has_unsent(),
                            Err(_) => true,
                        };
                        true
                    }
                    Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        connection.unflushed = true;
                        true
                    }
                    Err(error) => self.lost(cause_of(error)),
                }
            }
            BusCommand::Disconnect { reason } => {
                self.close(&reason);
                true
            }
        }
    }

    fn lost(&mut self, cause: Cause) -> bool {
        self.connection = None;
        self.report(BusEvent::Lost(cause))
    }

    /// Sends a close frame and waits for the answer, at most a second.
    fn close(&mut self, reason: &str) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let frame = CloseFrame {
            code: tungstenite::protocol::frame::coding::CloseCode::Normal,
            reason: reason.to_string().into(),
        };
        let until = Instant::now() + CLOSE_LIMIT;
        if connection.socket.close(Some(frame)).is_err() {
            return;
        }
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let _ = connection.socket.flush();
            match connection.socket.read() {
                Ok(_) => {}
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    os::wait(
                        &mut [PollFd::new(connection.socket.get_ref(), PollFlags::IN)],
                        Some(left),
                    );
                }
                Err(_) => return,
            }
        }
    }
}

/// What can be read of a frame that is nested too deeply for the strict reader.
fn in_part(text: &str) -> Option<RelayFrame> {
    let found = reader::read(text.as_bytes())?;
    (found.damage == Damage::Patched).then(|| RelayFrame::parse(&found.value.to_string()).ok())?
}

/// Connects and upgrades; also for command line clients of the bus.
pub fn connect(base: &Base, token: &Secret) -> Result<WebSocket<Stream>, Cause> {
    let route = if crate::planted::is("unproxied-bus") { Route::Direct } else { Route::to(base) };
    let offline = |error: io::Error| {
        let text = format!("cannot reach the relay at {}{route}: {error}", base.url);
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Cause::TimedOut(text),
            _ => Cause::Offline(text),
        }
    };
    let stream = route.connect(base, CONNECT_LIMIT).map_err(offline)?;
    let mut request =
        base.bus_url().into_client_request().map_err(|error| Cause::Protocol(error.to_string()))?;
    if !token.expose().is_empty() {
        let value = token.expose().parse().map_err(|_| {
            Cause::Protocol("the token holds characters that no header may have".into())
        })?;
        request.headers_mut().insert(api::TOKEN_HEADER, value);
    }
    match tungstenite::client::client_with_config(
        request,
        stream,
        Some(ws_config(UNSENT_BYTES_MAX)),
    ) {
        Ok((socket, _)) => {
            socket.get_ref().unblock().map_err(offline)?;
            Ok(socket)
        }
        Err(HandshakeError::Failure(error)) => Err(cause_of(error)),
        Err(HandshakeError::Interrupted(_)) => Err(Cause::TimedOut(format!(
            "the relay at {}{route} did not answer the upgrade in time",
            base.url
        ))),
    }
}

/// Opens the bus and waits until it answers: how long that took. Nobody is registered by it.
pub fn probe(base: &Base, token: &Secret) -> Result<Duration, Cause> {
    let began = Instant::now();
    let mut socket = connect(base, token)?;
    let mut asked = socket.send(Message::Ping(Vec::new().into()));
    loop {
        match asked {
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(cause_of(error)),
            Ok(()) => {}
        }
        match socket.read() {
            Ok(Message::Pong(_)) => break,
            Ok(_) => {}
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = PROBE_LIMIT.saturating_sub(began.elapsed());
                if left.is_zero() {
                    return Err(Cause::TimedOut("it opens, and then nothing comes".into()));
                }
                os::wait(&mut [PollFd::new(socket.get_ref(), PollFlags::IN)], Some(left));
            }
            Err(error) => return Err(cause_of(error)),
        }
        asked = socket.flush();
    }
    let took = began.elapsed();
    let _ = socket.close(None);
    let _ = socket.flush();
    Ok(took)
}

fn cause_of(error: WsError) -> Cause {
    match error {
        WsError::Http(response) => {
            let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            let text = serde_json::from_str::<serde_json::Value>(&body).ok();
            let text =
                text.as_ref().and_then(|body| body.get("error")).and_then(|text| text.as_str());
            Cause::Refused(
                response.status().as_u16(),
                text.unwrap_or("the relay refuses the upgrade").to_string(),
            )
        }
        WsError::ConnectionClosed | WsError::AlreadyClosed => {
            Cause::Offline("the relay closed the connection".into())
        }
        WsError::Io(error) => Cause::Offline(format!("the connection broke: {error}")),
        other => Cause::Protocol(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_frame_that_is_nested_too_deeply_the_rest_is_read() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let message =
            format!(r#"{{"id":7,"from":"x","to":"a","body":"b","payload":{{"p":{deep}}}}}"#);
        let text = format!(
            r#"{{"type":"event","id":"e9","payload":{{"seq":9,"event":"message.new","data":{message}}}}}"#
        );
        assert!(RelayFrame::parse(&text).is_err());
        match in_part(&text) {
            Some(RelayFrame::Event { seq: 9, data, .. }) => assert_eq!(data["id"], 7),
            other => panic!("{other:?}"),
        }
        assert_eq!(in_part(r#"{"type":"event","payload":{"seq":9,"ev"#), None);
    }
}
