//! A server of the provider that listens at a port of this machine: the token that keeps everybody
//! else out, and what is looked at before it is told to whoever listens there.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::os;
use crate::provider::launch::{LaunchError, ServerPort};
use crate::secret::Secret;

/// A port of this machine takes or refuses a connection, and answers, in that time.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read; its first line is wanted.
const ANSWER_BYTES_MAX: usize = 1024;

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

/// A connection to what listens at the port, once it says that it is ready. `Err`: nobody is there,
/// it is not ready, or it is somebody else's, who must not see the token.
pub(super) fn dial(port: u16) -> Result<TcpStream, String> {
    let say = |error: std::io::Error| format!("127.0.0.1:{port}: {error}");
    let asked = connect(port).map_err(say)?;
    if let Some(uid) = listener(Path::new("/proc/net/tcp"), port)
        && uid != rustix::process::geteuid().as_raw()
    {
        return Err(format!("127.0.0.1:{port}: user {uid} listens there, not the server"));
    }
    is_ready(asked, port)?;
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

/// The user whose process listens at a port of this machine, by the kernel's table; `None`: it does
/// not say.
fn listener(table: &Path, port: u16) -> Option<u32> {
    let text = fs::read_to_string(table).ok()?;
    let wanted = [format!("0100007F:{port:04X}"), format!("00000000:{port:04X}")];
    text.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state) = (fields.get(1)?, fields.get(3)?);
        let is_it = wanted.iter().any(|it| it == local) && *state == "0A";
        is_it.then(|| fields.get(7)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

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
    fn who_listens_is_read_from_the_table() {
        let listening = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listening.local_addr().expect("bound").port();
        let table = Path::new("/proc/net/tcp");
        assert_eq!(listener(table, port), Some(rustix::process::geteuid().as_raw()));
        let file = std::env::temp_dir().join(format!("relay-listeners-{}", std::process::id()));
        let text = "head\n  0: 0100007F:0007 00000000:0000 01 0:0 0:0 0 11 0 1\n\
                    1: 0100007F:0007 00000000:0000 0A 0:0 0:0 0 4242 0 1\nnonsense\n\
                    2: 00000000:0008 00000000:0000 0A 0:0 0:0 0 77 0 1\n";
        fs::write(&file, text).expect("a file");
        assert_eq!([7, 8, 9].map(|port| listener(&file, port)), [Some(4242), Some(77), None]);
        fs::remove_file(&file).expect("removes");
        assert_eq!(listener(&file, 7), None);
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
