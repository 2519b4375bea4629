//! The command line's side of the relay: HTTP calls with clear errors, and following the bus.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};
use tungstenite::{Error as WsError, Message as WsMessage, WebSocket};

use super::exit::Failure;
use super::listener;
use crate::config::{Global, session_token};
use crate::core::Cause;
use crate::core::limits::SILENCE_MAX;
use crate::edge::http::{Base, Http};
use crate::edge::proxy::Route;
use crate::edge::stream::Stream;
use crate::hub::place;
use crate::os;
use crate::secret::Secret;
use crate::wire::api::{TokenRecord, USER, path};
use crate::wire::bus::{ClientFrame, Registration, RelayFrame};

/// A relay that wants fewer requests is asked again so often, a second apart.
const LIMITED_TRIES: usize = 5;
/// One call of the command line may take this long.
const CALL_LIMIT: Duration = Duration::from_secs(15);

/// The same for what only reads from a relay on this machine.
const READ_LIMIT: Duration = Duration::from_secs(3);

/// A relay with a token.
pub struct Client {
    /// The relay.
    pub base: Base,
    http: Http,
    token: RefCell<Secret>,
    home: PathBuf,
    /// The agent in whose session this is.
    session: Option<String>,
}

impl Client {
    /// From the settings.
    pub fn new(global: &Global) -> Result<Client, Failure> {
        let base = Base::parse(&global.relay_url).map_err(Failure::usage)?;
        Ok(Client {
            http: Http::new(base.clone(), CALL_LIMIT),
            base,
            token: RefCell::new(global.token.clone().unwrap_or_default()),
            home: global.home.clone(),
            session: global.session.clone(),
        })
    }

    /// The agent in whose session this is.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Root of our files.
    pub fn home(&self) -> &std::path::Path {
        &self.home
    }

    /// Who the token speaks as: the agent of the session or of the token, else the user.
    pub fn speaker(&self) -> Result<String, Failure> {
        if let Some(agent) = &self.session {
            return Ok(agent.clone());
        }
        // Other relays may not tell about tokens.
        let (status, body) = self.raw("GET", path::TOKEN_SELF, None)?;
        let own = TokenRecord::of_answer(&body).agent_id.filter(|_| status == 200);
        Ok(own.unwrap_or_else(|| USER.into()))
    }

    /// The hub of this home with its root token if both are at hand, else the relay of the
    /// settings: for what needs `admin`.
    pub fn of_hub(home: &std::path::Path) -> Result<Client, Failure> {
        let mut global = Global::load(None, None)?;
        let root =
            std::fs::read_to_string(place::directory(home).join("root-token")).unwrap_or_default();
        if !root.trim().is_empty() && place::live_pid(home).is_some() {
            let url = place::read_info(home)
                .and_then(|info| Some(info.get("url")?.as_str()?.to_string()));
            global.relay_url = url.unwrap_or(global.relay_url);
            global.token = Some(Secret::new(root.trim().to_string()));
        }
        Client::new(&global)
    }

    /// Status and body, whatever the status is.
    pub fn raw(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), Failure> {
        if path != path::HEALTH && self.has_no_token() && !self.look_again()? {
            return Err(Failure::unreachable(
                "the relay has not given this agent a token yet; its runner keeps asking for one; try again in a moment",
            ));
        }
        let answer = self.once(method, path, body)?;
        if answer.0 == 401 && self.look_again()? {
            self.once(method, path, body)
        } else {
            Ok(answer)
        }
    }

    fn once(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), Failure> {
        let token = self.token.borrow().clone();
        let answer = if method == "GET" && self.base.is_loopback() {
            self.http.get_within(path, &token, READ_LIMIT)
        } else {
            self.http.call(method, path, body, &token)
        };
        answer.map_err(|cause| self.unreachable(&cause))
    }

    fn has_no_token(&self) -> bool {
        self.session.is_some() && self.token.borrow().expose().is_empty()
    }

    /// Inside a session: whether its runner has another token by now. It may just have been
    /// renewed.
    fn look_again(&self) -> Result<bool, Failure> {
        if self.session.is_none() {
            return Ok(false);
        }
        let token = Secret::new(session_token()?.unwrap_or_default());
        let is_new = !token.expose().is_empty() && token != *self.token.borrow();
        self.token.replace(token);
        Ok(is_new)
    }

    /// Nobody answers: who is silent, or how there is one who answers.
    fn unreachable(&self, cause: &Cause) -> Failure {
        let hint = match cause {
            // Not the agent's to mend.
            _ if self.session.is_some() => {
                Some("the relay cannot be reached; its runner keeps trying".to_string())
            }
            Cause::TimedOut(_) => listener::silent(&self.base),
            _ => None,
        };
        let text = cause.to_string();
        let hint = hint.unwrap_or_else(|| match Route::to(&self.base) {
            Route::Through(variable, _) => format!("look at {variable} and NO_PROXY"),
            _ if text.contains("invalid peer certificate") => {
                "the hub says at its start what is wrong with its certificate; if its authority is \
                 not known here, name that in SSL_CERT_FILE"
                    .into()
            }
            _ => "start one with `agent-relay hub` or `agent-relay up`, or set AGENT_RELAY_URL"
                .into(),
        });
        Failure::unreachable(format!("{text}; {hint}"))
    }

