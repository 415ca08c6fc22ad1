//! What a program's `doctor` finds, line by line.

use super::say;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be, or not needed.
    Ok,
    /// It works, with something lost.
    Warn,
    /// A program of this kind has it already: nothing is wrong, but another cannot start beside it.
    Runs,
    /// It does not work.
    Fail,
}

impl Verdict {
    /// As it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Runs => "runs",
            Verdict::Fail => "FAIL",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is.
    pub advice: String,
}

/// As it should be.
#[must_use]
pub fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
}

/// It works, with something lost.
#[must_use]
pub fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Warn, found: found.into(), advice: advice.into() }
}

/// A program of this kind has it already.
#[must_use]
pub fn runs(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Runs, found: found.into(), advice: advice.into() }
}

/// It does not work.
#[must_use]
pub fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Fail, found: found.into(), advice: advice.into() }
}

/// How many checks came out so.
#[must_use]
pub fn count(checks: &[Check], verdict: Verdict) -> usize {
    checks.iter().filter(|check| check.verdict == verdict).count()
}

/// Prints the report and what it comes to. Returns whether nothing fails.
#[must_use]
pub fn report(checks: &[Check], conclusion: &str) -> bool {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for Check { name, verdict, found, advice } in checks {
        say(format_args!("{:<4}  {name:<width$}  {found}\n", verdict.name()));
        if !advice.is_empty() {
            say(format_args!("{:<4}  {:<width$}  -> {advice}\n", "", ""));
        }
    }
    say(format_args!("\n{conclusion}\n"));
    count(checks, Verdict::Fail) == 0
}
