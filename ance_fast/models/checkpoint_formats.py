"""Forms of checkpoints by name: what `Encoder.load` opens as it is, and what `ance-fast convert` reads and writes.

A new one is a function that recognises it, one that reads it, one that writes it, and one entry below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ance_fast.artifacts import MANIFEST, open_artifact
from ance_fast.errors import ArtifactError, ConfigError
from ance_fast.models.ance_checkpoints import is_ance, is_castorini, read_ance, write_ance, write_castorini
from ance_fast.models.ance_head import fresh_head
from ance_fast.models.dpr_checkpoints import (
    is_dpr_file,
    is_seed_nq_file,
    read_dpr_file,
    read_seed_nq_file,
    write_dpr_file,
    write_seed_nq_file,
)
from ance_fast.models.dpr_folders import is_dpr_folder, read_dpr_folder, write_dpr_folder
from ance_fast.models.encoder import Encoder
from ance_fast.models.foreign import ReadOptions
from ance_fast.models.layouts import CheckpointLayout, noted_chunks, read_layout
from ance_fast.models.seed_checkpoints import (
    is_fairseq,
    is_finetuned,
    read_fairseq,
    read_finetuned,
    write_fairseq,
    write_finetuned,
)
from ance_fast.models.seed_folders import is_seed_folder, is_tar_name, read_seed_folder, why_no_tar, write_seed_folder
from ance_fast.models.weight_files import read_state


@dataclass(frozen=True)
class Format:
    """A form of checkpoint.

    what: for people. detect(path, trust): whether `path` holds one, by its configuration and the names of its tensors.
    read(path, options): the encoder, on the CPU in float32 with padded attention. write(encoder, path): None where it
    is only read. opens: `Encoder.load` takes it; the others carry no tokenizer, or need a choice. takes: what it is, a
    "folder", a "file", or "tar": a folder, or a file that is a tar of one. heads, trust: it has use for that option.
    """

    what: str
    detect: Callable[[Path, bool], bool]
    read: Callable[[Path, ReadOptions], Encoder]
    write: Callable[[Encoder, Path], None] | None
    opens: bool = True
    takes: str = "folder"
    heads: bool = False
    trust: bool = True


def _is_own(path: Path, trust: bool = False) -> bool:
    return (path / "modules.json").is_file()


def _is_plain(path: Path, trust: bool = False) -> bool:
    return (path / "config.json").is_file()


def _read_own(path: Path, options: ReadOptions) -> Encoder:
    if not _is_own(path):
        raise ArtifactError(f"{path}: no modules.json, so this is not a folder of sentence-transformers")
    return _read(path, read_layout(path), options)


def _read_plain(path: Path, options: ReadOptions) -> Encoder:
    return _read(path, CheckpointLayout(transformer=path, chunks=noted_chunks(path)), options)


def _read(path: Path, layout: CheckpointLayout, options: ReadOptions) -> Encoder:
    if options.tokenizer is not None:
        raise ConfigError(f"{path}: says its tokenizer itself; leave out --tokenizer")
    if (path / MANIFEST).is_file():
        open_artifact(path)
    return Encoder.read(layout, text_preset=options.text_preset)


# In the order in which they are tried: every folder of weights would pass for the last.
FORMATS: dict[str, Format] = {
    "sentence-transformers": Format(
        "folder of sentence-transformers, which this package saves",
        *(_is_own, _read_own, lambda e, path: e.save(path)),
        trust=False,
    ),
    "dpr-cp": Format(
        "file of DPR, two BERT towers", is_dpr_file, read_dpr_file, write_dpr_file, takes="file", heads=True
    ),
    "dpr-hf": Format("folder of transformers' DPR", is_dpr_folder, read_dpr_folder, write_dpr_folder),
    "seed-nq": Format(
        "file of SEED-Encoder for Natural Questions, two towers",
        *(is_seed_nq_file, read_seed_nq_file, write_seed_nq_file),
        takes="file",
        heads=True,
    ),
    "castorini": Format("folder of castorini's ANCE ports", is_castorini, read_ance, write_castorini),
    "ance": Format("folder of microsoft/ANCE, rdot_nll", is_ance, read_ance, write_ance),
    "seed-hf": Format(
        "folder or .tar of SEED-Encoder",
        *(is_seed_folder, read_seed_folder, write_seed_folder),
        takes="tar",
        heads=True,
    ),
    "seed-fairseq": Format(
        "pre-trained SEED-Encoder .pt", is_fairseq, read_fairseq, write_fairseq, opens=False, takes="file", heads=True
    ),
    "seed-finetuned": Format(
        "fine-tuned SEED-Encoder .pt",
        *(is_finetuned, read_finetuned, write_finetuned),
        opens=False,
        takes="file",
        heads=True,
    ),
    "huggingface": Format("folder of transformers without a head", _is_plain, _read_plain, None, trust=False),
}


def find_format(path: Path, trust: bool = False) -> str:
    """The name of the format of the checkpoint `path`.

    Raises `ArtifactError` for what none of them reads, and for files that cannot be read (without `trust`).
    """
    for name, form in FORMATS.items():
        if form.detect(path, trust):
            return name
    if path.is_file():
        problem = why_no_tar(path)
        if problem is not None:
            raise ArtifactError(f"{path}: {problem}")
        content = read_state(path, trust=trust, mapped=True)
        names = ", ".join(map(str, list(content)[:3])) if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(f"{path}: no known form of checkpoint (it holds {names}); known are {', '.join(FORMATS)}")
    raise ArtifactError(f"{path}: no known form of checkpoint; known are {', '.join(FORMATS)}")


def refuse_unknown_format(*names: str | None) -> None:
    """Raise `ConfigError` for a name that is no format's. None: not given."""
    for name in names:
        if name is not None and name not in FORMATS:
            raise ConfigError(f"{name!r}: no known form of checkpoint; known are {', '.join(FORMATS)}")


