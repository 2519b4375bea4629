//! The token as the tools inside the session find it: a file of the runner, written when the relay
//! first gives one and at every renewal. An edge writes it, once the token is durable; here stands
//! when.

use crate::core::agent::effect::{Effect, HeartbeatCommand};
use std::time::Duration;

use crate::core::agent::Agent;
use crate::core::agent::timer::Timer;
use crate::core::time::Now;
use crate::wire::control::LogLevel;

/// A write that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(2);

/// What is known of the file.
#[derive(Debug, Default)]
pub(super) struct TokenFile {
    /// It does not hold the newest token yet.
    stale: bool,
    /// It is being written; one write at a time.
    writing: bool,
}

impl Agent {
    /// There is another token.
    pub(super) fn keep_token_file(&mut self) {
        self.tokens.file.stale = true;
        self.write_token_file();
    }

    pub(in crate::core::agent) fn write_token_file(&mut self) {
        self.timers.clear(Timer::TokenFileRetry);
        let token = self.tokens.for_provider().filter(|token| !token.expose().is_empty());
        let Some(token) = token.filter(|_| self.tokens.file.stale && !self.tokens.file.writing)
        else {
            return;
        };
        (self.tokens.file.stale, self.tokens.file.writing) = (false, true);
        // Behind the commit that makes it durable: what stands there is what the next run of this
        // runner knows.
        self.commits.defer(Effect::Heartbeat(HeartbeatCommand::WriteToken { token }));
    }

    pub(in crate::core::agent) fn on_token_written(
        &mut self,
        now: Now,
        result: Result<(), String>,
    ) {
        self.tokens.file.writing = false;
        match result {
            Ok(()) => self.write_token_file(),
            Err(error) => {
                let text =
                    format!("the token file of the session cannot be written, retrying: {error}");
                if self.status.may_log(now, &text) {
                    self.log(LogLevel::Error, "runner", text);
                }
                self.tokens.file.stale = true;
                self.timers.set(Timer::TokenFileRetry, now.tick + RETRY);
            }
        }
    }
}
