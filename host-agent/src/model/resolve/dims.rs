//! The dimensions of one tensor, from what the file declares, the configuration says and trying it out has shown.

use super::{Described, Fault, NOT_BY_ROWS, Result, at};
use crate::model::config_pbtxt::TensorConfig;
use crate::model::onnx::Dim;
use crate::model::spec::TensorSpec;
use crate::runtime::tract::program::{Found, FoundDim};

/// An input's dimensions in the graph and on the wire.
pub(super) fn input_dims(input: &Described<'_>, batched: bool) -> Result<(Vec<Dim>, Vec<Option<u32>>)> {
    let name = &input.tensor.name;
    let (batch, rows) = split(input, "input", batched)?;
    let Some(config) = input.config else {
        let rows =
            rows.ok_or_else(|| Fault::File(format!("does not say what shape input {name:?} has; config.pbtxt can")))?;
        let wire = batch.iter().map(|_| None).chain(rows.iter().map(Dim::fixed)).collect();
        return Ok((batch.into_iter().chain(rows).collect(), wire));
    };
    let wire = batch.iter().map(|_| None).chain(config.dims.iter().copied()).collect();
    let graph = graph_dims(config);
    let graph = match rows {
        Some(rows) => agree(config, "input", &graph, &rows)?,
        None => graph.iter().map(|d| d.map_or(Dim::Free, Dim::Fixed)).collect(),
    };
    Ok((batch.into_iter().chain(graph).collect(), wire))
}

/// A tensor's batch dimension, where it is to have one, and the others, where the file tells.
fn split(described: &Described<'_>, what: &str, batched: bool) -> Result<(Option<Dim>, Option<Vec<Dim>>)> {
    let dims = described.tensor.dims.clone();
    if !batched {
        return Ok((None, dims));
    }
    let Some(mut dims) = dims else { return Ok((Some(Dim::Free), None)) };
    let line = described.config.map_or(0, |c| c.line);
    let name = &described.tensor.name;
    if dims.is_empty() {
        return Err(at(line, format!("max_batch_size is above 0, but {what} {name:?} of the model is a scalar")));
    }
    match dims.remove(0) {
        Dim::Fixed(size) => {
            let what = format!(
                "max_batch_size is above 0, but {what} {name:?} of the model has {size} as its first dimension"
            );
            Err(at(line, what))
        }
        batch => Ok((Some(batch), Some(dims))),
    }
}

fn graph_dims(config: &TensorConfig) -> Vec<Option<u32>> {
    match &config.reshape {
        Some(shape) => shape.iter().map(|&d| Some(d)).collect(),
        None => config.dims.clone(),
    }
}

/// The file's dimensions, narrowed to what the configuration fixes.
fn agree(config: &TensorConfig, what: &str, wanted: &[Option<u32>], rows: &[Dim]) -> Result<Vec<Dim>> {
    let fits = wanted.len() == rows.len()
        && wanted.iter().zip(rows).all(|(wanted, dim)| dim.fixed().is_none_or(|size| *wanted == Some(size)));
    if !fits {
        let of_model: Vec<Option<u32>> = rows.iter().map(Dim::fixed).collect();
        let (here, there) = (shown(wanted), shown(&of_model));
        return Err(at(config.line, format!("{what} {:?} is {here} here and {there} in the model", config.name)));
    }
    let narrowed = wanted.iter().zip(rows).map(|(wanted, dim)| wanted.map_or_else(|| dim.clone(), Dim::Fixed));
    Ok(narrowed.collect())
}

