//! Protobuf's text format, read without a schema: fields, their values and where they stand.
//!
//! It knows what Triton's configuration files use: comments, `name: value`, `name { .. }`, `name: { .. }`, `< .. >`,
//! lists, adjacent strings, every escape, separators. Extensions and `Any` are refused. Lists are flattened, as the
//! format means them: `dims: [1, 2]` is `dims: 1 dims: 2`.

use std::fmt;

/// Longest text that is read, in bytes.
pub const MAX_TEXT: usize = 1 << 20;
/// Deepest nesting of messages and lists that is read.
pub const MAX_DEPTH: u32 = 32;

/// A place in the text; both count from 1, columns in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// Fields in the order of the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The fields; a repeated one stands as often as it has values.
    pub fields: Vec<Field>,
}

/// One value of one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// The field's name.
    pub name: String,
    /// Where the name stands; in a list, the value.
    pub at: Position,
    /// The value.
    pub value: Value,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A nested message.
    Message(Message),
    /// A whole number: decimal, octal or hexadecimal in the text.
    Integer(i128),
    /// A number with a fraction or an exponent, or a signed `inf` or `nan`.
    Float(f64),
    /// A quoted string, escapes resolved.
    Text(Vec<u8>),
    /// A bare word: an enum's name, `true`, `false`, `inf`, `nan`.
    Word(String),
}

/// What is wrong with the text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where reading stopped.
    pub at: Position,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.at.line, self.at.column, self.what)
    }
}

impl std::error::Error for SyntaxError {}

/// Reads a whole text.
///
/// # Errors
/// [`SyntaxError`] for the first thing that the format does not allow, or a text past [`MAX_TEXT`] or [`MAX_DEPTH`].
pub fn parse(text: &str) -> Result<Message, SyntaxError> {
    let mut parser = Parser { bytes: text.as_bytes(), at: 0, line: 1, line_start: 0 };
    if text.len() > MAX_TEXT {
        return Err(parser.error(format!("{} bytes of text, where {MAX_TEXT} are read at most", text.len())));
    }
    let mut message = Message::default();
    parser.blank();
    while parser.at < parser.bytes.len() {
        parser.field(&mut message, 0)?;
    }
    Ok(message)
}

struct Parser<'t> {
    bytes: &'t [u8],
    at: usize,
    line: u32,
    line_start: usize,
}