    /// The relay does not know the token.
    fn stranger(&self, text: &str) -> Failure {
        if self.session.is_some() {
            return Failure::unreachable(format!(
                "{text}: the relay does not take this agent's token; its runner gets another one, try again later"
            ));
        }
        let whose = listener::whose(&self.base, &self.home);
        Failure::usage(format!("{text}{whose}; set \"token\" in config.json or AGENT_RELAY_TOKEN"))
    }

    /// The body of a success; everything else is a failure with the relay's own sentence.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let (mut status, mut answer) = self.raw(method, path, body)?;
        for _ in 0..LIMITED_TRIES {
            if status != 429 {
                break;
            }
            // Nothing was done: the relay asks for a moment.
            std::thread::sleep(Duration::from_secs(1));
            (status, answer) = self.raw(method, path, body)?;
        }
        self.judged(status, answer)
    }

    /// The body of a success, or the failure that a status means.
    pub fn judged(&self, status: u16, body: Value) -> Result<Value, Failure> {
        if status < 300 {
            return Ok(body);
        }
        let text = body
            .get("error")
            .and_then(Value::as_str)
            .unwrap_or("the relay gave no reason")
            .to_string();
        Err(match status {
            401 => self.stranger(&text),
            400 | 403 | 413 | 422 => Failure::usage(text),
            404 | 409 => Failure::no(text),
            _ => Failure::unreachable(format!("{text} (HTTP {status})")),
        })
    }

    /// Whether a relay answers there.
    pub fn health(&self) -> Result<Value, Failure> {
        let (status, body) = self.raw("GET", path::HEALTH, None)?;
        if status == 200 && body.get("ok") == Some(&json!(true)) {
            Ok(body)
        } else {
            Err(Failure::unreachable(format!("what answers at {} is not a relay", self.base.url)))
        }
    }

    /// Listens to events on the bus.
    pub fn follow(&self, events: &[&str], scopes: &[&str]) -> Result<Follow, Failure> {
        let refused = |cause: Cause| match cause {
            Cause::Refused(401 | 403, text) => self.stranger(&text),
            other => self.unreachable(&other),
        };
        if self.has_no_token() {
            self.raw("GET", path::AGENTS, None)?; // says so
        }
        let connect = || crate::edge::bus::connect(&self.base, &self.token.borrow());
        let socket = match connect() {
            Err(Cause::Refused(401, _)) if self.look_again()? => connect(),
            connected => connected,
        };
        let socket = socket.map_err(refused)?;
        let mut follow = Follow { socket, heard: Instant::now() };
        let instance = format!("{:032x}", u128::from_le_bytes(os::random_bytes::<16>()));
        let registration = Registration {
            role: "channel".into(),
            component_id: format!("cli-{}", &instance[..8]),
            instance_id: instance,
            machine: os::hostname(),
            protocol: crate::wire::PROTOCOL,
            ..Default::default()
        };
        follow.send(&ClientFrame::Register { id: "r".into(), registration })?;
        let subscribe = ClientFrame::Subscribe {
            id: "s".into(),
            events: events.iter().map(|e| e.to_string()).collect(),
            scopes: scopes.iter().map(|s| s.to_string()).collect(),
        };
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match follow.next(until.saturating_duration_since(Instant::now()))? {
                Some(RelayFrame::Registered { .. }) => follow.send(&subscribe)?,
                Some(RelayFrame::Ack { frame_id }) if frame_id == "s" => return Ok(follow),
                Some(RelayFrame::Error { message, .. }) => return Err(Failure::no(message)),
                Some(_) => {}
                None => {
                    return Err(Failure::unreachable("the relay did not answer the subscription"));
                }
            }
        }
    }
}

/// An open subscription.
pub struct Follow {
    socket: WebSocket<Stream>,
    heard: Instant,
}

impl Follow {
    fn send(&mut self, frame: &ClientFrame) -> Result<(), Failure> {
        match self.socket.send(WsMessage::text(frame.to_text())) {
            Ok(()) => Ok(()),
            Err(WsError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => {
                Err(Failure::unreachable(format!("the connection to the relay is lost: {error}")))
            }
        }
    }

    /// The next frame; `None` when the time is over. A relay that says nothing at all for
    /// [`SILENCE_MAX`] is gone: it pings.
    pub fn next(&mut self, limit: Duration) -> Result<Option<RelayFrame>, Failure> {
        let until = Instant::now() + limit;
        loop {
            let read = self.socket.read();
            if read.is_ok() {
                self.heard = Instant::now();
            }
            match read {
                Ok(WsMessage::Text(text)) => {
                    if let Ok(frame) = RelayFrame::parse(&text) {
                        return Ok(Some(frame));
                    }
                }
                Ok(_) => {
                    let _ = self.socket.flush();
                }
                Err(WsError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let silent = SILENCE_MAX.saturating_sub(self.heard.elapsed());
                    if silent.is_zero() {
                        return Err(Failure::unreachable(
                            "the connection to the relay is lost: it sends nothing any more",
                        ));
                    }
                    os::wait(
                        &mut [PollFd::new(self.socket.get_ref(), PollFlags::IN)],
                        Some(left.min(silent)),
                    );
                }
                Err(error) => {
                    return Err(Failure::unreachable(format!(
                        "the connection to the relay is lost: {error}"
                    )));
                }
            }
        }
    }
}