def read_checkpoint(path: Path, form: str | None, options: ReadOptions) -> Encoder:
    """The encoder of a checkpoint of the format `form` (None: found out), on the CPU in float32.

    Raises `ConfigError` for a format that is not known and for options that it has no use for, `ArtifactError` for a
    checkpoint that cannot be read.
    """
    name = form or find_format(path, options.trust)
    found = _format(name)
    if path.is_dir() if found.takes == "file" else found.takes == "folder" and path.is_file():
        is_a, wanted = ("file", "folder") if path.is_file() else ("folder", "file")
        raise ArtifactError(f"{path}: is a {is_a}; {name} is a {wanted}")
    for option, useless in (("heads", not found.heads), ("trust", not found.trust)):
        if useless and getattr(options, option):
            raise ConfigError(f"{path}: {name} has no use for --{option}; leave it out")
    return found.read(path, options)


def write_checkpoint(encoder: Encoder, path: Path, form: str) -> None:
    """Write `encoder` as the format `form`; whole or not at all.

    Raises `ConfigError` where the format is not written or has no place for the encoder, `ArtifactError` where
    something else is at `path`.
    """
    write = _format(form).write
    if write is None:
        raise ConfigError(f"{form} is read, not written; write sentence-transformers, which transformers opens too")
    as_file = FORMATS[form].takes == "file" or (FORMATS[form].takes == "tar" and is_tar_name(path))
    if path.is_file() or path.is_symlink() or (as_file and path.exists()):
        raise ArtifactError(f"{path}: exists; remove it or use another path")
    write(encoder, path)


def open_foreign(path: Path, options: ReadOptions) -> Encoder | None:
    """The encoder of a checkpoint of another program, None if `path` is a folder that `Encoder.load` reads itself.

    Raises `ArtifactError` as `read_checkpoint` does, and for forms that have to be converted first.
    """
    name = find_format(path)
    form = FORMATS[name]
    if form.read in (_read_own, _read_plain):
        return None
    if not form.opens:
        raise ArtifactError(
            f"{path}: a {form.what} ({name}), which has no tokenizer beside it or no head; convert it first: ance-fast "
            f"convert {path} FOLDER --to sentence-transformers"
        )
    return form.read(path, options)


def with_head(encoder: Encoder, head: str, seed: int = 42) -> Encoder:
    """`encoder` with the head it has ("keep"), without one ("none"), or with ANCE's, untrained ("fresh").

    "fresh" also pools the first token and leaves out L2-normalisation, as `rdot_nll` does: it is where a warm-up starts
    from a language model. Raises `ConfigError` for anything else. Of two towers each gets its own.
    """
    if head == "keep":
        return encoder
    if head not in ("none", "fresh"):
        raise ConfigError(f"head={head!r}: choose keep, none or fresh")
    if encoder.query_encoder is not None:
        document = Encoder(encoder.backbone, encoder.head, encoder.tokenizer, encoder.layout)
        return Encoder.pair(with_head(encoder.query_encoder, head, seed), with_head(document, head, seed)).eval()
    layout = dataclasses.replace(encoder.layout, head=())
    modules = encoder.head[:0]
    if head == "fresh":
        specs, modules = fresh_head(int(encoder.backbone.model.config.hidden_size), seed)
        layout = dataclasses.replace(layout, head=specs, pooling="cls", normalize=False, similarity="dot")
    return Encoder(encoder.backbone, modules, encoder.tokenizer, layout).eval()


def _format(name: str) -> Format:
    refuse_unknown_format(name)
    return FORMATS[name]
