//! Bodies of requests: by length or in chunks, bounded before anything is kept (part of the gate,
//! not a thread).

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// By Content-Length: this many bytes.
    Length(usize),
    /// Chunked transfer coding of HTTP/1.1 (RFC 9112).
    Chunked,
}

/// What has been read of a body.
#[derive(Debug)]
pub(super) struct BodyReader {
    step: Step,
    bytes_max: usize,
    overhead: usize,
    /// Bytes as read, not decoded yet.
    raw: Vec<u8>,
    done: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// This many bytes are still to come, then the body is complete.
    Rest(usize),
    /// The line with the size of the next chunk.
    Size,
    /// This many bytes of a chunk and its line end are still to come.
    Chunk(usize),
    /// Lines behind the last chunk; an empty one ends them.
    Trailer,
    Over,
}

/// Whether a body is complete.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Complete,
    Bad(u16, &'static str, &'static str),
}

/// Longest line of a chunk's size with its extensions, and of a trailer.
const LINE_BYTES_MAX: usize = 1024;
/// Bytes of all lines that carry no body: endless chunks of one byte, or endless trailers, end
/// here. A body may have some more for what it brings.
const OVERHEAD_MAX: usize = 4 << 10;
/// Bytes of a body for each further byte of such lines.
const BYTES_PER_OVERHEAD: usize = 8;

impl BodyReader {
    /// `first`: bytes that came together with the head.
    pub fn new(framing: Framing, bytes_max: usize, first: &[u8]) -> BodyReader {
        let step = match framing {
            Framing::Length(0) => Step::Over,
            Framing::Length(size) => Step::Rest(size),
            Framing::Chunked => Step::Size,
        };
        BodyReader { step, bytes_max, overhead: 0, raw: first.to_vec(), done: Vec::new() }
    }

    /// The buffer that read bytes go into.
    pub fn input(&mut self) -> &mut Vec<u8> {
        &mut self.raw
    }

    /// Bytes of memory that it holds.
    pub fn held(&self) -> usize {
        self.raw.capacity() + self.done.capacity()
    }

    /// Decodes what was read.
    pub fn advance(&mut self) -> Progress {
        let mut at = 0;
        let progress = loop {
            match self.step(at) {
                Ok(used) => at += used,
                Err(progress) => break progress,
            }
        };
        self.raw.drain(..at);
        progress
    }

    /// One step from that byte on: how many were used, or why it does not go on.
    fn step(&mut self, at: usize) -> Result<usize, Progress> {
        let input = &self.raw[at..];
        match self.step {
            Step::Over => Err(Progress::Complete),
            Step::Rest(0) => {
                self.step = Step::Over;
                Ok(0)
            }
            Step::Rest(_) | Step::Chunk(3..) if input.is_empty() => Err(Progress::More),
            Step::Rest(left) => {
                let take = left.min(input.len());
                self.done.extend_from_slice(&input[..take]);
                self.step = Step::Rest(left - take);
                Ok(take)
            }
            Step::Chunk(left @ 3..) => {
                let take = (left - 2).min(input.len());
                self.done.extend_from_slice(&input[..take]);
                self.step = Step::Chunk(left - take);
                Ok(take)
            }
            Step::Chunk(_) => match input {
                [b'\r', b'\n', ..] => {
                    self.step = Step::Size;
                    Ok(2)
                }
                [] | [b'\r'] => Err(Progress::More),
                _ => Err(Progress::Bad(400, "bad_chunk", "a chunk is longer than it said")),
            },
            Step::Size => self.chunk_size(at),
            Step::Trailer => self.trailer(at),
        }
    }

