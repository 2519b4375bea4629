//! Which way leads to a relay, by the environment: one rule for HTTP calls and for the bus.
//!
//! `HTTPS_PROXY` counts for https relays, `HTTP_PROXY` for http ones, `ALL_PROXY` where that is not
//! set; small letters count too. `NO_PROXY` names hosts, domains, addresses and networks that are
//! reached directly, and what is on this machine always is. A proxy is told by CONNECT where to
//! lead.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ureq::{Proxy, ProxyProtocol};

use super::http::Base;
use super::stream::{Stream, client_config, roots};

/// Bytes of a proxy's answer to CONNECT.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The way to a relay.
#[derive(Clone, PartialEq)]
pub enum Route {
    /// No proxy is set for it.
    Direct,
    /// Through the proxy that this variable names.
    Through(&'static str, Proxy),
    /// Directly, since this variable names none that can be used.
    Unusable(&'static str),
}

/// What it adds to a sentence about the relay; never a user or a password.
impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Route::Direct => Ok(()),
            Route::Through(variable, proxy) => {
                write!(f, " through the proxy {}:{} ({variable})", proxy.host(), proxy.port())
            }
            Route::Unusable(variable) => write!(
                f,
                " (without a proxy: {variable} names none of the form http://host:port or https://host:port)"
            ),
        }
    }
}

impl Route {
    /// By the environment of this process.
    pub fn to(base: &Base) -> Route {
        Route::chosen(base, crate::config::env)
    }

    fn chosen(base: &Base, env: impl Fn(&str) -> Option<String>) -> Route {
        let any = |names: &[&'static str]| {
            names.iter().find_map(|name| env(name).map(|value| (*name, value)))
        };
        let own: [&str; 2] =
            if base.tls { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
        let exempt = any(&["NO_PROXY", "no_proxy"]).map(|(_, list)| list).unwrap_or_default();
        if base.is_loopback() || exempt.split(',').any(|entry| is_exempt(base, entry)) {
            return Route::Direct;
        }
        match any(&own).or_else(|| any(&["ALL_PROXY", "all_proxy"])) {
            None => Route::Direct,
            Some((variable, url)) => match Proxy::new(url.trim()) {
                Ok(proxy) if leads_by_connect(&proxy) => Route::Through(variable, proxy),
                _ => Route::Unusable(variable),
            },
        }
    }

    /// The proxy.
    pub fn proxy(&self) -> Option<&Proxy> {
        match self {
            Route::Through(_, proxy) => Some(proxy),
            Route::Direct | Route::Unusable(_) => None,
        }
    }

    /// Connects to the relay within a time limit; TLS to the relay included.
    pub fn connect(&self, base: &Base, limit: Duration) -> io::Result<Stream> {
        let Route::Through(variable, proxy) = self else {
            return Stream::connect(&base.host, base.port, base.tls, limit);
        };
        let host = proxy.host().trim_start_matches('[').trim_end_matches(']');
        let tls = proxy.protocol() == ProxyProtocol::Https;
        let mut stream = Stream::connect(host, proxy.port(), tls, limit)?;
        let status = ask_for_tunnel(&mut stream, base, proxy, limit)?;
        let refused = match status {
            200..300 if base.tls => {
                return Stream::handshake(stream, &base.host, client_config(roots()));
            }
            200..300 => return Ok(stream),
            407 if proxy.username().is_none() => format!(
                "the proxy wants a user and a password (407): write {variable} as http://user:password@host:port"
            ),
            407 => format!("the proxy does not take the user and password of {variable} (407)"),
            status => format!("the proxy refuses to lead there ({status})"),
        };
        Err(io::Error::other(refused))
    }
}

fn leads_by_connect(proxy: &Proxy) -> bool {
    matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https)
}

/// Whether this entry of NO_PROXY means the relay: `*`, a host with all below it, an address or a
/// network; each with a port or without.
fn is_exempt(base: &Base, entry: &str) -> bool {
    let entry = entry.trim().to_ascii_lowercase();
    let host = base.host.trim_end_matches('.').to_ascii_lowercase();
    let (name, port) = match entry.rsplit_once(':') {
        // More than one colon without brackets is an address.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (entry.as_str(), None),
    };
    if port.is_some_and(|port| port.parse() != Ok(base.port)) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse::<IpAddr>() {
        let network = name.split_once('/').and_then(|(network, bits)| {
            Some(begin_alike(address, network.parse().ok()?, bits.parse().ok()?))
        });
        return name == "*" || name.parse() == Ok(address) || network == Some(true);
    }
    let name = name.strip_prefix('*').unwrap_or(name);
    let domain = name.trim_start_matches('.');
    let below = || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    (name.is_empty() && entry.starts_with('*'))
        || (!domain.is_empty() && (host == domain || below()))
}

