"""Reading the text of a compiled program: its collectives, how often each runs, the bytes that pass through memory.

XLA's own counts see the body of a loop once; here each operation counts as often as it runs. The text is that of one
device's program (`jax.stages.Compiled.as_text`), so that all shapes are local.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
)
"""Where devices are of several slices, XLA for TPU writes what goes from one to another as `send`."""
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "async-start", "async-update", "opt-barrier", "add-dependency"),
)
"""Operations that move nothing by themselves."""
SLICES = ("dynamic-slice", "slice", "gather")
BITS = {"pred": 8, "token": 0, "opaque": 0}
"""Types whose name does not end in their width."""


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: unique in the computation.
      shape: the text of its type.
      code: the operation.
      inside: the text between its brackets.
      rest: that of its attributes.
      root: whether it is the computation's result.
    """

    name: str
    shape: str
    code: str
    inside: str
    rest: str
    root: bool

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of what goes in."""
        return tuple(re.findall(r"%([\w.\-]+)", self.inside))


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      computations: name → its instructions by name, callees before their callers.
      entry: the name of the first.
      runs: computation → how often it runs in one execution.
      fused: the computations that are one operation: what passes between their parts never reaches the memory.
      unknown: loops whose number of rounds the text does not tell; they count as one round.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    runs: Mapping[str, int]
    fused: frozenset[str]
    unknown: tuple[str, ...]


class Collective(NamedTuple):
    """All collectives of one kind and group size.

    Attributes:
      kind: one of `COLLECTIVES`.
      group: devices that take part together.
      count: how many run.
      bytes: of the whole arrays on a device: what is reduced, what was gathered, what is permuted.
      sent: bytes that a device sends to others, if all of them go around rings.
    """

    kind: str
    group: int
    count: int
    bytes: float
    sent: float


def parse(text: str) -> Program:
    """The program that `text` is; raises `ValueError` where it has no entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head and " = " not in line.split("(")[0]:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _instruction(line)) is not None:
            current[found.name] = found
    if entry is None:
        raise ValueError("the text of the program has no ENTRY")
    return Program(computations, entry, *_runs(computations, entry))


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)
    if found is None:
        return None
    after = found[3]
    end = _closing(after, 0) + 1 if after.startswith("(") else after.index(" ")
    code = re.match(r"\s*([\w\-]+)\(", after[end:])
    if code is None:
        return None
    start = end + code.end() - 1
    close = _closing(after, start)
    return Instruction(found[2], after[:end], code[1], after[start + 1 : close], after[close + 1 :], bool(found[1]))


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    return len(text) - 1


def called(instruction: Instruction) -> dict[str, list[str]]:
    """Attribute → the computations that the instruction runs by it."""
    single = re.findall(r"\b(calls|to_apply|body|condition|called_computation)=%?([\w.\-]+)", instruction.rest)
    found = {key: [name] for key, name in single}
    for key in ("branch_computations", "called_computations"):
        if listed := re.search(rf"\b{key}=\{{([^}}]*)\}}", instruction.rest):
            found[key] = re.findall(r"%?([\w.\-]+)", listed[1])
    return found


def _runs(
    computations: Mapping[str, Mapping[str, Instruction]], entry: str
) -> tuple[dict[str, int], frozenset[str], tuple[str, ...]]:
    """(how often each computation runs, those that are one operation, loops of unknown length)."""
    runs, fused, unknown = dict.fromkeys(computations, 0), set(), []
    runs[entry] = 1
    for name in reversed(computations):  # callers stand after what they call
        for instruction in computations[name].values():
            rounds = 1
            if instruction.code == "while":
                known = trip_count(computations, instruction)
                rounds = known or 1
                unknown += [instruction.name] * (known is None)
            for key, names in called(instruction).items():
                for each in names:
                    runs[each] = runs.get(each, 0) + runs[name] * rounds
                    if key == "to_apply" or (key == "calls" and instruction.code == "fusion") or name in fused:
                        fused.add(each)
    return runs, frozenset(fused), tuple(unknown)


