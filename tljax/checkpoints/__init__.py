"""Floor 2: foreign checkpoint formats ↔ our trees, and the run's own checkpoints."""

FORMATS = {
    "safetensors": "tljax.checkpoints.safetensors_format:open_tensors",
    "torch": "tljax.checkpoints.torch_format:open_tensors",
    "npz": "tljax.checkpoints.npz_format:open_tensors",
    "keras": "tljax.checkpoints.keras_format:open_tensors",
    "darknet": "tljax.checkpoints.darknet_format:open_tensors",
    "vectors": "tljax.checkpoints.vectors_format:open_tensors",
}
"""Format → function: path of a file → {tensor name: `Tensor`}, read lazily."""
