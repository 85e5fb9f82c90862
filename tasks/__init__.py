"""Prefect tasks of the labelling pipeline, one stage a file."""

import os

# Prefect's temporary server needs longer than its default 20 s on a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")

# Our own log lines belong into a run's page in Prefect's UI.
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "rfss")
# The lease's heartbeat and the object store's client have threads of their own, which belong to no run.
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")

# What Prefect writes to the terminal of a run that it started, before and after our own log is open.
if os.environ.get("RFSS_LOG_FORMAT", "").lower() == "json":
    os.environ.setdefault("PREFECT_LOGGING_FORMATTERS_JSON_CLASS", "tasks.json_lines.JsonLines")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER", "json")

# MLflow prints addresses and bars of its own between our lines, JSON ones too; the summary names the run.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# A hospital's machine must not phone home because it labels images. Set before Prefect, MLflow and the hub's client
# are imported; whoever wants their telemetry sets the variables.
for _variable, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(_variable, _value)
