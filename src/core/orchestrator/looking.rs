//! Looking at sessions and touching their terminals: each question becomes an order to an edge, and
//! its answer goes to who asked. Nothing of it changes a session.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::config::SessionFiles;
use super::effect::Effect;
use super::guests::{Guests, NO_GUEST, guest_name, is_guest};
use super::host::{HostReport, Sessions};
use super::log_text::LogOptions;
use super::look::{Look, Looked, Terminal};
use super::operations::{Asker, Refusal};
use super::record::{Keys, Record};
use super::sessions::Phase;
use super::{Orchestrator, diagnosis, input, names, picture};
use crate::core::limits::LOOKS_IN_FLIGHT_MAX;
use crate::core::time::Tick;
use crate::wire::control::LogLevel;

/// The report of the host is made anew after this, with a heartbeat.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Questions that are under way, and the terminals of guests.
#[derive(Debug, Default)]
pub(super) struct Looking {
    last: u64,
    under_way: BTreeMap<u64, Question>,
    guests: Guests,
    /// The last report of the host, and when it was asked for.
    report: Option<HostReport>,
    report_asked: Option<Tick>,
}

/// What was asked, and by whom; nobody: the orchestrator itself.
#[derive(Debug)]
struct Question {
    asker: Option<Asker>,
    about: About,
}

#[derive(Debug)]
enum About {
    Log { session: String },
    Picture { session: String },
    Typing { session: String },
    Size { session: String, columns: u16, rows: u16 },
    OpenGuest { name: String },
    EndGuest { session: String },
    Diagnosis,
    Host,
}

fn refuse(status: u16, code: &'static str, text: &str) -> Refusal {
    (status, code, text.to_string())
}

fn not_running() -> Refusal {
    refuse(409, "not_running", "terminal session is not running")
}

impl Looking {
    /// When the terminal of a guest ends.
    pub fn deadline(&self) -> Option<Tick> {
        self.guests.next_deadline()
    }
}

impl Orchestrator {
    /// One of the operations that only look, or touch a terminal.
    pub(super) fn look(&mut self, asker: Asker, operation: &str, params: &Map<String, Value>) {
        if self.looking.under_way.len() >= LOOKS_IN_FLIGHT_MAX {
            let text = format!("{LOOKS_IN_FLIGHT_MAX} looks are under way; try again in a moment");
            return self.answer(asker, Err((503, "busy", text)));
        }
        match self.order_of(operation, params) {
            Ok(Some((about, look))) => self.order_look(Some(asker), about, look),
            Ok(None) => self.answer(asker, Ok(Value::Null)),
            Err(refusal) => self.answer(asker, Err(refusal)),
        }
    }

    /// The order for a question; none: there is nothing to look at, and that is the answer.
    fn order_of(
        &mut self,
        operation: &str,
        params: &Map<String, Value>,
    ) -> Result<Option<(About, Look)>, Refusal> {
        let body = Value::Object(params.clone());
        let bad = |text: String| (422, "bad_request", text);
        Ok(Some(match operation {
            "orchestrator.logs" => {
                let session = self.own_name(params)?;
                let options = LogOptions::parse(&body).map_err(bad)?;
                let path = self.log_of(&session);
                let about = About::Log { session: session.clone() };
                (about, Look::Log { session, path, options })
            }
            "orchestrator.diagnose" => {
                let Some((record, ends)) = self.diagnosed(params)? else { return Ok(None) };
                (About::Diagnosis, Look::Diagnose { record: Box::new(record), ends })
            }
            "orchestrator.terminal.guest" => self.guest_order(params)?,
            "orchestrator.terminal.stop" => {
                let session = self.own_name(params)?;
                if !is_guest(&self.config.prefix, &session) {
                    return Err(refuse(422, "no_guest", NO_GUEST));
                }
                self.looking.guests.closed(&session);
                (About::EndGuest { session: session.clone() }, Look::EndGuest { name: session })
            }
            "orchestrator.host" => (About::Host, Look::Host),
            _ => {
                let session = self.own_name(params)?;
                let found = self.terminal_of(&session);
                if operation == "orchestrator.terminal.snapshot" {
                    return Ok(Some(match found {
                        Some(terminal) => (About::Picture { session }, Look::Capture(terminal)),
                        None => return Err(self.no_terminal(&session)),
                    }));
                }
                let terminal = found.ok_or_else(not_running)?;
                if operation == "orchestrator.terminal.resize" {
                    let (columns, rows) = input::checked_size(&body).map_err(bad)?;
                    let about = About::Size { session, columns, rows };
                    (about, Look::Resize { terminal, columns, rows })
                } else {
                    let tokens = input::tokens(input::checked_input(&body).map_err(bad)?);
                    (About::Typing { session }, Look::Type { terminal, tokens })
                }
            }
        }))
    }

