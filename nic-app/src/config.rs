//! What a card application is configured with: a file, the environment, the command line, the last of which counts most.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::card::{CardConfig, CardPorts};
use crate::program::settings::{self, LoadError, Wait, address};
use crate::settings::DataThreadConfig;

/// Prefix of the environment variables that set configuration keys: `NIC_APP_CARD_DEVICE` is `card.device`.
pub const ENV_PREFIX: &str = "NIC_APP_";

/// The whole configuration. What models there are and what a request may be is the host agent's to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the card listens.
    pub listen: Listen,
    /// Which card, and what of it.
    pub card: Card,
    /// The data thread.
    pub data: Data,
}

/// Where the card listens; each may be `"off"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Requests over TCP.
    #[serde(with = "address")]
    pub tcp: Option<SocketAddr>,
    /// Requests over UDP.
    #[serde(with = "address")]
    pub udp: Option<SocketAddr>,
    /// Metrics and health over HTTP.
    #[serde(with = "address")]
    pub http: Option<SocketAddr>,
}

impl Default for Listen {
    fn default() -> Self {
        let any = Some(SocketAddr::from(([0, 0, 0, 0], 7100)));
        Listen { tcp: any, udp: any, http: None }
    }
}

/// Which card, and what of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Card {
    /// PCI address of the card's own device; the first that can, where none is named.
    pub device: Option<String>,
    /// PCI address of the host's device that is served; the only one, where none is named.
    pub representor: Option<String>,
    /// Folder, or file, of DOCA's libraries; where they are installed, if none is named.
    pub libraries: Option<PathBuf>,
    /// MiB that slots and tables may take; what is free to this process, less an eighth, where none are named.
    pub memory_mib: Option<u32>,
}

/// The data thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// What it does when idle.
    pub wait: Wait,
    /// How long an adaptive one polls before it sleeps, in microseconds.
    pub spin_us: u32,
    /// The core that it is bound to; the kernel chooses, where none is named.
    pub core: Option<u16>,
    /// Bytes of the buffers of the socket for datagrams; 0 is the kernel's default.
    pub buffer: u32,
    /// How long requests under way may take once it is told to end, in milliseconds.
    pub drain_ms: u32,
}

impl Default for Data {
    fn default() -> Self {
        Data { wait: Wait::Adaptive, spin_us: 50, core: None, buffer: 4 << 20, drain_ms: 10_000 }
    }
}

/// What the command line sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// `listen.tcp`.
    pub tcp: Option<String>,
    /// `listen.udp`.
    pub udp: Option<String>,
    /// `listen.http`.
    pub http: Option<String>,
    /// `card.device`.
    pub device: Option<String>,
    /// `card.representor`.
    pub representor: Option<String>,
    /// `card.libraries`.
    pub doca: Option<PathBuf>,
}

/// Why no configuration came to be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nobody could send a request.
    #[error("listen.tcp and listen.udp are both off, so nobody could send a request")]
    Nowhere,
}

impl Config {
    /// Reads the configuration from all its sources.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(overrides: &Overrides) -> Result<Config, ConfigError> {
        let Overrides { config, tcp, udp, http, device, representor, doca } = overrides;
        let doca = doca.as_ref().map(|path| path.display().to_string());
        let options = [
            ("listen.tcp", "--tcp", tcp.as_ref()),
            ("listen.udp", "--udp", udp.as_ref()),
            ("listen.http", "--http", http.as_ref()),
            ("card.device", "--device", device.as_ref()),
            ("card.representor", "--representor", representor.as_ref()),
            ("card.libraries", "--doca", doca.as_ref()),
        ];
        let (config, _) = settings::load::<Config>(ENV_PREFIX, config.as_deref(), &options)?;
        if config.listen.tcp.is_none() && config.listen.udp.is_none() {
            return Err(ConfigError::Nowhere);
        }
        Ok(config)
    }

    /// The configuration as TOML, every key with its value; those that have none stand in comments. What is shown can be read again.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let unset = [
            ("[card]", "device", self.card.device.is_none(), "the first that can"),
            ("[card]", "representor", self.card.representor.is_none(), "the only one"),
            ("[card]", "libraries", self.card.libraries.is_none(), "where DOCA is installed"),
            ("[card]", "memory_mib", self.card.memory_mib.is_none(), "seven eighths of what is free to this process"),
            ("[data]", "core", self.data.core.is_none(), "the kernel chooses"),
        ];
        settings::to_toml(self, &unset)
    }

    /// The same for a card.
    #[must_use]
    pub fn card(&self, version: &str) -> CardConfig {
        let Data { wait, spin_us, core, buffer, drain_ms } = self.data;
        let Card { device, representor, libraries, memory_mib } = self.card.clone();
        CardConfig {
            libraries,
            device,
            representor,
            memory: memory_mib.map(|mib| u64::from(mib) << 20),
            ports: CardPorts { tcp: self.listen.tcp, udp: self.listen.udp, buffer: buffer as usize },
            thread: DataThreadConfig {
                wait: wait.mode(spin_us),
                core: core.map(usize::from),
                crowded: std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 4),
                drain: Duration::from_millis(drain_ms.into()),
            },
            version: version.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nic-app.toml");
        let mut config = Config::default();
        config.listen.udp = None;
        config.card.device = Some("03:00.0".into());
        std::fs::write(&path, config.to_toml()).unwrap();
        let read = Config::load(&Overrides { config: Some(path), ..Overrides::default() }).unwrap();
        assert_eq!(read, config);
        assert!(config.to_toml().contains("# representor is not set"), "{}", config.to_toml());
    }

    #[test]
    fn the_command_line_counts_most_and_wrong_values_are_named() {
        let with = |tcp: &str, udp: &str| {
            Config::load(&Overrides { tcp: Some(tcp.into()), udp: Some(udp.into()), ..Overrides::default() })
        };
        assert_eq!(with("127.0.0.1:9", "off").unwrap().listen.tcp, Some("127.0.0.1:9".parse().unwrap()));
        assert!(with("off", "off").unwrap_err().to_string().contains("both off"));
        let error = with("seven", "off").unwrap_err().to_string();
        assert!(error.contains("seven") && error.contains("listen.tcp"), "{error}");
    }
}
