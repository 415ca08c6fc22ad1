//! `kernels.toml`: the kernels of a model, and what each is given. Read as text first, then held against the model's tensors,
//! so that all of it is known to fit before a kernel runs.

use std::num::NonZeroU32;

use serde::Deserialize;
use splitrpc_cuda::Launch;
use splitrpc_gpu::{MAX_ARGUMENTS, MAX_VALUES};

use crate::model::spec::{ModelSpec, TensorSpec};

/// Kernels of a model, at most.
const MAX_KERNELS: usize = 4096;
/// Buffers of a model, at most.
const MAX_BUFFERS: usize = 256;
/// Blocks along each side of a grid, at most, on every device.
const MAX_GRID: [u64; 3] = [i32::MAX as u64, 65_535, 65_535];

/// Threads of a warp, on every device: the block of a kernel that stays has as many at least, since a warp of it looks for batches.
const WARP: u32 = 32;
/// What every slot of the host is aligned to, in bytes.
const HOST_ALIGNMENT: u32 = 64;

/// The file as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    module: String,
    #[serde(default)]
    launch: LaunchType,
    #[serde(default)]
    alignment: Option<u32>,
    #[serde(default)]
    in_place: bool,
    #[serde(default, rename = "buffer")]
    buffers: Vec<BufferEntry>,
    #[serde(default, rename = "kernel")]
    kernels: Vec<KernelEntry>,
}

/// How the kernels of a batch are submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LaunchType {
    /// One by one.
    Kernel,
    /// As a CUDA graph, recorded when a batch of a size is first computed at a place.
    #[default]
    Graph,
    /// Not at all: one kernel stays on the GPU, and is told of each batch.
    Persistent,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BufferEntry {
    name: String,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    bytes_per_row: u64,
    #[serde(default)]
    file: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelEntry {
    function: String,
    grid: Vec<ExtentEntry>,
    block: Vec<NonZeroU32>,
    #[serde(default)]
    shared_bytes: u32,
    #[serde(default)]
    arguments: Vec<ArgumentEntry>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum ExtentEntry {
    Fixed(NonZeroU32),
    Rows(RowsEntry),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RowsEntry {
    per_row: NonZeroU32,
    #[serde(default = "one")]
    per_block: NonZeroU32,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ArgumentEntry {
    Input(String),
    Output(String),
    Buffer(String),
    Rows,
    U32PerRow(u32),
    U32(u32),
    I32(i32),
    F32(f32),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// What kernels.toml says, with all names found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Manifest {
    /// The file with the code, beside it.
    pub(super) module: String,
    pub(super) launch: LaunchType,
    pub(super) alignment: Option<u32>,
    /// Small tensors are read and written where the host has them.
    pub(super) in_place: bool,
    pub(super) buffers: Vec<BufferPlan>,
    pub(super) kernels: Vec<KernelPlan>,
}

/// Device memory beside the slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BufferPlan {
    /// What is in a file, shared by all lanes; it has so many bytes, if that is said.
    File { name: String, bytes: Option<u64> },
    /// Room for a batch's intermediate results, in each lane.
    Room { bytes: u64 },
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KernelPlan {
    pub(super) function: String,
    grid: [Extent; 3],
    pub(super) block: [u32; 3],
    pub(super) shared_bytes: u32,
    pub(super) arguments: Vec<Argument>,
}

/// Blocks along a side of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Fixed(u32),
    /// For each row so many, in blocks of so many.
    Rows {
        per_row: u32,
        per_block: u32,
    },
}

/// What a kernel is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// The address of an input.
    Input(usize),
    /// The address of an output.
    Output(usize),
    /// The address of a buffer.
    Buffer(usize),
    /// Rows of the batch times this, in four bytes.
    Rows(u32),
    /// Four bytes.
    Word(u32),
    /// Eight bytes.
    Long(u64),
}

impl KernelPlan {
    /// How it is launched for so many rows.
    pub(super) fn launch(&self, rows: u32) -> Launch {
        Launch { grid: self.grid(rows), block: self.block, shared_bytes: self.shared_bytes }
    }

    /// Blocks for so many rows, none of which the checks let be none or too many.
    fn grid(&self, rows: u32) -> [u32; 3] {
        self.grid.map(|extent| u32::try_from(extent.blocks(rows)).unwrap_or(u32::MAX))
    }
}

impl Extent {
    fn blocks(self, rows: u32) -> u64 {
        match self {
            Extent::Fixed(blocks) => blocks.into(),
            Extent::Rows { per_row, per_block } => (u64::from(per_row) * u64::from(rows)).div_ceil(per_block.into()),
        }
    }
}

/// Reads a manifest and holds it against the model's tensors.
///
/// # Errors
/// What is wrong with it, and where.
pub(super) fn read(text: &str, spec: &ModelSpec) -> Result<Manifest, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().replace('\n', "\n  "))?;
    plain(&file.module, "module")?;
    if let Some(alignment) = file.alignment.filter(|a| !(a.is_power_of_two() && *a <= 4096)) {
        return Err(format!("alignment is {alignment}, and must be a power of two up to 4096"));
    }
    if file.in_place && file.alignment.is_some_and(|alignment| alignment > HOST_ALIGNMENT) {
        return Err(format!(
            "in_place goes with an alignment of {HOST_ALIGNMENT} at most: it is the host's memory then"
        ));
    }
    if file.kernels.is_empty() || file.kernels.len() > MAX_KERNELS {
        return Err(format!("there are {} [[kernel]] sections, where 1 to {MAX_KERNELS} may be", file.kernels.len()));
    }
    if file.buffers.len() > MAX_BUFFERS {
        return Err(format!("there are {} [[buffer]] sections, where {MAX_BUFFERS} may be", file.buffers.len()));
    }
    let mut buffers = Vec::new();
    for (index, entry) in file.buffers.iter().enumerate() {
        if file.buffers[..index].iter().any(|other| other.name == entry.name) {
            return Err(format!("buffer {:?} is described twice", entry.name));
        }
        buffers.push(buffer(entry, spec)?);
    }
    let names = Names { spec, buffers: &file.buffers };
    let kernels = file.kernels.iter().enumerate();
    let kernels = kernels.map(|(index, entry)| {
        kernel(entry, &names).map_err(|why| format!("kernel {} ({:?}): {why}", index + 1, entry.function))
    });
    let kernels = kernels.collect::<Result<Vec<_>, _>>()?;
    for (handle, output) in spec.outputs.iter().enumerate() {
        if !kernels.iter().any(|kernel| kernel.arguments.contains(&Argument::Output(handle))) {
            return Err(format!("no kernel is given output {:?}, so nothing would write it", output.name));
        }
    }
    if file.launch == LaunchType::Persistent {
        stays(&kernels)?;
    }
    let File { module, launch, alignment, in_place, .. } = file;
    Ok(Manifest { module, launch, alignment, in_place, buffers, kernels })
}

