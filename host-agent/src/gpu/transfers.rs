//! Copies that are not part of a launch: of requests that arrive or wait, of what a porter carries, and of large outputs.

use std::time::{Duration, Instant};

use splitrpc_arena::Run;
use splitrpc_gpu::{Copies, Direction, GpuArena, GpuError, Porter};
use splitrpc_wire::TensorDesc;

use super::board::ORDINARY;
use crate::config;

/// Tensors of a request that are copied while it arrives; further ones are copied when it is whole.
const EARLY_TENSORS: usize = 4;
/// What is copied of a request while it arrives ends at a multiple of so many bytes.
const EARLY_ALIGNMENT: u32 = 64;
/// The porter is ordered to carry so many bytes at least of a request that arrives: see "Requests to a model on a GPU" in `docs/results.md`.
const EARLY_ORDER: u32 = 64 << 10;
/// Launches that follow each other as closely as this keep on the GPU what stays there.
pub(super) const CLOSE: Duration = Duration::from_millis(1);
/// How long it may take a porter to carry out what it was told.
const PATIENCE: Duration = Duration::from_millis(20);

/// The copies of one board.
pub(super) struct Transfers {
    pub(super) incoming: Copies,
    pub(super) outgoing: Copies,
    porter: Option<Porter>,
    /// The last order about each slot, by pool and slot: a request that comes to nothing leaves some behind.
    orders: Vec<(u16, Box<[u64]>)>,
    last_launch: Option<Instant>,
    /// What was begun of each request, by its number.
    begun: Vec<Begun>,
    /// Requests of which a copy engine was given pieces before they were whole.
    early_by_engine: Vec<u32>,
    /// Pools of inputs of models that launch nothing.
    unlaunched: Vec<u16>,
    /// Copies up to so many bytes are part of the launch.
    pub(super) direct: u64,
    /// So many bytes at least are copied at once by a copy engine while a request arrives; 0 is none, by nobody.
    early: u32,
    /// Inputs and outputs up to so many bytes are carried by a kernel, where one launch begins.
    pub(super) by_kernel: u64,
    /// Lanes that wait for copies.
    pub(super) waited_for: usize,
    /// Why copies failed.
    pub(super) failed: Option<GpuError>,
    /// Pools whose slots a launch may still use that was given up.
    closed: Vec<u16>,
}

/// What was begun of a request's copies.
#[derive(Clone, Copy)]
struct Begun {
    /// Its slots; `NONE` where nothing was begun.
    run: Run,
    /// Bytes of each tensor from its beginning on that are copied or on their way.
    covered: [u32; EARLY_TENSORS],
    /// All of it is.
    whole: bool,
    /// Somebody else put all of it there.
    present: bool,
    /// It is in a batch that is under way.
    taken: bool,
    /// Some of it by a copy engine, which had been given so many chunks after the first of this request; 0 is none.
    by_engine: u64,
    /// The porter's last order about it, or 0.
    order: u64,
}

impl Begun {
    const NOTHING: Begun = Begun {
        run: Run::NONE,
        covered: [0; EARLY_TENSORS],
        whole: false,
        present: false,
        taken: false,
        by_engine: 0,
        order: 0,
    };

    /// Bytes of a tensor of so many from its beginning on that are copied or on their way.
    fn covered(&self, tensor: usize, bytes: u32) -> u32 {
        if self.whole { bytes } else { self.covered.get(tensor).copied().unwrap_or(0).min(bytes) }
    }
}

impl Transfers {
    pub(super) fn new(
        incoming: Copies,
        outgoing: Copies,
        porter: Option<Porter>,
        arena: &GpuArena,
        requests: usize,
        unlaunched: Vec<u16>,
        settings: &config::Gpu,
    ) -> Transfers {
        let pools = porter.as_ref().map_or(&[][..], Porter::pools);
        let slots = |pool| arena.host_arena().layout(pool).map_or(0, |layout| layout.slots() as usize);
        let orders = pools.iter().map(|&pool| (pool, vec![0; slots(pool)].into())).collect();
        Transfers {
            incoming,
            outgoing,
            porter,
            orders,
            last_launch: None,
            begun: vec![Begun::NOTHING; requests],
            early_by_engine: Vec::with_capacity(requests),
            unlaunched,
            direct: settings.chunk_bytes.into(),
            early: settings.early_bytes,
            by_kernel: settings.kernel_bytes.into(),
            waited_for: 0,
            failed: None,
            closed: Vec::new(),
        }
    }

