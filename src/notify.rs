//! Reports `READY=1`, `STATUS=…` and `STOPPING=1` to a service manager, as datagrams to
//! `NOTIFY_SOCKET`.
//!
//! Without that variable nothing happens. Errors are ignored: a manager that does not listen must
//! not stop us.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::core::chars;

/// The variable that names the socket; children do not get it.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Everything is up: whatever waits for this service may start. `status`: one line for people.
pub fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={}", short(status)));
}

/// A line for people, of a process that goes on.
pub fn status(text: &str) {
    send(&format!("STATUS={}", short(text)));
}

/// The process is about to end.
pub fn stopping() {
    send("STOPPING=1\nSTATUS=stopping");
}

/// Most characters of a status.
const STATUS_CHARS_MAX: usize = 200;

fn short(text: &str) -> String {
    chars::one_line(text).chars().take(STATUS_CHARS_MAX).collect()
}

fn send(text: &str) {
    let Some(name) = std::env::var_os(NOTIFY_SOCKET).filter(|name| !name.is_empty()) else {
        return;
    };
    let told = address(name.as_bytes()).and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(text.as_bytes(), &address)
    });
    if let Err(error) = told {
        log::debug!(target: "runner", "cannot tell the service manager: {error}");
    }
}

/// A path, or an abstract name after `@`.
fn address(name: &[u8]) -> std::io::Result<SocketAddr> {
    match name.split_first() {
        Some((b'@', rest)) => SocketAddr::from_abstract_name(rest),
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_addresses_are_understood() {
        let path = address(b"/run/x/notify").expect("a path");
        assert_eq!(path.as_pathname(), Some(std::path::Path::new("/run/x/notify")));
        let hidden = address(b"@agent-relay/test").expect("an abstract name");
        assert_eq!(hidden.as_abstract_name(), Some(&b"agent-relay/test"[..]));
        assert_eq!(short("a\nREADY=0"), "a ⏎ READY=0");
    }
}
