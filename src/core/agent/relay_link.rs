//! The connection to the relay: bus, reconnects, and the liveness rounds over HTTP while the bus is
//! away.

use super::Agent;
use super::effect::{Access, BusCommand, Effect};
use super::event::BusEvent;
use super::generations::Highest;
use super::http_calls::{CallKind, UNREAD_PAGE};
use super::stop::Why;
use crate::core::agent::timer::Timer;
use crate::core::limits::*;
use crate::core::time::{Now, Tick};
use crate::core::{Cause, backoff};
use crate::wire::PROTOCOL;
use crate::wire::api::{Message, path};
use crate::wire::bus::{ClientFrame, Registered, RelayFrame};
use crate::wire::control::LogLevel;

/// Clocks that differ by no more than this are the same: an answer has a way to go.
const CLOCKS_AGREE: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Debug, Default, PartialEq)]
enum Conn {
    /// Before the first token is decided, or after the goodbye.
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
pub(super) struct RelayLink {
    conn: Conn,
    attempt: u32,
    /// As the relay said at the last registration.
    heartbeat_every: std::time::Duration,
    /// An attempt at the bus has failed since it was last registered: a round over HTTP has
    /// followed it at once.
    hurried: bool,
    pub polling: super::polling::Polling,
    /// The bus was refused with a 403, perhaps only by something on the way; the words of it.
    pub bus_refused: Option<String>,
    pub last_error: Option<(String, Tick)>,
    pub epoch: u64,
    frames: u64,
    pub auth_trouble: bool,
    /// The relay has registered this very instance.
    pub known_instance: bool,
    /// What the relay's clock said, and when.
    clock: Option<(i64, Tick)>,
    /// Highest id of each generation when the registration was sent.
    asked_at: Highest,
}

impl RelayLink {
    pub fn is_registered(&self) -> bool {
        matches!(self.conn, Conn::Registered { .. })
    }

    pub fn is_off(&self) -> bool {
        self.conn == Conn::Off
    }

    /// The relay hears what is said: over the bus, or over HTTP while that has no bus.
    pub fn is_reached(&self) -> bool {
        self.is_registered() || self.polling.works
    }

    /// When the state of the connection has lasted long enough.
    pub fn deadline(&self) -> Option<Tick> {
        match self.conn {
            Conn::Waiting { until } | Conn::Registering { until } => Some(until),
            Conn::Off | Conn::Connecting | Conn::Registered { .. } => None,
        }
    }

    /// There is no bus, and calls over HTTP may tell what it would tell.
    pub fn may_poll(&self) -> bool {
        !self.is_registered() && !self.auth_trouble
    }

    /// Word for `/status` and for the status meta `transport`.
    pub fn state_name(&self) -> &'static str {
        match self.conn {
            Conn::Off => "off",
            Conn::Waiting { .. } | Conn::Connecting | Conn::Registering { .. }
                if self.polling.works =>
            {
                "polling"
            }
            Conn::Waiting { .. } => "waiting",
            Conn::Connecting => "connecting",
            Conn::Registering { .. } => "registering",
            Conn::Registered { .. } => "registered",
        }
    }

    pub fn since(&self) -> Option<Tick> {
        match self.conn {
            Conn::Registered { since } => Some(since),
            _ => None,
        }
    }

    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// Id for the next frame that needs one.
    pub fn frame_id(&mut self) -> String {
        self.frames += 1;
        format!("f{}", self.frames)
    }

    /// The time of day by the relay's clock, ms: ends of leases and tokens are told in it. Ours
    /// counts as long as the relay has not told its own.
    pub fn clock(&self, now: Now) -> i64 {
        let told = self.clock.filter(|_| !crate::planted::is("own-clock"));
        told.map_or(now.wall.0, |(time, at)| time + (now.tick - at).as_millis() as i64)
    }

    /// The next attempt begins the pauses anew.
    pub fn forget_attempts(&mut self) {
        self.attempt = 0;
    }

    pub fn switch_off(&mut self) {
        self.conn = Conn::Off;
        self.polling = Default::default();
    }
}

impl Agent {
    /// The token is known: connect now.
    pub(super) fn connect(&mut self, now: Now) {
        if self.relay_link.conn == Conn::Connecting
            || self.stop.as_ref().is_some_and(|stop| stop.is_done())
        {
            return;
        }
        let Some(token) = self.tokens.for_call() else {
            return;
        };
        self.relay_link.conn = Conn::Connecting;
        self.relay_link.auth_trouble = false;
        let patience =
            if self.relay_link.known_instance { LIVENESS_INTERVAL } else { LIVENESS_FIRST };
        self.timers.set_once(Timer::LivenessRound, now.tick + patience);
        let relay = self.config.relay_url.clone();
        self.out.push(Effect::Bus(BusCommand::Connect(Box::new(Access { relay, token }))));
    }

    /// Drops the connection, if there is one, and makes a new one at once.
    pub(super) fn reconnect(&mut self, now: Now, reason: &str) {
        if matches!(self.relay_link.conn, Conn::Registering { .. } | Conn::Registered { .. }) {
            self.out.push(Effect::Bus(BusCommand::Disconnect { reason: reason.into() }));
        }
        if self.relay_link.conn != Conn::Connecting {
            self.connect(now);
        }
    }

