//! How much of the plan a comparison ran, in numbers and in words.

use serde::Serialize;

use crate::arms::{Arm, DATAGRAM};
use crate::plan::Point;
use crate::wait::Wait;

/// Which part of the plan was run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Scope {
    /// Whether that is the short plan.
    pub(crate) quick: bool,
    /// Loads that were to be run.
    pub(crate) loads: usize,
    /// Loads of the plan.
    pub(crate) loads_in_plan: usize,
    /// Arms that were not asked for.
    pub(crate) arms_left_out: Vec<Arm>,
    /// How servers elsewhere wait; null where they were started here.
    pub(crate) server_wait: Option<Wait>,
    /// Names of loads for which there was no time left.
    pub(crate) not_run: Vec<String>,
    /// Loads that this machine could not run, with the reason.
    pub(crate) failed: Vec<String>,
    /// Verdicts for which loads or arms are missing.
    pub(crate) unjudged: Vec<String>,
}

impl Scope {
    /// That of a comparison of `points` out of a plan of `whole`.
    pub(crate) fn new(
        quick: bool,
        points: &[Point],
        whole: &[Point],
        (arms, all): (&[Arm], &[Arm]),
        server_wait: Option<Wait>,
    ) -> Scope {
        Scope {
            quick,
            loads: points.len(),
            loads_in_plan: whole.len(),
            arms_left_out: all.iter().copied().filter(|arm| !arms.contains(arm)).collect(),
            server_wait,
            ..Scope::default()
        }
    }

    /// Notes which of all verdicts, those that a whole comparison gives, are not among those given.
    pub(crate) fn judge(&mut self, given: &[&str], all: impl IntoIterator<Item = String>) {
        self.unjudged = all.into_iter().filter(|what| !given.contains(&what.as_str())).collect();
    }

    /// What was run, to stand at the beginning of a sentence.
    pub(crate) fn plan(&self) -> String {
        let plan = if self.quick { "short plan" } else { "whole plan" };
        let mut parts = Vec::new();
        let run = self.loads.saturating_sub(self.not_run.len() + self.failed.len());
        if run < self.loads_in_plan {
            parts.push(format!("{run} of its {} loads", self.loads_in_plan));
        }
        if !self.arms_left_out.is_empty() {
            let arms: Vec<&str> = self.arms_left_out.iter().map(|arm| arm.name()).collect();
            parts.push(format!("not {}", arms.join(", ")));
        }
        if let Some(wait) = self.server_wait {
            parts.push(format!("only what servers elsewhere that wait in mode {} can take part in", wait.name()));
        }
        if parts.is_empty() { format!("The {plan}") } else { format!("A part of the {plan}: {}", parts.join("; ")) }
    }

    /// Why there are fewer verdicts than a whole comparison gives; `None` where all are there.
    pub(crate) fn why_unjudged(&self, given: usize) -> Option<String> {
        if self.unjudged.is_empty() {
            return None;
        }
        let count = if given == 0 {
            "No verdict".to_owned()
        } else {
            format!("{} of {} verdicts are not given", self.unjudged.len(), self.unjudged.len() + given)
        };
        let why = match self.server_wait {
            None => "they need loads or arms that were left out".to_owned(),
            Some(Wait::Spin) => format!(
                "they need servers that wait in other modes, take datagrams of other sizes than {DATAGRAM} bytes, lose \
                 some, or whose memory is seen from here, which that of servers elsewhere is not"
            ),
            Some(wait) => format!(
                "most are read off loads that spin, and the servers wait in mode {}: start them with `--wait spin`, and \
                 compare with `--server-wait spin`",
                wait.name()
            ),
        };
        Some(format!("{count}: {why}."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::verdict::{self, Found};

    fn scope(points: &[Point], arms: &[Arm], wait: Option<Wait>) -> (Scope, usize) {
        let whole = plan::quick(&Arm::NETWORK);
        let names = |points| {
            let figures = verdict::figures(&Found { points, runs: &[], idle: Some(&[]), crowd: None });
            figures.into_iter().map(|figure| figure.what).collect::<Vec<_>>()
        };
        let mut scope = Scope::new(true, points, &whole, (arms, &Arm::NETWORK), wait);
        let given = names(points);
        scope.judge(&given.iter().map(String::as_str).collect::<Vec<_>>(), names(&whole));
        (scope, given.len())
    }

    #[test]
    fn only_a_whole_plan_is_called_whole() {
        let whole = plan::quick(&Arm::NETWORK);
        let (mut all, given) = scope(&whole, &Arm::NETWORK, None);
        assert_eq!((all.plan().as_str(), all.why_unjudged(given)), ("The short plan", None));
        all.not_run.push("loss".into());
        assert_eq!(all.plan(), format!("A part of the short plan: {} of its {} loads", whole.len() - 1, whole.len()));
        let few = [Arm::FloorTcp, Arm::FloorTcpAgain, Arm::CommodityTcp, Arm::BundledTcp];
        let plan = scope(&plan::quick(&few), &few, None).0.plan();
        assert!(plan.contains("not floor-udp, floor-udp-again, commodity-udp"), "{plan}");
    }

    #[test]
    fn verdicts_that_cannot_be_given_are_missed_aloud() {
        let (light, given) = scope(&plan::quick(&Arm::NETWORK)[4..5], &Arm::NETWORK, None);
        let why = light.why_unjudged(given).unwrap();
        assert!(
            given > 0 && why.contains(&format!("{} of ", light.unjudged.len())) && why.contains("left out"),
            "{why}"
        );
        let mut adaptive = plan::quick(&Arm::NETWORK);
        adaptive.retain(|point| point.entrants.iter().all(|entrant| entrant.wait == Wait::Adaptive));
        let (elsewhere, _) = scope(&adaptive, &Arm::NETWORK, Some(Wait::Adaptive));
        let why = elsewhere.why_unjudged(0).unwrap();
        assert!(why.starts_with("No verdict: ") && why.contains("--server-wait spin"), "{why}");
        assert!(elsewhere.plan().contains("servers elsewhere that wait in mode adaptive"));
    }
}
