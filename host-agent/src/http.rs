//! Metrics, health and model states over HTTP.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use nic_app::program::http::{self, Router, routing};

use crate::metrics::Status;

/// What is answered.
pub(crate) fn router(status: Arc<Status>) -> Router {
    Router::new()
        .route("/metrics", routing::get(metrics))
        .route("/models", routing::get(models))
        .route("/health/live", routing::get(http::live))
        .route("/health/ready", routing::get(ready))
        .route("/v2/health/live", routing::get(http::live))
        .route("/v2/health/ready", routing::get(ready))
        .with_state(status)
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    http::metrics(status.metrics())
}

async fn models(State(status): State<Arc<Status>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], status.models_json()).into_response()
}

async fn ready(State(status): State<Arc<Status>>) -> Response {
    http::ready(status.is_ready())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use nic_app::program::http::{Bounds, Http};
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
        let http =
            Http::start(SocketAddr::from(([127, 0, 0, 1], 0)), router(Arc::clone(&status)), Bounds::USUAL).unwrap();
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
}