    pub(super) fn on_bus(&mut self, now: Now, event: BusEvent) {
        match (event, &self.relay_link.conn) {
            (BusEvent::Connected, Conn::Connecting) => {
                self.relay_link.conn = Conn::Registering { until: now.tick + REGISTER_TIMEOUT };
                self.relay_link.asked_at = self.generations.highest();
                let mut registration = self.config.registration.clone();
                registration.protocol = PROTOCOL;
                registration.meta = self.registration_meta();
                let id = self.relay_link.frame_id();
                self.out.push(Effect::frame(&ClientFrame::Register { id, registration }));
            }
            (BusEvent::Connected, _) => self
                .out
                .push(Effect::Bus(BusCommand::Disconnect { reason: "not wanted any more".into() })),
            (BusEvent::Framed(frame), _) => self.on_frame(now, frame),
            (BusEvent::FramedInPart(frame, why), _) => self.on_frame_in_part(now, frame, &why),
            (BusEvent::Lost(_), Conn::Off) => {}
            (BusEvent::Lost(cause), _) => self.on_bus_lost(now, cause),
        }
    }

    fn on_bus_lost(&mut self, now: Now, cause: Cause) {
        if let Conn::Registered { since } = self.relay_link.conn {
            if now.tick - since >= GOOD_CONNECTION {
                self.relay_link.attempt = 0;
            }
            self.timers.set(Timer::LivenessRound, now.tick + LIVENESS_INTERVAL);
        } else if !std::mem::replace(&mut self.relay_link.hurried, true) {
            // Perhaps only the bus is shut: one round at once, and no further one before its time
            // if the relay is away.
            self.timers.set(Timer::LivenessRound, now.tick);
        }
        self.relay_link.last_error = Some((cause.to_string(), now.tick));
        if self.status.may_log(now, &format!("bus: {cause}")) {
            self.log(LogLevel::Warn, "bus", format!("connection lost: {cause}"));
        }
        let pause = backoff::reconnect(self.relay_link.attempt, &mut self.rng);
        self.relay_link.attempt = self.relay_link.attempt.saturating_add(1);
        self.relay_link.conn = Conn::Waiting { until: now.tick + pause };
        self.status.touch();
        match cause {
            // Where HTTP works it is the way to the bus that is shut, not the token.
            Cause::Refused(403, _) if self.relay_link.polling.works => {}
            Cause::Refused(403, text) if !self.relay_link.known_instance => {
                // Who refuses, the relay or something before it? A registration over HTTP tells.
                self.relay_link.bus_refused = Some(text);
                self.timers.set(Timer::LivenessRound, now.tick);
            }
            Cause::Refused(401 | 403, _) => self.on_auth_trouble(now, "bus"),
            _ => self.look_while_away(),
        }
    }

    fn on_frame(&mut self, now: Now, frame: RelayFrame) {
        match frame {
            RelayFrame::Registered { registered, .. } => self.on_registered(now, registered),
            RelayFrame::Event { seq, event, data, .. } if event == "message.new" => {
                match serde_json::from_value::<Message>(data) {
                    Ok(message) => self.on_message(message, Some(format!("e{seq}"))),
                    Err(error) => self.log(
                        LogLevel::Debug,
                        "bus",
                        format!("event without a message: {error}"),
                    ),
                }
            }
            RelayFrame::Event { .. } => {}
            RelayFrame::Command { id, command } => self.on_command(now, command, Some(id)),
            RelayFrame::Ack { frame_id } => self.on_frame_acknowledged(&frame_id),
            RelayFrame::Error { code, message, .. } => self.on_bus_error(now, &code, &message),
        }
    }

    /// A message that cannot be read as a whole is declined with the reason: it would come again
    /// and again, and fill the window for others.
    fn on_frame_in_part(&mut self, now: Now, frame: RelayFrame, why: &str) {
        match frame {
            RelayFrame::Event { seq, event, data, .. } if event == "message.new" => {
                match serde_json::from_value::<Message>(data) {
                    Ok(message) => self.decline_message(&message, format!("e{seq}"), why),
                    Err(_) => self.log(LogLevel::Warn, "bus", format!("unreadable event: {why}")),
                }
            }
            frame => self.on_frame(now, frame),
        }
    }

