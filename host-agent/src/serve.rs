//! A server from its configuration: models loaded and warmed, pools laid out, shards started, and all of it ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use nic_app::program::http::{Bounds, Http};
use splitrpc_telemetry::Shard as Telemetry;

use crate::config::{Builtin, Config, Limits, Machine, NicKind, Problem, USUAL_SESSIONS};
use crate::gpu::{Gpu, LazyGpu, Reserved};
use crate::http::router;
use crate::metrics::{ModelReport, ModelState, Status};
use crate::model::spec::ModelSpec;
use crate::model::{ModelError, embedded, load_repository};
use crate::orchestrator::{Computing, Served};
use crate::plan::{self, Plan, PlanError};
use crate::runtime::echo::Echo;
use crate::runtime::null::Null;
use crate::runtime::null_gpu::null_gpu;
use crate::runtime::{Execution, Factory, RuntimeError};
use crate::shard::{self, Addresses, Common, Running, StartError};
use crate::warmup::warm_up;
use crate::worker::{Instance, Job, Workers};

/// Everything that a server needs and that does not depend on a data thread.
#[derive(Debug)]
pub struct Built {
    /// The configuration, checked.
    pub config: Config,
    /// The machine that it was checked against.
    pub machine: Machine,
    /// The models that are served, by handle.
    pub models: Vec<Served>,
    /// The GPU that some of them compute on.
    pub gpu: Option<Gpu>,
    /// How their tensors are laid out in each shard.
    pub plan: Plan,
    /// The encoded catalogue.
    pub catalog: Vec<u8>,
    /// Measurements, one a shard.
    pub telemetry: Vec<Arc<Telemetry>>,
    /// What is told over HTTP.
    pub status: Arc<Status>,
}

