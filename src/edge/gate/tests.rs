//! Room for a whole fleet.

use std::net::TcpStream;
use std::time::Duration;

use super::*;
use crate::core::limits::AGENTS_MAX;

#[test]
fn a_fleet_finds_places() {
    let limits = Limits::default();
    assert!(limits.connections_max >= AGENTS_MAX, "each agent that a hub knows");
    let listener = listen("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("an address");
    let system = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    let places = system.trim().parse().unwrap_or(128).min(400);
    // Nobody accepts them: whoever is one too many is never answered, however long it waits.
    let waiting: Vec<TcpStream> = (0..places)
        .map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(20)).expect("a place"))
        .collect();
    assert_eq!(waiting.len(), places);
}
