//! Which operators can be computed.

use std::collections::{BTreeSet, HashSet};

use tract_onnx::Onnx;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

use super::Operators;

/// Names of the operators that cannot be computed, in all graphs, sorted.
pub(super) fn unsupported(onnx: &Onnx, proto: &ModelProto, graph: &GraphProto) -> Vec<String> {
    let local: HashSet<(&str, &str)> =
        proto.functions.iter().map(|f| (f.domain.as_deref().unwrap_or(""), f.name.as_deref().unwrap_or(""))).collect();
    let mut unsupported = BTreeSet::new();
    for node in nodes(graph) {
        let domain = Some(node.domain.as_str()).filter(|d| !d.is_empty());
        let name = || domain.map_or(node.op_type.clone(), |d| format!("{d}.{}", node.op_type));
        if !known(onnx, &local, node) {
            unsupported.insert(name());
        } else if let Some(what) = misread(node) {
            unsupported.insert(format!("{} with {what}", name()));
        }
    }
    unsupported.into_iter().collect()
}

/// The operator of each node of all graphs, by the name that tract gives the node: its own, or that of its first output.
pub(super) fn by_node(graph: &GraphProto) -> Operators {
    let name = |node: &NodeProto| Some(&node.name).filter(|n| !n.is_empty()).or(node.output.first()).cloned();
    nodes(graph).into_iter().filter_map(|node| Some((name(node)?, node.op_type.clone()))).collect()
}

/// The nodes of a graph and of those inside it.
fn nodes(graph: &GraphProto) -> Vec<&NodeProto> {
    let (mut graphs, mut nodes) = (vec![graph], Vec::new());
    while let Some(graph) = graphs.pop() {
        for node in &graph.node {
            graphs.extend(node.attribute.iter().filter_map(|a| a.g.as_ref()));
            graphs.extend(node.attribute.iter().flat_map(|a| &a.graphs));
            nodes.push(node);
        }
    }
    nodes
}

fn known(onnx: &Onnx, local: &HashSet<(&str, &str)>, node: &NodeProto) -> bool {
    // tract looks operators up by name alone: one of a stranger's domain must not pass for the standard one.
    matches!(node.domain.as_str(), "" | "ai.onnx" | "ai.onnx.ml" | "com.microsoft")
        && !local.contains(&(node.domain.as_str(), node.op_type.as_str()))
        && onnx.op_register.0.contains_key(&node.op_type)
}

/// Uses of an operator that tract would compute as if an attribute were not there, or by way of numbers that overflow. No answer is better than a wrong one.
fn misread(node: &NodeProto) -> Option<&'static str> {
    let attribute = |name: &str| node.attribute.iter().find(|a| a.name == name);
    let text = |name: &str, value: &[u8]| attribute(name).is_some_and(|a| a.s == value);
    let real = |name: &str, value: f32| attribute(name).is_some_and(|a| a.f.to_bits() != value.to_bits());
    let input = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    match node.op_type.as_str() {
        "RNN" | "GRU" | "LSTM" if text("direction", b"reverse") => Some("direction reverse"),
        "RNN" | "GRU" | "LSTM" if attribute("clip").is_some() => Some("clip"),
        "LSTM" if attribute("input_forget").is_some_and(|a| a.i != 0) => Some("input_forget"),
        "RNN" if other_activations(attribute("activations"), &["Tanh"]) => Some("activations other than Tanh"),
        "GRU" if other_activations(attribute("activations"), &["Sigmoid", "Tanh"]) => {
            Some("activations other than Sigmoid and Tanh")
        }
        "LSTM" if other_activations(attribute("activations"), &["Sigmoid", "Tanh", "Tanh"]) => {
            Some("activations other than Sigmoid, Tanh and Tanh")
        }
        "SpaceToDepth" if text("mode", b"CRD") => Some("mode CRD"),
        "Swish" if real("alpha", 1.0) => Some("an alpha other than 1"),
        "Celu" if real("alpha", 1.0) => Some("an alpha other than 1"),
        "ReduceLogSumExp" => Some("sums that overflow"),
        "Attention" if attribute("left_window_size").is_some_and(|a| a.i >= 0) => Some("left_window_size"),
        "Attention" if attribute("right_window_size").is_some_and(|a| a.i >= 0) => Some("right_window_size"),
        "Attention" if input(4) && attribute("is_causal").is_some_and(|a| a.i != 0) => Some("is_causal and a past"),
        _ => None,
    }
}

/// Whether activations are named, for either direction, that are not the usual ones.
fn other_activations(named: Option<&AttributeProto>, usual: &[&str]) -> bool {
    let named = named.map_or(&[][..], |a| &a.strings);
    !named.iter().zip(usual.iter().cycle()).all(|(named, usual)| named.eq_ignore_ascii_case(usual.as_bytes()))
}
