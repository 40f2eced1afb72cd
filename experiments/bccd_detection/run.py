"""BCCD by YOLO-Fastest: from COCO and from scratch. `python -m experiments.bccd_detection.run`"""

import sys

from experiments.study import Case, Column, Study, main

STUDY = Study(
    name="bccd_detection",
    config="configs/yolo_bccd.py",
    cases=(
        Case("fine-tuning from COCO"),
        Case("from scratch", {"strategy": {"scratch": {}}}),
    ),
    columns=(
        Column("test mAP@.5", "test", "map50"),
        Column("test mAP", "test", "map"),
        Column("AP@.5 red cells", "test", "ap50_RBC"),
        Column("AP@.5 white cells", "test", "ap50_WBC"),
        Column("AP@.5 platelets", "test", "ap50_Platelets"),
        Column("validation mAP", "validation", "map"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
