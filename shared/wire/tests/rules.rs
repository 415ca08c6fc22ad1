//! Every rule that a parser enforces, broken by one example each.

use splitrpc_wire::ack::{Ack, AckRange};
use splitrpc_wire::catalog::{Catalog, TensorInfo, write_model};
use splitrpc_wire::hello::{Abilities, Challenge, Hello, HelloAck};
use splitrpc_wire::manifest::MANIFEST_HEAD_LEN;
use splitrpc_wire::{
    DType, Flags, HEADER_LEN, Header, Kind, MANIFEST_TENSOR, MAX_RANK, MAX_STATUS_TEXT, Manifest, ManifestWriter, Path,
    Shape, Status, StatusPayload, TOTAL_UNKNOWN, TensorDesc, WireError,
};

/// `base` with some bytes changed.
fn with<const N: usize>(base: &[u8], changes: [(usize, u8); N]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for (at, value) in changes {
        bytes[at] = value;
    }
    bytes
}

#[track_caller]
fn refused<T: std::fmt::Debug>(got: Result<T, WireError>, rule: WireError) {
    assert_eq!(got.map(|_| ()), Err(rule));
}

#[test]
fn headers() {
    let good = Header::new(Kind::Ping).to_bytes();
    refused(Header::parse(&good[..HEADER_LEN - 1]), WireError::Truncated);
    refused(Header::parse(&with(&good, [(0, 0)])), WireError::BadMagic);
    refused(Header::parse(&with(&good, [(1, b's')])), WireError::BadMagic);
    refused(Header::parse(&with(&good, [(2, 9)])), WireError::BadVersion);
    for kind in [0, 15, 255] {
        refused(Header::parse(&with(&good, [(3, kind)])), WireError::BadKind);
    }
    refused(Header::parse(&with(&good, [(4, 0x80)])), WireError::Reserved);
    for at in 48..64 {
        refused(Header::parse(&with(&good, [(at, 1)])), WireError::Reserved);
        assert!(Header::parse(&with(&good, [(4, Flags::TAGGED.bits()), (at, 1)])).is_ok());
    }
}

#[test]
fn extents() {
    let request = Header { length: 10, total: 100, ..Header::new(Kind::Request) };
    let parse = |header: Header| Header::parse(&header.to_bytes());
    for kind in [Kind::Request, Kind::Response] {
        let request = Header { kind, ..request };
        assert!(parse(Header { offset: 90, ..request }).is_ok());
        refused(parse(Header { offset: 91, ..request }), WireError::BadExtent);
        refused(parse(Header { offset: u32::MAX, total: TOTAL_UNKNOWN, ..request }), WireError::BadExtent);
        assert!(parse(Header { offset: 1 << 30, total: TOTAL_UNKNOWN, ..request }).is_ok());
        let manifest = Header { flags: Flags::MANIFEST, ..request };
        refused(parse(Header { offset: 1, ..manifest }), WireError::BadExtent);
        refused(parse(Header { tensor: 1, ..manifest }), WireError::BadExtent);
        assert!(parse(Header { tensor: MANIFEST_TENSOR, ..manifest }).is_ok());
        refused(parse(Header { tensor: MANIFEST_TENSOR, ..request }), WireError::BadExtent);
    }
    assert!(parse(Header { offset: u32::MAX, ..Header { kind: Kind::List, ..request } }).is_ok());
}

#[test]
fn session_set_up() {
    let hello = Hello {
        version_min: 1,
        version_max: 2,
        abilities: Abilities(u32::MAX),
        datagram: 1232,
        max_response: 0,
        nonce: 0,
        token: 0,
        key_id: 0,
        window: 0,
    };
    assert_eq!(Hello::parse(&hello.to_bytes()), Ok(hello));
    refused(Hello::parse(&hello.to_bytes()[..Hello::LEN - 1]), WireError::Truncated);
    refused(Hello::parse(&Hello { version_min: 3, ..hello }.to_bytes()), WireError::BadExtent);
    for datagram in [0, 1231, 65_001] {
        refused(Hello::parse(&Hello { datagram, ..hello }.to_bytes()), WireError::BadExtent);
    }
    let challenge = Challenge { token: 1, nonce: 2 }.to_bytes();
    refused(Challenge::parse(&challenge[..Challenge::LEN - 1]), WireError::Truncated);
    refused(Challenge::parse(&with(&challenge, [(0, 0)])), WireError::BadExtent);
    let ack = HelloAck {
        version: 0,
        max_requests: 1,
        abilities: Abilities(0),
        datagram: 65_000,
        max_request: 0,
        catalog_len: 0,
        idle_timeout_ms: 0,
        keep_reply_ms: 0,
        nonce: 0,
        epoch: 0,
        window: 0,
    };
    assert_eq!(HelloAck::parse(&ack.to_bytes()), Ok(ack));
    refused(HelloAck::parse(&ack.to_bytes()[..HelloAck::LEN - 1]), WireError::Truncated);
    refused(HelloAck::parse(&HelloAck { max_requests: 0, ..ack }.to_bytes()), WireError::BadExtent);
    refused(HelloAck::parse(&HelloAck { datagram: 1000, ..ack }.to_bytes()), WireError::BadExtent);
}