    fn no_terminal(&self, session: &str) -> Refusal {
        let text = format!("there is no session {session}; `agent-relay sessions` lists them");
        (404, "no_session", text)
    }

    /// The name in the parameters, which is one of ours.
    fn own_name(&self, params: &Map<String, Value>) -> Result<String, Refusal> {
        let name = Keys::read(params).session.unwrap_or_default();
        if name.is_empty() {
            return Err(refuse(422, "no_session", "say which session: session"));
        }
        if !names::is_managed(&self.config.prefix, &name) {
            let text = "session is not managed by this orchestrator";
            return Err(refuse(422, "not_managed", text));
        }
        Ok(name)
    }

    /// The log of a session, of one that is over too: it stays.
    fn log_of(&self, session: &str) -> String {
        let known = self.sessions.get(session).map(|session| session.record.log_file.clone());
        known.unwrap_or_else(|| SessionFiles::of(&self.config.about.home, session).log)
    }

    fn terminal_of(&self, session: &str) -> Option<Terminal> {
        if let Some(socket) = self.looking.guests.socket(session) {
            return Some(Terminal::Guest(session.into(), socket.into()));
        }
        let session = self.sessions.get(session)?;
        Some(Terminal::Session(Box::new(session.record.clone())))
    }

    /// The session that is to be diagnosed, with how it ended before; of one that is over, what is
    /// still known.
    fn diagnosed(
        &self,
        params: &Map<String, Value>,
    ) -> Result<Option<(Record, Vec<String>)>, Refusal> {
        let keys = Keys::read(params);
        let ends_of = |name: &str| -> Vec<String> {
            let ends = self.ended.iter().filter(|(ended, _)| ended == name);
            ends.map(|(_, text)| text.clone()).collect()
        };
        if let Some(name) = self.meant(&keys)? {
            let ends = ends_of(&name);
            return Ok(self.sessions.get(&name).map(|session| (session.record.clone(), ends)));
        }
        let Some(name) = keys.session else { return Ok(None) };
        let ends = ends_of(&name);
        if ends.is_empty() {
            return Ok(None);
        }
        let files = SessionFiles::of(&self.config.about.home, &name);
        let (log_file, runner_info_file) = (files.log, files.runner_info);
        let started_at = self.now.wall.0;
        Ok(Some((
            Record { name, log_file, runner_info_file, started_at, ..Record::default() },
            ends,
        )))
    }

    fn guest_order(&mut self, params: &Map<String, Value>) -> Result<(About, Look), Refusal> {
        let name = self.meant(&Keys::read(params))?;
        let session = name.and_then(|name| self.sessions.get(&name));
        let record = session.map(|session| Box::new(session.record.clone()));
        let record =
            record.ok_or_else(|| refuse(404, "no_session", "managed runner session not found"))?;
        let random = self.rng.uuid();
        let (provider, agent) = (&record.provider, &record.agent_id);
        let name = guest_name(&self.config.prefix, provider, agent, &random[..8]);
        Ok((About::OpenGuest { name: name.clone() }, Look::OpenGuest { record, name }))
    }

    fn order_look(&mut self, asker: Option<Asker>, about: About, look: Look) {
        self.looking.last += 1;
        let number = self.looking.last;
        self.looking.under_way.insert(number, Question { asker, about });
        self.out.push(Effect::Look { number, look });
    }

