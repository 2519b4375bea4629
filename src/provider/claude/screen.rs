//! What the terminal shows. Only frame, footer and the last lines are read: what the conversation
//! quotes must not count.

use crate::core::screen::{bright, plain};
use crate::core::session::Screen;

/// What stands in the input box.
#[derive(Debug, Clone, PartialEq)]
pub enum InputBox {
    /// Nothing, or only a hint of the program.
    Empty,
    /// Text; wrapped lines and line breaks look alike.
    Text(String),
    /// The mode in which what is submitted runs in a shell; perhaps with a command.
    Shell(String),
}

/// Something that waits for a key, and would take a paste or Enter for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialog {
    /// May this folder be trusted?
    Trust,
    /// May the key in the environment be used?
    ApiKey,
    /// Bypass mode must be accepted.
    Bypass,
    /// The first start's welcome, theme and login.
    Onboarding,
    /// No way to the vendor.
    NoNetwork,
    /// A message of another session is held.
    Held,
    /// May a tool be used?
    Permission,
    /// A question of the model, or a list to choose from.
    Other,
}

impl Dialog {
    /// One sentence with the cure, for a dialog that stands in the way of the start.
    pub fn cure(self) -> &'static str {
        match self {
            Dialog::Trust => {
                "it asks whether this folder can be trusted: answer once in a terminal (`claude` in that folder), or use an isolated profile (--isolated)"
            }
            Dialog::ApiKey => {
                "it asks whether the key in ANTHROPIC_API_KEY may be used: answer once in a terminal, or use an isolated profile (--isolated)"
            }
            Dialog::Bypass => {
                "it asks whether bypass mode is accepted: answer once in a terminal with --dangerously-skip-permissions, or use an isolated profile (--isolated)"
            }
            Dialog::Onboarding => {
                "it wants to be set up: start `claude` once in a terminal and log in, or use an isolated profile (--isolated) with ANTHROPIC_API_KEY"
            }
            Dialog::NoNetwork => {
                "it cannot reach its vendor: check the network, proxies and ANTHROPIC_BASE_URL"
            }
            Dialog::Held => {
                "it holds a message of another session: answer it with `agent-relay attach`"
            }
            Dialog::Permission | Dialog::Other => {
                "it shows a question: answer it with `agent-relay attach`"
            }
        }
    }
}

/// All that one picture of the terminal tells.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScreenState {
    /// Something waits for a key.
    pub dialog: Option<Dialog>,
    /// The input box, if it is there.
    pub input: Option<InputBox>,
    /// A turn runs.
    pub busy: bool,
    /// A person's draft is kept by the program and comes back by itself.
    pub stashed: bool,
    /// The API is asked again and again: what the line says.
    pub retrying: Option<String>,
}

/// Lines above the box that tell about the turn.
const STATUS_LINES: usize = 6;

impl ScreenState {
    /// Reads a screen.
    pub fn read(screen: &Screen) -> ScreenState {
        let coloured: Vec<&str> = screen.text.lines().collect();
        let lines: Vec<String> =
            coloured.iter().map(|line| plain(line).trim_end().to_string()).collect();
        let filled: Vec<&str> =
            lines.iter().map(String::as_str).filter(|line| !line.trim().is_empty()).collect();
        let last = |count: usize| &filled[filled.len().saturating_sub(count)..];
        let bottom = last(2).join("\n");
        let frame = frame(&lines);
        // Where the input box is, the conversation above it may quote whatever a dialog says.
        let boxed = frame.is_some_and(|(top, low)| {
            low > top + 1 && lines[top + 1].trim_start().starts_with(['❯', '!'])
        });
        let mut state =
            ScreenState { dialog: dialog(&filled, &bottom, boxed), ..Default::default() };
        let Some((top, low)) = frame else {
            return state;
        };
        let footer: String = lines[low + 1..].join("\n");
        if state.dialog.is_none() && !footer.contains("to navigate") {
            state.input = input(&lines[top + 1..low], &coloured[top + 1..low]);
        }
        let above: Vec<&String> =
            lines[..top].iter().filter(|line| !line.trim().is_empty()).collect();
        let above = &above[above.len().saturating_sub(STATUS_LINES)..];
        state.stashed = above.iter().any(|line| line.contains("draft stashed"));
        state.retrying = above
            .iter()
            .find(|line| line.contains("retrying in") && starts_with_glyph(line))
            .map(|line| line.trim().to_string());
        // The footer cannot be quoted; it hides this while text stands in the box, where the
        // registry has to tell.
        state.busy = footer.contains("esc to interrupt");
        state
    }

