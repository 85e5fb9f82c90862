"""Exit codes of every command: part of the contract (docs/architecture.md)."""

DONE, FAILED, BAD_INPUT, GATE_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