/// Why a server could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration cannot be served here; each line names a key.
    #[error("{}", lines(.0))]
    Config(Vec<Problem>),
    /// The model repository cannot be read.
    #[error("model repository: {0}")]
    Repository(#[from] ModelError),
    /// The models that can be served take too much together.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Not one model can be served.
    #[error("no model can be served:\n{}", reasons(.0))]
    NoModel(Vec<ModelReport>),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn reasons(models: &[ModelReport]) -> String {
    let reason = |m: &ModelReport| format!("  {}: {}", m.name, m.reason.as_deref().unwrap_or("ready"));
    models.iter().map(reason).collect::<Vec<_>>().join("\n")
}

/// Checks the configuration, loads and warms the models, and lays out their pools. A model that cannot be served does not
/// keep the others from it.
///
/// # Errors
/// [`BuildError`].
pub fn build(config: Config) -> Result<Built, BuildError> {
    build_without(config, &[], &mut |_| {})
}

/// The same without some models, of which it is known why they are not served. `spoils` is told of the model with which the GPU was lost: whoever
/// goes on is left with those of the CPU.
///
/// # Errors
/// [`BuildError`].
pub fn build_without(
    config: Config,
    left_out: &[ModelReport],
    spoils: &mut dyn FnMut(&ModelReport),
) -> Result<Built, BuildError> {
    Machine::raise_limits();
    let machine = Machine::here();
    let problems = config.check(&machine);
    if !problems.is_empty() {
        return Err(BuildError::Config(problems));
    }
    let sessions = config.limits.sessions;
    if sessions < USUAL_SESSIONS && sessions == Limits::usual_sessions(config.data.threads) {
        tracing::warn!(sessions, "the limit of open files leaves room for fewer clients than usual; see `ulimit -Hn`");
    }
    let mut failed = Vec::new();
    let mut models = Vec::new();
    let gpu = LazyGpu::new(config.gpu.clone());
    let mut reserved = Reserved::default();
    for candidate in candidates(&config, &gpu)? {
        let served = candidate.and_then(|factory| {
            let name = &factory.spec().name;
            if let Some(known) = left_out.iter().find(|model| model.name == *name) {
                return Err(known.clone());
            }
            let outage = || gpu.opened().and_then(Gpu::outage);
            let was_lost = outage().is_some();
            serve(&factory, &config, &gpu, &mut reserved).map_err(|error| {
                let file = factory.file().map(|file| format!("{}: ", file.display()));
                let report = ModelReport::failed(name, format!("{}{error}", file.unwrap_or_default()));
                if !was_lost && outage().is_some() {
                    spoils(&report);
                }
                report
            })
        });
        match served {
            Ok(served) => models.push(served),
            Err(report) => {
                tracing::error!(model = report.name, reason = report.reason, "model is not served");
                failed.push(report);
            }
        }
    }
    let gpu = gpu.opened().cloned();
    if let Some(why) = gpu.as_ref().and_then(Gpu::outage) {
        fail_on_gpu(&mut models, &mut failed, why);
    }
    lay_out(config, machine, models, failed, gpu)
}

/// Takes out the models that compute on the GPU, for this reason.
fn fail_on_gpu(models: &mut Vec<Served>, failed: &mut Vec<ModelReport>, reason: &str) {
    models.retain(|model| {
        let on_gpu = matches!(model.computing, Computing::Device);
        if on_gpu {
            let report = ModelReport::failed(&model.factory.spec().name, reason);
            tracing::error!(model = report.name, reason, "model is not served");
            failed.push(report);
        }
        !on_gpu
    });
}

/// A server of these models.
fn lay_out(
    config: Config,
    machine: Machine,
    models: Vec<Served>,
    mut failed: Vec<ModelReport>,
    gpu: Option<Gpu>,
) -> Result<Built, BuildError> {
    if models.is_empty() {
        return Err(BuildError::NoModel(failed));
    }
    let elsewhere: Vec<Problem> = models.iter().filter_map(|m| elsewhere(&config, &m.factory)).collect();
    if !elsewhere.is_empty() {
        return Err(BuildError::Config(elsewhere));
    }
    let specs = || models.iter().map(|m| m.factory.spec());
    // `serve` has tried each of them, but not all together.
    let mut plan = Plan::new(specs(), &config.limits)?;
    if config.nic.kind == NicKind::Smartnic {
        plan = plan.with_all_in_slots(specs(), &config.limits)?;
    }
    let catalog = plan::catalog(specs()).expect("records of models that were tried one by one");
    let telemetry: Vec<_> = (0..config.data.threads).map(|_| Arc::new(Telemetry::new(models.len()))).collect();
    let mut reports: Vec<ModelReport> = specs().map(ModelReport::ready).collect();
    reports.append(&mut failed);
    let status = Arc::new(Status::new(reports, telemetry.clone()));
    let on_device = |name: &String| {
        models.iter().any(|m| m.factory.spec().name == *name && matches!(m.computing, Computing::Device))
    };
    for model in config.gpu.pre_launched.iter().filter(|name| !on_device(name)) {
        tracing::warn!(model, "gpu.pre_launched names a model that is not served from a GPU");
    }
    let gpu = gpu.filter(|_| models.iter().any(|m| matches!(m.computing, Computing::Device)));
    Ok(Built { config, machine, models, gpu, plan, catalog, telemetry, status })
}

impl Built {
    /// The same without the models that compute on the GPU.
    fn without_gpu(self, reason: &str) -> Result<Built, BuildError> {
        let Built { config, machine, mut models, status, .. } = self;
        let mut failed: Vec<_> = status.models().into_iter().filter(|m| m.state == ModelState::Failed).collect();
        fail_on_gpu(&mut models, &mut failed, reason);
        lay_out(config, machine, models, failed, None)
    }
}

/// What is required, where a model reads its inputs elsewhere.
fn elsewhere(config: &Config, model: &Arc<dyn Factory>) -> Option<Problem> {
    config.require.check_model(&model.spec().name, model.execution().memory())
}

/// A model that can be loaded, with what is required and not so of it, or what is wrong with it.
pub type Loadable = Result<(ModelSpec, Option<Problem>), ModelReport>;

/// All models that the configuration names.
///
/// # Errors
/// [`ModelError`] where the repository cannot be read.
pub fn specs(config: &Config) -> Result<Vec<Loadable>, ModelError> {
    let gpu = LazyGpu::new(config.gpu.clone());
    let told = |model: Arc<dyn Factory>| (model.spec().clone(), elsewhere(config, &model));
    Ok(candidates(config, &gpu)?.into_iter().map(|model| model.map(told)).collect())
}

type Candidate = Result<Arc<dyn Factory>, ModelReport>;

/// All models that the configuration names, those of the program itself first.
fn candidates(config: &Config, gpu: &LazyGpu) -> Result<Vec<Candidate>, ModelError> {
    let builtins = config.models.builtins.iter().map(|builtin| -> Candidate {
        Ok(match builtin {
            Builtin::Null => Arc::new(Null::new(config.models.response_bytes)),
            Builtin::NullGpu => {
                let gpu = gpu.get().map_err(|why| ModelReport::failed("null-gpu", why))?;
                Arc::new(null_gpu(&gpu.context, config.models.response_bytes))
            }
            Builtin::Echo => Arc::new(Echo::new()),
            Builtin::Digits => Arc::new(embedded::digits().map_err(|e| report(&e))?),
        })
    });
    let mut all: Vec<_> = builtins.collect();
    if let Some(folder) = &config.models.repository {
        for model in load_repository(folder, gpu)? {
            let taken = |name: &str| all.iter().flatten().any(|built_in| built_in.spec().name == name);
            let model: Candidate = match model {
                Ok(model) if taken(&model.spec().name) => {
                    let reason = "the name is taken by a built-in model; leave that out of models.builtins";
                    Err(ModelReport::failed(&model.spec().name, reason))
                }
                Ok(model) => Ok(model),
                Err(error) => Err(report(&error)),
            };
            all.push(model);
        }
    }
    Ok(all)
}

/// A model that could not be loaded, by the name of its folder where that can be told.
fn report(error: &ModelError) -> ModelReport {
    let folder = error.path.ancestors().find(|p| p.join("config.pbtxt").exists() || p.join("1").is_dir());
    let name = folder.unwrap_or(&error.path).file_name().unwrap_or(error.path.as_os_str());
    ModelReport::failed(name.to_string_lossy(), error.to_string())
}

/// Tries a model out, and makes its instances and their threads where it has some.
fn serve(
    factory: &Arc<dyn Factory>,
    config: &Config,
    gpu: &LazyGpu,
    reserved: &mut Reserved,
) -> Result<Served, RuntimeError> {
    let refuse = |error: &dyn std::fmt::Display| RuntimeError(error.to_string());
    let spec = factory.spec();
    let plan = Plan::new([spec], &config.limits).map_err(|e| refuse(&e))?;
    plan::catalog([spec]).map_err(|(_, e)| RuntimeError(format!("does not fit the catalogue: {e}")))?;
    let shards = usize::from(config.data.threads);
    let started = Instant::now();
    let instances = |count| {
        let instance = |_| {
            let mut instance = Instance::new(factory)?;
            warm_up(&mut |job| job.run(&mut instance), spec)?;
            Ok::<_, RuntimeError>(instance)
        };
        (0..count).map(instance).collect::<Result<Vec<_>, _>>()
    };
    let count = spec.instances.max(1);
    let computing = match factory.execution() {
        Execution::Inline => {
            // Each shard gets an instance later; this one shows that it works.
            instances(1)?;
            Computing::Inline
        }
        Execution::Threads => {
            let workers = Workers::start(&spec.name, instances(count)?, shards).map_err(|e| refuse(&e))?;
            Computing::Workers(Arc::new(workers))
        }
        Execution::Gpu(program) => {
            let gpu = gpu.get().map_err(|e| refuse(&e))?;
            let mut with_it = *reserved;
            gpu.admit(spec, &plan, &*program, shards as u64, &mut with_it).map_err(|e| refuse(&e))?;
            let mut stuck = None;
            let mut run = |job: &mut Job| {
                // What does not end once is not tried again.
                job.error.clone_from(&stuck);
                if stuck.is_none() && !gpu.run(spec, &program, job) {
                    stuck.clone_from(&job.error);
                }
            };
            warm_up(&mut run, spec)?;
            *reserved = with_it;
            Computing::Device
        }
    };
    let took_ms = started.elapsed().as_millis() as u64;
    tracing::info!(model = spec.name, version = spec.version, instances = count, took_ms, "model ready");
    Ok(Served { factory: Arc::clone(factory), computing })
}

/// A server that runs. Dropping it drains it.
#[derive(Debug)]
pub struct Server {
    /// What it was built from.
    pub built: Built,
    shards: Vec<Running>,
    http: Option<Http>,
}

impl Server {
    /// Starts the data threads and the HTTP server. Models for which there is no place on the GPU, all together, are not served, and the others
    /// are.
    ///
    /// # Errors
    /// [`StartError`], and whatever had been started has ended.
    pub fn start(built: Built) -> Result<Server, StartError> {
        let (built, shards) = match start_shards(&built) {
            Ok(shards) => (built, shards),
            Err(StartError::Gpu(error)) => {
                let built = built.without_gpu(&format!("the GPU has no place for its models together: {error}"));
                // There may be no others.
                let built = built.map_err(|_| error)?;
                let shards = start_shards(&built)?;
                (built, shards)
            }
            Err(error) => return Err(error),
        };
        let mut server = Server { built, shards, http: None };
        let Built { config, status, .. } = &server.built;
        if let Some(address) = config.listen.http {
            let listen = |error| StartError::Listen { transport: "http", address, error };
            server.http = Some(Http::start(address, router(Arc::clone(status)), Bounds::USUAL).map_err(listen)?);
        }
        // With a card it is once that serves.
        if config.nic.kind == NicKind::Commodity {
            status.set_ready(true);
        }
        Ok(server)
    }

    /// Where it takes TCP connections.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        self.shards.first().and_then(|s| s.addresses.tcp)
    }

    /// Where it takes datagrams.
    #[must_use]
    pub fn udp(&self) -> Option<SocketAddr> {
        self.shards.first().and_then(|s| s.addresses.udp)
    }

    /// Where it answers over HTTP.
    #[must_use]
    pub fn http(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(Http::address)
    }

    /// Whether a data thread has ended that nobody told to.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.shards.iter().any(|s| s.thread.is_finished())
    }

    /// Takes no more requests, finishes those in flight within `limits.drain_ms`, and ends. Returns whether every data
    /// thread ended as it should.
    pub fn stop(mut self) -> bool {
        self.drain()
    }

    fn drain(&mut self) -> bool {
        self.built.status.set_ready(false);
        stop(&mut self.shards)
    }

    /// What a start-up message says: addresses, models with their states, and the paths in use.
    #[must_use]
    pub fn summary(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        let show = |address: Option<SocketAddr>| address.map_or_else(|| "off".to_owned(), |a| a.to_string());
        let config = &self.built.config;
        // Writing to a string does not fail.
        let _ = writeln!(text, "splitrpc host-agent {}", env!("CARGO_PKG_VERSION"));
        if config.nic.kind == NicKind::Smartnic {
            let _ = writeln!(text, "  card   listens for requests; see what nic-app says there");
        } else {
            let _ = writeln!(text, "  tcp    {}", show(self.tcp()));
            let _ = writeln!(text, "  udp    {}", show(self.udp()));
        }
        let _ = writeln!(text, "  http   {}", show(self.http()));
        for model in self.built.status.models() {
            let version = model.version.map_or_else(String::new, |v| format!(" version {v}"));
            let _ = match (&model.state, &model.reason) {
                (ModelState::Failed, Some(reason)) => writeln!(text, "  model  {}: not served: {reason}", model.name),
                _ => writeln!(text, "  model  {}{version}: ready", model.name),
            };
        }
        for path in config.offer(&self.built.machine).paths {
            let emulated = if path.emulated { ", emulated" } else { "" };
            let (port, mover, memory, link) =
                (path.port.name(), path.mover.name(), path.memory.name(), path.link.name());
            let _ = writeln!(text, "  path   {port}: {mover} into {memory} memory, link {link}{emulated}");
        }
        text
    }
}

