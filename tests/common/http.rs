//! HTTP servers that tests need beside the programs of this crate, on loopback. What must break
//! HTTP on purpose, or speaks WebSocket, is a plain socket where it is needed.

use std::sync::Arc;

use tiny_http::{Header, Request, Response, Server};

/// Serves every request on a thread of its own until the tests end; the port. A request that is
/// dropped without an answer is answered with status 500, one that is kept is not answered.
pub fn serve(answer: impl Fn(Request, String) + Send + Sync + 'static) -> u16 {
    let server = Server::http("127.0.0.1:0").expect("binds");
    let port = server.server_addr().to_ip().expect("an address").port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        while let Ok(mut request) = server.recv() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut body = Vec::new();
                // A peer that gives up in the middle is answered like one that says nothing.
                let _ = request.as_reader().read_to_end(&mut body);
                answer(request, String::from_utf8_lossy(&body).into_owned());
            });
        }
    });
    port
}

/// Answers with a text of a kind; a peer that is gone does not matter.
pub fn respond(request: Request, status: u16, kind: &str, text: String) {
    let kind = Header::from_bytes("Content-Type", kind).expect("a header");
    let answer = Response::from_string(text).with_status_code(status).with_header(kind);
    let _ = request.respond(answer);
}