    fn chunk_size(&mut self, at: usize) -> Result<usize, Progress> {
        let input = &self.raw[at..];
        match httparse::parse_chunk_size(&input[..input.len().min(LINE_BYTES_MAX)]) {
            Ok(httparse::Status::Complete((used, size))) => {
                self.overhead += used;
                let most = OVERHEAD_MAX + self.done.len() / BYTES_PER_OVERHEAD;
                let bloated = self.overhead > most && !crate::planted::is("endless-chunks");
                if bloated || size > self.bytes_max.saturating_sub(self.done.len()) as u64 {
                    return Err(Progress::Bad(
                        413,
                        "body_too_large",
                        "the request body is too large",
                    ));
                }
                self.step = if size == 0 { Step::Trailer } else { Step::Chunk(size as usize + 2) };
                Ok(used)
            }
            Ok(httparse::Status::Partial) if input.len() < LINE_BYTES_MAX => Err(Progress::More),
            _ => Err(Progress::Bad(400, "bad_chunk", "the size of a chunk cannot be read")),
        }
    }

    fn trailer(&mut self, at: usize) -> Result<usize, Progress> {
        let input = &self.raw[at..];
        let Some(end) = input.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') else {
            return Err(if input.len() < LINE_BYTES_MAX {
                Progress::More
            } else {
                Progress::Bad(400, "bad_chunk", "a line behind the last chunk is too long")
            });
        };
        self.overhead += end + 1;
        if self.overhead > OVERHEAD_MAX {
            return Err(Progress::Bad(
                413,
                "body_too_large",
                "too many lines follow the last chunk",
            ));
        }
        if end == 0 || input[..end] == *b"\r" {
            self.step = Step::Over;
        }
        Ok(end + 1)
    }

    /// The body, and the bytes behind it.
    pub fn finish(self) -> (Vec<u8>, Vec<u8>) {
        (self.done, self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a text in pieces of every size; all must give the same.
    fn read(framing: Framing, text: &str) -> Result<(String, String), u16> {
        let mut outcomes: Vec<Result<(String, String), u16>> = Vec::new();
        for piece in [1, 2, 3, 7, text.len().max(1)] {
            let mut body = BodyReader::new(framing, 1000, b"");
            let mut outcome = None;
            let mut left = text.as_bytes();
            while outcome.is_none() {
                match body.advance() {
                    Progress::Complete => {
                        let (body, mut rest) = std::mem::replace(
                            &mut body,
                            BodyReader::new(Framing::Length(0), 0, b""),
                        )
                        .finish();
                        rest.extend_from_slice(left);
                        let text = |bytes| String::from_utf8(bytes).expect("text");
                        outcome = Some(Ok((text(body), text(rest))));
                    }
                    Progress::Bad(status, ..) => outcome = Some(Err(status)),
                    Progress::More if left.is_empty() => outcome = Some(Err(0)),
                    Progress::More => {
                        let (now, later) = left.split_at(piece.min(left.len()));
                        body.input().extend_from_slice(now);
                        left = later;
                    }
                }
            }
            outcomes.extend(outcome);
        }
        assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "{text:?}: {outcomes:?}");
        outcomes.remove(0)
    }

    #[test]
    fn bodies_are_read_in_every_cut() {
        let whole = |body: &str, rest: &str| Ok((body.to_string(), rest.to_string()));
        for (framing, text, want) in [
            (Framing::Length(0), "GET", whole("", "GET")),
            (Framing::Length(3), "abcdef", whole("abc", "def")),
            (Framing::Length(3), "ab", Err(0)),
            (Framing::Chunked, "0\r\n\r\nGET", whole("", "GET")),
            (
                Framing::Chunked,
                "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: 1\r\n\r\nrest",
                whole("abcde", "rest"),
            ),
            (Framing::Chunked, "3\r\nabcd\r\n0\r\n\r\n", Err(400)),
            (Framing::Chunked, "zz\r\nabc\r\n", Err(400)),
            (Framing::Chunked, "-1\r\n", Err(400)),
            (Framing::Chunked, "ffffffffffffffffff\r\n", Err(400)),
            (Framing::Chunked, "3e9\r\n", Err(413)),
            (Framing::Chunked, "3\r\nabc\r\n3e6\r\n", Err(413)),
            (Framing::Chunked, &format!("1;{}\r\na\r\n", "x".repeat(900)).repeat(400), Err(413)),
            (Framing::Chunked, &format!("0\r\n{}", "x: y\r\n".repeat(50_000)), Err(413)),
        ] {
            assert_eq!(read(framing, text), want, "{text:?}");
        }
    }
}
