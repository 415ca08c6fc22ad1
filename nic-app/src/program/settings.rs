//! Settings: a TOML file, the environment and the command line, in rising order of precedence.

use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::error::{Actual, Kind};
use figment::providers::{Env, Format, Serialized, Toml};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::wait::WaitMode;

/// What a data thread does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// It keeps polling.
    Spin,
    /// It polls for a while, then sleeps.
    Adaptive,
    /// It sleeps.
    Block,
}

impl Wait {
    /// The same for a data thread; an adaptive one polls for so many microseconds.
    #[must_use]
    pub fn mode(self, spin_us: u32) -> WaitMode {
        match self {
            Wait::Spin => WaitMode::Spin,
            Wait::Adaptive => WaitMode::Adaptive { spin: Duration::from_micros(spin_us.into()) },
            Wait::Block => WaitMode::Block,
        }
    }
}

/// Reads settings from all their sources, with what each of them says. Variables of the environment begin with `prefix`: `PREFIX_SECTION_KEY` is
/// `section.key`. `options` are those of the command line: the key that each sets, its name, and its value where it is given.
///
/// # Errors
/// [`LoadError`] for a file that cannot be read, an unknown key, or a value of the wrong type.
pub fn load<C: Default + Serialize + DeserializeOwned>(
    prefix: &'static str,
    file: Option<&Path>,
    options: &[(&str, &'static str, Option<&String>)],
) -> Result<(C, Figment), LoadError> {
    let mut sources = Figment::new();
    if let Some(file) = file {
        std::fs::read(file).map_err(|error| LoadError::File { path: file.to_owned(), error })?;
        sources = sources.merge(Toml::file_exact(file));
    }
    // Variables that name no section are somebody else's: Kubernetes sets `SPLITRPC_SERVICE_HOST` beside a service so called.
    let sections = toml::Table::try_from(C::default()).expect("the defaults can be shown");
    let is_key =
        move |key: &str| key.split_once('_').is_some_and(|(s, _)| sections.contains_key(&s.to_ascii_lowercase()));
    // Only the first underscore parts section from key: keys have underscores of their own.
    let environment = Env::prefixed(prefix)
        .filter(move |key| is_key(key.as_str()))
        .map(|key| key.as_str().to_ascii_lowercase().replacen('_', ".", 1).into());
    sources = sources.merge(environment);
    for (key, option, value) in options {
        if let Some(value) = value {
            sources = sources.merge(Named(option, Serialized::default(key, value)));
        }
    }
    let settings = sources.extract().map_err(|error| LoadError::Values(describe(prefix, error)))?;
    Ok((settings, sources))
}

/// Settings as TOML, every key with its value; those that have none stand in comments that say what this means. What is shown can be read again.
/// `unset` are the keys that need not have a value: section, key, whether it has none, and what that means.
#[must_use]
pub fn to_toml(settings: &impl Serialize, unset: &[(&str, &str, bool, &str)]) -> String {
    let text = toml::to_string(settings).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"));
    let mut shown = String::new();
    for line in text.lines() {
        shown.extend([line, "\n"]);
        for (_, key, _, meaning) in unset.iter().filter(|(section, _, unset, _)| *section == line && *unset) {
            shown.extend(["# ", key, " is not set: ", meaning, "\n"]);
        }
    }
    shown
}

/// Why no configuration came to be.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("configuration file {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Keys or values that are wrong, one a line.
    #[error("{0}")]
    Values(String),
}

/// Each of figment's errors with the key and the source that it stands in.
fn describe(prefix: &str, error: figment::Error) -> String {
    let lines: Vec<String> = error
        .into_iter()
        .map(|error| {
            let mut path = error.path;
            if let Kind::UnknownField(field, _) = &error.kind {
                // Some sources count the key itself in.
                path.pop_if(|last| last == field);
            }
            let key = path.join(".");
            let source = error.metadata.as_ref().map_or_else(String::new, |m| match &m.source {
                Some(source) => format!(", from {} {source}", m.name),
                None if m.name.contains("environment") => format!(", from {}", variable(prefix, &key)),
                None => format!(", from {}", m.name),
            });
            let why = match error.kind {
                Kind::UnknownField(field, known) => {
                    let place = if key.is_empty() { "at the top".to_owned() } else { format!("in `{key}`") };
                    let source = source.replace(&variable(prefix, &key), &variable(prefix, &format!("{key}.{field}")));
                    return format!("unknown key `{field}` {place}; known are {}{source}", known.join(", "));
                }
                Kind::UnknownVariant(found, known) => format!("{found:?} is none of {}", known.join(", ")),
                Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
                    format!("{} is not {}", shown(&found), kind(&wanted))
                }
                other => other.to_string(),
            };
            let key = if key.is_empty() { "configuration".to_owned() } else { format!("key `{key}`") };
            format!("{key}: {why}{source}")
        })
        .collect();
    lines.join("\n")
}

/// The environment variable that sets a key.
fn variable(prefix: &str, key: &str) -> String {
    let words: Vec<_> = key.split('.').take(2).collect();
    format!("{prefix}{}", words.join("_").to_ascii_uppercase())
}

/// A value as it was written.
fn shown(value: &Actual) -> String {
    match value {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Str(value) => format!("{value:?}"),
        Actual::Seq => "a list".into(),
        Actual::Map => "a section".into(),
        other => other.to_string(),
    }
}

/// What a key takes, where the library calls it by a type's name.
fn kind(wanted: &str) -> String {
    let whole = |most: u64| format!("a whole number from 0 to {most}");
    match wanted {
        "u8" => whole(u8::MAX.into()),
        "u16" => whole(u16::MAX.into()),
        "u32" => whole(u32::MAX.into()),
        // TOML has no larger ones.
        "u64" => whole(i64::MAX as u64),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list, such as [0, 1]".into(),
        structure if structure.starts_with("struct ") => "a section".into(),
        other => other.into(),
    }
}

/// A provider that errors call by the name of a command line option.
struct Named<P>(&'static str, P);

impl<P: figment::Provider> figment::Provider for Named<P> {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(format!("option {}", self.0))
    }

    fn data(&self) -> Result<figment::value::Map<figment::Profile, figment::value::Dict>, figment::Error> {
        self.1.data()
    }
}

/// Addresses, each of which may be `"off"`: `#[serde(with = "address")]`.
pub mod address {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Reads one.
    ///
    /// # Errors
    /// What is no address.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(from)?;
        if text == "off" {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            serde::de::Error::custom(format!("{text:?} is neither \"off\" nor an address such as \"127.0.0.1:7100\""))
        })
    }

    /// Writes one.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => to.collect_str(address),
            None => to.serialize_str("off"),
        }
    }
}
