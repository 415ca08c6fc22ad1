//! `splitrpc models`.

use clap::Args;
use serde_json::{Value, json};
use splitrpc_client::{Model, TensorSpec};

use crate::{Failed, Reach, plain};

#[derive(Args)]
pub(crate) struct Models {
    #[command(flatten)]
    reach: Reach,
    /// Print JSON, one array of models.
    #[arg(long)]
    json: bool,
}

impl Models {
    pub(crate) fn run(&self) -> Result<(), Failed> {
        let client = self.reach.connect()?;
        let models = client.catalogue().models();
        if self.json {
            let list: Vec<Value> = models.iter().map(to_json).collect();
            say!("{:#}", Value::Array(list));
            return Ok(());
        }
        if models.is_empty() {
            say!("the server serves no models");
        }
        for model in models {
            let batch = match model.max_batch {
                0 => "no batching".to_owned(),
                most => format!("up to {most} rows a request"),
            };
            say!("{} (version {}, {batch})", plain(&model.name), model.version);
            for (what, specs) in [("takes", &model.inputs), ("gives", &model.outputs)] {
                for spec in specs {
                    say!("  {what} {}", plain(&spec.to_string()));
                }
            }
        }
        Ok(())
    }
}

fn to_json(model: &Model) -> Value {
    let tensors = |specs: &[TensorSpec]| {
        let list = specs.iter().map(|s| json!({ "name": s.name, "datatype": s.dtype.name(), "shape": s.dims }));
        Value::Array(list.collect())
    };
    json!({
        "name": model.name,
        "version": model.version,
        "max_batch": model.max_batch,
        "inputs": tensors(&model.inputs),
        "outputs": tensors(&model.outputs),
    })
}
