//! splitrpc itself: the project's client against the project's server, over a commodity card's sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use host_agent::config::{self, Config, Data, Listen, Models};
use host_agent::serve::{Server, build, run};
use splitrpc_client as splitrpc;
use splitrpc_client::{ConnectOptions, Event, Request, Response, Tensor};
use splitrpc_wire::{DType, Path};

use super::{ClientOptions, ServerOptions, Transport, Workload};
use crate::load::connection::{Connection, Fault, Step};
use crate::wait::Wait;

/// The handle of its only input.
const INPUT: u16 = 0;

/// Runs the server, with its null model, until the process ends.
pub(crate) fn serve(
    transport: Transport,
    options: &ServerOptions,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    // The data thread is pinned by the server itself, which wants to see what cores there are.
    let server = Server::start(build(config(transport, options))?)?;
    let address = match transport {
        Transport::Udp => server.udp(),
        Transport::Tcp | Transport::None => server.tcp(),
    };
    ready(address.context("the server does not listen")?);
    run(server, |look| {
        std::thread::sleep(look);
        false
    });
    anyhow::bail!("the server has ended by itself")
}

fn config(transport: Transport, options: &ServerOptions) -> Config {
    let (tcp, udp) = match transport {
        Transport::Udp => (None, Some(options.bind)),
        Transport::Tcp | Transport::None => (Some(options.bind), None),
    };
    let data = Data {
        wait: match options.wait {
            Wait::Spin => config::Wait::Spin,
            Wait::Adaptive => config::Wait::Adaptive,
            Wait::Block => config::Wait::Block,
        },
        cores: options.core.and_then(|core| u16::try_from(core).ok()).into_iter().collect(),
        max_datagram: options.datagram,
        drop_permille: (options.drop * 1_000.0).round() as u16,
        ..Data::default()
    };
    let builtin = match options.workload {
        Workload::Null => config::Builtin::Null,
        Workload::NullGpu => config::Builtin::NullGpu,
    };
    let models = Models { builtins: vec![builtin], response_bytes: options.response_bytes, ..Models::default() };
    Config { listen: Listen { tcp, udp, http: None }, data, models, ..Config::default() }
}

/// A client's session.
pub(crate) struct Client {
    session: splitrpc::Connection,
    model: u16,
    dims: [u32; 1],
    request: Bytes,
    expected: Bytes,
    deadline: Option<Duration>,
    outcome: Option<Result<Response, Fault>>,
}

impl Client {
    /// Connects, and waits until the session is ready.
    pub(crate) fn connect(transport: Transport, options: &ClientOptions) -> anyhow::Result<Client> {
        let (transport, deadline) = match transport {
            Transport::Tcp | Transport::None => (splitrpc::Transport::Tcp, None),
            // Datagrams may be lost; a request that cannot be brought to its end is to say so before anybody loses
            // patience with it.
            Transport::Udp => (splitrpc::Transport::Udp, Some(options.timeout / 2)),
        };
        let connect = ConnectOptions { datagram: options.datagram, ..ConnectOptions::default() };
        let session = splitrpc::Connection::connect(&options.server.to_string(), transport, &connect)?;
        Ok(Client {
            model: session.catalogue().model(options.workload.name())?.handle,
            dims: [options.request.len() as u32],
            request: options.request.clone(),
            expected: options.expected.clone(),
            deadline,
            outcome: None,
            session,
        })
    }
}

impl Connection for Client {
    fn begin(&mut self) -> io::Result<()> {
        if let Some(Ok(response)) = self.outcome.take() {
            self.session.recycle(response);
        }
        let tensor = Tensor::new(INPUT, DType::Uint8, &self.dims, &self.request).map_err(invalid)?;
        let tensors = [tensor];
        let request = Request { deadline: self.deadline, ..Request::new(self.model, &tensors) };
        self.session.submit(&request).map_err(io::Error::other)?;
        Ok(())
    }

    fn advance(&mut self) -> io::Result<Step> {
        let outcome = loop {
            match self.session.poll().map_err(io::Error::other)? {
                Some(Event::Response(response)) => break Ok(response),
                Some(Event::Failed(failure)) => break Err(Fault::Refused(failure.to_string())),
                Some(_) => {}
                None => return Ok(Step::Idle),
            }
        };
        self.outcome = Some(outcome);
        Ok(Step::Done)
    }

    fn check(&self) -> Result<(), Fault> {
        match &self.outcome {
            Some(Ok(response)) if response.data() == &self.expected[..] => Ok(()),
            Some(Err(fault)) => Err(fault.clone()),
            _ => Err(Fault::WrongBytes),
        }
    }

    fn path(&self) -> Option<Path> {
        self.outcome.as_ref()?.as_ref().ok()?.path().copied()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.session.as_fd()
    }

    fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    fn uses_alarm(&self) -> bool {
        true
    }

    fn alarm(&self) -> Option<Instant> {
        self.session.next_timeout()
    }
}

fn invalid(error: splitrpc_wire::WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
}
