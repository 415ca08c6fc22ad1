//! Requests of one model that wait for a launch, and the rule by which they become batches.

use std::collections::VecDeque;

use splitrpc_engine::{Time, US};

use crate::model::spec::ModelSpec;

/// Row shapes that are looked at in one go; what comes behind so many is launched without waiting for mates.
const MAX_SHAPES: usize = 16;

/// The order of service: priority (1 is the highest), then deadline, then arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) priority: u8,
    pub(super) deadline: Time,
    /// Unique, so that ranks name requests.
    pub(super) sequence: u64,
}

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) rank: Rank,
    /// Its record.
    pub(super) request: u32,
    pub(super) rows: u16,
    /// Of the row shapes; equal for all requests of a model whose inputs are fixed.
    pub(super) shape: u64,
    pub(super) arrived: Time,
}

/// When a batch is launched.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// Most rows in a launch. A single request goes even where it has more.
    max_rows: u32,
    /// Most requests in a launch.
    max_requests: usize,
    /// Row counts that launch at once, ascending; the last is `max_rows`.
    preferred: Vec<u32>,
    /// How long the oldest request waits for mates.
    delay: u64,
}

impl Policy {
    pub(super) fn of(spec: &ModelSpec) -> Policy {
        let max_rows = u32::from(spec.max_batch.max(1));
        let Some(batching) = spec.batching.as_ref().filter(|_| spec.max_batch > 1) else {
            return Policy { max_rows, max_requests: 1, preferred: vec![1, max_rows], delay: 0 };
        };
        let mut preferred: Vec<u32> = batching.preferred.iter().map(|p| u32::from(*p)).collect();
        preferred.retain(|p| (1..=max_rows).contains(p));
        preferred.push(max_rows);
        preferred.sort_unstable();
        preferred.dedup();
        let delay = batching.max_queue_delay_us.saturating_mul(US);
        Policy { max_rows, max_requests: usize::from(spec.max_batch), preferred, delay }
    }

    /// Most requests in a launch.
    pub(super) fn max_requests(&self) -> usize {
        self.max_requests
    }
}

/// What to do with a group of requests of one shape.
enum Group {
    /// Launch the members found.
    Ready,
    /// Look again then.
    Later(Time),
}

/// The waiting requests of one model, in the order of service.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// Not later than the earliest deadline of those that wait.
    earliest: Time,
    /// Scratch: places of a batch's members, ascending.
    members: Vec<usize>,
}

