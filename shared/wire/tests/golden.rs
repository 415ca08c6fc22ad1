//! Every frame kind and structure as it stands on the wire, checked in as text under `golden/`: what is encoded must be
//! these bytes, and these bytes must decode to the value. `SPLITRPC_BLESS=1` writes the files anew.

use std::fmt::Write as _;
use std::path::PathBuf;

use splitrpc_wire::ack::{Ack, AckRange};
use splitrpc_wire::catalog::{Catalog, TensorInfo, write_model};
use splitrpc_wire::hello::{Abilities, Challenge, Hello, HelloAck};
use splitrpc_wire::path::{Link, Memory, Mover, Port};
use splitrpc_wire::{
    DType, Flags, HEADER_LEN, Header, Kind, MANIFEST_TENSOR, Manifest, ManifestWriter, Path, STAGES, Shape, Status,
    StatusPayload, TensorDesc,
};

const SESSION: u64 = 0x1122_3344_5566_7788;
const REQUEST: u64 = 0x0102_0304_0506_0708;

/// The header's fields by name and width, for the remarks in the files.
const FIELDS: [(&str, usize); 16] = [
    ("magic", 2),
    ("version", 1),
    ("kind", 1),
    ("flags", 1),
    ("priority", 1),
    ("model", 2),
    ("session", 8),
    ("request", 8),
    ("tensor", 2),
    ("credit", 2),
    ("packet", 4),
    ("length", 4),
    ("deadline_us", 4),
    ("offset", 4),
    ("total", 4),
    ("tag", 16),
];

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("hex")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

/// Checks that `bytes`, of which the first [`HEADER_LEN`] are a header if `framed`, are those of the file.
fn check_bytes(name: &str, bytes: &[u8], framed: bool) {
    if std::env::var_os("SPLITRPC_BLESS").is_some() {
        let mut text = String::new();
        let mut rest = bytes;
        for (field, width) in FIELDS.iter().filter(|_| framed) {
            let (value, after) = rest.split_at(*width);
            writeln!(text, "{:<47}  # {field}", hex(value)).unwrap();
            rest = after;
        }
        for row in rest.chunks(16) {
            writeln!(text, "{}", hex(row)).unwrap();
        }
        std::fs::write(file(name), text).unwrap();
    }
    let text = std::fs::read_to_string(file(name)).unwrap_or_else(|e| panic!("{}: {e}", file(name).display()));
    let golden: Vec<u8> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    assert_eq!(hex(bytes), hex(&golden), "{name}");
}

/// Checks a frame's bytes and that its header decodes.
fn check_frame(name: &str, header: Header, payload: &[u8]) {
    let header = Header { length: payload.len() as u32, ..header };
    let frame = [&header.to_bytes()[..], payload].concat();
    check_bytes(name, &frame, true);
    assert_eq!(Header::parse(&frame), Ok(header), "{name}");
    assert_eq!(frame.len() - HEADER_LEN, header.length as usize, "{name}");
}

fn desc(handle: u16, dtype: DType, dims: &[u32]) -> TensorDesc {
    TensorDesc::fixed(handle, dtype, Shape::new(dims).unwrap()).unwrap()
}

fn request_tensors() -> [TensorDesc; 2] {
    [desc(0, DType::Fp32, &[2, 3]), desc(1, DType::Int64, &[2])]
}

fn path() -> Path {
    Path {
        port: Port::Udp,
        mover: Mover::KernelToSlot,
        memory: Memory::Host,
        link: Link::InProcess,
        emulated: true,
        batch_rows: 8,
        payload_bytes: 40,
        copied_bytes: 80,
        fixup_bytes: 12,
        runtime_copied_bytes: 7,
        device_compactions: 3,
        stages_ns: std::array::from_fn::<u32, STAGES, _>(|i| 1_000 * (i as u32 + 1)),
    }
}

fn write(mut writer: ManifestWriter, tensors: &[TensorDesc]) -> Vec<u8> {
    for tensor in tensors {
        writer.push(tensor).unwrap();
    }
    writer.finish().to_vec()
}

fn response_manifest() -> Vec<u8> {
    let mut writer = ManifestWriter::with_path();
    writer.set_path(&path());
    write(writer, &[desc(0, DType::Fp32, &[2, 2])])
}

/// Data that shows where it came from.
fn data(len: u8) -> Vec<u8> {
    (0..len).map(|i| i ^ 0xa0).collect()
}

fn check_manifest(bytes: &[u8], tensors: &[TensorDesc], path: Option<&Path>) {
    let manifest = Manifest::parse(bytes).unwrap();
    assert_eq!(manifest.tensors().collect::<Vec<_>>(), tensors);
    assert_eq!(manifest.path(), path);
    assert_eq!(u64::from(manifest.data_len()), tensors.iter().map(|t| u64::from(t.bytes)).sum::<u64>());
}

