use std::collections::HashSet;

use host_agent::gpu::LazyGpu;
use host_agent::model::load_model;

use super::exchange::ranges;
use super::model::Code;
use super::shaped::{blend, classes, embed};
use super::*;

macro_rules! with_header {
    ($source:literal) => {
        concat!(include_str!($source), include_str!("../../../host-agent/include/splitrpc/persistent.cuh"))
    };
}

const CODE: [(&Code, &str); 8] = [
    (&vecadd::CODE, include_str!("../../workloads/vecadd.cu")),
    (&matmul::CODE, include_str!("../../workloads/matmul.cu")),
    (&lenet5::CODE, include_str!("../../workloads/lenet5.cu")),
    (&lstm::CODE, include_str!("../../workloads/lstm.cu")),
    (&shaped::CODE, include_str!("../../workloads/shaped.cu")),
    (&STEP, include_str!("../../workloads/step.cu")),
    // With the header that it names.
    (&STAYS, with_header!("../../workloads/stays.cu")),
    (&FOLD, with_header!("../../workloads/fold.cu")),
];

fn answer(model: &dyn Model, request: &[f32]) -> Vec<f32> {
    model::floats(&model.answer(&model::bytes(request)))
}

#[test]
fn vectors_are_added_and_matrices_multiplied() {
    assert_eq!(answer(&vecadd::Vecadd { elements: 2 }, &[1.0, 2.0, 10.0, -2.0]), [11.0, 0.0]);
    let product = answer(&matmul::Matmul { side: 2 }, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_eq!(product, [19.0, 22.0, 43.0, 50.0]);
}

#[test]
fn a_convolution_is_what_it_is_by_hand() {
    // One filter that sees its pixel, twice, and the one to the right of it; 4 x 4 with two zeroes around, pooled to 2 x 2.
    let convolution = lenet5::Convolution { channels: 1, in_side: 4, pad: 2, filters: 1, side: 2 };
    let mut weights = [0.0; 26];
    (weights[12], weights[13], weights[25]) = (2.0, 1.0, -0.5);
    let mut image = [0.0; 16];
    (image[0], image[3], image[15]) = (0.25, 0.5, 1.0);
    let t = f64::tanh;
    let none = t(-0.5);
    let wanted = [
        // Above left: the pixel of 0.25, and three of nothing.
        (t(2.0 * 0.25 - 0.5) + 3.0 * none) / 4.0,
        // Above right: the one before 0.5, that itself, and two of nothing.
        (t(0.5 - 0.5) + t(2.0 * 0.5 - 0.5) + 2.0 * none) / 4.0,
        none,
        (t(1.0 - 0.5) + t(2.0 - 0.5) + 2.0 * none) / 4.0,
    ];
    let got = convolution.apply(&image, &weights);
    assert!(got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-12), "{got:?} {wanted:?}");
    // Two channels are summed, and each filter has weights of its own.
    let convolution = lenet5::Convolution { channels: 2, in_side: 6, pad: 0, filters: 2, side: 1 };
    let mut weights = [0.0; 2 * 51];
    (weights[0], weights[25], weights[51 + 50]) = (1.0, 1.0, 0.5);
    let mut image = [0.0; 72];
    (image[0], image[36]) = (0.25, 0.5);
    let got = convolution.apply(&image, &weights);
    assert!((got[0] - t(0.75) / 4.0).abs() < 1e-12 && (got[1] - t(0.5)).abs() < 1e-12, "{got:?}");
}

#[test]
fn a_dense_layer_and_a_step_are_what_they_are_by_hand() {
    assert_eq!(lenet5::dense(&[1.0, 2.0], &[3.0, 4.0, 0.5, -1.0, 1.0, 0.0], 2), [11.5, 1.0]);
    // One unit over one feature; its gates see the feature, the state, the bias, and nothing.
    let weights = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0];
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut cells = [0.5];
    let state = lstm::step(&[3.0], &[0.25], &mut cells, &weights);
    let cell = sigmoid(0.25) * 0.5 + sigmoid(3.0) * f64::tanh(2.0);
    assert!((cells[0] - cell).abs() < 1e-12 && (state[0] - 0.5 * cell.tanh()).abs() < 1e-12, "{cells:?} {state:?}");
}

