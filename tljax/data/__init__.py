"""Floor 1: sources of records, processors of text and images, and deterministic streams of NumPy batches."""

SOURCES = {
    "audio_folder": "tljax.data.image_folder:open_audio_folder",
    "tfds": "tljax.data.tfds_sets:open_tfds",
    "tljax": "tljax.data.tfds_sets:open_own",
    "image_folder": "tljax.data.image_folder:open_image_folder",
    "csv": "tljax.data.columns:open_csv",
    "tsv": "tljax.data.columns:open_tsv",
    "coco": "tljax.data.detection_sets:open_coco",
    "conll": "tljax.data.conll:open_conll",
    "mask_folder": "tljax.data.segmentation_sets:open_mask_folder",
    "squad": "tljax.data.squad:open_squad",
    "jsonl": "tljax.data.columns:open_jsonl",
    "npz": "tljax.data.columns:open_npz",
    "synthetic": "tljax.data.synthetic:open_synthetic",
    "voc": "tljax.data.detection_sets:open_voc",
    "voc_masks": "tljax.data.segmentation_sets:open_voc_masks",
}
"""What stands before the first colon of a source → its opener."""

BUILDERS = {
    "amazon_reviews": "tljax.data.builders.amazon_reviews:AmazonReviews",
    "banking77": "tljax.data.builders.banking77:Banking77",
    "bccd": "tljax.data.builders.bccd:Bccd",
    "cifar10": "tljax.data.builders.cifar10:Cifar10",
    "fsdd": "tljax.data.builders.fsdd:Fsdd",
    "fsdd_strings": "tljax.data.builders.fsdd:FsddStrings",
    "digits": "tljax.data.builders.digits:Digits",
    "flip_gb1": "tljax.data.builders.flip_gb1:FlipGb1",
    "hymenoptera": "tljax.data.builders.hymenoptera:Hymenoptera",
    "mnist": "tljax.data.builders.mnist:Mnist",
    "mnistm": "tljax.data.builders.mnistm:Mnistm",
    "multi30k": "tljax.data.builders.multi30k:Multi30k",
    "omniglot": "tljax.data.builders.omniglot:Omniglot",
    "scipy_docs": "tljax.data.builders.scipy_docs:ScipyDocs",
    "sentconv": "tljax.data.builders.sentconv:Sentconv",
    "stsb": "tljax.data.builders.stsb:Stsb",
    "tinyshakespeare": "tljax.data.builders.tinyshakespeare:Tinyshakespeare",
    "trec": "tljax.data.builders.trec:Trec",
    "usps": "tljax.data.builders.usps:Usps",
    "wnut17": "tljax.data.builders.wnut17:Wnut17",
    "xquad": "tljax.data.builders.xquad:Xquad",
}
"""`tljax:NAME` → our TFDS builder."""
