//! splitrpc itself: the project's client against the project's server, over a commodity card's sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use host_agent::config::{self, Config, Listen, Models};
use host_agent::serve::{Server, build, run};
use splitrpc_client as splitrpc;
use splitrpc_client::{ConnectOptions, Data, Event, Input, Request, Response, Tensor};
use splitrpc_wire::{Path, TensorDesc};

use super::{ClientOptions, ServerOptions, Transport};
use crate::load::connection::{Connection, Fault, Step};
use crate::wait::Wait;
use crate::workloads::{Exchange, MAX_TENSORS, Workload, torch};

/// Runs the server, with its null model, until the process ends.
pub(crate) fn serve(
    transport: Transport,
    options: &ServerOptions,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    // The data thread is pinned by the server itself, which wants to see what cores there are.
    let repository = options.workload.repository()?;
    let folder = repository.as_ref().map(|folder| folder.path().to_owned());
    let built = build(config(transport, options, folder))?;
    // All that it says is loaded, and nobody ends this process in a way that would let it be removed later.
    drop(repository);
    let server = Server::start(built)?;
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

/// How a host agent is to be that serves an arm with a commodity card.
pub(crate) fn config(transport: Transport, options: &ServerOptions, repository: Option<PathBuf>) -> Config {
    let (tcp, udp) = match transport {
        Transport::Udp => (None, Some(options.bind)),
        Transport::Tcp | Transport::None => (Some(options.bind), None),
    };
    let data = config::Data {
        wait: match options.wait {
            Wait::Spin => config::Wait::Spin,
            Wait::Adaptive => config::Wait::Adaptive,
            Wait::Block => config::Wait::Block,
        },
        cores: options.core.and_then(|core| u16::try_from(core).ok()).into_iter().collect(),
        max_datagram: options.datagram,
        drop_permille: (options.drop * 1_000.0).round() as u16,
        ..config::Data::default()
    };
    let builtins = match options.workload {
        Workload::Null => vec![config::Builtin::Null],
        Workload::NullGpu => vec![config::Builtin::NullGpu],
        _ => Vec::new(),
    };
    let models = Models { repository, builtins, response_bytes: options.response_bytes };
    let gpu = config::Gpu { torch: torch(), ..config::Gpu::default() };
    Config { listen: Listen { tcp, udp, http: None }, data, models, gpu, ..Config::default() }
}

/// A client's session.
pub(crate) struct Client {
    session: splitrpc::Connection,
    model: u16,
    exchange: Arc<Exchange>,
    inputs: Vec<(TensorDesc, Bytes)>,
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
        let exchange = Arc::clone(&options.exchange);
        let catalogue = Arc::clone(session.catalogue());
        let model = catalogue.model(exchange.model)?;
        let bytes: Vec<Bytes> = exchange.input_ranges().map(|range| exchange.request.slice(range)).collect();
        let inputs = exchange.inputs.iter().zip(&bytes);
        let inputs: Vec<Input<'_>> =
            inputs.map(|(tensor, bytes)| Input::new(&tensor.name, tensor.dtype, &tensor.dims, bytes)).collect();
        let shared = |tensor: &Tensor<'_>| match tensor.data {
            Data::Shared(bytes) => (tensor.desc, bytes.clone()),
            Data::Borrowed(bytes) => (tensor.desc, Bytes::copy_from_slice(bytes)),
        };
        let inputs = model.bind(&inputs)?.iter().map(shared).collect();
        Ok(Client { model: model.handle, inputs, exchange, deadline, outcome: None, session })
    }
}

impl Client {
    fn is_right(&self, response: &Response) -> bool {
        let outputs = &self.exchange.outputs;
        let as_described = |(handle, output): (usize, splitrpc::Output<'_>)| {
            let tensor = &outputs[handle];
            usize::from(output.desc.handle) == handle
                && output.desc.dtype == tensor.dtype
                && output.desc.shape.dims() == tensor.dims
        };
        response.outputs().count() == outputs.len()
            && response.outputs().enumerate().all(as_described)
            && self.exchange.is_right(response.data())
    }
}

impl Connection for Client {
    fn begin(&mut self) -> io::Result<()> {
        if let Some(Ok(response)) = self.outcome.take() {
            self.session.recycle(response);
        }
        let nothing = Tensor { desc: self.inputs[0].0, data: Data::Borrowed(&[]) };
        let mut tensors = [nothing; MAX_TENSORS];
        for (tensor, (desc, bytes)) in tensors.iter_mut().zip(&self.inputs) {
            *tensor = Tensor { desc: *desc, data: Data::Shared(bytes) };
        }
        let tensors = &tensors[..self.inputs.len()];
        let request = Request { deadline: self.deadline, ..Request::new(self.model, tensors) };
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
            Some(Ok(response)) if self.is_right(response) => Ok(()),
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
