//! Reading typed values out of a parsed message, with errors that name the field in full and its line.

use crate::model::pbtxt::{Field, Message, SyntaxError, Value};

/// Why a configuration is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct ConfigError {
    /// The line that is at fault, from 1; 0 where it is what is missing.
    pub line: u32,
    /// The column, for syntax errors.
    pub column: Option<u32>,
    /// What is wrong.
    pub what: String,
}

impl ConfigError {
    /// An error at a line; 0 where none is at fault.
    #[must_use]
    pub fn at(line: u32, what: impl Into<String>) -> ConfigError {
        ConfigError { line, column: None, what: what.into() }
    }
}

impl From<SyntaxError> for ConfigError {
    fn from(error: SyntaxError) -> ConfigError {
        ConfigError { line: error.at.line, column: Some(error.at.column), what: error.what }
    }
}

pub(super) type Result<T> = std::result::Result<T, ConfigError>;

/// One field with the dotted name that errors call it by.
pub(super) struct Item<'m> {
    pub(super) name: &'m str,
    pub(super) path: String,
    pub(super) field: &'m Field,
}

/// What a message may hold.
pub(super) struct Schema {
    /// Fields that may stand more than once.
    pub(super) repeated: &'static [&'static str],
    /// Fields that Triton has and this server does not.
    pub(super) unsupported: &'static [&'static str],
}

/// Walks a message's fields. `take` says whether it knew the field; one that it did not know is refused by name.
pub(super) fn walk<'m>(
    message: &'m Message,
    parent: &str,
    schema: &Schema,
    mut take: impl FnMut(&Item<'m>) -> Result<bool>,
) -> Result<()> {
    let mut seen: Vec<&str> = Vec::new();
    for field in &message.fields {
        let name = field.name.as_str();
        let path = if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
        let item = Item { name, path, field };
        if schema.unsupported.contains(&name) {
            return Err(item.error("is not supported"));
        }
        if seen.contains(&name) && !schema.repeated.contains(&name) {
            return Err(item.error("is given twice"));
        }
        if !take(&item)? {
            return Err(item.error("is not a field of the model configuration"));
        }
        if !schema.repeated.contains(&name) {
            seen.push(name);
        }
    }
    Ok(())
}

impl<'m> Item<'m> {
    pub(super) fn line(&self) -> u32 {
        self.field.at.line
    }

    pub(super) fn error(&self, what: &str) -> ConfigError {
        ConfigError::at(self.line(), format!("{} {what}", self.path))
    }

    pub(super) fn message(&self) -> Result<&'m Message> {
        match &self.field.value {
            Value::Message(message) => Ok(message),
            _ => Err(self.error("must be a message in braces")),
        }
    }

    pub(super) fn text(&self) -> Result<String> {
        match &self.field.value {
            Value::Text(bytes) => String::from_utf8(bytes.clone()).map_err(|_| self.error("must be a string in UTF-8")),
            _ => Err(self.error("must be a string in quotes")),
        }
    }

    pub(super) fn integer<T: TryFrom<i128>>(&self, least: i128, most: i128) -> Result<T> {
        let range = || self.error(&format!("must be a whole number from {least} to {most}"));
        match self.field.value {
            Value::Integer(n) if (least..=most).contains(&n) => T::try_from(n).map_err(|_| range()),
            _ => Err(range()),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool> {
        match &self.field.value {
            Value::Integer(0) => Ok(false),
            Value::Integer(1) => Ok(true),
            Value::Word(word) if matches!(word.as_str(), "true" | "True" | "t") => Ok(true),
            Value::Word(word) if matches!(word.as_str(), "false" | "False" | "f") => Ok(false),
            _ => Err(self.error("must be true or false")),
        }
    }

    /// Accepts a switch only in its off position.
    pub(super) fn must_be_off(&self) -> Result<bool> {
        if self.boolean()? { Err(self.error("is not supported")) } else { Ok(true) }
    }

    /// An enum's value, written as its name or its number.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&'static str, i128, T)]) -> Result<T> {
        let found = match &self.field.value {
            Value::Word(word) => choices.iter().find(|c| c.0 == word),
            Value::Integer(n) => choices.iter().find(|c| c.1 == *n),
            _ => None,
        };
        let shown = match &self.field.value {
            Value::Word(word) => word.clone(),
            Value::Integer(n) => n.to_string(),
            _ => "this".into(),
        };
        let names = || choices.iter().map(|c| c.0).collect::<Vec<_>>().join(", ");
        found.map(|c| c.2).ok_or_else(|| self.error(&format!("is one of {}; {shown} is not supported", names())))
    }

    /// A map's entry.
    pub(super) fn entry(&self) -> Result<(String, Item<'m>)> {
        let (mut key, mut value) = (None, None);
        walk(self.message()?, &self.path, &PLAIN, |item| {
            match item.name {
                "key" => key = Some(item.text()?),
                "value" => value = Some(item.field),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let key = key.unwrap_or_default();
        let field = value.ok_or_else(|| self.error(&format!("has no value for {key:?}")))?;
        let path = format!("{}[{key:?}]", self.path);
        Ok((key, Item { name: &field.name, path, field }))
    }
}

/// A message without repeated or unsupported fields.
pub(super) const PLAIN: Schema = Schema { repeated: &[], unsupported: &[] };