impl Queue {
    /// For at most `capacity` requests; allocates now and not again below that.
    pub(super) fn new(capacity: usize, policy: &Policy) -> Queue {
        let members = Vec::with_capacity(policy.max_requests.min(capacity));
        Queue { waiting: VecDeque::with_capacity(capacity), earliest: Time::NEVER, members }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The one that is served next.
    pub(super) fn first(&self) -> Option<&Waiting> {
        self.waiting.front()
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.earliest = self.earliest.min(waiting.rank.deadline);
        let place = self.waiting.partition_point(|w| w.rank < waiting.rank);
        self.waiting.insert(place, waiting);
    }

    /// Takes a request out of turn.
    pub(super) fn remove(&mut self, rank: Rank) -> Option<Waiting> {
        let place = self.waiting.binary_search_by(|w| w.rank.cmp(&rank)).ok()?;
        self.waiting.remove(place)
    }

    /// When [`Queue::expired`] might next find something; never too late.
    pub(super) fn earliest_deadline(&self) -> Time {
        self.earliest
    }

    /// Takes out a request whose deadline has passed, if there is one.
    pub(super) fn expired(&mut self, now: Time) -> Option<Waiting> {
        if now < self.earliest {
            return None;
        }
        if let Some(place) = self.waiting.iter().position(|w| w.rank.deadline <= now) {
            return self.waiting.remove(place);
        }
        self.earliest = self.waiting.iter().map(|w| w.rank.deadline).min().unwrap_or(Time::NEVER);
        None
    }

    /// Moves the next batch to `batch`, which comes empty, in the order of service. Returns when to look again where it
    /// stays empty; `None` is: when another request has come. `same` confirms that two requests, by record, are alike
    /// in their row shapes. `flush` launches whatever there is.
    pub(super) fn take_batch(
        &mut self,
        now: Time,
        policy: &Policy,
        flush: bool,
        same: impl Fn(u32, u32) -> bool,
        batch: &mut Vec<Waiting>,
    ) -> Option<Time> {
        let mut look_again: Option<Time> = None;
        let mut seen = [0u64; MAX_SHAPES];
        let mut shapes = 0;
        for leader in 0..self.waiting.len() {
            let shape = self.waiting[leader].shape;
            if seen[..shapes].contains(&shape) {
                continue;
            }
            match self.group(leader, now, policy, flush || shapes == MAX_SHAPES, &same) {
                Group::Ready => {
                    batch.extend(self.members.iter().map(|place| self.waiting[*place]));
                    self.remove_members();
                    return None;
                }
                Group::Later(time) => {
                    look_again = Some(look_again.map_or(time, |t| t.min(time)));
                    seen[shapes] = shape;
                    shapes += 1;
                }
            }
        }
        look_again
    }

    /// Finds the batch that the request at `leader` leads.
    fn group(
        &mut self,
        leader: usize,
        now: Time,
        policy: &Policy,
        flush: bool,
        same: impl Fn(u32, u32) -> bool,
    ) -> Group {
        let first = self.waiting[leader];
        self.members.clear();
        let (mut rows, mut oldest) = (0u32, Time::NEVER);
        // Row count and members when the largest preferred size so far was reached.
        let mut reached: Option<usize> = None;
        let mut full = false;
        for (place, next) in self.waiting.iter().enumerate().skip(leader) {
            if next.shape != first.shape || !(place == leader || same(first.request, next.request)) {
                continue;
            }
            let after = rows + u32::from(next.rows);
            if !self.members.is_empty() && after > policy.max_rows {
                // Whoever stands in front is not overtaken by a smaller one, so this batch grows no more.
                full = true;
                break;
            }
            self.members.push(place);
            rows = after;
            oldest = oldest.min(next.arrived);
            if policy.preferred.binary_search(&rows).is_ok() {
                reached = Some(self.members.len());
            }
            if rows >= policy.max_rows || self.members.len() == policy.max_requests {
                full = true;
                break;
            }
        }
        if full || flush || oldest + policy.delay <= now {
            return Group::Ready;
        }
        match reached {
            Some(members) => {
                self.members.truncate(members);
                Group::Ready
            }
            None => Group::Later(oldest + policy.delay),
        }
    }

    fn remove_members(&mut self) {
        let count = self.members.len();
        if self.members.last() == Some(&(count - 1)) {
            // The usual case: the head of the queue.
            self.waiting.drain(..count);
            return;
        }
        for place in self.members.drain(..).rev() {
            self.waiting.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(max: u32, preferred: &[u32], delay: u64) -> Policy {
        let mut preferred = preferred.to_vec();
        preferred.push(max);
        Policy { max_rows: max, max_requests: max as usize, preferred, delay }
    }

    fn waiting(sequence: u64, rows: u16) -> Waiting {
        Waiting {
            rank: Rank { priority: 0, deadline: Time::NEVER, sequence },
            request: sequence as u32,
            rows,
            shape: 0,
            arrived: Time::from_nanos(sequence),
        }
    }

    fn queue(of: impl IntoIterator<Item = Waiting>, policy: &Policy) -> Queue {
        let mut queue = Queue::new(64, policy);
        of.into_iter().for_each(|w| queue.push(w));
        queue
    }

    fn take(queue: &mut Queue, now: u64, policy: &Policy) -> (Vec<u32>, Option<Time>) {
        let mut batch = Vec::new();
        let again = queue.take_batch(Time::from_nanos(now), policy, false, |_, _| true, &mut batch);
        (batch.iter().map(|w| w.request).collect(), again)
    }

    #[test]
    fn a_batch_waits_for_mates_until_its_oldest_is_due() {
        let policy = policy(4, &[], 100);
        let mut queue = queue([waiting(1, 1), waiting(2, 1)], &policy);
        assert_eq!(take(&mut queue, 50, &policy), (vec![], Some(Time::from_nanos(101))));
        assert_eq!(take(&mut queue, 101, &policy), (vec![1, 2], None));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_full_batch_goes_at_once_and_no_more_rows_than_fit() {
        let policy = policy(4, &[], 100);
        let mut queue = queue([waiting(1, 1), waiting(2, 2), waiting(3, 2), waiting(4, 1)], &policy);
        assert_eq!(take(&mut queue, 5, &policy).0, [1, 2]);
        assert_eq!(take(&mut queue, 5, &policy), (vec![], Some(Time::from_nanos(103))));
    }

    #[test]
    fn a_preferred_size_goes_at_once() {
        let policy = policy(8, &[2, 4], 100);
        let mut queue = queue((1..=5).map(|i| waiting(i, 1)), &policy);
        assert_eq!(take(&mut queue, 5, &policy).0, [1, 2, 3, 4]);
        assert_eq!(take(&mut queue, 5, &policy), (vec![], Some(Time::from_nanos(105))));
    }

    #[test]
    fn priority_then_deadline_then_arrival() {
        let policy = policy(1, &[], 0);
        let rank = |priority, deadline, sequence| Rank { priority, deadline: Time::from_nanos(deadline), sequence };
        let with = |rank: Rank| Waiting { rank, ..waiting(rank.sequence, 1) };
        let mut queue =
            queue([with(rank(2, 5, 1)), with(rank(1, 9, 2)), with(rank(1, 9, 3)), with(rank(1, 8, 4))], &policy);
        let order: Vec<u32> = (0..4).flat_map(|_| take(&mut queue, 0, &policy).0).collect();
        assert_eq!(order, [4, 2, 3, 1]);
    }

    #[test]
    fn other_shapes_launch_apart_and_do_not_hold_each_other_up() {
        let policy = policy(2, &[], 100);
        let shaped = |sequence, shape| Waiting { shape, ..waiting(sequence, 1) };
        let mut queue = queue([shaped(1, 7), shaped(2, 8), shaped(3, 9), shaped(4, 8)], &policy);
        assert_eq!(take(&mut queue, 5, &policy).0, [2, 4]);
        assert_eq!(take(&mut queue, 5, &policy), (vec![], Some(Time::from_nanos(101))));
        assert_eq!(take(&mut queue, 101, &policy).0, [1]);
        assert_eq!(take(&mut queue, 103, &policy).0, [3]);
    }

    #[test]
    fn equal_hashes_of_unlike_shapes_do_not_batch() {
        let policy = policy(4, &[], 0);
        let mut queue = queue([waiting(1, 1), waiting(2, 1), waiting(3, 1)], &policy);
        let mut batch = Vec::new();
        queue.take_batch(Time::from_nanos(9), &policy, false, |a, b| a % 2 == b % 2, &mut batch);
        assert_eq!(batch.iter().map(|w| w.request).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn more_shapes_than_are_looked_at_are_launched_all_the_same() {
        let policy = policy(4, &[], 1_000_000);
        let mut queue = queue((0..40).map(|i| Waiting { shape: i, ..waiting(i, 1) }), &policy);
        let launched: Vec<u32> = std::iter::from_fn(|| Some(take(&mut queue, 50, &policy).0))
            .take_while(|batch| !batch.is_empty())
            .flatten()
            .collect();
        assert_eq!(launched, (16..40).collect::<Vec<u32>>());
    }

    #[test]
    fn expired_requests_are_found_wherever_they_stand() {
        let policy = policy(4, &[], 100);
        let due = |sequence, priority, deadline| Waiting {
            rank: Rank { priority, deadline: Time::from_nanos(deadline), sequence },
            ..waiting(sequence, 1)
        };
        let mut queue = queue([due(1, 1, 50), due(2, 2, 10), due(3, 3, 70)], &policy);
        assert!(queue.expired(Time::from_nanos(9)).is_none());
        assert_eq!(queue.earliest_deadline(), Time::from_nanos(10));
        assert_eq!(queue.expired(Time::from_nanos(60)).map(|w| w.request), Some(1));
        assert_eq!(queue.expired(Time::from_nanos(60)).map(|w| w.request), Some(2));
        assert!(queue.expired(Time::from_nanos(60)).is_none());
        assert_eq!(queue.earliest_deadline(), Time::from_nanos(70));
    }
}