    pub(super) fn early_bytes(&self) -> u32 {
        if self.early == 0 { u32::MAX } else { self.early }
    }

    /// Whether copies of a request in these slots have begun.
    pub(super) fn has_begun(&self, request: u32, input: Run) -> bool {
        self.begun[request as usize].run == input
    }

    /// Bytes of a request, which is whole, that are not on their way yet.
    pub(super) fn left(&self, request: u32, tensors: &[TensorDesc]) -> u64 {
        let begun = self.begun[request as usize];
        tensors.iter().enumerate().map(|(tensor, desc)| u64::from(desc.bytes - begun.covered(tensor, desc.bytes))).sum()
    }

    /// Part of a request is there. It may come to nothing, and the slots be given to another one.
    pub(super) fn arriving(&mut self, request: u32, input: Run, tensor: u16, offset: u32, len: u32) {
        if request as usize >= self.begun.len() || self.closed.contains(&input.pool) {
            return;
        }
        self.begin(request, input);
        let mut begun = self.begun[request as usize];
        let Some(&covered) = begun.covered.get(usize::from(tensor)).filter(|_| !begun.whole) else { return };
        // What is left then begins where it can be carried in whole vectors.
        let (from, end) = (covered, offset.saturating_add(len) & !(EARLY_ALIGNMENT - 1));
        // What lies between was not told of.
        if offset > from || end <= from {
            return;
        }
        let ports = self.unlaunched.contains(&input.pool) && end - from >= EARLY_ORDER && begun.by_engine == 0;
        // It would carry beside an engine, not behind it.
        if ports
            && self.can_port()
            && self.is_in_idle()
            && let Some(order) = self.order(Direction::In, input, tensor, from, end - from)
        {
            begun.order = order;
        } else if end - from >= self.early {
            // Behind those that are whole.
            self.push(request, (ORDINARY, u64::MAX), input, tensor, from, end - from);
            if let Err(error) = self.incoming.feed() {
                self.failed.get_or_insert(error);
            }
            if begun.by_engine == 0 {
                begun.by_engine = if self.incoming.all_given() { self.incoming.given() } else { u64::MAX };
                self.early_by_engine.push(request);
            }
        } else {
            // Small pieces are not worth a call of the driver each.
            return;
        }
        begun.covered[usize::from(tensor)] = end;
        self.begun[request as usize] = begun;
    }

    /// From now on it is this request that has these slots: of another one nothing is under way there any more by the porter.
    pub(super) fn begin(&mut self, request: u32, input: Run) {
        if self.begun[request as usize].run != input {
            self.forget(request);
            self.settle(input);
            // Nor is it told that who had the slots before will not come.
            let before = |this: &Transfers| {
                let mut early = this.early_by_engine.iter();
                early.position(|other| overlap(this.begun[*other as usize].run, input))
            };
            while let Some(place) = before(self) {
                let other = self.early_by_engine.swap_remove(place);
                self.forget(other);
            }
            self.begun[request as usize].run = input;
        }
    }

    /// The request is in a batch from now on, until it is forgotten.
    pub(super) fn take(&mut self, request: u32, input: Run) {
        self.begin(request, input);
        self.begun[request as usize].taken = true;
    }

    /// All of a request is there, by somebody else's doing.
    pub(super) fn present(&mut self, request: u32, input: Run) {
        self.begin(request, input);
        let begun = &mut self.begun[request as usize];
        (begun.whole, begun.present) = (true, true);
    }

    /// Whether it was somebody else who put all of a request there.
    pub(super) fn is_present(&self, request: u32) -> bool {
        self.begun[request as usize].present
    }

    /// Waits for orders about slots that a request has left behind which came to nothing. There are hardly ever any.
    fn settle(&mut self, input: Run) {
        let Some(porter) = &mut self.porter else { return };
        let Some((_, orders)) = self.orders.iter().find(|(pool, _)| *pool == input.pool) else { return };
        let rows = input.first as usize..input.first as usize + usize::from(input.rows);
        let last = orders.get(rows).and_then(|orders| orders.iter().max()).copied().unwrap_or(0);
        let (mut end, mut asked) = (Instant::now() + PATIENCE, false);
        while !porter.are_done(last) {
            if Instant::now() > end {
                // It may have ended before it saw them.
                let checked = porter.check();
                if let Some(error) = checked.err().or(asked.then_some(GpuError::NoSlots)) {
                    self.failed.get_or_insert(error);
                    return;
                }
                (end, asked) = (Instant::now() + PATIENCE, true);
            }
            std::hint::spin_loop();
        }
    }

