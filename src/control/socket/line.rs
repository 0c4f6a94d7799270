//! Lines of bounded length.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::net::unix::OwnedReadHalf;

/// Reads lines from a client.
pub struct Lines<R = BufReader<OwnedReadHalf>> {
    reader: R,
    line: Vec<u8>,
    max: usize,
}

/// What the client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Text(Vec<u8>),
    /// More bytes than are allowed, without an end of line; the rest of it is still to come.
    TooLong,
    End,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub fn new(reader: R, max: usize) -> Lines<R> {
        Lines { reader, line: Vec::new(), max }
    }

    /// The next line, without its end; what stands before the end of the stream counts as a line. May be cancelled.
    pub async fn next(&mut self) -> io::Result<Line> {
        loop {
            let read = self.reader.fill_buf().await?;
            if read.is_empty() {
                let rest = std::mem::take(&mut self.line);
                return Ok(if rest.is_empty() { Line::End } else { Line::Text(rest) });
            }
            let end = read.iter().position(|&byte| byte == b'\n');
            let part = &read[..end.unwrap_or(read.len())];
            if self.line.len() + part.len() > self.max {
                return Ok(Line::TooLong);
            }
            self.line.extend_from_slice(part);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Line::Text(std::mem::take(&mut self.line)));
            }
        }
    }

    /// Waits until the client sends something or goes, and takes nothing of it.
    pub async fn wait(&mut self) -> io::Result<()> {
        self.reader.fill_buf().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(input: &[u8], max: usize) -> Vec<Line> {
        // A tiny buffer, so that lines arrive in pieces.
        let mut lines = Lines::new(BufReader::with_capacity(3, input), max);
        let mut all = Vec::new();
        loop {
            let line = lines.next().await.unwrap();
            let last = !matches!(line, Line::Text(_));
            all.push(line);
            if last {
                return all;
            }
        }
    }

    fn text(line: &str) -> Line {
        Line::Text(line.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn splits_at_ends_of_line() {
        assert_eq!(
            lines(b"one\n\nthree\nrest", 8).await,
            [text("one"), text(""), text("three"), text("rest"), Line::End]
        );
        assert_eq!(lines(b"", 8).await, [Line::End]);
    }

    #[tokio::test]
    async fn a_line_of_the_limit_passes_and_one_byte_more_does_not() {
        assert_eq!(lines(b"12345678\n", 8).await, [text("12345678"), Line::End]);
        assert_eq!(lines(b"1\n123456789\n", 8).await, [text("1"), Line::TooLong]);
    }
}
