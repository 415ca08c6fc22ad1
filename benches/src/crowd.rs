//! Many clients that are connected and ask nothing: what each costs the server, and whether it still answers.

use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use splitrpc_client::{Client, ClientOptions, Input};
use splitrpc_wire::DType;

use crate::arms::{self, Arm, BesideCard, RESPONSE_BYTES, ServerOptions};
use crate::process::Server;
use crate::wait::Wait;
use crate::workloads::Workload;

/// Clients for which the project promises something.
pub(crate) const CLIENTS: usize = 10_000;
/// Clients of a short comparison.
pub(crate) const FEW_CLIENTS: usize = 2_000;
/// What so many clients cost says little of what more would: the pages that they fill are counted whole.
const LEAST_CLIENTS: usize = 500;
/// Bytes that one of them may cost.
pub(crate) const TARGET_BYTES: f64 = 8192.0;
/// Descriptors that this program, or the server, needs besides.
const OTHER_FILES: usize = 128;
/// Payload of a large request, so that the server has touched what serving takes.
const LARGE: u32 = 602_112;

/// What was found.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Crowd {
    /// Clients that were connected at once.
    pub(crate) clients: usize,
    /// Bytes by which the server's resident memory grew for each.
    pub(crate) bytes_each: f64,
    /// Requests answered right while all of them were connected.
    pub(crate) answered: usize,
}

/// Connects so many clients to a commodity-tcp server of its own, each of which asks once, and then asks on behalf of a few
/// of them and of a new one.
///
/// # Errors
/// Where the system allows too few descriptors, or the server does not answer.
pub(crate) fn measure(clients: usize, core: Option<usize>) -> anyhow::Result<Crowd> {
    raise_limit(clients + OTHER_FILES)?;
    let options = ServerOptions {
        bind: ([127, 0, 0, 1], 0).into(),
        wait: Wait::Adaptive,
        datagram: arms::DATAGRAM,
        drop: 0.0,
        response_bytes: RESPONSE_BYTES,
        workload: Workload::Null,
        core,
        shared_core: core.is_none(),
        beside_card: BesideCard::default(),
    };
    let server = Server::start(Arm::CommodityTcp, &options)?;
    let address = server.address.to_string();
    let expected = arms::null_response(RESPONSE_BYTES);
    let payloads = [64, LARGE].map(arms::request_payload);
    let ask = |client: &mut Client, payload: &[u8]| -> anyhow::Result<()> {
        let dims = [payload.len() as u32];
        let response = client.infer("null", &[Input::new("INPUT", DType::Uint8, &dims, payload)])?;
        ensure!(response.data() == expected, "wrong bytes in the response");
        Ok(())
    };
    let connect = || Client::connect(&address, ClientOptions::default());
    let mut first = connect()?;
    for payload in payloads.iter().cycle().take(8) {
        ask(&mut first, payload)?;
    }
    let before = server.resident_bytes()?;
    let mut crowd = Vec::with_capacity(clients);
    for number in 0..clients {
        let mut client = connect().with_context(|| format!("client {number} of {clients}"))?;
        ask(&mut client, &payloads[0]).with_context(|| format!("client {number} of {clients}"))?;
        crowd.push(client);
    }
    // What is still under way comes to rest.
    std::thread::sleep(Duration::from_millis(200));
    let bytes_each = server.resident_bytes()?.saturating_sub(before) as f64 / clients.max(1) as f64;
    let mut answered = 0;
    for client in crowd.iter_mut().step_by(1 + clients / 100).chain([&mut first, &mut connect()?]) {
        for payload in &payloads {
            ask(client, payload).context("with all clients connected")?;
            answered += 1;
        }
    }
    Ok(Crowd { clients, bytes_each, answered })
}

/// `wanted` clients, or as many as the limit of open files allows.
pub(crate) fn within_limit(wanted: usize) -> usize {
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let most = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES);
    wanted.min(most.max(LEAST_CLIENTS))
}

/// What connecting so many takes, about, on two cores.
pub(crate) fn time(clients: usize) -> Duration {
    Duration::from_millis(500) + Duration::from_micros(550) * clients as u32
}

/// Raises this process's limit of open files as far as it may. The server raises its own.
fn raise_limit(files: usize) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    ensure!(files as u64 <= most, "{files} open files are needed, and this process may have {most}: see `ulimit -Hn`");
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

impl std::fmt::Display for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Crowd { clients, bytes_each, answered } = self;
        write!(
            f,
            "{clients} idle clients, {bytes_each:.0} bytes each in the server; {answered} requests beside them answered"
        )
    }
}