/// Refuses what cannot stay on a GPU.
fn stays(kernels: &[KernelPlan]) -> Result<(), String> {
    let [kernel] = kernels else {
        return Err(format!("launch is \"persistent\", for which there is one [[kernel]], not {}", kernels.len()));
    };
    let refuse = |why: &str| Err(format!("launch is \"persistent\", for which {why}"));
    if kernel.grid.iter().any(|extent| matches!(extent, Extent::Rows { .. })) {
        return refuse("grid is numbers: it is the same for every batch");
    }
    if kernel.block.iter().map(|side| u64::from(*side)).product::<u64>() < WARP.into() {
        return refuse(&format!("block has {WARP} threads at least"));
    }
    if kernel.arguments.len() > MAX_VALUES {
        return refuse(&format!("there are {MAX_VALUES} arguments at most"));
    }
    Ok(())
}

fn plain(name: &str, what: &str) -> Result<(), String> {
    let plain = !name.is_empty() && !name.contains(['/', '\\', '\0']) && name != "." && name != "..";
    if plain { Ok(()) } else { Err(format!("{what} {name:?} must be a file name without folders")) }
}

fn buffer(entry: &BufferEntry, spec: &ModelSpec) -> Result<BufferPlan, String> {
    let refuse = |why: &str| Err(format!("buffer {:?} {why}", entry.name));
    if let Some(file) = &entry.file {
        plain(file, "file")?;
        if entry.bytes_per_row > 0 {
            return refuse("has both file and bytes_per_row, but what a file holds does not depend on the batch");
        }
        return Ok(BufferPlan::File { name: file.clone(), bytes: Some(entry.bytes).filter(|bytes| *bytes > 0) });
    }
    let rows = u64::from(spec.max_batch.max(1));
    match entry.bytes_per_row.checked_mul(rows).and_then(|bytes| bytes.checked_add(entry.bytes)) {
        Some(0) => refuse("has no bytes; give bytes, bytes_per_row or file"),
        Some(bytes) if bytes <= 1 << 48 => Ok(BufferPlan::Room { bytes }),
        _ => refuse("has more bytes than any device"),
    }
}

