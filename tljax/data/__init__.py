"""Floor 1: sources of records, processors of text and images, and deterministic streams of NumPy batches."""

SOURCES = {
    "tfds": "tljax.data.tfds_sets:open_tfds",
    "tljax": "tljax.data.tfds_sets:open_own",
    "image_folder": "tljax.data.image_folder:open_image_folder",
    "csv": "tljax.data.columns:open_csv",
    "tsv": "tljax.data.columns:open_tsv",
    "conll": "tljax.data.conll:open_conll",
    "squad": "tljax.data.squad:open_squad",
    "jsonl": "tljax.data.columns:open_jsonl",
    "npz": "tljax.data.columns:open_npz",
}
"""What stands before the first colon of a source → its opener."""

BUILDERS = {
    "banking77": "tljax.data.builders.banking77:Banking77",
    "cifar10": "tljax.data.builders.cifar10:Cifar10",
    "digits": "tljax.data.builders.digits:Digits",
    "hymenoptera": "tljax.data.builders.hymenoptera:Hymenoptera",
    "mnist": "tljax.data.builders.mnist:Mnist",
    "scipy_docs": "tljax.data.builders.scipy_docs:ScipyDocs",
    "stsb": "tljax.data.builders.stsb:Stsb",
    "tinyshakespeare": "tljax.data.builders.tinyshakespeare:Tinyshakespeare",
    "trec": "tljax.data.builders.trec:Trec",
    "usps": "tljax.data.builders.usps:Usps",
    "wnut17": "tljax.data.builders.wnut17:Wnut17",
    "xquad": "tljax.data.builders.xquad:Xquad",
}
"""`tljax:NAME` → our TFDS builder."""
