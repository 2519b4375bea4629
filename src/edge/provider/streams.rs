//! Input and output of the provider: its pipes, and what the terminal reports.

use std::io::{Read, Write};
use std::time::Instant;

use super::process::{end_everything, last_words};
use super::reply_socket::ReplySocket;
use super::stop::Stop;
use super::tmux::TmuxEvent;
use super::websocket::Link;
use super::{Provider, READ_BYTES, Ready, Running, TERM_WAIT};
use crate::core::session::{Input, ServerAddress};

/// Bytes of standard error that are kept for the report of an exit.
const STDERR_KEPT: usize = 4096;

impl Running {
    /// One attempt to connect, instead of an earlier connection.
    pub(super) fn connect(&mut self, to: &ServerAddress) -> Input {
        self.link = None;
        if let ServerAddress::Port(port) = to {
            self.heard.own_port = Some(*port);
        }
        match Link::connect(to, self.token.as_ref()) {
            Ok(link) => {
                self.link = Some(link);
                Input::Connected
            }
            Err(reason) => Input::Disconnected(reason),
        }
    }
}

impl Provider {
    /// What came to its sockets, and the end of the program beside it.
    pub(super) fn look_at_sockets(&mut self, ready: &[Ready]) -> bool {
        if ready.contains(&Ready::Replies) {
            let replies = self
                .running
                .as_mut()
                .and_then(|running| running.reply_socket.as_mut())
                .map(ReplySocket::read_lines)
                .unwrap_or_default();
            if !self.feed_all(replies) {
                return false;
            }
        }
        let has_more = |running: &Running| running.link.as_ref().is_some_and(|link| link.has_more);
        if (ready.contains(&Ready::Link) || self.running.as_ref().is_some_and(has_more))
            && !self.read_link()
        {
            return false;
        }
        !ready.contains(&Ready::Foreground) || self.on_foreground_ended()
    }

    pub(super) fn read_link(&mut self) -> bool {
        let Some(link) = self.running.as_mut().and_then(|running| running.link.as_mut()) else {
            return true;
        };
        let (texts, alive) = link.read();
        self.feed_all(texts) && alive.map_or_else(|reason| self.lose_link(reason), |()| true)
    }

    pub(super) fn send_text(&mut self, text: String) -> bool {
        let link = self.running.as_mut().and_then(|running| running.link.as_mut());
        let sent = link.map_or(Ok(()), |link| link.send(text));
        sent.map_or_else(|reason| self.lose_link(reason), |()| true)
    }

    fn lose_link(&mut self, reason: String) -> bool {
        let link = self.running.as_mut().and_then(|running| running.link.take());
        // It may have been replaced while its last texts were heard.
        link.is_none() || self.feed(Input::Disconnected(reason))
    }

    pub(super) fn read_output(&mut self) -> bool {
        let Some(running) = &mut self.running else {
            return true;
        };
        let Some(tmux) = &mut running.tmux else {
            return self.read_stdout();
        };
        let mut buffer = vec![0u8; READ_BYTES];
        let told = match tmux.output.read(&mut buffer) {
            Ok(size @ 1..) => tmux.parse(&buffer[..size]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Vec::new(),
            _ => {
                // The server is gone or throws us out: so does the program in it, and no last look
                // will be answered.
                running.tmux = None;
                running.dying = running.dying.map(|_| Instant::now());
                end_everything(&running.provider_session, running.server);
                Vec::new()
            }
        };
        self.on_told(told)
    }

    fn on_told(&mut self, told: Vec<TmuxEvent>) -> bool {
        for told in told {
            let Some(running) = &mut self.running else { return true };
            let input = match told {
                TmuxEvent::Drawn => {
                    running.heard.output += 1;
                    Input::ScreenChanged
                }
                TmuxEvent::Screen(screen, code) if running.dying.is_some() => {
                    match (screen.dead, &mut running.tmux) {
                        (true, _) => {
                            running.exit = code.or(Some(0));
                            running.last_words = last_words(&screen);
                        }
                        // The server has not noticed yet; it is asked until the limit.
                        (false, Some(tmux)) => {
                            let _ = tmux.last_look_again();
                        }
                        (false, None) => {}
                    }
                    Input::ScreenCaptured(screen)
                }
                TmuxEvent::Screen(screen, _) => Input::ScreenCaptured(screen),
                TmuxEvent::Failed(text) => Input::TerminalFailed(text),
                TmuxEvent::Pane(_) | TmuxEvent::Pasted => continue,
            };
            if !self.feed(input) {
                return false;
            }
        }
        true
    }

    pub(super) fn write(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        while let (Some(stdin), false) = (&mut running.stdin, running.unwritten.is_empty()) {
            let (front, _) = running.unwritten.as_slices();
            match stdin.write(front) {
                Ok(0) => return,
                Ok(size) => {
                    running.unwritten.drain(..size);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    running.stdin = None; // it reads no more; its exit follows
                    return;
                }
            }
        }
        if running.stop.is_some() {
            running.stdin = None;
        }
    }

    pub(super) fn read_stdout(&mut self) -> bool {
        let mut buffer = vec![0u8; READ_BYTES];
        let Some(running) = &mut self.running else {
            return true;
        };
        let Some(stdout) = &mut running.stdout else {
            return true;
        };
        match stdout.read(&mut buffer) {
            Ok(0) => {
                running.stdout = None;
                if running.stop.is_none() {
                    // Nothing can come from it any more: if it does not end by itself, it is ended.
                    let now = Instant::now();
                    running
                        .last_words
                        .extend_from_slice(b"\n[agent-relay] the agent closed its standard output");
                    running.stop = Some(Stop {
                        term_at: now + TERM_WAIT,
                        kill_at: now + TERM_WAIT * 2,
                        termed: false,
                        killed: false,
                    });
                }
                true
            }
            Ok(size) => {
                running.heard.output += size as u64;
                self.feed(Input::Bytes(buffer[..size].to_vec()))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                ) =>
            {
                true
            }
            Err(_) => {
                running.stdout = None;
                true
            }
        }
    }

    pub(super) fn read_stderr(&mut self) -> bool {
        let mut buffer = [0u8; 4096];
        let Some(running) = &mut self.running else {
            return true;
        };
        let Some(stderr) = &mut running.stderr else {
            return true;
        };
        match stderr.read(&mut buffer) {
            Ok(0) => running.stderr = None,
            Ok(size) => {
                running.heard.output += size as u64;
                running.last_words.extend_from_slice(&buffer[..size]);
                let surplus = running.last_words.len().saturating_sub(STDERR_KEPT);
                running.last_words.drain(..surplus);
                // Where it listens is said there.
                if running.token.is_some() && running.link.is_none() {
                    return self.feed(Input::Errors(buffer[..size].to_vec()));
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                ) => {}
            Err(_) => running.stderr = None,
        }
        true
    }
}
