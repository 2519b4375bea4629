//! The HTTP client of the program (not a thread): timeouts, no redirects, statuses as values.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, ProxyProtocol};

use super::proxy::Route;
use crate::core::Cause;
use crate::provider::reader::{self, Damage};
use crate::secret::Secret;
use crate::wire::api::TOKEN_HEADER;

/// Largest answer that is read, bytes: a page of messages with full bodies.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A checked base URL.
#[allow(missing_docs)] // the names say it
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// As given, without trailing slashes, query and user part.
    pub url: String,
    /// Host, without brackets.
    pub host: String,
    pub port: u16,
    pub tls: bool,
    path: String,
}

impl Base {
    /// Checks a URL of a relay.
    pub fn parse(url: &str) -> Result<Base, String> {
        let url = url.trim();
        let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => {
                return Err(format!("the relay URL {url:?} must begin with http:// or https://"));
            }
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) =
            rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
        let bad = || format!("the relay URL {url:?} is not of the form http://host:port");
        if authority.contains('@') {
            return Err("the relay URL must not hold a user or password".to_string());
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(bad)?)),
            None => authority
                .split_once(':')
                .map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| bad())?,
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
        };
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(bad());
        }
        let path = path.trim_end_matches('/').to_string();
        let scheme = if tls { "https" } else { "http" };
        Ok(Base {
            url: format!("{scheme}://{authority}{path}"),
            host: host.into(),
            port,
            tls,
            path,
        })
    }

    /// URL of the bus: `ws` or `wss`, the path of the base URL with `/bus`, no query.
    pub fn bus_url(&self) -> String {
        let scheme = if self.tls { "wss" } else { "ws" };
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}{}/bus", self.port, self.path)
    }

    /// Whether the relay is on this machine.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host == "::1" || self.host.starts_with("127.")
    }
}

/// A client with kept connections.
pub struct Http {
    base: Base,
    route: Route,
    agent: Agent,
}

/// A client of one relay, made anew when the calls go to another one.
pub struct RelayClient {
    limit: Duration,
    made: Option<(String, Http)>,
}

impl RelayClient {
    /// A client of none yet; `limit`: how long an exchange may take.
    pub fn new(limit: Duration) -> RelayClient {
        RelayClient { limit, made: None }
    }

    /// Whether the last call went to this relay.
    pub fn is_of(&self, relay: &str) -> bool {
        self.made.as_ref().is_some_and(|(known, _)| known == relay)
    }

    /// A client of this relay. An error is a URL that is not one of a relay.
    pub fn of(&mut self, relay: &str) -> Result<&Http, Cause> {
        if !self.is_of(relay) {
            let base = Base::parse(relay).map_err(Cause::Protocol)?;
            self.made = Some((relay.to_string(), Http::new(base, self.limit)));
        }
        let (_, http) = self.made.as_ref().expect("made above");
        Ok(http)
    }
}

impl Http {
    /// `limit` bounds each exchange as a whole.
    pub fn new(base: Base, limit: Duration) -> Http {
        let mut config = Agent::config_builder()
            .timeout_global(Some(limit))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(format!("agent-relay/{}", crate::wire::VERSION));
        let route = Route::to(&base);
        config = config.proxy(route.proxy().cloned());
        if base.tls || route.proxy().is_some_and(|proxy| proxy.protocol() == ProxyProtocol::Https) {
            let native = rustls_native_certs::load_native_certs().certs;
            let roots: Vec<Certificate<'static>> =
                native.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
            let tls = TlsConfig::builder()
                .provider(TlsProvider::Rustls)
                .unversioned_rustls_crypto_provider(std::sync::Arc::new(
                    rustls::crypto::ring::default_provider(),
                ))
                .root_certs(RootCerts::new_with_certs(&roots))
                .build();
            config = config.tls_config(tls);
        }
        Http { base, route, agent: config.build().new_agent() }
    }

