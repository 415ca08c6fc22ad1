//! Blocking calls by name.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use splitrpc_wire::Status;

use crate::wait::Waiter;
use crate::{
    Catalogue, ConnectOptions, Connection, Error, Event, Failure, Input, Request, RequestId, Response, Tensor,
    Transport, Wait,
};

/// The first pause before a busy server is asked again, where it did not name one. Doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// After so long without an answer a ping over datagrams is sent again.
const PING_AGAIN: Duration = Duration::from_millis(200);
/// A connection that was silent for longer is looked at before it is trusted with a request.
const STALE: Duration = Duration::from_millis(1);

/// Settings of a [`Client`].
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// What carries the session.
    pub transport: Transport,
    /// How a call waits.
    pub wait: Wait,
    /// The connection's own settings.
    pub connect: ConnectOptions,
}

/// Settings of one call.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallOptions {
    /// The time within which the answer is of use, retries included.
    pub deadline: Option<Duration>,
    /// 0 is the model's default, 1 the highest.
    pub priority: u8,
    /// Whether executing it twice does no harm: then it is sent again if the connection is lost.
    pub repeatable: bool,
    /// For how long a request that a busy server refused is sent again, in the rhythm that the server asks for.
    pub retry_busy_for: Option<Duration>,
}

/// A connection with blocking calls. A lost connection is made anew for the next call; within a call, if nothing of the
/// request can have been executed or it is repeatable.
#[derive(Debug)]
pub struct Client {
    address: String,
    options: ClientOptions,
    connection: Connection,
    sessions: u64,
    last_used: Instant,
}

impl Client {
    /// Connects to `address`, host or host:port.
    ///
    /// # Errors
    /// As for [`Connection::connect`].
    pub fn connect(address: &str, options: ClientOptions) -> Result<Client, Error> {
        let connection = Connection::connect(address, options.transport, &options.connect)?;
        Ok(Client { address: address.to_owned(), options, connection, sessions: 1, last_used: Instant::now() })
    }

