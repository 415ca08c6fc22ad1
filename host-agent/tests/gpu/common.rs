//! A server with models on a GPU, and who asks it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use host_agent::config::{Builtin, Config};
use host_agent::gpu::LazyGpu;
use host_agent::serve::{Server, build};
use splitrpc_client::{
    Client, ClientOptions, ConnectOptions, Connection, Event, Request, RequestId, Tensor, Transport,
};
use splitrpc_wire::{DType, Path as RequestPath};
use tempfile::TempDir;

/// Whether there is a GPU; else a line says why not.
pub(crate) fn has_gpu() -> bool {
    match LazyGpu::default().get() {
        Ok(_) => true,
        Err(why) => {
            assert!(std::env::var_os("SPLITRPC_TESTS_REQUIRE_GPU").is_none(), "{why}");
            // Not kept by the test harness.
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
            false
        }
    }
}

/// Set in a process that a test has to itself.
const ALONE: &str = "SPLITRPC_TEST_ALONE";

/// Whether this process is the test's own. Else the test, which loses the GPU for its process or wants an environment, is run in one that is,
/// and has to pass there; or there is no GPU.
pub(crate) fn is_alone(test: &str, environment: &[(&str, &str)]) -> bool {
    if std::env::var(ALONE).is_ok_and(|of| of == test) {
        return true;
    }
    if has_gpu() {
        let program = std::env::current_exe().unwrap();
        let mut again = Command::new(program);
        again.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, test);
        let ended = again.envs(environment.iter().copied()).output().unwrap();
        let said = [ended.stdout, ended.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(ended.status.success() && said.contains("1 passed"), "{test}, in a process of its own:\n{said}");
    }
    false
}

/// A folder of models.
pub(crate) struct Repository(pub(crate) TempDir);

impl Repository {
    pub(crate) fn new() -> Repository {
        Repository(tempfile::tempdir().unwrap())
    }

    /// Adds a model of kernels: its configuration, its manifest, and files beside that.
    pub(crate) fn with(self, name: &str, config: &str, manifest: &str, files: &[(&str, &[u8])]) -> Repository {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(folder.join("1")).unwrap();
        std::fs::write(folder.join("config.pbtxt"), config).unwrap();
        std::fs::write(folder.join("1/kernels.toml"), manifest).unwrap();
        for (file, bytes) in files {
            std::fs::write(folder.join("1").join(file), bytes).unwrap();
        }
        self
    }

    /// `C = A + B` over rows of `n` single precision numbers, launched one way or the other.
    pub(crate) fn with_add(self, name: &str, n: u32, max_batch: u16, launch: &str, more: &str) -> Repository {
        self.with_aligned_add(name, n, max_batch, launch, 16, more)
    }

    /// The same, of tensors whose addresses are multiples of `alignment`.
    pub(crate) fn with_aligned_add(
        self,
        name: &str,
        n: u32,
        max_batch: u16,
        launch: &str,
        alignment: u32,
        more: &str,
    ) -> Repository {
        self.with_add_and(name, n, max_batch, launch, &format!("alignment = {alignment}\n"), more)
    }

    /// The same, which is computed where the host has a request if that is small.
    pub(crate) fn with_in_place_add(self, name: &str, n: u32, max_batch: u16, launch: &str) -> Repository {
        self.with_add_and(name, n, max_batch, launch, "in_place = true\n", "")
    }

    fn with_add_and(self, name: &str, n: u32, max_batch: u16, launch: &str, header: &str, more: &str) -> Repository {
        let mut config = format!("backend: \"cuda\" max_batch_size: {max_batch} {more}\n");
        for (kind, tensor) in [("input", "A"), ("input", "B"), ("output", "C")] {
            let _ = writeln!(config, "{kind} {{ name: \"{tensor}\" data_type: TYPE_FP32 dims: [ {n} ] }}");
        }
        let manifest = format!(
            "module = \"add.ptx\"\nlaunch = \"{launch}\"\n{header}[[kernel]]\nfunction = \"add\"\n\
             grid = [{{ per_row = {n}, per_block = 256 }}]\nblock = [256]\n\
             arguments = [{{ input = \"A\" }}, {{ input = \"B\" }}, {{ output = \"C\" }}, {{ u32_per_row = {n} }}]\n"
        );
        self.with(name, &config, &manifest, &[("add.ptx", crate::kernels::ADD.as_bytes())])
    }

