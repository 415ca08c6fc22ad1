//! A model as tract computes it: its graph, and plans made from it for the shapes that come.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use splitrpc_wire::DType;
use tract_onnx::prelude::{
    DatumType, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, OutletId, Symbol, TDim, TValue, TVec,
    TypedModel, TypedRunnableModel,
};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_hir::infer::Factoid;

use crate::model::onnx::{Dim, brief, panic_text};
use crate::quiet::caught;
use crate::runtime::RuntimeError;

/// A graph made ready for certain shapes.
pub(crate) type Plan = Arc<TypedRunnableModel>;

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
    pub(crate) fn new(graph: InferenceModel, inputs: Vec<ProgramInput>, batched: bool) -> Program {
        let (exact, general) = (Mutex::default(), OnceLock::new());
        Program { graph, inputs, batched, exact, general, general_failed: AtomicBool::new(false) }
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
        let wrong = guarded(|| Ok(self.typed(self.symbolic_facts()).ok().and_then(|typed| miscount(&typed))));
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
            if let Some(text) = miscount(&typed) {
                return Err(text);
            }
            let plan = typed.into_optimized().and_then(IntoRunnable::into_runnable);
            plan.map_err(|e| format!("{e:#}"))
        });
        compiled.map_err(|e| RuntimeError(brief(&format!("the model cannot be computed with these shapes: {e}"))))
    }
}

/// Says which node adds up 64-bit integers: tract does so with 32 bits, and no answer is better than a wrong one.
fn miscount(graph: &TypedModel) -> Option<String> {
    graph.nodes().iter().find_map(|node| {
        if let Some(scan) = node.op_as::<Scan>() {
            return miscount(&scan.body);
        }
        let wide = |input: &OutletId| {
            let fact = graph.outlet_fact(*input);
            fact.is_ok_and(|fact| matches!(fact.datum_type, DatumType::I64 | DatumType::U64))
        };
        let wrong = node.op_as::<Reduce>().is_some_and(|op| op.reducer == Reducer::Sum) && node.inputs.iter().any(wide);
        wrong.then(|| format!("node {} adds up 64-bit integers, which are computed with 32 bits here", node.name))
    })
}

/// A plan from the list, which is then the most recently used.
fn find(plans: &mut Plans, shapes: &[Vec<u32>]) -> Option<Plan> {
    let at = plans.iter().position(|(known, _)| known == shapes)?;
    plans[at..].rotate_left(1);
    plans.last().map(|(_, plan)| plan.clone())
}

/// Computes. Every run starts from a fresh state, so that nothing of one request is left for the next.
pub(crate) fn run(plan: &Plan, inputs: TVec<TValue>) -> Result<TVec<TValue>, RuntimeError> {
    let outputs = guarded(|| plan.spawn().and_then(|mut state| state.run(inputs)).map_err(|e| format!("{e:#}")));
    outputs.map_err(|e| RuntimeError(brief(&format!("the model failed: {e}"))))
}

/// Turns a panic inside tract into an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // tract's plans and graphs are only read inside, and what was being made is dropped.
    caught(work).unwrap_or_else(|panic| Err(panic_text(&*panic)))
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