#[test]
fn hello() {
    let hello = Hello {
        version_min: 0,
        version_max: 1,
        abilities: Abilities(Abilities::STREAMED_REPLIES | Abilities::TAGS),
        datagram: 8256,
        max_response: 0x0400_0000,
        nonce: 0x0f1e_2d3c_4b5a_6978,
        token: 0x1234_5678_9abc_def0,
        key_id: 5,
        window: 0x0010_0000,
    };
    check_frame("hello", Header::new(Kind::Hello), &hello.to_bytes());
    assert_eq!(Hello::parse(&hello.to_bytes()), Ok(hello));
}

#[test]
fn challenge() {
    let challenge = Challenge { token: 0x1234_5678_9abc_def0, nonce: 0x0f1e_2d3c_4b5a_6978 };
    check_frame("challenge", Header::new(Kind::Challenge), &challenge.to_bytes());
    assert_eq!(Challenge::parse(&challenge.to_bytes()), Ok(challenge));
}

#[test]
fn hello_ack() {
    let ack = HelloAck {
        version: 0,
        max_requests: 64,
        abilities: Abilities(Abilities::STREAMED_REPLIES),
        datagram: 1472,
        max_request: 0x0400_0001,
        catalog_len: 321,
        idle_timeout_ms: 60_000,
        keep_reply_ms: 1_000,
        nonce: 0x0f1e_2d3c_4b5a_6978,
        epoch: 0xfedc_ba98_7654_3210,
        window: 0x0020_0000,
    };
    check_frame("hello_ack", Header { session: SESSION, credit: 64, ..Header::new(Kind::HelloAck) }, &ack.to_bytes());
    assert_eq!(HelloAck::parse(&ack.to_bytes()), Ok(ack));
}

#[test]
fn list() {
    check_frame("list", Header { session: SESSION, offset: 1408, ..Header::new(Kind::List) }, &[]);
}

#[test]
fn list_ack() {
    let header = Header { session: SESSION, offset: 1408, total: 1416, ..Header::new(Kind::ListAck) };
    check_frame("list_ack", header, &data(8));
}

#[test]
fn request_whole() {
    let manifest = write(ManifestWriter::new(), &request_tensors());
    let payload = [&manifest[..], &data(40)].concat();
    let header = Header {
        flags: Flags::MANIFEST,
        priority: 1,
        model: 7,
        session: SESSION,
        request: REQUEST,
        packet: 0xfffe_fdfc,
        deadline_us: 250_000,
        total: payload.len() as u32,
        ..Header::new(Kind::Request)
    };
    check_frame("request_whole", header, &payload);
    check_manifest(&payload, &request_tensors(), None);
}

#[test]
fn request_parts() {
    let manifest = write(ManifestWriter::new(), &request_tensors());
    let total = manifest.len() as u32 + 40;
    let base = Header { model: 7, session: SESSION, request: 2, total, ..Header::new(Kind::Request) };
    let first = Header { flags: Flags::MANIFEST.with(Flags::REPEATABLE), packet: 1, ..base };
    check_frame("request_first", first, &[&manifest[..], &data(16)].concat());
    let alone = Header { flags: Flags::MANIFEST, tensor: MANIFEST_TENSOR, packet: 2, ..base };
    check_frame("request_manifest_alone", alone, &manifest);
    let part = Header { flags: Flags::ACK_NOW, tensor: 1, offset: 8, packet: 3, ..base };
    check_frame("request_part", part, &data(8));
}

#[test]
fn response_whole() {
    let manifest = response_manifest();
    let payload = [&manifest[..], &data(16)].concat();
    let header = Header {
        flags: Flags::MANIFEST,
        priority: 1,
        model: 7,
        session: SESSION,
        request: REQUEST,
        credit: 63,
        packet: 9,
        total: payload.len() as u32,
        ..Header::new(Kind::Response)
    };
    check_frame("response_whole", header, &payload);
    check_manifest(&payload, &[desc(0, DType::Fp32, &[2, 2])], Some(&path()));
}

#[test]
fn response_part() {
    let header = Header {
        session: SESSION,
        request: REQUEST,
        credit: 63,
        packet: 10,
        offset: 8,
        total: response_manifest().len() as u32 + 16,
        ..Header::new(Kind::Response)
    };
    check_frame("response_part", header, &data(8));
}

/// Reserved for later: parts of a streamed reply, and a total that is known only at the end.
#[test]
fn response_streamed() {
    let base = Header { session: SESSION, request: REQUEST, total: u32::MAX, ..Header::new(Kind::Response) };
    let more = Header { flags: Flags::MORE, deadline_us: 3, packet: 11, ..base };
    check_frame("response_streamed", more, &data(4));
    let last = Header { flags: Flags::LAST, deadline_us: 4, packet: 12, offset: 4, total: 100, ..base };
    check_frame("response_last", last, &data(4));
}