/// Whether two addresses are of one kind and have their first `bits` in common.
fn begin_alike(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    let alike = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => return false,
    };
    alike >= bits
}

/// Asks the proxy to lead to the relay; the status of its answer. Behind the head of that answer
/// nothing is read: it belongs to the relay.
fn ask_for_tunnel(
    stream: &mut Stream,
    base: &Base,
    proxy: &Proxy,
    limit: Duration,
) -> io::Result<u16> {
    let until = Instant::now() + limit;
    let host = if base.host.contains(':') { format!("[{}]", base.host) } else { base.host.clone() };
    let target = format!("{host}:{}", base.port);
    let mut head = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: agent-relay/{}\r\n",
        crate::wire::VERSION
    );
    if let Some(user) = proxy.username() {
        let both = format!("{user}:{}", proxy.password().unwrap_or_default());
        let both = data_encoding::BASE64.encode(both.as_bytes());
        head.push_str(&format!("Proxy-Authorization: Basic {both}\r\n"));
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.flush()?;
    let (mut answer, mut byte) = (Vec::new(), [0u8; 1]);
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == HEAD_BYTES_MAX || stream.read(&mut byte)? == 0 {
            return Err(io::Error::other("the proxy hung up without an answer"));
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        answer.push(byte[0]);
    }
    let status = answer.get(9..12).filter(|_| answer.starts_with(b"HTTP/1."));
    let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| io::Error::other("what answers there is no HTTP proxy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way that is told of a URL, with these variables set.
    fn route(url: &str, variables: &[(&str, &str)]) -> String {
        let env = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.to_string())
        };
        Route::chosen(&Base::parse(url).expect("a URL"), env).to_string()
    }

    #[test]
    fn the_variable_of_the_relays_scheme_counts() {
        let (web, tls) =
            (("HTTP_PROXY", "http://web:1"), ("HTTPS_PROXY", "https://u:secret@tls:2"));
        let all = ("all_proxy", "any:3");
        for (url, variables, want) in [
            ("https://relay.test", vec![web, tls, all], " through the proxy tls:2 (HTTPS_PROXY)"),
            ("http://relay.test", vec![web, tls, all], " through the proxy web:1 (HTTP_PROXY)"),
            ("https://relay.test", vec![web, all], " through the proxy any:3 (all_proxy)"),
            ("http://relay.test", vec![tls, all], " through the proxy any:3 (all_proxy)"),
            ("http://relay.test", vec![tls], ""),
            ("https://localhost", vec![tls], ""),
            ("https://127.0.0.9", vec![tls], ""),
            ("https://[::1]", vec![tls], ""),
        ] {
            assert_eq!(route(url, &variables), want, "{url} {variables:?}");
        }
        for unusable in ["socks5://u:secret@x:1", "http://", "ftp://x", "http://a b"] {
            let told = route("https://relay.test", &[("HTTPS_PROXY", unusable)]);
            assert!(told.contains("HTTPS_PROXY names none") && !told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn exempt_relays_are_reached_directly() {
        for (host, list, exempt) in [
            ("relay.corp.test", "other, relay.corp.test", true),
            ("relay.corp.test", "corp.test", true),
            ("relay.corp.test", ".corp.test", true),
            ("relay.corp.test", "*.CORP.test", true),
            ("relay.corp.test", "*", true),
            ("Relay.Corp.Test.", "corp.test", true),
            ("relay.corp.test", "", false),
            ("relay.corp.test", ",", false),
            ("relay.corp.test", "orp.test", false),
            ("relay.corp.test", "corp", false),
            ("relay.corp.test", "x.relay.corp.test", false),
            ("relay.corp.test:8443", "corp.test:8443", true),
            ("relay.corp.test:8443", "corp.test:443", false),
            ("10.1.2.3", "10.0.0.0/8", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.30", false),
            ("11.1.2.3", "10.0.0.0/8", false),
            ("10.1.2.3", "10.0.0.0/64", false),
            ("10.1.2.3", "*", true),
            ("[fd00::7]", "fd00::/16", true),
            ("[fd00::7]", "[fd00::7]:443", true),
            ("[fd00::7]", "fd00::8", false),
            ("10.1.2.3", "fd00::/0", false),
        ] {
            let told = route(
                &format!("https://{host}"),
                &[("HTTPS_PROXY", "http://p:1"), ("no_proxy", list)],
            );
            assert_eq!(told.is_empty(), exempt, "{host} {list:?}");
        }
    }
}