fn manifest(dtype: DType, dims: &[u32]) -> Vec<u8> {
    let mut writer = ManifestWriter::new();
    let tensor = TensorDesc::fixed(0, dtype, Shape::new(dims).unwrap()).unwrap();
    writer.push(&tensor).unwrap();
    writer.push(&TensorDesc { handle: 1, ..tensor }).unwrap();
    writer.finish().to_vec()
}

#[test]
fn manifests() {
    const ENTRY: usize = MANIFEST_HEAD_LEN;
    let good = manifest(DType::Uint8, &[5]);
    assert_eq!(good.len(), ENTRY + 2 * 12);
    refused(Manifest::parse(&good[..7]), WireError::Truncated);
    refused(Manifest::parse(&good[..good.len() - 1]), WireError::Truncated);
    for length in [0u16, 7, 1025, u16::MAX] {
        let [low, high] = length.to_le_bytes();
        refused(Manifest::parse(&with(&good, [(0, low), (1, high)])), WireError::BadManifest);
    }
    refused(Manifest::parse(&with(&good, [(3, 2)])), WireError::Reserved);
    refused(Manifest::parse(&with(&good, [(4, 1)])), WireError::Reserved);
    // Tensors that are counted but not there, there but not counted, or more than may be.
    for tensors in [0, 1, 3, 33, 255] {
        refused(Manifest::parse(&with(&good, [(2, tensors)])), WireError::BadManifest);
    }
    // A path that is announced but does not fit.
    refused(Manifest::parse(&with(&good, [(3, 1)])), WireError::BadManifest);
    for dtype in [0, 15, 255] {
        refused(Manifest::parse(&with(&good, [(ENTRY + 2, dtype)])), WireError::BadType);
    }
    refused(Manifest::parse(&with(&good, [(ENTRY + 3, 9)])), WireError::BadRank);
    refused(Manifest::parse(&with(&good, [(ENTRY + 3, 8)])), WireError::BadManifest);
    refused(Manifest::parse(&with(&good, [(ENTRY + 4, 6)])), WireError::BadSize);
    // Handles must ascend.
    refused(Manifest::parse(&with(&good, [(ENTRY + 12, 0)])), WireError::BadManifest);
    refused(Manifest::parse(&with(&good, [(ENTRY, 2)])), WireError::BadManifest);
    // Each tensor fits, both together exceed 32 bits.
    let half = manifest(DType::Uint8, &[0x7fff_ffff]);
    let bytes = with(&half, [(ENTRY + 4, 0), (ENTRY + 7, 0x80), (ENTRY + 8, 0), (ENTRY + 11, 0x80)]);
    let bytes = with(&bytes, [(ENTRY + 16, 0), (ENTRY + 19, 0x80), (ENTRY + 20, 0), (ENTRY + 23, 0x80)]);
    let zeros = [5, 6, 9, 10, 17, 18, 21, 22].map(|at| (ENTRY + at, 0));
    refused(Manifest::parse(&with(&bytes, zeros)), WireError::BadSize);
}

#[test]
fn sizes_of_tensors() {
    refused(Shape::new(&[1; MAX_RANK + 1]), WireError::BadRank);
    let large = Shape::new(&[u32::MAX, 2]).unwrap();
    refused(TensorDesc::fixed(0, DType::Uint8, large), WireError::BadSize);
    refused(TensorDesc::fixed(0, DType::Bytes, Shape::new(&[1]).unwrap()), WireError::BadSize);
    // Each BYTES element has at least its length.
    let text = |bytes| TensorDesc { handle: 0, dtype: DType::Bytes, shape: Shape::new(&[3]).unwrap(), bytes };
    refused(ManifestWriter::new().push(&text(11)), WireError::BadSize);
    assert_eq!(ManifestWriter::new().push(&text(12)), Ok(()));
}

