"""Running MetaLayer day and night: what can be measured, and who is told what is wrong.

Everything here only looks, from outside: it works beside `up`, beside services, and beside a
warehouse that nobody builds just then.
"""

#: Where the metrics are served: OpenTelemetry's exporters for Prometheus listen there too.
METRICS_PORT = 9464