impl Parser<'_> {
    fn field(&mut self, into: &mut Message, depth: u32) -> Result<(), SyntaxError> {
        let at = self.position();
        let name = match self.peek() {
            Some(b'[') => return Err(self.error("extensions and Any are not supported")),
            Some(byte) if is_word_start(byte) => self.word(),
            _ => return Err(self.unexpected("a field name")),
        };
        self.blank();
        let colon = self.eat(b':');
        match self.peek() {
            Some(b'[') => self.list(&name, !colon, into, depth + 1)?,
            _ => {
                let value = self.value(!colon, depth)?;
                into.fields.push(Field { name, at, value });
            }
        }
        if !self.eat(b',') {
            self.eat(b';');
        }
        Ok(())
    }

    fn list(&mut self, name: &str, messages_only: bool, into: &mut Message, depth: u32) -> Result<(), SyntaxError> {
        self.deeper(depth)?;
        self.eat(b'[');
        if self.eat(b']') {
            return Ok(());
        }
        loop {
            let at = self.position();
            let value = self.value(messages_only, depth)?;
            into.fields.push(Field { name: name.to_owned(), at, value });
            if self.eat(b']') {
                return Ok(());
            }
            if !self.eat(b',') {
                return Err(self.unexpected("',' or ']'"));
            }
        }
    }

    fn value(&mut self, messages_only: bool, depth: u32) -> Result<Value, SyntaxError> {
        match self.peek() {
            Some(b'{') => self.message(b'}', depth + 1),
            Some(b'<') => self.message(b'>', depth + 1),
            _ if messages_only => Err(self.unexpected("':' or '{'")),
            Some(b'"' | b'\'') => self.text(),
            Some(b'-') => {
                self.eat(b'-');
                self.number(true)
            }
            Some(b'0'..=b'9' | b'.') => self.number(false),
            Some(byte) if is_word_start(byte) => {
                let word = self.word();
                self.blank();
                Ok(Value::Word(word))
            }
            _ => Err(self.unexpected("a value")),
        }
    }

    fn message(&mut self, close: u8, depth: u32) -> Result<Value, SyntaxError> {
        self.deeper(depth)?;
        let open = self.position();
        self.at += 1;
        self.blank();
        let mut message = Message::default();
        while !self.eat(close) {
            if self.at == self.bytes.len() {
                return Err(self.error(format!("the message opened at {}:{} is not closed", open.line, open.column)));
            }
            self.field(&mut message, depth)?;
        }
        Ok(Value::Message(message))
    }

    fn number(&mut self, negative: bool) -> Result<Value, SyntaxError> {
        let start = self.position();
        let bad = |text: &str| SyntaxError { at: start, what: format!("{text:?} is not a number") };
        if let Some(byte) = self.peek()
            && is_word_start(byte)
        {
            let word = self.word();
            self.blank();
            let float = match word.to_ascii_lowercase().as_str() {
                "inf" | "infinity" => f64::INFINITY,
                "nan" => f64::NAN,
                _ => return Err(bad(&word)),
            };
            return Ok(Value::Float(if negative { -float } else { float }));
        }
        let from = self.at;
        while let Some(byte) = self.peek() {
            let exponent_sign = matches!(byte, b'+' | b'-')
                && matches!(self.bytes[self.at - 1], b'e' | b'E')
                && !self.bytes[from..self.at].starts_with(b"0x");
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || exponent_sign) {
                break;
            }
            self.at += 1;
        }
        // Only ASCII was passed over.
        let text = std::str::from_utf8(&self.bytes[from..self.at]).unwrap_or_default();
        self.blank();
        let integer = |digits: &str, radix| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_alphanumeric());
            if plain { u64::from_str_radix(digits, radix).ok() } else { None }
        };
        let magnitude = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(integer(hex, 16).ok_or_else(|| bad(text))?)
        } else if text.len() > 1 && text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()) {
            Some(integer(text, 8).ok_or_else(|| bad(text))?)
        } else {
            integer(text, 10)
        };
        if let Some(magnitude) = magnitude {
            let magnitude = i128::from(magnitude);
            return Ok(Value::Integer(if negative { -magnitude } else { magnitude }));
        }
        // Rust reads words such as "infinity" too, which cannot come here: the text starts with a digit or a point.
        let float: f64 = text.strip_suffix(['f', 'F']).unwrap_or(text).parse().map_err(|_| bad(text))?;
        Ok(Value::Float(if negative { -float } else { float }))
    }

    /// One or more adjacent strings, which the format joins.
    fn text(&mut self) -> Result<Value, SyntaxError> {
        let mut out = Vec::new();
        while let Some(quote @ (b'"' | b'\'')) = self.peek() {
            let open = self.position();
            self.at += 1;
            loop {
                let Some(byte) = self.peek().filter(|&b| b != b'\n') else {
                    return Err(SyntaxError { at: open, what: "the string is not closed".into() });
                };
                self.at += 1;
                match byte {
                    b'\\' => self.escape(&mut out)?,
                    _ if byte == quote => break,
                    _ => out.push(byte),
                }
            }
            self.blank();
        }
        Ok(Value::Text(out))
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), SyntaxError> {
        let kind = self.peek().ok_or_else(|| self.error("the string is not closed"))?;
        match kind {
            b'0'..=b'7' => {
                let code = self.digits(8, 3);
                out.push(u8::try_from(code).map_err(|_| self.error("an octal escape past \\377"))?);
                return Ok(());
            }
            b'x' | b'X' | b'u' | b'U' => {
                self.at += 1;
                let from = self.at;
                let most = match kind {
                    b'u' => 4,
                    b'U' => 8,
                    _ => 2,
                };
                let code = self.digits(16, most);
                let count = self.at - from;
                if most == 2 && count > 0 {
                    out.push(code as u8);
                } else {
                    let character = char::from_u32(code).filter(|_| most > 2 && count == most);
                    let character = character.ok_or_else(|| self.error("not a character's code"))?;
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                return Ok(());
            }
            _ => {}
        }
        out.push(match kind {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'v' => 11,
            b'\\' | b'\'' | b'"' | b'?' => kind,
            _ => return Err(self.error("an unknown escape in a string")),
        });
        self.at += 1;
        Ok(())
    }

    /// Up to `most` (at most 8) digits of an escape; none give 0.
    fn digits(&mut self, radix: u32, most: usize) -> u32 {
        let mut code = 0u32;
        for _ in 0..most {
            let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(radix)) else { break };
            code = code * radix + digit;
            self.at += 1;
        }
        code
    }

    fn word(&mut self) -> String {
        let from = self.at;
        while self.peek().is_some_and(|b| is_word_start(b) || b.is_ascii_digit()) {
            self.at += 1;
        }
        self.bytes[from..self.at].iter().copied().map(char::from).collect()
    }

    /// Passes over white space and comments.
    fn blank(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b'\n' => {
                    self.at += 1;
                    self.line += 1;
                    self.line_start = self.at;
                }
                b' ' | b'\t' | b'\r' | 11 | 12 => self.at += 1,
                b'#' => {
                    while self.peek().is_some_and(|b| b != b'\n') {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
    }

    /// Takes a mark and the blank after it, where it is the next.
    fn eat(&mut self, mark: u8) -> bool {
        let found = self.peek() == Some(mark);
        if found {
            self.at += 1;
            self.blank();
        }
        found
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn deeper(&self, depth: u32) -> Result<(), SyntaxError> {
        if depth > MAX_DEPTH { Err(self.error(format!("nested deeper than {MAX_DEPTH}"))) } else { Ok(()) }
    }

    fn position(&self) -> Position {
        Position { line: self.line, column: (self.at - self.line_start) as u32 + 1 }
    }

    fn error(&self, what: impl Into<String>) -> SyntaxError {
        SyntaxError { at: self.position(), what: what.into() }
    }

    fn unexpected(&self, wanted: &str) -> SyntaxError {
        match self.peek() {
            Some(byte) => self.error(format!("expected {wanted}, found '{}'", byte.escape_ascii())),
            None => self.error(format!("expected {wanted}, found the end of the file")),
        }
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, Value)> {
        parse(text).unwrap().fields.into_iter().map(|f| (f.name, f.value)).collect()
    }

    fn one(text: &str) -> Value {
        let mut all = values(text);
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0).1
    }

    fn fails(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_value() {
        assert_eq!(one("a: 12"), Value::Integer(12));
        assert_eq!(one("a: - 0x1F"), Value::Integer(-31));
        assert_eq!(one("a: 010"), Value::Integer(8));
        assert_eq!(one("a: 18446744073709551615"), Value::Integer(u64::MAX.into()));
        assert_eq!(one("a: 1.5f"), Value::Float(1.5));
        assert_eq!(one("a: .5e-3"), Value::Float(0.0005));
        assert_eq!(one("a: 2E+2,"), Value::Float(200.0));
        assert_eq!(one("a: -inf;"), Value::Float(f64::NEG_INFINITY));
        assert_eq!(one("a: KIND_CPU # why"), Value::Word("KIND_CPU".into()));
        assert_eq!(one("a: 'x' \"y\"\n '\\'z'"), Value::Text(b"xy'z".to_vec()));
        assert_eq!(one(r#"a: "\n\t\\\101\x41\u00e9\U0001F600\?""#), Value::Text("\n\t\\AAé😀?".into()));
    }

    #[test]
    fn messages_and_lists_in_every_spelling() {
        let spellings = [
            "a { b: 1 b: 2 }",
            "a: { b: [1, 2] }",
            "a < b: 1; b: 2, >",
            "a [ { b: 1 b: 2 } ]",
            "a: [ < b: [ 1 , 2 ] c: [] > ]",
            "# head\na{b:1,b:2}",
        ];
        for text in spellings {
            let Value::Message(inner) = one(text) else { panic!("{text}") };
            let inner: Vec<_> = inner.fields.iter().map(|f| (f.name.as_str(), &f.value)).collect();
            assert_eq!(inner, [("b", &Value::Integer(1)), ("b", &Value::Integer(2))], "{text}");
        }
        assert_eq!(values("a [ {}, {} ] a {}").len(), 3);
        assert_eq!(values("").len(), 0);
    }

    #[test]
    fn positions_of_fields() {
        let message = parse("a: 1\n  bc: {\n\td: 2 }").unwrap();
        assert_eq!(message.fields[1].at, Position { line: 2, column: 3 });
        let Value::Message(inner) = &message.fields[1].value else { panic!() };
        assert_eq!(inner.fields[0].at, Position { line: 3, column: 2 });
    }

    #[test]
    fn errors_say_where() {
        assert_eq!(fails("a: 1\nb 2"), "2:3: expected ':' or '{', found '2'");
        assert_eq!(fails("a {\n b: 1"), "2:6: the message opened at 1:3 is not closed");
        assert_eq!(fails("a: \"x\ny\""), "1:4: the string is not closed");
        assert_eq!(fails("a: 1x"), "1:4: \"1x\" is not a number");
        assert_eq!(fails("a: 09"), "1:4: \"09\" is not a number");
        assert_eq!(fails("a: 0x"), "1:4: \"0x\" is not a number");
        assert_eq!(fails("a: -b"), "1:5: \"b\" is not a number");
        assert_eq!(fails("a: '\\q'"), "1:6: an unknown escape in a string");
        assert_eq!(fails("a: '\\u12'"), "1:9: not a character's code");
        assert_eq!(fails("a: '\\400'"), "1:9: an octal escape past \\377");
        assert_eq!(fails("[x.y]: 1"), "1:1: extensions and Any are not supported");
        assert_eq!(fails("a: [1 2]"), "1:7: expected ',' or ']', found '2'");
        assert_eq!(fails("a: [1,]"), "1:7: expected a value, found ']'");
        assert_eq!(fails("a:"), "1:3: expected a value, found the end of the file");
        assert_eq!(fails("a [1]"), "1:4: expected ':' or '{', found '1'");
        assert_eq!(fails("}"), "1:1: expected a field name, found '}'");
        assert_eq!(fails("\u{e9}"), "1:1: expected a field name, found '\\xc3'");
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let nest = |n: usize| "a{".repeat(n) + &"}".repeat(n);
        assert!(parse(&nest(MAX_DEPTH as usize)).is_ok());
        assert!(fails(&nest(MAX_DEPTH as usize + 1)).ends_with("nested deeper than 32"));
        assert!(fails(&"a[{".repeat(100_000)).ends_with("nested deeper than 32"));
        assert!(parse(&" ".repeat(MAX_TEXT)).is_ok());
        assert!(fails(&" ".repeat(MAX_TEXT + 1)).contains("read at most"));
    }
}