    /// Copies what is not on its way yet of a request, in its turn.
    pub(super) fn fetch(&mut self, request: u32, rank: (u8, u64), input: Run, tensors: &[TensorDesc]) {
        self.begin(request, input);
        let by_engine = &mut self.begun[request as usize].by_engine;
        *by_engine = (*by_engine).max(1);
        self.rest(request, tensors, |this, tensor, from, len| {
            this.push(request, rank, input, tensor, from, len);
            true
        });
    }

    /// Has the porter carry what is not on its way yet of a request. Returns whether it could.
    pub(super) fn port(&mut self, request: u32, input: Run, tensors: &[TensorDesc]) -> bool {
        self.rest(request, tensors, |this, tensor, from, len| {
            let order = this.order(Direction::In, input, tensor, from, len);
            this.begun[request as usize].order = order.unwrap_or(this.begun[request as usize].order);
            order.is_some()
        })
    }

    /// Has `copy` copy, given tensor, first byte and length, what is not on its way yet of a request, which is whole then unless that
    /// returns false.
    pub(super) fn rest(
        &mut self,
        request: u32,
        tensors: &[TensorDesc],
        mut copy: impl FnMut(&mut Transfers, u16, u32, u32) -> bool,
    ) -> bool {
        let begun = self.begun[request as usize];
        for (tensor, desc) in tensors.iter().enumerate() {
            let covered = begun.covered(tensor, desc.bytes);
            if covered < desc.bytes && !copy(self, tensor as u16, covered, desc.bytes - covered) {
                return false;
            }
        }
        self.begun[request as usize].whole = true;
        true
    }

    fn push(&mut self, request: u32, rank: (u8, u64), input: Run, tensor: u16, from: u32, len: u32) {
        if let Err(error) = self.incoming.push(request, rank, input, tensor, from, len) {
            self.failed.get_or_insert(error);
        }
    }

    /// Orders the porter to carry something. Returns the order's number, or `None` where it cannot.
    pub(super) fn order(&mut self, direction: Direction, run: Run, tensor: u16, from: u32, len: u32) -> Option<u64> {
        let order = self.porter.as_mut()?.order(direction, run, tensor, from, len);
        match order {
            Ok(order) => {
                let (_, orders) = self.orders.iter_mut().find(|(pool, _)| *pool == run.pool)?;
                let rows = run.first as usize..run.first as usize + usize::from(run.rows);
                orders.get_mut(rows)?.fill(order?);
                order
            }
            Err(error) => {
                self.failed.get_or_insert(error);
                None
            }
        }
    }

    /// Whether there is a porter that could carry something now.
    pub(super) fn can_port(&self) -> bool {
        self.porter.as_ref().is_some_and(Porter::is_running)
    }

    /// Whether copy engines have nothing under way to a request's slots but what is its own: then so has whoever had them before, since they go
    /// in order.
    pub(super) fn is_alone(&mut self, request: u32) -> bool {
        match self.begun[request as usize].by_engine {
            0 => self.is_in_idle(),
            first => {
                if self.incoming.done() < first {
                    self.is_in_idle();
                }
                self.incoming.done() >= first
            }
        }
    }

    /// Whether the porter has carried out this order.
    pub(super) fn is_carried(&mut self, order: u64) -> bool {
        self.porter.as_mut().is_none_or(|porter| porter.are_done(order))
    }

    /// Whether the porter has done all that it was told of a request.
    pub(super) fn is_ported(&mut self, request: u32) -> bool {
        self.is_carried(self.begun[request as usize].order)
    }

    /// Whether all that was begun of a request is done, by whomever.
    pub(super) fn are_done(&mut self, request: u32) -> bool {
        let order = self.begun[request as usize].order;
        self.is_carried(order) && self.incoming.are_done(request)
    }

