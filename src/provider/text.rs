//! Small help with texts that several providers and their callers need.

/// Appends as much as the bound leaves room for, at a character border.
pub fn push_bounded(to: &mut String, text: &str, bytes_max: usize) {
    let room = bytes_max.saturating_sub(to.len());
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    to.push_str(&text[..end]);
}

/// The first characters of a text, on one line.
pub fn one_line(text: &str, chars_max: usize) -> String {
    let flat: String = text.chars().take(chars_max).collect();
    flat.replace(['\n', '\r'], " ")
}

/// One word of a shell's command line, whatever stands in it.
pub fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// One word of a command for tmux that expands formats in it, whatever stands in it. It is read
/// twice: as a word of the command, which a shell's quotes keep whole, and as a format.
pub fn tmux_quoted(word: &str) -> String {
    let doubled = if crate::planted::is("bare-format") { "#" } else { "##" };
    shell_quoted(&word.replace('#', doubled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_script_stay_whole() {
        assert_eq!(shell_quoted("it's $HOME"), "'it'\\''s $HOME'");
        assert_eq!(tmux_quoted("/it's #{pid}/#S"), "'/it'\\''s ##{pid}/##S'");
    }
}