#[test]
fn a_manifest_has_room_for_every_tensor_or_says_so() {
    let mut writer = ManifestWriter::with_path();
    let tensor =
        |handle, rank: usize| TensorDesc::fixed(handle, DType::Uint8, Shape::new(&[1; 8][..rank]).unwrap()).unwrap();
    for handle in 0..32 {
        assert_eq!(writer.push(&tensor(handle, 3)), Ok(()));
    }
    refused(writer.push(&tensor(32, 0)), WireError::BadManifest);
    let mut writer = ManifestWriter::new();
    let fitting = (0..32).take_while(|&handle| writer.push(&tensor(handle, 8)).is_ok()).count();
    assert_eq!(fitting, (1024 - 8) / 40);
}

#[test]
fn what_was_written_needs_no_parsing() {
    for mut writer in [ManifestWriter::new(), ManifestWriter::with_path()] {
        for dims in [&[][..], &[2, 3], &[1; MAX_RANK]] {
            let tensor = TensorDesc::fixed(writer.manifest().len() as u16, DType::Fp32, Shape::new(dims).unwrap());
            writer.push(&tensor.unwrap()).unwrap();
            let bytes = writer.finish().to_vec();
            let parsed = Manifest::parse(&bytes).unwrap();
            let written = writer.manifest();
            assert_eq!((written.as_bytes(), written.data_len()), (parsed.as_bytes(), parsed.data_len()));
            assert!(!written.is_empty() && written.tensors().eq(parsed.tensors()));
        }
    }
}

#[test]
fn paths() {
    let good = Path::default().to_bytes();
    assert_eq!(Path::parse(&good), Ok(Path::default()));
    refused(Path::parse(&good[..55]), WireError::Truncated);
    for at in 0..4 {
        refused(Path::parse(&with(&good, [(at, 99)])), WireError::BadManifest);
    }
    refused(Path::parse(&with(&good, [(4, 2)])), WireError::Reserved);
}

#[test]
fn acknowledgements() {
    let parse = |ranges: &[(u32, u32)]| {
        let ranges: Vec<AckRange> = ranges.iter().map(|r| AckRange::new(r.0, r.1)).collect();
        let mut bytes = [0; 512];
        let length = Ack { window: 0, delay_us: 0, ranges: &ranges }.write(&mut bytes);
        Ack::parse(&bytes[..length]).map(|_| ())
    };
    assert_eq!(parse(&[(8, 9), (5, 6), (1, 1)]), Ok(()));
    refused(parse(&[(9, 8)]), WireError::BadAck);
    refused(parse(&[(5, 6), (8, 9)]), WireError::BadAck);
    refused(parse(&[(5, 9), (4, 6)]), WireError::BadAck);
    // Ranges that touch are one range.
    refused(parse(&[(5, 9), (1, 4)]), WireError::BadAck);
    refused(parse(&[(5, 5), (5, 5)]), WireError::BadAck);
    assert_eq!(parse(&[(0, 0x7fff_ffff)]), Ok(()));
    refused(parse(&[(0, 0x8000_0000)]), WireError::BadAck);
    let head = [0; 16];
    assert!(Ack::parse(&head).is_ok());
    refused(Ack::parse(&head[..15]), WireError::Truncated);
    refused(Ack::parse(&with(&head, [(12, 1)])), WireError::Truncated);
    refused(Ack::parse(&with(&head, [(14, 1)])), WireError::Reserved);
    refused(Ack::parse(&with(&[0; 16 + 33 * 8], [(12, 33)])), WireError::BadAck);
}

#[test]
fn statuses() {
    let mut good = [0; 16];
    let length = StatusPayload { status: Status::Busy, retry_after_us: 9, text: "busy" }.write(&mut good);
    assert_eq!(length, 12);
    refused(StatusPayload::parse(&good[..7]), WireError::Truncated);
    refused(StatusPayload::parse(&good[..11]), WireError::Truncated);
    refused(StatusPayload::parse(&with(&good, [(0, 200)])), WireError::BadStatus);
    refused(StatusPayload::parse(&with(&good, [(8, 0xff)])), WireError::BadText);
    refused(StatusPayload::parse(&with(&[0; 300], [(2, MAX_STATUS_TEXT as u8 + 1)])), WireError::TooLong);
}

