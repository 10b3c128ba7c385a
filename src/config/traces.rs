use clap::Args;
use url::Url;

use super::value::{optional, web_url};

/// The settings of traces. The exporter also reads OpenTelemetry's own variables, such as `OTEL_SERVICE_NAME`.
#[derive(Debug, Clone, Args)]
pub struct TraceSettings {
    /// The base URL of an OpenTelemetry collector, for example `http://collector:4318`. If it is set, the service sends its
    /// spans to `/v1/traces` there, by OTLP over HTTP. Otherwise no spans are recorded.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", default_value = "", hide_default_value = true, value_name = "URL",
          value_parser = optional(web_url), help_heading = "Traces")]
    pub otel_exporter_otlp_endpoint: std::option::Option<Url>,
}
