"""Floor 3: state, step, loop, hooks, evaluation and the probe."""
