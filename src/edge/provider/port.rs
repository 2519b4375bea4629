//! A server of the provider that listens at a port of this machine: the token that keeps everybody
//! else out, and what is looked at before it is told to whoever listens there.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::os;
use crate::provider::launch::{LaunchError, ServerPort};
use crate::secret::Secret;

/// A port of this machine takes or refuses a connection, and answers, in that time.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read; its first line is wanted.
const ANSWER_BYTES_MAX: usize = 1024;
/// State of a socket that takes connections, in the kernel's tables.
const LISTENS: &str = "0A";

/// The token of one start, in a file that goes with it.
pub struct PortToken {
    file: PathBuf,
    /// Variable that a program beside the session finds it in.
    pub env: &'static str,
    /// The token itself.
    pub secret: Secret,
}

impl PortToken {
    /// A new one, written where the server looks for it.
    pub fn make(port: &ServerPort) -> Result<PortToken, LaunchError> {
        let bytes = os::random_bytes::<32>();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let file = PathBuf::from(&port.token_file);
        os::replace_private_file(&file, &text, false).map_err(|error| {
            let text =
                format!("the token of the server cannot be written: {}: {error}", file.display());
            LaunchError::passing(text)
        })?;
        Ok(PortToken { file, env: port.token_env, secret: Secret::new(text) })
    }
}

