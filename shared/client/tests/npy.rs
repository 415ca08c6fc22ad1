//! `.npy` files: what is written is read back, what others write is understood, and no file makes the reader panic.

use bolero::check;
use splitrpc_client::npy::{self, Array, NpyError};
use splitrpc_client::wire::DType;

const LIMIT: u64 = 1 << 20;

fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend_from_slice(&[version, 0]);
    match version {
        1 => bytes.extend_from_slice(&(header.len() as u16).to_le_bytes()),
        _ => bytes.extend_from_slice(&(header.len() as u32).to_le_bytes()),
    }
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn with(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    file(1, &format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}"), data)
}

fn read(bytes: &[u8]) -> Result<Array, NpyError> {
    npy::read(&mut &bytes[..], LIMIT)
}

fn written(dtype: DType, dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    npy::write(&mut bytes, dtype, dims, data).unwrap();
    bytes
}

#[test]
fn every_type_survives() {
    for dtype in DType::ALL {
        let Some(size) = dtype.size() else { continue };
        let data: Vec<u8> = (0..6 * size).map(|i| if dtype == DType::Bool { (i % 2) as u8 } else { i as u8 }).collect();
        let back = read(&written(dtype, &[2, 3], &data)).unwrap();
        if dtype == DType::Bf16 {
            // Widened, exactly: the upper half of an FP32 is a bfloat16.
            assert_eq!(back.dtype, DType::Fp32);
            let upper: Vec<u8> = back.data.chunks(4).flat_map(|c| [c[2], c[3]]).collect();
            assert_eq!(upper, data);
        } else {
            assert_eq!(back, Array { dtype, dims: vec![2, 3], data });
        }
    }
}

#[test]
fn scalars_and_empty_arrays_survive() {
    for dims in [&[][..], &[0], &[3, 0, 5], &[1, 1, 1, 1, 1, 1, 1, 1]] {
        let elements: u32 = dims.iter().product();
        let data = vec![1; elements as usize * 4];
        assert_eq!(
            read(&written(DType::Fp32, dims, &data)).unwrap(),
            Array { dtype: DType::Fp32, dims: dims.into(), data }
        );
    }
}

#[test]
fn the_written_header_is_numpys() {
    let bytes = written(DType::Fp32, &[3], &[0; 12]);
    assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
    assert_eq!(&bytes[10..69], b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }  ");
    assert_eq!((bytes[127], bytes.len()), (b'\n', 128 + 12));
}

