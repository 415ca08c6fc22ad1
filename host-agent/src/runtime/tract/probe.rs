//! Finding out, before the first request, what a model's outputs look like and whether the rows of a batch are
//! independent of one another.

use splitrpc_wire::DType;
use tract_onnx::prelude::{DatumType, TValue, TVec, Tensor};

use super::compute::Plan;
use super::data::{tensor, words};
use super::program::{Found, FoundDim, Program, Shapes, datum_type};
use crate::runtime::RuntimeError;

/// What was found out about a batched program.
#[derive(Debug)]
pub(crate) struct Probed {
    /// The outputs' dimensions, the batch's included.
    pub(crate) outputs: Vec<Found>,
    /// Whether a row's results were the same alone and in a batch; `None` where that could not be found out.
    pub(crate) independent: Option<bool>,
}

/// Makes plans for one row and for two and compares what they give. `shapes` gives the inputs' dimensions for so many
/// rows.
///
/// # Errors
/// Where one row or two cannot be computed.
pub(crate) fn batched(program: &Program, shapes: impl Fn(u32) -> Shapes) -> Result<Probed, RuntimeError> {
    let one = program.exact(&shapes(1))?;
    let two = program.exact(&shapes(2))?;
    let (of_one, of_two) = (facts(&one)?, facts(&two)?);
    let outputs = of_one.iter().zip(&of_two).map(|(one, two)| Some(merge(one.as_ref()?, two.as_ref()?)));
    let mut probed = Probed { outputs: outputs.collect(), independent: None };
    general(program, &shapes(2));
    let Some(inputs) = made_up_inputs(program, &shapes(2)) else { return Ok(probed) };
    let row = |row: usize| inputs.iter().map(|t| t.slice(0, row, row + 1).map(TValue::from)).collect::<Result<_, _>>();
    let (Ok(first), Ok(second)) = (row(0), row(1)) else { return Ok(probed) };
    // Made-up values may be nothing that the model takes; but if it takes one row of them, it must take two.
    let Ok(first) = program.run(&one, first) else { return Ok(probed) };
    let together = program.run(&two, inputs.clone())?;
    for ((found, alone), together) in probed.outputs.iter_mut().zip(&first).zip(&together) {
        observe(found, alone.shape(), together.shape());
    }
    if let Ok(second) = program.run(&one, second) {
        probed.independent = Some(same_rows(&[first, second], &together));
    }
    Ok(probed)
}

/// Corrects what is known of an output's first dimension by what one row and two rows gave.
fn observe(found: &mut Found, one: &[usize], two: &[usize]) {
    let first = match (one.first(), two.first()) {
        (Some(1), Some(2)) => FoundDim::Batch,
        (Some(one), Some(two)) if one == two => FoundDim::Fixed(*one as u32),
        (Some(_), Some(_)) => FoundDim::Other,
        _ => {
            *found = Some(Vec::new());
            return;
        }
    };
    match found.as_mut().and_then(|dims| dims.first_mut()) {
        Some(known) => *known = first,
        None => *found = Some([&[first], &vec![FoundDim::Unknown; one.len() - 1][..]].concat()),
    }
}

/// Whether each row gave alone what it gave together with the other.
fn same_rows(alone: &[TVec<TValue>], together: &[TValue]) -> bool {
    alone.iter().enumerate().all(|(row, outputs)| {
        outputs.iter().zip(together).all(|(alone, together)| {
            together.shape().first() == Some(&2)
                && together.slice(0, row, row + 1).is_ok_and(|together| alike(alone, &together))
        })
    })
}

/// Computes made-up inputs of these shapes with an exact plan and with the general one, and drops the latter if it
/// computes something else. Shapes that the model does not take prove nothing.
fn general(program: &Program, shapes: &Shapes) {
    let outputs = program.general().zip(made_up_inputs(program, shapes)).and_then(|(general, inputs)| {
        let exact = program.run(&program.exact(shapes).ok()?, inputs.clone()).ok()?;
        Some((exact, program.run(&general, inputs)))
    });
    if let Some((exact, general)) = outputs
        && !general.is_ok_and(|general| general.iter().zip(&exact).all(|(a, b)| alike(a, b)))
    {
        program.distrust_general();
    }
}

