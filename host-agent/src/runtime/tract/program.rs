//! A model as tract computes it: its graph, and plans made from it for the shapes that come.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use splitrpc_wire::DType;
use tract_onnx::prelude::{
    DatumType, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, OutletId, Symbol, TDim, TValue, TVec,
    TypedModel, TypedNode, tensor1, tvec,
};
use tract_onnx::tract_core::internal::EvalContext;
use tract_onnx::tract_core::ops::array::{Range, StridedSlice};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_core::ops::source::TypedSource;
use tract_onnx::tract_hir::infer::Factoid;

use super::compute::{self, Failure, Plan, guarded};
use crate::model::onnx::{Dim, Operators, brief};
use crate::runtime::RuntimeError;

/// Dimensions of each input.
pub(crate) type Shapes = Vec<Vec<u32>>;

/// What an output's dimensions are found to be: `None` where not even their number is known, and in it `None` where a
/// dimension varies.
pub(crate) type Found = Option<Vec<FoundDim>>;

/// A dimension of an output as analysis finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoundDim {
    /// Always this.
    Fixed(u32),
    /// The size of the batch.
    Batch,
    /// It varies, and not as the batch does.
    Other,
    /// It varies, or nothing is known.
    Unknown,
}

/// An input as the program takes it.
#[derive(Clone, Debug)]
pub(crate) struct ProgramInput {
    pub(crate) dtype: DType,
    /// Dimensions of the graph; the first is the batch's where the program is batched.
    pub(crate) dims: Vec<Dim>,
}

/// A graph and the plans made from it, shared by the instances of a model.
#[derive(Debug)]
pub(crate) struct Program {
    graph: InferenceModel,
    /// The file's operators, by the name that tract gives each node.
    operators: Arc<Operators>,
    inputs: Vec<ProgramInput>,
    batched: bool,
    exact: Mutex<Plans>,
    /// The plan for any shape, tried once.
    general: OnceLock<Option<Plan>>,
    general_failed: AtomicBool,
}

/// Plans for exact shapes, most recently used last.
type Plans = Vec<(Shapes, Plan)>;

/// Plans for exact shapes that are kept. Each may hold its own copy of the weights, packed.
const MOST_EXACT: usize = 32;

impl Program {
    pub(crate) fn new(
        graph: InferenceModel,
        operators: Arc<Operators>,
        inputs: Vec<ProgramInput>,
        batched: bool,
    ) -> Program {
        let (exact, general) = (Mutex::default(), OnceLock::new());
        Program { graph, operators, inputs, batched, exact, general, general_failed: AtomicBool::new(false) }
    }

    /// Computes inputs with a plan of this program.
    pub(crate) fn run(&self, plan: &Plan, inputs: TVec<TValue>) -> Result<TVec<TValue>, Failure> {
        compute::run(plan, inputs, |name, operator| self.describe(name, operator))
    }

    /// A node in the file's own words. tract makes several nodes of some, whose names begin with the file's.
    fn describe(&self, name: &str, operator: &str) -> String {
        let mut known = name;
        loop {
            if let Some(operator) = self.operators.get(known) {
                return format!("node {known:?} ({operator})");
            }
            match known.rsplit_once('.') {
                Some((front, _)) => known = front,
                None => return format!("node {name:?} ({operator})"),
            }
        }
    }

    pub(crate) fn inputs(&self) -> &[ProgramInput] {
        &self.inputs
    }

    /// A plan for exactly these shapes, made if need be. One is made at a time.
    pub(crate) fn exact(&self, shapes: &[Vec<u32>]) -> Result<Plan, RuntimeError> {
        let mut plans = self.plans();
        if let Some(plan) = find(&mut plans, shapes) {
            return Ok(plan);
        }
        let facts = shapes.iter().zip(&self.inputs).map(|(shape, input)| {
            let dims: TVec<TDim> = shape.iter().map(|&d| TDim::Val(d.into())).collect();
            InferenceFact::dt_shape(datum_type(input.dtype), dims)
        });
        let plan = self.compile(facts.collect())?;
        if plans.len() == MOST_EXACT {
            plans.remove(0);
        }
        plans.push((shapes.to_vec(), plan.clone()));
        Ok(plan)
    }

