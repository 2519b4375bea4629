//! The connection to the relay: the own token, the bus, and the commands that come over it.

use std::time::Duration;

use serde_json::json;

use super::effect::{Call, Effect};
use super::event::OwnToken;
use super::{Orchestrator, Timer};
use crate::core::agent::effect::{Access, BusCommand};
use crate::core::agent::event::BusEvent;
use crate::core::limits::{
    GOOD_CONNECTION, HEARTBEAT_INTERVAL, LOG_THROTTLE, REGISTER_TIMEOUT, TOKEN_RETRY,
};
use crate::core::time::Tick;
use crate::core::{Cause, backoff};
use crate::wire::PROTOCOL;
use crate::wire::bus::{ClientFrame, Registered, Registration, RelayFrame};
use crate::wire::control::LogLevel;

/// The own token is asked for again after this, where the relay is away.
const OWN_TOKEN_RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, Default, PartialEq)]
enum Conn {
    /// There is no token yet, or the end has come.
    #[default]
    Off,
    Waiting {
        until: Tick,
    },
    Connecting,
    Registering {
        until: Tick,
    },
    Registered {
        since: Tick,
    },
}

/// State of the connection.
#[derive(Debug, Default)]
pub(super) struct Link {
    conn: Conn,
    own: Option<OwnToken>,
    /// The own token is being asked for.
    asking: bool,
    attempt: u32,
    frames: u64,
    heartbeat_every: Duration,
    /// The generation of the relay's data at the last registration.
    generation: Option<String>,
    /// What was logged last of it, and when.
    logged: Option<(String, Tick)>,
}

impl Link {
    /// When the state of the connection has lasted long enough.
    pub fn deadline(&self) -> Option<Tick> {
        match self.conn {
            Conn::Waiting { until } | Conn::Registering { until } => Some(until),
            Conn::Off | Conn::Connecting | Conn::Registered { .. } => None,
        }
    }

    pub fn is_registered(&self) -> bool {
        matches!(self.conn, Conn::Registered { .. })
    }

    /// The own token, if there is one that was not refused.
    pub fn own(&self) -> Option<&OwnToken> {
        self.own.as_ref()
    }

    /// Id for the next frame that needs one.
    pub fn frame_id(&mut self) -> String {
        self.frames += 1;
        format!("f{}", self.frames)
    }

    /// Word for people.
    pub fn state_name(&self) -> &'static str {
        match self.conn {
            Conn::Off => "off",
            Conn::Waiting { .. } => "waiting",
            Conn::Connecting => "connecting",
            Conn::Registering { .. } => "registering",
            Conn::Registered { .. } => "registered",
        }
    }
}

fn frame(frame: &ClientFrame) -> Effect {
    Effect::Bus(BusCommand::Send(frame.to_text()))
}

impl Orchestrator {
    pub(super) fn begin_link(&mut self) {
        self.ask_own_token(false);
    }

    pub(super) fn end_link(&mut self) {
        self.link.conn = Conn::Off;
        let reason = "the orchestrator stops".into();
        self.out.push(Effect::Bus(BusCommand::Disconnect { reason }));
    }

    /// Says something of the relay once, and again only after a while.
    fn complain(&mut self, text: String) {
        let now = self.now.tick;
        let known = self.link.logged.as_ref();
        if known.is_some_and(|(last, at)| *last == text && now - *at < LOG_THROTTLE) {
            return;
        }
        self.link.logged = Some((text.clone(), now));
        self.log(LogLevel::Warn, text);
    }

    /// `refused`: the one that is known does not work.
    pub(super) fn ask_own_token(&mut self, refused: bool) {
        if refused {
            self.link.own = None;
        }
        if self.stopping || std::mem::replace(&mut self.link.asking, true) {
            return;
        }
        self.out.push(Effect::Call(Call::OwnToken { refused }));
    }

    pub(super) fn on_own_token(&mut self, result: Result<OwnToken, Cause>) {
        self.link.asking = false;
        match result {
            Ok(own) => {
                self.link.own = Some(own);
                self.connect();
                self.on_sessions_due();
            }
            Err(cause) => {
                let pause = match cause {
                    Cause::Offline(_) | Cause::TimedOut(_) => OWN_TOKEN_RETRY,
                    _ => TOKEN_RETRY,
                };
                self.complain(format!("no token of the relay yet: {cause}"));
                self.timers.set(Timer::OwnToken, self.now.tick + pause);
            }
        }
    }

    fn connect(&mut self) {
        let Some(own) = self.link.own.as_ref().filter(|_| !self.stopping) else { return };
        let access =
            Access { relay: self.config.about.relay_url.clone(), token: own.token.clone() };
        self.link.conn = Conn::Connecting;
        self.out.push(Effect::Bus(BusCommand::Connect(Box::new(access))));
    }

    pub(super) fn on_bus(&mut self, event: BusEvent) {
        match (event, &self.link.conn) {
            (_, Conn::Off) => {}
            (BusEvent::Connected, Conn::Connecting) => {
                self.link.conn = Conn::Registering { until: self.now.tick + REGISTER_TIMEOUT };
                let id = self.link.frame_id();
                let registration = self.registration();
                self.out.push(frame(&ClientFrame::Register { id, registration }));
            }
            (BusEvent::Connected, _) => {}
            (BusEvent::Framed(told) | BusEvent::FramedInPart(told, _), _) => self.on_frame(told),
            (BusEvent::Lost(cause), _) => self.on_lost(cause),
        }
    }

