//! Requirements: what the path must be for the server to start, instead of falling back in silence.

use serde::{Deserialize, Serialize};
use splitrpc_engine::PathInfo;
use splitrpc_wire::path::Memory;

use super::Problem;

/// What the path must be. What is not named is not required.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Require {
    /// What carries payload into its slot on every port, such as `"kernel-to-slot"`.
    pub mover: Option<String>,
    /// The memory in which every model reads: `"host"` or `"cuda"`.
    pub memory: Option<String>,
    /// What joins engine and orchestrator, such as `"in-process"`.
    pub link: Option<String>,
    /// Ports that must be open, such as `["tcp", "udp"]`.
    pub ports: Vec<String>,
    /// Whether a software BlueField may (`true`) or may not (`false`) stand in for a card.
    pub emulated: Option<bool>,
    /// Whether the kernel must segment and merge datagrams (UDP GSO and GRO).
    pub udp_offload: bool,
}

/// What this server would do on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The path of each open port.
    pub paths: Vec<PathInfo>,
    /// Whether the kernel segments and merges datagrams.
    pub udp_offload: bool,
}

impl Require {
    /// What is required and not offered.
    #[must_use]
    pub fn check(&self, offer: &Offer) -> Vec<Problem> {
        type Name = fn(&PathInfo) -> &'static str;
        let mut problems = Vec::new();
        let named: [(_, _, Name); 2] =
            [("require.mover", &self.mover, |p| p.mover.name()), ("require.link", &self.link, |p| p.link.name())];
        for (key, wanted, have) in named {
            let Some(wanted) = wanted else { continue };
            for path in offer.paths.iter().filter(|p| have(p) != wanted) {
                problems.push(Problem::new(
                    key,
                    format!("{wanted:?} is required, but port {} has {:?} here", path.port.name(), have(path)),
                ));
            }
        }
        let known = [Memory::Host, Memory::Cuda].map(Memory::name);
        if let Some(wanted) = self.memory.as_deref().filter(|wanted| !known.contains(wanted)) {
            problems.push(Problem::new("require.memory", format!("{wanted:?} is none of {}", known.join(" and "))));
        }
        for port in &self.ports {
            if !offer.paths.iter().any(|p| p.port.name() == port) {
                let open: Vec<_> = offer.paths.iter().map(|p| p.port.name()).collect();
                problems
                    .push(Problem::new("require.ports", format!("{port:?} is required, but open are only {open:?}")));
            }
        }
        if let Some(wanted) = self.emulated {
            for path in offer.paths.iter().filter(|p| p.emulated && !wanted) {
                problems.push(Problem::new("require.emulated", format!("port {} is emulated", path.port.name())));
            }
        }
        if self.udp_offload && !offer.udp_offload {
            problems.push(Problem::new("require.udp_offload", "this kernel does not segment and merge datagrams"));
        }
        problems
    }

    /// Whether a model that reads there is what is required.
    pub(crate) fn check_model(&self, model: &str, memory: Memory) -> Option<Problem> {
        let wanted = self.memory.as_deref().filter(|wanted| *wanted != memory.name())?;
        let why = format!("{wanted:?} is required, but model {model} reads its inputs in {:?} memory", memory.name());
        Some(Problem::new("require.memory", why))
    }
}
