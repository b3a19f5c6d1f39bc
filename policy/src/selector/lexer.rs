//! Words of a selector. What a word means depends on the one before: after a label name comes an operator, so
//! `in`, `contains` or `has` are label names everywhere else.

use super::parser::ParseError;

/// Longest accepted label name, in bytes.
const MAX_LABEL_NAME: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Label(&'a str),
    Text(&'a str),
    Has(&'a str),
    All,
    Global,
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
    In,
    NotIn,
    Not,
    And,
    Or,
    OpenParen,
    CloseParen,
    OpenBrace,
    CloseBrace,
    Comma,
    /// Here the text stops being words; the error says why.
    Bad,
    End,
}

impl Token<'_> {
    /// How an error message calls what it found.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Label(name) => format!("the label name {name:?}"),
            Self::Text(text) => format!("the string {text:?}"),
            Self::Has(name) => format!("has({name})"),
            Self::All => "all()".to_owned(),
            Self::Global => "global()".to_owned(),
            Self::Contains => "contains".to_owned(),
            Self::StartsWith => "starts with".to_owned(),
            Self::EndsWith => "ends with".to_owned(),
            Self::In => "in".to_owned(),
            Self::NotIn => "not in".to_owned(),
            Self::Equal => "\"==\"".to_owned(),
            Self::NotEqual => "\"!=\"".to_owned(),
            Self::Not => "\"!\"".to_owned(),
            Self::And => "\"&&\"".to_owned(),
            Self::Or => "\"||\"".to_owned(),
            Self::OpenParen => "\"(\"".to_owned(),
            Self::CloseParen => "\")\"".to_owned(),
            Self::OpenBrace => "\"{\"".to_owned(),
            Self::CloseBrace => "\"}\"".to_owned(),
            Self::Comma => "\",\"".to_owned(),
            Self::Bad => "something unreadable".to_owned(),
            Self::End => "the end of the selector".to_owned(),
        }
    }
}

/// The words of a selector with the byte position of each. The last is [`Token::End`], or [`Token::Bad`] and then
/// `error` says what is wrong there; a parser that stumbles earlier reports that instead.
pub(super) struct Tokens<'a> {
    pub(super) words: Vec<(usize, Token<'a>)>,
    pub(super) error: Option<ParseError>,
}

pub(super) fn tokenize(text: &str) -> Tokens<'_> {
    let mut lexer = Lexer {
        text,
        at: 0,
        after_label: None,
    };
    let mut words = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let token = match lexer.next() {
            Ok(token) => token,
            Err(error) => {
                words.push((at, Token::Bad));
                return Tokens {
                    words,
                    error: Some(error),
                };
            }
        };
        lexer.after_label = match token {
            Token::Label(name) => Some(name),
            _ => None,
        };
        words.push((at, token));
        if token == Token::End {
            return Tokens { words, error: None };
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    /// Byte position of what is still to be read.
    at: usize,
    /// The label name just read: an operator must follow.
    after_label: Option<&'a str>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        self.at += self
            .rest()
            .bytes()
            .take_while(|b| matches!(b, b' ' | b'\t'))
            .count();
    }

    /// Consumes `word` if it comes next.
    fn eat(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn error<T>(&self, position: usize, message: impl Into<String>) -> Result<T, ParseError> {
        Err(ParseError {
            position,
            message: message.into(),
        })
    }

    fn next(&mut self) -> Result<Token<'a>, ParseError> {
        const SYMBOLS: [(&str, Token<'static>); 10] = [
            ("(", Token::OpenParen),
            (")", Token::CloseParen),
            ("{", Token::OpenBrace),
            ("}", Token::CloseBrace),
            (",", Token::Comma),
            ("==", Token::Equal),
            ("!=", Token::NotEqual),
            ("!", Token::Not),
            ("&&", Token::And),
            ("||", Token::Or),
        ];
        let start = self.at;
        let Some(first) = self.rest().chars().next() else {
            return Ok(Token::End);
        };
        if matches!(first, '"' | '\'') {
            return self.string(first);
        }
        if let Some((_, token)) = SYMBOLS.iter().find(|(symbol, _)| self.eat(symbol)) {
            return Ok(*token);
        }
        match first {
            '=' => return self.error(start, "found a single \"=\"; equality is written \"==\""),
            '&' => return self.error(start, "found a single \"&\"; \"and\" is written \"&&\""),
            '|' => return self.error(start, "found a single \"|\"; \"or\" is written \"||\""),
            '\n' | '\r' => {
                return self.error(
                    start,
                    "found a line break; a selector is one line (in YAML, use \">-\" to fold lines)",
                );
            }
            _ => {}
        }
        match self.after_label {
            Some(label) => self.operator(label),
            None => self.word(first),
        }
    }

    fn string(&mut self, quote: char) -> Result<Token<'a>, ParseError> {
        let start = self.at;
        self.at += 1;
        match self.rest().split_once(quote) {
            Some((text, _)) => {
                self.at += text.len() + 1;
                Ok(Token::Text(text))
            }
            None => self.error(
                start,
                format!("the string that begins here has no closing {quote}"),
            ),
        }
    }

    /// What stands after a label name, where only operators can.
    fn operator(&mut self, label: &str) -> Result<Token<'a>, ParseError> {
        let start = self.at;
        if self.eat("contains") {
            return Ok(Token::Contains);
        }
        for (first, second, token) in [
            ("starts", "with", Token::StartsWith),
            ("ends", "with", Token::EndsWith),
            ("not", "in", Token::NotIn),
        ] {
            if self.eat(first) {
                self.skip_blanks();
                if self.eat(second) {
                    return Ok(token);
                }
                return self.error(
                    start,
                    format!("found {first:?} without {second:?} after the label {label:?}"),
                );
            }
        }
        if self.eat("in") {
            return Ok(Token::In);
        }
        let found: String = self
            .rest()
            .chars()
            .take_while(|c| !c.is_whitespace())
            .take(20)
            .collect();
        self.error(
            start,
            format!(
                "found {found:?} after the label {label:?}; expected an operator: \
                 ==, !=, in, not in, contains, starts with, ends with"
            ),
        )
    }

    fn word(&mut self, first: char) -> Result<Token<'a>, ParseError> {
        let start = self.at;
        if self.eat("has(") {
            self.skip_blanks();
            let Some(name) = self.label_name()? else {
                return self.error(self.at, "has() needs the name of a label");
            };
            self.skip_blanks();
            if !self.eat(")") {
                return self.error(self.at, format!("expected \")\" after has({name}"));
            }
            return Ok(Token::Has(name));
        }
        for (word, token) in [("all(", Token::All), ("global(", Token::Global)] {
            if self.eat(word) {
                self.skip_blanks();
                if !self.eat(")") {
                    return self.error(self.at, format!("expected \")\" after {word}"));
                }
                return Ok(token);
            }
        }
        match self.label_name()? {
            Some(name) => Ok(Token::Label(name)),
            None => self.error(
                start,
                format!("found the character {first:?}, which cannot stand in a selector here"),
            ),
        }
    }

    fn label_name(&mut self) -> Result<Option<&'a str>, ParseError> {
        let in_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-');
        let len = self.rest().as_bytes().iter().take_while(|b| in_name(b)).count();
        if len > MAX_LABEL_NAME {
            return self.error(
                self.at,
                format!("a label name has at most {MAX_LABEL_NAME} characters, this one has {len}"),
            );
        }
        let name = self.rest().get(..len).filter(|name| !name.is_empty());
        self.at += len;
        Ok(name)
    }
}
