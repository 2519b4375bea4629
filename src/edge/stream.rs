//! One stream type for plain and TLS sockets, for poll loops.
//!
//! poll sees the socket, not what is already decrypted: [`Stream::has_decrypted`] must be asked
//! before waiting. Reads go on until `WouldBlock`, which for TLS means that the decrypted buffer is
//! empty too.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

/// A connected socket.
#[allow(missing_docs)] // the names say it
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// A TLS session over a socket, or over the session of a proxy that is reached by TLS itself.
pub struct Tls {
    session: Connection,
    below: Stream,
}

/// Certificates of the machine, private authorities included; read once.
pub fn roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS
        .get_or_init(|| {
            let mut store = RootCertStore::empty();
            for certificate in rustls_native_certs::load_native_certs().certs {
                let _ = store.add(certificate);
            }
            Arc::new(store)
        })
        .clone()
}

/// The TLS settings of every client connection: ring, no other provider.
pub fn client_config(roots: Arc<RootCertStore>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows them");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The TLS settings of a server with this chain of certificates from the first file, and with the
/// key of the second one, PEM.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    certificate: &Path,
    key: &Path,
) -> Result<Arc<ServerConfig>, String> {
    let bad = |path: &Path, error: &dyn std::fmt::Display| {
        format!("cannot use {}: {error}", path.display())
    };
    let secret = PrivateKeyDer::from_pem_slice(&super::certificate::pem(key)?)
        .map_err(|error| bad(key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows them");
    builder
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map(Arc::new)
        .map_err(|error| bad(certificate, &error))
}

impl Stream {
    /// Connects within a time limit that also bounds the TLS handshake. The socket is blocking with
    /// timeouts until [`Stream::unblock`].
    pub fn connect(host: &str, port: u16, tls: bool, limit: Duration) -> io::Result<Stream> {
        let until = Instant::now() + limit;
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        for address in (host, port).to_socket_addrs()? {
            let left =
                until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&address, left) {
                Ok(socket) => {
                    socket.set_nodelay(true)?;
                    socket.set_read_timeout(Some(limit))?;
                    socket.set_write_timeout(Some(limit))?;
                    let stream = Stream::Plain(socket);
                    return if tls {
                        Stream::handshake(stream, host, client_config(roots()))
                    } else {
                        Ok(stream)
                    };
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Speaks TLS on what is connected; that is blocking still.
    pub fn handshake(
        mut below: Stream,
        host: &str,
        config: Arc<ClientConfig>,
    ) -> io::Result<Stream> {
        let name = ServerName::try_from(host.to_string())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut session =
            Connection::from(ClientConnection::new(config, name).map_err(io::Error::other)?);
        while session.is_handshaking() {
            session.complete_io(&mut below)?;
        }
        Ok(Stream::Tls(Box::new(Tls { session, below })))
    }

    /// The server's side of TLS on an accepted socket that does not block; the handshake happens
    /// while reading.
    pub fn serve(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Stream> {
        let session = Connection::from(ServerConnection::new(config).map_err(io::Error::other)?);
        Ok(Stream::Tls(Box::new(Tls { session, below: Stream::Plain(socket) })))
    }

    /// Ends the writing direction: the peer sees the end behind what was written.
    pub fn shut_write(&mut self) {
        if let Stream::Tls(tls) = self {
            tls.session.send_close_notify();
            let _ = tls.session.write_tls(&mut tls.below);
        }
        let _ = self.socket().shutdown(std::net::Shutdown::Write);
    }

    /// Makes reads and writes return `WouldBlock` from now on.
    pub fn unblock(&self) -> io::Result<()> {
        self.socket().set_nonblocking(true)
    }

    /// Whether something decrypted waits that poll cannot see.
    pub fn has_decrypted(&mut self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => {
                let own = tls
                    .session
                    .process_new_packets()
                    .is_ok_and(|state| state.plaintext_bytes_to_read() > 0);
                (own || tls.below.has_decrypted()) && !crate::planted::is("decrypted-unseen")
            }
        }
    }

    /// Whether encrypted bytes wait for the socket to take them.
    pub fn has_unsent(&self) -> bool {
        matches!(self, Stream::Tls(tls) if tls.session.wants_write() || tls.below.has_unsent())
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.below.socket(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let tls = match self {
            Stream::Plain(socket) => return socket.read(buffer),
            Stream::Tls(tls) => tls,
        };
        loop {
            match tls.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A peer that closes without the TLS goodbye is an ordinary end for us: frames have
                // their own.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            if tls.session.read_tls(&mut tls.below)? == 0 {
                return Ok(0);
            }
            tls.session.process_new_packets().map_err(io::Error::other)?;
            if tls.session.wants_write() {
                let _ = tls.session.write_tls(&mut tls.below);
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(tls) => {
                // What was taken earlier goes first, so that the session's own buffer stays small.
                while tls.session.wants_write() {
                    tls.session.write_tls(&mut tls.below)?;
                }
                let taken = tls.session.writer().write(bytes)?;
                while tls.session.wants_write() {
                    match tls.session.write_tls(&mut tls.below) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
                Ok(taken)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(tls) => {
                while tls.session.wants_write() {
                    tls.session.write_tls(&mut tls.below)?;
                }
                tls.below.flush()
            }
        }
    }
}