def trip_count(computations: Mapping[str, Mapping[str, Instruction]], loop: Instruction) -> int | None:
    """How many rounds a `while` makes: as XLA notes it, else from a condition `i < constant`; None where unknown."""
    if known := re.search(r'known_trip_count"?\s*[:=]\s*\{"?n"?\s*[:=]\s*"?(\d+)', loop.rest):
        return int(known[1])
    condition = computations.get(called(loop).get("condition", [""])[0], {})
    # XLA may have put the comparison into a fusion, with the constant beside it.
    bodies = [condition, *(computations.get(n, {}) for i in condition.values() for n in called(i).get("calls", ()))]
    less = any(i.code == "compare" and "direction=LT" in i.rest for body in bodies for i in body.values())
    constants = [_constant(i) for i in condition.values() if i.code == "constant" and re.match(r"[su]32\[\]", i.shape)]
    return constants[0] if less and len(constants) == 1 else None


def _constant(instruction: Instruction) -> int | None:
    return int(instruction.inside) if re.fullmatch(r"-?\d+", instruction.inside) else None


def size_of(shape: str, *, memory: bool = False) -> int:
    """Bytes of a type, of all its parts where it is a tuple.

    Args:
      shape: as in the text: `f32[8,128]{1,0:T(8,128)}`.
      memory: leave out what lies in a chip's own fast memory (`S(1)` in its layout).
    """
    return sum(_parts(shape, memory=memory))


