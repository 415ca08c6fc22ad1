//! What a card tells of itself to whoever watches it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use splitrpc_doca::Error;
use splitrpc_telemetry::{CardEvent, Cell, Shard, Writer, render};
use splitrpc_wire::catalog::Catalog;

use crate::program::http::{self, Router, routing};
use crate::program::process;

/// What a card does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CardState {
    /// It opens its device.
    Starting,
    /// It waits for a host agent.
    Waiting,
    /// One has come, and its memory is taken into reach.
    Preparing,
    /// One is served.
    Serving,
    /// It was told to end, and finishes what is under way.
    Ending,
}

impl CardState {
    /// All of them.
    pub const ALL: [CardState; 5] =
        [CardState::Starting, CardState::Waiting, CardState::Preparing, CardState::Serving, CardState::Ending];

    /// As it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            CardState::Starting => "starting",
            CardState::Waiting => "waiting",
            CardState::Preparing => "preparing",
            CardState::Serving => "serving",
            CardState::Ending => "ending",
        }
    }
}

/// Why a host agent is lost that did not say that it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// The connection has ended.
    #[error("the host agent has gone")]
    Gone,
    /// Its process is stopped, or its machine.
    #[error("the host agent has been silent for five seconds")]
    Silent,
    /// It does not keep to what was agreed.
    #[error("the host agent said something that makes no sense here")]
    Strange,
    /// Without it the host would take nothing that follows.
    #[error("a submission could not be copied to the host")]
    Copy,
    /// A call failed that is not to fail.
    #[error("DOCA: {0}")]
    Doca(#[from] Error),
}

impl Loss {
    /// The labels of all of them.
    const REASONS: [&'static str; 5] = ["gone", "silent", "strange", "copy", "doca"];

    fn index(self) -> usize {
        match self {
            Loss::Gone => 0,
            Loss::Silent => 1,
            Loss::Strange => 2,
            Loss::Copy => 3,
            Loss::Doca(_) => 4,
        }
    }
}

/// What was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) device: String,
    pub(super) representor: String,
    pub(super) doca: String,
    pub(super) emulated: bool,
}

/// The host agent that is served, or was last.
#[derive(Debug)]
struct Served {
    shard: Arc<Shard>,
    /// By handle.
    models: Vec<String>,
}

/// What a card tells of itself. One thread, that of [`super::serve_watched`], counts; any may look.
#[derive(Debug)]
pub struct Status {
    started: Instant,
    about: OnceLock<About>,
    state: AtomicU8,
    // Of the length of all events; they are not reset when another agent comes.
    events: Vec<Cell>,
    losses: [Cell; Loss::REASONS.len()],
    // Written once an agent.
    served: Mutex<Option<Served>>,
}

impl Default for Status {
    fn default() -> Self {
        Status {
            started: Instant::now(),
            about: OnceLock::new(),
            state: AtomicU8::new(CardState::Starting as u8),
            events: CardEvent::ALL.iter().map(|_| Cell::new()).collect(),
            losses: std::array::from_fn(|_| Cell::new()),
            served: Mutex::new(None),
        }
    }
}

impl Status {
    /// What the card does now.
    #[must_use]
    pub fn state(&self) -> CardState {
        let state = self.state.load(Ordering::Relaxed);
        CardState::ALL.into_iter().find(|known| *known as u8 == state).unwrap_or(CardState::Starting)
    }

    /// How often something has happened.
    #[must_use]
    pub fn event(&self, event: CardEvent) -> u64 {
        self.events[event as usize].load()
    }

    pub(super) fn count(&self, event: CardEvent, n: u64) {
        self.events[event as usize].add(n);
    }

    pub(super) fn lost(&self, loss: Loss) {
        self.losses[loss.index()].add(1);
    }

    /// The card is told to end: it is not ready from now on.
    pub fn ends(&self) {
        self.state.store(CardState::Ending as u8, Ordering::Relaxed);
    }

