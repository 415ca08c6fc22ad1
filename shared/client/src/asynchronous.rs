//! Calls as futures on tokio.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use splitrpc_wire::Status;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};

use crate::{
    CallOptions, Catalogue, ConnectOptions, Connection, Error, Event, Input, Request, RequestId, Response, Transport,
};

type Answer = Result<Response, Error>;

/// A connection whose calls are futures. Clones share it; when the last is dropped, it closes.
///
/// A call writes its request itself; one task per connection reads the answers and hands them out.
#[derive(Clone, Debug)]
pub struct AsyncClient {
    handle: Arc<Handle>,
}

/// Dropping it ends the task.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something for the task to look at: unsent bytes, a new deadline, the end.
    news: Notify,
    /// A request has ended, so that another may be submitted.
    room: Notify,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    waiting: HashMap<RequestId, oneshot::Sender<Answer>>,
    closing: bool,
}

impl AsyncClient {
    /// Connects to `address`, host or host:port. To be called within a tokio runtime with its I/O and time drivers on.
    ///
    /// # Errors
    /// As for [`Connection::connect`].
    pub async fn connect(address: &str, transport: Transport, options: ConnectOptions) -> Result<AsyncClient, Error> {
        let host = address.to_owned();
        let blocked = |e: tokio::task::JoinError| Error::Address { address: String::new(), reason: e.to_string() };
        // Resolving and connecting block, so they are done where that is allowed.
        let connect = move || Connection::connect(&host, transport, &options);
        let connection = tokio::task::spawn_blocking(connect).await.map_err(blocked)??;
        let unusable =
            |e: io::Error| Error::Unreachable { peer: connection.peer_addr(), kind: e.kind(), reason: e.to_string() };
        let readiness = readiness(&connection).map_err(unusable)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { connection, waiting: HashMap::new(), closing: false }),
            news: Notify::new(),
            room: Notify::new(),
        });
        tokio::spawn(drive(readiness, Arc::clone(&shared)));
        Ok(AsyncClient { handle: Arc::new(Handle { shared }) })
    }

    /// The models that the server serves.
    #[must_use]
    pub fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(self.handle.shared.lock().connection.catalogue())
    }

    /// Runs `model` on `inputs`. Dropping the future cancels the request.
    ///
    /// # Errors
    /// [`Error::NoSuchModel`] and [`Error::BadInput`] before anything is sent, [`Error::Failed`] with the server's
    /// reason, or the connection's error, after which a new client must be made.
    pub async fn infer(&self, model: &str, inputs: &[Input<'_>], options: &CallOptions) -> Answer {
        let catalogue = self.catalogue();
        let model = catalogue.model(model)?;
        let tensors = model.bind(inputs)?;
        let started = Instant::now();
        let retry_until = options.retry_busy_for.map(|d| started + d.min(options.deadline.unwrap_or(d)));
        let mut pause = Duration::from_millis(1);
        loop {
            let request = Request {
                model: model.handle,
                tensors: &tensors,
                deadline: options.deadline.map(|d| d.saturating_sub(started.elapsed())),
                priority: options.priority,
                repeatable: options.repeatable,
            };
            match self.run(&request).await {
                Err(Error::Failed(f))
                    if matches!(f.status, Status::Busy | Status::Quota)
                        && retry_until.is_some_and(|u| Instant::now() + f.retry_after.unwrap_or(pause) < u) =>
                {
                    tokio::time::sleep(f.retry_after.unwrap_or(pause)).await;
                    pause *= 2;
                }
                other => return other,
            }
        }
    }

    /// Runs a request that is bound to handles already; waits while too many are in flight. Dropping the future
    /// cancels the request.
    ///
    /// # Errors
    /// As for [`AsyncClient::infer`].
    pub async fn run(&self, request: &Request<'_>) -> Answer {
        let shared = &self.handle.shared;
        let (id, answer) = loop {
            let room = shared.room.notified();
            match shared.submit(request) {
                Err(Error::TooManyInFlight { .. } | Error::Backpressure { .. }) => room.await,
                other => break other?,
            }
        };
        let guard = CancelOnDrop { shared, id };
        let answer = answer.await;
        std::mem::forget(guard);
        answer.unwrap_or(Err(Error::NotReady))
    }

    /// Gives a response's memory back for later ones.
    pub fn recycle(&self, response: Response) {
        self.handle.shared.lock().connection.recycle(response);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock would be a fault of this crate's; the state is whole between any two calls.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn submit(&self, request: &Request<'_>) -> Result<(RequestId, oneshot::Receiver<Answer>), Error> {
        let mut state = self.lock();
        let id = state.connection.submit(request)?;
        let (tell, answer) = oneshot::channel();
        state.waiting.insert(id, tell);
        if state.connection.wants_write() || state.connection.next_timeout().is_some() {
            self.news.notify_one();
        }
        Ok((id, answer))
    }

    /// Takes in what has arrived and hands it out. Returns when to look again, and whether the socket is exhausted.
    fn poll(&self) -> Result<Pause, Error> {
        let mut state = self.lock();
        loop {
            let (id, answer) = match state.connection.poll() {
                Ok(Some(Event::Response(response))) => (response.id(), Ok(response)),
                Ok(Some(Event::Failed(failure))) => match failure.id {
                    Some(id) => (id, Err(Error::Failed(failure))),
                    None => continue,
                },
                Ok(Some(_)) => continue,
                Ok(None) => {
                    let connection = &state.connection;
                    return Ok(Pause {
                        until: connection.next_timeout(),
                        write: connection.wants_write(),
                        exhausted: !connection.has_more(),
                        closing: state.closing,
                    });
                }
                Err(e) => {
                    for (_, tell) in state.waiting.drain() {
                        let _ = tell.send(Err(e.clone()));
                    }
                    self.room.notify_waiters();
                    return Err(e);
                }
            };
            self.room.notify_waiters();
            // Nobody waits for it any more if its future has just been dropped.
            if let Some(Err(Ok(response))) = state.waiting.remove(&id).map(|tell| tell.send(answer)) {
                state.connection.recycle(response);
            }
        }
    }
}

