//! Metrics, health and model states over HTTP, on a thread of their own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use tokio::sync::oneshot;

use crate::metrics::Status;

/// The HTTP server. Dropping it ends it.
#[derive(Debug)]
pub struct Http {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Http {
    /// Starts answering at `address`.
    ///
    /// # Errors
    /// Where the address cannot be listened on, or no thread be started.
    pub fn start(address: SocketAddr, status: Arc<Status>) -> io::Result<Http> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::select! {
                served = axum::serve(listener, router(status)).into_future() => served,
                // Requests under way are cut off: a scraper that hangs must not keep the process alive.
                _ = stopped => Ok(()),
            }
        };
        let run = move || {
            if let Err(error) = runtime.block_on(serve) {
                tracing::error!(%error, "the HTTP server has ended");
            }
        };
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

fn router(status: Arc<Status>) -> Router {
    Router::new()
        .route("/metrics", routing::get(metrics))
        .route("/models", routing::get(models))
        .route("/health/live", routing::get(live))
        .route("/health/ready", routing::get(ready))
        .route("/v2/health/live", routing::get(live))
        .route("/v2/health/ready", routing::get(ready))
        .with_state(status)
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], status.metrics()).into_response()
}

async fn models(State(status): State<Arc<Status>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], status.models_json()).into_response()
}

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(status): State<Arc<Status>>) -> Response {
    if status.is_ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use splitrpc_telemetry::{Event, Shard};

    use super::*;
    use crate::metrics::ModelReport;

    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn health_metrics_and_models_are_told() {
        let shard = Arc::new(Shard::new(0));
        shard.count(Event::FramesReceived, 42);
        let status = Arc::new(Status::new(vec![ModelReport::failed("bad", "its file is empty")], vec![shard]));
        let http = Http::start(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::clone(&status)).unwrap();
        let address = http.address();
        assert!(ask(address, "/health/live").starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/health/ready").starts_with("HTTP/1.1 503"));
        status.set_ready(true);
        assert!(ask(address, "/health/ready").starts_with("HTTP/1.1 200"));
        assert!(ask(address, "/v2/health/ready").starts_with("HTTP/1.1 200"));
        let metrics = ask(address, "/metrics");
        assert!(metrics.contains("\nsplitrpc_frames_received_total 42\n"), "{metrics}");
        assert!(metrics.contains("splitrpc_model_ready{model=\"bad\"} 0"), "{metrics}");
        let models = ask(address, "/models");
        assert!(models.contains(r#""state":"failed""#) && models.contains("its file is empty"), "{models}");
        assert!(ask(address, "/nothing").starts_with("HTTP/1.1 404"));
        drop(http);
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn garbage_harms_nobody() {
        let status = Arc::new(Status::new(Vec::new(), Vec::new()));
        let http = Http::start(SocketAddr::from(([127, 0, 0, 1], 0)), status).unwrap();
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
        assert!(ask(http.address(), "/metrics").contains("splitrpc_ready 0"));
    }
}
