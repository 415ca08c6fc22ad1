//! Drives connections through one window of load and keeps what was seen.
//!
//! A latency counts from the time at which its request was *meant* to be sent: in a closed loop when the one before
//! had ended, in an open loop when the schedule says, however late a connection was free for it. A server that stalls
//! is therefore charged for every request that should have been sent meanwhile.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::connection::{Connection, Fault, Step};
use super::window::{Load, Measured, Window};
use crate::process::{Clocks, CpuClock, Reading};
use crate::wait::{Ready, Wait, Waiter};

/// The generator wakes so long before a request is due, and spins until then: what it measures is not its own sleep.
const WAKE_EARLY: Duration = Duration::from_micros(120);

#[derive(Clone, Copy)]
enum State {
    Free,
    /// A request that was due at `due` is under way since `begun`.
    Busy {
        due: Instant,
        begun: Instant,
    },
    /// The connection broke.
    Dead,
}

/// Runs one window. `reopen` replaces a connection that broke or timed out.
pub(crate) fn run(
    connections: &mut [Box<dyn Connection>],
    wait: Wait,
    load: Load,
    window: &Window,
    server_cpu: &Clocks,
    reopen: &mut dyn FnMut() -> anyhow::Result<Box<dyn Connection>>,
) -> anyhow::Result<Measured> {
    let mut driver = Driver::new(connections, wait, load, window, reopen)?;
    driver.drive(server_cpu)?;
    if let Some((from, until)) = driver.server_cpu {
        let before = server_cpu.told(from);
        driver.measured.server_cpu = server_cpu.told(until).since(before);
    }
    Ok(driver.measured)
}

struct Driver<'a> {
    connections: &'a mut [Box<dyn Connection>],
    reopen: &'a mut dyn FnMut() -> anyhow::Result<Box<dyn Connection>>,
    states: Vec<State>,
    writing: Vec<bool>,
    finished: Vec<u64>,
    /// Longest free first, so that an open loop uses all of them.
    free: VecDeque<usize>,
    busy: usize,
    waiter: Waiter,
    spins: bool,
    alarms: bool,
    /// None rings before this. Early at times, never late.
    next_alarm: Option<Instant>,
    watched: bool,
    load: Load,
    window: Window,
    waiting: VecDeque<Instant>,
    next_due: Option<Instant>,
    start: Instant,
    /// Set once the warm-up is over.
    counted: Option<Counted>,
    /// Requests under way that had begun before the counted window closed.
    straddling: usize,
    /// At both ends of the window.
    server_cpu: Option<(Reading, Reading)>,
    measured: Measured,
}

#[derive(Clone, Copy)]
struct Counted {
    from: Instant,
    until: Instant,
    client_cpu: Duration,
    server_cpu: Reading,
    closed: Option<Instant>,
}

impl Counted {
    /// The part of a request that lies inside, from 0 to 1. Whole requests would not do: where all connections are answered
    /// at nearly the same time, a window would hold one time more or less by chance.
    fn share(&self, begun: Instant, ended: Instant) -> f64 {
        let until = self.closed.unwrap_or(ended).min(ended);
        let inside = until.saturating_duration_since(begun.max(self.from)).as_secs_f64();
        (inside / ended.saturating_duration_since(begun).as_secs_f64().max(1e-9)).min(1.0)
    }
}

