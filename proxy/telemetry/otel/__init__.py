"""OpenTelemetry spans, exported by OTLP over HTTP in the background."""
