//! What a server serves, and how a call by names becomes one by handles.

use std::fmt;

use splitrpc_wire::catalog::{Catalog, TensorInfo};
use splitrpc_wire::{DType, MAX_TENSORS, WireError};

use crate::{Error, Input, Tensor};

/// The models that a server serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    models: Vec<Model>,
}

/// A model that a server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// What requests call it.
    pub handle: u16,
    /// Its name.
    pub name: String,
    /// The version that is served.
    pub version: u16,
    /// Rows that a request may have; 0 where the model has no batch dimension.
    pub max_batch: u16,
    /// What it takes, in the order of handles.
    pub inputs: Vec<TensorSpec>,
    /// What it gives, in the order of handles.
    pub outputs: Vec<TensorSpec>,
}

/// A tensor that a model takes or gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions; -1 varies. The batch dimension, where there is one, comes first.
    pub dims: Vec<i32>,
}

impl Catalogue {
    /// Reads a whole catalogue.
    ///
    /// # Errors
    /// The rule of the format that the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Catalogue, WireError> {
        let models = Catalog::new(bytes).map(|model| {
            model.map(|m| Model {
                handle: m.handle,
                name: m.name.to_owned(),
                version: m.version,
                max_batch: m.max_batch,
                inputs: m.inputs().map(TensorSpec::from).collect(),
                outputs: m.outputs().map(TensorSpec::from).collect(),
            })
        });
        Ok(Catalogue { models: models.collect::<Result<_, _>>()? })
    }

    /// All models.
    #[must_use]
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The newest version of the model called `name`.
    ///
    /// # Errors
    /// [`Error::NoSuchModel`], which lists what there is.
    pub fn model(&self, name: &str) -> Result<&Model, Error> {
        let found = self.models.iter().filter(|m| m.name == name).max_by_key(|m| m.version);
        found.ok_or_else(|| Error::NoSuchModel {
            name: name.to_owned(),
            served: self.models.iter().map(|m| m.name.clone()).collect(),
        })
    }

    /// The model of this handle.
    #[must_use]
    pub fn by_handle(&self, handle: u16) -> Option<&Model> {
        self.models.iter().find(|m| m.handle == handle)
    }
}

impl Model {
    /// Checks `inputs` against what the model takes and gives them their handles, in the model's order.
    ///
    /// # Errors
    /// [`Error::BadInput`], which says what the model takes.
    pub fn bind<'a>(&self, inputs: &[Input<'a>]) -> Result<Vec<Tensor<'a>>, Error> {
        let mut tensors: Vec<Tensor<'a>> = Vec::with_capacity(self.inputs.len());
        for input in inputs {
            let handle = self.find(input.name)?;
            if tensors.iter().any(|t| usize::from(t.desc.handle) == handle) {
                return Err(self.bad(&format!("input `{}` is given twice", self.inputs[handle].name)));
            }
            tensors.push(self.check(handle, input)?);
        }
        if let Some(missing) = (0..self.inputs.len()).find(|&i| tensors.iter().all(|t| usize::from(t.desc.handle) != i))
        {
            return Err(self.bad(&format!("input `{}` is missing", self.inputs[missing].name)));
        }
        if self.max_batch > 0 {
            let mut rows = tensors.iter().map(|t| t.desc.shape.dims().first().copied());
            let first = rows.next().flatten();
            if rows.any(|r| r != first) {
                return Err(self.bad("the inputs differ in their first dimension, which is the batch"));
            }
        }
        tensors.sort_unstable_by_key(|t| t.desc.handle);
        Ok(tensors)
    }

    /// An output's name, or a made-up one for a handle that the catalogue does not know.
    #[must_use]
    pub fn output_name(&self, handle: u16) -> String {
        self.outputs.get(usize::from(handle)).map_or_else(|| format!("output-{handle}"), |o| o.name.clone())
    }

    fn find(&self, name: &str) -> Result<usize, Error> {
        if name.is_empty() && self.inputs.len() == 1 {
            return Ok(0);
        }
        let found = self.inputs.iter().take(MAX_TENSORS).position(|i| i.name == name);
        found.ok_or_else(|| match name {
            "" => self.bad("it has several inputs, so each needs its name"),
            _ => self.bad(&format!("it has no input `{name}`")),
        })
    }

    fn check<'a>(&self, handle: usize, input: &Input<'a>) -> Result<Tensor<'a>, Error> {
        let spec = &self.inputs[handle];
        if input.dtype != spec.dtype {
            let (got, wants) = (input.dtype.name(), spec.dtype.name());
            return Err(self.bad(&format!("input `{}` is {got}, the model wants {wants}", spec.name)));
        }
        let fits = input.dims.len() == spec.dims.len()
            && input.dims.iter().zip(&spec.dims).all(|(&got, &want)| want < 0 || i64::from(got) == i64::from(want));
        if !fits {
            return Err(self.bad(&format!("input `{}` has shape {:?}", spec.name, input.dims)));
        }
        if let Some(&rows) = input.dims.first()
            && self.max_batch > 0
            && !(1..=u32::from(self.max_batch)).contains(&rows)
        {
            let most = self.max_batch;
            return Err(self.bad(&format!("input `{}` has {rows} rows, the model takes 1 to {most}", spec.name)));
        }
        Tensor::new(handle as u16, input.dtype, input.dims, input.data).map_err(|e| {
            let (bytes, dims) = (input.data.as_slice().len(), input.dims);
            self.bad(&format!("input `{}`: {e} ({bytes} bytes, shape {dims:?})", spec.name))
        })
    }

    fn bad(&self, what: &str) -> Error {
        let takes: Vec<String> = self.inputs.iter().map(ToString::to_string).collect();
        Error::BadInput(format!("model `{}`: {what}; it takes {}", self.name, takes.join(", ")))
    }
}

