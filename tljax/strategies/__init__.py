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
    "bias_only": "tljax.strategies.bias_only:bias_only",
    "norm_only": "tljax.strategies.norm_only:norm_only",
    "surgical": "tljax.strategies.surgical:surgical",
    "rates": "tljax.strategies.rates:rates",
    "l2_sp": "tljax.strategies.l2_sp:l2_sp",
    "mixout": "tljax.strategies.mixout:mixout",
    "ema": "tljax.strategies.ema:ema",
    "quantize": "tljax.strategies.quantize:quantize",
    "lora": "tljax.strategies.lora:lora",
    "ia3": "tljax.strategies.ia3:ia3",
    "bottleneck": "tljax.strategies.bottleneck:bottleneck",
    "prefix": "tljax.strategies.prefix:prefix",
    "prompt": "tljax.strategies.prompt:prompt",
    "visual_prompt": "tljax.strategies.visual_prompt:visual_prompt",
}
"""Name → where the strategy is."""
