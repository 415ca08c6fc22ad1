//! Arbitrary bytes as configurations and as model files: always an answer, never a panic.

use bolero::check;
use host_agent::model::pbtxt::{Message, Value};
use host_agent::model::{config_pbtxt, onnx, pbtxt};

/// Writes a message as text, in one of the spellings that the format allows.
fn print(message: &Message, out: &mut String) {
    for field in &message.fields {
        out.push_str(&field.name);
        match &field.value {
            Value::Message(inner) => {
                out.push_str(" {\n");
                print(inner, out);
                out.push_str("} ");
            }
            Value::Integer(n) => out.push_str(&format!(": {n}\n")),
            Value::Float(f) => out.push_str(&format!(": {f:?},")),
            Value::Word(word) => out.push_str(&format!(": {word};")),
            Value::Text(bytes) => {
                let escaped: String = bytes.iter().map(|b| format!("\\x{b:02x}")).collect();
                out.push_str(&format!(": '{escaped}' # text\n"));
            }
        }
    }
}

/// Compares what fields say, not where they stand.
fn same(a: &Message, b: &Message) -> bool {
    a.fields.len() == b.fields.len()
        && a.fields.iter().zip(&b.fields).all(|(a, b)| {
            a.name == b.name
                && match (&a.value, &b.value) {
                    (Value::Message(a), Value::Message(b)) => same(a, b),
                    (Value::Float(a), Value::Float(b)) => a == b || (a.is_nan() && b.is_nan()),
                    (a, b) => a == b,
                }
        })
}

fn try_text(text: &str) {
    match pbtxt::parse(text) {
        Ok(message) => {
            let mut printed = String::new();
            print(&message, &mut printed);
            let again = pbtxt::parse(&printed).expect("what was printed from a message is one");
            assert!(same(&message, &again), "{text:?} became {printed:?}");
        }
        Err(error) => {
            let lines = text.split('\n').count() as u32;
            assert!((1..=lines).contains(&error.at.line), "{error}");
            assert!(error.at.column >= 1 && error.at.column as usize <= text.len() + 1, "{error}");
        }
    }
    if let Err(error) = config_pbtxt::parse(text) {
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn any_bytes_as_a_configuration() {
    check!().for_each(|bytes| try_text(&String::from_utf8_lossy(bytes)));
}

/// Pieces of real configurations in any order get further than random bytes do.
#[test]
fn any_pieces_of_a_configuration() {
    const PIECES: [&str; 32] = [
        "input",
        "output",
        "dynamic_batching",
        "version_policy",
        "instance_group",
        "model_warmup",
        "parameters",
        "name",
        "dims",
        "data_type",
        "preferred_batch_size",
        "key",
        "value",
        "max_batch_size",
        "specific",
        "versions",
        "reshape",
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        ":",
        ",",
        "\"x\"",
        "TYPE_FP32",
        "-1",
        "4",
        "true",
        "# c\n",
        "0x",
    ];
    check!().with_type::<Vec<u8>>().for_each(|picks: &Vec<u8>| {
        let text: Vec<&str> = picks.iter().map(|&p| PIECES[usize::from(p) % PIECES.len()]).collect();
        try_text(&text.join(" "));
    });
}

#[test]
fn any_bytes_as_a_model_file() {
    check!().for_each(|bytes| {
        if let Err(reason) = onnx::parse(bytes, None) {
            assert!(!reason.is_empty() && reason.len() < 2000);
        }
    });
}
