//! Bytes to whole lines; keeps the unfinished tail. Of a line beyond the limit only the head is
//! handed on, which tells what it was, and it is counted.

/// Longest line that is read, bytes. Real agents send lines of 560 kB.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a longer line that are handed on: who asks what, not with which texts.
pub const HEAD_BYTES: usize = 64 << 10;

/// Cuts a byte stream into lines.
#[derive(Debug)]
pub struct Lines {
    tail: Vec<u8>,
    skipping: bool,
    bytes_max: usize,
    /// Lines that were longer than the limit.
    pub oversized: u64,
}

impl Default for Lines {
    fn default() -> Lines {
        Lines::up_to(LINE_BYTES_MAX)
    }
}

impl Lines {
    /// Lines of so many bytes at most.
    pub fn up_to(bytes_max: usize) -> Lines {
        Lines { tail: Vec::new(), skipping: false, bytes_max, oversized: 0 }
    }

    /// Takes bytes and hands every complete line to `each`, without its line break.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..at], &bytes[at + 1..]);
            if self.tail.is_empty() {
                each(line);
            } else {
                if !std::mem::replace(&mut self.skipping, false) {
                    self.tail.extend_from_slice(line);
                }
                each(&self.tail);
                self.tail.clear();
                self.tail.shrink_to(64 << 10);
            }
            bytes = rest;
        }
        if self.skipping {
            return;
        }
        if self.tail.len() + bytes.len() > self.bytes_max {
            let missing = HEAD_BYTES.saturating_sub(self.tail.len()).min(bytes.len());
            self.tail.extend_from_slice(&bytes[..missing]);
            self.tail.truncate(HEAD_BYTES);
            self.tail.shrink_to_fit();
            self.skipping = true;
            self.oversized += 1;
            return;
        }
        self.tail.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_gives_the_same_lines() {
        let text = b"one\n\ntwo two\nthree";
        for size in 1..text.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for piece in text.chunks(size) {
                lines.push(piece, |line| seen.push(String::from_utf8_lossy(line).into_owned()));
            }
            assert_eq!(seen, ["one", "", "two two"], "pieces of {size}");
        }
    }

    #[test]
    fn of_an_endless_line_the_head_is_kept_in_bounded_memory() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for _ in 0..20 {
            lines.push(&vec![b'x'; 1 << 20], |_| panic!("it has no end yet"));
            assert!(lines.tail.capacity() <= LINE_BYTES_MAX + (1 << 20));
        }
        assert!(lines.tail.capacity() <= 2 * HEAD_BYTES);
        lines.push(b"tail\nnext\n", |line| seen.push(line.to_vec()));
        assert_eq!((seen.len(), lines.oversized), (2, 1));
        assert_eq!(seen[0], vec![b'x'; HEAD_BYTES]);
        assert_eq!(seen[1], b"next");
    }
}