    fn registration(&self) -> Registration {
        let name = self.link.own.as_ref().map(|own| own.name.clone()).unwrap_or_default();
        let meta = json!({
            "version": crate::wire::VERSION, "instanceId": self.config.instance_id,
            "baseDir": self.config.base_dir, "providers": self.config.providers,
            "maxSessions": self.config.room.sessions_max, "label": null,
        });
        Registration {
            role: "orchestrator".into(),
            component_id: format!("{name}-component"),
            agent_id: Some(name),
            instance_id: self.config.instance_id.clone(),
            capabilities: vec!["orchestrator".into(), "agent.spawn".into()],
            tags: vec!["orchestrator".into()],
            machine: self.config.about.hostname.clone(),
            meta: meta.as_object().cloned().unwrap_or_default(),
            protocol: PROTOCOL,
            since: None,
        }
    }

    fn on_lost(&mut self, cause: Cause) {
        if let Conn::Registered { since } = self.link.conn
            && self.now.tick - since >= GOOD_CONNECTION
        {
            self.link.attempt = 0;
        }
        self.complain(format!("bus: {cause}"));
        self.timers.clear(Timer::Heartbeat);
        let pause = backoff::reconnect(self.link.attempt, &mut self.rng);
        self.link.attempt = self.link.attempt.saturating_add(1);
        self.link.conn = Conn::Waiting { until: self.now.tick + pause };
        if matches!(cause, Cause::Refused(401 | 403, _)) {
            self.link.conn = Conn::Waiting { until: self.now.tick + TOKEN_RETRY };
            self.ask_own_token(true);
        }
    }

    /// A pause between two attempts is over, or the relay did not answer.
    pub(super) fn on_connection_due(&mut self) {
        match self.link.conn {
            Conn::Waiting { .. } if self.link.own.is_some() => self.connect(),
            Conn::Waiting { .. } => {
                self.link.conn = Conn::Off;
                self.ask_own_token(false);
            }
            Conn::Registering { .. } => {
                let reason = "no answer to register".into();
                self.out.push(Effect::Bus(BusCommand::Disconnect { reason }));
                let text = "the relay did not answer the registration".into();
                self.on_lost(Cause::TimedOut(text));
            }
            Conn::Off | Conn::Connecting | Conn::Registered { .. } => {}
        }
    }

    pub(super) fn on_heartbeat_due(&mut self) {
        self.timers.set(Timer::Heartbeat, self.now.tick + self.link.heartbeat_every);
        let meta = json!({"sessions": self.sessions.len()}).as_object().cloned();
        self.out.push(frame(&ClientFrame::Heartbeat { status: "idle".into(), meta }));
        self.refresh_report();
    }

    /// The relay learns how the host is.
    pub(super) fn tell_report(&mut self) {
        let Some(report) = self.host_report().filter(|_| self.link.is_registered()) else { return };
        let meta = json!({"host": report}).as_object().cloned();
        self.out.push(frame(&ClientFrame::Heartbeat { status: "idle".into(), meta }));
    }

    fn on_frame(&mut self, told: RelayFrame) {
        match told {
            RelayFrame::Registered { registered, .. } => self.on_registered(registered),
            RelayFrame::Command { id, command } => self.on_command(id, command),
            // Nothing is done with mail: an orchestrator takes commands.
            RelayFrame::Event { seq, .. } => {
                self.out.push(frame(&ClientFrame::Ack { frame_id: format!("e{seq}") }));
            }
            RelayFrame::Ack { frame_id } => self.commands.on_acknowledged(&frame_id),
            RelayFrame::Error { code, message, .. } => {
                self.complain(format!("bus error {code}: {message}"));
                match code.as_str() {
                    "unauthorized" | "token_expired" => self.ask_own_token(true),
                    "superseded" => self.finish(
                        1,
                        format!("another orchestrator took over the name of this one: {message}"),
                    ),
                    _ => {}
                }
            }
        }
    }

    fn on_registered(&mut self, registered: Registered) {
        if !matches!(self.link.conn, Conn::Registering { .. }) {
            return;
        }
        self.link.conn = Conn::Registered { since: self.now.tick };
        self.link.logged = None;
        self.link.heartbeat_every = match registered.heartbeat_interval_ms {
            0 => HEARTBEAT_INTERVAL,
            told => Duration::from_millis(told.clamp(1000, 300_000)),
        };
        self.timers.set(Timer::Heartbeat, self.now.tick + self.link.heartbeat_every);
        let name = registered.agent_id.unwrap_or_default();
        self.log(LogLevel::Info, format!("registered orchestrator={name}"));
        let status =
            ClientFrame::Status { agent_status: "idle".into(), ready: Some(true), meta: None };
        self.out.push(frame(&status));
        self.tell_report();
        self.refresh_report();
        let generation = registered.server.get("generation").and_then(|told| told.as_str());
        let generation = generation.map(str::to_string);
        let before = std::mem::replace(&mut self.link.generation, generation);
        if before.is_some() && before != self.link.generation {
            // Of the tokens that were made meanwhile the relay may know none.
            self.renew_agent_tokens();
        }
        self.send_updates_again();
    }
}