/// Starts a data thread for each shard; where one cannot start, those that have are ended.
fn start_shards(built: &Built) -> Result<Vec<Running>, StartError> {
    let Built { config, machine, models, gpu, plan, catalog, telemetry, status } = built;
    let crowded = usize::from(config.data.threads) >= machine.cores.len();
    let busy = Arc::new(AtomicUsize::new(telemetry.len()));
    let common = Common { config, plan, models, gpu: gpu.as_ref(), catalog, status, crowded, busy };
    let mut addresses = Addresses { tcp: config.listen.tcp, udp: config.listen.udp };
    let mut shards = Vec::new();
    for (number, telemetry) in telemetry.iter().enumerate() {
        match shard::start(&common, number, addresses, Arc::clone(telemetry)) {
            Ok(running) => {
                // Where the kernel chose the port, the other shards share it.
                addresses = running.addresses;
                shards.push(running);
            }
            Err(error) => {
                stop(&mut shards);
                return Err(error);
            }
        }
    }
    Ok(shards)
}

/// Ends data threads. Returns whether every one has ended as it should.
fn stop(shards: &mut Vec<Running>) -> bool {
    for shard in &*shards {
        shard.stop.stop();
    }
    // All are waited for, however the first one ended.
    shards.drain(..).filter_map(|shard| shard.thread.join().err()).count() == 0
}

impl Drop for Server {
    fn drop(&mut self) {
        self.drain();
    }
}

/// How often the main thread looks after the data threads.
const LOOK: Duration = Duration::from_millis(250);

/// Runs a server until `stopped` says so. Returns whether it ended as it should.
pub fn run(server: Server, mut stopped: impl FnMut(Duration) -> bool) -> bool {
    while !stopped(LOOK) {
        if server.has_failed() {
            tracing::error!("a data thread has ended by itself; shutting down");
            server.stop();
            return false;
        }
    }
    tracing::info!(drain_ms = server.built.config.limits.drain_ms, "draining");
    server.stop()
}
