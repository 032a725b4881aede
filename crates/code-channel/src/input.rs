//! Splits what is written to the channel into inputs: codes, session documents, and anything else.

use std::time::Duration;

use secrecy::ExposeSecret;
use zeroize::{Zeroize, Zeroizing};

use crate::note::{Members, Note};
use aws_session::{
    credentials::{Credentials, parse_document},
    token_code::TokenCode,
};

/// More than any session document has. The rest of a longer input is counted and dropped.
const LIMIT_BYTES: usize = 16 * 1024;

/// The byte order mark that some tools write first; it is ignored.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// How long to wait for more after six digits without a line end.
const CODE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a writer may pause within one input.
const INPUT_PATIENCE: Duration = Duration::from_secs(10);

/// An input of the channel.
#[derive(Debug)]
pub enum Input {
    /// An MFA code, and what was said beside it.
    TokenCode(TokenCode, Note),
    /// A session that was opened on another machine, and what was said beside it.
    Session(Credentials, Note),
    /// Anything else, described by length and kind, never by content.
    Refused(String),
    /// Something was written, but another process has read it.
    Vanished,
}

/// Collects bytes until an input is complete.
pub(super) struct Assembler {
    /// It never grows, because that would leave copies of secrets in memory.
    buffer: Zeroizing<Vec<u8>>,
    /// Bytes of the current input that were dropped because the buffer was full.
    dropped_bytes: usize,
    /// A document ends with its brace; the line end after it is not an input.
    after_document: bool,
    braces: Braces,
}

/// Finds the brace that ends a JSON document, even if the rest is not valid JSON. Reads each byte once.
#[derive(Default)]
struct Braces {
    depth: usize,
    in_string: bool,
    after_backslash: bool,
}

