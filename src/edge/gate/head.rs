//! Heads of requests and answers as bytes: what the gate reads and writes (not a thread).

use super::body::Framing;
use crate::core::http::{Body, Request};

/// What the bytes that were read so far are as a head.
pub(super) enum Head {
    Partial,
    Bad(u16, &'static str, &'static str),
    Complete {
        size: usize,
        request: Request,
        upgrade: bool,
        framing: Framing,
        keep: bool,
        expects: bool,
    },
}

/// Why a head is not acceptable: status, code and sentence of the answer.
type Bad = (u16, &'static str, &'static str);

/// What the header lines say, besides what stands in the request.
struct Lines {
    upgrade: bool,
    length: Option<usize>,
    chunked: bool,
    expects: bool,
    keep: bool,
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
            return Head::Bad(
                400,
                "tls_on_plain_port",
                "this port does not speak TLS; use http://",
            );
        }
        Err(_) => return Head::Bad(400, "bad_request", "this is not an HTTP request"),
    };
    let mut request =
        Request { method: parsed.method.unwrap_or_default().to_string(), ..Default::default() };
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (request.path, request.query) = (path.to_string(), query.to_string());
    let keep = parsed.version == Some(1);
    let mut lines = Lines { upgrade: false, length: None, chunked: false, expects: false, keep };
    for header in parsed.headers.iter() {
        let value = String::from_utf8_lossy(header.value);
        let name = header.name.to_ascii_lowercase();
        if let Err((status, code, text)) =
            lines.take(&mut request, &name, value.trim(), body_bytes_max)
        {
            return Head::Bad(status, code, text);
        }
    }
    let framing = match (lines.chunked, lines.length) {
        // Both lengths in one request: somebody in between may see another second request than we
        // do (smuggling).
        (true, Some(_)) => return Head::Bad(400, "bad_length", "both Content-Length and chunks"),
        (true, None) => Framing::Chunked,
        (false, length) => Framing::Length(length.unwrap_or(0)),
    };
    let Lines { upgrade, expects, keep, .. } = lines;
    Head::Complete { size, request, upgrade, framing, keep, expects }
}

impl Lines {
    /// Takes one header line; `name` in small letters.
    fn take(
        &mut self,
        request: &mut Request,
        name: &str,
        value: &str,
        body_bytes_max: usize,
    ) -> Result<(), Bad> {
        match name {
            "x-agent-relay-token" => request.token = value.to_string(),
            "authorization" if request.token.is_empty() => {
                let scheme = value.split_once(' ');
                if let Some((_, token)) =
                    scheme.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                {
                    request.token = token.trim().to_string();
                }
            }
            "content-length" if self.length.is_some() => {
                return Err((400, "bad_length", "more than one Content-Length"));
            }
            "content-length" => self.length = Some(content_length(value, body_bytes_max)?),
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") && !self.chunked => {
                self.chunked = true
            }
            "transfer-encoding" => {
                return Err((501, "bad_encoding", "the only Transfer-Encoding here is chunked"));
            }
            "mcp-protocol-version" => request.mcp.version = bounded(value),
            "mcp-method" => request.mcp.method = bounded(value),
            "mcp-name" => request.mcp.name = bounded(value),
            "last-event-id" => request.last_event_id = value.chars().take(32).collect(),
            "connection" => {
                let words = value.to_ascii_lowercase();
                if words.contains("close") {
                    self.keep = false;
                } else if words.contains("keep-alive") {
                    self.keep = true;
                }
            }
            "upgrade" if value.eq_ignore_ascii_case("websocket") => self.upgrade = true,
            "expect" => self.expects = value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
        Ok(())
    }
}

/// Names of methods and tools are short.
fn bounded(value: &str) -> String {
    value.chars().take(128).collect()
}

/// Checked before anything is reserved or read.
fn content_length(value: &str, body_bytes_max: usize) -> Result<usize, Bad> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err((400, "bad_length", "Content-Length is not a number"));
    }
    // What has too many digits is too large as well.
    let told = value.parse::<u64>().ok().filter(|told| *told <= body_bytes_max as u64);
    told.map(|told| told as usize).ok_or((413, "body_too_large", "the request body is too large"))
}

/// The answer to an upgrade; `None` if the request is not a valid one.
pub(super) fn upgrade_answer(head: &[u8]) -> Option<Vec<u8>> {
    let mut storage = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut storage);
    parsed.parse(head).ok().filter(|status| status.is_complete())?;
    let mut builder =
        tungstenite::http::Request::builder().method(parsed.method?).uri(parsed.path?);
    for header in parsed.headers.iter() {
        builder = builder.header(header.name, header.value);
    }
    let request = builder.version(tungstenite::http::Version::HTTP_11).body(()).ok()?;
    let answer = tungstenite::handshake::server::create_response(&request).ok()?;
    let mut bytes = Vec::new();
    tungstenite::handshake::server::write_response(&mut bytes, &answer).ok()?;
    Some(bytes)
}

/// Head and body in one write: two writes would wait for each other's acknowledgement (Nagle).
/// `head_only` answers HEAD.
pub(super) fn response(status: u16, body: &Body, keep: bool, head_only: bool) -> Vec<u8> {
    let reason = tungstenite::http::StatusCode::from_u16(status)
        .ok()
        .and_then(|code| code.canonical_reason())
        .unwrap_or("Status");
    let connection = if keep { "keep-alive" } else { "close" };
    let after = match body {
        Body::Json(value) => value.get("retryAfter").and_then(serde_json::Value::as_u64),
        _ => None,
    };
    let retry = match (status, after) {
        (429 | 503, after) => format!("Retry-After: {}\r\n", after.unwrap_or(1)),
        _ => String::new(),
    };
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
    let length =
        if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", text.len()) };
    let mut bytes = format!(
        "HTTP/1.1 {status} {reason}\r\n{kind}{length}{retry}Connection: {connection}\r\n\r\n"
    )
    .into_bytes();
    if status != 204 && !head_only {
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// Head of a stream of server-sent events.
pub(super) const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n";

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
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                501,
            ),
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
        let text =
            String::from_utf8(response(200, &Body::Json(serde_json::json!({"a": 1})), true, true))
                .expect("text");
        assert!(
            text.contains("Content-Length: 7\r\n") && text.ends_with("\r\n\r\n"),
            "HEAD has no body: {text}"
        );
    }

    #[test]
    fn tokens_of_both_headers_are_read() {
        for text in [
            "X-Agent-Relay-Token: t",
            "Authorization: Bearer t",
            "authorization: Bearer other\r\nx-agent-relay-token: t",
        ] {
            let Head::Complete { request, keep, upgrade, framing, .. } =
                read(&format!("GET /a?b=c HTTP/1.1\r\n{text}\r\n\r\n"))
            else {
                panic!("{text}");
            };
            assert_eq!(
                (request.token.as_str(), request.path.as_str(), request.query.as_str()),
                ("t", "/a", "b=c")
            );
            assert_eq!((keep, upgrade, framing), (true, false, Framing::Length(0)));
        }
    }
}