impl Drop for PortToken {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// The kernel's tables of TCP sockets.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// A connection to what listens at the port, once it says that it is ready. `Err`: nobody is there,
/// it is not ready, or it is somebody else's, who must not see the token.
pub(super) fn dial(port: u16) -> Result<TcpStream, String> {
    dial_by(port, &TABLES.map(|table| fs::read_to_string(table).ok()))
}

fn dial_by(port: u16, tables: &[Option<String>; 2]) -> Result<TcpStream, String> {
    let say = |error: std::io::Error| format!("127.0.0.1:{port}: {error}");
    let asked = connect(port).map_err(say)?;
    match listener(tables, port) {
        Listener::User(uid) if uid == rustix::process::geteuid().as_raw() => {}
        // Where the kernel does not say, nobody can find out.
        Listener::Unknown => {}
        Listener::User(uid) => {
            return Err(format!("127.0.0.1:{port}: user {uid} listens there, not the server"));
        }
        Listener::Nobody => return Err(format!("127.0.0.1:{port}: nobody listens there")),
    }
    if !crate::planted::is("unready-port") {
        is_ready(asked, port)?;
    }
    connect(port).map_err(say)
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), ANSWER_LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

/// Asks whether it is ready; that needs no token.
fn is_ready(mut stream: TcpStream, port: u16) -> Result<(), String> {
    let say = |error: std::io::Error| format!("127.0.0.1:{port}/readyz: {error}");
    let asked =
        format!("GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).map_err(say)?;
    let until = Instant::now() + ANSWER_LIMIT;
    let (mut answer, mut buffer) = (Vec::new(), [0u8; 256]);
    while !answer.contains(&b'\n') && answer.len() < ANSWER_BYTES_MAX && Instant::now() < until {
        match stream.read(&mut buffer).map_err(say)? {
            0 => break,
            size => answer.extend_from_slice(&buffer[..size]),
        }
    }
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    match words.next().filter(|_| is_http) {
        Some("200") => Ok(()),
        Some(status) => Err(format!("127.0.0.1:{port}/readyz: not ready: {status}")),
        None => Err(format!("127.0.0.1:{port}/readyz: no answer")),
    }
}

/// Whose process takes the connections to a port of this machine.
#[derive(Debug, PartialEq)]
enum Listener {
    /// By the id of its user.
    User(u32),
    Nobody,
    /// The kernel does not show its table.
    Unknown,
}

/// Looks for it in the tables; an address of its own comes before one that means all.
fn listener(tables: &[Option<String>; 2], port: u16) -> Listener {
    const ADDRESSES: [(usize, &str); 4] = [
        (0, "0100007F"),
        (1, "0000000000000000FFFF00000100007F"),
        (0, "00000000"),
        (1, "00000000000000000000000000000000"),
    ];
    if tables[0].is_none() {
        return Listener::Unknown;
    }
    let user = |(table, address): (usize, &str)| {
        let wanted = format!("{address}:{port:04X}");
        tables[table].iter().flat_map(|text| text.lines().skip(1)).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_it = *fields.get(1)? == wanted && *fields.get(3)? == LISTENS;
            is_it.then(|| fields.get(7)?.parse().ok()).flatten()
        })
    };
    ADDRESSES.into_iter().find_map(user).map_or(Listener::Nobody, Listener::User)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    /// A server that gives this answer to every connection, and what it was asked.
    fn answered(answer: &'static [u8], connections: usize) -> (Result<(), String>, Vec<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let server = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut buffer = [0u8; 1024];
                let size = stream.read(&mut buffer).unwrap_or(0);
                asked.push(String::from_utf8_lossy(&buffer[..size]).into_owned());
                let _ = stream.write_all(answer);
            }
            asked
        });
        let dialled = dial(port).map(drop);
        (dialled, server.join().expect("the server"))
    }

    #[test]
    fn only_a_server_that_is_ready_gets_a_connection() {
        let (dialled, asked) = answered(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 2);
        assert_eq!(dialled, Ok(()));
        assert!(asked[0].starts_with("GET /readyz HTTP/1.1\r\n"), "{asked:?}");
        assert_eq!(asked[1], "", "the second connection is for the caller");
        for answer in [
            b"HTTP/1.1 503 Service Unavailable\r\n\r\n".as_slice(),
            b"",
            b"\n",
            b"SSH-2.0-x 200\r\n",
            b"200 200 200\n",
            &[b'x'; 4096],
        ] {
            assert!(answered(answer, 1).0.is_err(), "{answer:?}");
        }
        let closed = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        assert!(dial(closed.expect("a port").port()).is_err(), "nobody is there");
    }

    #[test]
    fn who_listens_is_read_from_the_tables() {
        let row = |local: &str, state: &str, uid: u32| {
            format!("0: {local} 00000000:0000 {state} 0:0 0:0 0 {uid} 0 1\n")
        };
        let four = [
            row("0100007F:0007", "01", 11), // a connection
            row("0100007F:0007", "0A", 42),
            row("00000000:0007", "0A", 43),
            "nonsense\n\n1: 0100007F:0009 x 0A\n".into(),
            row("00000000:0008", "0A", 77),
            row("0200000A:000A", "0A", 78), // of another address
        ];
        let six = [
            row("00000000000000000000000000000000:000B", "0A", 79),
            row("0000000000000000FFFF00000100007F:000C", "0A", 80),
        ];
        let tables =
            [Some(format!("head\n{}", four.concat())), Some(format!("head\n{}", six.concat()))];
        let found = [7, 8, 9, 10, 11, 12].map(|port| listener(&tables, port));
        use Listener::{Nobody, User};
        assert_eq!(found, [User(42), User(77), Nobody, Nobody, User(79), User(80)]);
        assert_eq!(listener(&[None, None], 7), Listener::Unknown);
        let real = TABLES.map(|table| fs::read_to_string(table).ok());
        let own = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let Ok(listening) = TcpListener::bind(address) else { continue };
            let port = listening.local_addr().expect("bound").port();
            let now = TABLES.map(|table| fs::read_to_string(table).ok());
            assert_eq!(listener(&now, port), User(own), "{address}");
            assert_ne!(listener(&real, port), Listener::Unknown);
        }
    }

    /// Whoever has taken the port of a server that is gone gets no word of ours.
    #[test]
    fn a_listener_of_somebody_else_is_told_nothing() {
        let listening = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listening.local_addr().expect("bound").port();
        let foreign = format!("head\n0: 0100007F:{port:04X} 00000000:0000 0A 0:0 0:0 0 4242 0 1\n");
        for (table, why) in [(foreign.as_str(), "user 4242"), ("head\n", "nobody")] {
            let dialled = dial_by(port, &[Some(table.to_string()), None]);
            assert!(dialled.is_err_and(|told| told.contains(why)));
            let (mut stream, _) = listening.accept().expect("a client");
            assert_eq!(stream.read(&mut [0u8; 64]).expect("an end"), 0, "nothing was said");
        }
    }

    #[test]
    fn a_token_is_new_each_time_and_goes_with_its_start() {
        let folder = std::env::temp_dir().join(format!("relay-port-token-{}", std::process::id()));
        let token_file = folder.join("token").to_string_lossy().into_owned();
        let port = ServerPort { token_file: token_file.clone(), token_env: "T" };
        let first = PortToken::make(&port).expect("a token");
        let mode = fs::metadata(&token_file).expect("a file").permissions().mode();
        assert_eq!((mode & 0o777, first.secret.expose().len()), (0o600, 64));
        assert_eq!(fs::read_to_string(&token_file).expect("reads"), first.secret.expose());
        let text = first.secret.clone();
        drop(first);
        assert!(!Path::new(&token_file).exists());
        assert_ne!(PortToken::make(&port).expect("a token").secret, text);
        fs::remove_dir_all(&folder).expect("removes");
    }
}
