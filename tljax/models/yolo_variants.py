"""The text of the one Darknet detector that is built in; every other one is read from its .cfg file."""


def _conv_text(filters: int, size: int) -> str:
    return f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize={size}\nstride=1\npad=1\nactivation=leaky\n\n"


def _pool_text(stride: int) -> str:
    return f"[maxpool]\nsize=2\nstride={stride}\n\n"


def _detector_text(mask: str) -> str:
    conv = "[convolutional]\nsize=1\nstride=1\npad=1\nfilters=255\nactivation=linear\n\n"
    anchors = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"
    return f"{conv}[yolo]\nmask={mask}\nanchors={anchors}\nclasses=80\nnum=6\n\n"


YOLOV3_TINY = "".join(
    (
        "[net]\nwidth=416\nheight=416\nchannels=3\n\n",
        *(_conv_text(filters, 3) + _pool_text(2) for filters in (16, 32, 64, 128, 256)),
        _conv_text(512, 3) + _pool_text(1),
        _conv_text(1024, 3) + _conv_text(256, 1) + _conv_text(512, 3),
        _detector_text("3,4,5"),
        "[route]\nlayers=-4\n\n",
        _conv_text(128, 1),
        "[upsample]\nstride=2\n\n[route]\nlayers=-1,8\n\n",
        _conv_text(256, 3),
        _detector_text("0,1,2"),
    )
)
"""The small network of Redmon and Farhadi 2018, which a config without a text means."""
