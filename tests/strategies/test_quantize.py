"""Which kernels are held in few bits, and what is refused."""

import pytest

from tests.strategies.test_adapters import LENGTHS, PATHS, STAGES, at
from tljax.base.errors import UserError
from tljax.base.types import Quantization
from tljax.strategies.compose import compose
from tljax.strategies.ema import ema
from tljax.strategies.fine_tune import fine_tune
from tljax.strategies.last_k import last_k
from tljax.strategies.linear_probe import linear_probe
from tljax.strategies.lora import lora
from tljax.strategies.lp_ft import lp_ft
from tljax.strategies.quantize import quantize
from tljax.strategies.scratch import scratch

BLOCKS = {path for path in PATHS if "/block" in path and path.endswith("/kernel")}


def composed(others, **options):
    return compose({**others, "quantize": quantize(STAGES, PATHS, **options)}, PATHS, LENGTHS)


def test_it_holds_the_kernels_of_the_blocks_and_changes_nothing_of_who_trains():
    plan = composed({"lora": lora(STAGES, PATHS)})
    assert plan.quantized == dict.fromkeys(BLOCKS, Quantization("nf4"))
    assert plan.live(0) == compose({"lora": lora(STAGES, PATHS)}, PATHS).live(0)
    named = composed({"linear_probe": linear_probe(STAGES, PATHS)}, kind="int8", targets=["query"])
    assert named.quantized == dict.fromkeys(at("0/query", "1/query"), Quantization("int8", named=True))
    assert compose({"lora": lora(STAGES, PATHS)}, PATHS).quantized == {}


def test_by_itself_it_leaves_what_trains_as_it_is():
    plan = composed({"last_k": last_k(STAGES, PATHS, k=1)}, double=True)
    assert plan.quantized == {path: Quantization("nf4", double=True) for path in BLOCKS if "/block0/" in path}
    later = composed({"lp_ft": lp_ft(STAGES, PATHS), "lora": lora(STAGES, PATHS)})
    assert later.quantized.keys() == BLOCKS, "adapters join later, the kernels never"


@pytest.mark.parametrize(
    ("others", "options", "message"),
    [
        ({"fine_tune": fine_tune(STAGES, PATHS)}, {}, "quantize holds 12 kernels .* that train with fine_tune"),
        ({"lp_ft": lp_ft(STAGES, PATHS)}, {}, "quantize holds 12 kernels .* that train with lp_ft"),
        ({}, {}, "with no strategy that freezes them"),
        ({"ema": ema(STAGES, PATHS)}, {"targets": "query"}, "quantize holds 2 kernels .* that train with ema"),
        (
            {"last_k": last_k(STAGES, PATHS, k=1)},
            {"targets": ["query"]},
            r"quantize holds 1 kernels in few bits \(backbone/block1/attention/query/kernel …\) that train with last_k",
        ),
        ({"scratch": scratch(STAGES, PATHS)}, {}, "that train with scratch"),
    ],
)
def test_what_trains_cannot_be_held_in_few_bits(others, options, message):
    with pytest.raises(UserError, match=message):
        composed(others, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "int4"}, r"kind is 'int4'\. Did you mean 'int8'\? Accepted: int8, nf4"),
        ({"kind": "int8", "double": True}, "double is True"),
        ({"targets": ["qury"]}, "the rule 'qury' matches no path"),
        ({"targets": "words"}, "words/embedding is a table"),
        ({"targets": []}, "names no kernel"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        quantize(STAGES, PATHS, **options)
