"""tljax: transfer learning in JAX. A pretrained checkpoint goes in, a model for a new task comes out.

The names below are loaded on first use, so that importing tljax imports neither jax nor anything else that is slow.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "load_pretrained": "tljax.checkpoints.load",
    "save_pretrained": "tljax.checkpoints.save",
    "adapt": "tljax.checkpoints.adapt",
    "forward": "tljax.models.forward",
    "UserError": "tljax.base.errors",
    "RunError": "tljax.base.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tljax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