#[test]
fn a_status_text_is_cut_between_characters() {
    let mut out = [0; 11];
    let length = StatusPayload { status: Status::Ok, retry_after_us: 0, text: "abß" }.write(&mut out);
    assert_eq!(StatusPayload::parse(&out[..length]).unwrap().text, "ab");
    let text = "é".repeat(200);
    let mut out = [0; 500];
    let length = StatusPayload { status: Status::Ok, retry_after_us: 0, text: &text }.write(&mut out);
    assert_eq!(StatusPayload::parse(&out[..length]).unwrap().text.len(), MAX_STATUS_TEXT);
    assert_eq!(StatusPayload { status: Status::Ok, retry_after_us: 0, text: "" }.write(&mut out[..7]), 0);
}

fn record(bytes: &[u8]) -> Result<(), WireError> {
    Catalog::new(bytes).next().expect("not empty").map(|_| ())
}

#[test]
fn catalogues() {
    let tensor = TensorInfo::new("x", DType::Fp32, &[-1, 4]).unwrap();
    let mut out = [0; 64];
    // 12 bytes of head, the name, then for each tensor 4, its dimensions and its name.
    let length = write_model(&mut out, 0, "m", 1, 0, &[tensor], &[]).unwrap();
    let good = &out[..length];
    assert_eq!((length, record(good)), (12 + 1 + 4 + 8 + 1, Ok(())));
    refused(record(&good[..11]), WireError::Truncated);
    refused(record(&good[..length - 1]), WireError::Truncated);
    refused(record(&with(good, [(0, 5)])), WireError::BadManifest);
    refused(record(&with(good, [(0, 25)])), WireError::Truncated);
    refused(record(&with(good, [(8, 33)])), WireError::BadManifest);
    refused(record(&with(good, [(9, 33)])), WireError::BadManifest);
    refused(record(&with(good, [(8, 0)])), WireError::BadManifest);
    refused(record(&with(good, [(11, 1)])), WireError::Reserved);
    refused(record(&with(good, [(10, 129)])), WireError::BadText);
    refused(record(&with(good, [(12, 0xff)])), WireError::BadText);
    refused(record(&with(good, [(13, 15)])), WireError::BadType);
    refused(record(&with(good, [(14, 9)])), WireError::BadRank);
    refused(record(&with(good, [(16, 1)])), WireError::Reserved);
    refused(record(&with(good, [(17, 0xfe)])), WireError::BadSize);
    // After an error nothing more is read.
    let mut walk = Catalog::new(&good[..length - 1]);
    assert!(walk.next().is_some_and(|first| first.is_err()) && walk.next().is_none());
}

#[test]
fn catalogue_writing() {
    let long = "n".repeat(129);
    refused(TensorInfo::new(&long, DType::Bool, &[]), WireError::BadText);
    refused(TensorInfo::new("x", DType::Bool, &[0; 9]), WireError::BadRank);
    refused(TensorInfo::new("x", DType::Bool, &[-2]), WireError::BadSize);
    let tensor = TensorInfo::new("x", DType::Bool, &[]).unwrap();
    let mut out = [0; 64];
    refused(write_model(&mut out, 0, &long, 1, 0, &[], &[]), WireError::BadText);
    refused(write_model(&mut out, 0, "m", 1, 0, &[tensor; 33], &[]), WireError::BadManifest);
    refused(write_model(&mut out[..17], 0, "m", 1, 0, &[tensor], &[]), WireError::TooLong);
    assert_eq!(write_model(&mut out[..18], 0, "m", 1, 0, &[tensor], &[]), Ok(18));
    refused(write_model(&mut out[..11], 0, "", 1, 0, &[], &[]), WireError::TooLong);
}

#[test]
fn codes_are_dense_and_named_apart() {
    for (index, error) in WireError::ALL.iter().enumerate() {
        assert_eq!(error.index(), index);
        assert!(WireError::ALL[..index].iter().all(|other| other.name() != error.name()));
    }
    for (index, &status) in Status::ALL.iter().enumerate() {
        assert_eq!((status as usize, Status::from_code(index as u16)), (index, Ok(status)));
    }
    refused(Status::from_code(Status::ALL.len() as u16), WireError::BadStatus);
    for (index, &dtype) in DType::ALL.iter().enumerate() {
        assert_eq!(DType::from_code(index as u8 + 1), Ok(dtype));
    }
}