struct Pause {
    until: Option<Instant>,
    write: bool,
    exhausted: bool,
    closing: bool,
}

struct CancelOnDrop<'a> {
    shared: &'a Shared,
    id: RequestId,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.waiting.remove(&self.id);
        state.connection.cancel(self.id);
        self.shared.news.notify_one();
        self.shared.room.notify_waiters();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.news.notify_one();
    }
}

/// A second descriptor of the connection's socket, registered with tokio. Only its readiness is used, which is why the
/// kind of socket does not matter.
fn readiness(connection: &Connection) -> io::Result<TcpStream> {
    TcpStream::from_std(std::net::TcpStream::from(connection.as_fd().try_clone_to_owned()?))
}

/// Reads answers and hands them out until the connection or its last owner is gone.
async fn drive(socket: TcpStream, shared: Arc<Shared>) {
    let mut pause = Pause { until: None, write: false, exhausted: false, closing: false };
    loop {
        let interest = if pause.write { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let mut looked = None;
        // Readiness is used up only if this look finds nothing more.
        let _ = socket.try_io(interest, || {
            let result = shared.poll();
            let exhausted = result.as_ref().is_ok_and(|pause| pause.exhausted);
            looked = Some(result);
            if exhausted { Err(io::Error::from(ErrorKind::WouldBlock)) } else { Ok(()) }
        });
        match looked.unwrap_or_else(|| shared.poll()) {
            Ok(now) if !now.closing => pause = now,
            _ => return,
        }
        if !pause.exhausted {
            tokio::task::yield_now().await;
            continue;
        }
        let interest = if pause.write { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let timeout = async {
            match pause.until {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = socket.ready(interest) => if ready.is_err() { return },
            () = shared.news.notified() => {}
            () = timeout => {}
        }
    }
}
