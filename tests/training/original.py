"""microsoft/ANCE's training in its simplest form, in plain torch: an oracle that shares no code with the package.

Everything is done the slow and obvious way: texts padded to one length, the corpus as one matrix, every score computed
and sorted, tensors updated one at a time. What the original leaves to chance (which of the retrieved passages become
negatives, in which order queries come) is drawn from the hash that the package documents, restated here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import RobertaModel

PAD = 1
Triple = tuple[int, int, int]  # query, positive, negative


@dataclass
class Settings:
    """The original's flags, by its own names where it has them."""

    max_steps: int
    save_steps: int  # = steps between two generations of negatives
    per_gpu_train_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    warmup_steps: int
    single_warmup: bool
    topk_training: int
    negative_sample: int
    ann_chunk_factor: int
    max_query_length: int
    max_seq_length: int
    seed: int
    optimizer: str = "lamb"
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0


@dataclass
class Followed:
    """What a run did: the loss of each step, the triples of each batch and of each generation, the rates."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    batches: list[list[Triple]] = field(default_factory=list)
    generations: list[list[Triple]] = field(default_factory=list)
    reciprocal_ranks: list[float] = field(default_factory=list)


class Model(nn.Module):
    """RoBERTa, the first token's vector, a linear head, LayerNorm; one tower for queries and passages."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.roberta = RobertaModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
        head, norm = (
            load_file(folder / "2_Dense/model.safetensors"),
            load_file(folder / "3_LayerNorm/model.safetensors"),
        )
        width = head["linear.weight"].shape[0]
        self.embeddingHead = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.embeddingHead.load_state_dict({"weight": head["linear.weight"], "bias": head["linear.bias"]})
        self.norm.load_state_dict({"weight": norm["norm.weight"], "bias": norm["norm.bias"]})
        self.eval()  # no dropout

    def forward(self, ids: Tensor) -> Tensor:
        # Masked by length and numbered from the first token on: `<pad>` within a text is a token like others.
        length = ids.shape[1] - (ids.flip(1) != PAD).int().argmax(dim=1, keepdim=True)
        places = torch.arange(ids.shape[1])
        mask, numbers = (places < length).long(), (places + PAD + 1).expand_as(ids)
        hidden = self.roberta(input_ids=ids, attention_mask=mask, position_ids=numbers).last_hidden_state
        return self.norm(self.embeddingHead(hidden[:, 0]))


def train(
    folder: Path, queries: list[list[int]], passages: list[list[int]], qrels: list[tuple[int, int]], args: Settings
) -> Followed:
    """Train the model of `folder`. Texts are token ids; qrels are lines (query, passage), of which the last counts."""
    model, followed = Model(folder), Followed()
    query_ids = padded(queries, args.max_query_length)
    passage_ids = padded(passages, args.max_seq_length)
    positive = dict(qrels)
    state: dict[str, tuple[Tensor, Tensor]] = {}
    output_num, place, begun, generation = -1, 0, 0, []
    micro_losses: list[float] = []
    step = 0
    while step < args.max_steps:
        if step % args.save_steps == 0 and not micro_losses:
            output_num, begun = output_num + 1, step
            generation, mean_reciprocal_rank = new_generation(
                model, query_ids, passage_ids, positive, output_num, step, args
            )
            followed.generations.append(generation)
            followed.reciprocal_ranks.append(mean_reciprocal_rank)
            place = 0
        if place >= len(generation):
            place = 0
        batch = generation[place : place + args.per_gpu_train_batch_size]
        place += args.per_gpu_train_batch_size
        followed.batches.append(batch)
        q, p, n = (list(column) for column in zip(*batch, strict=True))
        a, b, c = model(query_ids[q]), model(passage_ids[p]), model(passage_ids[n])
        logits = torch.stack([(a * b).sum(dim=1), (a * c).sum(dim=1)], dim=1)
        loss = -torch.log_softmax(logits, dim=1)[:, 0].mean() / args.gradient_accumulation_steps
        loss.backward()
        micro_losses.append(loss.item())
        if len(micro_losses) < args.gradient_accumulation_steps:
            continue
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        if args.single_warmup:
            rate = linear(step, args.warmup_steps, args.max_steps)
        else:
            rate = linear(step - begun, args.warmup_steps, lines(output_num, len(queries), args)[1])
        followed.rates.append(rate * args.learning_rate)
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                update(name, weight, state, step, rate * args.learning_rate, args)
        model.zero_grad()
        followed.losses.append(sum(micro_losses))
        micro_losses = []
        step += 1
    return followed


def lines(output_num: int, count: int, args: Settings) -> tuple[int, int]:
    """First query, and number of queries, of a generation."""
    place, size = output_num % args.ann_chunk_factor, count // args.ann_chunk_factor
    last = place == args.ann_chunk_factor - 1
    return place * size, count - place * size if last else size


def new_generation(
    model: Model,
    query_ids: Tensor,
    passage_ids: Tensor,
    positive: dict[int, int],
    output_num: int,
    step: int,
    args: Settings,
) -> tuple[list[Triple], float]:
    with torch.no_grad():
        scores = model(query_ids) @ model(passage_ids).T
    first, count = lines(output_num, len(query_ids), args)
    order = sorted(range(first, first + count), key=lambda query: draw(args.seed, output_num, query, -3))
    triples, reciprocal_ranks = [], []
    for query in order:
        top = torch.sort(scores[query], descending=True, stable=True).indices[: args.topk_training].tolist()
        others = [passage for passage in top if passage != positive[query]]
        reciprocal_ranks.append(1 / (1 + top.index(positive[query])) if positive[query] in top[:10] else 0.0)
        shuffled = sorted(range(len(others)), key=lambda rank: draw(args.seed, output_num, query, step, rank))
        triples += [(query, positive[query], others[rank]) for rank in shuffled[: args.negative_sample]]
    return triples, sum(reciprocal_ranks) / len(reciprocal_ranks)


def update(
    name: str, weight: Tensor, state: dict[str, tuple[Tensor, Tensor]], step: int, rate: float, args: Settings
) -> None:
    assert weight.grad is not None
    zero = torch.zeros_like(weight)
    first, second = state.get(name, (zero, zero))
    first, second = 0.9 * first + 0.1 * weight.grad, 0.999 * second + 0.001 * weight.grad**2
    state[name] = first, second
    with torch.no_grad():
        if args.optimizer == "lamb":
            change = first / (second.sqrt() + args.adam_epsilon)
            length, change_length = weight.norm().clamp(0, 10), change.norm()
            ratio = 1.0 if length == 0 or change_length == 0 else length / change_length
            weight -= rate * ratio * change
        else:
            corrected = second.sqrt() / (1 - 0.999 ** (step + 1)) ** 0.5
            weight -= rate * first / (1 - 0.9 ** (step + 1)) / (corrected + args.adam_epsilon)


def linear(step: int, warmup: int, total: int) -> float:
    return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))


def padded(texts: list[list[int]], length: int) -> Tensor:
    return torch.tensor([text[:length] + [PAD] * (length - len(text)) for text in texts])


def draw(*parts: int) -> int:
    """SplitMix64 over the parts, an integer below 2^64."""
    mask = 2**64 - 1
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = ((state ^ (part & mask)) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state