struct Names<'f> {
    spec: &'f ModelSpec,
    buffers: &'f [BufferEntry],
}

fn kernel(entry: &KernelEntry, names: &Names<'_>) -> Result<KernelPlan, String> {
    if entry.grid.is_empty() || entry.grid.len() > 3 || entry.block.is_empty() || entry.block.len() > 3 {
        return Err("grid and block have one to three numbers".into());
    }
    let mut grid = [Extent::Fixed(1); 3];
    for (extent, entry) in grid.iter_mut().zip(&entry.grid) {
        *extent = match *entry {
            ExtentEntry::Fixed(blocks) => Extent::Fixed(blocks.get()),
            ExtentEntry::Rows(rows) => Extent::Rows { per_row: rows.per_row.get(), per_block: rows.per_block.get() },
        };
    }
    let most = u32::from(names.spec.max_batch.max(1));
    for (side, (extent, limit)) in grid.iter().zip(MAX_GRID).enumerate() {
        let blocks = extent.blocks(most);
        if blocks > limit {
            return Err(format!(
                "grid has {blocks} blocks in {} for {most} rows, where {limit} may be",
                ["x", "y", "z"][side]
            ));
        }
    }
    let mut block = [1; 3];
    for (threads, entry) in block.iter_mut().zip(&entry.block) {
        *threads = entry.get();
    }
    if entry.arguments.len() > MAX_ARGUMENTS {
        return Err(format!("there are {} arguments, where {MAX_ARGUMENTS} may be", entry.arguments.len()));
    }
    let arguments = entry.arguments.iter().map(|entry| argument(entry, names)).collect::<Result<_, _>>()?;
    Ok(KernelPlan { function: entry.function.clone(), grid, block, shared_bytes: entry.shared_bytes, arguments })
}

fn argument(entry: &ArgumentEntry, names: &Names<'_>) -> Result<Argument, String> {
    let tensor = |tensors: &[TensorSpec], what: &str, name: &str| {
        let known = || tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
        let place = tensors.iter().position(|t| t.name == name);
        place.ok_or_else(|| format!("{what} {name:?} is none of the model's, which are {}", known()))
    };
    Ok(match entry {
        ArgumentEntry::Input(name) => Argument::Input(tensor(&names.spec.inputs, "input", name)?),
        ArgumentEntry::Output(name) => Argument::Output(tensor(&names.spec.outputs, "output", name)?),
        ArgumentEntry::Buffer(name) => {
            let place = names.buffers.iter().position(|b| b.name == *name);
            Argument::Buffer(place.ok_or_else(|| format!("buffer {name:?} has no [[buffer]] section"))?)
        }
        ArgumentEntry::Rows => Argument::Rows(1),
        ArgumentEntry::U32PerRow(each) => {
            let most = u32::from(names.spec.max_batch.max(1));
            each.checked_mul(most).ok_or_else(|| format!("u32_per_row {each} times {most} rows exceeds 32 bits"))?;
            Argument::Rows(*each)
        }
        ArgumentEntry::U32(value) => Argument::Word(*value),
        ArgumentEntry::I32(value) => Argument::Word(value.cast_unsigned()),
        ArgumentEntry::F32(value) => Argument::Word(value.to_bits()),
        ArgumentEntry::U64(value) => Argument::Long(*value),
        ArgumentEntry::I64(value) => Argument::Long(value.cast_unsigned()),
        ArgumentEntry::F64(value) => Argument::Long(value.to_bits()),
    })
}

#[cfg(test)]
mod tests {
    use splitrpc_wire::DType;

    use super::*;

    fn spec() -> ModelSpec {
        let tensor = |name: &str| TensorSpec { name: name.into(), dtype: DType::Fp32, dims: vec![None, Some(256)] };
        ModelSpec {
            name: "m".into(),
            version: 1,
            max_batch: 8,
            inputs: vec![tensor("A"), tensor("B")],
            outputs: vec![tensor("C")],
            batching: None,
            priority_levels: 0,
            default_priority: 0,
            instances: 1,
            warmup_launches: 1,
        }
    }

    const KERNEL: &str = r#"
module = "add.ptx"
[[buffer]]
name = "weights"
file = "weights.bin"
bytes = 64
[[buffer]]
name = "room"
bytes_per_row = 1024
bytes = 8
[[kernel]]
function = "add"
grid = [{ per_row = 256, per_block = 100 }, 3]
block = [100]
arguments = [{ input = "B" }, { output = "C" }, { buffer = "room" }, "rows", { u32_per_row = 256 }, { i32 = -1 }, { f32 = 0.5 }, { u64 = 7 }]
"#;

