"""What a program executed under QEMU, instruction by instruction, and how many cycles a core's manual gives for that.

QEMU logs every block of instructions it runs; objdump says what they are. Cycles are those of a memory without wait
states, which only the chip's own manual can tell: real flash may add some.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

LOG = "in_asm,exec,nochain"  # of QEMU: the addresses in every block, then the blocks in the order they ran
KINDS = ("load", "store", "multiply", "taken branch", "other branch", "other")


@dataclass(frozen=True)
class Instruction:
    """One instruction of the program, as objdump writes it: `ldr`, `r3, [r0]`."""

    name: str
    operands: str

    @property
    def registers(self) -> int:
        """How many a push, a pop, or a load or store of several names in braces."""
        return self.operands.count(",") + 1 - self.operands.partition("{")[0].count(",") if "{" in self.operands else 0


@dataclass(frozen=True)
class Cost:
    """A line of a manual's table. pattern: of the name and operands. kind: of KINDS; "branch" is a taken one or not.

    low, high: the fewest and the most cycles; of a branch: where it is taken, and else 1. One more for each register in
    braces. after_memory: the fewest right after another load or store, where that is fewer.
    """

    pattern: str
    kind: str
    low: int
    high: int
    after_memory: int | None = None


@dataclass(frozen=True)
class Core:
    """A core's cycles. manual: where they are from. Instructions that no line matches take 1 cycle."""

    manual: str
    costs: tuple[Cost, ...]

    def cost(self, instruction: Instruction, before: Instruction | None, branched: bool) -> tuple[str, int, int]:
        """Kind, and the fewest and the most cycles. before: the instruction before it in its block; None: the first."""
        text = f"{instruction.name} {instruction.operands}"
        found = next((cost for cost in self.costs if re.match(cost.pattern, text)), Cost("", "other", 1, 1))
        kind, low, high = found.kind, found.low + instruction.registers, found.high + instruction.registers
        if kind == "branch":
            return ("taken branch", low, high) if branched else ("other branch", 1, 1)
        if found.after_memory is not None and before is not None and re.match(r"(ldr|str)(?!d)", before.name):
            low = found.after_memory
        return kind, low, high


CORTEX_M0 = Core(
    "Arm DDI 0432C, table 3-1: a multiplier of 1 or, the slowest, 32 cycles",
    (
        Cost("muls ", "multiply", 1, 32),
        Cost("(pop|ldm).*pc", "taken branch", 4, 4),
        Cost("pop |ldm", "load", 1, 1),
        Cost("push |stm", "store", 1, 1),
        Cost("ldr", "load", 2, 2),
        Cost("str", "store", 2, 2),
        Cost("bl ", "taken branch", 4, 4),
        Cost("(bx|blx|b) |(mov|add) pc,", "taken branch", 3, 3),
        Cost("b(eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le) ", "branch", 3, 3),
        Cost("(dmb|dsb|isb|mrs|msr) ", "other", 4, 4),
    ),
)
# A branch refills the pipeline in 1 to 3 cycles (P). A load or store may wait a cycle for an address that was computed
# just before it, or for the fetch unit.
CORTEX_M4 = Core(
    "Arm DDI 0439B, table 3-1 and section 3.3.2: the pipeline refilled in 1 to 3 cycles",
    (
        Cost("ldrd", "load", 3, 3),
        Cost("strd", "store", 3, 3),
        Cost("(pop|ldm).*pc", "taken branch", 2, 4),
        Cost("pop|ldm", "load", 1, 1),
        Cost("push|stm", "store", 1, 1),
        Cost(r"ldr\S* pc,", "taken branch", 3, 6),
        Cost("ldr", "load", 2, 3, after_memory=1),
        Cost("str", "store", 1, 3),
        Cost("tb[bh] ", "taken branch", 3, 5),
        Cost("[us]div", "other", 2, 12),
        Cost("it[te]* ", "other", 0, 1),
        Cost("mul|mla|mls|[us]mull|[us]mlal|sml|smu|smm|umaal", "multiply", 1, 1),
        Cost("(mov|add) pc,", "taken branch", 2, 4),
        Cost(
            "b(eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|x|lx|l)? |bx(eq|ne|cs|cc|mi|pl|hi|ls|ge|lt|gt|le) |cbn?z ",
            "branch",
            2,
            4,
        ),
    ),
)
IBEX = Core(
    "lowRISC Ibex, stall cycles: multiplier of 1 cycle and branch-target ALU, or slow multiplier and none",
    (
        Cost("mul ", "multiply", 1, 33),
        Cost("mulh", "multiply", 2, 33),
        Cost("(div|rem)", "other", 2, 38),
        Cost("(lb|lbu|lh|lhu|lw) ", "load", 2, 2),
        Cost("(sb|sh|sw) ", "store", 2, 2),
        Cost("(j|jal|jr|jalr|ret) ", "taken branch", 2, 2),
        Cost("b", "branch", 2, 3),
    ),
)


