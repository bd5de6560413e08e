"""The rules: pure functions from a stored state and a command to the next state and an outcome."""
