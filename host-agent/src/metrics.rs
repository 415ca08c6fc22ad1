//! What the server tells of itself: models and their states, readiness, and the metrics of all shards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nic_app::program::process;
use nic_app::setup::Ready;
use serde::Serialize;
use splitrpc_telemetry::{Outage, Shard, Writer, render};

use crate::config::GpuMemory;
use crate::model::spec::{ModelSpec, TensorSpec};
use crate::smartnic::GpuWay;

/// Whether a model is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// It is served.
    Ready,
    /// It is not, for the reason given.
    Failed,
}

/// A tensor of a model, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its type, as the Open Inference Protocol calls it.
    pub datatype: &'static str,
    /// Its dimensions; -1 varies.
    pub shape: Vec<i64>,
}

impl From<&TensorSpec> for TensorReport {
    fn from(tensor: &TensorSpec) -> TensorReport {
        let shape = tensor.dims.iter().map(|d| d.map_or(-1, i64::from)).collect();
        TensorReport { name: tensor.name.clone(), datatype: tensor.dtype.name(), shape }
    }
}

/// A model and its state, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelReport {
    /// Its name, or where it has none its file.
    pub name: String,
    /// The version that is served, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u16>,
    /// Whether it is served.
    pub state: ModelState,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Most rows in one batch, 0 where it has no batch dimension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch_size: Option<u16>,
    /// What it takes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<TensorReport>,
    /// What it gives.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<TensorReport>,
}

impl ModelReport {
    /// A model that is served.
    #[must_use]
    pub fn ready(spec: &ModelSpec) -> ModelReport {
        ModelReport {
            name: spec.name.clone(),
            version: Some(spec.version),
            state: ModelState::Ready,
            reason: None,
            max_batch_size: Some(spec.max_batch),
            inputs: spec.inputs.iter().map(TensorReport::from).collect(),
            outputs: spec.outputs.iter().map(TensorReport::from).collect(),
        }
    }

    /// A model that is not.
    #[must_use]
    pub fn failed(name: impl Into<String>, reason: impl Into<String>) -> ModelReport {
        ModelReport {
            name: name.into(),
            version: None,
            state: ModelState::Failed,
            reason: Some(reason.into()),
            max_batch_size: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }
}

/// What is shown over HTTP.
#[derive(Debug)]
pub struct Status {
    models: Vec<ModelReport>,
    shards: Vec<Arc<Shard>>,
    ready: AtomicBool,
    /// What a card says of itself while it serves.
    card: Mutex<Option<Ready>>,
    /// Beside a card, how requests come into the GPU's slots, and what was wanted.
    gpu_way: Mutex<Option<(GpuWay, GpuMemory)>>,
    started: Instant,
}

impl Status {
    /// Of a server with these models; those that are ready have the handles 0, 1, ... in this order. Not ready yet.
    #[must_use]
    pub fn new(models: Vec<ModelReport>, shards: Vec<Arc<Shard>>) -> Status {
        Status {
            models,
            shards,
            ready: AtomicBool::new(false),
            card: Mutex::default(),
            gpu_way: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// All models, served or not, as they are now.
    #[must_use]
    pub fn models(&self) -> Vec<ModelReport> {
        let each = self.models.iter().enumerate();
        each.map(|(handle, known)| match self.outage(handle) {
            Some(why) => ModelReport { state: ModelState::Failed, reason: Some(why.into()), ..known.clone() },
            None => known.clone(),
        })
        .collect()
    }

    /// Why a model that was ready is not served now, in whichever shard.
    fn outage(&self, handle: usize) -> Option<&'static str> {
        let handle = u16::try_from(handle).ok()?;
        let outage = self.shards.iter().find_map(|shard| shard.model(handle)?.outage())?;
        Some(match outage {
            Outage::Stuck => "a launch does not end; it is not served until that does",
            Outage::DeviceLost => "the GPU is lost to this process; start the agent anew",
        })
    }

    /// Says whether requests are taken.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::SeqCst);
    }

    /// Whether requests are taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// Says where a card listens, which then takes requests, or that there is none.
    pub fn set_card(&self, card: Option<&Ready>) {
        *self.card.lock().unwrap_or_else(PoisonError::into_inner) = card.cloned();
        self.set_ready(card.is_some());
    }

    /// The card that takes requests, if there is one.
    #[must_use]
    pub fn card(&self) -> Option<Ready> {
        self.card.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says how requests come into the GPU's slots beside a card, and what of that was wanted.
    pub fn set_gpu_way(&self, way: GpuWay, wanted: GpuMemory) {
        *self.gpu_way.lock().unwrap_or_else(PoisonError::into_inner) = Some((way, wanted));
    }

    /// The models as JSON.
    #[must_use]
    pub fn models_json(&self) -> String {
        // Of strings and numbers only, which JSON can hold.
        serde_json::json!({ "models": self.models() }).to_string()
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut out = Writer::new();
        process::metrics(&mut out, self.started, self.is_ready());
        out.head(
            "splitrpc_card_gpu_memory",
            "gauge",
            "1 for the way in which requests come from a card into the GPU's slots.",
        );
        if let Some((way, wanted)) = *self.gpu_way.lock().unwrap_or_else(PoisonError::into_inner) {
            out.sample("splitrpc_card_gpu_memory", &[("way", way.name()), ("wanted", wanted.name())], 1.0);
        }
        out.head("splitrpc_model_ready", "gauge", "1 for a model that is served, 0 for one that is not.");
        for model in self.models() {
            let ready = f64::from(u8::from(model.state == ModelState::Ready));
            out.sample("splitrpc_model_ready", &[("model", &model.name)], ready);
        }
        let ready = self.models.iter().filter(|m| m.state == ModelState::Ready);
        let names: Vec<&str> = ready.map(|m| m.name.as_str()).collect();
        let shards: Vec<&Shard> = self.shards.iter().map(|shard| &**shard).collect();
        render(&mut out, &names, &shards);
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_lists_every_metric_as_it_is_explained_here() {
        let metrics = Status::new(Vec::new(), vec![Arc::new(Shard::new(0))]).metrics();
        let published = metrics.lines().filter_map(|line| line.strip_prefix("# HELP splitrpc_")?.split_once(' '));
        let published: Vec<(&str, &str)> = published.collect();
        assert!(published.len() > 50, "{metrics}");
        let manual = include_str!("../../docs/operating.md");
        let rows = manual.lines().skip_while(|line| !line.starts_with("| metric ")).skip(2);
        let listed: Vec<(&str, &str)> = rows
            .take_while(|line| line.starts_with('|'))
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                (cells[1].trim_matches('`'), cells[2])
            })
            .collect();
        assert_eq!(listed, published);
    }
}
