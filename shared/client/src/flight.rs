//! The requests that have no answer yet.

use std::time::Instant;

use crate::Response;

/// Requests in flight, found by id in one step. Grows to its limit and then allocates no more.
///
/// Ids only rise. A request lies at its id modulo the table's size; an id whose place is still taken is skipped.
#[derive(Debug)]
pub(crate) struct Flights {
    slots: Vec<Option<Flight>>,
    next: u64,
    live: usize,
    limit: usize,
    nearest: Option<Instant>,
}

/// One request in flight.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: u64,
    pub(crate) model: u16,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The response, once its head has arrived.
    pub(crate) partial: Option<Response>,
}

impl Flights {
    pub(crate) fn new(limit: usize) -> Flights {
        Flights { slots: Vec::new(), next: 1, live: 0, limit, nearest: None }
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn is_full(&self) -> bool {
        self.live >= self.limit
    }

    /// Adds a request and returns its id. The caller has looked at [`Flights::is_full`].
    pub(crate) fn insert(&mut self, model: u16, submitted: Instant, deadline: Option<Instant>) -> u64 {
        if self.live * 2 >= self.slots.len() {
            self.double();
        }
        // At most half of the places are taken, so this ends.
        while self.slots[self.place(self.next)].is_some() {
            self.next += 1;
        }
        let id = self.next;
        self.next += 1;
        let place = self.place(id);
        self.slots[place] = Some(Flight { id, model, submitted, deadline, partial: None });
        self.live += 1;
        if let Some(deadline) = deadline {
            self.nearest = Some(self.nearest.map_or(deadline, |n| n.min(deadline)));
        }
        id
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Flight> {
        let place = self.place(id);
        self.slots.get_mut(place)?.as_mut().filter(|f| f.id == id)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Flight> {
        let place = self.place(id);
        let flight = self.slots.get_mut(place)?.take_if(|f| f.id == id)?;
        self.live -= 1;
        Some(flight)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.slots.iter().flatten().map(|f| f.id)
    }

    /// No request expires before this. May be early, never late.
    pub(crate) fn nearest_deadline(&self) -> Option<Instant> {
        self.nearest
    }

    /// A request whose deadline has passed.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<u64> {
        if self.nearest.is_none_or(|nearest| now < nearest) {
            return None;
        }
        let soonest = self.slots.iter().flatten().filter_map(|f| Some((f.deadline?, f.id))).min();
        self.nearest = soonest.map(|(deadline, _)| deadline);
        soonest.filter(|(deadline, _)| *deadline <= now).map(|(_, id)| id)
    }

    fn place(&self, id: u64) -> usize {
        // The size is a power of two, or 0 before the first request; nothing is found then.
        id as usize & self.slots.len().wrapping_sub(1)
    }

    fn double(&mut self) {
        let size = (self.slots.len() * 2).max(8);
        let mut slots: Vec<Option<Flight>> = Vec::new();
        slots.resize_with(size, || None);
        for flight in self.slots.drain(..).flatten() {
            let place = flight.id as usize & (size - 1);
            slots[place] = Some(flight);
        }
        self.slots = slots;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ids_rise_and_stragglers_keep_their_place() {
        let mut flights = Flights::new(64);
        let now = Instant::now();
        let straggler = flights.insert(1, now, None);
        let mut last = straggler;
        for _ in 0..100 {
            let id = flights.insert(2, now, None);
            assert!(id > last);
            last = id;
            assert_eq!(flights.remove(id).map(|f| f.model), Some(2));
            assert!(flights.remove(id).is_none());
        }
        assert_eq!(flights.get_mut(straggler).map(|f| f.model), Some(1));
        assert_eq!(flights.len(), 1);
    }

    #[test]
    fn many_at_once_are_all_found() {
        let mut flights = Flights::new(1000);
        let now = Instant::now();
        let ids: Vec<u64> = (0..1000).map(|m| flights.insert(m, now, None)).collect();
        assert!(flights.is_full());
        for (model, id) in ids.iter().enumerate() {
            assert_eq!(flights.get_mut(*id).map(|f| usize::from(f.model)), Some(model));
        }
        assert_eq!(flights.ids().count(), 1000);
        assert!(flights.get_mut(u64::MAX).is_none());
    }

    #[test]
    fn the_soonest_deadline_expires_first() {
        let mut flights = Flights::new(8);
        let now = Instant::now();
        let at = |ms| Some(now + Duration::from_millis(ms));
        let late = flights.insert(0, now, at(20));
        let soon = flights.insert(0, now, at(10));
        assert_eq!(flights.expired(now), None);
        assert_eq!(flights.expired(now + Duration::from_millis(30)), Some(soon));
        flights.remove(soon);
        assert_eq!(flights.expired(now + Duration::from_millis(15)), None);
        assert_eq!(flights.expired(now + Duration::from_millis(30)), Some(late));
    }
}