impl Braces {
    /// Returns true if `byte` ends the document.
    fn end_with(&mut self, byte: u8) -> bool {
        let after_backslash = std::mem::take(&mut self.after_backslash);
        match byte {
            b'"' if !after_backslash => self.in_string = !self.in_string,
            b'\\' if self.in_string => self.after_backslash = !after_backslash,
            b'{' if !self.in_string => self.depth += 1,
            b'}' if !self.in_string => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

impl Assembler {
    pub fn new() -> Self {
        Self {
            buffer: Zeroizing::new(Vec::with_capacity(LIMIT_BYTES)),
            dropped_bytes: 0,
            after_document: false,
            braces: Braces::default(),
        }
    }

    /// Adds bytes and returns the inputs that they complete. Consecutive invalid inputs count as one,
    /// so that 4 KiB of garbage is not forty lines in the log.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Input> {
        let mut inputs = Vec::new();
        let mut refused_bytes = 0;
        for byte in bytes {
            let Some(input) = self.push_byte(*byte) else {
                continue;
            };
            match input {
                Parsed::Good(input) => inputs.push(input),
                Parsed::Refused { why, length_bytes } => {
                    refused_bytes += length_bytes;
                    match inputs.last_mut() {
                        Some(Input::Refused(last)) => {
                            *last = format!(
                                "{refused_bytes} bytes in several lines, none of them a code"
                            );
                        }
                        _ => {
                            refused_bytes = length_bytes;
                            inputs.push(Input::Refused(why));
                        }
                    }
                }
            }
        }
        inputs
    }

    /// Ends the current input, because the writer has closed the FIFO.
    pub fn finish(&mut self) -> Option<Input> {
        self.is_unfinished().then(|| self.take().into_input())
    }

    /// Ends the current input, because the writer has paused. Six digits are a code even without a line
    /// end, as for the Go program.
    pub fn give_up(&mut self) -> Option<Input> {
        match self.finish()? {
            Input::Refused(why) => Some(Input::Refused(format!("{why}, without a line end"))),
            input => Some(input),
        }
    }

    pub fn is_unfinished(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// How long the writer may pause before [`Self::give_up`].
    pub fn patience(&self) -> Duration {
        if TokenCode::is_code(&self.buffer) {
            CODE_PATIENCE
        } else {
            INPUT_PATIENCE
        }
    }

    fn push_byte(&mut self, byte: u8) -> Option<Parsed> {
        if self.after_document && byte.is_ascii_whitespace() {
            return None;
        }
        self.after_document = false;
        if self.buffer.is_empty() && byte == b'\n' {
            return Some(Parsed::Refused {
                why: "an empty line".into(),
                length_bytes: 1,
            });
        }
        if self.buffer.len() < LIMIT_BYTES {
            self.buffer.push(byte);
        } else {
            self.dropped_bytes += 1;
        }
        if self.buffer.as_slice() == BYTE_ORDER_MARK {
            self.buffer.clear();
            return None;
        }
        let is_document = self.buffer.first() == Some(&b'{');
        let is_whole = if is_document {
            self.braces.end_with(byte)
        } else {
            byte == b'\n'
        };
        self.after_document = is_whole && is_document;
        is_whole.then(|| self.take())
    }

    fn take(&mut self) -> Parsed {
        let whole = Parsed::read(&self.buffer, self.dropped_bytes);
        self.buffer.zeroize();
        self.dropped_bytes = 0;
        self.braces = Braces::default();
        whole
    }
}

enum Parsed {
    Good(Input),
    Refused { why: String, length_bytes: usize },
}

impl Parsed {
    fn read(bytes: &[u8], dropped_bytes: usize) -> Self {
        let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let length_bytes = bytes.len() + dropped_bytes;
        // Authenticator apps show "123 456".
        let mut digits = Zeroizing::new(Vec::with_capacity(line.len()));
        digits.extend(line.iter().filter(|byte| **byte != b' '));
        if let Some(code) = TokenCode::new(&digits) {
            return Self::Good(Input::TokenCode(code, Note::default()));
        }
        if line.first() == Some(&b'{') && dropped_bytes == 0 {
            return match read_document(line) {
                Ok(input) => Self::Good(input),
                Err(why) => Self::Refused { why, length_bytes },
            };
        }
        Self::Refused {
            why: kind(line, dropped_bytes),
            length_bytes,
        }
    }

    fn into_input(self) -> Input {
        match self {
            Self::Good(input) => input,
            Self::Refused { why, .. } => Input::Refused(why),
        }
    }
}

/// Reads a code or a session, with a note. The error says what is wrong and never quotes the document.
fn read_document(json: &[u8]) -> Result<Input, String> {
    let Ok(mut members) = serde_json::from_slice::<Members>(json) else {
        return Ok(Input::Session(parse_document(json)?, Note::default()));
    };
    match members.token_code.take() {
        Some(code) => {
            let code = TokenCode::new(code.expose_secret().as_bytes())
                .ok_or("a document whose TokenCode is not six digits")?;
            Ok(Input::TokenCode(code, members.note()?))
        }
        None => Ok(Input::Session(parse_document(json)?, members.note()?)),
    }
}

/// Describes an invalid input without revealing its content.
fn kind(line: &[u8], dropped_bytes: usize) -> String {
    let length = line.len() + dropped_bytes;
    if line.is_empty() {
        "an empty line".into()
    } else if line.iter().all(u8::is_ascii_digit) {
        format!("{length} digits instead of six")
    } else if line
        .iter()
        .all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n'))
    {
        format!("{length} characters that are not six digits")
    } else {
        format!("{length} bytes of binary data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(inputs: Vec<Input>) -> Vec<String> {
        inputs
            .into_iter()
            .map(|input| match input {
                Input::TokenCode(code, note) => format!("code {}{}", code.expose(), of(&note)),
                Input::Session(session, note) => {
                    format!("session {}{}", session.access_key_id, of(&note))
                }
                Input::Refused(why) => why,
                Input::Vanished => "vanished".into(),
            })
            .collect()
    }

    fn of(note: &Note) -> String {
        let reason = note.reason.as_ref().map(|reason| format!(", {reason}"));
        reason.unwrap_or_default()
    }

    #[test]
    fn codes_and_sessions_may_come_with_a_note() {
        let note = Note {
            reason: Some("ticket 4711".into()),
            ..Note::default()
        };
        let code = TokenCode::new(b"111676").unwrap();
        assert_eq!(
            written(&note.document_of_code(&code)),
            ["code 111676, ticket 4711"]
        );
        let session = Credentials {
            access_key_id: "ASIAX".into(),
            secret_access_key: "s".into(),
            session_token: Some("t".into()),
            expiration_unix_seconds: Some(4_000_000_000),
        };
        assert_eq!(
            written(&note.document_of_session(&session)),
            ["session ASIAX, ticket 4711"]
        );
        let long = format!(
            "{{\"TokenCode\":\"111676\",\"Reason\":\"{}\"}}",
            "x".repeat(300)
        );
        assert_eq!(
            written(long.as_bytes()),
            ["a Reason of more than 256 bytes"]
        );
        assert_eq!(
            written(b"{\"TokenCode\":\"1116\"}"),
            ["a document whose TokenCode is not six digits"]
        );
    }

    fn written(bytes: &[u8]) -> Vec<String> {
        let mut assembler = Assembler::new();
        let mut inputs = assembler.push(bytes);
        inputs.extend(assembler.finish());
        describe(inputs)
    }

    #[test]
    fn six_digits_are_a_code_with_any_line_end_or_none() {
        for bytes in [
            "111676",
            "111676\n",
            "111676\r\n",
            "111 676\n",
            " 11 16 76 ",
        ] {
            assert_eq!(written(bytes.as_bytes()), ["code 111676"], "{bytes:?}");
        }
    }

    #[test]
    fn a_code_may_come_in_pieces() {
        let mut assembler = Assembler::new();
        assert!(assembler.push(b"11").is_empty());
        assert!(assembler.is_unfinished());
        assert_eq!(describe(assembler.push(b"1676\n")), ["code 111676"]);
        assert!(!assembler.is_unfinished());
    }

    #[test]
    fn invalid_inputs_are_described_by_kind_and_length() {
        for (bytes, kind) in [
            (&b"\n"[..], "an empty line"),
            (b"11167\n", "5 digits instead of six"),
            (b"1116760\n", "7 digits instead of six"),
            (b"letters\n", "7 characters that are not six digits"),
            (b"11167O\n", "6 characters that are not six digits"),
            (b"111 67\n", "6 characters that are not six digits"),
            (b"111\t676\n", "7 characters that are not six digits"),
            (b"\x00\x01\xff\n", "3 bytes of binary data"),
            ("１１１６７６\n".as_bytes(), "18 bytes of binary data"),
            (b"{\"a\":1}\n", "a session document without Expiration"),
        ] {
            assert_eq!(
                written(bytes).first().map(String::as_str),
                Some(kind),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn two_writers_make_two_inputs() {
        assert_eq!(written(b"111676\n222333\n"), ["code 111676", "code 222333"]);
        assert_eq!(
            written(b"nonsense\n222333\n"),
            ["8 characters that are not six digits", "code 222333"]
        );
    }

    #[test]
    fn consecutive_invalid_lines_are_one_event() {
        assert_eq!(
            written(&b"x\n".repeat(2048)),
            ["4096 bytes in several lines, none of them a code"]
        );
        assert_eq!(written(&[b'7'; 4096]), ["4096 digits instead of six"]);
        assert_eq!(written(&[0xff; 100_000]), ["100000 bytes of binary data"]);
    }

    #[test]
    fn a_code_after_invalid_input_is_accepted() {
        assert_eq!(
            written(b"a\nb\n111676\nc\n").get(1).map(String::as_str),
            Some("code 111676")
        );
    }

    #[test]
    fn a_document_may_span_lines_and_come_in_pieces() {
        let json = "{\n  \"Credentials\": {\n \"AccessKeyId\": \"ASIAX\", \"SecretAccessKey\": \"a}\",\n\
                    \"SessionToken\": \"t\", \"Expiration\": \"2099-01-01T00:00:00Z\"\n }\n}\n";
        let mut assembler = Assembler::new();
        let inputs: Vec<_> = json
            .as_bytes()
            .chunks(7)
            .flat_map(|chunk| assembler.push(chunk))
            .collect();
        assert_eq!(describe(inputs), ["session ASIAX"]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(written("\u{feff}111676\n".as_bytes()), ["code 111676"]);
        assert_eq!(
            written("\u{feff}{\"a\":1}".as_bytes()),
            ["a session document without Expiration"]
        );
    }

    #[test]
    fn a_document_ends_with_its_closing_brace() {
        for bytes in [
            &br#"{"a":"}"}111676"#[..],
            br#"{"a":"{"}111676"#,
            br#"{\"a}"}111676"#,
            br#"{"a\"}":{}}{"b":"\\"}111676"#,
            br#"{"a":[}111676"#,
            b"{}{}{}111676",
        ] {
            let inputs = written(bytes);
            assert_eq!(inputs.len(), 2, "{inputs:?}");
            assert_eq!(inputs[1], "code 111676");
        }
    }

    #[test]
    fn a_long_session_is_read_and_no_input_makes_the_buffer_grow() {
        let token = "t".repeat(16_000);
        let document = format!(
            r#"{{"AccessKeyId":"ASIAX","SecretAccessKey":"s","SessionToken":"{token}","Expiration":"2096-10-02T07:06:40Z"}}"#
        );
        assert_eq!(written(document.as_bytes()), ["session ASIAX"]);
        let mut assembler = Assembler::new();
        let capacity = assembler.buffer.capacity();
        assembler.push(&[b'1'; LIMIT_BYTES + 10]);
        assert_eq!(assembler.buffer.capacity(), capacity);
    }

    /// This once took minutes, because each brace made it parse everything again.
    #[test]
    fn many_braces_are_parsed_in_linear_time() {
        let mut assembler = Assembler::new();
        let start = std::time::Instant::now();
        assembler.push(b"{\"a\":\"");
        for _ in 0..256 {
            assert!(assembler.push(&[b'}'; 65_536]).is_empty());
        }
        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(
            describe(assembler.finish().into_iter().collect()),
            ["16777222 characters that are not six digits"]
        );
    }

    #[test]
    fn a_pause_after_six_digits_ends_the_input_sooner() {
        let mut assembler = Assembler::new();
        assembler.push(b"11167");
        assert_eq!(assembler.patience(), INPUT_PATIENCE);
        assembler.push(b"6");
        assert_eq!(assembler.patience(), CODE_PATIENCE);
        assert_eq!(
            describe(assembler.give_up().into_iter().collect()),
            ["code 111676"]
        );
        assembler.push(b"11");
        assert_eq!(
            describe(assembler.give_up().into_iter().collect()),
            ["2 digits instead of six, without a line end"]
        );
    }

    #[test]
    fn the_content_of_inputs_is_never_shown() {
        let mut assembler = Assembler::new();
        for input in assembler.push(b"hunter2\n111676\n9991\n") {
            let shown = format!("{input:?}");
            assert!(
                !shown.contains("hunter2") && !shown.contains("111676") && !shown.contains("9991")
            );
        }
    }
}
