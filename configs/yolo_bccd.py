"""Does a detector of everyday things help to find blood cells? YOLO-Fastest 1.1 from COCO, fine-tuned on BCCD.

Papers: Redmon and Farhadi 2018 (YOLOv3), Zheng et al. 2020 (the loss of the boxes); the weights are dog-qiuqiu's.

    python launch.py train --config=configs/yolo_bccd.py --workdir=runs/bccd --data_dir=DATA

TLJAX_WEIGHTS names the folder with yolo_fastest/ in it. Expected: the test mAP of experiments/bccd_detection/README.md,
within two of its deviations. Cost: see the table there.
"""

from ml_collections import ConfigDict


def get_config():
    """The published splits: 205 training, 87 validation and 72 test images; 400 steps are 16 epochs."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(source="$TLJAX_WEIGHTS/yolo_fastest/yolo-fastest-1.1.weights", processor=dict(size=(192, 256)))
    config.task = dict(
        name="detection",
        max_boxes=40,
        augment=dict(flip=True, scale=(0.6, 1.2), ratio=1.2, colour=0.3),
    )
    config.strategy = dict(fine_tune=dict())
    config.optim = dict(name="adamw", learning_rate=2e-3, schedule="cosine", warmup=0.1, weight_decay=5e-4, clip=10.0)
    config.data = dict(
        train=dict(source="tljax:bccd", split="train"),
        validation=dict(source="tljax:bccd", split="validation"),
        test=dict(source="tljax:bccd", split="test"),
    )
    config.train = dict(batch_size=8, steps=400, eval_batch_size=16, eval_every=200)
    config.mesh = dict(data=1)
    return config