    pub(super) fn enter(&self, state: CardState) {
        let enter = |now| (now != CardState::Ending as u8).then_some(state as u8);
        // Nothing follows upon the end.
        let _ = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter);
    }

    pub(super) fn is_emulated(&self) -> bool {
        self.about.get().is_some_and(|about| about.emulated)
    }

    pub(super) fn opened(&self, about: About) {
        // A status watches one card.
        let _ = self.about.set(about);
    }

    /// A host agent is served from now on, with the models of this catalogue, whose measurements those are.
    pub(super) fn serves(&self, shard: Arc<Shard>, catalog: &[u8]) {
        let mut models = Vec::new();
        for model in Catalog::new(catalog).map_while(Result::ok) {
            models.resize(models.len().max(usize::from(model.handle) + 1), String::new());
            models[usize::from(model.handle)] = model.name.to_owned();
        }
        *self.served.lock().unwrap_or_else(PoisonError::into_inner) = Some(Served { shard, models });
        self.count(CardEvent::CardHostAgentsServed, 1);
        self.enter(CardState::Serving);
    }

    /// All metrics in Prometheus' text format: the program's, the card's own, and those of the data path since the last host agent came.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut out = Writer::new();
        process::metrics(&mut out, self.started, self.state() == CardState::Serving);
        self.card(&mut out);
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        match &*served {
            Some(Served { shard, models }) => {
                let models: Vec<_> = models.iter().map(String::as_str).collect();
                render(&mut out, &models, &[&**shard]);
            }
            None => render(&mut out, &[], &[]),
        }
        out.finish()
    }

    fn card(&self, out: &mut Writer) {
        let name = "splitrpc_card_info";
        out.head(
            name,
            "gauge",
            "The card's device, the host's that is served, the version of DOCA, and whether all of that is emulated.",
        );
        if let Some(About { device, representor, doca, emulated }) = self.about.get() {
            let emulated = if *emulated { "true" } else { "false" };
            let labels =
                [("device", &**device), ("doca", &**doca), ("emulated", emulated), ("representor", &**representor)];
            out.sample(name, &labels, 1.0);
        }
        let name = "splitrpc_card_state";
        out.head(name, "gauge", "1 for what the card does now, and 0 for the rest: starting, waiting for a host agent, preparing to serve one, serving, ending.");
        for state in CardState::ALL {
            out.sample(name, &[("state", state.name())], f64::from(u8::from(state == self.state())));
        }
        for &event in CardEvent::ALL {
            let name = event.metric();
            out.head(&name, "counter", event.help());
            out.sample(&name, &[], self.event(event) as f64);
        }
        let name = "splitrpc_card_host_agents_lost_total";
        out.head(
            name,
            "counter",
            "Host agents that were lost without saying that they end, by reason: gone, silent, strange, copy, doca.",
        );
        for (reason, count) in Loss::REASONS.iter().zip(&self.losses) {
            out.sample(name, &[("reason", reason)], count.load() as f64);
        }
    }

    /// What is answered over HTTP: metrics and health. A card is ready while it serves a host agent.
    pub fn router(self: &Arc<Self>) -> Router {
        let (told, ready) = (Arc::clone(self), Arc::clone(self));
        let metrics = async move || http::metrics(told.metrics());
        let ready = async move || http::ready(ready.state() == CardState::Serving);
        Router::new()
            .route("/metrics", routing::get(metrics))
            .route("/health/live", routing::get(http::live))
            .route("/health/ready", routing::get(ready.clone()))
            .route("/v2/health/live", routing::get(http::live))
            .route("/v2/health/ready", routing::get(ready))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runbook_lists_every_metric_of_a_card_as_it_is_explained_here() {
        let metrics = Status::default().metrics();
        let published = metrics.lines().filter_map(|line| line.strip_prefix("# HELP splitrpc_")?.split_once(' '));
        let published: Vec<_> = published.filter(|(name, _)| name.starts_with("card_")).collect();
        assert!(published.len() > 8, "{metrics}");
        let runbook = include_str!("../../../docs/bluefield.md");
        let rows = runbook.lines().skip_while(|line| !line.starts_with("| metric ")).skip(2);
        let listed: Vec<_> = rows
            .take_while(|line| line.starts_with('|'))
            .map(|row| {
                let cells: Vec<_> = row.split('|').map(str::trim).collect();
                (cells[1].trim_matches('`'), cells[2])
            })
            .collect();
        assert_eq!(listed, published);
    }

    #[test]
    fn losses_and_states_are_told_apart() {
        let status = Status::default();
        status.lost(Loss::Silent);
        status.enter(CardState::Waiting);
        let metrics = status.metrics();
        for line in ["card_host_agents_lost_total{reason=\"silent\"} 1", "card_state{state=\"waiting\"} 1", "ready 0"] {
            assert!(metrics.contains(&format!("\nsplitrpc_{line}\n")), "no {line} in {metrics}");
        }
        for (index, reason) in Loss::REASONS.iter().enumerate() {
            let all = [Loss::Gone, Loss::Silent, Loss::Strange, Loss::Copy];
            assert!(all.get(index).is_none_or(|loss| loss.index() == index), "{reason}");
        }
    }
}
