"""An encoder with 8-bit weights on the CPU, through ONNX Runtime: an opt-in that is measured before it is handed over.

Weights are rounded per output channel, activations per batch as they come (dynamic quantisation), so an embedding
depends a little on its neighbours in the batch. CPUs without VNNI add products of 8-bit numbers in saturating 16-bit
sums: there weights get 7 bits, which keeps the sums in range. How much of the ranking survives depends on the corpus:
`quantize` measures it on a sample and refuses below a threshold.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ance_fast.data.packing import PackedBatch
from ance_fast.errors import ConfigError, MissingDependencyError
from ance_fast.models.backbone import PackedBackbone
from ance_fast.models.encoder import Encoder

logger = logging.getLogger(__name__)


class Int8Encoder(Encoder):
    """What `quantize` makes: an `Encoder` for the CPU with a fingerprint of its own. It is not saved, nor trained."""

    def train(self, mode: bool = True) -> Int8Encoder:
        if mode:
            raise ConfigError("an int8 encoder cannot be trained: train the float32 encoder, then quantise it again")
        return super().train(False)

    def write(self, folder: Path) -> None:
        raise ConfigError(
            f"{folder}: an int8 encoder cannot be saved: save the float32 encoder and quantise after loading"
        )


def quantize(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    threshold: float = 0.88,
    sample: int = 400,
    reduce_range: bool | None = None,
) -> Int8Encoder:
    """An int8 copy of a float32 encoder on the CPU, checked on a sample of `texts`, which stand for the corpus.

    The measured `int8_overlap` is logged; below `threshold` the copy is refused with `ConfigError`. reduce_range: 7-bit
    weights; by default where the CPU has no VNNI. Runs with torch's number of threads at the time of the call. Raises
    `MissingDependencyError` without onnx and onnxruntime, `ConfigError` for an encoder that is not float32 on the CPU,
    a threshold outside 0 to 1, or a model whose ONNX graph does not compute what the model does. Two towers both become
    int8, each checked by itself.
    """
    if encoder.device.type != "cpu" or encoder.backbone.dtype != torch.float32:
        raise ConfigError(
            f"int8 is made from a float32 encoder on the CPU; this one is {encoder.backbone.dtype} on {encoder.device}"
        )
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; a share of neighbours lies between 0 and 1")
    narrow = not _has_vnni() if reduce_range is None else reduce_range
    backbone = Int8Backbone(encoder.backbone, narrow)
    int8 = Int8Encoder(backbone, copy.deepcopy(encoder.head), encoder.tokenizer, encoder.layout)  # type: ignore[arg-type]
    # Embeddings of the two must not be mixed, nor those of 7-bit and 8-bit weights.
    kind = f"int8 per channel, {'7' if narrow else '8'}-bit weights, of {encoder.fingerprint()}"
    int8._checkpoint_digest = hashlib.blake2b(kind.encode(), digest_size=16).hexdigest()
    if encoder.query_encoder is not None:
        int8.query_encoder = quantize(
            encoder.query_encoder, texts, threshold=threshold, sample=sample, reduce_range=reduce_range
        )
    overlap = int8_overlap(encoder, int8.eval(), texts, sample=sample)
    logger.info("int8: top-10 overlap with float32 on a sample of the corpus is %.3f", overlap)
    if overlap < threshold:
        raise ConfigError(
            f"int8 keeps {overlap:.3f} of the float32 encoder's top 10 on this corpus, below the threshold {threshold}"
            ": stay with float32, or lower the threshold if speed matters more"
        )
    return int8


def int8_overlap(fp32: Encoder, int8: Encoder, texts: Sequence[str], *, sample: int = 400, k: int = 10) -> float:
    """Mean share of the k nearest neighbours that both encoders agree on, over evenly spaced texts among themselves.

    Each of `sample` texts (all, if there are fewer) is a query against the others, by inner product. Raises
    `ConfigError` for fewer than k + 2 texts, where any two rankings would agree.
    """
    if min(sample, len(texts)) < k + 2:
        raise ConfigError(f"a top-{k} overlap needs at least {k + 2} texts, got {min(sample, len(texts))}")
    rows = np.unique(np.linspace(0, len(texts) - 1, min(sample, len(texts))).astype(int))
    chosen = [texts[row] for row in rows]
    theirs, ours = (_neighbours(torch.as_tensor(e.encode_document(chosen)), k) for e in (fp32, int8))
    return (theirs.unsqueeze(2) == ours.unsqueeze(1)).any(dim=2).float().mean().item()


class Int8Backbone(nn.Module):
    """A transformer as an int8 ONNX Runtime session: `PackedBatch` of T tokens -> hidden states [T, hidden], float32.

    Batches are padded to their longest sequence: the packer has sorted them by length.
    """

    def __init__(self, backbone: PackedBackbone, reduce_range: bool) -> None:
        super().__init__()
        self.model = backbone.model
        self.max_positions = backbone.max_positions
        self.pad_token_id = backbone.pad_token_id
        self.mode, self.reason = "padded", "int8 runs in ONNX Runtime"
        self.fused = False
        self.has_own_threads = True
        self.session = _session(backbone, reduce_range)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8

    def stack_choice(self) -> tuple[str, str]:
        return "onnxruntime", "int8, asked for"

    @contextmanager
    def inference(self) -> Iterator[None]:
        with torch.no_grad():
            yield

    def forward(self, batch: PackedBatch, *, cls_only: bool = False) -> Tensor:
        if cls_only:
            raise ConfigError("cls_only needs the fused stack, which an int8 encoder does not have")
        if len(batch.input_ids) == 0:
            return torch.zeros(0, self.model.config.hidden_size)
        ids, mask = _padded(batch, self.pad_token_id)
        return torch.from_numpy(_run(self.session, ids, mask))[mask]


def _neighbours(embeddings: Tensor, k: int) -> Tensor:
    scores = (embeddings @ embeddings.t()).fill_diagonal_(-torch.inf)
    return scores.topk(k, dim=1).indices


def _has_vnni() -> bool:
    from ance_fast import _C

    return "avx512vnni" in str(_C.build_info()["cpu_features"])


def _padded(batch: PackedBatch, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids int64 and mask bool, both [B, longest]."""
    mask = torch.arange(batch.max_seqlen) < torch.diff(batch.cu_seqlens).unsqueeze(1)
    ids = torch.full(mask.shape, pad_token_id)
    ids[mask] = batch.input_ids
    return ids, mask