    /// A plan that takes these shapes: an exact one if there is one, else the general one, else an exact one made now.
    pub(crate) fn any(&self, shapes: &[Vec<u32>]) -> Result<Plan, RuntimeError> {
        let known = find(&mut self.plans(), shapes);
        match known.or_else(|| self.general()) {
            Some(plan) => Ok(plan),
            None => self.exact(shapes),
        }
    }

    fn plans(&self) -> MutexGuard<'_, Plans> {
        // A panic inside leaves the list as it was.
        self.exact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan for any shape, where tract can make one.
    pub(crate) fn general(&self) -> Option<Plan> {
        if self.general_failed.load(Relaxed) {
            return None;
        }
        self.general.get_or_init(|| self.compile(self.symbolic_facts()).ok()).clone()
    }

    /// Never again hands out the general plan, which turned out not to compute what exact ones do.
    pub(crate) fn distrust_general(&self) {
        self.general_failed.store(true, Relaxed);
    }

    pub(crate) fn is_general(&self, plan: &Plan) -> bool {
        self.general.get().and_then(Option::as_ref).is_some_and(|general| Arc::ptr_eq(general, plan))
    }

    /// What can be said of the outputs' shapes before any shape is known.
    pub(crate) fn found_outputs(&self) -> Vec<Found> {
        let count = self.graph.outputs.len();
        let analysed = guarded(|| {
            let mut graph = self.graph.clone();
            for (index, fact) in self.symbolic_facts().into_iter().enumerate() {
                graph.set_input_fact(index, fact).map_err(|e| e.to_string())?;
            }
            // What stays unknown stays unknown.
            let _ = graph.analyse(true);
            (0..count).map(|o| Ok(self.found(graph.output_fact(o).map_err(|e| e.to_string())?))).collect()
        });
        analysed.unwrap_or_else(|_| vec![None; count])
    }

    fn found(&self, fact: &InferenceFact) -> Found {
        if fact.shape.is_open() {
            return None;
        }
        let batch = self.batch_symbol().map(TDim::from);
        let dims = fact.shape.dims().map(|dim| match dim.concretize() {
            Some(dim) if Some(&dim) == batch.as_ref() => FoundDim::Batch,
            Some(TDim::Val(size)) => u32::try_from(size).map_or(FoundDim::Unknown, FoundDim::Fixed),
            // An expression may yet be equal to the batch.
            _ => FoundDim::Unknown,
        });
        Some(dims.collect())
    }

    fn batch_symbol(&self) -> Option<Symbol> {
        self.batched.then(|| self.graph.symbols.sym("splitrpc_batch"))
    }

    fn symbolic_facts(&self) -> Vec<InferenceFact> {
        let scope = &self.graph.symbols;
        let batch = self.batch_symbol();
        // Whatever else bears the batch dimension's name is as large as the batch.
        let batch_name = |name: &String| self.inputs.iter().any(|i| i.dims.first() == Some(&Dim::Named(name.clone())));
        let fact = |(t, input): (usize, &ProgramInput)| {
            let dims = input.dims.iter().enumerate().map(|(d, dim)| match (dim, &batch) {
                (_, Some(batch)) if d == 0 => batch.clone().into(),
                (Dim::Named(name), Some(batch)) if batch_name(name) => batch.clone().into(),
                (Dim::Fixed(size), _) => TDim::Val((*size).into()),
                (Dim::Named(name), _) if is_plain(name) => scope.sym(name).into(),
                _ => scope.sym(&format!("splitrpc_{t}_{d}")).into(),
            });
            InferenceFact::dt_shape(datum_type(input.dtype), dims.collect::<TVec<TDim>>())
        };
        self.inputs.iter().enumerate().map(fact).collect()
    }

