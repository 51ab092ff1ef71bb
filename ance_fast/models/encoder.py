"""`Encoder`: text or packed tokens in, embeddings out."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ance_fast.artifacts import MANIFEST, open_artifact, staged_artifact
from ance_fast.data.chunks import ChunkRules
from ance_fast.data.packing import PackedBatch, Packer, Shard, TokenTable
from ance_fast.data.text_rules import lower_cased, released_tokenizer, text_rules
from ance_fast.data.tokenize import TextEncoder, Tokens, text_encoder, token_dtype, tokenize
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.backbone import PackedBackbone, keep_layers, load_transformer
from ance_fast.models.heads import head_module, load_head, refuse_misfit_head
from ance_fast.models.layouts import CheckpointLayout, read_layout, resolve_checkpoint, write_layout
from ance_fast.models.placement import device_of, dtype_of, exporter
from ance_fast.models.router_layout import write_routes
from ance_fast.models.state_dicts import refuse_misfit
from ance_fast.models.unused_weights import zero_gradients
from ance_fast.ops import pool_normalize
from ance_fast.progress import progress_bar

KIND = "encoder"

# A CPU wants a working set that stays in its caches; a GPU wants full waves.
DEFAULT_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}


class Encoder(nn.Module):
    """A bi-encoder: transformer -> pooling -> optional Dense/LayerNorm modules -> optional L2 normalisation.

    One tower for queries and documents, or two: then this is the documents', and `query_encoder`, an encoder of one
    tower, takes the queries. Everything here is about documents but what names queries; whoever encodes queries by
    tokens asks `for_queries`.

    Make one with `Encoder.load`, or of two with `Encoder.pair`. Calling it on a `PackedBatch` gives embeddings float32
    [B, dim]; `encode*` take texts. Embeddings on a GPU go to CuPy without a copy:
    `cupy.from_dlpack(embeddings.detach())`, or output="cupy" below.
    """

    def __init__(
        self,
        backbone: PackedBackbone,
        head: nn.ModuleList,
        tokenizer: Any,
        layout: CheckpointLayout,
        query_encoder: Encoder | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.head = head
        self.query_encoder = query_encoder
        longest = min(layout.max_seq_length or tokenizer.model_max_length, backbone.max_positions or 10**9, 8192)
        self.layout = dataclasses.replace(
            layout,
            query=None,  # it is the other tower's own
            max_seq_length=longest,
            max_query_length=min(layout.max_query_length or longest, longest),
            max_document_length=min(layout.max_document_length or longest, longest),
        )
        self.set_chunks(layout.chunks)
        self._text_encoders: dict[int, TextEncoder] = {}
        # Set when the weights in memory are a rounded copy of the checkpoint's.
        self._checkpoint_digest: str | None = None

    @classmethod
    def load(
        cls,
        name_or_path: str,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "auto",
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        num_layers: int | None = None,
        max_query_length: int | None = None,
        max_document_length: int | None = None,
        text_preset: str | None = None,
    ) -> Encoder:
        """Load a checkpoint (folder or hub id) of Hugging Face, sentence-transformers, microsoft/ANCE, castorini, DPR
        or SEED-Encoder (`docs/checkpoints.md`; a tar or DPR's file too).

        `dtype`: "auto" is float32 on the CPU (half precision is slower there) and float16 on CUDA. `attention`:
        "packed" runs without padding, "padded" with it, "auto" packs when the model supports it. `pooling` (mean,
        cls, max, last), `normalize` and the lengths override what the checkpoint says; a plain Hugging Face folder
        says nothing and gets mean pooling without normalisation. `num_layers` keeps the first layers only.
        `text_preset` ("ance", "ance-cased", "seed", "dpr", "plain") replaces what the checkpoint says of how text
        becomes tokens by the rules of released code (`ance_fast.data.text_rules`); an encoder saves them. Of two
        towers all of this holds for both.

        Raises `ArtifactError` for missing, incomplete or foreign checkpoints, `ConfigError` for unsupported modules and
        for a length of documents other than that of the chunks they are cut into.
        """
        if pooling not in (None, "mean", "cls", "max", "last"):
            raise ConfigError(f"pooling={pooling!r}: choose mean, cls, max or last")
        dtype_of(dtype, device_of(device))  # before anything is read
        folder = resolve_checkpoint(name_or_path)
        if (folder / MANIFEST).is_file():
            open_artifact(folder)
        changes: dict[str, Any] = {
            "pooling": pooling,
            "normalize": normalize,
            "max_query_length": max_query_length,
            "max_document_length": max_document_length,
        }
        changes = {key: value for key, value in changes.items() if value is not None}
        encoder = _open_foreign(folder, text_preset)
        if encoder is not None:
            encoder = encoder._changed(changes, num_layers, folder)
        else:
            encoder = cls.read(read_layout(folder), changes, text_preset, num_layers)
        return encoder.placed(device, dtype, attention)

    @classmethod
    def read(
        cls,
        layout: CheckpointLayout,
        changes: Mapping[str, Any] | None = None,
        text_preset: str | None = None,
        num_layers: int | None = None,
    ) -> Encoder:
        """The encoder of a folder of sentence-transformers or transformers whose layout is known; as `load` makes one,
        on the CPU in float32 with padded attention, which `placed` changes. `changes`: of fields of the layout."""
        changes = changes or {}
        encoder = cls._read_tower(_with(layout, changes), text_preset, num_layers)
        if layout.query is None:
            return encoder
        return cls.pair(cls._read_tower(_with(layout.query, changes), text_preset, num_layers), encoder)

    @classmethod
    def _read_tower(cls, layout: CheckpointLayout, text_preset: str | None, num_layers: int | None) -> Encoder:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(layout.transformer)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{layout.transformer}: the tokenizer could not be loaded: {error}") from error
        if text_preset is not None and text_rules(text_preset) is not None:
            tokenizer = released_tokenizer(tokenizer, text_preset)
        elif layout.lower_case:
            tokenizer = lower_cased(tokenizer)
        model = load_transformer(layout.transformer, num_layers).eval()
        refuse_misfit_head(layout.head, int(model.config.hidden_size), layout.transformer)
        head = nn.ModuleList(head_module(spec) for spec in layout.head)
        for module, spec in zip(head, layout.head, strict=True):
            load_head(module, spec)
        backbone = PackedBackbone(model, "padded", tokenizer.pad_token_id or 0)
        return cls(backbone, head, tokenizer, layout).eval()

    def _changed(self, changes: dict[str, Any], num_layers: int | None, where: Path) -> Encoder:
        """The same towers with other settings, and only the first of their layers."""
        towers: list[Encoder] = []
        for tower in reversed(self.towers):
            if num_layers is not None:
                keep_layers(tower.backbone.model, num_layers, where)
            layout = _with(tower.layout, changes)
            towers.append(type(self)(tower.backbone, tower.head, tower.tokenizer, layout, *towers))
        return towers[-1].eval()

    def placed(self, device: str = "auto", dtype: str = "auto", attention: str = "auto") -> Encoder:
        """This encoder, whose weights must be float32, moved and rounded as `load` does it; ready to embed."""
        place = device_of(device)
        kind = dtype_of(dtype, place)
        for tower in self.towers:
            tower._checkpoint_digest = None if kind == torch.float32 else _weights_digest(tower)
            model = tower.backbone.model
            nn.Module.to(model, place, kind)
            tower.head.to(place)
            tower.backbone = tower.backbone.placed(attention)
        return self.eval()

    @classmethod
    def pair(cls, query: Encoder, document: Encoder) -> Encoder:
        """Two towers as one encoder, which shares their weights: `query` (its query tower, if it has two) for queries,
        `document` (its document tower) for the rest.

        Raises `ConfigError` where their vectors cannot be compared (another width, or only one is L2-normalised), or
        they are on different devices, or are one and the same: `two_towers` makes two of one.
        """
        query = query.for_queries
        if query.backbone is document.backbone:
            raise ConfigError("a pair of an encoder with itself would have one tower; use its two_towers()")
        if query.dim != document.dim:
            raise ConfigError(f"the query tower's vectors have {query.dim} dimensions, the documents' {document.dim}")
        if query.layout.normalize != document.layout.normalize:
            one = "query" if query.layout.normalize else "document"
            raise ConfigError(f"only the {one} tower L2-normalises its vectors; load both with the same normalize=")
        if query.device != document.device:
            raise ConfigError(f"the query tower is on {query.device}, the documents' on {document.device}")
        prompts = {name: prompt for name, prompt in document.layout.prompts.items() if name != "query"}
        if query.query_prompt:
            prompts["query"] = query.query_prompt
        default = document.layout.default_prompt_name
        common: dict[str, Any] = {
            "prompts": prompts,
            "default_prompt_name": default if default in prompts else None,
            "similarity": document.layout.similarity,
        }
        towers: list[Encoder] = []
        for tower in (query, document):
            layout = dataclasses.replace(tower.layout, **common)
            made = cls(tower.backbone, tower.head, tower.tokenizer, layout, *towers)
            made._checkpoint_digest = tower._checkpoint_digest
            towers.append(made.train(tower.training))
        return towers[-1]

    def two_towers(self) -> Encoder:
        """Two towers that begin with these weights, as DPR does with BERT's; itself where there are two already."""
        return self if self.query_encoder is not None else Encoder.pair(copy.deepcopy(self), self)

    # ---- properties ----

    @property
    def for_queries(self) -> Encoder:
        """The tower that embeds queries: itself, unless there are two."""
        return self if self.query_encoder is None else self.query_encoder

    @property
    def towers(self) -> tuple[Encoder, ...]:
        """Itself, and the query tower where there are two."""
        return (self,) if self.query_encoder is None else (self, self.query_encoder)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        dense = [spec.config["out_features"] for spec in self.layout.head if spec.kind == "Dense"]
        return int(dense[-1]) if dense else int(self.backbone.model.config.hidden_size)

    @property
    def max_query_length(self) -> int:
        return int(self.for_queries.layout.max_query_length or 0)

    @property
    def max_document_length(self) -> int:
        return int(self.layout.max_document_length or 0)

    @property
    def query_prompt(self) -> str:
        return self.layout.prompts.get("query", "")

    @property
    def document_prompt(self) -> str:
        prompts = self.layout.prompts
        return next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "")

    def set_lengths(self, max_query_length: int | None = None, max_document_length: int | None = None) -> None:
        """Change where queries and documents are cut, in tokens (`ConfigError` beyond what the model can take)."""
        for tower, name, value in (
            (self.for_queries, "max_query_length", max_query_length),
            (self, "max_document_length", max_document_length),
        ):
            if value is None:
                continue
            if not 3 <= value <= int(tower.layout.max_seq_length or 0):
                raise ConfigError(f"{name}={value}: this encoder takes 3 to {tower.layout.max_seq_length} tokens")
            tower.layout = _with(tower.layout, {name: value})

    @property
    def chunks(self) -> ChunkRules | None:
        """How token stores for this encoder cut documents into chunks (MaxP); None: they do not."""
        return self.layout.chunks

    def set_chunks(self, chunks: ChunkRules | None) -> None:
        """Change `chunks`, whose length becomes the maximum document length (`ConfigError` beyond what the model can
        take). `encode_document` does not cut: it embeds what fits one chunk."""
        if chunks is not None:
            longest = int(self.layout.max_seq_length or 0)
            if chunks.length > longest:
                raise ConfigError(f"chunks of {chunks.length} tokens: this encoder takes {longest}")
            self.layout = dataclasses.replace(self.layout, max_document_length=chunks.length)
        self.layout = dataclasses.replace(self.layout, chunks=chunks)

    def info(self) -> dict[str, str]:
        """How this encoder runs: architecture, device, dtype, packed or padded attention and the stack that embeds
        texts, each with the reason why; of a query tower the same, as "query_architecture" and so on."""
        stack, stack_reason = self.backbone.stack_choice()
        query = {} if self.query_encoder is None else self.query_encoder.info()
        return {
            "architecture": type(self.backbone.model).__name__,
            "device": str(self.device),
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "attention": self.backbone.mode,
            "attention_reason": self.backbone.reason,
            "stack": stack,
            "stack_reason": stack_reason,
            "pooling": self.layout.pooling + ("+l2" if self.layout.normalize else ""),
            **{f"query_{name}": value for name, value in query.items()},
        }

    def fingerprint(self) -> str:
        """BLAKE2b over weights, pooling, head and prompts of all towers: equal exactly when embeddings are comparable.

        Lengths and the dtype in memory do not count: an encoder loaded in half precision has the fingerprint of its
        checkpoint.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update((self._checkpoint_digest or _weights_digest(self)).encode())
        layout = self.layout
        settings = (layout.pooling, layout.normalize, layout.prompts)
        digest.update(repr((settings, [spec.config for spec in layout.head])).encode())
        if self.query_encoder is not None:
            digest.update(self.query_encoder.fingerprint().encode())
        return digest.hexdigest()

    # ---- embedding ----

    def forward(self, batch: PackedBatch, *, reach_all: bool = False) -> Tensor:
        """Embeddings float32 [B, dim] of the batch's sequences, in packed order; by the query tower for a batch that is
        `for_queries`.

        reach_all: the other tower's weights get a gradient of zero, so that a backward pass leaves out none of all.
        DistributedDataParallel exchanges gradients when every weight has its own.
        """
        tower = self.for_queries if batch.for_queries else self
        embeddings = tower.pool(tower.hidden(batch), batch)
        if reach_all and self.query_encoder is not None and torch.is_grad_enabled():
            used = {id(weight) for weight in tower._own_parameters()}
            others = [weight for weight in self.parameters() if weight.requires_grad and id(weight) not in used]
            return zero_gradients(embeddings, others)
        return embeddings

    def hidden(self, batch: PackedBatch) -> Tensor:
        """What `pool` makes embeddings of: hidden states [T, hidden], or [B, hidden] where only first tokens are
        needed and the backbone can leave out the others. Valid until the next call within `backbone.inference()`."""
        return self.backbone(batch, cls_only=self._only_first_tokens())

    def pool(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Embeddings float32 [B, dim] from `hidden` of the same batch, both within or both outside
        `backbone.inference()`."""
        cu_seqlens = batch.cu_seqlens
        if self._only_first_tokens():
            cu_seqlens = torch.arange(len(batch) + 1, dtype=torch.int32, device=hidden.device)
        last = "l2" if self.layout.normalize and not len(self.head) else "none"
        pooled = pool_normalize(
            hidden,
            cu_seqlens,
            mode=self.layout.pooling,
            norm=last,
            out_dtype=torch.float32,
        )
        for module in self.head:
            pooled = module(pooled)
        return F.normalize(pooled, dim=-1) if self.layout.normalize and len(self.head) else pooled

    def encode_tokens(
        self,
        table: TokenTable | Sequence[Shard],
        rows: np.ndarray | None = None,
        *,
        batch_tokens: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Embed rows of a token table (all by default): float32 [n, dim] on the encoder's device, in the order asked
        for.

        `batch_tokens` is the token budget of one forward pass; `on_progress` is called with the sequences done since
        its last call.
        """
        packer = Packer(table)
        count = len(packer) if rows is None else len(rows)
        out = torch.zeros(count, self.dim, device=self.device)
        padding = _padding_length(table)
        budget = batch_tokens or DEFAULT_BATCH_TOKENS.get(self.device.type, 4096)
        training = self.training
        self.eval()
        try:
            with self.backbone.inference():
                for batch in packer.batches(rows, token_budget=budget):
                    out[torch.as_tensor(batch.rows, device=self.device)] = self(batch.to(self.device))
                    if on_progress is not None:
                        on_progress(len(batch))
                if padding:
                    out[torch.as_tensor(packer.lengths(rows) == 0, device=self.device)] = self.padding_vector(padding)
        finally:
            self.train(training)
        return out

    def padding_vector(self, length: int) -> Tensor:
        """The embedding float32 [dim] of `length` padding tokens that see each other: what stands for a chunk past its
        document's end where such chunks are kept. transformers 2.3.0 gives it for a row whose mask is 0 throughout.
        """
        batch = PackedBatch(
            input_ids=torch.full((length,), self.backbone.pad_token_id),
            position_ids=torch.arange(length),
            cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
            max_seqlen=length,
            rows=np.zeros(1, dtype=np.int64),
        )
        with self.backbone.inference():
            # Within inference the result may lie in a buffer that the next call writes over.
            return self(batch.to(self.device))[0].clone()

    def encode(
        self,
        inputs: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        output: str = "numpy",
        show_progress_bar: bool = False,
    ) -> Any:
        """Embed texts: a string gives [dim], a list [n, dim], float32.

        `prompt` (or the checkpoint's prompt called `prompt_name`, or its default) is put before every text. Texts are
        cut at `max_length` tokens (the checkpoint's by default). `normalize_embeddings=True` L2-normalises on top of
        what the checkpoint does. `truncate_dim` keeps the first dimensions (Matryoshka), before normalising.
        `output`: "numpy", "torch" (a tensor on the encoder's device, in order on torch's current stream) or "cupy" (the
        memory of that tensor, which must be on a GPU; CuPy's current stream waits for torch's). A CuPy array that dies
        gives its memory back to torch: keep it until CuPy's work on it is done.

        Raises `ConfigError` for an unknown prompt name or output, `TypeError` for inputs that are not text.
        """
        export = exporter(output, self.device)
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"inputs[{position}] is {type(text).__name__}, expected str")
        prefix = self._prompt(prompt, prompt_name)
        tokens = self._tokenize([prefix + text for text in texts], max_length or int(self.layout.max_seq_length or 0))
        with _progress(show_progress_bar, len(texts)) as on_progress:
            embeddings = self.encode_tokens(
                [(tokens.values, tokens.offsets)], batch_tokens=batch_tokens, on_progress=on_progress
            )
        if truncate_dim is not None:
            embeddings = embeddings[:, :truncate_dim]
        if normalize_embeddings:
            embeddings = F.normalize(embeddings, dim=-1)
        return export(embeddings[0] if isinstance(inputs, str) else embeddings)

    def encode_query(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """`encode` with the checkpoint's query prompt and maximum query length, by the query tower if there is one."""
        prompt = {} if "prompt_name" in options else {"prompt": self.query_prompt}
        return self.for_queries.encode(inputs, **{**prompt, "max_length": self.max_query_length, **options})

    def encode_document(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """`encode` with the checkpoint's document prompt and maximum document length."""
        prompt = {} if "prompt_name" in options else {"prompt": self.document_prompt}
        return self.encode(inputs, **{**prompt, "max_length": self.max_document_length, **options})

    # ---- saving ----

    def save(self, path: str | Path) -> None:
        """Write a sentence-transformers folder that `Encoder.load` and `SentenceTransformer` open; whole or not at all.

        Raises `ArtifactError` where it cannot be written, or would take the place of the two towers of which this was
        read as one.
        """
        source = Path(self.layout.transformer).resolve()
        if self.query_encoder is None and Path(path).resolve() in source.parents and (Path(path) / MANIFEST).is_file():
            raise ArtifactError(f"{path}: holds {source.name}, which this encoder was read from; use another path")
        manifest = {"fingerprint": self.fingerprint()}
        try:
            with staged_artifact(path, KIND, manifest) as folder:
                self.write(folder)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: the encoder was not saved ({error}); is the disk full?") from error

    def write(self, folder: Path) -> None:
        """Write the files of `save` into an existing folder, without its guarantees."""
        if self.query_encoder is None:
            self._write_tower(folder)
            return
        for tower, route in ((self, "document"), (self.query_encoder, "query")):
            (folder / route).mkdir(exist_ok=True)
            tower._write_tower(folder / route)
        write_routes(folder)

    def _write_tower(self, folder: Path) -> None:
        self.backbone.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        hidden_size = int(self.backbone.model.config.hidden_size)
        head_folders = write_layout(folder, self.layout, hidden_size, self.dim)
        for module, path in zip(self.head, head_folders, strict=True):
            save_file(
                {key: value.contiguous() for key, value in module.state_dict().items()}, path / "model.safetensors"
            )

    def load_weights(self, path: str | Path) -> None:
        """Replace the weights by those of a checkpoint folder of the same architecture (`ArtifactError` otherwise)."""
        other = Encoder.load(str(path), device="cpu", dtype=str(self.backbone.dtype).removeprefix("torch."))
        theirs, ours = other.state_dict(), self.state_dict()
        try:
            refuse_misfit(theirs, {name: tensor.shape for name, tensor in ours.items()}, path)
        except ArtifactError as error:
            raise ArtifactError(f"{error}: another architecture than this encoder") from None
        self.load_state_dict(theirs)

    # ---- private ----

    def _own_parameters(self) -> Iterator[nn.Parameter]:
        """Of this tower alone."""
        return itertools.chain(self.backbone.parameters(), self.head.parameters())

    def _only_first_tokens(self) -> bool:
        return self.layout.pooling == "cls" and self.backbone.fused

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None:
            return prompt
        name = name if name is not None else self.layout.default_prompt_name
        if name is None:
            return ""
        if name not in self.layout.prompts:
            raise ConfigError(f"prompt_name={name!r}: the checkpoint's prompts are {sorted(self.layout.prompts)}")
        return self.layout.prompts[name]

    def _tokenize(self, texts: list[str], max_length: int) -> Tokens:
        if max_length not in self._text_encoders:
            self._text_encoders[max_length] = text_encoder(self.tokenizer, max_length)
        return tokenize(texts, self._text_encoders[max_length], token_dtype(self.tokenizer))


def _with(layout: CheckpointLayout, changes: Mapping[str, Any]) -> CheckpointLayout:
    length, chunks = changes.get("max_document_length"), layout.chunks
    if length is not None and chunks is not None and length != chunks.length:
        raise ConfigError(f"max_document_length={length}: documents are cut into chunks of {chunks.length} tokens")
    return dataclasses.replace(layout, **changes)


def _padding_length(table: TokenTable | Sequence[Shard]) -> int:
    """Tokens of padding that rows without tokens stand for; 0 where they stand for nothing."""
    chunks: ChunkRules | None = getattr(table, "chunks", None)
    return chunks.length if chunks is not None and chunks.keep_empty else 0


def _weights_digest(module: nn.Module) -> str:
    """BLAKE2b over named tensors of one tower. The pooler does not count: nothing here uses it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        name = name.removeprefix("backbone.")
        if not name.startswith(("model.pooler.", "query_encoder.")):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _open_foreign(path: Path, text_preset: str | None) -> Encoder | None:
    """The encoder of another program's checkpoint, None for a folder of sentence-transformers or transformers."""
    if (path / "modules.json").is_file():
        return None
    from ance_fast.models.checkpoint_formats import open_foreign
    from ance_fast.models.foreign import ReadOptions

    return open_foreign(path, ReadOptions(text_preset=text_preset))


@contextmanager
def _progress(show: bool, total: int) -> Iterator[Callable[[int], None] | None]:
    if not show:
        yield None
        return
    with progress_bar("encoding", total, "passages") as advance:
        yield advance
