//! Reading an ONNX file: what its graph takes and gives, and whether everything in it can be computed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use splitrpc_wire::catalog::MAX_NAME;
use splitrpc_wire::{DType, MAX_RANK, MAX_TENSORS};
use tract_onnx::Onnx;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension;
use tract_onnx::pb::{ModelProto, TypeProto, ValueInfoProto, type_proto};
use tract_onnx::prelude::{Framework, InferenceModel};

use crate::quiet::caught;

mod operators;
mod stable;

/// Largest file that is read, in bytes. Protobuf itself ends at 2 GiB; larger models keep their weights beside the file.
pub const MAX_FILE_BYTES: u64 = 2 << 30;

/// A dimension as the file declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this.
    Fixed(u32),
    /// Varies; equal names in one model are equal sizes.
    Named(String),
    /// Varies.
    Free,
}

impl Dim {
    /// The size where it is fixed.
    #[must_use]
    pub fn fixed(&self) -> Option<u32> {
        if let Dim::Fixed(size) = self { Some(*size) } else { None }
    }
}

/// An input or output of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphTensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, or `None` where the file does not even say how many.
    pub dims: Option<Vec<Dim>>,
}

/// Operators by the names of their nodes.
pub type Operators = HashMap<String, String>;

/// A file that was read and whose operators are all known.
#[derive(Clone, Debug)]
pub struct OnnxFile {
    /// What the graph takes, without the initialisers that old files list among the inputs.
    pub inputs: Vec<GraphTensor>,
    /// What the graph gives.
    pub outputs: Vec<GraphTensor>,
    /// The graph as tract holds it before shapes are known.
    pub graph: InferenceModel,
    /// The file's operators, by the name that each node has in `graph`.
    pub operators: Arc<Operators>,
}

/// Reads a file.
///
/// # Errors
/// What is wrong with it, without its name: unreadable, empty, cut short, not ONNX, an operator or type that is not
/// supported, a graph that does not hold together.
pub fn read(path: &Path) -> Result<OnnxFile, String> {
    let bytes = read_plain(path, MAX_FILE_BYTES).map_err(|e| format!("cannot be read: {e}"))?;
    parse(&bytes, path.parent())
}

/// The contents of a file of at most so many bytes. Reading a pipe or a device might never end, so these are refused.
pub(crate) fn read_plain(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let about = std::fs::metadata(path)?;
    if about.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !about.is_file() {
        return Err(io::Error::other("it is a pipe, a socket or a device, not a plain file"));
    }
    if about.len() > most {
        return Err(io::Error::other(format!("it has {} bytes, where {most} are read at most", about.len())));
    }
    std::fs::read(path)
}

/// Reads a model from memory; tensors that the file keeps beside itself are looked for in `folder`.
///
/// # Errors
/// As for [`read`].
pub fn parse(bytes: &[u8], folder: Option<&Path>) -> Result<OnnxFile, String> {
    if bytes.is_empty() {
        return Err("is empty".into());
    }
    check_framing(bytes)?;
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    stable::register(&mut onnx);
    let proto =
        onnx.proto_model_for_read(&mut &*bytes).map_err(|e| format!("is not an ONNX model: {}", e.root_cause()))?;
    let graph = proto.graph.as_ref().filter(|g| !g.node.is_empty() || !g.output.is_empty());
    let graph = graph.ok_or("is not an ONNX model, or is cut short: it has no graph")?;
    if proto.opset_import.is_empty() {
        return Err("is not an ONNX model, or is cut short: it names no operator set".into());
    }
    let unsupported = operators::unsupported(&onnx, &proto, graph);
    if !unsupported.is_empty() {
        return Err(format!("uses operators that are not supported: {}", unsupported.join(", ")));
    }
    let initialised: HashSet<&str> = graph
        .initializer
        .iter()
        .map(|t| t.name.as_str())
        .chain(graph.sparse_initializer.iter().filter_map(|t| Some(t.values.as_ref()?.name.as_str())))
        .collect();
    if !graph.sparse_initializer.is_empty() {
        return Err("has sparse initialisers, which are not supported".into());
    }
    let inputs = graph.input.iter().filter(|v| !initialised.contains(v.name.as_str()));
    let inputs = inputs.map(|v| tensor("input", v)).collect::<Result<Vec<_>, _>>()?;
    let outputs = graph.output.iter().map(|v| tensor("output", v)).collect::<Result<Vec<_>, _>>()?;
    for (what, tensors) in [("input", &inputs), ("output", &outputs)] {
        check_count(what, tensors)?;
    }
    let operators = Arc::new(operators::by_node(graph));
    let graph = translate(&onnx, &proto, folder)?;
    Ok(OnnxFile { inputs, outputs, graph, operators })
}

