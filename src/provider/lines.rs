//! Bytes to whole lines; keeps the unfinished tail. A line beyond the limit is skipped to its end
//! and counted.

/// Longest line that is read, bytes. Real agents send lines of 560 kB.
pub const LINE_BYTES_MAX: usize = 16 << 20;

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
            if self.skipping {
                self.skipping = false;
            } else if self.tail.is_empty() {
                each(line);
            } else {
                self.tail.extend_from_slice(line);
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
            self.tail = Vec::new();
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
    fn an_endless_line_is_skipped_in_bounded_memory() {
        let (mut lines, mut seen) = (Lines::default(), 0);
        for _ in 0..20 {
            lines.push(&vec![b'x'; 1 << 20], |_| seen += 1);
        }
        lines.push(b"tail\nnext\n", |line| {
            assert_eq!(line, b"next");
            seen += 1;
        });
        assert_eq!((seen, lines.oversized), (1, 1));
        assert!(lines.tail.capacity() <= LINE_BYTES_MAX + (1 << 20));
    }
}
