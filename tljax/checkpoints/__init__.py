"""Floor 2: foreign checkpoint formats ↔ our trees, and the run's own checkpoints."""

FORMATS = {
    "safetensors": "tljax.checkpoints.safetensors_format:FORMAT",
    "torch": "tljax.checkpoints.torch_format:FORMAT",
    "npz": "tljax.checkpoints.npz_format:FORMAT",
    "keras": "tljax.checkpoints.keras_format:FORMAT",
    "darknet": "tljax.checkpoints.darknet_format:FORMAT",
    "vectors": "tljax.checkpoints.vectors_format:FORMAT",
}
"""Name → `tljax.checkpoints.tensors.Format`."""

WRITTEN_IN = {"yolo": "darknet", "word_vectors": "vectors"}
"""Family → the format in which alone its models are published, and are written."""
