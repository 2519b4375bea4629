//! Ten thousand agents, each with a token of its own.

use super::*;

const CROWD: usize = 10_000;

/// Rows: what they cost while nothing happens, and how they come back.
pub fn crowd() {
    let descriptors = agent_relay::os::raise_descriptors();
    assert!(descriptors > CROWD as u64 + 500, "needs more descriptors than {descriptors}");
    let mut hub = Hub::new("crowd");
    let (tokens, refused) = hub.tokens_of_agents(CROWD);
    assert_eq!(refused, 0, "an operator makes a token for each agent");
    let fleet = Fleet::start(&hub, tokens);
    fleet.wait_registered();
    std::thread::sleep(Duration::from_secs(5));
    let (_, before) = hub.costs();
    std::thread::sleep(Duration::from_secs(60));
    let (rss, after) = hub.costs();
    let share = (after - before).as_secs_f64() / 60.0 * 100.0;
    row(
        "hub, 10,000 connected agents with a token each, idle: RSS; CPU of a core over 60 s",
        "≤ 150 MB; ≤ 5 %",
        format!("{rss:.1} MB; {share:.2} %"),
    );
    over_a_kill(&mut hub, &fleet, "≤ 60 s, nothing lost");
}