impl<'a> Driver<'a> {
    fn new(
        connections: &'a mut [Box<dyn Connection>],
        wait: Wait,
        load: Load,
        window: &Window,
        reopen: &'a mut dyn FnMut() -> anyhow::Result<Box<dyn Connection>>,
    ) -> anyhow::Result<Driver<'a>> {
        let count = connections.len();
        let waiter = Waiter::new(wait)?;
        let watched = !waiter.direct(count);
        if watched {
            for (token, connection) in connections.iter().enumerate() {
                waiter.add(connection.fd(), token as u64, false)?;
            }
        }
        let alarms = connections.iter().any(|connection| connection.uses_alarm());
        let measured = Measured { latencies: vec![Vec::with_capacity(4096); count], ..Measured::default() };
        Ok(Driver {
            connections,
            reopen,
            states: vec![State::Free; count],
            writing: vec![false; count],
            finished: vec![0; count],
            free: (0..count).collect(),
            busy: 0,
            waiter,
            spins: wait == Wait::Spin,
            alarms,
            next_alarm: None,
            watched,
            load,
            window: *window,
            waiting: VecDeque::new(),
            next_due: None,
            start: Instant::now(),
            counted: None,
            straddling: 0,
            server_cpu: None,
            measured,
        })
    }

    fn drive(&mut self, server_cpu: &Clocks) -> anyhow::Result<()> {
        self.start = Instant::now();
        self.next_due = self.schedule_next();
        let mut moved = true;
        let mut next_sweep = self.start + self.window.timeout / 4;
        loop {
            let now = Instant::now();
            self.turn_window(now, server_cpu);
            if let Some(counted) = self.counted
                && now >= counted.until
                && (self.idle() || now >= counted.until + self.window.timeout)
            {
                break;
            }
            moved |= self.start_due(now)?;
            if now >= next_sweep {
                next_sweep = now + self.window.timeout / 4;
                self.expire(now)?;
            }
            let until = if self.spins { None } else { Some(self.wake_at(now, next_sweep)) };
            match self.waiter.next(moved, self.connections.len(), now, until)? {
                Ready::All => {
                    moved = false;
                    for index in 0..self.connections.len() {
                        moved |= self.advance(index)?;
                    }
                }
                Ready::Listed => {
                    let ready: Vec<u64> = self.waiter.tokens().collect();
                    moved = !ready.is_empty();
                    for token in ready {
                        self.advance(token as usize)?;
                    }
                    if self.alarms {
                        self.ring_alarms()?;
                    }
                }
            }
        }
        // Whoever uses the connections next finds none with a request under way.
        for index in 0..self.states.len() {
            if let State::Busy { .. } = self.states[index] {
                self.broke(index, &Fault::Timeout)?;
            }
        }
        let unsent = std::mem::take(&mut self.waiting);
        for due in unsent {
            if self.counts(due) {
                self.measured.fail(&Fault::Timeout);
            }
        }
        Ok(())
    }

    /// Opens the counted window after the warm-up, and closes the books on CPU time at its end.
    fn turn_window(&mut self, now: Instant, server_cpu: &Clocks) {
        match &mut self.counted {
            None => {
                let warm = match self.load {
                    Load::Closed => self.finished.iter().all(|&count| count >= self.window.warm_up_requests),
                    Load::Open { .. } => true,
                };
                // A server that never answers must not keep the warm-up going.
                let given_up = now >= self.start + self.window.warm_up + 2 * self.window.timeout;
                if now >= self.start + self.window.warm_up && warm || given_up {
                    let from = Instant::now();
                    self.counted = Some(Counted {
                        from,
                        until: from + self.window.measure,
                        client_cpu: CpuClock::Own.read().unwrap_or_default(),
                        server_cpu: server_cpu.look(),
                        closed: None,
                    });
                }
            }
            Some(counted) if counted.closed.is_none() && now >= counted.until => {
                counted.closed = Some(now);
                self.straddling = self.busy;
                // Not the length planned: what was answered and the CPU time are of all the time until now.
                self.measured.elapsed = now.saturating_duration_since(counted.from);
                self.measured.client_cpu = CpuClock::Own.read().unwrap_or_default().saturating_sub(counted.client_cpu);
                self.server_cpu = Some((counted.server_cpu, server_cpu.look()));
            }
            Some(_) => {}
        }
    }

    /// Whether a request that was due then is of the counted window.
    fn counts(&self, due: Instant) -> bool {
        self.counted.is_some_and(|counted| (counted.from..counted.until).contains(&due))
    }

    /// Whether all requests of the window have ended.
    fn idle(&self) -> bool {
        self.busy == 0 && self.waiting.is_empty() && self.next_due.is_none_or(|due| self.over(due))
    }

    fn over(&self, now: Instant) -> bool {
        self.counted.is_some_and(|counted| now >= counted.until)
    }

    /// Whether a closed loop goes on: until the window is closed, and then as long as requests of it are under way, so that
    /// they end under the load under which they began. For one that does not end the others do not go on for ever.
    fn goes_on(&self, now: Instant) -> bool {
        match self.counted {
            Some(Counted { closed: Some(_), until, .. }) => {
                self.straddling > 0 && now < until + self.window.timeout / 2
            }
            _ => true,
        }
    }

    /// One request fewer is under way.
    fn ended(&mut self, begun: Instant) {
        self.busy -= 1;
        if self.counted.and_then(|counted| counted.closed).is_some_and(|closed| begun < closed) {
            self.straddling -= 1;
        }
    }

    fn schedule_next(&mut self) -> Option<Instant> {
        match &mut self.load {
            Load::Closed => None,
            Load::Open { schedule, .. } => schedule.next().map(|at| self.start + at),
        }
    }

    fn start_due(&mut self, now: Instant) -> io::Result<bool> {
        let mut began = false;
        if matches!(self.load, Load::Closed) {
            // One that cannot even begin is free again at once.
            for _ in 0..self.free.len() {
                if !self.goes_on(now) {
                    break;
                }
                let Some(index) = self.free.pop_front() else { break };
                self.begin(index, Instant::now())?;
                began = true;
            }
            return Ok(began);
        }
        while let Some(due) = self.next_due.filter(|&due| due <= now && !self.over(due)) {
            self.waiting.push_back(due);
            self.next_due = self.schedule_next();
        }
        while let Some(&due) = self.waiting.front() {
            let Some(index) = self.free.pop_front() else { break };
            self.waiting.pop_front();
            self.begin(index, due)?;
            began = true;
        }
        if let Load::Open { queue, .. } = self.load {
            while self.waiting.len() > queue {
                // The newest is turned away, as a client with a full queue would.
                let due = self.waiting.pop_back();
                self.measured.turned_away += u64::from(due.is_some_and(|due| self.counts(due)));
            }
        }
        Ok(began)
    }

    fn begin(&mut self, index: usize, due: Instant) -> io::Result<()> {
        self.busy += 1;
        self.states[index] = State::Busy { due, begun: Instant::now() };
        match self.connections[index].begin() {
            Ok(()) => {
                self.note_alarm(index);
                self.watch_writes(index)
            }
            Err(error) => self.broke(index, &Fault::Refused(error.to_string())),
        }
    }

    fn advance(&mut self, index: usize) -> io::Result<bool> {
        let Some(State::Busy { due, begun }) = self.states.get(index).copied() else { return Ok(false) };
        let step = match self.connections[index].advance() {
            Ok(step) => step,
            Err(error) => {
                self.broke(index, &Fault::Refused(error.to_string()))?;
                return Ok(true);
            }
        };
        if step == Step::Done {
            let now = Instant::now();
            self.finish(index, due, begun, now);
            if matches!(self.load, Load::Closed) && self.goes_on(now) {
                self.begin(index, Instant::now())?;
            } else {
                self.free.push_back(index);
            }
        }
        self.note_alarm(index);
        self.watch_writes(index)?;
        Ok(step != Step::Idle)
    }

    fn finish(&mut self, index: usize, due: Instant, begun: Instant, now: Instant) {
        self.states[index] = State::Free;
        self.ended(begun);
        self.finished[index] += 1;
        let outcome = self.connections[index].check();
        if let (Some(counted), Ok(())) = (&self.counted, &outcome) {
            self.measured.completed += counted.share(begun, now);
        }
        if !self.counts(due) {
            return;
        }
        match outcome {
            Ok(()) => {
                self.measured.latencies[index].push(now.saturating_duration_since(due).as_nanos() as u64);
                if let Some(path) = self.connections[index].path() {
                    self.measured.paths.add(&path);
                }
            }
            Err(fault) => self.measured.fail(&fault),
        }
    }

    fn expire(&mut self, now: Instant) -> io::Result<()> {
        for index in 0..self.states.len() {
            if let State::Busy { begun, .. } = self.states[index]
                && now.saturating_duration_since(begun) >= self.window.timeout
            {
                self.broke(index, &Fault::Timeout)?;
            }
        }
        Ok(())
    }

    /// A connection failed under a request: counts it and opens another in its place.
    fn broke(&mut self, index: usize, fault: &Fault) -> io::Result<()> {
        if let State::Busy { due, begun } = self.states[index] {
            if self.counts(due) {
                self.measured.fail(fault);
            }
            self.ended(begun);
        }
        self.states[index] = State::Dead;
        self.finished[index] += 1;
        let Ok(fresh) = (self.reopen)() else { return Ok(()) };
        if self.watched {
            // The old socket may be gone from the poller already.
            let _ = self.waiter.remove(self.connections[index].fd());
        }
        self.connections[index] = fresh;
        if self.watched {
            self.waiter.add(self.connections[index].fd(), index as u64, false)?;
        }
        self.writing[index] = false;
        self.states[index] = State::Free;
        self.free.push_back(index);
        Ok(())
    }

    fn watch_writes(&mut self, index: usize) -> io::Result<()> {
        if !self.watched || !matches!(self.states[index], State::Busy { .. } | State::Free) {
            return Ok(());
        }
        let writing = matches!(self.states[index], State::Busy { .. }) && self.connections[index].wants_write();
        if writing != self.writing[index] {
            self.waiter.modify(self.connections[index].fd(), index as u64, writing)?;
            self.writing[index] = writing;
        }
        Ok(())
    }

    fn note_alarm(&mut self, index: usize) {
        if self.alarms
            && let State::Busy { .. } = self.states[index]
            && let Some(alarm) = self.connections[index].alarm()
        {
            self.next_alarm = Some(self.next_alarm.map_or(alarm, |next| next.min(alarm)));
        }
    }

    fn ring_alarms(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self.next_alarm.is_none_or(|next| now < next) {
            return Ok(());
        }
        self.next_alarm = None;
        for index in 0..self.connections.len() {
            let due = matches!(self.states[index], State::Busy { .. })
                && self.connections[index].alarm().is_some_and(|alarm| alarm <= now);
            if due {
                self.advance(index)?;
            } else {
                self.note_alarm(index);
            }
        }
        Ok(())
    }

    fn wake_at(&self, now: Instant, sweep: Instant) -> Instant {
        let mut until = sweep;
        if let Some(counted) = self.counted.filter(|counted| counted.closed.is_none()) {
            until = until.min(counted.until);
        } else if self.counted.is_none() {
            until = until.min(self.start + self.window.warm_up);
        }
        if let Some(alarm) = self.next_alarm {
            until = until.min(alarm);
        }
        if let Some(due) = self.next_due.filter(|&due| !self.over(due)) {
            until = until.min(due.checked_sub(WAKE_EARLY).unwrap_or(due));
        }
        until.max(now)
    }
}

#[cfg(test)]
mod tests;
