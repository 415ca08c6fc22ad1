//! A request and the answer that it must get.

use std::ops::Range;

use bytes::Bytes;
use splitrpc_wire::DType;

use crate::arms::{null_response, request_payload};

/// Tensors of a request or an answer, at most.
pub(crate) const MAX_TENSORS: usize = 8;

/// A tensor's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    /// Its name.
    pub(crate) name: String,
    /// Its type.
    pub(crate) dtype: DType,
    /// Its dimensions.
    pub(crate) dims: Vec<u32>,
}

impl Tensor {
    /// One of this type and shape.
    pub(crate) fn new(name: &str, dtype: DType, dims: &[u32]) -> Tensor {
        Tensor { name: name.to_owned(), dtype, dims: dims.to_vec() }
    }

    /// How many elements it has.
    pub(crate) fn elements(&self) -> usize {
        self.dims.iter().map(|&dim| dim as usize).product()
    }

    /// How many bytes those take; none in types whose elements vary in size.
    pub(crate) fn bytes(&self) -> usize {
        self.elements() * self.dtype.size().unwrap_or(0) as usize
    }
}

/// How far elements of an answer may lie from what is expected. Those of types that are not here are to be the same.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tolerance {
    /// Of FP32: so much, or so many times what is expected where that is above 1.
    pub(crate) fp32: f64,
    /// The same of FP16.
    pub(crate) fp16: f64,
}

/// A request and the answer that it must get, each with its tensors back to back.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// The model that is asked.
    pub(crate) model: &'static str,
    /// What the request consists of.
    pub(crate) inputs: Vec<Tensor>,
    /// The request.
    pub(crate) request: Bytes,
    /// What the answer consists of.
    pub(crate) outputs: Vec<Tensor>,
    /// The answer.
    pub(crate) expected: Bytes,
    tolerance: Tolerance,
}

impl Exchange {
    /// A request and its answer, each given with its tensors.
    ///
    /// # Panics
    /// Where the bytes are not those of the tensors, or these are too many.
    pub(crate) fn new(
        model: &'static str,
        (inputs, request): (Vec<Tensor>, Vec<u8>),
        (outputs, expected): (Vec<Tensor>, Vec<u8>),
        tolerance: Tolerance,
    ) -> Exchange {
        for (tensors, bytes) in [(&inputs, &request), (&outputs, &expected)] {
            let sum: usize = tensors.iter().map(Tensor::bytes).sum();
            assert!(
                sum == bytes.len() && tensors.len() <= MAX_TENSORS,
                "{model}: {} bytes of {tensors:?}",
                bytes.len()
            );
        }
        Exchange { model, inputs, request: request.into(), outputs, expected: expected.into(), tolerance }
    }

    /// That of a null model, or of a floor.
    pub(crate) fn of_bytes(model: &'static str, request_bytes: u32, response_bytes: u32) -> Exchange {
        let one = |name: &str, bytes: Vec<u8>| (vec![Tensor::new(name, DType::Uint8, &[bytes.len() as u32])], bytes);
        let input = one("INPUT", request_payload(request_bytes));
        Exchange::new(model, input, one("OUTPUT", null_response(response_bytes)), Tolerance::default())
    }