    /// The models that the server serves.
    #[must_use]
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        self.connection.catalogue()
    }

    /// The connection under this client.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sessions that this client has opened: one, and another for each that was lost and made anew.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// Runs `model` on `inputs`. Whatever the tensors' order, names decide.
    ///
    /// # Errors
    /// [`Error::NoSuchModel`] and [`Error::BadInput`] before anything is sent; then as for [`Client::run`].
    pub fn infer(&mut self, model: &str, inputs: &[Input<'_>]) -> Result<Response, Error> {
        self.infer_with(model, inputs, &CallOptions::default())
    }

    /// Runs `model` on `inputs` as `options` say.
    ///
    /// # Errors
    /// As for [`Client::infer`].
    pub fn infer_with(&mut self, model: &str, inputs: &[Input<'_>], options: &CallOptions) -> Result<Response, Error> {
        self.revive()?;
        let catalogue = Arc::clone(self.catalogue());
        let model = catalogue.model(model)?;
        let tensors = model.bind(inputs)?;
        self.run(model.handle, &tensors, options)
    }

    /// Runs the model of this handle on `tensors`.
    ///
    /// # Errors
    /// [`Error::Failed`] with the server's reason; [`Error::Lost`] where the connection ended and the request may have
    /// been executed; or what reconnecting met.
    pub fn run(&mut self, model: u16, tensors: &[Tensor<'_>], options: &CallOptions) -> Result<Response, Error> {
        let started = Instant::now();
        let until = options.deadline.map(|d| started + d);
        let retry_until = options.retry_busy_for.map(|d| until.map_or(started + d, |u| u.min(started + d)));
        let mut pause = FIRST_PAUSE;
        let mut reconnected = false;
        loop {
            self.revive_same(model)?;
            let deadline = until.map(|u| u.saturating_duration_since(Instant::now()));
            if deadline.is_some_and(|d| d.is_zero()) {
                return Err(deadline_passed());
            }
            let request =
                Request { deadline, priority: options.priority, repeatable: options.repeatable, model, tensors };
            let result = self.once(&request);
            // Nobody polls until the next call.
            self.connection.acknowledge();
            match result {
                Err(Error::Failed(failure)) => {
                    let wait = failure.retry_after.unwrap_or(pause);
                    let again = matches!(failure.status, Status::Busy | Status::Quota)
                        && retry_until.is_some_and(|u| Instant::now() + wait < u);
                    if !again {
                        return Err(Error::Failed(failure));
                    }
                    std::thread::sleep(wait);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                // A second loss in one call is the server's trouble, not a connection gone stale.
                Err(Error::Lost { may_have_executed, .. })
                    if !reconnected && (options.repeatable || !may_have_executed) =>
                {
                    reconnected = true;
                }
                other => return other,
            }
        }
    }

    /// Asks the server for a sign of life and returns how long it took.
    ///
    /// # Errors
    /// Without a sign within the connection's timeout [`Error::TimedOut`]; or the connection's error.
    pub fn ping(&mut self) -> Result<Duration, Error> {
        let until = Instant::now() + self.options.connect.timeout;
        self.revive()?;
        loop {
            self.connection.ping()?;
            let again = if self.options.transport == Transport::Udp { Instant::now() + PING_AGAIN } else { until };
            if let Some(elapsed) = self.pong(until.min(again))? {
                return Ok(elapsed);
            }
            if Instant::now() >= until {
                return self.no_pong();
            }
        }
    }

    /// Asks the server for a sign of life, once, and returns how long it took; over UDP `None` where it or the question was
    /// lost, which is so after `lost_after` or the connection's timeout.
    ///
    /// # Errors
    /// Over TCP, without a sign within the connection's timeout, [`Error::TimedOut`]; or the connection's error.
    pub fn ping_once(&mut self, lost_after: Duration) -> Result<Option<Duration>, Error> {
        if self.options.transport == Transport::Tcp {
            return self.ping().map(Some);
        }
        self.revive()?;
        self.connection.ping()?;
        let elapsed = self.pong(Instant::now() + lost_after.min(self.options.connect.timeout))?;
        self.connection.forget_pings();
        Ok(elapsed)
    }

    /// Waits for the answer to a ping.
    fn pong(&mut self, until: Instant) -> Result<Option<Duration>, Error> {
        let mut waiter = self.options.wait.waiter();
        loop {
            match self.connection.poll()? {
                Some(Event::Pong { elapsed }) => return Ok(Some(elapsed)),
                Some(_) => {}
                None if Instant::now() >= until => return Ok(None),
                None => self.wait(&mut waiter, Some(until)),
            }
        }
    }

    fn no_pong<T>(&mut self) -> Result<T, Error> {
        // Its answer, should it still come, must not be taken for a later ping's.
        self.reconnect()?;
        let after = self.options.connect.timeout;
        Err(Error::TimedOut { waiting_for: "answer to a ping", after, hint: "" })
    }

    /// Gives a response's memory back for later ones.
    pub fn recycle(&mut self, response: Response) {
        self.connection.recycle(response);
    }

    /// Sends a request once and waits for its end.
    fn once(&mut self, request: &Request<'_>) -> Result<Response, Error> {
        let mut waiter = self.options.wait.waiter();
        let submitted = self.connection.submit_with(request, |fd, write, until| {
            waiter.wait(fd, write, until);
            Ok(())
        });
        let id = submitted.map_err(|e| match e {
            // The server executes nothing of which it has not got the last byte.
            Error::Lost { peer, reason, .. } => Error::Lost { peer, may_have_executed: false, reason },
            other => other,
        })?;
        waiter.progress();
        loop {
            match self.connection.poll()? {
                Some(Event::Response(response)) if response.id() == id => {
                    self.last_used = Instant::now();
                    return Ok(response);
                }
                Some(Event::Response(response)) => self.connection.recycle(response),
                Some(Event::Failed(failure)) if failure.id == Some(id) => return Err(Error::Failed(failure)),
                Some(_) => {}
                None => self.wait(&mut waiter, None),
            }
        }
    }

    fn wait(&self, waiter: &mut Waiter, until: Option<Instant>) {
        let until = [until, self.connection.next_timeout()].into_iter().flatten().min();
        waiter.wait(self.connection.as_fd(), self.connection.wants_write(), until);
    }

    /// Makes the connection anew if it has ended since the last call.
    fn revive(&mut self) -> Result<(), Error> {
        if self.connection.is_ready() && self.last_used.elapsed() > STALE {
            // Finds the end of the stream, if it has come; nothing is in flight, so nothing else can.
            while let Ok(Some(_)) = self.connection.poll() {}
        }
        if self.connection.is_ready() { Ok(()) } else { self.reconnect() }
    }

    /// Like [`Client::revive`], for a request that is bound to a handle already.
    fn revive_same(&mut self, handle: u16) -> Result<(), Error> {
        let before = Arc::clone(self.catalogue());
        self.revive()?;
        let after = self.catalogue();
        if Arc::ptr_eq(&before, after) || before.by_handle(handle) == after.by_handle(handle) {
            return Ok(());
        }
        Err(Error::BadInput("the server came back with other models; look the model up again".into()))
    }

    fn reconnect(&mut self) -> Result<(), Error> {
        self.connection = Connection::connect(&self.address, self.options.transport, &self.options.connect)?;
        self.sessions += 1;
        self.last_used = Instant::now();
        Ok(())
    }
}

fn deadline_passed() -> Error {
    let text = "it had passed before the request could be sent again".to_owned();
    Error::Failed(Failure { id: None::<RequestId>, status: Status::DeadlineExceeded, retry_after: None, text })
}
