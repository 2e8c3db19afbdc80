"""Real processes, killed, interrupted or run in pairs: `pytest -m fuzz tests/stress`."""