impl From<TensorInfo<'_>> for TensorSpec {
    fn from(info: TensorInfo<'_>) -> Self {
        TensorSpec { name: info.name.to_owned(), dtype: info.dtype, dims: info.dims().to_vec() }
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} [", self.name, self.dtype.name())?;
        for (i, dim) in self.dims.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            if *dim < 0 { write!(f, "{comma}?")? } else { write!(f, "{comma}{dim}")? }
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: DType, dims: &[i32]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, dims: dims.into() }
    }

    fn model() -> Model {
        Model {
            handle: 3,
            name: "m".into(),
            version: 1,
            max_batch: 4,
            inputs: vec![spec("a", DType::Fp32, &[-1, 2]), spec("b", DType::Uint8, &[-1])],
            outputs: vec![],
        }
    }

    fn message(inputs: &[Input<'_>]) -> String {
        model().bind(inputs).unwrap_err().to_string()
    }

    #[test]
    fn inputs_are_put_in_the_models_order() {
        let (a, b) = ([0u8; 16], [0u8; 2]);
        let bound = model()
            .bind(&[Input::new("b", DType::Uint8, &[2], &b[..]), Input::new("a", DType::Fp32, &[2, 2], &a[..])])
            .unwrap();
        assert_eq!(bound.iter().map(|t| t.desc.handle).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn mistakes_are_named() {
        let bytes = [0u8; 64];
        let a = |dims| Input::new("a", DType::Fp32, dims, &bytes[..]);
        assert!(message(&[a(&[2, 2])]).contains("64 bytes, shape [2, 2]"));
        assert!(message(&[a(&[8, 2])]).contains("8 rows, the model takes 1 to 4"));
        assert!(message(&[a(&[2, 3])]).contains("shape [2, 3]; it takes a FP32 [?, 2], b UINT8 [?]"));
        assert!(
            message(&[Input::new("a", DType::Fp64, &[2, 2], &bytes[..32])]).contains("is FP64, the model wants FP32")
        );
        assert!(message(&[Input::new("c", DType::Fp32, &[2, 2], &bytes[..16])]).contains("no input `c`"));
        assert!(message(&[Input::new("", DType::Fp32, &[2, 2], &bytes[..16])]).contains("needs its name"));
        let one = Input::new("a", DType::Fp32, &[2, 2], &bytes[..16]);
        assert!(message(&[one, one]).contains("given twice"));
        assert!(message(&[one]).contains("input `b` is missing"));
        let other = Input::new("b", DType::Uint8, &[3], &bytes[..3]);
        assert!(message(&[one, other]).contains("differ in their first dimension"));
    }
}