    /// Waits as long as it is asked to.
    pub(crate) fn with_pause(self) -> Repository {
        self.with_number("pause", "pause", crate::kernels::PAUSE)
    }

    /// A kernel of one thread that takes a number and gives one.
    pub(crate) fn with_number(self, name: &str, function: &str, code: &str) -> Repository {
        let config = "input { name: \"IN\" data_type: TYPE_INT32 dims: [ 1 ] }\n\
                      output { name: \"OUT\" data_type: TYPE_INT32 dims: [ 1 ] }\n";
        let manifest = format!(
            "module = \"code.ptx\"\n[[kernel]]\nfunction = \"{function}\"\ngrid = [1]\nblock = [1]\n\
             arguments = [{{ input = \"IN\" }}, {{ output = \"OUT\" }}]\n"
        );
        self.with(name, config, &manifest, &[("code.ptx", code.as_bytes())])
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A configuration with ports that the kernel chooses, and few slots.
pub(crate) fn config(repository: Option<&Repository>, builtins: &[Builtin]) -> Config {
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let mut config = Config::default();
    (config.listen.tcp, config.listen.udp, config.listen.http) = (any, None, None);
    config.limits.sessions = 16;
    config.limits.class_bytes = 16 << 20;
    config.limits.slots_per_model = 16;
    config.limits.kept_replies = 16;
    config.models.builtins = builtins.to_vec();
    config.models.repository = repository.map(|r| r.path().to_owned());
    config
}

pub(crate) fn start(config: Config) -> Server {
    Server::start(build(config).unwrap()).unwrap()
}

pub(crate) fn client(server: &Server) -> Client {
    Client::connect(&server.tcp().unwrap().to_string(), ClientOptions::default()).unwrap()
}

pub(crate) fn connection(server: &Server) -> Connection {
    let address = server.tcp().unwrap().to_string();
    Connection::connect(&address, Transport::Tcp, &ConnectOptions::default()).unwrap()
}

/// Numbers as they stand in a tensor.
pub(crate) fn bytes(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The numbers of two rows, and their sums.
pub(crate) fn sum(seed: u32, n: u32) -> [Vec<u8>; 3] {
    let a = move |i: u32| ((i.wrapping_mul(7) + seed * 13) % 1009) as f32;
    let b = move |i: u32| ((i.wrapping_mul(3) + seed) % 511) as f32 * 0.5;
    [bytes((0..n).map(a)), bytes((0..n).map(b)), bytes((0..n).map(|i| a(i) + b(i)))]
}

/// Submits a sum of one row to a model that takes rows.
pub(crate) fn submit_sum(connection: &mut Connection, model: u16, [a, b, _]: &[Vec<u8>; 3]) -> RequestId {
    let dims = [1, a.len() as u32 / 4];
    let tensor = |handle, bytes| Tensor::new(handle, DType::Fp32, &dims, bytes).unwrap();
    let tensors = [tensor(0, &a[..]), tensor(1, &b[..])];
    connection.submit(&Request::new(model, &tensors)).unwrap()
}

/// The next event, which comes.
pub(crate) fn next(connection: &mut Connection) -> Event {
    loop {
        if let Some(event) = connection.poll().unwrap() {
            return event;
        }
        std::thread::yield_now();
    }
}

/// Waits for answers to requests, by number, each with its path.
pub(crate) fn answers(connection: &mut Connection, count: usize) -> Vec<(RequestId, Vec<u8>, RequestPath)> {
    let answer = |_| match next(connection) {
        Event::Response(response) => (response.id(), response.data().to_vec(), *response.path().unwrap()),
        event => panic!("{event:?}"),
    };
    (0..count).map(answer).collect()
}