    /// What came of an order.
    pub(super) fn on_looked(&mut self, number: u64, looked: Looked) {
        let Some(Question { asker, about }) = self.looking.under_way.remove(&number) else {
            return;
        };
        let is_report = matches!(about, About::Host);
        let result = self.answer_of_look(about, looked);
        match asker {
            Some(asker) => self.answer(asker, result),
            None if is_report => self.tell_report(),
            None => {}
        }
    }

    fn answer_of_look(&mut self, about: About, looked: Looked) -> Result<Value, Refusal> {
        let now = self.now.wall.0;
        let failed = |text: String| (409, "failed", text);
        match (about, looked) {
            (About::Log { session }, Looked::Log(read)) => {
                let running = self.runs(&session);
                let (lines, size) = read.unwrap_or_default();
                Ok(json!({"session": session, "lines": lines, "running": running, "size": size}))
            }
            (About::Picture { session }, Looked::Captured(captured)) => {
                let alive = self.runs(&session);
                Ok(picture::snapshot(&session, captured.map_err(failed)?, alive, now))
            }
            (About::Typing { session }, Looked::Typed(typed)) => {
                let sent = typed.map_err(failed)?.ok_or_else(not_running)?;
                Ok(json!({"session": session, "running": true, "sent": sent, "capturedAt": now}))
            }
            (About::Size { session, columns, rows }, Looked::Resized(resized)) => {
                match resized.map_err(failed)? {
                    true => Ok(json!({"session": session, "cols": columns, "rows": rows})),
                    false => Err(not_running()),
                }
            }
            (About::OpenGuest { name }, Looked::GuestOpened { result, over }) => {
                for name in &over {
                    self.looking.guests.closed(name);
                }
                let (spec, socket) = result.map_err(failed)?;
                self.log(LogLevel::Info, format!("guest={name} opened"));
                Ok(self.looking.guests.opened(self.now, &name, &spec, socket))
            }
            (About::EndGuest { session }, Looked::GuestEnded(ended)) => {
                self.log(LogLevel::Info, format!("guest={session} ended"));
                Ok(json!({"session": session, "stopped": ended}))
            }
            (About::Diagnosis, Looked::Diagnosed(facts)) => Ok(diagnosis::diagnosis(&facts)),
            (About::Host, Looked::Host(report)) => {
                self.looking.report = Some(HostReport { sessions: self.counts(), ..*report });
                Ok(self.host_report().unwrap_or_default())
            }
            _ => Err(failed("the answer belongs to another question".into())),
        }
    }

    fn runs(&self, session: &str) -> bool {
        self.sessions.get(session).is_some_and(|session| session.runs())
    }

    fn counts(&self) -> Sessions {
        let count = |is: &dyn Fn(&Phase) -> bool| {
            self.sessions.values().filter(|session| is(&session.phase)).count()
        };
        Sessions {
            running: count(&|phase| matches!(phase, Phase::Running { .. })),
            parked: count(&|phase| *phase == Phase::Parked),
        }
    }

    /// The last report of the host, with the sessions of now.
    pub(super) fn host_report(&self) -> Option<Value> {
        let report = self.looking.report.clone()?;
        serde_json::to_value(HostReport { sessions: self.counts(), ..report }).ok()
    }

    /// Has the host looked at for the next report, if the last look is old.
    pub(super) fn refresh_report(&mut self) {
        let now = self.now.tick;
        let is_due = self.looking.report_asked.is_none_or(|at| now - at >= REPORT_INTERVAL);
        if is_due && !self.stopping {
            self.looking.report_asked = Some(now);
            self.order_look(None, About::Host, Look::Host);
        }
    }

    /// Terminals of guests whose time is over.
    pub(super) fn on_guests_due(&mut self) {
        for name in self.looking.guests.expired(self.now.tick) {
            let about = About::EndGuest { session: name.clone() };
            self.order_look(None, about, Look::EndGuest { name });
        }
    }
}

#[cfg(test)]
mod tests;
