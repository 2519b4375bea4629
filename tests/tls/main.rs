//! The one stream type over TLS: several frames in one TLS record must all come out, though poll(2)
//! sees one arrival.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use agent_relay::edge::bus::ws_config;
use agent_relay::edge::stream::{Stream, client_config};
use agent_relay::os;
use rustix::event::{PollFd, PollFlags};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

struct Server {
    session: ServerConnection,
    socket: TcpStream,
}

/// Settings of a server called localhost, and of clients that know it.
fn settings() -> (ServerConfig, Arc<ClientConfig>) {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a server");
    config.send_tls13_tickets = 0; // nothing else comes in between
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    (config, client_config(Arc::new(roots)))
}

/// A connected pair: our stream and a TLS server that the test drives by hand.
fn pair() -> (Stream, Server) {
    let (config, client) = settings();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("bound");
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("accepts");
        let mut session = ServerConnection::new(Arc::new(config)).expect("a session");
        while session.is_handshaking() {
            session.complete_io(&mut socket).expect("a handshake");
        }
        Server { session, socket }
    });
    let socket = TcpStream::connect(address).expect("connects");
    let stream =
        Stream::handshake(Stream::Plain(socket), "localhost", client).expect("a handshake");
    stream.unblock().expect("nonblocking");
    (stream, server.join().expect("joins"))
}

/// Frames of a server, unmasked, as bytes.
fn frames(texts: &[String]) -> Vec<u8> {
    let mut socket =
        WebSocket::from_raw_socket(std::io::Cursor::new(Vec::new()), Role::Server, None);
    texts.iter().for_each(|text| socket.send(Message::text(text.clone())).expect("writes"));
    socket.get_ref().get_ref().clone()
}

fn wait_readable(stream: &Stream) {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    os::wait(&mut fds, Some(Duration::from_secs(10)));
    assert!(os::is_ready(&fds[0]), "nothing came");
}

#[test]
fn several_frames_in_one_record_all_come_out() {
    let (stream, mut server) = pair();
    let texts: Vec<String> =
        (0..10).map(|n| format!("frame {n} {}", "x".repeat(n * 100))).collect();
    // One write of one record: a single arrival for poll.
    server.session.writer().write_all(&frames(&texts)).expect("writes");
    while server.session.wants_write() {
        server.session.write_tls(&mut server.socket).expect("sends");
    }
    let mut socket = WebSocket::from_raw_socket(stream, Role::Client, Some(ws_config(1 << 20)));
    let mut heard = Vec::new();
    wait_readable(socket.get_ref());
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => heard.push(text.to_string()),
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if error.kind() == std::io::ErrorKind::WouldBlock =>
            {
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    // `WouldBlock` means that nothing decrypted is left behind.
    assert_eq!(heard, texts);
    assert!(!socket.get_mut().has_decrypted());
}

#[test]
fn what_is_decrypted_is_known_before_waiting() {
    let (mut stream, mut server) = pair();
    server.session.writer().write_all(b"twelve bytes").expect("writes");
    server.session.write_tls(&mut server.socket).expect("sends");
    wait_readable(&stream);
    let mut four = [0u8; 4];
    assert_eq!(stream.read(&mut four).expect("reads"), 4);
    // The socket is empty, the session is not.
    let mut fds = [PollFd::new(&stream, PollFlags::IN)];
    os::wait(&mut fds, Some(Duration::ZERO));
    assert!(!os::is_ready(&fds[0]), "poll cannot know");
    assert!(stream.has_decrypted());
    let mut rest = [0u8; 16];
    assert_eq!(stream.read(&mut rest).expect("reads"), 8);
    assert!(!stream.has_decrypted());
    assert_eq!(stream.read(&mut rest).expect_err("empty").kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_large_write_gets_through_a_full_socket() {
    let (mut stream, mut server) = pair();
    let reader = std::thread::spawn(move || {
        let mut sum = 0;
        let mut buffer = [0u8; 64 << 10];
        while sum < 8 << 20 {
            server.session.read_tls(&mut server.socket).expect("reads");
            server.session.process_new_packets().expect("decrypts");
            while let Ok(size @ 1..) = server.session.reader().read(&mut buffer) {
                sum += size;
            }
        }
        sum
    });
    let piece = vec![7u8; 64 << 10];
    let mut left = 8 << 20;
    while left > 0 || stream.has_unsent() {
        let done = if left > 0 {
            stream.write(&piece[..piece.len().min(left)])
        } else {
            stream.flush().map(|()| 0)
        };
        match done {
            Ok(size) => left -= size,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                os::wait(
                    &mut [PollFd::new(&stream, PollFlags::OUT)],
                    Some(Duration::from_secs(10)),
                );
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(reader.join().expect("joins"), 8 << 20);
}

/// As behind a proxy that is itself reached by TLS.
#[test]
fn a_session_stands_in_another_one() {
    const SIZE: usize = 1 << 20;
    let ((outer, to_outer), (inner, to_inner)) = (settings(), settings());
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("bound");
    let server = std::thread::spawn(move || {
        let (socket, _) = listener.accept().expect("accepts");
        let session = |config| ServerConnection::new(Arc::new(config)).expect("a session");
        let below = StreamOwned::new(session(outer), socket);
        let mut stream = StreamOwned::new(session(inner), below);
        let mut all = vec![0u8; SIZE];
        stream.read_exact(&mut all).expect("reads");
        stream.write_all(&all).expect("writes");
        stream.flush().expect("flushes");
        // Until the client is done.
        let _ = stream.read(&mut [0u8; 1]);
    });
    let socket = Stream::Plain(TcpStream::connect(address).expect("connects"));
    let below = Stream::handshake(socket, "localhost", to_outer).expect("a handshake");
    let mut stream = Stream::handshake(below, "localhost", to_inner).expect("another handshake");
    stream.unblock().expect("nonblocking");
    let sent: Vec<u8> = (0..SIZE).map(|at| (at / 7) as u8).collect();
    let (mut written, mut heard) = (0, Vec::new());
    while heard.len() < SIZE {
        if written < SIZE {
            match stream.write(&sent[written..]) {
                Ok(size) => written += size,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        } else if stream.has_unsent() {
            let _ = stream.flush();
        }
        let mut piece = [0u8; 1000];
        match stream.read(&mut piece) {
            Ok(size) => heard.extend_from_slice(&piece[..size]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                assert!(!stream.has_decrypted(), "nothing is left behind in either session");
                let wants = if written < SIZE || stream.has_unsent() {
                    PollFlags::IN | PollFlags::OUT
                } else {
                    PollFlags::IN
                };
                os::wait(&mut [PollFd::new(&stream, wants)], Some(Duration::from_secs(10)));
            }
        }
    }
    assert!(heard == sent, "what came back is what was sent");
    stream.shut_write();
    drop(stream);
    server.join().expect("joins");
}
