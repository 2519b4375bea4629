//! Where it listens: a unix socket, or a port behind a token, as the real one does both. What came
//! to the port stands in `port.log`, line by line.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tungstenite::WebSocket;
use tungstenite::handshake::server::{ErrorResponse, Request, Response};

/// A connection, whatever it goes over.
pub enum Stream {
    Socket(UnixStream),
    Port(TcpStream),
}

impl Stream {
    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Socket(stream) => Stream::Socket(stream.try_clone()?),
            Stream::Port(stream) => Stream::Port(stream.try_clone()?),
        })
    }

    pub fn shutdown(&self) {
        let _ = match self {
            Stream::Socket(stream) => stream.shutdown(Shutdown::Both),
            Stream::Port(stream) => stream.shutdown(Shutdown::Both),
        };
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

fn value<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1).map(String::as_str)
}

/// Serves each connection in a thread of its own, for ever.
pub fn serve(
    words: &[String],
    state: &Path,
    on: impl Fn(WebSocket<Stream>) + Send + Sync + Clone + 'static,
) {
    let url = value(words, "--listen").expect("--listen");
    if let Some(path) = url.strip_prefix("unix://") {
        if std::env::var("FAKE_NO_UNIX").is_ok() {
            eprintln!(
                "error: invalid value '{url}' for '--listen <URL>': unsupported --listen URL `{url}`; expected `stdio://` or \
                 `ws://IP:PORT`\n\nFor more information, try '--help'."
            );
            std::process::exit(2);
        }
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("the socket");
        for stream in listener.incoming().flatten() {
            let on = on.clone();
            std::thread::spawn(move || {
                if let Ok(socket) = tungstenite::accept(Stream::Socket(stream)) {
                    on(socket);
                }
            });
        }
        return;
    }
    let address = url.strip_prefix("ws://").expect("ws:// or unix://");
    assert_eq!(value(words, "--ws-auth"), Some("capability-token"));
    let file = value(words, "--ws-token-file").expect("--ws-token-file");
    let unready = std::env::var("FAKE_UNREADY").map_or(0, |n| n.parse().expect("a number"));
    let door = Door {
        unready: Arc::new(AtomicU32::new(unready)),
        token: std::fs::read_to_string(file).expect("the token"),
        log: state.join("port.log"),
    };
    let listener = TcpListener::bind(address).expect("the port");
    let port = listener.local_addr().expect("bound").port();
    eprint!("\x1b[31mERROR\x1b[0m no bubblewrap\ncodex app-server (WebSockets)\n  listening on: ");
    std::thread::sleep(Duration::from_millis(20)); // a line may come in two pieces
    eprintln!("ws://127.0.0.1:{port}\n  readyz: http://127.0.0.1:{port}/readyz");
    for stream in listener.incoming().flatten() {
        let (on, door) = (on.clone(), door.clone());
        std::thread::spawn(move || {
            // Whether it is ready is asked without a token.
            if let Some(socket) = door.ready_or(stream).and_then(|stream| door.accept(stream)) {
                on(socket);
            }
        });
    }
}

/// Who gets in at a port.
#[derive(Clone)]
struct Door {
    token: String,
    log: PathBuf,
    /// So often it says that it is not ready.
    unready: Arc<AtomicU32>,
}

impl Door {
    fn note(&self, what: &str) {
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("a log");
        file.write_all(format!("{} {what}\n", std::process::id()).as_bytes()).expect("writes");
    }

    /// Answers whether it is ready; a connection that asks something else is handed back.
    fn ready_or(&self, mut stream: TcpStream) -> Option<TcpStream> {
        let mut head = [0u8; 12];
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        while stream.peek(&mut head).ok()? < head.len() {
            std::thread::sleep(Duration::from_millis(1));
        }
        stream.set_read_timeout(None).ok()?;
        if head != *b"GET /readyz " {
            return Some(stream);
        }
        let _ = stream.read(&mut [0u8; 1024]);
        let less = |left: u32| left.checked_sub(1);
        let is_ready = self.unready.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err();
        let status = if is_ready { "200 OK" } else { "503 Service Unavailable" };
        self.note(&format!("readyz {}", &status[..3]));
        let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        None
    }

    fn accept(&self, stream: TcpStream) -> Option<WebSocket<Stream>> {
        let wanted = format!("Bearer {}", self.token);
        #[allow(clippy::result_large_err)] // the library wants it so
        let check = |request: &Request, response: Response| {
            let given = request.headers().get("authorization").and_then(|it| it.to_str().ok());
            if given == Some(&wanted) {
                return Ok(response);
            }
            let mut refused = ErrorResponse::new(None);
            *refused.status_mut() = tungstenite::http::StatusCode::UNAUTHORIZED;
            Err(refused)
        };
        let accepted = tungstenite::accept_hdr(Stream::Port(stream), check);
        self.note(if accepted.is_ok() { "upgrade 101" } else { "upgrade 401" });
        accepted.ok()
    }
}

/// `resume --remote ws://… --remote-auth-token-env VARIABLE THREAD`: the window, which joins the
/// thread and is closed at once.
pub fn window(words: &[String]) {
    use tungstenite::client::IntoClientRequest;
    let url = value(words, "--remote").expect("--remote");
    let variable = value(words, "--remote-auth-token-env").expect("--remote-auth-token-env");
    let token = std::env::var(variable).expect("a token");
    let mut request = format!("{url}/").into_client_request().expect("an address");
    let bearer = format!("Bearer {token}").parse().expect("a header");
    request.headers_mut().insert("authorization", bearer);
    let (mut socket, _) = tungstenite::connect(request).expect("it gets in");
    let thread = words.last().expect("a thread");
    let params = serde_json::json!({"threadId": thread});
    let frame = serde_json::json!({"id": 1, "method": "thread/resume", "params": params});
    socket.send(tungstenite::Message::text(frame.to_string())).expect("it is sent");
    let reply = socket.read().expect("a reply");
    println!("the window shows {reply}");
}