    /// Whether what the graph computes is what its file says, as far as its operators are known without the inputs' shapes.
    ///
    /// # Errors
    /// Names the node that is not.
    pub(crate) fn check(&self) -> Result<(), RuntimeError> {
        // A graph that cannot be typed for any shape may be for those that come; then this is looked at again.
        let wrong = guarded(|| {
            let Ok(typed) = self.typed(self.symbolic_facts()) else { return Ok(None) };
            let found = self.first(&typed, unfit).or_else(|| self.first_inside(&typed));
            Ok(found.or_else(|| self.first(&typed, multiplies_integers).filter(|_| self.optimised(typed).is_err())))
        });
        wrong.ok().flatten().map_or(Ok(()), |text| Err(RuntimeError(text)))
    }

    fn typed(&self, facts: Vec<InferenceFact>) -> Result<TypedModel, String> {
        let mut graph = self.graph.clone();
        for (index, fact) in facts.into_iter().enumerate() {
            graph.set_input_fact(index, fact).map_err(|e| format!("{e:#}"))?;
        }
        graph.into_typed().map_err(|e| format!("{e:#}"))
    }

    fn compile(&self, facts: Vec<InferenceFact>) -> Result<Plan, RuntimeError> {
        let compiled = guarded(|| {
            let typed = self.typed(facts)?;
            if let Some(text) = self.first(&typed, unfit).or_else(|| self.first_inside(&typed)) {
                return Err(text);
            }
            self.optimised(typed)?.into_runnable().map_err(|e| format!("{e:#}"))
        });
        compiled.map_err(|e| RuntimeError(brief(&format!("the model cannot be computed with these shapes: {e}"))))
    }

    fn optimised(&self, typed: TypedModel) -> Result<TypedModel, String> {
        // tract may yet find another way to compute a product; only where it fails is this the reason.
        let suspect = self.first(&typed, multiplies_integers);
        let optimised = guarded(|| typed.into_optimized().map_err(|e| format!("{e:#}")));
        optimised.map_err(|error| suspect.unwrap_or(error))
    }

    /// What is said of the first node of which something is said, after its name.
    fn first(&self, graph: &TypedModel, why: fn(&TypedModel, &TypedNode) -> Option<String>) -> Option<String> {
        graph.nodes().iter().find_map(|node| {
            let of_it =
                || why(graph, node).map(|why| format!("{} {why}", self.describe(&node.name, &node.op().name())));
            bodies(node).into_iter().find_map(|body| self.first(body, why)).or_else(of_it)
        })
    }

    /// The same of nodes that nobody looks at when they are run, since they are inside of others.
    fn first_inside(&self, graph: &TypedModel) -> Option<String> {
        let bodies = graph.nodes().iter().flat_map(bodies);
        bodies.into_iter().find_map(|body| self.first(body, makes_any_size))
    }
}

/// The graphs inside of a node.
fn bodies(node: &TypedNode) -> TVec<&TypedModel> {
    if let Some(scan) = node.op_as::<Scan>() {
        tvec![&scan.body]
    } else if let Some(either) = node.op_as::<IfThenElse>() {
        tvec![&either.then_body, &either.else_body]
    } else {
        tvec![]
    }
}

/// Why tract cannot compute a node with the types that it is given, or would compute something else.
fn unfit(graph: &TypedModel, node: &TypedNode) -> Option<String> {
    if node.op_is::<StridedSlice>() && node.inputs[1..].iter().any(|bound| is_data(graph, *bound)) {
        return Some("cuts at places that a request's values say, which is not supported".into());
    }
    let types = types(graph, node)?;
    let sums = node.op_as::<Reduce>().is_some_and(|op| op.reducer == Reducer::Sum);
    if sums && types.iter().any(|kind| matches!(kind, DatumType::I64 | DatumType::U64)) {
        // No answer is better than a wrong one.
        return Some("adds up 64-bit integers, which are computed with 32 bits here".into());
    }
    if !node.op_is::<ElementWiseOp>() && !node.op_is::<TypedBinOp>() {
        return None;
    }
    // What such an operator says of one element it says of all, and tract would ask it only when it runs.
    let one = |kind: &DatumType| Some(TValue::from(tensor1(&[1_i64]).cast_to_dt(*kind).ok()?.into_owned()));
    let ones = types.iter().filter(|kind| kind.is_number()).map(one).collect::<Option<TVec<TValue>>>()?;
    if ones.len() < types.len() {
        return None;
    }
    let tried = guarded(|| node.op().eval(&EvalContext::out_of_plan(), ones).map_err(|e| format!("{e:#}")));
    tried.err().map(|why| format!("cannot be computed with {}: {why}", named(&types)))
}

