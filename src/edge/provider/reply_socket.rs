//! Lines for a local socket of the provider, and a socket of our own where its answers come in.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::core::session::Input;

/// Connections that are read at once.
const CLIENTS_MAX: usize = 16;
/// Bytes of one of them.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// A line must be taken in that time.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// Our own socket and who is connected to it.
pub struct ReplySocket {
    path: PathBuf,
    /// Socket of the provider, which leaves it behind when it is killed.
    peer_path: PathBuf,
    listener: UnixListener,
    clients: Vec<(UnixStream, Vec<u8>)>,
}

impl ReplySocket {
    /// Listens, in place of a socket that an earlier runner may have left at this path.
    pub fn open(path: &Path, peer_path: &Path) -> std::io::Result<ReplySocket> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(ReplySocket {
            path: path.to_path_buf(),
            peer_path: peer_path.to_path_buf(),
            listener,
            clients: Vec::new(),
        })
    }

    /// What may become readable.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd())
            .chain(self.clients.iter().map(|(socket, _)| socket.as_fd()))
    }

    /// Reads what has come.
    pub fn read_lines(&mut self) -> Vec<Input> {
        for _ in 0..CLIENTS_MAX {
            let Ok((socket, _)) = self.listener.accept() else { break };
            if self.clients.len() >= CLIENTS_MAX {
                self.clients.remove(0); // whoever says nothing for so long makes room
            }
            if socket.set_nonblocking(true).is_ok() {
                self.clients.push((socket, Vec::new()));
            }
        }
        let mut seen = Vec::new();
        self.clients.retain_mut(|(socket, bytes)| {
            let mut piece = [0u8; 4096];
            loop {
                match socket.read(&mut piece) {
                    Ok(0) => {
                        seen.extend(lines(bytes));
                        return false;
                    }
                    Ok(size) if bytes.len() + size <= MESSAGE_BYTES_MAX => {
                        bytes.extend_from_slice(&piece[..size])
                    }
                    Ok(_) => return false,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        // Whole lines count at once: the sender may keep the connection.
                        if let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') {
                            let whole: Vec<u8> = bytes.drain(..=end).collect();
                            seen.extend(lines(&whole));
                        }
                        return true;
                    }
                    Err(_) => return false,
                }
            }
        });
        seen
    }
}

impl Drop for ReplySocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.peer_path);
    }
}

fn lines(bytes: &[u8]) -> Vec<Input> {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| Input::SocketLine(line.to_string()))
        .collect()
}

/// Connects without waiting for a listener that takes nobody.
pub(super) fn dial(path: &str) -> std::io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Writes one line to a socket and hangs up.
pub fn post(path: &str, line: &str) -> Result<(), String> {
    let say = |error: std::io::Error| format!("{path}: {error}");
    let mut socket = dial(path).map_err(say)?;
    socket.set_write_timeout(Some(WRITE_LIMIT)).map_err(say)?;
    socket.write_all(line.as_bytes()).map_err(say)
}
