"""Counts read from the text of a program, against what the text was written to hold."""

import pytest

from tljax.assembly import hlo

TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[64,16]{1,0:T(8,128)})->(f32[64,16]{1,0})}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%sliced (stack: bf16[6,64,16], at: s32[]) -> bf16[64,16] {
  %stack = bf16[6,64,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %at = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = bf16[1,64,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%stack, %at, %zero, %zero), dynamic_slice_sizes={1,64,16}
  ROOT %flat = bf16[64,16]{1,0:T(8,128)(2,1)} bitcast(%one)
}

%stacked (all: f32[6,64,16], new: f32[1,64,16], at: s32[]) -> f32[6,64,16] {
  %all = f32[6,64,16]{2,1,0:T(8,128)} parameter(0)
  %new = f32[1,64,16]{2,1,0:T(8,128)} parameter(1)
  %at.1 = s32[]{:T(128)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  ROOT %put = f32[6,64,16]{2,1,0:T(8,128)} dynamic-update-slice(%all, %new, %at.1, %zero.1, %zero.1)
}

%all-reduce-scatter.1 (whole: f32[64,16]) -> f32[16,16] {
  %whole = f32[64,16]{1,0:T(8,128)} parameter(0)
  %reduced = f32[64,16]{1,0:T(8,128)} all-reduce(%whole), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  %place = s32[]{:T(128)} constant(16)
  %none = s32[]{:T(128)} constant(0)
  ROOT %mine = f32[16,16]{1,0:T(8,128)} dynamic-slice(%reduced, %place, %none), dynamic_slice_sizes={16,16}
}

%inner_body (i: (s32[], f32[8])) -> (s32[], f32[8]) {
  %i = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%i), index=0
  %v = f32[8]{0:T(256)} get-tuple-element(%i), index=1
  %v2 = f32[8]{0:T(256)} collective-permute(%v), channel_id=5, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %next.i = (s32[]{:T(128)}, f32[8]{0:T(256)}) tuple(%n, %v2)
}

%inner_condition (j: (s32[], f32[8])) -> pred[] {
  %j = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %m = s32[]{:T(128)} get-tuple-element(%j), index=0
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%m, %limit), direction=LT
}

%body (carry: (s32[], bf16[6,64,16], f32[6,64,16], f32[8])) -> (s32[], bf16[6,64,16], f32[6,64,16], f32[8]) {
  %carry = (s32[]{:T(128)}, bf16[6,64,16]{2,1,0}, f32[6,64,16]{2,1,0}, /*index=3*/f32[8]{0:T(256)}) parameter(0)
  %step = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %weights = bf16[6,64,16]{2,1,0} get-tuple-element(%carry), index=1
  %kept = f32[6,64,16]{2,1,0} get-tuple-element(%carry), index=2
  %vector = f32[8]{0:T(256)} get-tuple-element(%carry), index=3
  %layer = bf16[64,16]{1,0:T(8,128)(2,1)} fusion(%weights, %step), kind=kLoop, calls=%sliced
  %gathered = bf16[256,16]{1,0:T(8,128)(2,1)} all-gather(%layer), channel_id=1, \
replica_groups=[4,4]<=[16], dimensions={0}
  %made = f32[1,64,16]{2,1,0:T(8,128)S(1)} custom-call(%gathered), custom_call_target="made"
  %grown = f32[6,64,16]{2,1,0} fusion(%kept, %made, %step), kind=kLoop, calls=%stacked
  %pair = (s32[]{:T(128)}, f32[8]{0:T(256)}) tuple(%step, %vector)
  %inner = (s32[]{:T(128)}, f32[8]{0:T(256)}) while(%pair), condition=%inner_condition, body=%inner_body
  %turned = f32[8]{0:T(256)} get-tuple-element(%inner), index=1
  ROOT %next = (s32[]{:T(128)}, bf16[6,64,16]{2,1,0}, f32[6,64,16]{2,1,0}, f32[8]{0}) \
tuple(%step, %weights, %grown, %turned)
}

%condition (carry.1: (s32[], bf16[6,64,16], f32[6,64,16], f32[8])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, bf16[6,64,16]{2,1,0}, f32[6,64,16]{2,1,0}, f32[8]{0:T(256)}) parameter(0)
  ROOT %true = pred[]{:T(512)} constant(true)
}

