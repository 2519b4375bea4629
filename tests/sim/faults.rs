//! Which faults a seed brings: a random subset with random weights, so that rare combinations
//! occur.

use agent_relay::core::rng::Rng;

/// Chances in percent, per opportunity; 0 = this seed does not have the fault.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    pub delay_ms_max: u64,
    pub lose_request: u64,
    pub lose_answer: u64,
    pub repeat_request: u64,
    pub repeat_frame: u64,
    pub cut: u64,
    pub half_open: u64,
    pub crash_runner: u64,
    pub crash_hub: u64,
    pub crash_provider: u64,
    pub stall_disk: u64,
    pub partition: u64,
    pub jump_clock: u64,
    pub linger: u64,
    pub restart_runner_late: bool,
}

impl Faults {
    pub fn draw(rng: &mut Rng) -> Faults {
        let mut some = |most: u64| if rng.percent(50) { 1 + rng.below(most) } else { 0 };
        Faults {
            delay_ms_max: 1 + some(400),
            lose_request: some(10),
            lose_answer: some(10),
            repeat_request: some(8),
            repeat_frame: some(15),
            cut: some(6),
            half_open: some(3),
            crash_runner: some(8),
            crash_hub: some(4),
            crash_provider: some(8),
            stall_disk: some(6),
            partition: some(4),
            jump_clock: some(3),
            linger: some(60),
            restart_runner_late: some(2) == 1,
        }
    }

    /// No faults, only small delays.
    pub fn none() -> Faults {
        Faults { delay_ms_max: 3, ..Faults::default() }
    }
}