    fn said(of: &str, with: &str) -> String {
        assert!(KERNEL.contains(of), "{of}");
        read(&KERNEL.replacen(of, with, 1), &spec()).unwrap_err()
    }

    #[test]
    fn names_become_places_and_rows_become_blocks() {
        let manifest = read(KERNEL, &spec()).unwrap();
        assert_eq!((manifest.module.as_str(), manifest.launch), ("add.ptx", LaunchType::Graph));
        assert_eq!(
            manifest.buffers,
            [
                BufferPlan::File { name: "weights.bin".into(), bytes: Some(64) },
                BufferPlan::Room { bytes: 8 * 1024 + 8 }
            ]
        );
        let kernel = &manifest.kernels[0];
        assert_eq!((kernel.grid(1), kernel.grid(8), kernel.block), ([3, 3, 1], [21, 3, 1], [100, 1, 1]));
        use Argument::{Buffer, Input, Long, Output, Rows, Word};
        let half = Word(0.5_f32.to_bits());
        assert_eq!(
            kernel.arguments,
            [Input(1), Output(0), Buffer(1), Rows(1), Rows(256), Word(u32::MAX), half, Long(7)]
        );
    }

    #[test]
    fn one_kernel_can_stay() {
        let stays = |text: &str| {
            let text = text.replacen("module", "launch = \"persistent\"\nmodule", 1);
            read(&text.replacen("{ per_row = 256, per_block = 100 }", "4", 1), &spec())
        };
        let manifest = stays(KERNEL).unwrap();
        assert_eq!((manifest.launch, manifest.kernels[0].grid(8)), (LaunchType::Persistent, [4, 3, 1]));
        let two = format!("{KERNEL}[[kernel]]{}", KERNEL.split_once("[[kernel]]").unwrap().1);
        assert!(stays(&two).unwrap_err().contains("one [[kernel]], not 2"));
        assert!(stays(&KERNEL.replacen("[100]", "[31]", 1)).unwrap_err().contains("32 threads at least"));
        let many = KERNEL.replacen("\"rows\"", &["\"rows\""; 25].join(", "), 1);
        assert!(stays(&many).unwrap_err().contains("31 arguments at most"));
    }

    #[test]
    fn what_does_not_fit_the_model_is_refused_by_name() {
        assert!(said("input = \"B\"", "input = \"X\"").contains("input \"X\" is none of the model's, which are A, B"));
        assert!(said("output = \"C\"", "input = \"A\"").contains("no kernel is given output \"C\""));
        assert!(
            said("buffer = \"room\"", "buffer = \"rom\"")
                .contains("kernel 1 (\"add\"): buffer \"rom\" has no [[buffer]]")
        );
        assert!(said("name = \"room\"", "name = \"weights\"").contains("described twice"));
        assert!(said("add.ptx", "../add.ptx").contains("without folders"));
        assert!(said("bytes = 64", "bytes_per_row = 64").contains("both file and bytes_per_row"));
        assert!(said("bytes_per_row = 1024\nbytes = 8", "").contains("has no bytes"));
        assert!(
            said("bytes_per_row = 1024", "bytes_per_row = 9223372036854775807").contains("more bytes than any device")
        );
        assert!(said(", 3]", ", 70000]").contains("70000 blocks in y for 8 rows, where 65535 may be"));
        assert!(said("per_row = 256, per_block = 100", "per_row = 4294967295").contains("blocks in x for 8 rows"));
        assert!(said("u32_per_row = 256", "u32_per_row = 4294967295").contains("exceeds 32 bits"));
        assert!(said("block = [100]", "block = [0]").contains("block"));
        assert!(said("block = [100]", "block = []").contains("one to three numbers"));
        assert!(said("u64 = 7", "u65 = 7").contains("u65"));
        assert!(said("module = \"add.ptx\"", "modul = \"add.ptx\"").contains("modul"));
        assert!(said("module = \"add.ptx\"", "module = \"add.ptx\"\nalignment = 3").contains("power of two"));
        let far = "module = \"add.ptx\"\nin_place = true\nalignment = 128";
        assert!(said("module = \"add.ptx\"", far).contains("64 at most"));
        let persistent = "module = \"add.ptx\"\nlaunch = \"persistent\"";
        assert!(said("module = \"add.ptx\"", persistent).contains("grid is numbers"));
        let kernels = KERNEL.split_once("[[kernel]]").unwrap().0;
        assert!(read(kernels, &spec()).unwrap_err().contains("0 [[kernel]] sections"));
    }
}