ENTRY %main (w: bf16[6,64,16], k: f32[6,64,16], v0: f32[8], g: f32[64,16], b: f32[16]) \
-> (f32[16,16], f32[64,16], f32[16]) {
  %w = bf16[6,64,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = f32[6,64,16]{2,1,0:T(8,128)} parameter(1)
  %v0 = f32[8]{0:T(256)} parameter(2)
  %g = f32[64,16]{1,0:T(8,128)} parameter(3)
  %b = f32[16]{0:T(256)} parameter(4)
  %begin = s32[]{:T(128)} constant(0)
  %first = (s32[], bf16[6,64,16], f32[6,64,16], f32[8]) tuple(%begin, %w, %k, %v0)
  %loop = (s32[], bf16[6,64,16], f32[6,64,16], f32[8]) while(%first), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"6"},"flag_configs":[]}
  %scatter = f32[16,16]{1,0:T(8,128)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %both = (f32[64,16]{1,0}, f32[16]{0}) all-reduce(%g, %b), channel_id=2, replica_groups={}, to_apply=%add
  %begun = (f32[64,16]{1,0}, f32[64,64]{1,0}) all-gather-start(%g), channel_id=3, \
replica_groups={{0,4,8,12}}, dimensions={1}
  %ended = f32[64,64]{1,0} all-gather-done(%begun)
  %g2 = f32[64,16]{1,0} get-tuple-element(%both), index=0
  %b2 = f32[16]{0} get-tuple-element(%both), index=1
  ROOT %out = (f32[16,16]{1,0}, f32[64,16]{1,0}, f32[16]{0}) tuple(%scatter, %g2, %b2)
}
"""
DEVICES = 16


@pytest.fixture(scope="module")
def program():
    return hlo.parse(TEXT)


def test_the_body_of_a_loop_runs_once_a_round(program):
    assert program.entry == "main" and program.unknown == ()
    runs = {name: program.runs[name] for name in ("main", "body", "inner_body", "sliced", "all-reduce-scatter.1")}
    assert runs == {"main": 1, "body": 6, "inner_body": 6 * 3, "sliced": 6, "all-reduce-scatter.1": 1}
    assert program.fused == {"sliced", "stacked", "all-reduce-scatter.1", "add"}


def test_a_loop_of_unknown_length_is_told():
    open_ended = hlo.parse(TEXT.replace("known_trip_count", "nothing").replace("direction=LT", "direction=NE"))
    assert open_ended.unknown == ("loop", "inner") and open_ended.runs["inner_body"] == 1


def test_collectives_by_kind_and_group(program):
    found = {(c.kind, c.group): c for c in hlo.collectives(program, DEVICES)}
    assert found.keys() == {
        ("all-gather", 4),
        ("all-reduce", 16),
        ("reduce-scatter", 4),
        ("collective-permute", 2),
    }
    matrix = 64 * 16 * 4  # bytes of g
    # Six rounds gather 64 rows of bfloat16 from each of 4 devices; one more gathers g.
    gathered = found["all-gather", 4]
    assert gathered.count == 7 and gathered.bytes == 6 * 4 * matrix / 2 + 4 * matrix
    assert gathered.sent == gathered.bytes * 3 / 4
    # One operation reduces a matrix and a vector, over all devices: a ring sends each part twice.
    reduced = found["all-reduce", 16]
    assert reduced.count == 1 and reduced.bytes == matrix + 64 and reduced.sent == 2 * (matrix + 64) * 15 / 16
    scattered = found["reduce-scatter", 4]
    assert scattered.count == 1 and scattered.bytes == matrix and scattered.sent == matrix * 3 / 4
    permuted = found["collective-permute", 2]
    assert permuted.count == 18 and permuted.bytes == permuted.sent == 18 * 32


def test_slices_of_a_stack_count_and_not_the_stack(program):
    layer, whole = 64 * 16, 256 * 16
    rounds = 6 * (
        2 * (2 * layer + 0)  # a layer of the stack read and written, in bfloat16
        + 4  # the counter
        + 2 * layer + 2 * whole  # the gathering reads a part and writes the whole
        + 2 * whole  # made of it, in the fast memory: not written
        + 4 * layer + 4  # put into the other stack, whose parts it leaves alone; the counter
    )  # fmt: skip
    inner = 18 * 2 * 8 * 4
    conditions = 3 * 6 * (4 + 4 + 1)
    matrix = layer * 4
    ends = (matrix + matrix / 4) + 2 * (matrix + 64) + (matrix + 4 * matrix)
    assert hlo.moved(program) == rounds + inner + conditions + ends


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096),
        ("bf16[3]{0}", 6),
        ("(s32[], pred[5]{0}, u4[3]{0})", 4 + 5 + 2),
        ("f8e4m3fn[16]", 16),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_type(shape, size):
    assert hlo.size_of(shape) == size


def test_the_fast_memory_of_a_chip_is_no_memory_traffic():
    shape = "(f32[4]{0:T(128)S(1)}, f32[4]{0:T(128)}, f32[2]{0:S(6)})"
    assert hlo.size_of(shape) == 40 and hlo.size_of(shape, memory=True) == 16


@pytest.mark.parametrize(
    ("groups", "size"),
    [("replica_groups={{0,1},{2,3}}", 2), ("replica_groups=[2,8]<=[4,4]T(1,0)", 8), ("replica_groups={}", 16)],
)
def test_the_size_of_a_group(groups, size):
    assert hlo.group_size(f", channel_id=1, {groups}, to_apply=%add", DEVICES) == size


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")