#[test]
fn big_endian_and_newer_versions_are_read() {
    let bytes = with(">i4", "False", "(2,)", &[0, 0, 1, 2, 0xff, 0xff, 0xff, 0xfe]);
    assert_eq!(read(&bytes).unwrap().data, [2, 1, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
    for version in [2, 3] {
        let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }\n";
        assert_eq!(read(&file(version, header, &[8, 9])).unwrap().data, [8, 9]);
    }
    assert!(matches!(read(&file(4, "{}", &[])), Err(NpyError::Unsupported(_))));
}

#[test]
fn column_major_is_turned() {
    // [[1, 2, 3], [4, 5, 6]] by columns.
    let bytes = with("|u1", "True", "(2, 3)", &[1, 4, 2, 5, 3, 6]);
    assert_eq!(read(&bytes).unwrap().data, [1, 2, 3, 4, 5, 6]);
    // A cube whose element at (i, j, k) is 100 i + 10 j + k.
    let by_columns: Vec<u8> =
        (0..2).flat_map(|k| (0..3).flat_map(move |j| (0..2).map(move |i| i * 100 + j * 10 + k))).collect();
    let by_rows: Vec<u8> =
        (0..2).flat_map(|i| (0..3).flat_map(move |j| (0..2).map(move |k| i * 100 + j * 10 + k))).collect();
    assert_eq!(read(&with("|u1", "True", "(2, 3, 2)", &by_columns)).unwrap().data, by_rows);
    let bytes = with(">u2", "True", "(2, 2)", &[0, 1, 0, 3, 0, 2, 0, 4]);
    assert_eq!(read(&bytes).unwrap().data, [1, 0, 2, 0, 3, 0, 4, 0]);
    assert_eq!(read(&with("<f8", "True", "(0, 7)", &[])).unwrap().dims, [0, 7]);
}

#[test]
fn strings_become_bytes_tensors_and_back() {
    let wire = b"\x03\0\0\0abc\0\0\0\0\x02\0\0\0\xc3\xa9";
    let bytes = with("|S3", "False", "(3,)", b"abc\0\0\0\xc3\xa9\0");
    let array = read(&bytes).unwrap();
    assert_eq!((array.dtype, &array.data[..]), (DType::Bytes, &wire[..]));
    let unicode: Vec<u8> = ["abc", "", "é"]
        .iter()
        .flat_map(|s| (0..3).map(|i| s.chars().nth(i).map_or(0, u32::from)))
        .flat_map(u32::to_le_bytes)
        .collect();
    assert_eq!(read(&with("<U3", "False", "(3,)", &unicode)).unwrap().data, wire);
    let back = read(&written(DType::Bytes, &[3], wire)).unwrap();
    assert_eq!((back.dtype, &back.data[..]), (DType::Bytes, &wire[..]));
    let mut out = Vec::new();
    let refused = npy::write(&mut out, DType::Bytes, &[1], b"\x02\0\0\0a\0");
    assert!(matches!(refused, Err(NpyError::Unsupported(_))));
    let refused = npy::write(&mut out, DType::Bytes, &[2], b"\x01\0\0\0a");
    assert!(matches!(refused, Err(NpyError::BadTensor(_))));
    let refused = npy::write(&mut out, DType::Bytes, &[1], b"\xff\xff\xff\xffa");
    assert!(matches!(refused, Err(NpyError::BadTensor(_))));
    assert!(out.is_empty());
}

#[test]
fn broken_files_are_refused() {
    assert!(matches!(read(b""), Err(NpyError::NotNpy)));
    assert!(matches!(read(b"PK\x03\x04 an npz file"), Err(NpyError::NotNpy)));
    let good = with("<f4", "False", "(2,)", &[0; 8]);
    for cut in 8..good.len() {
        assert!(matches!(read(&good[..cut]), Err(NpyError::Truncated)), "cut at {cut}");
    }
    assert!(matches!(read(&[&good[..], b"x"].concat()), Err(NpyError::TrailingBytes)));
    assert!(matches!(read(&with("<f4", "False", "(4294967295, 4294967295)", &[])), Err(NpyError::TooLarge { .. })));
    assert!(matches!(read(&with("<f4", "False", "(4294967296,)", &[])), Err(NpyError::BadHeader(_))));
    assert!(matches!(read(&with("<f4", "False", "(1,1,1,1,1,1,1,1,1)", &[0; 4])), Err(NpyError::Unsupported(_))));
    assert!(matches!(read(&with("<f4", "Maybe", "(1,)", &[0; 4])), Err(NpyError::BadHeader(_))));
    assert!(matches!(read(&with("<f4", "False", "(-1,)", &[])), Err(NpyError::BadHeader(_))));
}

#[test]
fn no_file_panics_and_what_is_read_can_be_written() {
    check!().with_type::<(u8, Vec<u8>)>().for_each(|(how, bytes)| {
        let input = match how % 3 {
            0 => bytes.clone(),
            1 => file(how % 5, &String::from_utf8_lossy(bytes), &[]),
            _ => {
                let descr = ["|u1", ">f8", "<U2", "|S3", "|b1", "<f2", "<V2"][usize::from(*how / 3) % 7];
                let dim = |i: usize| bytes.get(i).map_or(1, |b| b % 4);
                let fortran = if how % 2 == 0 { "True" } else { "False" };
                with(descr, fortran, &format!("({}, {})", dim(0), dim(1)), bytes)
            }
        };
        if let Ok(array) = read(&input) {
            let mut out = Vec::new();
            match npy::write(&mut out, array.dtype, &array.dims, &array.data) {
                Ok(()) if array.dtype != DType::Bf16 => assert_eq!(read(&out).unwrap(), array),
                Ok(()) => {}
                Err(e) => panic!("{e}"),
            }
        }
    });
}
