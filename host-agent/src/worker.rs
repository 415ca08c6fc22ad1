//! Worker threads for runtimes that take their time. Instances of a model are shared by all shards; a batch goes to an
//! idle one, and until there is one it keeps gathering requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use splitrpc_arena::Arena;
use splitrpc_engine::Time;
use splitrpc_ring::Nap;

use crate::runtime::{Batch, Factory, Launch, Runtime, RuntimeError};

/// Rouses a data thread that may be asleep. Called from worker threads.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Times that an idle worker looks for work before it sleeps.
const SPINS: u32 = 200;

/// A batch on its way to a runtime and back. Its buffers are used again and again.
#[derive(Debug)]
pub struct Job {
    /// The requests.
    pub batch: Batch,
    /// What the runtime did.
    pub launch: Launch,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// Whether the instance panicked and was replaced.
    pub replaced: bool,
    /// Nanoseconds that the call took.
    pub execute_ns: u64,
    pub(crate) arena: Arena,
    pub(crate) shard: usize,
    /// Records of the requests, in the batch's order.
    pub(crate) requests: Vec<u32>,
    pub(crate) launched: Time,
    pub(crate) taken_up: Time,
}

impl Job {
    pub(crate) fn new(arena: Arena, shard: usize, max_requests: usize) -> Job {
        Job {
            batch: Batch::default(),
            launch: Launch::default(),
            error: None,
            replaced: false,
            execute_ns: 0,
            arena,
            shard,
            requests: Vec::with_capacity(max_requests),
            launched: Time::default(),
            taken_up: Time::default(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.batch.clear();
        self.launch.clear();
        self.requests.clear();
        self.error = None;
        self.replaced = false;
        self.execute_ns = 0;
    }

    /// Computes the batch. An instance that panics is replaced, and its batch has failed.
    pub fn run(&mut self, instance: &mut Instance) {
        let start = Instant::now();
        let outcome = match &mut instance.runtime {
            Some(runtime) => {
                let call = || runtime.execute(&self.arena, &self.batch, &mut self.launch);
                // What the closure touches is thrown away after a panic.
                catch_unwind(AssertUnwindSafe(call)).map_err(|panic| panic_text(panic.as_ref()))
            }
            None => Err("the instance could not be started again".into()),
        };
        self.error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(RuntimeError(text))) => Some(text),
            Err(panic) => {
                tracing::error!(model = instance.factory.spec().name, %panic, "instance panicked and is replaced");
                self.replaced = instance.replace();
                Some(format!("the model panicked: {panic}"))
            }
        };
        self.execute_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".into())
}

/// A runtime, and what makes another one.
pub struct Instance {
    factory: Arc<dyn Factory>,
    /// None after a panic, while no replacement could be made.
    runtime: Option<Box<dyn Runtime>>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("model", &self.factory.spec().name).finish_non_exhaustive()
    }
}

impl Instance {
    /// A new instance.
    ///
    /// # Errors
    /// The factory's.
    pub fn new(factory: &Arc<dyn Factory>) -> Result<Instance, RuntimeError> {
        Ok(Instance { factory: Arc::clone(factory), runtime: Some(factory.instance()?) })
    }

    /// The runtime; `None` after a panic from which it could not be replaced.
    pub fn runtime(&mut self) -> Option<&mut dyn Runtime> {
        // Written out because the trait object's lifetime has to shrink.
        match &mut self.runtime {
            Some(runtime) => Some(&mut **runtime),
            None => None,
        }
    }

    fn replace(&mut self) -> bool {
        let made = catch_unwind(AssertUnwindSafe(|| self.factory.instance()));
        self.runtime = made.ok().and_then(Result::ok);
        self.runtime.is_some()
    }
}

/// The worker threads of one model. Dropping them waits for those that are idle; one that computes is left to itself, since
/// nobody waits for its result any more and it may take as long as it likes.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    workers: Vec<Worker>,
    shards: Vec<Mailbox>,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Worker {
    /// Claimed by a shard until the result is back in its mailbox.
    busy: AtomicBool,
    inbox: ArrayQueue<Box<Job>>,
    thread: OnceLock<Thread>,
}

struct Mailbox {
    results: ArrayQueue<Box<Job>>,
    /// The shard has a batch and found no idle worker.
    waiting: Nap,
    waker: OnceLock<Waker>,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("results", &self.results.len()).finish_non_exhaustive()
    }
}

/// The right to hand one batch to a worker that is idle.
#[derive(Debug)]
#[must_use = "a worker stays claimed until it has had a job"]
pub(crate) struct Claim(usize);