/// Says so where a node makes as many values as a request's values say.
fn makes_any_size(graph: &TypedModel, node: &TypedNode) -> Option<String> {
    let any = node.op_is::<Range>() && node.inputs.iter().any(|bound| is_data(graph, *bound));
    any.then(|| "is in the body of another node and as long as a request's values say, which is not supported".into())
}

/// Whether what comes out there follows from the values of an input of the graph, rather than from shapes and constants.
fn is_data(graph: &TypedModel, outlet: OutletId) -> bool {
    let (mut seen, mut ahead) = (HashSet::new(), vec![outlet]);
    while let Some(outlet) = ahead.pop() {
        let node = graph.node(outlet.node);
        let known = graph.outlet_fact(outlet).is_ok_and(|fact| fact.konst.is_some() || fact.datum_type.is_tdim());
        if known || !seen.insert(outlet) {
            continue;
        }
        if node.op_is::<TypedSource>() {
            return true;
        }
        ahead.extend(&node.inputs);
    }
    false
}

/// Says so where matrices of integers are multiplied that tract has no product for.
fn multiplies_integers(graph: &TypedModel, node: &TypedNode) -> Option<String> {
    let types = types(graph, node)?;
    let has_none =
        |kind: &DatumType| kind.is_integer() && !matches!(kind.unquantized().size_of(), 1) && *kind != DatumType::I32;
    let wrong = node.op_is::<EinSum>() && types.iter().any(has_none);
    wrong.then(|| format!("multiplies matrices of {}, which is not supported", named(&types)))
}

/// The types of a node's inputs.
fn types(graph: &TypedModel, node: &TypedNode) -> Option<TVec<DatumType>> {
    node.inputs.iter().map(|input| Some(graph.outlet_fact(*input).ok()?.datum_type)).collect()
}

/// Types as they are called on the wire.
fn named(types: &[DatumType]) -> String {
    let name = |kind: &DatumType| match DType::ALL.iter().find(|d| datum_type(**d) == *kind) {
        Some(dtype) => dtype.name().to_owned(),
        None => format!("{kind:?}"),
    };
    let mut names: Vec<String> = types.iter().map(name).collect();
    names.dedup();
    names.join(" and ")
}

/// A plan from the list, which is then the most recently used.
fn find(plans: &mut Plans, shapes: &[Vec<u32>]) -> Option<Plan> {
    let at = plans.iter().position(|(known, _)| known == shapes)?;
    plans[at..].rotate_left(1);
    plans.last().map(|(_, plan)| plan.clone())
}

/// Whether a name can be nothing but a symbol; tract reads others as expressions.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// tract's name of a type that the wire and tract share.
pub(crate) fn datum_type(dtype: DType) -> DatumType {
    match dtype {
        DType::Bool => DatumType::Bool,
        DType::Uint8 => DatumType::U8,
        DType::Uint16 => DatumType::U16,
        DType::Uint32 => DatumType::U32,
        DType::Uint64 => DatumType::U64,
        DType::Int8 => DatumType::I8,
        DType::Int16 => DatumType::I16,
        DType::Int32 => DatumType::I32,
        DType::Int64 => DatumType::I64,
        DType::Fp16 => DatumType::F16,
        DType::Fp32 => DatumType::F32,
        DType::Fp64 => DatumType::F64,
        // Files with these are refused when they are read.
        DType::Bytes | DType::Bf16 => DatumType::String,
    }
}
