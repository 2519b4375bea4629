//! Heads of requests and answers as bytes: what the gate reads and writes (not a thread).

use super::body::Framing;
use crate::core::http::{Body, Request};

/// What the bytes that were read so far are as a head.
pub(super) enum Head {
    Partial,
    Bad(u16, &'static str, &'static str),
    Complete { size: usize, request: Request, upgrade: bool, framing: Framing, keep: bool, expects: bool },
}

pub(super) fn parse_head(bytes: &[u8], head_bytes_max: usize, body_bytes_max: usize) -> Head {
    if bytes.is_empty() {
        return Head::Partial;
    }
    let mut storage = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut storage);
    let size = match parsed.parse(&bytes[..bytes.len().min(head_bytes_max)]) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => return Head::Partial,
        Err(httparse::Error::TooManyHeaders) => {
            return Head::Bad(431, "too_many_headers", "the request has too many headers");
        }
        Err(_) if bytes[0] == 0x16 => {
            return Head::Bad(400, "tls_on_plain_port", "this port does not speak TLS; use http://");
        }
        Err(_) => return Head::Bad(400, "bad_request", "this is no HTTP request"),
    };
    let mut request = Request { method: parsed.method.unwrap_or_default().to_string(), ..Default::default() };
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (request.path, request.query) = (path.to_string(), query.to_string());
    let (mut upgrade, mut length, mut chunked, mut expects) = (false, None, false, false);
    let mut keep = parsed.version == Some(1);
    for header in parsed.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        let value = value.trim();
        match header.name.to_ascii_lowercase().as_str() {
            "x-agent-relay-token" => request.token = value.to_string(),
            "authorization" if request.token.is_empty() => {
                if let Some((_, token)) = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) {
                    request.token = token.trim().to_string();
                }
            }
            "content-length" => {
                if length.is_some() {
                    return Head::Bad(400, "bad_length", "more than one Content-Length");
                }
                // Checked before anything is reserved or read.
                let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                match value.parse::<u64>() {
                    _ if !digits => return Head::Bad(400, "bad_length", "Content-Length is no number"),
                    Ok(told) if told <= body_bytes_max as u64 => length = Some(told as usize),
                    Ok(_) => {
                        return Head::Bad(413, "body_too_large", "the request body is too large");
                    }
                    Err(_) => return Head::Bad(413, "body_too_large", "the request body is too large"),
                }
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") && !chunked => chunked = true,
            "transfer-encoding" => return Head::Bad(501, "bad_encoding", "the only Transfer-Encoding here is chunked"),
            "last-event-id" => request.last_event_id = value.chars().take(32).collect(),
            "connection" => {
                let words = value.to_ascii_lowercase();
                if words.contains("close") {
                    keep = false;
                } else if words.contains("keep-alive") {
                    keep = true;
                }
            }
            "upgrade" if value.eq_ignore_ascii_case("websocket") => upgrade = true,
            "expect" => expects = value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
    }
    let framing = match (chunked, length) {
        // Both lengths in one request: somebody in between may see another second request than we do (smuggling).
        (true, Some(_)) => return Head::Bad(400, "bad_length", "both Content-Length and chunks"),
        (true, None) => Framing::Chunked,
        (false, length) => Framing::Length(length.unwrap_or(0)),
    };
    Head::Complete { size, request, upgrade, framing, keep, expects }
}

/// The answer to an upgrade; `None` if the request is not a valid one.
pub(super) fn upgrade_answer(head: &[u8]) -> Option<Vec<u8>> {
    let mut storage = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut storage);
    parsed.parse(head).ok().filter(|status| status.is_complete())?;
    let mut builder = tungstenite::http::Request::builder().method(parsed.method?).uri(parsed.path?);
    for header in parsed.headers.iter() {
        builder = builder.header(header.name, header.value);
    }
    let request = builder.version(tungstenite::http::Version::HTTP_11).body(()).ok()?;
    let answer = tungstenite::handshake::server::create_response(&request).ok()?;
    let mut bytes = Vec::new();
    tungstenite::handshake::server::write_response(&mut bytes, &answer).ok()?;
    Some(bytes)
}

/// Head and body in one write: two writes would wait for each other's acknowledgement (Nagle). `head_only` answers HEAD.
pub(super) fn response(status: u16, body: &Body, keep: bool, head_only: bool) -> Vec<u8> {
    let reason = tungstenite::http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason()).unwrap_or("Status");
    let connection = if keep { "keep-alive" } else { "close" };
    let retry = if matches!(status, 429 | 503) { "Retry-After: 1\r\n" } else { "" };
    let json;
    let (kind, text) = match body {
        Body::Empty => ("", ""),
        Body::Json(value) => {
            json = value.to_string();
            ("application/json", json.as_str())
        }
        Body::Text(kind, text) => (*kind, text.as_str()),
    };
    let kind = if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
    let length = if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", text.len()) };
    let mut bytes = format!("HTTP/1.1 {status} {reason}\r\n{kind}{length}{retry}Connection: {connection}\r\n\r\n").into_bytes();
    if status != 204 && !head_only {
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// Head of a stream of server-sent events.
pub(super) const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Head {
        parse_head(text.as_bytes(), 1024, 1000)
    }

    #[test]
    fn heads_are_bounded_before_anything_is_read() {
        for (text, want) in [
            ("GET / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nContent-Length: 1000000000000000\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            ("\u{16}\u{3}\u{1}hello", 400),
            ("no http at all\r\n\r\n", 400),
        ] {
            assert!(matches!(read(text), Head::Bad(status, ..) if status == want), "{text:?}");
        }
        assert!(matches!(read("GET / HT"), Head::Partial));
    }

    /// A client that is refused for now (503, 429) is told when to come again.
    #[test]
    fn refusals_for_a_while_say_when_to_come_again() {
        for (status, wanted) in [(503, true), (429, true), (500, false), (200, false)] {
            let answer = response(status, &Body::Json(serde_json::json!({})), true, false);
            let text = String::from_utf8(answer).expect("text");
            assert_eq!(text.contains("\r\nRetry-After: 1\r\n"), wanted, "{text}");
        }
        let text = String::from_utf8(response(200, &Body::Json(serde_json::json!({"a": 1})), true, true)).expect("text");
        assert!(text.contains("Content-Length: 7\r\n") && text.ends_with("\r\n\r\n"), "HEAD has no body: {text}");
    }

    #[test]
    fn tokens_of_both_headers_are_read() {
        for text in ["X-Agent-Relay-Token: t", "Authorization: Bearer t", "authorization: Bearer other\r\nx-agent-relay-token: t"] {
            let Head::Complete { request, keep, upgrade, framing, .. } = read(&format!("GET /a?b=c HTTP/1.1\r\n{text}\r\n\r\n")) else {
                panic!("{text}");
            };
            assert_eq!((request.token.as_str(), request.path.as_str(), request.query.as_str()), ("t", "/a", "b=c"));
            assert_eq!((keep, upgrade, framing), (true, false, Framing::Length(0)));
        }
    }
}
