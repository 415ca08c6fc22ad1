//! The model that the program itself brings, so that an installed binary serves something real by itself.

use std::path::PathBuf;

use super::repository::ModelError;
use super::resolve::{Fault, resolve};
use super::{config_pbtxt, onnx};
use crate::runtime::tract::TractModel;

/// Handwritten digits: images of 8 by 8 pixels in, a label out.
///
/// # Errors
/// [`ModelError`] where the embedded files do not fit together; a test proves that they do.
pub fn digits() -> Result<TractModel, ModelError> {
    let graph = include_bytes!("../../models/digits/1/model.onnx");
    let config = include_str!("../../models/digits/config.pbtxt");
    let path = PathBuf::from("(embedded)/digits/1/model.onnx");
    let refuse = |reason: String| ModelError { path: path.clone(), line: None, column: None, reason };
    let config = config_pbtxt::parse(config).map_err(|e| refuse(e.to_string()))?;
    let graph = onnx::parse(graph, None).map_err(refuse)?;
    let model = resolve("digits", 1, path.clone(), &graph, Some(&config)).map_err(|fault| match fault {
        Fault::Config(error) => refuse(error.to_string()),
        Fault::File(reason) => refuse(reason),
    })?;
    Ok(TractModel::new(model))
}

#[cfg(test)]
mod tests {
    use crate::runtime::Factory;

    #[test]
    fn the_embedded_model_can_be_served() {
        let model = super::digits().unwrap();
        assert_eq!(model.spec().name, "digits");
        assert!(model.instance().is_ok());
    }
}
