//! Tensors as large as those of some networks, read whole and filled by formulas. None of these is the network: they show what
//! it costs to carry its tensors, and not what it costs to compute it.

use std::io;
use std::path::Path;

use splitrpc_wire::DType;

use super::exchange::Tensor;
use super::model::{Code, Model, bytes, floats, fp32, write_kernels};

pub(super) const CODE: Code = Code { name: "shaped.ptx", text: include_str!("../../workloads/shaped.ptx") };

/// An image of 640 x 640 to 25,200 boxes of 85 numbers.
pub(super) struct Yolo;

const YOLO_IN: u32 = 3 * 640 * 640;
const BOXES: u32 = 25_200;
const BOX: u32 = 85;

impl Model for Yolo {
    fn inputs(&self) -> Vec<Tensor> {
        vec![fp32("IMAGE", &[3, 640, 640])]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![fp32("BOXES", &[BOXES, BOX])]
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        bytes(&blend(&floats(request), (BOXES * BOX) as usize))
    }

    fn write(&self, version: &Path) -> io::Result<()> {
        let numbers = BOXES * BOX;
        let kernels = format!(
            "[[kernel]]\nfunction = \"blend\"\ngrid = [{}]\nblock = [256]\n\
             arguments = [{{ input = \"IMAGE\" }}, {{ output = \"BOXES\" }}, {{ u32 = {YOLO_IN} }}, {{ u32 = {numbers} }}]\n",
            numbers.div_ceil(256)
        );
        write_kernels(version, &CODE, &kernels)
    }
}

/// `numbers` numbers, each of two of the input.
pub(super) fn blend(input: &[f32], numbers: usize) -> Vec<f32> {
    let n = input.len();
    (0..numbers).map(|j| input[j % n] + 0.5 * input[(7 * j + 3) % n]).collect()
}

/// An image of 513 x 513 to scores of 21 classes for each pixel, as many of an auxiliary head, and labels.
pub(super) struct Deeplab;

const SIDE: u32 = 513;
const CLASSES: u32 = 21;

impl Model for Deeplab {
    fn inputs(&self) -> Vec<Tensor> {
        vec![fp32("IMAGE", &[3, SIDE, SIDE])]
    }

    fn outputs(&self) -> Vec<Tensor> {
        let scores = |name| fp32(name, &[CLASSES, SIDE, SIDE]);
        vec![scores("SCORES"), scores("AUXILIARY"), Tensor::new("LABELS", DType::Int32, &[SIDE, SIDE])]
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        let (scores, auxiliary, labels) = classes(&floats(request), CLASSES as usize);
        let labels = labels.into_iter().flat_map(i32::to_le_bytes);
        bytes(&scores).into_iter().chain(bytes(&auxiliary)).chain(labels).collect()
    }

    fn write(&self, version: &Path) -> io::Result<()> {
        let pixels = SIDE * SIDE;
        let kernels = format!(
            "[[kernel]]\nfunction = \"classes\"\ngrid = [{}]\nblock = [256]\n\
             arguments = [{{ input = \"IMAGE\" }}, {{ output = \"SCORES\" }}, {{ output = \"AUXILIARY\" }}, \
             {{ output = \"LABELS\" }}, {{ u32 = {pixels} }}, {{ u32 = {CLASSES} }}]\n",
            pixels.div_ceil(256)
        );
        write_kernels(version, &CODE, &kernels)
    }
}

/// Scores and auxiliary scores, a plane for each class, and labels, of an image of three planes.
pub(super) fn classes(image: &[f32], classes: usize) -> (Vec<f32>, Vec<f32>, Vec<i32>) {
    let pixels = image.len() / 3;
    let plane = |color: usize| &image[color % 3 * pixels..][..pixels];
    let (mut scores, mut auxiliary) = (Vec::new(), Vec::new());
    let mut best = vec![(f32::NEG_INFINITY, 0); pixels];
    for class in 0..classes {
        let (near, far) = (plane(class), plane(class + 1));
        for (pixel, best) in best.iter_mut().enumerate() {
            let (near, far) = (near[pixel], far[(pixel + 1009 * class) % pixels]);
            let score = near + 0.5 * far;
            scores.push(score);
            auxiliary.push(far - 0.25 * near);
            if score > best.0 {
                *best = (score, class as i32);
            }
        }
    }
    (scores, auxiliary, best.into_iter().map(|(_, label)| label).collect())
}

/// 256 tokens with their mask and types to 768 numbers each.
pub(super) struct Bert;

const TOKENS: u32 = 256;
const WIDTH: u32 = 768;
const VOCABULARY: i64 = 30_522;
/// Tokens that are not masked.
const LENGTH: u32 = 200;

impl Model for Bert {
    fn inputs(&self) -> Vec<Tensor> {
        ["input_ids", "attention_mask", "token_type_ids"]
            .map(|name| Tensor::new(name, DType::Int64, &[TOKENS]))
            .to_vec()
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![fp32("last_hidden_state", &[TOKENS, WIDTH])]
    }

    fn request(&self) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(3);
        let ids: Vec<i64> = (0..TOKENS).map(|_| rng.i64(0..VOCABULARY)).collect();
        let mask = (0..TOKENS).map(|place| i64::from(place < LENGTH));
        let types = (0..TOKENS).map(|place| i64::from(place >= LENGTH / 2));
        ids.into_iter().chain(mask).chain(types).flat_map(i64::to_le_bytes).collect()
    }

    fn answer(&self, request: &[u8]) -> Vec<u8> {
        let numbers: Vec<i64> = request.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        let n = TOKENS as usize;
        bytes(&embed(&numbers[..n], &numbers[n..2 * n], &numbers[2 * n..], WIDTH as usize))
    }

    fn write(&self, version: &Path) -> io::Result<()> {
        let kernels = format!(
            "[[kernel]]\nfunction = \"embed\"\ngrid = [{}]\nblock = [256]\n\
             arguments = [{{ input = \"input_ids\" }}, {{ input = \"attention_mask\" }}, {{ input = \"token_type_ids\" }}, \
             {{ output = \"last_hidden_state\" }}, {{ u32 = {TOKENS} }}, {{ u32 = {WIDTH} }}]\n",
            (TOKENS * WIDTH).div_ceil(256)
        );
        write_kernels(version, &CODE, &kernels)
    }
}

/// `width` numbers for each token.
pub(super) fn embed(ids: &[i64], mask: &[i64], types: &[i64], width: usize) -> Vec<f32> {
    let token = |place: usize| {
        let number = move |column: usize| {
            let hash = 31 * ids[place] + 17 * column as i64 + 7 * place as i64 + 5 * types[place];
            if mask[place] == 0 { 0.0 } else { (hash % 251) as f32 / 256.0 }
        };
        (0..width).map(number)
    };
    (0..ids.len()).flat_map(token).collect()
}
