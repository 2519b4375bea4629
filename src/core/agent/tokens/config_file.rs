//! Looking for another token, or another relay, in the configuration file: the first start of a hub
//! writes both there.

use super::FIRST_LOOK;
use crate::core::agent::Agent;
use crate::core::agent::effect::{Effect, HeartbeatCommand};
use crate::core::agent::stop::Why;
use crate::core::agent::timer::Timer;
use crate::core::backoff;
use crate::core::limits::*;
use crate::core::time::Now;
use crate::secret::Secret;
use crate::wire::control::LogLevel;

impl Agent {
    /// Whoever was served before looks again after a minute; the first look is made at once: the
    /// hub may have new data and its new token stands there already.
    pub(super) fn look_again(&mut self, now: Now) {
        let pause = if self.tokens.looks > 0 { TOKEN_RETRY } else { FIRST_LOOK };
        self.tokens.looks = self.tokens.looks.saturating_add(1);
        self.timers.set(Timer::ConfigLook, now.tick + pause);
    }

    /// Before the first registration nothing is lost by waiting: a hub's first start writes relay
    /// and token, perhaps just now, perhaps tomorrow. Looks at once, then with growing pauses; says
    /// so once.
    pub(super) fn seek_token(&mut self, now: Now, trouble: &str) {
        if self.timers.is_set(Timer::ConfigLook) || self.tokens.reading {
            return; // on its way
        }
        if crate::planted::is("hopeless-start") {
            return self.begin_stop(now, Why::Refused(trouble.to_string()));
        }
        if self.tokens.looks == 1 {
            let text = format!(
                "the relay {} {trouble}; config.json is looked at again until it holds one that works (the hub's first start \
                 writes it; else set AGENT_RELAY_TOKEN or --token)",
                self.config.relay_url
            );
            self.log(LogLevel::Warn, "runner", text.clone());
            self.out.push(Effect::Tell { text });
        }
        let pause = match self.tokens.looks {
            0 => FIRST_LOOK,
            looks => backoff::reconnect(looks, &mut self.rng).max(FIRST_LOOK * 2),
        };
        self.tokens.looks = self.tokens.looks.saturating_add(1);
        self.timers.set(Timer::ConfigLook, now.tick + pause);
    }

    /// A relay that was never reached may be another one by now: its hub writes where it listens.
    pub(in crate::core::agent) fn look_while_away(&mut self) {
        if self.was_never_served()
            && !(self.config.url_by_hand && self.config.token_by_hand)
            && self.stop.is_none()
        {
            self.read_config();
        }
    }

    fn read_config(&mut self) {
        if !self.tokens.reading {
            self.tokens.reading = true;
            self.out.push(Effect::Heartbeat(HeartbeatCommand::ReadConfigToken));
        }
    }

    /// What the configuration file says by now.
    pub(in crate::core::agent) fn on_config(
        &mut self,
        now: Now,
        url: Option<String>,
        token: Option<Secret>,
    ) {
        self.tokens.reading = false;
        if self.stop.is_some() {
            return;
        }
        let news = url.filter(|url| {
            !self.config.url_by_hand && self.was_never_served() && *url != self.config.relay_url
        });
        if let Some(url) = news {
            self.log(
                LogLevel::Info,
                "runner",
                format!("config.json names another relay by now: {url}"),
            );
            self.config.relay_url = url;
            self.relay_link.forget_attempts();
            self.tokens.attempt = 0;
            if self.timers.is_set(Timer::TokenRetry) {
                self.timers.set(Timer::TokenRetry, now.tick);
            }
            self.reconnect(now, "another relay");
        }
        let other = token.is_some() && token != self.tokens.given && !self.config.token_by_hand;
        if self.tokens.refused || (other && self.was_never_served()) {
            self.on_config_token(now, token);
        }
    }

    fn on_config_token(&mut self, now: Now, token: Option<Secret>) {
        if token.is_none() && self.was_never_served() && !self.config.token_by_hand {
            return self.seek_token(now, "wants a token, and there is none");
        }
        match token {
            Some(token) if Some(&token) != self.tokens.given.as_ref() => {
                self.log(LogLevel::Info, "runner", "found another token in the configuration file");
                self.tokens.given = Some(token);
                self.timers.clear(Timer::ConfigLook);
                self.make_token();
            }
            // The same one: it may work again, for example after the relay was restored. Its answer
            // tells when to look again.
            Some(_) if self.was_never_served() => self.make_token(),
            Some(_) => {
                self.timers.set(Timer::ConfigLook, now.tick + TOKEN_RETRY);
                self.make_token();
            }
            None => self.timers.set(Timer::ConfigLook, now.tick + TOKEN_RETRY),
        }
    }

    /// Looks into the configuration file again.
    pub(in crate::core::agent) fn on_look_due(&mut self) {
        self.timers.clear(Timer::ConfigLook);
        self.tokens.refused = true;
        self.read_config();
    }
}
