//! A writer of ONNX files: just enough of protobuf, and of ONNX's messages, for the models of the tests.

/// A dimension of a declared shape.
#[derive(Clone, Copy)]
pub enum D {
    /// A number.
    N(i64),
    /// A name.
    S(&'static str),
    /// Nothing.
    Free,
}

pub const FLOAT: u64 = 1;
pub const UINT8: u64 = 2;
pub const INT64: u64 = 7;
pub const STRING: u64 = 8;
pub const BOOL: u64 = 9;
pub const BFLOAT16: u64 = 16;

/// An attribute of a node.
pub enum Attr<'a> {
    Int(&'a str, i64),
    Ints(&'a str, &'a [i64]),
    Graph(&'a str, Graph),
}

/// A graph that is being written.
#[derive(Clone, Default)]
pub struct Graph {
    nodes: Vec<u8>,
    initializers: Vec<u8>,
    inputs: Vec<u8>,
    outputs: Vec<u8>,
}

impl Graph {
    pub fn input(mut self, name: &str, kind: u64, dims: &[D]) -> Self {
        message(&mut self.inputs, 11, &value_info(name, kind, Some(dims)));
        self
    }

    pub fn output(mut self, name: &str, kind: u64, dims: &[D]) -> Self {
        message(&mut self.outputs, 12, &value_info(name, kind, Some(dims)));
        self
    }

    pub fn output_without_shape(mut self, name: &str, kind: u64) -> Self {
        message(&mut self.outputs, 12, &value_info(name, kind, None));
        self
    }

    pub fn input_without_shape(mut self, name: &str, kind: u64) -> Self {
        message(&mut self.inputs, 11, &value_info(name, kind, None));
        self
    }

    pub fn floats(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        message(&mut self.initializers, 5, &tensor(name, FLOAT, dims, &raw));
        self
    }

    pub fn int64s(mut self, name: &str, dims: &[i64], values: &[i64]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        message(&mut self.initializers, 5, &tensor(name, INT64, dims, &raw));
        self
    }

    pub fn node(self, op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<Attr<'_>>) -> Self {
        self.node_of("", op, inputs, outputs, attributes)
    }

    pub fn node_of(
        mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: Vec<Attr<'_>>,
    ) -> Self {
        let mut node = Vec::new();
        inputs.iter().for_each(|name| message(&mut node, 1, name.as_bytes()));
        outputs.iter().for_each(|name| message(&mut node, 2, name.as_bytes()));
        message(&mut node, 4, op.as_bytes());
        for attribute in attributes {
            message(&mut node, 5, &attribute_bytes(attribute));
        }
        message(&mut node, 7, domain.as_bytes());
        message(&mut self.nodes, 1, &node);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut graph = self.nodes.clone();
        message(&mut graph, 2, b"graph");
        [graph, self.initializers.clone(), self.inputs.clone(), self.outputs.clone()].concat()
    }

    /// The whole file.
    pub fn file(&self) -> Vec<u8> {
        let mut model = Vec::new();
        number(&mut model, 1, 8);
        message(&mut model, 7, &self.bytes());
        let mut opset = Vec::new();
        number(&mut opset, 2, 17);
        message(&mut model, 8, &opset);
        model
    }
}

fn value_info(name: &str, kind: u64, dims: Option<&[D]>) -> Vec<u8> {
    let mut tensor = Vec::new();
    number(&mut tensor, 1, kind);
    if let Some(dims) = dims {
        let mut shape = Vec::new();
        for dim in dims {
            let mut bytes = Vec::new();
            match dim {
                D::N(size) => number(&mut bytes, 1, *size as u64),
                D::S(name) => message(&mut bytes, 2, name.as_bytes()),
                D::Free => {}
            }
            message(&mut shape, 1, &bytes);
        }
        message(&mut tensor, 2, &shape);
    }
    let mut kind = Vec::new();
    message(&mut kind, 1, &tensor);
    let mut info = Vec::new();
    message(&mut info, 1, name.as_bytes());
    message(&mut info, 2, &kind);
    info
}

fn tensor(name: &str, kind: u64, dims: &[i64], raw: &[u8]) -> Vec<u8> {
    let mut tensor = Vec::new();
    dims.iter().for_each(|&d| number(&mut tensor, 1, d as u64));
    number(&mut tensor, 2, kind);
    message(&mut tensor, 8, name.as_bytes());
    message(&mut tensor, 9, raw);
    tensor
}

fn attribute_bytes(attribute: Attr<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match attribute {
        Attr::Int(name, value) => {
            message(&mut bytes, 1, name.as_bytes());
            number(&mut bytes, 3, value as u64);
            number(&mut bytes, 20, 2);
        }
        Attr::Ints(name, values) => {
            message(&mut bytes, 1, name.as_bytes());
            values.iter().for_each(|&v| number(&mut bytes, 8, v as u64));
            number(&mut bytes, 20, 7);
        }
        Attr::Graph(name, graph) => {
            message(&mut bytes, 1, name.as_bytes());
            message(&mut bytes, 6, &graph.bytes());
            number(&mut bytes, 20, 5);
        }
    }
    bytes
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn message(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