    fn on_registered(&mut self, now: Now, registered: Registered) {
        if !matches!(self.relay_link.conn, Conn::Registering { .. }) {
            return;
        }
        self.relay_link.conn = Conn::Registered { since: now.tick };
        self.tokens.note_accepted();
        self.begin_supervision();
        self.relay_link.known_instance = true;
        (self.relay_link.hurried, self.relay_link.bus_refused) = (false, None);
        self.stop_polling();
        let asked_at = std::mem::take(&mut self.relay_link.asked_at);
        self.note_relay(&registered.server, Some(&asked_at));
        self.relay_link.epoch = registered.epoch;
        self.note_clock(now, registered.server_time);
        self.timers.clear(Timer::LivenessRound);
        let interval = match registered.heartbeat_interval_ms {
            0 => HEARTBEAT_INTERVAL,
            told => std::time::Duration::from_millis(told.clamp(1000, 300_000)),
        };
        self.relay_link.heartbeat_every = interval;
        self.timers.set(Timer::Heartbeat, now.tick + interval);
        self.log(
            LogLevel::Info,
            "bus",
            format!("registered agent={} epoch={}", self.config.agent_id, registered.epoch),
        );
        self.status.send_again();
        self.on_relay_back();
        // With the bus, unread messages are fetched only once after each registration.
        self.ask_unread();
    }

    /// The relay has told its time; a token that is to be renewed ends by it.
    pub(super) fn note_clock(&mut self, now: Now, time: i64) {
        if time <= 0 {
            return; // it does not tell
        }
        let known = self.relay_link.clock(now);
        self.relay_link.clock = Some((time, now.tick));
        if (time - known).abs() > CLOCKS_AGREE.as_millis() as i64 {
            self.renew_by_clock(now);
        }
    }

    /// The relay answers: everything that waited for it goes out.
    pub(super) fn on_relay_back(&mut self) {
        self.tell_reads_again();
        self.tell_updates_again();
        self.outbox.relay_is_back();
        self.timers.clear(Timer::OutboxRetry);
        // Claims that failed for want of a relay are tried again at once.
        self.timers.clear(Timer::DeliveryRetry);
    }

    pub(super) fn ask_unread(&mut self) {
        let query = format!(
            "{}?for={}&unread=true&limit={UNREAD_PAGE}",
            path::MESSAGES,
            crate::wire::api::encode(&self.config.agent_id)
        );
        self.ask(CallKind::Unread, "GET", query, None);
    }

    fn on_bus_error(&mut self, now: Now, code: &str, message: &str) {
        if self.stop.is_some() {
            return;
        }
        self.log(LogLevel::Error, "bus", format!("bus error {code}: {message}"));
        self.relay_link.last_error = Some((format!("{code}: {message}"), now.tick));
        match code {
            "superseded" | "agent_deleted" => {
                let why = if code == "superseded" {
                    "another runner registered this agent"
                } else {
                    "the agent was deleted at the relay"
                };
                self.begin_stop(now, Why::Displaced(why.into()));
            }
            "unauthorized" | "token_expired" => self.on_auth_trouble(now, "bus"),
            "forbidden" if matches!(self.relay_link.conn, Conn::Registering { .. }) => {
                self.on_registration_refused(now, message)
            }
            "unknown_agent" => self.reconnect(now, "register again"),
            "field_too_long" | "too_deep" | "too_many_members"
                if self.relay_link.is_registered() =>
            {
                self.tell_bare_status()
            }
            // Tried again, perhaps in vain: whoever watches the start must not believe that all is
            // well.
            _ if matches!(self.relay_link.conn, Conn::Registering { .. }) => {
                let text = format!(
                    "the relay {} does not register {}: {message}; retrying",
                    self.config.relay_url, self.config.agent_id
                );
                if self.status.may_log(now, &text) {
                    self.out.push(Effect::Tell { text });
                }
            }
            _ => {}
        }
    }

    /// A 401 or 403 anywhere: liveness pauses until a renewal succeeds.
    pub(super) fn on_auth_trouble(&mut self, now: Now, place: &str) {
        self.relay_link.auth_trouble = true;
        self.recover_token(now, place);
    }

    /// A token works again: liveness goes on, and the bus connects with it.
    pub(super) fn on_auth_restored(&mut self, now: Now) {
        self.relay_link.auth_trouble = false;
        self.relay_link.attempt = 0;
        self.reconnect(now, "runtime token renewed");
    }

    /// A pause between two attempts is over, or the relay did not answer.
    pub(super) fn on_connection_due(&mut self, now: Now) {
        match self.relay_link.conn {
            Conn::Waiting { .. } => self.connect(now),
            Conn::Registering { .. } => {
                self.out.push(Effect::Bus(BusCommand::Disconnect {
                    reason: "no answer to register".into(),
                }));
                self.on_bus_lost(
                    now,
                    Cause::TimedOut("relay did not answer the registration".into()),
                );
            }
            Conn::Off | Conn::Connecting | Conn::Registered { .. } => {}
        }
    }

    pub(super) fn on_heartbeat_due(&mut self, now: Now) {
        self.timers.set(Timer::Heartbeat, now.tick + self.relay_link.heartbeat_every);
        if self.stop.is_none() {
            let status = self.tracker.status().semantic().as_str().into();
            let meta = Some(self.heartbeat_meta());
            self.out.push(Effect::frame(&ClientFrame::Heartbeat { status, meta }));
        }
    }

    pub(super) fn on_liveness_due(&mut self, now: Now) {
        self.timers.set(Timer::LivenessRound, now.tick + LIVENESS_INTERVAL);
        if self.stop.is_none() {
            self.begin_round(true);
        }
    }
}
