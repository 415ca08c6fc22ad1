//! `images.toml`: which inputs are made of images, and how.

use serde::Deserialize;
use splitrpc_wire::DType;

use crate::model::spec::ModelSpec;

/// Sides of an image, at most, in pixels.
const MAX_SIDE: u32 = 1 << 14;
/// Blocks along the third side of a grid, at most.
const MAX_ROWS: u16 = u16::MAX;

/// An input that is made of an image.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ImagePlan {
    /// The input's place among the model's.
    pub(super) input: usize,
    /// Height and width of the image.
    pub(super) from: [u32; 2],
    /// Those of what the model takes.
    pub(super) to: [u32; 2],
    /// Whether that is in half precision, and not in single.
    pub(super) half: bool,
    /// Each channel's value, 0 to 255, times this,
    pub(super) scale: [f32; 3],
    /// and this on top.
    pub(super) shift: [f32; 3],
}

impl ImagePlan {
    /// Bytes of what the model takes for one image.
    pub(super) fn bytes(&self) -> u64 {
        let [height, width] = self.to.map(u64::from);
        3 * height * width * if self.half { 2 } else { 4 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    image: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    input: String,
    height: u32,
    width: u32,
    #[serde(default)]
    mean: [f32; 3],
    #[serde(default = "ones")]
    std: [f32; 3],
}

fn ones() -> [f32; 3] {
    [1.0; 3]
}

/// Reads the file, and holds it against what the model takes.
pub(super) fn read(text: &str, spec: &ModelSpec) -> Result<Vec<ImagePlan>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    if file.image.is_empty() {
        return Err("names no image".to_owned());
    }
    let mut plans: Vec<ImagePlan> = Vec::new();
    for entry in &file.image {
        let plan = entry.plan(spec).map_err(|why| format!("image {:?}: {why}", entry.input))?;
        if plans.iter().any(|other| other.input == plan.input) {
            return Err(format!("image {:?}: is named twice", entry.input));
        }
        plans.push(plan);
    }
    Ok(plans)
}

impl Entry {
    fn plan(&self, spec: &ModelSpec) -> Result<ImagePlan, String> {
        let Some(input) = spec.inputs.iter().position(|tensor| tensor.name == self.input) else {
            return Err("is no input of the model".to_owned());
        };
        let tensor = &spec.inputs[input];
        let half = match tensor.dtype {
            DType::Fp16 => true,
            DType::Fp32 => false,
            other => return Err(format!("is of type {} in the model, where FP16 or FP32 is supported", other.name())),
        };
        let &[Some(3), Some(height), Some(width)] = spec.row_dims(tensor) else {
            return Err(
                "is to have the dimensions [ 3, height, width ] in the model, beside that of the batch".to_owned()
            );
        };
        let sides = [self.height, self.width, height, width];
        if sides.iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
            return Err(format!("has a side that is not from 1 to {MAX_SIDE} pixels"));
        }
        if spec.max_batch == MAX_ROWS {
            return Err(format!("is in a model whose max_batch_size is not below {MAX_ROWS}"));
        }
        let usable =
            |(mean, std): (&f32, &f32)| mean.is_finite() && (1.0 / std).is_finite() && (mean / std).is_finite();
        if !self.mean.iter().zip(&self.std).all(usable) {
            return Err("has a mean that is no number, or a std by which nothing can be divided".to_owned());
        }
        let scale = self.std.map(|std| 1.0 / std);
        let shift = [0, 1, 2].map(|channel| -self.mean[channel] / self.std[channel]);
        Ok(ImagePlan { input, from: [self.height, self.width], to: [height, width], half, scale, shift })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::TensorSpec;

    fn spec(dtype: DType, dims: &[u32]) -> ModelSpec {
        let dims = std::iter::once(None).chain(dims.iter().copied().map(Some)).collect();
        let input = TensorSpec { name: "x".into(), dtype, dims };
        let null = crate::runtime::null::Null::new(4);
        let spec = crate::runtime::Factory::spec(&null).clone();
        ModelSpec { max_batch: 8, inputs: vec![input], ..spec }
    }

    #[test]
    fn an_image_is_read_with_its_mean_and_deviation() {
        let text = "[[image]]\ninput = \"x\"\nheight = 480\nwidth = 640\nmean = [10, 20, 30.5]\nstd = [2, 4, 0.5]\n";
        let plans = read(text, &spec(DType::Fp16, &[3, 224, 200])).unwrap();
        let [plan] = &plans[..] else { panic!() };
        assert_eq!((plan.from, plan.to, plan.half, plan.input), ([480, 640], [224, 200], true, 0));
        assert_eq!((plan.scale, plan.shift), ([0.5, 0.25, 2.0], [-5.0, -5.0, -61.0]));
        assert_eq!(plan.bytes(), 3 * 224 * 200 * 2);
        let plain = read("[[image]]\ninput = \"x\"\nheight = 1\nwidth = 1\n", &spec(DType::Fp32, &[3, 2, 2])).unwrap();
        assert_eq!((plain[0].scale, plain[0].shift, plain[0].bytes()), ([1.0; 3], [0.0; 3], 48));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let entry = |more: &str| format!("[[image]]\ninput = \"x\"\nheight = 4\nwidth = 4\n{more}\n");
        let good = spec(DType::Fp32, &[3, 8, 8]);
        let refusals = [
            (entry("").replace("\"x\"", "\"y\""), &good, "is no input"),
            (entry(&entry("")), &good, "is named twice"),
            (entry("std = [1, 0, 1]"), &good, "nothing can be divided"),
            (entry("mean = [nan, 0, 1]"), &good, "no number"),
            (entry("").replace("width = 4", "width = 0"), &good, "not from 1 to"),
            (entry("depth = 3"), &good, "depth"),
            ("image = []".to_owned(), &good, "names no image"),
            (entry(""), &spec(DType::Int32, &[3, 8, 8]), "is of type"),
            (entry(""), &spec(DType::Fp32, &[8, 8, 3]), "dimensions"),
        ];
        for (text, spec, reason) in refusals {
            let error = read(&text, spec).unwrap_err();
            assert!(error.contains(reason), "{error}, and not {reason}");
        }
    }
}
