use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;

use super::*;
use crate::load::arrivals::{Arrivals, Schedule};
use crate::process::ServerCpu;

/// Answers each request as soon as `busy` lies behind it; a pair of sockets stands for the network.
struct Fake {
    busy: Vec<(Instant, Instant)>,
    socket: UnixDatagram,
    right: bool,
}

impl Connection for Fake {
    fn begin(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn advance(&mut self) -> io::Result<Step> {
        let now = Instant::now();
        let stalled = self.busy.iter().any(|(from, until)| (*from..*until).contains(&now));
        Ok(if stalled { Step::Idle } else { Step::Done })
    }

    fn check(&self) -> Result<(), Fault> {
        if self.right { Ok(()) } else { Err(Fault::WrongBytes) }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn wants_write(&self) -> bool {
        false
    }
}

/// Takes its time over every answer, in which the generator sees nothing else.
struct Slow(UnixDatagram);

impl Connection for Slow {
    fn begin(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn advance(&mut self) -> io::Result<Step> {
        std::thread::sleep(Duration::from_millis(60));
        Ok(Step::Done)
    }

    fn check(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn wants_write(&self) -> bool {
        false
    }
}

/// Never answers, and counts those of its kind that have a request under way.
struct Silent {
    socket: UnixDatagram,
    under_way: Rc<Cell<usize>>,
    asked: bool,
}

impl Connection for Silent {
    fn begin(&mut self) -> io::Result<()> {
        self.asked = true;
        self.under_way.set(self.under_way.get() + 1);
        Ok(())
    }

    fn advance(&mut self) -> io::Result<Step> {
        Ok(Step::Idle)
    }

    fn check(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn wants_write(&self) -> bool {
        false
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.under_way.set(self.under_way.get() - usize::from(self.asked));
    }
}

/// Answers after a while, and counts what it was asked.
struct Paced {
    socket: UnixDatagram,
    answers_in: Duration,
    due: Option<Instant>,
    begun: Rc<Cell<usize>>,
}

impl Connection for Paced {
    fn begin(&mut self) -> io::Result<()> {
        self.due = Some(Instant::now() + self.answers_in);
        self.begun.set(self.begun.get() + 1);
        Ok(())
    }

    fn advance(&mut self) -> io::Result<Step> {
        Ok(if self.due.is_some_and(|due| Instant::now() >= due) { Step::Done } else { Step::Idle })
    }

    fn check(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn wants_write(&self) -> bool {
        false
    }
}

fn window() -> Window {
    Window {
        warm_up: Duration::ZERO,
        warm_up_requests: 0,
        measure: Duration::from_millis(200),
        timeout: Duration::from_secs(5),
    }
}

fn measure(stall: Option<(u64, u64)>, load: Load, right: bool) -> Measured {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let busy: Vec<_> = stall.into_iter().map(|(from, until)| (at(from), at(until))).collect();
    let socket = || UnixDatagram::unbound().unwrap();
    let fake: Box<dyn Connection> = Box::new(Fake { busy, socket: socket(), right });
    drive(fake, load)
}

fn drive(fake: Box<dyn Connection>, load: Load) -> Measured {
    let mut reopen = || -> anyhow::Result<Box<dyn Connection>> { anyhow::bail!("never asked") };
    run(&mut [fake], Wait::Spin, load, &window(), &Clocks::of(CpuClock::Own), &mut reopen).unwrap()
}

#[test]
fn throughput_and_cpu_time_are_of_the_time_that_really_went_by() {
    let measured = drive(Box::new(Slow(UnixDatagram::unbound().unwrap())), Load::Closed);
    // 60 ms each, one after the other.
    assert!(measured.elapsed >= Duration::from_millis(240), "{measured:?}");
    assert!(measured.completed >= 2.0, "{measured:?}");
    assert!(measured.completed * 0.06 <= measured.elapsed.as_secs_f64(), "{measured:?}");
}

#[test]
fn answers_that_come_all_at_once_are_not_rounded_to_whole_times() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    // The window is of 200 ms, and answers come every 30 ms, after 5 ms for the first time: 6.67 times in all.
    let closed = Some(at(300));
    let counted = Counted {
        from: at(100),
        until: at(300),
        client_cpu: Duration::ZERO,
        server_cpu: Reading::Known(ServerCpu::default()),
        closed,
    };
    let shares = (0..20).map(|beat| counted.share(at(5 + 30 * beat), at(35 + 30 * beat)));
    assert!((shares.sum::<f64>() - 200.0 / 30.0).abs() < 1e-6);
    // As long as it is open, what has ended is all inside.
    let open = Counted { closed: None, ..counted };
    assert!((open.share(at(120), at(150)) - 1.0).abs() < 1e-9);
    assert!((open.share(at(90), at(110)) - 0.5).abs() < 1e-9);
    assert!(open.share(at(110), at(110)) <= 1.0);
}

#[test]
fn a_closed_loop_goes_on_until_the_requests_of_its_window_have_ended() {
    let begun = Rc::new(Cell::new(0));
    let fake = |ms, begun: &Rc<Cell<usize>>| -> Box<dyn Connection> {
        let socket = UnixDatagram::unbound().unwrap();
        Box::new(Paced { socket, answers_in: Duration::from_millis(ms), due: None, begun: Rc::clone(begun) })
    };
    let mut fakes = [fake(1, &begun), fake(500, &Rc::default())];
    let mut reopen = || -> anyhow::Result<Box<dyn Connection>> { anyhow::bail!("never asked") };
    let measured =
        run(&mut fakes, Wait::Spin, Load::Closed, &window(), &Clocks::of(CpuClock::Own), &mut reopen).unwrap();
    // The slow one ends 300 ms behind the window; the quick one has gone on meanwhile, and that is not counted.
    assert_eq!(measured.latencies[1].len(), 1);
    assert!(begun.get() > measured.latencies[0].len(), "{begun:?} of {}", measured.latencies[0].len());
    assert!(measured.errors.is_empty());
}

#[test]
fn a_stall_is_charged_to_every_request_that_was_due_in_it() {
    // 1,000 requests a second, and a server that stands still for 100 of the 200 ms.
    let open = || Load::Open { schedule: Schedule::new(Arrivals::Deterministic, 1_000.0, 1), queue: 4_096 };
    let mut stalled = measure(Some((50, 150)), open(), true);
    let latencies = &mut stalled.latencies[0];
    latencies.sort_unstable();
    assert!((195..=200).contains(&latencies.len()), "{} requests were sent", latencies.len());
    // Those due at the stall's beginning waited for all of it, later ones for less: a quarter waited over 50 ms.
    let slow = latencies.iter().filter(|&&ns| ns >= 49_000_000).count();
    assert!(slow >= 45, "only {slow} requests were charged with half of the stall or more");
    assert!(latencies.last().is_some_and(|&ns| ns >= 98_000_000));
    // A closed loop sees the same stall once.
    let closed = measure(Some((50, 150)), Load::Closed, true);
    let seen = closed.latencies[0].iter().filter(|&&ns| ns >= 49_000_000).count();
    assert!(seen >= 1 && seen * 10 < slow, "{seen}");
}

#[test]
fn requests_past_the_queue_are_counted_and_not_forgotten() {
    let load = Load::Open { schedule: Schedule::new(Arrivals::Deterministic, 1_000.0, 1), queue: 10 };
    let measured = measure(Some((50, 150)), load, true);
    let sent = measured.latencies[0].len() as u64;
    assert!(measured.turned_away >= 80, "{} turned away", measured.turned_away);
    assert!((195..=200).contains(&(sent + measured.turned_away)));
}

#[test]
fn wrong_answers_are_errors_and_no_latencies() {
    let measured = measure(None, Load::Closed, false);
    assert!(measured.latencies[0].is_empty() && measured.completed == 0.0);
    assert!(measured.errors["wrong bytes in the response"] > 0);
}

#[test]
fn a_request_that_nobody_answers_times_out() {
    let load = Load::Open { schedule: Schedule::new(Arrivals::Deterministic, 100.0, 1), queue: 4 };
    let measured = measure(Some((0, 60_000)), load, true);
    let failed: u64 = measured.errors.values().sum();
    assert!(failed + measured.turned_away >= 19, "{measured:?}");
}

#[test]
fn no_connection_is_left_with_a_request_under_way() {
    let under_way = Rc::new(Cell::new(0));
    let mut connect = || -> anyhow::Result<Box<dyn Connection>> {
        Ok(Box::new(Silent { socket: UnixDatagram::unbound()?, under_way: under_way.clone(), asked: false }))
    };
    let mut connections = [connect().unwrap()];
    let load = Load::Open { schedule: Schedule::new(Arrivals::Deterministic, 1_000.0, 1), queue: 100 };
    // The second request begins when the first is given up, and is not given up itself before the window's end.
    let window = Window { measure: Duration::from_millis(5), timeout: Duration::from_millis(20), ..window() };
    run(&mut connections, Wait::Spin, load, &window, &Clocks::of(CpuClock::Own), &mut connect).unwrap();
    assert_eq!(under_way.get(), 0);
}
