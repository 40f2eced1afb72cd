"""Floor 2: who trains and how fast. A strategy is `strategy(stages, paths, **options) -> Plan`.

Strategies know stages and leaf paths, and no models. Several of them compose (`tljax.strategies.compose`).
"""

TABLE = {
    "scratch": "tljax.strategies.scratch:scratch",
    "linear_probe": "tljax.strategies.linear_probe:linear_probe",
    "fine_tune": "tljax.strategies.fine_tune:fine_tune",
    "freeze": "tljax.strategies.freeze:freeze",
    "last_k": "tljax.strategies.last_k:last_k",
    "layer_decay": "tljax.strategies.layer_decay:layer_decay",
    "lp_ft": "tljax.strategies.lp_ft:lp_ft",
    "gradual_unfreezing": "tljax.strategies.gradual_unfreezing:gradual_unfreezing",
}
"""Name → where the strategy is."""