    /// A batch was taken up. Where others follow closely of which the device computes nothing, the next one finds a porter.
    pub(super) fn launched(&mut self, computes: bool) {
        if computes {
            return;
        }
        let now = Instant::now();
        let before = self.last_launch.replace(now);
        let close = before.is_some_and(|before| now.saturating_duration_since(before) < CLOSE);
        let Some(porter) = self.porter.as_mut().filter(|_| close) else { return };
        match porter.start() {
            Ok(_) => {}
            Err(error) if error.is_sticky() => {
                self.failed.get_or_insert(error);
            }
            Err(error) => {
                tracing::warn!(%error, "the copy engines carry everything from now on");
                // What it was told last it may not have seen.
                self.failed.get_or_insert(error);
                self.porter = None;
            }
        }
    }

    /// Whether no copies to the device are under way whose requests came to nothing: then none goes to slots that another request has now.
    pub(super) fn are_settled(&mut self) -> bool {
        if !self.incoming.are_settled() {
            // Nobody may have looked for a while.
            self.failed = self.incoming.pump().err().or(self.failed.take());
        }
        self.incoming.are_settled()
    }

    /// Whether no copies to the device are under way.
    pub(super) fn is_in_idle(&mut self) -> bool {
        if !self.incoming.is_idle() {
            // Nobody may have looked for a while.
            self.failed = self.incoming.pump().err().or(self.failed.take());
        }
        self.incoming.is_idle()
    }

    /// Why copies have failed, if they have. Once nothing is under way any more all that was begun is forgotten, and copied anew: which of it is
    /// missing is not known.
    pub(super) fn failure(&mut self) -> Option<GpuError> {
        let error = self.failed.clone()?;
        // What comes of that is in what has failed already.
        let _ = (self.incoming.pump(), self.outgoing.pump());
        if self.waited_for == 0 && self.incoming.is_idle() && self.outgoing.is_idle() {
            // What somebody else put there is there still.
            self.begun.iter_mut().filter(|begun| !begun.present).for_each(|begun| *begun = Begun::NOTHING);
            self.early_by_engine.clear();
            self.failed = None;
        }
        Some(error)
    }

    /// Nothing more goes into slots of these pools.
    pub(super) fn close(&mut self, pools: &[u16]) {
        self.closed.extend(pools);
    }

    /// Undoes one [`Transfers::close`]. What was begun there is begun anew, but for batches that are under way on other lanes.
    pub(super) fn open(&mut self, pools: &[u16]) {
        for pool in pools {
            if let Some(place) = self.closed.iter().position(|closed| closed == pool) {
                self.closed.swap_remove(place);
            }
        }
        for request in 0..self.begun.len() {
            let begun = &self.begun[request];
            if pools.contains(&begun.run.pool) && !begun.taken && !begun.present {
                self.forget(request as u32);
            }
        }
    }

    /// A request is in a launch, or will never be.
    pub(super) fn forget(&mut self, request: u32) {
        let begun = std::mem::replace(&mut self.begun[request as usize], Begun::NOTHING);
        if begun.by_engine > 0 {
            self.incoming.forget(request);
            self.early_by_engine.retain(|other| *other != request);
        }
    }

    /// Whether to look how far copies have come: somebody waits for them, or they for the copy engine.
    pub(super) fn are_awaited(&self) -> bool {
        self.waited_for > 0 || !self.incoming.all_given()
    }

    pub(super) fn pump(&mut self) -> bool {
        let mut any = false;
        if let Some(porter) = &mut self.porter {
            any = porter.progress();
            if porter.idle_for().is_some_and(|idle| idle > CLOSE) {
                porter.stop();
            }
        }
        if !self.are_awaited() {
            return any;
        }
        // Those that wait for copies are told.
        let mut pump = |copies: &mut Copies| {
            copies.pump().unwrap_or_else(|error| {
                self.failed.get_or_insert(error);
                false
            })
        };
        pump(&mut self.incoming) | pump(&mut self.outgoing) | any
    }

    /// The porter's last order about a request.
    pub(super) fn order_of(&self, request: u32) -> u64 {
        self.begun[request as usize].order
    }

    /// Fails where the porter has failed, which never says so by itself, and has it go on where it has ended too soon.
    pub(super) fn check(&mut self) {
        if let Some(Err(error)) = self.porter.as_mut().map(Porter::check) {
            self.failed.get_or_insert(error);
        }
    }
}

/// Whether two runs have a slot in common.
fn overlap(a: Run, b: Run) -> bool {
    let end = |run: Run| u64::from(run.first) + u64::from(run.rows);
    a.pool == b.pool && u64::from(a.first) < end(b) && u64::from(b.first) < end(a)
}