def _run(session: Any, ids: Tensor, mask: Tensor) -> np.ndarray:
    inputs = {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()}
    return session.run(None, inputs)[0]


class _HiddenStates(nn.Module):
    """What is exported: the model with its last hidden state as its only output."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _session(backbone: PackedBackbone, reduce_range: bool) -> Any:
    """Export, check, quantise and open; the files are temporary."""
    onnxruntime = onnx_runtime()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        export_onnx(backbone, plain)
        model = onnx.load(plain)
        # The mark of ONNX Runtime's preprocessing, which changes nothing here but silences advice to run it.
        model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
        quantize_dynamic(model, small, per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8)
        return open_onnx(onnxruntime, small)


def onnx_runtime() -> Any:
    """The onnxruntime module, with onnx beside it."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"int8 needs ONNX Runtime ({error}): pip install 'ance_fast[onnx]'") from error
    return onnxruntime


def open_onnx(onnxruntime: Any, path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def export_onnx(backbone: PackedBackbone, path: Path) -> None:
    """Write the model as ONNX: input_ids and attention_mask int64 [B, L] -> last hidden state [B, L, hidden].

    Raises `ConfigError` when the graph does not give the model's own hidden states on a padded batch of another shape.
    """
    model = copy.deepcopy(backbone.model)
    model.set_attn_implementation("eager")
    model.config.return_dict = True
    wrapped = _HiddenStates(model).eval()
    ids, mask = _example(backbone, lengths=(7, 5))
    names = ("input_ids", "attention_mask")
    axes = {name: {0: "batch", 1: "length"} for name in (*names, "hidden")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing and of the exporter's age; the result is checked below
        torch.onnx.export(
            wrapped,
            (ids, mask),
            str(path),
            input_names=list(names),
            output_names=["hidden"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
        ids, mask = _example(backbone, lengths=(11, 3, 8))
        expected = wrapped(ids, mask)
    found = torch.from_numpy(_run(open_onnx(onnx_runtime(), path), ids, mask))
    difference = (found - expected)[mask.bool()].abs().max().item()
    if not difference <= 1e-3 * max(1.0, expected.abs().max().item()):
        raise ConfigError(
            f"the ONNX graph of {type(backbone.model).__name__} differs from the model by {difference:.1e}: "
            "this architecture cannot be quantised"
        )


def _example(backbone: PackedBackbone, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Ids and mask int64 [B, longest] of made-up sequences."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.arange(mask.numel()).view(mask.shape) * 37 % (min(backbone.model.config.vocab_size, 1000) - 8) + 8
    return ids.masked_fill(~mask, backbone.pad_token_id), mask.long()