    /// Where in the request each input is.
    pub(crate) fn input_ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        ranges(&self.inputs)
    }

    /// Whether an answer is right, its outputs back to back.
    pub(crate) fn is_right(&self, answer: &[u8]) -> bool {
        answer.len() == self.expected.len()
            && ranges(&self.outputs).enumerate().all(|(output, range)| self.is_right_in(output, &answer[range]))
    }

    /// Whether one output of an answer is right.
    pub(crate) fn is_right_in(&self, output: usize, bytes: &[u8]) -> bool {
        let Some((tensor, range)) = self.outputs.get(output).zip(ranges(&self.outputs).nth(output)) else {
            return false;
        };
        let expected = &self.expected[range];
        // Most are the same, and are soon known to be.
        bytes == expected || bytes.len() == expected.len() && self.is_near(tensor.dtype, bytes, expected)
    }

    fn is_near(&self, dtype: DType, bytes: &[u8], expected: &[u8]) -> bool {
        let near = |got: f64, wanted: f64, tolerance: f64| (got - wanted).abs() <= tolerance * wanted.abs().max(1.0);
        match dtype {
            DType::Fp32 => {
                let number = |bytes: &[u8; 4]| f64::from(f32::from_le_bytes(*bytes));
                let pairs = bytes.as_chunks::<4>().0.iter().zip(expected.as_chunks::<4>().0);
                self.tolerance.fp32 > 0.0
                    && pairs.into_iter().all(|(got, wanted)| near(number(got), number(wanted), self.tolerance.fp32))
            }
            DType::Fp16 => {
                let pairs = bytes.as_chunks::<2>().0.iter().zip(expected.as_chunks::<2>().0);
                self.tolerance.fp16 > 0.0
                    && pairs.into_iter().all(|(got, wanted)| near(half(*got), half(*wanted), self.tolerance.fp16))
            }
            _ => false,
        }
    }
}

/// A half as a number.
fn half(bytes: [u8; 2]) -> f64 {
    let bits = u16::from_le_bytes(bytes);
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction > 0.0 => f64::NAN,
        31 => f64::INFINITY,
        _ => (1.0 + fraction / 1024.0) * 2_f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// Where tensors are that lie back to back.
pub(crate) fn ranges(tensors: &[Tensor]) -> impl Iterator<Item = Range<usize>> + '_ {
    tensors.iter().scan(0, |end, tensor| {
        let start = *end;
        *end += tensor.bytes();
        Some(start..*end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(tolerance: f64) -> Exchange {
        let floats = |values: [f32; 3]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let outputs = vec![Tensor::new("F", DType::Fp32, &[3]), Tensor::new("I", DType::Int32, &[1])];
        let answer = [floats([0.5, -100.0, 0.0]), 7_i32.to_le_bytes().to_vec()].concat();
        Exchange::new("m", (Vec::new(), Vec::new()), (outputs, answer), Tolerance { fp32: tolerance, fp16: tolerance })
    }

    fn with(values: [f32; 3], whole: i32) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).chain(whole.to_le_bytes()).collect()
    }

    #[test]
    fn an_answer_within_the_tolerance_of_its_type_is_right() {
        let near = exchange(1e-3);
        assert!(near.is_right(&with([0.5, -100.0, 0.0], 7)));
        assert!(near.is_right(&with([0.500_9, -100.09, -0.000_9], 7)));
        for wrong in [[0.501_1, -100.0, 0.0], [0.5, -100.11, 0.0], [0.5, 100.0, 0.0], [0.5, -100.0, f32::NAN]] {
            assert!(!near.is_right(&with(wrong, 7)), "{wrong:?}");
        }
        assert!(!near.is_right(&with([0.5, -100.0, 0.0], 8)), "whole numbers have no tolerance");
        assert!(!exchange(0.0).is_right(&with([0.500_000_1, -100.0, 0.0], 7)));
    }

    #[test]
    fn halves_are_numbers() {
        let values = [0x0000_u16, 0x3c00, 0xc000, 0x3555, 0x0001, 0xfc00].map(|bits| half(bits.to_le_bytes()));
        assert_eq!(values, [0.0, 1.0, -2.0, 0.333251953125, 2_f64.powi(-24), f64::NEG_INFINITY]);
        assert!(half(0x7e00_u16.to_le_bytes()).is_nan());
    }

    #[test]
    fn an_answer_that_lacks_something_is_wrong() {
        let near = exchange(1e-3);
        let whole = with([0.5, -100.0, 0.0], 7);
        assert!(!near.is_right(&whole[..12]) && !near.is_right(&[&whole[..], &[0]].concat()));
        assert!(near.is_right_in(1, &7_i32.to_le_bytes()) && !near.is_right_in(2, &[]) && !near.is_right_in(0, &[]));
    }
}
