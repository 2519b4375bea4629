//! Small help with texts that several providers need.

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
