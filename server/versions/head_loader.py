"""A head file's bytes into weights in memory: strict header, schema, finite scan, modules. Knows no names or budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyhead.heads.format import tensorfile
from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.format.lora import LoraAdapter, check_adapter
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.format.pauses import pause_point
from polyhead.heads.format.precision import ITEM_BYTES
from polyhead.heads.format.tensorfile import TensorData, TensorFile
from polyhead.heads.model.adapted import Adapter, HeadGroup, build_lora_head
from polyhead.heads.model.family import HeadModule, build_head, head_skeleton
from polyhead.heads.model.spec import ModelSpec
from polyhead.server.engine.layers.cuda.threads import SideStream
from polyhead.server.engine.layers.fast import FastHead, FastHeadGroup, FastLoraHead
from polyhead.server.engine.work.live import LiveHead

QUANTIZING_BYTES = 9  # for each number of the matrix that is being made 8 bits: joined with another, spread, scaled in float32, rounded
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class HeadFile:
    """A file in private memory whose header is sound; the tensors are views of it."""

    header: TensorFile
    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)


class HeadLoader:
    """Builds heads of one model. Methods take seconds for a large head: call them from a worker thread."""

    def __init__(
        self,
        spec: ModelSpec,
        tied_embedding: nn.Parameter | None,
        dtype: torch.dtype,
        device: torch.device,
        prepare: Callable[[HeadModule], HeadModule | FastHead],
        weight_bytes: Callable[[str, tuple[int, ...]], int] | None = None,
        output_dtype: torch.dtype | None = None,
        uploads: SideStream | None = None,
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self.device = device
        self._linears = spec.head_linears
        self._trunk_names = frozenset(spec.trunk_names)
        self._tied_embedding = tied_embedding  # the trunk's own: shared, never copied, never trained
        self._prepare = prepare  # makes a module run inside the engine
        self._weight_bytes = weight_bytes or (lambda _, shape: prod(shape) * dtype.itemsize)  # of a tensor, by name, as held
        self._output_dtype = output_dtype  # of an output of its own; None: as the rest
        self._uploads = uploads or SideStream(device)

    def open(self, data: bytearray | memoryview) -> HeadFile:
        """Check the header before anything else looks at it. InvalidArgument or FailedPrecondition."""
        first = memoryview(data)
        header = tensorfile.read_header(first[: tensorfile.header_size(first, len(data))], len(data))
        return HeadFile(header, {name: _view(data, entry) for name, entry in header.tensors.items()})

    def check_served(self, reference: str, lora: LoraAdapter | None) -> None:
        """FailedPrecondition if this server serves no such head, before a byte of it is read. Every kind is served, but by several ranks
        (server/parallel)."""

    def check(self, file: HeadFile, manifest: HeadManifest) -> None:
        """Names and shapes against the model (FailedPrecondition), then every number (InvalidArgument)."""
        if manifest.lora is None:
            tensorfile.check_schema(file.header.tensors, self.spec.head_schema(manifest.output))
        else:
            shapes = {name: entry.shape for name, entry in file.header.tensors.items()}
            check_adapter(shapes, manifest.lora, self._linears, self._trunk_names)
        for name, tensor in file.tensors.items():
            if not _is_finite(tensor):
                raise InvalidArgument(f"the tensor holds NaN or infinity: {name!r}", field="data", metadata={"tensor": name})
            pause_point()

    def num_bytes(self, output: OutputKind) -> int:
        """What a head with this output takes in memory as it is served; a tied output takes nothing."""
        return sum(self._weight_bytes(name, shape) for name, shape in self.spec.head_schema(output).items())

    def num_loading_bytes(self, output: OutputKind) -> int:
        """What loading it takes beyond that for a moment: on a GPU a head is there whole in its dtype before its layers are made 8 bits.

        On the CPU a head's float32 numbers are used where they were read.
        """
        if self.device.type != "cuda":
            return 0
        shapes = self.spec.head_schema(output).values()
        whole = sum(map(prod, shapes)) * self.dtype.itemsize
        return whole + max(map(prod, shapes)) * QUANTIZING_BYTES if self.num_bytes(output) < whole else 0

    def num_adapter_bytes(self, file_bytes: int) -> int:
        """Most that an adapter's file takes in memory as it is served: its numbers may have two bytes each in the file."""
        return file_bytes * self.dtype.itemsize // min(ITEM_BYTES.values())

    @property
    def max_file_bytes(self) -> int:
        """Of the largest head file: float32, with an output of its own, and the longest header."""
        numbers = sum(prod(shape) for shape in self.spec.head_schema(OutputKind.OWN).values())
        return 4 * numbers + tensorfile.MAX_HEADER_BYTES + tensorfile.PREFIX_BYTES

    def build(self, digest: str, file: HeadFile, output: OutputKind) -> LiveHead:
        """The file's weights as a module. Tensors that have the served dtype already are used where they are."""
        with self._uploads.beside():
            module = build_head(
                self.spec, file.tensors, output, self._tied_embedding, self.dtype, self.device, self._skeleton, self._output_dtype
            )
            pause_point()
            prepared = self._prepare(module)
        self._uploads.outlive(prepared)
        return LiveHead(digest=digest, module=prepared, num_bytes=self.num_bytes(output))

    @cached_property
    def _skeleton(self) -> PreTrainedModel:
        return head_skeleton(self.spec)

    def build_adapted(self, digest: str, file: HeadFile, lora: LoraAdapter, base: LiveHead) -> LiveHead:
        """The file's adapter beside the weights of `base`, which are shared and not copied."""
        with self._uploads.beside():
            adapter = Adapter.of(file.tensors, lora, self.dtype, self.device)
        live = adapted_head(digest, base, adapter)
        self._uploads.outlive(adapter)
        return live


def adapted_head(digest: str, base: LiveHead, adapter: Adapter) -> LiveHead:
    """An adapter on a base that is in memory. The first one gives the base its group."""
    if isinstance(base.module, FastHead):
        base.group = base.group or FastHeadGroup(base.module)
        module: HeadModule | FastLoraHead = FastLoraHead(base.module, adapter)
    else:
        assert isinstance(base.module, HeadModule), "an adapter on an adapter is refused at the push"
        base.group = base.group or HeadGroup(base.module)
        module = build_lora_head(base.module, adapter)
    return LiveHead(digest=digest, module=module, num_bytes=adapter.num_bytes, base=base, adapter=adapter)


def _is_finite(tensor: Tensor) -> bool:
    """A sum is finite only if every term is, and takes a tenth of the time; one that overflows decides nothing."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def to_file(tensors: Mapping[str, Tensor]) -> bytes:
    """The canonical file of these tensors: equal weights give an equal digest."""
    return tensorfile.canonical_bytes({name: _data_of(tensor) for name, tensor in tensors.items()})


def _view(data: bytearray | memoryview, entry: tensorfile.TensorEntry) -> Tensor:
    dtype = _DTYPES[entry.dtype]
    if entry.start % dtype.itemsize:  # a header that is not padded: a copy is aligned
        return torch.frombuffer(bytearray(data[entry.start : entry.end]), dtype=dtype).view(entry.shape)
    return torch.frombuffer(data, dtype=dtype, count=prod(entry.shape), offset=entry.start).view(entry.shape)


def _data_of(tensor: Tensor) -> TensorData:
    plain = tensor.detach().to("cpu").contiguous()
    content: Any = plain.view(-1).view(torch.uint8).numpy()
    return TensorData(_NAMES[plain.dtype], tuple(plain.shape), memoryview(content))
