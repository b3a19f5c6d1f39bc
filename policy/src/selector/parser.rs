//! Recursive descent over the words of a selector.

use super::lexer::{Token, Tokens, tokenize};
use super::{Comparison, Node};

/// Deepest nesting of parentheses. No person writes it; without a bound a hostile selector could exhaust the stack.
const MAX_DEPTH: usize = 128;

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at character {})", position + 1)]
pub struct ParseError {
    /// Byte offset, from 0, of what is wrong; the length of the text when something is missing at its end.
    pub position: usize,
    /// What was found and what was expected: a clause, without the position.
    pub message: String,
}

pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    let Tokens { words, error } = tokenize(text);
    let mut parser = Parser {
        tokens: &words,
        unreadable: error,
        end: text.len(),
        depth: 0,
    };
    if parser.peek().1 == Token::End {
        return Ok(Node::All);
    }
    let node = parser.or()?;
    match parser.peek() {
        (_, Token::End) => Ok(node),
        (_, Token::CloseParen) => parser.unexpected("the end of the selector: this \")\" closes nothing"),
        _ => parser.unexpected("\"&&\", \"||\" or the end of the selector"),
    }
}

struct Parser<'t, 'a> {
    /// What is still to be read; ends in [`Token::End`] or [`Token::Bad`].
    tokens: &'t [(usize, Token<'a>)],
    /// What is wrong at [`Token::Bad`].
    unreadable: Option<ParseError>,
    end: usize,
    depth: usize,
}

impl<'a> Parser<'_, 'a> {
    fn peek(&self) -> (usize, Token<'a>) {
        self.tokens.first().copied().unwrap_or((self.end, Token::End))
    }

    fn next(&mut self) -> (usize, Token<'a>) {
        let next = self.peek();
        self.tokens = self.tokens.get(1..).unwrap_or_default();
        next
    }

    fn eat(&mut self, token: Token<'_>) -> bool {
        let found = self.peek().1 == token;
        if found {
            self.next();
        }
        found
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T, ParseError> {
        let (position, token) = self.peek();
        if let (Token::Bad, Some(error)) = (token, &self.unreadable) {
            return Err(error.clone());
        }
        Err(ParseError {
            position,
            message: format!("found {}, expected {expected}", token.describe()),
        })
    }

    fn or(&mut self) -> Result<Node, ParseError> {
        self.chain(Token::Or, Self::and, Node::Or)
    }

    fn and(&mut self) -> Result<Node, ParseError> {
        self.chain(Token::And, Self::operand, Node::And)
    }

    /// One or more operands with `operator` between them; a single one stands for itself.
    fn chain(
        &mut self,
        operator: Token<'_>,
        operand: fn(&mut Self) -> Result<Node, ParseError>,
        join: fn(Vec<Node>) -> Node,
    ) -> Result<Node, ParseError> {
        let first = operand(self)?;
        if self.peek().1 != operator {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.eat(operator) {
            operands.push(operand(self)?);
        }
        Ok(join(operands))
    }

    fn operand(&mut self) -> Result<Node, ParseError> {
        let mut negated = false;
        while self.eat(Token::Not) {
            negated = !negated;
        }
        let (position, token) = self.peek();
        let node = match token {
            Token::All => self.single(Node::All),
            Token::Global => self.single(Node::Global),
            Token::Has(name) => self.single(Node::Has(name.into())),
            Token::Label(name) => {
                self.next();
                self.comparison(name)?
            }
            Token::OpenParen => {
                self.next();
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    let message = format!("parentheses are nested more than {MAX_DEPTH} deep");
                    return Err(ParseError { position, message });
                }
                let node = self.or()?;
                if !self.eat(Token::CloseParen) {
                    return self.unexpected("\")\", \"&&\" or \"||\"");
                }
                self.depth -= 1;
                node
            }
            Token::Text(_) => {
                return self.unexpected("a label name: the label stands left of the operator, unquoted");
            }
            _ => return self.unexpected("a label name, has(…), all() or \"(\""),
        };
        Ok(if negated { Node::Not(Box::new(node)) } else { node })
    }

    fn single(&mut self, node: Node) -> Node {
        self.next();
        node
    }

    fn comparison(&mut self, label: &str) -> Result<Node, ParseError> {
        let comparison = match self.peek().1 {
            Token::Equal => Comparison::Equal,
            Token::NotEqual => Comparison::NotEqual,
            Token::Contains => Comparison::Contains,
            Token::StartsWith => Comparison::StartsWith,
            Token::EndsWith => Comparison::EndsWith,
            Token::In => {
                self.next();
                return Ok(Node::In(label.into(), self.set()?));
            }
            Token::NotIn => {
                self.next();
                return Ok(Node::NotIn(label.into(), self.set()?));
            }
            _ => {
                return self.unexpected(&format!(
                    "an operator after the label {label:?} (to ask whether it is present, write has({label}))"
                ));
            }
        };
        self.next();
        match self.peek().1 {
            Token::Text(value) => {
                self.next();
                Ok(Node::Compare(label.into(), comparison, value.into()))
            }
            _ => self.unexpected("a string in quotes"),
        }
    }

    /// A set of strings, sorted and without duplicates.
    fn set(&mut self) -> Result<Box<[Box<str>]>, ParseError> {
        if !self.eat(Token::OpenBrace) {
            return self.unexpected("a set such as {\"a\", \"b\"}");
        }
        let mut values: Vec<Box<str>> = Vec::new();
        while let Token::Text(value) = self.peek().1 {
            self.next();
            values.push(value.into());
            if !self.eat(Token::Comma) {
                break;
            }
        }
        if !self.eat(Token::CloseBrace) {
            return self.unexpected("a string in quotes, \",\" or \"}\"");
        }
        values.sort_unstable();
        values.dedup();
        Ok(values.into_boxed_slice())
    }
}