fn check_count(what: &str, tensors: &[GraphTensor]) -> Result<(), String> {
    if tensors.is_empty() {
        return Err(format!("has no {what}, so there is nothing to serve"));
    }
    if tensors.len() > MAX_TENSORS {
        return Err(format!("has {} {what}s, where {MAX_TENSORS} are supported", tensors.len()));
    }
    let mut seen = HashSet::new();
    match tensors.iter().find(|t| !seen.insert(&t.name)) {
        Some(twice) => Err(format!("has two {what}s called {:?}", twice.name)),
        None => Ok(()),
    }
}

/// Walks the outermost fields only, to tell a file that is cut short from one that is something else.
fn check_framing(bytes: &[u8]) -> Result<(), String> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let cut_short =
            || format!("is cut short: it has {} bytes, and the field at byte {at} goes on past them", bytes.len());
        let tag = varint(&mut rest).ok_or_else(cut_short)?;
        // ModelProto's fields end at 25; what is unknown among the next few may come from a newer ONNX.
        if !(1..=63).contains(&(tag >> 3)) {
            return Err("is not an ONNX model".into());
        }
        let length = match tag & 7 {
            0 => {
                varint(&mut rest).ok_or_else(cut_short)?;
                0
            }
            1 => 8,
            2 => varint(&mut rest).ok_or_else(cut_short)?,
            5 => 4,
            _ => return Err("is not an ONNX model".into()),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        rest = rest.get(length..).ok_or_else(cut_short)?;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn tensor(what: &str, info: &ValueInfoProto) -> Result<GraphTensor, String> {
    let name = &info.name;
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(format!("has an {what} whose name is not of 1 to {MAX_NAME} bytes: {name:?}"));
    }
    let Some(TypeProto { value: Some(type_proto::Value::TensorType(declared)), .. }) = &info.r#type else {
        return Err(format!("has an {what} {name:?} that is not a tensor"));
    };
    let dtype = element_type(declared.elem_type)
        .map_err(|e| format!("has an {what} {name:?} of element type {e}, which is not supported"))?;
    let Some(shape) = &declared.shape else {
        return Ok(GraphTensor { name: name.clone(), dtype, dims: None });
    };
    if shape.dim.len() > MAX_RANK {
        return Err(format!(
            "has an {what} {name:?} of {} dimensions, where {MAX_RANK} are supported",
            shape.dim.len()
        ));
    }
    let dims = shape.dim.iter().map(|dim| match &dim.value {
        Some(dimension::Value::DimValue(size)) if *size >= 0 => match u32::try_from(*size) {
            Ok(size) => Ok(Dim::Fixed(size)),
            Err(_) => Err(format!("has an {what} {name:?} with a dimension of {size}")),
        },
        Some(dimension::Value::DimParam(symbol)) if !symbol.is_empty() => Ok(Dim::Named(symbol.clone())),
        _ => Ok(Dim::Free),
    });
    Ok(GraphTensor { name: name.clone(), dtype, dims: Some(dims.collect::<Result<_, _>>()?) })
}

/// The types that both tract and the wire have.
fn element_type(code: i32) -> Result<DType, String> {
    let kind = DataType::try_from(code).map_err(|_| format!("number {code}"))?;
    Ok(match kind {
        DataType::Bool => DType::Bool,
        DataType::Uint8 => DType::Uint8,
        DataType::Uint16 => DType::Uint16,
        DataType::Uint32 => DType::Uint32,
        DataType::Uint64 => DType::Uint64,
        DataType::Int8 => DType::Int8,
        DataType::Int16 => DType::Int16,
        DataType::Int32 => DType::Int32,
        DataType::Int64 => DType::Int64,
        DataType::Float16 => DType::Fp16,
        DataType::Float => DType::Fp32,
        DataType::Double => DType::Fp64,
        other => return Err(other.as_str_name().to_owned()),
    })
}

fn translate(onnx: &Onnx, proto: &ModelProto, folder: Option<&Path>) -> Result<InferenceModel, String> {
    let folder = folder.map(|f| f.to_str().ok_or("lies in a folder whose name is not UTF-8")).transpose()?;
    let parsed = caught(|| onnx.parse(proto, folder))
        .map_err(|panic| format!("is not understood: {}", panic_text(&*panic)))?
        .map_err(|error| brief(&format!("is not understood: {error:#}")))?;
    if !parsed.unresolved_inputs.is_empty() {
        return Err(format!("uses tensors that nothing gives: {}", parsed.unresolved_inputs.join(", ")));
    }
    Ok(parsed.model)
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    brief(text.unwrap_or("a panic without words"))
}

/// A text cut to what fits a log line or an error on the wire; tract's may hold whole tensors.
pub(crate) fn brief(text: &str) -> String {
    const MOST: usize = 400;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}
