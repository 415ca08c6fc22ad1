//! Operators that tract computes by way of an exponential that overflows, or of the logarithm of one that has come to nothing:
//! here in forms in which neither happens.

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::activations::broadcast_scalar;

/// Has these operators computed in their stable forms.
pub(super) fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("LogSoftmax", log_softmax);
    onnx.op_register.insert("Softplus", |_, _| Ok((expand(Softplus), vec![])));
}

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

fn log_softmax(context: &ParsingContext<'_>, node: &NodeProto) -> Parsed {
    // Before opset 13 the softmax was over all dimensions from the axis on.
    let (usual, to_the_end) = if context.onnx_operator_set_version < 13 { (1, true) } else { (-1, false) };
    let axis = node.get_attr_opt("axis")?.unwrap_or(usual);
    Ok((expand(LogSoftmax { axis, to_the_end }), vec![]))
}

/// `x - max(x) - ln(sum(exp(x - max(x))))` over the axis, or over it and those behind it.
#[derive(Clone, Debug)]
struct LogSoftmax {
    axis: i64,
    to_the_end: bool,
}

impl Expansion for LogSoftmax {
    fn name(&self) -> StaticName {
        "LogSoftmax".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        like_the_input(solver, inputs, outputs)
    }

    fn wire(&self, name: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?;
        let (rank, kind) = (fact.rank(), fact.datum_type);
        let axis = if self.axis < 0 { self.axis + rank as i64 } else { self.axis };
        let axis = usize::try_from(axis).ok().filter(|axis| *axis < rank);
        let Some(axis) = axis else { bail!("axis {} of a tensor of {rank} dimensions", self.axis) };
        let axes: TVec<usize> = if self.to_the_end { (axis..rank).collect() } else { tvec!(axis) };
        // Half precision would not hold the sum of many.
        let wide = if kind == DatumType::F16 { DatumType::F32 } else { kind };
        let x = model.wire_node(format!("{name}.wide"), cast(wide), inputs)?[0];
        let most = model.wire_node(format!("{name}.max"), Reduce::new(axes.clone(), Reducer::Max), &[x])?[0];
        let below = model.wire_node(format!("{name}.below"), math::sub(), &[x, most])?[0];
        let exp = model.wire_node(format!("{name}.exp"), math::exp(), &[below])?[0];
        let sum = model.wire_node(format!("{name}.sum"), Reduce::new(axes, Reducer::Sum), &[exp])?[0];
        let log = model.wire_node(format!("{name}.log"), math::ln(), &[sum])?[0];
        let result = model.wire_node(format!("{name}.result"), math::sub(), &[below, log])?;
        model.wire_node(name, cast(kind), &result)
    }
}

/// `max(x, 0) + ln(1 + exp(-|x|))`.
#[derive(Clone, Debug)]
struct Softplus;

impl Expansion for Softplus {
    fn name(&self) -> StaticName {
        "Softplus".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        like_the_input(solver, inputs, outputs)
    }

    fn wire(&self, name: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let mut constant = |what: &str, value: f32| {
            let scalar = broadcast_scalar(value, model, inputs)?;
            model.add_const(format!("{name}.{what}"), scalar)
        };
        let (zero, one) = (constant("zero", 0.0)?, constant("one", 1.0)?);
        let above = model.wire_node(format!("{name}.above"), math::max(), &[inputs[0], zero])?[0];
        let size = model.wire_node(format!("{name}.size"), math::abs(), inputs)?;
        let below = model.wire_node(format!("{name}.below"), math::neg(), &size)?;
        let exp = model.wire_node(format!("{name}.exp"), math::exp(), &below)?[0];
        let sum = model.wire_node(format!("{name}.sum"), math::add(), &[exp, one])?;
        let log = model.wire_node(format!("{name}.log"), math::ln(), &sum)?[0];
        model.wire_node(name, math::add(), &[above, log])
    }
}

fn like_the_input<'r, 'p: 'r>(
    solver: &mut Solver<'r>,
    inputs: &'p [TensorProxy],
    outputs: &'p [TensorProxy],
) -> InferenceResult {
    check_input_arity(inputs, 1)?;
    check_output_arity(outputs, 1)?;
    solver.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
    solver.equals(&outputs[0].shape, &inputs[0].shape)?;
    Ok(())
}