/// What is served of an output, from what the file declares, what the configuration says and what was found. `meant` says
/// that the output was declared to have the batch dimension, `exact` that it was found with the model's own sizes.
pub(super) fn output_dims(
    output: &Described<'_>,
    found: Found,
    exact: bool,
    batched: bool,
    meant: bool,
) -> Result<TensorSpec> {
    let name = &output.tensor.name;
    if let (true, Some(found)) = (batched, &found)
        && matches!(found.first(), None | Some(FoundDim::Fixed(_) | FoundDim::Other))
    {
        let first = match found.first() {
            None => "a scalar".to_owned(),
            Some(FoundDim::Fixed(size)) => format!("{size} as the first dimension"),
            _ => "another first dimension".to_owned(),
        };
        return Err(Fault::File(if meant {
            format!("declares a batch dimension, but computes {first} of output {name:?} whatever the batch")
        } else {
            NOT_BY_ROWS.into()
        }));
    }
    let (_, rows) = split(output, "output", batched)?;
    let found = found.map(|mut dims| dims.split_off(usize::from(batched)));
    // What analysis says of shapes that vary is a help, not a verdict; launches are checked all the same.
    let found = found.filter(|found| exact || rows.as_ref().is_none_or(|rows| compatible(rows, found)));
    let graph: Vec<Option<u32>> = match (&output.config, rows, &found) {
        (Some(config), Some(rows), _) => {
            let agreed = agree(config, "output", &graph_dims(config), &rows)?;
            agreed.iter().map(Dim::fixed).collect()
        }
        (Some(config), None, _) => graph_dims(config),
        (None, Some(rows), _) => rows.iter().map(Dim::fixed).collect(),
        (None, None, Some(found)) => found.iter().map(|_| None).collect(),
        (None, None, None) => {
            return Err(Fault::File(format!("does not say what shape output {name:?} has; config.pbtxt can")));
        }
    };
    let graph = with_found(name, graph, found.as_deref())?;
    let row = match output.config {
        Some(config) if config.reshape.is_some() => config.dims.clone(),
        _ => graph,
    };
    let dims = batched.then_some(None).into_iter().chain(row).collect();
    Ok(TensorSpec { name: name.clone(), dtype: output.tensor.dtype, dims })
}

fn with_found(name: &str, declared: Vec<Option<u32>>, found: Option<&[FoundDim]>) -> Result<Vec<Option<u32>>> {
    let Some(found) = found else { return Ok(declared) };
    let fixed: Vec<Option<u32>> =
        found.iter().map(|d| if let FoundDim::Fixed(size) = d { Some(*size) } else { None }).collect();
    let clash =
        |(declared, found): (&Option<u32>, &Option<u32>)| declared.is_some() && found.is_some() && declared != found;
    if declared.len() != found.len() || declared.iter().zip(&fixed).any(clash) {
        let (declared, fixed) = (shown(&declared), shown(&fixed));
        return Err(Fault::File(format!("declares output {name:?} as {declared}, but computes {fixed}")));
    }
    Ok(declared.iter().zip(fixed).map(|(declared, found)| declared.or(found)).collect())
}

fn compatible(rows: &[Dim], found: &[FoundDim]) -> bool {
    rows.len() == found.len()
        && rows.iter().zip(found).all(|pair| match pair {
            (Dim::Fixed(declared), FoundDim::Fixed(found)) => declared == found,
            _ => true,
        })
}

/// The general findings, with the first dimensions that were found by trying.
pub(super) fn with_batch_of(general: Vec<Found>, tried: Vec<Found>) -> Vec<Found> {
    let both = general.into_iter().zip(tried).map(|pair| match pair {
        (Some(mut general), Some(tried)) if general.len() == tried.len() => {
            if let (Some(general), Some(tried)) = (general.first_mut(), tried.first()) {
                *general = *tried;
            }
            Some(general)
        }
        (None, Some(tried)) => {
            let only_batch = |(axis, dim): (usize, FoundDim)| if axis == 0 { dim } else { FoundDim::Unknown };
            Some(tried.into_iter().enumerate().map(only_batch).collect())
        }
        (general, _) => general,
    });
    both.collect()
}

/// Dimensions as a configuration writes them.
pub(super) fn shown(dims: &[Option<u32>]) -> String {
    let dims: Vec<String> = dims.iter().map(|d| d.map_or("-1".into(), |d| d.to_string())).collect();
    format!("[{}]", dims.join(", "))
}
