//! Prometheus metrics at `/metrics` (OpenMetrics text), and a page for a browser at `/`.

mod families;
mod http;
mod page;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::context::Control;
pub use http::Bounds;

/// <https://github.com/OpenObservability/OpenMetrics>, "Content-Type".
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, control: Arc<Control>, bounds: Bounds) -> &'static str {
    if let Ok(address) = listener.local_addr() {
        tracing::info!("metrics on http://{address}/metrics");
    }
    let routes = Router::new().route("/metrics", get(metrics)).route("/", get(status_page)).with_state(control);
    // Ends only with an error of accept, which the listener deals with itself.
    let _ = axum::serve(http::Bounded::new(listener, bounds), routes).await;
    "metrics"
}

async fn metrics(State(control): State<Arc<Control>>) -> Response {
    ([(CONTENT_TYPE, OPENMETRICS)], families::text(&control)).into_response()
}

async fn status_page(State(control): State<Arc<Control>>) -> Html<String> {
    Html(page::html(&control.status()))
}