fn made_up_inputs(program: &Program, shapes: &Shapes) -> Option<TVec<TValue>> {
    let inputs = shapes.iter().zip(program.inputs()).enumerate();
    inputs.map(|(t, (shape, input))| Some(made_up(input.dtype, shape, Some(t as u64 + 1)).ok()?.into())).collect()
}

/// The outputs' dimensions for these exact shapes.
///
/// # Errors
/// Where they cannot be computed.
pub(crate) fn unbatched(program: &Program, shapes: &Shapes) -> Result<Vec<Found>, RuntimeError> {
    let found = facts(&program.exact(shapes)?)?;
    if program.inputs().iter().flat_map(|i| &i.dims).any(|d| d.fixed().is_none()) {
        general(program, shapes);
    }
    let fixed =
        |dims: Vec<Option<u32>>| dims.into_iter().map(|d| d.map_or(FoundDim::Unknown, FoundDim::Fixed)).collect();
    Ok(found.into_iter().map(|dims| dims.map(fixed)).collect())
}

type Facts = Vec<Option<Vec<Option<u32>>>>;

fn facts(plan: &Plan) -> Result<Facts, RuntimeError> {
    let model = plan.model();
    let fact = |index| {
        let fact = model.output_fact(index).map_err(|e| RuntimeError(format!("{e:#}")))?;
        let size = |dim: &tract_onnx::prelude::TDim| dim.to_i64().ok().and_then(|d| u32::try_from(d).ok());
        Ok(Some(fact.shape.iter().map(size).collect()))
    };
    (0..model.outputs.len()).map(fact).collect()
}

/// What the shapes for one row and for two say together.
fn merge(one: &[Option<u32>], two: &[Option<u32>]) -> Vec<FoundDim> {
    if one.len() != two.len() {
        return one.iter().map(|_| FoundDim::Other).collect();
    }
    let dims = one.iter().zip(two).enumerate().map(|(axis, pair)| match pair {
        (Some(1), Some(2)) if axis == 0 => FoundDim::Batch,
        (Some(one), Some(two)) if one == two => FoundDim::Fixed(*one),
        (Some(_), Some(_)) => FoundDim::Other,
        _ => FoundDim::Unknown,
    });
    dims.collect()
}

/// Whether two results differ by no more than rounding.
fn alike(a: &Tensor, b: &Tensor) -> bool {
    let (kind, rough) = match a.datum_type() {
        DatumType::F16 => (true, 5e-2),
        DatumType::F32 | DatumType::F64 => (true, 1e-3),
        _ => (false, 0.0),
    };
    if !kind {
        return a == b;
    }
    let (Ok(a64), Ok(b64)) = (a.cast_to::<f64>(), b.cast_to::<f64>()) else { return false };
    let (Ok(x), Ok(y)) = (a64.to_plain_array_view::<f64>(), b64.to_plain_array_view::<f64>()) else { return false };
    let near = |(x, y): (&f64, &f64)| {
        x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= rough * (1.0 + x.abs().max(y.abs()))
    };
    x.shape() == y.shape() && x.iter().zip(y.iter()).all(near)
}

/// A tensor of zeroes, or of made-up values that fit most models: reals from -1 to 1, whole numbers 0 and 1.
pub(crate) fn made_up(dtype: DType, shape: &[u32], seed: Option<u64>) -> Result<Tensor, RuntimeError> {
    let mut zeroes = tensor(dtype, shape)?;
    let Some(seed) = seed else { return Ok(zeroes) };
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    };
    if matches!(dtype, DType::Fp16 | DType::Fp32 | DType::Fp64) {
        let mut reals = Tensor::zero_dt(DatumType::F64, zeroes.shape()).map_err(words)?;
        let scale = 2.0 / (1u64 << 53) as f64;
        reals.to_plain_array_view_mut::<f64>().map_err(words)?.mapv_inplace(|_| next() as f64 * scale - 1.0);
        return Ok(reals.cast_to_dt(datum_type(dtype)).map_err(words)?.into_owned());
    }
    let size = dtype.size().unwrap_or(1) as usize;
    for element in zeroes.as_bytes_mut().chunks_exact_mut(size) {
        // The wire is little-endian, and so is every machine that this is built for.
        element[0] = (next() & 1) as u8;
    }
    Ok(zeroes)
}
