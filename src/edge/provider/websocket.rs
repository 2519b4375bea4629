//! A WebSocket to a socket or a port of the provider, for sessions that it serves to clients.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::PollFlags;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::header::AUTHORIZATION;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error as WsError, HandshakeError, Message, WebSocket};

use super::port::{self, PortToken};
use super::reply_socket::dial;
use crate::core::session::{Input, ServerAddress};

/// The upgrade must be answered in that time; it takes some milliseconds.
const UPGRADE_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of one text. A longer one ends the connection.
const TEXT_BYTES_MAX: usize = 32 << 20;
/// Bytes that wait for the provider before the connection counts as lost.
const UNSENT_BYTES_MAX: usize = 8 << 20;
/// Texts that are read at once, and their bytes: verbs are heard in a flood, and little of it is in
/// memory.
const TEXTS_AT_ONCE: usize = 64;
const BYTES_AT_ONCE: usize = 1 << 20;

/// What it goes over.
enum Stream {
    Socket(UnixStream),
    Port(TcpStream),
}

impl Stream {
    fn unblock(&self) -> io::Result<()> {
        match self {
            Stream::Socket(stream) => stream.set_nonblocking(true),
            Stream::Port(stream) => stream.set_nonblocking(true),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Socket(stream) => stream.as_fd(),
            Stream::Port(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Socket(stream) => stream.read(buffer),
            Stream::Port(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Socket(stream) => stream.write(bytes),
            Stream::Port(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to the provider.
pub struct Link {
    socket: WebSocket<Stream>,
    unflushed: bool,
    /// More may have been read from the socket than was taken.
    pub has_more: bool,
}

impl Link {
    /// Connects and upgrades; one attempt. A server at a port wants the token.
    pub fn connect(to: &ServerAddress, token: Option<&PortToken>) -> Result<Link, String> {
        match to {
            ServerAddress::Socket(path) => {
                let say = |error: io::Error| format!("{path}: {error}");
                let stream = dial(path).map_err(say)?;
                stream.set_read_timeout(Some(UPGRADE_LIMIT)).map_err(say)?;
                stream.set_write_timeout(Some(UPGRADE_LIMIT)).map_err(say)?;
                // The host is a word that the protocol wants; the socket is a file.
                Link::upgrade(path, "localhost", Stream::Socket(stream), None)
            }
            ServerAddress::Port(port) => {
                let host = format!("127.0.0.1:{port}");
                let stream = port::dial(*port)?;
                Link::upgrade(&host, &host, Stream::Port(stream), token)
            }
        }
    }

    /// `name`: of the server, for people.
    fn upgrade(
        name: &str,
        host: &str,
        stream: Stream,
        token: Option<&PortToken>,
    ) -> Result<Link, String> {
        let say = |error: &dyn std::fmt::Display| format!("{name}: {error}");
        let mut request =
            format!("ws://{host}/").into_client_request().map_err(|error| say(&error))?;
        if let Some(token) = token {
            let value = format!("Bearer {}", token.secret.expose());
            let value = value.parse().map_err(|_| say(&"its token is no text of a header"))?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(64 << 10)
            .write_buffer_size(0)
            .max_write_buffer_size(UNSENT_BYTES_MAX)
            .max_message_size(Some(TEXT_BYTES_MAX))
            .max_frame_size(Some(TEXT_BYTES_MAX));
        let upgraded = tungstenite::client::client_with_config(request, stream, Some(config));
        let socket = match upgraded {
            Ok((socket, _)) => socket,
            Err(HandshakeError::Failure(error)) => return Err(say(&error)),
            Err(HandshakeError::Interrupted(_)) => {
                return Err(say(&"the upgrade was not answered in time"));
            }
        };
        socket.get_ref().unblock().map_err(|error| say(&error))?;
        Ok(Link { socket, unflushed: false, has_more: true })
    }

    /// What to wait for.
    pub fn waits_for(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = if self.unflushed { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        (self.socket.get_ref().as_fd(), flags)
    }

    /// Reads what has come, and writes what was left. `Err`: the connection is lost, behind what
    /// was read.
    pub fn read(&mut self) -> (Vec<Input>, Result<(), String>) {
        let mut seen = Vec::new();
        self.has_more = false;
        if let Err(lost) = self.flush() {
            return (seen, Err(lost));
        }
        let mut bytes = 0;
        for _ in 0..TEXTS_AT_ONCE {
            if bytes >= BYTES_AT_ONCE {
                break;
            }
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    bytes += text.len();
                    seen.push(Input::Text(text.as_str().to_string()));
                }
                // A pong may be waiting; all else says nothing.
                Ok(_) => self.unflushed = true,
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    let flushed = self.flush();
                    return (seen, flushed);
                }
                Err(error) => return (seen, Err(reason(error))),
            }
        }
        self.has_more = true;
        (seen, Ok(()))
    }

    /// Sends a text. `Err`: the connection is lost.
    pub fn send(&mut self, text: String) -> Result<(), String> {
        match self.socket.write(Message::text(text)) {
            Ok(()) => {}
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(reason(error)),
        }
        self.unflushed = true;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), String> {
        if !self.unflushed {
            return Ok(());
        }
        match self.socket.flush() {
            Ok(()) => self.unflushed = false,
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(reason(error)),
        }
        Ok(())
    }
}

/// Why a connection is lost, for people.
fn reason(error: WsError) -> String {
    match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => {
            "the provider closed the connection".into()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::os;

    fn path(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("relay-link-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    /// A provider that writes the given bytes, one at a time, and hangs up.
    fn served(name: &str, bytes: Vec<u8>) -> Vec<Result<String, ()>> {
        let path = path(name);
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let socket = tungstenite::accept(stream).expect("the upgrade");
            for byte in bytes {
                socket.get_ref().write_all(&[byte]).expect("a reader");
            }
            // It hears what the client still has to say.
            let mut stream = socket.get_ref();
            stream.shutdown(std::net::Shutdown::Write).expect("an end");
            while stream.read(&mut [0; 64]).is_ok_and(|size| size > 0) {}
        });
        let address = ServerAddress::Socket(path.to_string_lossy().into_owned());
        let mut link = Link::connect(&address, None).expect("the connection");
        let mut seen = Vec::new();
        loop {
            let (texts, alive) = link.read();
            for text in texts {
                if let Input::Text(text) = text {
                    seen.push(Ok(text));
                }
            }
            if alive.is_err() {
                seen.push(Err(()));
                break;
            }
            if !link.has_more {
                let (fd, flags) = link.waits_for();
                os::wait(&mut [rustix::event::PollFd::from_borrowed_fd(fd, flags)], None);
            }
        }
        drop(link);
        server.join().expect("the server");
        let _ = std::fs::remove_file(&path);
        seen
    }

    #[test]
    fn texts_are_whole_however_they_are_cut() {
        let frame = |first: u8, text: &str| {
            let mut bytes = vec![first, text.len() as u8];
            bytes.extend(text.as_bytes());
            bytes
        };
        // Two texts, the second in two pieces with a ping between them, and half of a third.
        let bytes = [
            frame(0x81, "{\"id\": 1}"),
            frame(0x01, "{\"a\": "),
            frame(0x89, "ping"),
            frame(0x80, "2}"),
            vec![0x81, 100, b'{'],
        ]
        .concat();
        let text = |text: &str| Ok(text.to_string());
        assert_eq!(served("cut", bytes), [text("{\"id\": 1}"), text("{\"a\": 2}"), Err(())]);
    }

    #[test]
    fn a_flood_is_read_in_bounded_pieces() {
        let bytes = [0x81, 2, b'{', b'}'].repeat(200);
        let seen = served("flood", bytes);
        assert_eq!(seen.len(), 201);
        assert!(seen[..200].iter().all(|text| text.as_deref() == Ok("{}")));
    }

    #[test]
    fn nobody_there_is_told_at_once() {
        let path = path("nobody");
        let path = path.to_str().expect("a path");
        let address = ServerAddress::Socket(path.into());
        assert!(Link::connect(&address, None).is_err_and(|why| why.contains(path)));
    }
}