def _parts(shape: str, *, memory: bool = False) -> list[int]:
    found = []
    for kind, numbers, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", shape):
        width = BITS.get(kind) if kind in BITS else int(re.sub(r"\D", " ", kind).split()[0])
        count = math.prod(int(n) for n in numbers.split(",") if n)
        fast = memory and re.search(r"S\([1-9]", layout)
        found.append(0 if fast else -(-count * width // 8))
    return found


def group_size(rest: str, devices: int) -> int:
    """Devices that take part in a collective together; `ValueError` for a way of naming them that is not known.

    XLA names them as lists `{{0,1},{2,3}}` (none is all devices), as a shape `[groups,size]<=[…]`, or as axes of a
    mesh, `mesh['a'=4,'b'=4] {'a'}`, where `'a':(1)2` is a part of an axis, of size 2.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    if shaped := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(shaped[2])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", meshed[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", meshed[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if re.search(r"replica_groups=\{\}", rest) or "replica_groups" not in rest:
        return devices
    raise ValueError(f"groups of devices in an unknown form: {rest[:200]}")


def collectives(program: Program, devices: int) -> list[Collective]:
    """Those of the program by kind and group size, the ones that send most first.

    Args:
      program: of one device.
      devices: how many run it.

    Raises:
      ValueError: groups of devices in a form that is not known.
    """
    each: dict[Any, tuple[str, int, float, int]] = {}
    for name, body in program.computations.items():
        for instruction in body.values():
            kind = instruction.code.removesuffix("-start")
            if kind not in COLLECTIVES or not program.runs[name]:
                continue
            operands = sum(size_of(body[other].shape) for other in instruction.operands if other in body)
            group = 2 if kind in ("collective-permute", "send") else group_size(instruction.rest, devices)
            if kind == "all-reduce" and name in program.fused and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # of a reduction, each device keeps its part: so XLA for TPU writes it
            whole = operands * group if kind == "all-gather" else operands
            # What runs beside other work stands in several fusions, its start, steps and end, under one channel.
            channel = re.search(r"channel_id=(\d+)", instruction.rest) if name in program.fused else None
            key = (kind, channel[1]) if channel else (name, instruction.name)
            runs = max(program.runs[name], each[key][3] if key in each else 0)
            each[key] = (kind, group, whole, runs)
    found: dict[tuple[str, int], list[float]] = {}
    for kind, group, whole, runs in each.values():
        sums = found.setdefault((kind, group), [0, 0, 0])
        for i, value in enumerate((1, whole, whole * _share(kind, group))):
            sums[i] += value * runs
    rows = [Collective(*key, int(count), size, sent) for key, (count, size, sent) in found.items()]
    return sorted(rows, key=lambda row: -row.sent)


def _share(kind: str, group: int) -> float:
    """Of the whole array, what a device sends in a ring of `group`."""
    ring = (group - 1) / group
    return {"all-reduce": 2 * ring, "collective-permute": 1.0, "collective-broadcast": 1.0, "send": 1.0}.get(kind, ring)


def moved(program: Program) -> float:
    """Bytes that one execution reads from the memory and writes to it, by the operands and results of its operations.

    What an operation slices out of an operand counts by the slice, and what it writes into one by what is written.
    """
    total = 0.0
    for name, body in program.computations.items():
        if program.runs[name] and name not in program.fused:
            total += program.runs[name] * sum(_moved(program, body, i) for i in body.values())
    return total


def _moved(program: Program, body: Mapping[str, Instruction], instruction: Instruction) -> int:
    code = instruction.code
    if code in FREE or code.endswith("-done"):
        return 0
    inputs = [body[name].shape for name in instruction.operands if name in body]
    if code.endswith("-start"):  # the type is a tuple that repeats the operands, but for reductions
        read, parts = sum(size_of(shape, memory=True) for shape in inputs), size_of(instruction.shape, memory=True)
        return read + parts if code == "all-reduce-start" else max(read, parts)
    if code == "fusion":
        inner = program.computations.get(next(iter(called(instruction).get("calls", [""]))), {})
        if any(i.code in COLLECTIVES for i in inner.values()):
            return _passed(instruction, inputs)
        return _read(inner, inputs) + _written(inner, instruction.shape)
    if code in SLICES:
        return 2 * size_of(instruction.shape, memory=True)
    if code in ("dynamic-update-slice", "scatter"):
        return 2 * size_of(inputs[-1 if code == "scatter" else 1], memory=True)
    return size_of(instruction.shape, memory=True) + sum(size_of(shape, memory=True) for shape in inputs)


def _passed(instruction: Instruction, inputs: list[str]) -> int:
    """What a fusion with a part of a collective moves: the buffers that it hands on to the next part are not moved."""
    listed = re.search(r"output_to_operand_aliasing=\{(.*?\)\})", instruction.rest)
    pairs = re.findall(r"\{(\d*)[^}]*\}: \((\d+)", listed[1]) if listed else []
    given, made = {int(place) for _, place in pairs}, {int(place or 0) for place, _ in pairs}
    parts = _parts(instruction.shape, memory=True)
    kept = [size_of(shape, memory=True) for place, shape in enumerate(inputs) if place not in given]
    return sum(kept) + sum(size for place, size in enumerate(parts) if place not in made)


def _read(inner: Mapping[str, Instruction], inputs: list[str]) -> int:
    """What a fusion reads of its operands."""
    users: dict[str, list[Instruction]] = {}
    for instruction in inner.values():
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    places, total = {int(i.inside): i for i in inner.values() if i.code == "parameter"}, 0
    for place, shape in enumerate(inputs):
        whole, parameter = size_of(shape, memory=True), places.get(place)
        using = users.get(parameter.name, []) if parameter is not None else []
        first = {i.code for i in using if i.operands[0] == parameter.name}
        if using and len(first & {*SLICES}) == len({i.code for i in using}):
            whole = min(whole, sum(size_of(i.shape) for i in using))
        elif using and {i.code for i in using} == first == {"dynamic-update-slice"}:
            whole = 0
        total += whole
    return total


def _written(inner: Mapping[str, Instruction], shape: str) -> int:
    """What a fusion writes."""
    root = next((i for i in inner.values() if i.root), None)
    while root is not None and root.code == "bitcast" and root.operands[0] in inner:
        root = inner[root.operands[0]]
    if root is not None and root.code == "dynamic-update-slice" and size_of(shape, memory=True):
        return size_of(inner[root.operands[1]].shape)
    return size_of(shape, memory=True)
