"""The transformer under an encoder: loading it, and running it on packed tokens.

`PackedBackbone` runs the model without padding where the model accepts a pluggable attention function and a probe shows
that packed and padded outputs agree; otherwise it pads, and says why.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from ance_fast.data.packing import PackedBatch
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.bert_packed import BertStack, bert_stack, why_no_stack
from ance_fast.models.cuda_graphs import GraphedStack
from ance_fast.models.packed_attention import IMPLEMENTATION, PackedLayout

logger = logging.getLogger(__name__)


def load_transformer(folder: Path, num_layers: int | None) -> PreTrainedModel:
    """Load `folder` in float32; `num_layers` keeps only the first layers.

    Raises `ArtifactError` for weights that lack tensors or hold some of another shape (named); tensors that the
    architecture has no place for are counted in a warning.
    """
    from transformers import AutoConfig, AutoModel

    # Shapes that differ come in the report, by name.
    overrides: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        if num_layers is not None:
            available = AutoConfig.from_pretrained(folder).num_hidden_layers
            if not 1 <= num_layers <= available:
                raise ConfigError(f"num_layers={num_layers}: {folder} has {available} layers")
            overrides["num_hidden_layers"] = num_layers
        model, report = AutoModel.from_pretrained(folder, attn_implementation="sdpa", **overrides)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{folder}: its weights are a pickle of more than tensors, which is not read; get its model.safetensors, "
            "or save the tensors alone"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        if "attn_implementation" in str(error) or "scaled_dot_product" in str(error):
            model, report = AutoModel.from_pretrained(folder, **overrides)
        else:
            raise ArtifactError(f"{folder}: the transformer could not be loaded: {error}") from error
    _refuse_misfit(report, folder, type(model).__name__)
    extra = sorted(key for key in report["unexpected_keys"] if not key.startswith(_HEADS) and "position_ids" not in key)
    if extra and num_layers is None:
        logger.warning(
            "%s: %d tensors of the weights have no place in a %s and are left out, such as %s",
            *(folder, len(extra), type(model).__name__, ", ".join(extra[:3])),
        )
    if any(key.startswith("pooler.") for key in report["missing_keys"]):
        model.pooler = None  # it would be random
    if getattr(model, "pooler", None) is not None:
        # No pooling here uses it: frozen, it costs no optimizer state and leaves no gradient-less parameter for DDP.
        model.pooler.requires_grad_(False)
    freeze_unused(model)
    return model


def freeze_unused(model: PreTrainedModel) -> None:
    """Keep a token-type vector as it is that stands in for nothing: the architecture that the weights come from has no
    token types."""
    if getattr(model.config, "frozen_token_types", False):
        embeddings: Any = model.embeddings
        embeddings.token_type_embeddings.requires_grad_(False)


# What stands on top of an encoder in checkpoints of other tasks.
_HEADS = ("cls.", "lm_head.", "classifier.", "qa_outputs.", "vocab_", "predictions.", "discriminator_", "mlm_head.")


def _refuse_misfit(report: dict[str, Any], folder: Path, architecture: str) -> None:
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ArtifactError(
            f"{folder}: the weights lack {len(missing)} tensors of {architecture}, such as {', '.join(missing[:3])}; "
            "the checkpoint belongs to another architecture or is incomplete"
        )
    shapes = [
        f"{name} is {list(found)}, expected {list(expected)}"
        for name, found, expected in report["mismatched_keys"]
        if not name.startswith("pooler.")
    ]
    if shapes:
        raise ArtifactError(
            f"{folder}: {len(shapes)} tensors of the weights have other shapes than config.json says, such as "
            f"{'; '.join(sorted(shapes)[:3])}"
        )


def keep_layers(model: PreTrainedModel, num_layers: int, where: Path) -> None:
    """Leave only the first layers of a RoBERTa-shaped model (`ConfigError` if it has fewer)."""
    encoder: Any = model.encoder
    if not 1 <= num_layers <= len(encoder.layer):
        raise ConfigError(f"num_layers={num_layers}: {where} has {len(encoder.layer)} layers")
    encoder.layer = encoder.layer[:num_layers]
    model.config.num_hidden_layers = num_layers


class PackedBackbone(nn.Module):
    """A transformers encoder that maps a `PackedBatch` of T tokens to hidden states [T, hidden].

    `attention`: "packed", "padded" or "auto" (packed when the model supports it and the probe agrees). `mode` and
    `reason` say what was chosen and why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention: str = "auto",
        pad_token_id: int = 0,
        padded_implementation: str | None = None,
    ) -> None:
        super().__init__()
        if attention not in ("auto", "packed", "padded"):
            raise ConfigError(f"attention={attention!r}: choose auto, packed or padded")
        self.model = model
        self.pad_token_id = pad_token_id
        self.position_offset = _position_offset(model)
        # That of a model which has run packed is ours.
        self._padded_implementation = padded_implementation or model.config._attn_implementation
        # The stack is kept with its graphs and workspaces; it runs only within `inference`.
        self._stack: BertStack | GraphedStack | None = None
        self._fused = False
        # A session of another runtime has; torch's are those of whoever calls.
        self.has_own_threads = False
        self.mode, self.reason = "padded", "asked for"
        if attention != "padded":
            self.mode, self.reason = self._choose()
            if attention == "packed" and self.mode != "packed":
                raise ConfigError(f"attention='packed' is not possible: {self.reason}")
        self._use(self.mode)

    def placed(self, attention: str) -> PackedBackbone:
        """The same model after it was moved or rounded, with attention chosen anew."""
        return PackedBackbone(self.model, attention, self.pad_token_id, self._padded_implementation)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the position table allows, or None when positions are not a table."""
        table = getattr(self.model.config, "max_position_embeddings", None)
        return None if table is None else int(table) - self.position_offset

    def set_dropout(self, probability: float) -> None:
        """Set every dropout of the model, those that attention layers keep as plain numbers included."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability
            for name in ("dropout_prob", "attention_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, probability)

    @property
    def fused(self) -> bool:
        """Whether the fused stack runs now, and `forward` takes cls_only: within `inference`, where there is one."""
        return self._fused

    def stack_choice(self) -> tuple[str, str]:
        """What runs within `inference`, "fused" or "transformers", and why."""
        problem = f"attention is padded ({self.reason})" if self.mode != "packed" else why_no_stack(self.model)
        if problem is not None:
            return "transformers", problem
        if isinstance(self._stack, GraphedStack):
            return "fused", self._stack.reason
        return "fused", f"BERT-shaped, {str(self.dtype).removeprefix('torch.')} on {self.device.type}"

    def forward(self, batch: PackedBatch, *, cls_only: bool = False) -> Tensor:
        """Hidden states [T, hidden] of the batch's tokens, in packed order.

        cls_only, where `fused`: [B, hidden] of first tokens alone, zeros for empty sequences.
        """
        if cls_only and not self.fused:
            raise ConfigError("cls_only needs the fused stack, which runs within inference(): see stack_choice()")
        if len(batch.input_ids) == 0:
            rows = len(batch) if cls_only else 0
            return torch.zeros(rows, self.model.config.hidden_size, device=self.device, dtype=self.dtype)
        if self._fused and self._stack is not None:
            positions = self._positions(batch)
            return self._stack(batch.input_ids, positions, batch.cu_seqlens, batch.max_seqlen, cls_only=cls_only)
        return self._packed(batch) if self.mode == "packed" else self._padded(batch)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Within it the fused inference stack runs where there is one: no gradients, and weights that stay put."""
        outer, training = self._fused, self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                self._fused = self._prepare_stack()
                yield
        finally:
            self._fused = outer
            self.model.train(training)

    def _prepare_stack(self) -> bool:
        """Make the stack, or bring it up to date with the weights; False where there is none."""
        stack = self._stack.stack if isinstance(self._stack, GraphedStack) else self._stack
        if stack is not None and self.mode == "packed" and stack.is_current(self.model):
            stack.refresh()
            return True
        self._stack = stack = bert_stack(self.model) if self.mode == "packed" else None
        if stack is not None and self.device.type == "cuda":
            self._stack = GraphedStack(stack)
        return stack is not None

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes a stack of its own: this one reads our weights, and its graphs cannot be copied."""
        return self.__dict__ | {"_stack": None, "_fused": False}

    def _positions(self, batch: PackedBatch) -> Tensor:
        return batch.position_ids + self.position_offset if self.position_offset else batch.position_ids

    def _packed(self, batch: PackedBatch) -> Tensor:
        output = self.model(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=self._positions(batch).unsqueeze(0),
            packed_layout=PackedLayout.from_lengths(batch.lengths, batch.cu_seqlens),
        )
        return output.last_hidden_state[0]

    def _padded(self, batch: PackedBatch) -> Tensor:
        columns = torch.arange(batch.max_seqlen, device=self.device)
        mask = columns < torch.diff(batch.cu_seqlens).unsqueeze(1)
        ids = torch.full(mask.shape, self.pad_token_id, device=self.device, dtype=torch.long)
        ids[mask] = batch.input_ids
        given = {}
        if self.position_offset:
            # RoBERTa and its kin would count tokens that look like padding as none.
            positions = torch.full(mask.shape, self.position_offset - 1, device=self.device, dtype=torch.long)
            positions[mask] = self._positions(batch)
            given["position_ids"] = positions
        return self.model(input_ids=ids, attention_mask=mask.long(), **given).last_hidden_state[mask]

    def _use(self, mode: str) -> None:
        self.model.set_attn_implementation(IMPLEMENTATION if mode == "packed" else self._padded_implementation)

    def _choose(self) -> tuple[str, str]:
        if not getattr(self.model, "_supports_attention_backend", False):
            return "padded", f"{type(self.model).__name__} does not support pluggable attention functions"
        if self.device.type == "cuda" and self.dtype == torch.float32:
            return "padded", "variable-length attention on CUDA needs fp16 or bf16"
        try:
            difference = self._probe()
        except (TypeError, ValueError, RuntimeError, ImportError, KeyError) as error:
            return "padded", f"the packed probe failed: {error}"
        tolerance = 1e-4 if self.dtype == torch.float32 else 5e-2
        if not difference <= tolerance:
            return "padded", f"packed and padded outputs differ by {difference:.1e}"
        return "packed", f"packed equals padded to {difference:.0e}"

    @torch.no_grad()
    def _probe(self) -> float:
        """Largest relative difference between packed and padded hidden states on three short sequences."""
        lengths = np.array([3, 3, 7])
        vocabulary = min(self.model.config.vocab_size, 1000)
        ids = torch.arange(int(lengths.sum()), device=self.device) * 37 % (vocabulary - 8) + 8
        batch = PackedBatch(
            input_ids=ids,
            position_ids=torch.cat([torch.arange(n) for n in lengths]).to(self.device),
            cu_seqlens=torch.tensor([0, 3, 6, 13], dtype=torch.int32, device=self.device),
            max_seqlen=7,
            rows=np.arange(3),
        )
        training = self.model.training
        self.model.eval()
        try:
            self._use("padded")
            padded = self._padded(batch).float()
            self._use("packed")
            packed = self._packed(batch).float()
        finally:
            self.model.train(training)
        return ((packed - padded).abs().max() / padded.abs().max().clamp_min(1e-6)).item()


def _position_offset(model: PreTrainedModel) -> int:
    """RoBERTa and its kin number positions from padding_idx + 1."""
    embeddings = getattr(model, "embeddings", None)
    if embeddings is not None and hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1
    return 0
