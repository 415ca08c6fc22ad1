//! `model_warmup`: requests of made-up data that are computed before the model is called ready.

use splitrpc_wire::DType;

use super::fields::{Item, PLAIN, Result, Schema, walk};
use super::{DATA_TYPES, dim};

/// One warm-up request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warmup {
    /// What the file calls it.
    pub name: String,
    /// Rows; 0 and 1 are one row.
    pub batch_size: u16,
    /// Its inputs.
    pub inputs: Vec<WarmupInput>,
    /// How often it is computed, at least 1.
    pub count: u16,
    /// The line where it stands.
    pub line: u32,
}

/// One input of a warm-up request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmupInput {
    /// The input's name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions without the batch dimension.
    pub dims: Vec<u32>,
    /// Arbitrary bytes in place of zeroes.
    pub random: bool,
}

pub(super) fn read(parent: &Item<'_>) -> Result<Warmup> {
    let mut out = Warmup { name: String::new(), batch_size: 1, inputs: Vec::new(), count: 1, line: parent.line() };
    walk(parent.message()?, &parent.path, &Schema { repeated: &["inputs"], ..PLAIN }, |item| {
        match item.name {
            "name" => out.name = item.text()?,
            "batch_size" => out.batch_size = item.integer::<u16>(0, u16::MAX.into())?.max(1),
            "count" => out.count = item.integer::<u16>(0, 10_000)?.max(1),
            "inputs" => out.inputs.push(input(item)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(out)
}

fn input(parent: &Item<'_>) -> Result<WarmupInput> {
    let (name, entry) = parent.entry()?;
    let (mut dtype, mut dims, mut random) = (None, Vec::new(), None);
    let schema = Schema { repeated: &["dims"], unsupported: &["input_data_file"] };
    walk(entry.message()?, &entry.path, &schema, |item| {
        match item.name {
            "data_type" => dtype = Some(item.choice(&DATA_TYPES)?),
            "dims" => dims.push(dim(item)?.ok_or_else(|| item.error("of -1 is not supported"))?),
            "zero_data" | "random_data" => {
                if random.is_some() {
                    return Err(item.error("is a second source of data"));
                }
                if !item.boolean()? {
                    return Err(item.error("must be true"));
                }
                random = Some(item.name == "random_data");
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(WarmupInput {
        name,
        dtype: dtype.ok_or_else(|| entry.error("has no data_type"))?,
        dims,
        random: random.ok_or_else(|| entry.error("has neither zero_data nor random_data"))?,
    })
}