#[test]
fn what_is_shaped_follows_its_formula() {
    // (7 j + 3) mod 3 is j mod 3.
    assert_eq!(blend(&[1.0, 2.0, 4.0], 4), [1.5, 3.0, 6.0, 1.5]);
    assert_eq!(blend(&[1.0, 2.0], 3), [2.0, 2.5, 2.0]);
    // Two pixels of red, green and blue. Of the second class the far pixel is the other one, of the third the same.
    let (scores, auxiliary, labels) = classes(&[1.0, 2.0, 4.0, 8.0, 0.0, 16.0], 3);
    assert_eq!(scores, [3.0, 6.0, 12.0, 8.0, 0.5, 17.0]);
    assert_eq!(auxiliary, [3.75, 7.5, 15.0, -2.0, 1.0, -2.0]);
    assert_eq!(labels, [1, 2]);
    let numbers = embed(&[10, 3], &[1, 0], &[0, 1], 2);
    assert_eq!(numbers, [(310 % 251) as f32 / 256.0, (327 % 251) as f32 / 256.0, 0.0, 0.0]);
    assert_eq!(embed(&[0, 1], &[1, 1], &[0, 1], 1), [0.0, 43.0 / 256.0]);
}

#[test]
fn tensors_are_as_large_as_those_that_they_are_named_for() {
    let sizes = Workload::MODELS.map(|workload| workload.sizes().unwrap());
    let [vecadd_1k, vecadd_1m, matmul_16, matmul_32, matmul_64, lenet, lstm, bert, yolo, deeplab] = sizes;
    assert_eq!([vecadd_1k, vecadd_1m], [(2 << 10, 1 << 10), (2 << 20, 1 << 20)]);
    assert_eq!([matmul_16, matmul_32, matmul_64], [(2_048, 1_024), (8_192, 4_096), (32_768, 16_384)]);
    assert_eq!([lenet, lstm, bert], [(3_136, 40), (8_192, 1_024), (6_144, 786_432)]);
    assert_eq!([yolo, deeplab], [(4_915_200, 8_568_000), (3_158_028, 45_265_068)]);
    assert!(sizes.iter().all(|&(request, response)| request.max(response) <= crate::arms::MAX_MESSAGE));
}

#[test]
fn each_request_has_one_answer_in_which_every_tensor_says_something() {
    for workload in Workload::MODELS.into_iter().chain([Workload::NullGpu]) {
        let exchange = workload.exchange(64, 40);
        let again = workload.exchange(64, 40);
        assert!(exchange.request == again.request && exchange.expected == again.expected, "{}", workload.name());
        assert!(exchange.is_right(&exchange.expected));
        for (output, range) in ranges(&exchange.outputs).enumerate() {
            let expected = &exchange.expected[range];
            assert!(expected.iter().collect::<HashSet<_>>().len() > 1, "{} {output}", workload.name());
            assert!(!exchange.is_right_in(output, &vec![0; expected.len()]), "{} {output}", workload.name());
        }
    }
}

#[test]
fn a_model_is_written_as_the_agent_takes_it() {
    for workload in Workload::MODELS {
        let repository = workload.repository().unwrap().unwrap();
        match load_model(&repository.path().join(workload.name()), &LazyGpu::default()) {
            Ok(model) => {
                let spec = model.spec();
                let exchange = workload.exchange(0, 0);
                let names = |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
                assert!(spec.inputs.iter().map(|t| &t.name).eq(&names(&exchange.inputs)), "{}", workload.name());
                assert!(spec.outputs.iter().map(|t| &t.name).eq(&names(&exchange.outputs)), "{}", workload.name());
            }
            // Configuration and manifest are held against each other before a GPU is asked for.
            Err(error) => assert!(error.reason.starts_with("no GPU"), "{}: {error}", workload.name()),
        }
    }
    assert!(Workload::NullGpu.repository().unwrap().is_none());
}

#[test]
fn code_is_made_of_the_source_beside_it_and_loads_with_the_drivers_that_models_need() {
    for (code, source) in CODE {
        let hash = source
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let name = code.name.replace(".ptx", ".cu");
        let made = format!("// Made from {name} ({hash:016x}) by build.py.\n");
        assert!(code.text.starts_with(&made), "{name} was changed: run benches/workloads/build.py");
        let version = code.text.lines().nth(1).and_then(|line| line.strip_prefix(".version 8."));
        assert!(version.is_some_and(|minor| minor.parse::<u32>().is_ok_and(|minor| minor <= 4)), "{name}: {version:?}");
        assert!(code.text.contains("\n.target sm_70\n"), "{name}");
    }
}