@dataclass(frozen=True)
class Profile:
    """What the network executed for one image. kinds: how many loads, stores, multiplies, branches and others."""

    instructions: int
    kinds: dict[str, int]
    cycles_low: int
    cycles_high: int


def disassembled(listing: str) -> tuple[dict[int, Instruction], dict[str, range]]:
    """Of the output of `objdump -d --no-show-raw-insn`: the instructions by address, and the addresses by function."""
    instructions: dict[int, Instruction] = {}
    starts: list[tuple[int, str]] = []
    for line in listing.splitlines():
        if found := re.fullmatch(r"([0-9a-f]+) <(.+)>:", line):
            starts.append((int(found[1], 16), found[2]))
        elif found := re.fullmatch(r" *([0-9a-f]+):\t([a-z][\w.]*)(?:\s+(.*))?", line):
            name = found[2].removesuffix(".n").removesuffix(".w")
            instructions[int(found[1], 16)] = Instruction(name, re.split(r"\s[@#;<]", found[3] or "")[0])
    ends = [*(start for start, _ in starts[1:]), 2**32]
    return instructions, {name: range(start, end) for (start, name), end in zip(starts, ends, strict=True)}


def blocks_run(log: Iterable[bytes]) -> Iterable[tuple[int, ...]]:
    """The blocks of QEMU's log (LOG) in the order they ran, each as the addresses of its instructions."""
    known: dict[bytes, tuple[int, ...]] = {}
    written: list[int] = []
    waiting: tuple[int, ...] | None = None
    for line in log:
        if line.startswith(b"Trace"):
            if waiting is not None:
                yield waiting
            key = line.split(b"[", 1)[1].split(b"]", 1)[0]  # address and state of the processor
            if written:
                known[key], written = tuple(written), []
            waiting = known[key]
        elif line.startswith(b"Stopped"):  # the block was announced, but did not run yet
            waiting = None
        elif line.startswith(b"IN:"):
            written = []
        elif line.startswith(b"0x"):
            written.append(int(line.split(b":", 1)[0], 16))
    if waiting is not None:
        yield waiting


def profile(log: Iterable[bytes], listing: str, entry: str, caller: str, core: Core) -> Profile:
    """Count what ran from the first instruction of the function `entry` to its return into the function `caller`.

    log: QEMU's, of a program that calls `entry` once. listing: as in `disassembled`.
    """
    instructions, functions = disassembled(listing)
    first, outside = functions[entry].start, functions[caller]
    runs: Counter[tuple[tuple[int, ...], bool]] = Counter()  # (block, whether its last instruction branched)
    is_inside = False
    for block, following in pairwise(blocks_run(log)):
        is_inside = (is_inside or block[0] == first) and block[0] not in outside
        if is_inside:
            after = min((address for address in (block[-1] + 2, block[-1] + 4) if address in instructions), default=0)
            runs[block, following[0] != after] += 1
    kinds = dict.fromkeys(KINDS, 0)
    count = low = high = 0
    for (block, branched), times in runs.items():
        each = [instructions[address] for address in block]
        for index, instruction in enumerate(each):
            before = each[index - 1] if index else None
            kind, fewest, most = core.cost(instruction, before, branched and index == len(each) - 1)
            kinds[kind] += times
            count, low, high = count + times, low + times * fewest, high + times * most
    return Profile(count, kinds, low, high)
