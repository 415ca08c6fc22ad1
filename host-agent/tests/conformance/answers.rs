//! Right answers, and reasons where there are none.

use splitrpc_client::{Error, Input, Request, Tensor};
use splitrpc_wire::manifest::{MANIFEST_ENTRY_LEN, MANIFEST_HEAD_LEN};
use splitrpc_wire::{DType, Status};

use crate::arm::{MAX_REQUEST, Up, failure};
use crate::rig::{ask, noise, null_answer};

/// Tensor bytes of the largest request with one tensor of one dimension.
const LARGEST: usize = MAX_REQUEST - MANIFEST_HEAD_LEN - MANIFEST_ENTRY_LEN - 4;

pub(crate) fn requests_of_all_sizes_are_answered(up: Up) {
    let mut client = up.bus.client(up.transport());
    // On either side of a line, of a page, and of the classes of slots.
    let sizes = [0, 1, 63, 64, 65, 4095, 4096, 4097, 65_535, 65_536, 65_537, 602_112, 1 << 20, (1 << 20) + 1, LARGEST];
    for size in sizes {
        for seed in 0..2 {
            let bytes = noise(seed, size);
            let response = ask(&mut client, "echo", &bytes).unwrap();
            assert!(response.data() == bytes, "{size} bytes");
            up.check_way(&response, size);
            client.recycle(response);
            let response = ask(&mut client, "null", &bytes).unwrap();
            assert!(response.data() == null_answer(), "{size} bytes");
            up.check_way(&response, size);
            client.recycle(response);
        }
    }
    let error = ask(&mut client, "echo", &vec![0; LARGEST + 1]).unwrap_err();
    assert_eq!(error, Error::TooLarge { bytes: MAX_REQUEST as u64 + 1, limit: MAX_REQUEST as u32 });
    up.end();
}

pub(crate) fn each_of_several_tensors_lands_in_its_own_place(up: Up) {
    let mut client = up.bus.client(up.transport());
    for round in 0..20 {
        let numbers =
            |seed: usize, len: usize| -> Vec<f32> { (0..len).map(|i| ((i * 7 + seed) % 100) as f32 - 50.0).collect() };
        let bytes = |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|number| number.to_le_bytes()).collect() };
        let (a, b, c) = (numbers(round, 3000), numbers(round + 31, 3000), numbers(3 * round, 5));
        let (in_a, in_b, in_c) = (bytes(&a), bytes(&b), bytes(&c));
        let input = |name, len, bytes| Input::new(name, DType::Fp32, len, bytes);
        let inputs = [input("a", &[3000], &in_a[..]), input("b", &[3000], &in_b[..]), input("c", &[5], &in_c[..])];
        let response = client.infer("several", &inputs).unwrap();
        let outputs: Vec<Vec<f32>> = response.outputs().map(|output| output.f32s().unwrap().collect()).collect();
        let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let positive: Vec<f32> = c.iter().map(|c| c.max(0.0)).collect();
        assert!(outputs == [sum, positive], "round {round}");
    }
    up.end();
}

pub(crate) fn what_cannot_be_is_refused_by_name_and_the_next_request_is_served(up: Up) {
    // More often than there are slots.
    let mut client = up.bus.client(up.transport());
    for round in 0..20_i64 {
        let mut look = |at: i64| client.infer("lookup", &[Input::new("at", DType::Int64, &[1], &at.to_le_bytes()[..])]);
        let Err(Error::Failed(failure)) = look(9) else { panic!("answered") };
        assert_eq!(failure.status, Status::BadTensor);
        assert_eq!(failure.text, "model \"lookup\": node \"y\" (Gather): index 9 is outside of -3 to 2");
        assert_eq!(look(round % 3).unwrap().data(), ((round % 3 + 1) as f32).to_le_bytes());
    }
    let mut connection = up.connect();
    let image = [0; 7 * 4];
    let tensors = [Tensor::new(0, DType::Fp32, &[1, 7], &image[..]).unwrap()];
    let patient = connection.catalogue().model("patient").unwrap().handle;
    for (model, status) in [(999, Status::UnknownModel), (patient, Status::BadTensor)] {
        for _ in 0..20 {
            connection.submit(&Request::new(model, &tensors)).unwrap();
            assert_eq!(failure(&mut connection).status, status);
        }
    }
    let bytes = noise(1, 5000);
    assert!(ask(&mut client, "echo", &bytes).unwrap().data() == bytes);
    up.end();
}
