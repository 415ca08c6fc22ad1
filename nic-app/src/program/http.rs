//! Metrics and health over HTTP, on a thread of their own.
//!
//! Every connection answers one request and lasts no longer than it may. Where there are as many as there may be, the oldest
//! makes room: whoever asks for the server's health has an answer long before that.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
pub use axum::{Router, routing};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener as Listener;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// What HTTP clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// How long a connection may last, from its being accepted to the last byte of the answer.
    pub lifetime: Duration,
}

impl Bounds {
    /// More than scrapers and probes need.
    pub const USUAL: Bounds = Bounds { connections: 64, lifetime: Duration::from_secs(10) };
}

/// How long no connection is accepted after one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The HTTP server. Dropping it ends it.
#[derive(Debug)]
pub struct Http {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Http {
    /// Starts answering at `address` what the router has answers to.
    ///
    /// # Errors
    /// Where the address cannot be listened on, or no thread be started.
    pub fn start(address: SocketAddr, router: Router, bounds: Bounds) -> io::Result<Http> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let listener = {
            let _inside = runtime.enter();
            Listener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let serve = async move {
            tokio::select! {
                () = accept(listener, router, bounds) => {}
                // Requests under way are cut off: a scraper that hangs must not keep the process alive.
                _ = stopped => {}
            }
        };
        let run = move || runtime.block_on(serve);
        let thread = thread::Builder::new().name("http".into()).spawn(run)?;
        Ok(Http { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // Where the thread has ended already, nobody hears either.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Accepts connections and has each answered by a task of its own.
async fn accept(listener: Listener, router: Router, bounds: Bounds) {
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(bounds.connections);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Its client is gone again, or the process has no descriptor left, which passes.
            Err(error) => {
                tracing::debug!(%error, "an HTTP connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|task| !task.is_finished());
        if open.len() >= bounds.connections
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        // What becomes of it is its client's business, as long as it ends.
        let task = tokio::spawn(async move { drop(tokio::time::timeout(bounds.lifetime, connection).await) });
        open.push_back(task.abort_handle());
    }
}

/// An answer to who asks for metrics: their text, as Prometheus has it.
#[must_use]
pub fn metrics(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// An answer to who asks whether requests are taken.
#[must_use]
pub fn ready(ready: bool) -> Response {
    if ready { "ready\n".into_response() } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response() }
}

/// An answer to who asks whether anybody is there.
pub async fn live() -> &'static str {
    "live\n"
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn start(bounds: Bounds) -> Http {
        let router = Router::new()
            .route("/metrics", routing::get(async || metrics("what is measured\n".to_owned())))
            .route("/health/live", routing::get(live));
        Http::start(SocketAddr::from(([127, 0, 0, 1], 0)), router, bounds).unwrap()
    }

    fn silent(address: SocketAddr, says: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(says.as_bytes()).unwrap();
        stream
    }

    /// Whether the server has closed this connection, waiting for that if need be.
    fn is_over(mut stream: &TcpStream) -> bool {
        match stream.read(&mut [0; 1]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    #[test]
    fn clients_that_hold_on_make_room_for_who_asks() {
        let bounds = Bounds { connections: 4, lifetime: Duration::from_secs(3600) };
        let http = start(bounds);
        let mut held = Vec::new();
        for n in 0..20 {
            held.push(silent(http.address(), if n % 2 == 0 { "" } else { "GET /metrics HTTP/1.1\r\nHost" }));
            assert!(ask(http.address(), "/health/live").starts_with("HTTP/1.1 200"));
        }
        // All but as many as there may be, less the place of the last one that asked.
        assert!(held[..17].iter().all(is_over));
        let lasting = held.last().unwrap();
        lasting.set_nonblocking(true).unwrap();
        assert!(!is_over(lasting));
    }

    #[test]
    fn nobody_holds_a_connection_for_ever() {
        let bounds = Bounds { connections: 4, lifetime: Duration::from_millis(50) };
        let http = start(bounds);
        for says in ["", "GET /metrics HTTP/1.1\r\nHost"] {
            let mut stream = silent(http.address(), says);
            // An answer may come before the end.
            assert!(stream.read_to_end(&mut Vec::new()).is_ok(), "{says}");
        }
    }

    #[test]
    fn garbage_harms_nobody() {
        let http = start(Bounds::USUAL);
        let garbage = [
            vec![0xff; 5000],
            b"\r\n\r\n\0\0\0\0".to_vec(),
            b"GET /metrics".to_vec(),
            b"POST /models HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n".to_vec(),
            [b"GET / HTTP/1.1\r\nX: ", &[b'a'; 1 << 20][..]].concat(),
        ];
        let mut open = Vec::new();
        for bytes in &garbage {
            let mut stream = TcpStream::connect(http.address()).unwrap();
            // It may close the connection before it has taken all of that.
            let _ = stream.write_all(bytes);
            assert!(ask(http.address(), "/health/live").starts_with("HTTP/1.1 200"));
            open.push(stream);
        }
        assert!(ask(http.address(), "/metrics").ends_with("what is measured\n"));
    }
}
