//! Exports spans to an OpenTelemetry collector, by OTLP over HTTP with protobuf.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanProcessor};
use tokio::runtime::Handle;

use crate::config::InvalidSetting;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends spans to `endpoint` in batches, from a thread of its own. Spans that an unreachable
/// collector does not take are dropped; no request waits for the export.
pub(super) fn spans(endpoint: &str) -> Result<BatchSpanProcessor, InvalidSetting> {
    let invalid = |why: &str| {
        InvalidSetting(format!(
            "RUSHGATE_OTLP_ENDPOINT: {why}; use a collector's address like http://host:4318"
        ))
    };
    // No TLS: the collector runs beside the instance, where there is no certificate to check. TLS
    // for the way on is the collector's task.
    if !endpoint.starts_with("http://") {
        return Err(invalid("it must begin with http://"));
    }
    let client = HyperClient::with_default_connector(TIMEOUT, None);
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(OnRuntime { client, runtime: Handle::current() })
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(TIMEOUT)
        .build()
        .map_err(|e| invalid(&e.to_string()))?;
    let mut spans = BatchSpanProcessor::builder(exporter).build();
    spans.set_resource(&Resource::builder().with_service_name("rushgate").build());
    Ok(spans)
}

/// Runs hyper on tokio's runtime, because the thread that exports spans is outside of it.
struct OnRuntime {
    client: HyperClient,
    runtime: Handle,
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnRuntime")
    }
}

impl HttpClient for OnRuntime {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        let client = self.client.clone();
        let sending = self.runtime.spawn(async move { client.send_bytes(request).await });
        Box::pin(async move { sending.await? })
    }
}
