//! Batches as lists of runs.
#![forbid(unsafe_code)]

use crate::Run;

/// Sorts `runs` by pool and slot and merges those that continue each other inside a window; returns how many are left,
/// at the front. `window_rows` tells the rows of a window (`max_batch`) for a pool.
///
/// A merged run is for reading the batch: it has its first member's generation, and no allocator takes it back.
pub fn merge_runs(runs: &mut [Run], window_rows: impl Fn(u16) -> u16) -> usize {
    runs.sort_unstable_by_key(|run| (run.pool, run.first));
    let mut kept = 0;
    for index in 0..runs.len() {
        let run = runs[index];
        if kept > 0 && continues(&runs[kept - 1], &run, window_rows(run.pool)) {
            runs[kept - 1].rows += run.rows;
        } else {
            runs[kept] = run;
            kept += 1;
        }
    }
    kept
}

fn continues(left: &Run, right: &Run, window_rows: u16) -> bool {
    let window_rows = u32::from(window_rows.max(1));
    let rows = u32::from(left.rows) + u32::from(right.rows);
    left.pool == right.pool
        && left.first.checked_add(u32::from(left.rows)) == Some(right.first)
        && left.first % window_rows + rows <= window_rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pool: u16, first: u32, rows: u16) -> Run {
        Run { pool, rows, first, generation: first + 100 }
    }

    #[test]
    fn neighbours_merge_inside_a_window_only() {
        let mut runs =
            [run(1, 9, 1), run(0, 3, 1), run(0, 4, 2), run(0, 1, 2), run(1, 8, 1), run(0, 0, 1), run(0, 7, 1)];
        let kept = merge_runs(&mut runs, |pool| if pool == 0 { 4 } else { 8 });
        assert_eq!(
            &runs[..kept],
            &[
                Run { pool: 0, rows: 4, first: 0, generation: 100 },
                Run { pool: 0, rows: 2, first: 4, generation: 104 },
                Run { pool: 0, rows: 1, first: 7, generation: 107 },
                Run { pool: 1, rows: 2, first: 8, generation: 108 },
            ]
        );
    }

    #[test]
    fn nothing_merges_to_nothing() {
        assert_eq!(merge_runs(&mut [], |_| 4), 0);
    }
}