    /// Text may be put into the box.
    pub fn is_open(&self) -> bool {
        self.dialog.is_none() && self.input.is_some()
    }
}

/// A status line starts with an animated sign, never with the marks of the conversation.
fn starts_with_glyph(line: &str) -> bool {
    let first = line.trim_start().chars().next().unwrap_or(' ');
    "·✢✳✶✻✽*".contains(first)
}

fn is_rule(line: &str) -> bool {
    line.trim_start().starts_with("───")
}

/// The two rules of the input box: the last two on the screen.
fn frame(lines: &[String]) -> Option<(usize, usize)> {
    let low = lines.iter().rposition(|line| is_rule(line))?;
    let top = lines[..low].iter().rposition(|line| is_rule(line))?;
    Some((top, low))
}

fn input(lines: &[String], coloured: &[&str]) -> Option<InputBox> {
    let first = lines.first()?.trim_start();
    let is_shell = first.starts_with('!');
    if !first.starts_with('❯') && !is_shell && !first.starts_with("  ") {
        // A long draft shows only its end.
        return (!first.is_empty()).then(|| InputBox::Text(lines.join("\n")));
    }
    if is_shell {
        let command =
            lines.join("\n").trim_start().trim_start_matches(['!', '\u{a0}', ' ']).to_string();
        return Some(InputBox::Shell(command.trim_end().to_string()));
    }
    let strip = |line: &str| {
        line.trim_start().trim_start_matches(['❯', '\u{a0}', ' ']).trim_end().to_string()
    };
    let text =
        lines.iter().map(|line| strip(line)).collect::<Vec<_>>().join("\n").trim().to_string();
    // A hint is dimmed but for its first letter, which the cursor covers.
    let full = coloured
        .iter()
        .map(|line| strip(&bright(line)))
        .collect::<Vec<_>>()
        .join("\n")
        .trim()
        .to_string();
    let hinted = coloured
        .first()
        .is_some_and(|line| line.contains("\u{1b}[0;2m") || line.contains("\u{1b}[2m"))
        && full.is_empty();
    let queue_hint = text.starts_with("Press up to edit queued");
    Some(if text.is_empty() || hinted || queue_hint {
        InputBox::Empty
    } else {
        InputBox::Text(text)
    })
}

fn dialog(filled: &[&str], bottom: &str, boxed: bool) -> Option<Dialog> {
    let recent = filled[filled.len().saturating_sub(24)..].join("\n");
    let known: [(&str, Dialog); 7] = [
        ("Yes, I trust this folder", Dialog::Trust),
        ("Do you want to use this API key?", Dialog::ApiKey),
        ("Yes, I accept", Dialog::Bypass),
        ("Unable to connect to Anthropic services", Dialog::NoNetwork),
        ("Select login method", Dialog::Onboarding),
        ("Choose the text style", Dialog::Onboarding),
        ("Held message from another session", Dialog::Held),
    ];
    let waits = bottom.contains("Esc to cancel")
        || bottom.contains("Enter to confirm")
        || bottom.contains("Enter to select");
    let found = known.iter().find(|(text, _)| recent.contains(text)).map(|(_, dialog)| *dialog);
    match found {
        _ if boxed && !waits => None,
        Some(Dialog::NoNetwork | Dialog::Onboarding) if !bottom.contains("mode on") => found,
        Some(Dialog::Held)
            if filled.iter().rev().take(8).any(|line| line.contains("Deny — drop it")) =>
        {
            found
        }
        _ if !waits => None,
        Some(dialog) => Some(dialog),
        None if recent.contains("Do you want to") => Some(Dialog::Permission),
        None => Some(Dialog::Other),
    }
}
