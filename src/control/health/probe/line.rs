//! What smtp, ftp and nntp have in common: lines, and replies that begin with a code of three digits (RFC 959 section 4.2,
//! RFC 5321 section 4.2, RFC 3977 section 3.2).

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{Asked, Bad, quoted};
use crate::control::health::spec::Codes;
use crate::control::health::transport::{Connect, Stream};

/// Bytes of a line (RFC 5321 section 4.5.3.1.5 allows 512).
const MAX_LINE: usize = 2048;
/// Lines of a reply.
const MAX_LINES: usize = 256;

/// A conversation by lines.
pub struct Talk {
    stream: BufReader<Box<dyn Stream>>,
}

/// A reply: its code and its last line.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    line: Vec<u8>,
}

impl Talk {
    pub async fn begin(asked: &Asked, by: &dyn Connect) -> Result<Talk, Bad> {
        let stream = by.stream(asked.target).await?;
        Ok(Talk { stream: BufReader::with_capacity(512, stream) })
    }

    /// Waits for the greeting, whose code must be one of `expect`.
    pub async fn greeting(&mut self, expect: &Codes) -> Result<Reply, Bad> {
        self.reply().await?.of(expect, "the greeting")
    }

    /// Says `line`, and waits for the reply.
    pub async fn ask(&mut self, line: &str) -> Result<Reply, Bad> {
        self.say(line).await?;
        self.reply().await
    }

    /// Says that this is all; what is replied to that does not matter.
    pub async fn quit(&mut self) -> Result<(), Bad> {
        self.say("QUIT").await
    }

    async fn say(&mut self, line: &str) -> Result<(), Bad> {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn reply(&mut self) -> Result<Reply, Bad> {
        let mut code = None;
        for _ in 0..MAX_LINES {
            let line = self.line().await?;
            match (parse(&line), code) {
                (Some((found, true)), None) => return Ok(Reply { code: found, line }),
                (Some((found, false)), None) => code = Some(found),
                (Some((found, true)), Some(first)) if found == first => return Ok(Reply { code: found, line }),
                // Lines between the first and the last may be anything (RFC 959 section 4.2).
                (_, Some(_)) => {}
                (None, None) => return Err(Bad::Server(format!("no reply code in {}", quoted(&line)))),
            }
        }
        Err(Bad::Server(format!("a reply of more than {MAX_LINES} lines")))
    }

    /// Without its end.
    async fn line(&mut self) -> Result<Vec<u8>, Bad> {
        let mut line = Vec::new();
        loop {
            let read = self.stream.fill_buf().await?;
            if read.is_empty() {
                return Err(Bad::server("closed before the answer was complete"));
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            line.extend_from_slice(&read[..end.unwrap_or(read.len())]);
            let used = end.map_or(read.len(), |end| end + 1);
            self.stream.consume(used);
            if end.is_some() {
                return Ok(line);
            }
            if line.len() > MAX_LINE {
                return Err(Bad::Server(format!("a line of more than {MAX_LINE} bytes: {}", quoted(&line))));
            }
        }
    }
}

impl Reply {
    /// This reply, if it has one of these codes; `what` it is a reply to.
    pub fn of(self, expect: &Codes, what: &str) -> Result<Reply, Bad> {
        if expect.contains(self.code) {
            return Ok(self);
        }
        Err(Bad::Server(format!("{what} is {}, not {expect}", quoted(&self.line))))
    }

    pub fn said(&self) -> String {
        quoted(&self.line).to_string()
    }
}

/// The code of a line, and whether it is the last one of its reply.
fn parse(line: &[u8]) -> Option<(u16, bool)> {
    let digits = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match line.get(3) {
        Some(b'-') => Some((code, false)),
        None | Some(b' ' | b'\r') => Some((code, true)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_replies() {
        let rows: [(&[u8], _); 8] = [
            (b"220 mail ESMTP\r", Some((220, true))),
            (b"220-first", Some((220, false))),
            (b"220", Some((220, true))),
            (b"220\r", Some((220, true))),
            (b"2200", None),
            (b"22", None),
            (b"SSH-2.0-x", None),
            (b"", None),
        ];
        for (line, expected) in rows {
            assert_eq!(parse(line), expected, "{line:?}");
        }
    }

    async fn reply_in(text: &[u8]) -> Result<Reply, Bad> {
        let (ours, mut theirs) = tokio::io::duplex(16 << 20);
        theirs.write_all(text).await.unwrap();
        drop(theirs);
        Talk { stream: BufReader::with_capacity(7, Box::new(ours)) }.reply().await
    }

    #[tokio::test]
    async fn a_reply_of_several_lines() {
        let reply = reply_in(b"220-one\r\n 220 two\r\n230 three\r\n220 last\r\n").await.unwrap();
        assert_eq!((reply.code, reply.said().as_str()), (220, "\"220 last\""));
        assert!(reply_in(b"220-one\r\n").await.is_err(), "closed in the middle");
        assert!(reply_in(&b"220-x\n".repeat(300)).await.is_err(), "no end of lines");
        assert!(reply_in(&b"2".repeat(1 << 20)).await.is_err(), "no end of a line");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, head in prop::sample::select(&["", "220", "220-", "220 "][..])) {
            let text = [head.as_bytes(), &bytes].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(reply_in(&text));
        }
    }
}
