//! Images that are resized and normalised before a model.

use splitrpc_client::Input;
use splitrpc_wire::DType;

use crate::common::{Repository, client, config, has_gpu, start};

const MEAN: [f32; 3] = [120.0, 110.5, 100.0];
const STD: [f32; 3] = [58.0, 57.0, 20.0];

/// Copies single precision numbers, or halves two by two.
const COPY: &str = r"
.version 7.0
.target sm_70
.address_size 64

.visible .entry copy(.param .u64 p_from, .param .u64 p_to, .param .u32 p_n)
{
    .reg .pred %p;
    .reg .b32 %n, %i, %t, %v;
    .reg .b64 %from, %to, %at;
    ld.param.u64 %from, [p_from];
    ld.param.u64 %to, [p_to];
    ld.param.u32 %n, [p_n];
    mov.u32 %i, %ctaid.x;
    mov.u32 %t, %ntid.x;
    mul.lo.u32 %i, %i, %t;
    mov.u32 %t, %tid.x;
    add.u32 %i, %i, %t;
    setp.ge.u32 %p, %i, %n;
    @%p ret;
    mul.wide.u32 %at, %i, 4;
    add.u64 %from, %from, %at;
    add.u64 %to, %to, %at;
    ld.global.b32 %v, [%from];
    st.global.b32 [%to], %v;
    ret;
}
";

/// What it should come to, computed in the plain way.
fn resized(image: &[u8], [from_h, from_w]: [usize; 2], [h, w]: [usize; 2]) -> Vec<f32> {
    let mut planes = Vec::new();
    let axis = |to: usize, of: usize, from: usize| {
        let at = ((to as f32 + 0.5) * (from as f32 / of as f32) - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        (low, (low + 1).min(from - 1), at - low as f32)
    };
    for channel in 0..3 {
        for y in 0..h {
            for x in 0..w {
                let ((y0, y1, ay), (x0, x1, ax)) = (axis(y, h, from_h), axis(x, w, from_w));
                let at = |y: usize, x: usize| f32::from(image[(y * from_w + x) * 3 + channel]);
                let row = |y: usize| at(y, x0) * (1.0 - ax) + at(y, x1) * ax;
                let value = row(y0) * (1.0 - ay) + row(y1) * ay;
                planes.push((value - MEAN[channel]) / STD[channel]);
            }
        }
    }
    planes
}

fn half(bits: [u8; 2]) -> f32 {
    let bits = u16::from_le_bytes(bits);
    let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2_f32.powi(-24),
        _ => (1.0 + fraction / 1024.0) * 2_f32.powi(exponent - 15),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

fn with_model(repository: Repository, name: &str, dtype: &str, from: [usize; 2], to: [usize; 2]) -> Repository {
    let words = 3 * to[0] * to[1] * if dtype == "FP16" { 2 } else { 4 } / 4;
    let [h, w] = to;
    let config = format!(
        "max_batch_size: 4 dynamic_batching {{ max_queue_delay_microseconds: 500 }}\n\
         input {{ name: \"IN\" data_type: TYPE_{dtype} dims: [ 3, {h}, {w} ] }}\n\
         output {{ name: \"OUT\" data_type: TYPE_{dtype} dims: [ 3, {h}, {w} ] }}\n"
    );
    let manifest = format!(
        "module = \"copy.ptx\"\n[[kernel]]\nfunction = \"copy\"\ngrid = [{{ per_row = {words}, per_block = 128 }}]\n\
         block = [128]\narguments = [{{ input = \"IN\" }}, {{ output = \"OUT\" }}, {{ u32_per_row = {words} }}]\n"
    );
    let images = format!(
        "[[image]]\ninput = \"IN\"\nheight = {}\nwidth = {}\nmean = {MEAN:?}\nstd = {STD:?}\n",
        from[0], from[1]
    );
    repository.with(name, &config, &manifest, &[("copy.ptx", COPY.as_bytes()), ("images.toml", images.as_bytes())])
}

#[test]
fn raw_images_are_resized_and_normalised_before_the_model() {
    if !has_gpu() {
        return;
    }
    let cases = [
        ("down", "FP32", [97, 131], [32, 48]),
        ("halves", "FP16", [40, 30], [64, 64]),
        ("same", "FP32", [20, 18], [20, 18]),
        ("single", "FP32", [1, 1], [6, 4]),
    ];
    let repository = cases
        .iter()
        .fold(Repository::new(), |repository, (name, dtype, from, to)| with_model(repository, name, dtype, *from, *to));
    let server = start(config(Some(&repository), &[]));
    let mut client = client(&server);
    for (name, dtype, from, to) in cases {
        for (rows, seed) in [(1, 1), (3, 2), (4, 3)] {
            let images: Vec<Vec<u8>> = (0..rows)
                .map(|row| {
                    (0..from[0] * from[1] * 3).map(|i| ((i * 37 + row * 11 + i / 7 * seed) % 256) as u8).collect()
                })
                .collect();
            let dims = [rows as u32, from[0] as u32, from[1] as u32, 3];
            let response = client.infer(name, &[Input::new("IN", DType::Uint8, &dims, &images.concat()[..])]).unwrap();
            let got: Vec<f32> = match dtype {
                "FP16" => response.data().as_chunks::<2>().0.iter().map(|bits| half(*bits)).collect(),
                _ => response.data().as_chunks::<4>().0.iter().map(|bits| f32::from_le_bytes(*bits)).collect(),
            };
            let expected: Vec<f32> = images.iter().flat_map(|image| resized(image, from, to)).collect();
            assert_eq!(got.len(), expected.len());
            // Where a pixel lies between two others is rounded otherwise on the device.
            let near = if dtype == "FP16" { 2e-3 } else { 5e-4 };
            for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
                assert!((got - expected).abs() <= near * expected.abs().max(1.0), "{name}, {at}: {got}, {expected}");
            }
            client.recycle(response);
        }
    }
    assert!(server.stop());
}