/// Reserved for later: a frame with a tag and sealed payload.
#[test]
fn request_sealed() {
    let header = Header {
        flags: Flags::TAGGED.with(Flags::SEALED),
        session: SESSION,
        request: REQUEST,
        packet: 13,
        total: 100,
        tag: std::array::from_fn(|i| 0xf0 + i as u8),
        ..Header::new(Kind::Request)
    };
    check_frame("request_sealed", header, &data(4));
}

fn check_ack(name: &str, kind: Kind, ack: &Ack<'_>) {
    let mut payload = [0; 512];
    let length = ack.write(&mut payload);
    check_frame(name, Header { session: SESSION, credit: 60, ..Header::new(kind) }, &payload[..length]);
    assert_eq!(Ack::parse(&payload[..length]), Ok(*ack));
}

#[test]
fn ack() {
    // Packet numbers wrap inside the second range.
    let ranges = [AckRange::new(7, 9), AckRange::new(0xffff_fffe, 2)];
    check_ack("ack", Kind::Ack, &Ack { window: 0x0030_0000, delay_us: 250, ranges: &ranges });
}

#[test]
fn credit() {
    check_ack("credit", Kind::Credit, &Ack { window: 0x0040_0000, delay_us: 0, ranges: &[] });
}

#[test]
fn cancel() {
    let header = Header { session: SESSION, request: REQUEST, packet: 14, ..Header::new(Kind::Cancel) };
    check_frame("cancel", header, &[]);
}

#[test]
fn error() {
    let payload =
        StatusPayload { status: Status::Busy, retry_after_us: 1_000, text: "all slots are taken – später" };
    let mut bytes = [0; 256];
    let length = payload.write(&mut bytes);
    check_frame("error", Header { session: SESSION, request: REQUEST, ..Header::new(Kind::Error) }, &bytes[..length]);
    assert_eq!(StatusPayload::parse(&bytes[..length]), Ok(payload));
}

#[test]
fn frames_without_payload() {
    for (name, kind, request) in
        [("ping", Kind::Ping, REQUEST), ("pong", Kind::Pong, REQUEST), ("goodbye", Kind::Goodbye, 0)]
    {
        check_frame(name, Header { session: SESSION, request, ..Header::new(kind) }, &[]);
    }
}

#[test]
fn manifest_of_bytes_tensors() {
    let strings = TensorDesc { handle: 3, dtype: DType::Bytes, shape: Shape::new(&[2, 1]).unwrap(), bytes: 13 };
    let tensors = [desc(0, DType::Bool, &[]), strings, desc(9, DType::Bf16, &[1, 0, 5])];
    let bytes = write(ManifestWriter::new(), &tensors);
    check_bytes("manifest_bytes", &bytes, false);
    check_manifest(&bytes, &tensors, None);
}

#[test]
fn manifest_with_path() {
    check_bytes("manifest_path", &response_manifest(), false);
    let empty = write(ManifestWriter::new(), &[]);
    check_bytes("manifest_empty", &empty, false);
    check_manifest(&empty, &[], None);
}

#[test]
fn catalogue() {
    let tensor = |name, dtype, dims: &[i32]| TensorInfo::new(name, dtype, dims).unwrap();
    let digits = ([tensor("pixels", DType::Fp32, &[-1, 8, 8])], [tensor("scores", DType::Fp32, &[-1, 10])]);
    let texts =
        ([tensor("größe", DType::Bytes, &[-1]), tensor("mask", DType::Bool, &[])], [tensor("", DType::Fp64, &[3])]);
    let mut bytes = [0; 512];
    let mut length = write_model(&mut bytes, 0, "digits", 1, 32, &digits.0, &digits.1).unwrap();
    length += write_model(&mut bytes[length..], 5, "texts", 12, 0, &texts.0, &texts.1).unwrap();
    check_bytes("catalogue", &bytes[..length], false);

    let models: Vec<_> = Catalog::new(&bytes[..length]).map(Result::unwrap).collect();
    let heads: Vec<_> = models.iter().map(|m| (m.handle, m.name, m.version, m.max_batch)).collect();
    assert_eq!(heads, [(0, "digits", 1, 32), (5, "texts", 12, 0)]);
    assert_eq!(models[0].inputs().collect::<Vec<_>>(), digits.0);
    assert_eq!(models[0].outputs().collect::<Vec<_>>(), digits.1);
    assert_eq!(models[1].inputs().collect::<Vec<_>>(), texts.0);
    assert_eq!(models[1].outputs().collect::<Vec<_>>(), texts.1);
}

#[test]
fn every_kind_has_a_file() {
    let kinds: Vec<u8> = std::fs::read_dir(file("x").parent().unwrap())
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
        .filter_map(|text| {
            let line = text.lines().find(|line| line.ends_with("# kind"))?;
            u8::from_str_radix(line.split_whitespace().next()?, 16).ok()
        })
        .collect();
    for kind in Kind::ALL {
        assert!(kinds.contains(&(kind as u8)), "{kind:?}");
    }
}