    /// One exchange: status and JSON body (null if there is none).
    pub fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        token: &Secret,
    ) -> Result<(u16, Value), Cause> {
        self.exchange(method, path, body, (TOKEN_HEADER, token.expose().to_string()), None)
    }

    /// The same with a limit of its own.
    pub fn get_within(
        &self,
        path: &str,
        token: &Secret,
        limit: Duration,
    ) -> Result<(u16, Value), Cause> {
        self.exchange("GET", path, None, (TOKEN_HEADER, token.expose().to_string()), Some(limit))
    }

    /// The same with `Authorization: Bearer`, as control ports want it.
    pub fn call_bearer(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        token: &Secret,
    ) -> Result<(u16, Value), Cause> {
        self.exchange(
            method,
            path,
            body,
            ("Authorization", format!("Bearer {}", token.expose())),
            None,
        )
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        (header, token): (&str, String),
        limit: Option<Duration>,
    ) -> Result<(u16, Value), Cause> {
        let request =
            ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base.url));
        let request = match token.as_str() {
            "" => request,
            token => request.header(header, token),
        };
        let failed = |error: ureq::Error| {
            let (url, route) = (&self.base.url, &self.route);
            let text = format!("cannot reach the relay at {url}{route}: {error}");
            match error {
                ureq::Error::Timeout(_) => {
                    Cause::TimedOut(format!("the relay at {url}{route} gave no answer in time"))
                }
                ureq::Error::Protocol(_) | ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                    Cause::Protocol(text)
                }
                _ => Cause::Offline(text),
            }
        };
        // A request of these methods always has a body: without one its length would not be told.
        let text = body
            .map(Value::to_string)
            .or_else(|| matches!(method, "POST" | "PUT" | "PATCH").then(|| "{}".into()));
        let bad = |error: ureq::http::Error| Cause::Protocol(error.to_string());
        let result = match text {
            Some(text) => {
                let request =
                    request.header("Content-Type", "application/json").body(text).map_err(bad)?;
                self.agent.run(request)
            }
            None => {
                let request = request.body(()).map_err(bad)?;
                match limit {
                    Some(limit) => self.agent.run(
                        self.agent.configure_request(request).timeout_global(Some(limit)).build(),
                    ),
                    None => self.agent.run(request),
                }
            }
        };
        let mut response = result.map_err(failed)?;
        let status = response.status().as_u16();
        // Read to the end, or the client does not use the connection again.
        let mut bytes = Vec::new();
        let read = response.body_mut().as_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
        read.map_err(|error| {
            Cause::Offline(format!("the answer of {} broke off: {error}", self.base.url))
        })?;
        match serde_json::from_slice(&bytes) {
            Ok(body) => Ok((status, body)),
            // An earlier relay hands out what is nested too deeply to be read: that is cut, and the
            // rest of a list counts. A success without JSON does not come from a relay: nothing was
            // done.
            Err(_) if status < 300 && !bytes.iter().all(u8::is_ascii_whitespace) => {
                let not_a_relay = || format!("what answers at {} is not a relay", self.base.url);
                let body = patched(&bytes).ok_or_else(|| Cause::Protocol(not_a_relay()))?;
                Ok((status, body))
            }
            Err(_) => Ok((status, Value::Null)),
        }
    }
}

/// A whole answer of which only what cannot be read was replaced.
fn patched(bytes: &[u8]) -> Option<Value> {
    reader::read(bytes).filter(|found| found.damage <= Damage::Patched).map(|it| it.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked() {
        let rows = [
            ("http://127.0.0.1:4850", "ws://127.0.0.1:4850/bus"),
            ("https://relay.example/base//?x=1", "wss://relay.example:443/base/bus"),
            ("http://[::1]:99/", "ws://[::1]:99/bus"),
            ("http://localhost", "ws://localhost:80/bus"),
        ];
        for (url, bus) in rows {
            assert_eq!(Base::parse(url).expect(url).bus_url(), bus);
        }
        for bad in
            ["", "relay:80", "ftp://x", "http://", "http://x:port", "http://u:p@x", "http://a b"]
        {
            assert!(Base::parse(bad).is_err(), "{bad}");
        }
    }
}
