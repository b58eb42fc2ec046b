"""The kernels that a TensorRT-RTX plan says it has, for the roofline.

Each has the sizes and types of what it reads and writes.

They come from the undocumented rows that plan_text reads: known versions only, and anything
unexpected gives None instead of a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trtq.cost.devices import Device
from trtq.cost.ops import Kernel
from trtq.cost.roofline import BITS, KernelTime, predict
from trtq.engine.plan_text import KNOWN_VERSIONS, text_of, type_name
from trtq.quant.formats import BitConfig

TENSOR = re.compile(
    rb'tensor=\{[^{}]*?dims=\{([^}]*)\}[^{}]* name="([^"]+)"[^{}]*(?:\{[^{}]*\}[^{}]*)*? type=(\w+)'
)
ROW = re.compile(
    rb"^  "
    rb"(corrltn|fully_connected|function|runtime_fusion|_gemm_mha_v2|avgpool|maxpool|softmax)=\{ "
    rb"name=\"?([^\" ]*)\"?([^\n]*)",
    re.M,
)
NAMES = re.compile(rb'"([^"]+)"')
GROUPS = re.compile(rb"nbr_groups=(\d+)")
SIZES = {
    "float": 32,
    "half": 16,
    "bf16": 16,
    "int8": 8,
    "fp8": 8,
    "int4": 4,
    "fp4": 4,
    "int32": 32,
    "int64": 64,
    "bool": 8,
    "uint8": 8,
}
TYPES = {"int8": "int8", "half": "fp16", "bf16": "fp16", "fp8": "fp8", "fp4": "fp4"}
PRODUCTS = {"corrltn": "conv", "fully_connected": "linear", "_gemm_mha_v2": "matmul"}
MAIN = b"\nmain {"
FROM_ONNX = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True, slots=True)
class _Tensor:
    dims: tuple[int, ...]
    kind: str

    @property
    def values(self) -> int:
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        return self.values * SIZES.get(self.kind, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKernel:
    """One kernel of a plan at a given batch.

    Attributes:
        name, kind: of its row.
        precision: the type of its first operand.
        macs: multiply-accumulates of the whole batch.
        bits: read and written, weights included.
        written: of them, the results.
        depthwise: a grouped convolution of one channel a group, as it runs.
        unknown: it multiplies, and its row does not say how much.
        layers: names of the ONNX nodes in it.
        fused: its product has a row of its own, in the body of the kernel.
    """

    name: str
    kind: str
    precision: str
    macs: int
    bits: int
    written: int
    depthwise: bool
    unknown: bool
    layers: tuple[str, ...] = ()
    fused: bool = False

    def time(self, device: Device) -> KernelTime:
        """Return the roofline's time of the kernel on a device.

        The counts are of the whole batch already. A precision without a peak in the hardware table
        counts as FP16.
        """
        per = BITS[self.precision]
        counts = Kernel(
            name=self.name,
            kind=self.kind,
            macs=self.macs,
            weights=0,
            reads=self.bits // per,
            writes=0,
            depthwise=self.depthwise,
        )
        return predict(
            counts,
            device,
            BitConfig(per, per),
            precision=self.precision if self.precision in device.peaks else "fp16",
        )


def read_plan_kernels(plan: bytes, version: str, batch: int) -> list[PlanKernel] | None:
    """Return the kernels of a plan.

    The result is None when the version is unknown or the rows are not as expected.

    Args:
        plan: the engine file.
        version: of the builder, such as ``1.7.1``.
        batch: the size of the open dimension.
    """
    if not version.startswith(KNOWN_VERSIONS):
        return None
    plan = text_of(plan)
    tensors = {
        m.group(2): _tensor(m.group(1), type_name(m.group(3)), batch) for m in TENSOR.finditer(plan)
    }
    kernels: list[PlanKernel] = []
    inner: list[PlanKernel] = []
    end = _end_of_main(plan)
    for match in ROW.finditer(plan):
        kernel = _kernel(
            match.group(1).decode(),
            match.group(2).decode(errors="replace"),
            match.group(3),
            tensors,
        )
        if kernel is None:
            return None
        (kernels if match.start() < end else inner).append(kernel)
    return _with_products(kernels, inner) or None


def _end_of_main(plan: bytes) -> int:
    """Return where the rows of the main graph end; bodies of fused kernels follow it."""
    start = plan.find(MAIN)
    end = plan.find(b"\n}", start) if start >= 0 else -1
    return end if end >= 0 else len(plan)


def _with_products(kernels: Sequence[PlanKernel], inner: Sequence[PlanKernel]) -> list[PlanKernel]:
    """Return the kernels of a plan, each fused one with the product of its body.

    A row of a body that belongs to no fused kernel remains a kernel.
    """
    done = list(kernels)
    for part in inner:
        at = next((i for i, k in enumerate(done) if _holds(k, part)), None)
        if at is None:
            done.append(part)
        elif part.macs >= done[at].macs:
            done[at] = replace(
                done[at],
                kind=part.kind,
                macs=part.macs,
                depthwise=part.depthwise,
                unknown=part.unknown,
            )
    return done


def _holds(kernel: PlanKernel, part: PlanKernel) -> bool:
    """Whether a row of a body is the product of a fused kernel."""
    return kernel.fused and bool(part.layers) and set(part.layers) <= set(kernel.layers)


def _tensor(dims: bytes, kind: str, batch: int) -> _Tensor:
    sizes = [batch if d.startswith(b'"') else int(d) for d in dims.split()]
    return _Tensor(tuple(sizes), kind)


def _listed(row: bytes, *keys: bytes) -> list[bytes]:
    for key in keys:
        match = re.search(rb" " + key + rb"=\{([^}]*)\}", row)
        if match is not None:
            return NAMES.findall(match.group(1))
    return []


def _kernel(kind: str, name: str, row: bytes, tensors: dict[bytes, _Tensor]) -> PlanKernel | None:
    if kind == "function" and name in PRODUCTS:  # fused attention is a generated kernel
        kind = name
    inputs = [tensors[n] for n in _listed(row, b"input_args", b"input") if n in tensors]
    reads = [t for t in inputs if t.kind != "int64"]  # sizes, not values
    writes = [tensors[n] for n in _listed(row, b"output_args", b"output") if n in tensors]
    # A generated kernel may only fill a tensor.
    if not writes or (not reads and kind != "function"):
        return None
    macs = _macs(kind, reads, writes[0])
    return PlanKernel(
        name=name,
        kind=PRODUCTS.get(kind, kind),
        precision=TYPES.get((*reads, *writes)[0].kind, "fp32"),
        macs=macs,
        bits=sum(t.bits for t in (*reads, *writes)),
        written=sum(t.bits for t in writes),
        depthwise=kind == "corrltn" and _is_depthwise(row, reads),
        unknown=kind == "runtime_fusion" or (kind in PRODUCTS and not macs),
        layers=tuple(n.decode(errors="replace") for n in FROM_ONNX.findall(row)),
        fused=kind == "runtime_fusion",
    )


def _macs(kind: str, reads: list[_Tensor], result: _Tensor) -> int:
    """Return the multiply-accumulates of a product, 0 where its row does not say."""
    if kind == "corrltn" and len(reads) > 1:
        return result.values * math.prod(reads[1].dims[1:])
    if kind == "fully_connected":
        return result.values * reads[0].dims[-1]
    if kind == "_gemm_mha_v2" and len(reads) > 2:
        return 2 * reads[0].values * reads[1].dims[-2]
    return 0


def _is_depthwise(row: bytes, reads: list[_Tensor]) -> bool:
    """Whether a convolution has one channel a group, as it runs."""
    groups = GROUPS.search(row)
    return groups is not None and 1 < int(groups.group(1)) == reads[1].dims[0]