impl Workers {
    /// Starts a thread for each instance. `shards` data threads may hand them batches.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(model: &str, instances: Vec<Instance>, shards: usize) -> std::io::Result<Workers> {
        let count = instances.len().max(1);
        let worker = || Worker { busy: AtomicBool::new(false), inbox: ArrayQueue::new(1), thread: OnceLock::new() };
        let mailbox = || Mailbox { results: ArrayQueue::new(count), waiting: Nap::new(), waker: OnceLock::new() };
        let shared = Arc::new(Shared {
            workers: instances.iter().map(|_| worker()).collect(),
            shards: (0..shards).map(|_| mailbox()).collect(),
            stop: AtomicBool::new(false),
        });
        let mut workers = Workers { shared: Arc::clone(&shared), threads: Vec::new() };
        for (index, instance) in instances.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            // The kernel shows at most 15 bytes of a name.
            let name = format!("w{index}-{model}").chars().take(15).collect();
            let handle = thread::Builder::new().name(name).spawn(move || shared.work(index, instance))?;
            // Set once, before anyone can claim the worker.
            let _ = workers.shared.workers[index].thread.set(handle.thread().clone());
            workers.threads.push(handle);
        }
        Ok(workers)
    }

    /// How many batches can be under way at once.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.shared.workers.len()
    }

    /// Says how a shard is roused when a result waits for it. The first call counts.
    pub(crate) fn set_waker(&self, shard: usize, waker: Waker) {
        let _ = self.shared.shards[shard].waker.set(waker);
    }

    /// An idle worker. Where there is none, the shard is roused when there is.
    pub(crate) fn claim(&self, shard: usize) -> Option<Claim> {
        self.try_claim().or_else(|| {
            let waiting = &self.shared.shards[shard].waiting;
            waiting.announce();
            // A worker may have become idle before it could see that.
            let claim = self.try_claim();
            if claim.is_some() {
                waiting.over();
            }
            claim
        })
    }

    fn try_claim(&self) -> Option<Claim> {
        // A look first, which takes no cache line from those that are busy.
        let claims = |w: &Worker| !w.busy.load(Ordering::Relaxed) && !w.busy.swap(true, Ordering::SeqCst);
        self.shared.workers.iter().position(claims).map(Claim)
    }

    /// Gives up a claim that was not used.
    #[expect(clippy::needless_pass_by_value, reason = "a claim is used once")]
    pub(crate) fn release(&self, claim: Claim) {
        self.shared.idle(claim.0);
    }

    /// Hands a batch to the claimed worker.
    #[expect(clippy::needless_pass_by_value, reason = "a claim is used once")]
    pub(crate) fn hand_over(&self, claim: Claim, job: Box<Job>) {
        let worker = &self.shared.workers[claim.0];
        // The claim says that the inbox is empty.
        let _ = worker.inbox.push(job);
        if let Some(thread) = worker.thread.get() {
            thread.unpark();
        }
    }

    /// A batch that is done.
    pub(crate) fn result(&self, shard: usize) -> Option<Box<Job>> {
        self.shared.shards[shard].results.pop()
    }
}

impl Shared {
    fn work(&self, index: usize, mut instance: Instance) {
        while let Some(mut job) = self.next_job(index) {
            job.run(&mut instance);
            let shard = job.shard;
            // There are no more jobs than workers, so the mailbox has room.
            let _ = self.shards[shard].results.push(job);
            self.idle(index);
            self.wake(shard);
        }
    }

    fn next_job(&self, index: usize) -> Option<Box<Job>> {
        let mut spins = 0;
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if let Some(job) = self.workers[index].inbox.pop() {
                return Some(job);
            }
            if spins < SPINS {
                spins += 1;
                thread::yield_now();
            } else {
                thread::park();
            }
        }
    }

    /// Frees a worker, and rouses the shards that wait for one.
    fn idle(&self, index: usize) {
        self.workers[index].busy.store(false, Ordering::SeqCst);
        for (shard, mailbox) in self.shards.iter().enumerate() {
            if mailbox.waiting.ends() {
                self.wake(shard);
            }
        }
    }

    fn wake(&self, shard: usize) {
        if let Some(waker) = self.shards[shard].waker.get() {
            waker();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (worker, thread) in self.shared.workers.iter().zip(self.threads.drain(..)) {
            thread.thread().unpark();
            if !worker.busy.load(Ordering::SeqCst) {
                // A worker only panics in code of its own that cannot; the thread is over either way.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::model::spec::ModelSpec;
    use crate::runtime::Execution;
    use crate::runtime::null::Null;

    /// A model that says when it begins to compute, and computes until it is told to stop.
    struct Endless {
        spec: ModelSpec,
        ends: Mutex<Option<(Sender<()>, Receiver<()>)>>,
    }

    impl Factory for Endless {
        fn spec(&self) -> &ModelSpec {
            &self.spec
        }

        fn execution(&self) -> Execution {
            Execution::Threads
        }

        fn instance(&self) -> Result<Box<dyn Runtime>, RuntimeError> {
            let (began, end) = self.ends.lock().unwrap().take().ok_or_else(|| RuntimeError("one is enough".into()))?;
            Ok(Box::new(Computing { began, end }))
        }
    }

    struct Computing {
        began: Sender<()>,
        end: Receiver<()>,
    }

    impl Runtime for Computing {
        fn execute(&mut self, _: &Arena, _: &Batch, _: &mut Launch) -> Result<(), RuntimeError> {
            self.began.send(()).unwrap();
            // An error means that nobody can tell it any more.
            let _ = self.end.recv();
            Ok(())
        }
    }

    #[test]
    fn who_computes_without_end_does_not_hold_up_the_end() {
        let ((began, begins), (end, ends)) = (channel(), channel());
        let spec = Null::new(1).spec().clone();
        let factory: Arc<dyn Factory> = Arc::new(Endless { spec, ends: Mutex::new(Some((began, ends))) });
        let workers = Workers::start("endless", vec![Instance::new(&factory).unwrap()], 1).unwrap();
        let claim = workers.claim(0).unwrap();
        workers.hand_over(claim, Box::new(Job::new(Arena::new("test", &[], 1).unwrap(), 0, 1)));
        begins.recv().unwrap();
        drop(workers);
        // It is still at it: else nobody would be there to hear this.
        end.send(()).unwrap();
    }
}
