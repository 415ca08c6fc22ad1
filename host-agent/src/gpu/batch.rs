//! How the rows of a batch lie: in stretches of slots that follow each other.

use splitrpc_ring::Run;

/// Rows of a batch that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Their slots.
    pub(super) run: Run,
    /// Which row of the batch the first of them is.
    pub(super) row: u32,
}

/// Puts the stretches that these runs make, in the order of the batch's rows, into `stretches`. `window` tells the rows of a
/// window for a pool: a stretch does not go on from one to the next.
pub(super) fn stretches(runs: impl Iterator<Item = Run>, window: impl Fn(u16) -> u16, stretches: &mut Vec<Stretch>) {
    stretches.clear();
    let mut row = 0;
    for run in runs {
        match stretches.last_mut() {
            Some(last) if continues(&last.run, &run, window(run.pool)) => last.run.rows += run.rows,
            _ => stretches.push(Stretch { run, row }),
        }
        row += u32::from(run.rows);
    }
}

fn continues(left: &Run, right: &Run, window: u16) -> bool {
    left.pool == right.pool
        && left.first.checked_add(u32::from(left.rows)) == Some(right.first)
        && !right.first.is_multiple_of(u32::from(window.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pool: u16, first: u32, rows: u16) -> Run {
        Run { pool, rows, first, generation: 0 }
    }

    fn of(runs: &[Run]) -> Vec<(u16, u32, u16, u32)> {
        let mut found = Vec::new();
        stretches(runs.iter().copied(), |pool| if pool == 0 { 8 } else { 4 }, &mut found);
        found.iter().map(|s| (s.run.pool, s.run.first, s.run.rows, s.row)).collect()
    }

    #[test]
    fn rows_that_follow_each_other_are_one_stretch() {
        assert_eq!(of(&[run(0, 0, 1), run(0, 1, 3), run(0, 4, 4)]), [(0, 0, 8, 0)]);
        assert_eq!(of(&[]), []);
    }

    #[test]
    fn a_gap_another_pool_or_another_window_begins_a_new_one() {
        assert_eq!(of(&[run(0, 0, 1), run(0, 2, 1), run(0, 3, 2)]), [(0, 0, 1, 0), (0, 2, 3, 1)]);
        assert_eq!(of(&[run(0, 1, 1), run(0, 0, 1)]), [(0, 1, 1, 0), (0, 0, 1, 1)]);
        assert_eq!(of(&[run(0, 6, 2), run(0, 8, 1)]), [(0, 6, 2, 0), (0, 8, 1, 2)]);
        assert_eq!(of(&[run(1, 2, 2), run(1, 4, 1)]), [(1, 2, 2, 0), (1, 4, 1, 2)]);
        assert_eq!(of(&[run(0, 0, 1), run(1, 1, 1)]), [(0, 0, 1, 0), (1, 1, 1, 1)]);
        assert_eq!(of(&[run(0, u32::MAX, 1), run(0, 0, 1)]), [(0, u32::MAX, 1, 0), (0, 0, 1, 1)]);
    }
}
