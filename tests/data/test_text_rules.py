from __future__ import annotations

import functools
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import released_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer, BertTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from ance_fast.data import released_tokenizer
from ance_fast.data.text_rules import PRESETS, TextRules, lower_cased, text_rules
from ance_fast.data.tokenize import FastEncoder, TextEncoder, text_encoder, tokenize, tokenizer_fingerprint
from ance_fast.errors import ConfigError

MERGES = ["t h", "th e", "Ġ the", "t i", "ti t", "l e", "tit le", "u r", "ur l", "' s"]
RULES = [(first, second) for first, second in (merge.split() for merge in MERGES)]
VOCAB = {
    token: number
    for number, token in enumerate(
        ["<s>", "<pad>", "</s>", "<unk>", *sorted(released_text.byte_symbols()), *(a + b for a, b in RULES), "<mask>"]
    )
}
# Ids that transformers 2.3.0's own RobertaTokenizer gives over this vocabulary, with and without do_lower_case.
PINNED = [
    ("AB c", [0, 68, 69, 224, 70, 2], [0, 36, 37, 224, 70, 2]),
    (
        "url </s> Title </s> Text",
        [0, 268, 2, 266, 2, 87, 72, 91, 87, 2],
        [0, 268, 2, 55, 76, 87, 265, 2, 55, 72, 91, 87, 2],
    ),
    (
        "url<sep>Title<sep>The title",
        [0, 268, 31, 86, 72, 83, 33, 266, 31, 86, 72, 83, 33, 261, 224, 266, 2],
        [0, 268, 31, 86, 72, 83, 33, 55, 76, 87, 265, 31, 86, 72, 83, 33, 55, 75, 72, 224, 266, 2],
    ),
    ("  The title ", [0, 261, 224, 266, 2], [0, 55, 75, 72, 224, 266, 2]),
    (
        "</S>the <MASK>",
        [0, 2, 261, 270, 2],
        [0, 31, 18, 54, 33, 261, 224, 31, 48, 36, 54, 46, 33, 2],
    ),
    (" \n\t ", [0, 2], [0, 2]),
    ("", [0, 2], [0, 2]),
    ("a\x1c</s>\x1f b\x85", [0, 68, 2, 69, 2], [0, 68, 2, 69, 2]),
    (
        "\u03a3\u0391\u03a3 \u0130 \u1e9e",
        [0, 143, 229, 142, 113, 143, 229, 224, 76, 140, 233, 224, 131, 257, 2],
        [0, 142, 100, 142, 243, 142, 100, 224, 132, 112, 224, 161, 122, 256, 2],
    ),
    ("<un\u212a>", [0, 3, 2], [0, 31, 88, 81, 162, 230, 107, 33, 2]),
    ("<s>the</s> <pad>the", [0, 0, 261, 2, 1, 261, 2], [0, 0, 261, 2, 1, 261, 2]),
    ("The's 'S", [0, 261, 269, 224, 10, 86, 2], [0, 55, 75, 72, 269, 224, 10, 54, 2]),
    ("a\u3000\n the", [0, 68, 163, 226, 226, 202, 262, 2], [0, 68, 163, 226, 226, 202, 262, 2]),
]
PARTS = [
    *("<s>", "<pad>", "</s>", "<unk>", "<mask>", "</S>", "<MASK>", "<", "/s>", "<un\u212a>"),
    *("\u1e9e", "\u0130", "\u03a3"),
    *(" ", "  ", "\n", "\t", "\r\n", "\x1c", "\x1f", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\ufeff", "\0"),
    *("The", " title", "URL", "'S", "'s", "'RE", " don't", "2019", "\U0001f600", "e\u0301", "東京", "ǅ", "ﬁ"),
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS) | st.characters(exclude_categories=["Cs", "Cn"]), max_size=12).map("".join)


@pytest.fixture(scope="module")
def roberta() -> RobertaTokenizer:
    return RobertaTokenizer(dict(VOCAB), [tuple(rule) for rule in RULES], model_max_length=512)


@pytest.fixture(scope="module")
def encoders(roberta: RobertaTokenizer) -> Callable[[str, int], TextEncoder]:
    return functools.cache(lambda preset, max_length: text_encoder(released_tokenizer(roberta, preset), max_length))


def ids_of(tokenizer: Any, text: str, max_length: int = 512) -> list[int]:
    ids: list[int] = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    return ids


def saved_and_loaded(tokenizer: Any, folder: Path, model_type: str) -> Any:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("text", "lower", "cased"), PINNED)
def test_ids_are_those_of_transformers_2_3_0(
    roberta: RobertaTokenizer, text: str, lower: list[int], cased: list[int]
) -> None:
    assert ids_of(released_tokenizer(roberta, "ance"), text) == lower
    assert ids_of(released_tokenizer(roberta, "ance-cased"), text) == cased


def test_truncation_keeps_the_end_token_as_in_2_3_0(roberta: RobertaTokenizer) -> None:
    ance = released_tokenizer(roberta, "ance")
    assert ids_of(ance, "The title of the url", 4) == [0, 261, 224, 2]
    assert ids_of(ance, "The title of the url", 7) == [0, 261, 224, 266, 224, 82, 2]


@settings(deadline=None, max_examples=120)
@given(text=TEXTS, max_length=st.sampled_from([3, 7, 60]), lower=st.booleans())
def test_any_text_becomes_what_the_rules_of_2_3_0_say(
    encoders: Callable[[str, int], TextEncoder], text: str, max_length: int, lower: bool
) -> None:
    encoder = encoders("ance" if lower else "ance-cased", max_length)
    assert isinstance(encoder, FastEncoder)
    ((ids, cut),) = encoder.ids([text])
    assert ids == released_text.roberta(text, VOCAB, RULES, lower, max_length)
    assert cut == (len(released_text.roberta(text, VOCAB, RULES, lower, 10**6)) > max_length)


@pytest.mark.parametrize("preset", ["ance", "ance-cased", "ance,strip=false", "ance,special_tokens=false"])
def test_rules_are_saved_with_the_tokenizer_and_reach_worker_processes(
    roberta: RobertaTokenizer, preset: str, tmp_path: Path
) -> None:
    tokenizer = released_tokenizer(roberta, preset)
    loaded = saved_and_loaded(tokenizer, tmp_path, "roberta")
    texts = [text for text, *_ in PINNED]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    sent = pickle.loads(pickle.dumps(text_encoder(loaded, 512)))
    assert isinstance(sent, FastEncoder)
    assert [ids for ids, _ in sent.ids(texts)] == tokenizer(texts)["input_ids"]
    assert (loaded.pad_token_id, loaded.cls_token_id, loaded.mask_token_id, loaded.model_max_length) == (1, 0, 270, 512)
    assert loaded.model_input_names == roberta.model_input_names


def test_every_change_has_its_own_fingerprint_and_leaves_the_given_tokenizer_alone(roberta: RobertaTokenizer) -> None:
    before = tokenizer_fingerprint(roberta)
    names = ["lower_case=false", "strip=false", "prefix_space=true", "special_tokens=false", "drop_end=true"]
    presets = ["ance", *(f"ance,{name}" for name in [*names, "leave_out_padding=true"])]
    prints = {tokenizer_fingerprint(released_tokenizer(roberta, preset)) for preset in presets}
    assert len(prints) == len(presets)
    assert tokenizer_fingerprint(released_tokenizer(roberta, "ance,lower_case=false")) == tokenizer_fingerprint(
        released_tokenizer(roberta, "ance-cased")
    )
    assert tokenizer_fingerprint(roberta) == before


@pytest.mark.parametrize(
    ("preset", "text", "expected"),
    [
        ("ance,strip=false", " a </s> b", [0, 224, 68, 224, 2, 224, 69, 2]),
        ("ance,prefix_space=true", "a</s>b", [0, 224, 68, 2, 224, 69, 2]),
        ("ance,special_tokens=false", "a </s> b ", [0, 68, 224, 31, 18, 86, 33, 224, 69, 2]),
        ("ance, lower_case=FALSE , strip=false", " A", [0, 224, 36, 2]),
    ],
)
def test_each_rule_can_be_changed_alone(roberta: RobertaTokenizer, preset: str, text: str, expected: list[int]) -> None:
    tokenizer = released_tokenizer(roberta, preset)
    ((ids, _),) = text_encoder(tokenizer, 32).ids([text])
    assert ids == expected == ids_of(tokenizer, text)


def test_a_dropped_end_and_a_padding_token_left_out_are_rules_of_ids(roberta: RobertaTokenizer) -> None:
    tokenizer = released_tokenizer(roberta, "ance,drop_end=true,leave_out_padding=true")
    whole = [0, 68, 1, 69, 70, 2]
    for max_length in range(3, 8):
        ((ids, cut),) = text_encoder(tokenizer, max_length).ids(["a<pad>bc"])
        assert ids == [one for one in whole[:max_length] if one != 1]
        assert cut == (max_length < len(whole))


def test_special_tokens_with_capitals_are_met_as_they_are_spelt(roberta: RobertaTokenizer) -> None:
    more = released_tokenizer(roberta, "plain")
    assert more is roberta
    more = RobertaTokenizer(dict(VOCAB), [tuple(rule) for rule in RULES], extra_special_tokens=["[Q]"])
    number = more.convert_tokens_to_ids("[Q]")
    ance = released_tokenizer(more, "ance")
    assert ids_of(ance, "A [Q]\x1c B </S> [q]") == [0, 68, number, 69, 2, VOCAB["["], VOCAB["q"], VOCAB["]"], 2]
    assert ance.all_special_tokens == more.all_special_tokens


def test_a_preset_replaces_the_rules_of_another(roberta: RobertaTokenizer) -> None:
    again = released_tokenizer(released_tokenizer(roberta, "ance,drop_end=true"), "ance-cased")
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(released_tokenizer(roberta, "ance-cased"))


def test_long_runs_of_blanks_and_special_tokens_take_linear_time(
    encoders: Callable[[str, int], TextEncoder],
) -> None:
    encoder = encoders("ance", 7)
    started = time.perf_counter()
    for text in (" " * 100_000, "a" + " " * 50_000 + "b", "</s> " * 5_000, ("x" + " " * 1_000) * 50):
        tokenize([text], encoder, "uint16")
    assert time.perf_counter() - started < 5  # quadratic work takes minutes


@pytest.mark.parametrize("cased", [False, True])
def test_dpr_is_bert_uncased_whatever_the_checkpoint_says(cased: bool, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "Café", "##s", "[", "]", "sep"]
    bert = BertTokenizer({word: number for number, word in enumerate(words)}, do_lower_case=not cased)
    dpr = saved_and_loaded(released_tokenizer(bert, "dpr"), tmp_path, "bert")
    assert ids_of(dpr, " The\x00 CAFÉS [SEP][sep] x") == [2, 5, 6, 8, 3, 9, 11, 10, 1, 3]
    assert ids_of(released_tokenizer(dpr, "dpr,lower_case=false"), "Café the") == [2, 7, 5, 3]
    assert ids_of(dpr, "the the the", 4) == [2, 5, 5, 3]


def test_lower_casing_outlives_saving(roberta: RobertaTokenizer, tmp_path: Path) -> None:
    loaded = saved_and_loaded(lower_cased(roberta), tmp_path, "roberta")
    assert isinstance(loaded.backend_tokenizer.normalizer, normalizers.Sequence)
    assert ids_of(loaded, "AB") == ids_of(roberta, "ab") != ids_of(roberta, "AB")


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("anse", "begin with one of ance, ance-cased, seed, dpr, plain"),
        ("ance,strip", "'strip' is not NAME=true or NAME=false"),
        ("ance,strip=maybe", "'strip=maybe' is not NAME=true or NAME=false"),
        ("ance,kind=true", "'kind=true' is not .* with lower_case, strip"),
        ("plain,strip=true", "plain leaves the tokenizer as it is"),
        ("seed,strip=true", "strip is for byte-level BPE"),
        ("dpr,prefix_space=true", "prefix_space is for byte-level BPE"),
    ],
)
def test_rules_that_are_not_known_are_refused(preset: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        text_rules(preset)


def test_presets_say_what_the_released_code_does() -> None:
    assert text_rules("ance") == TextRules("byte-level BPE", lower_case=True, strip=True)
    assert text_rules("seed,drop_end=false") == TextRules("SEED-Encoder", lower_case=True, leave_out_padding=True)
    assert [name for name in PRESETS if text_rules(name) is None] == ["plain"]


@pytest.mark.parametrize("preset", ["ance", "ance-cased", "seed"])
def test_a_preset_for_another_kind_of_tokenizer_is_refused(tokenizer: PreTrainedTokenizerFast, preset: str) -> None:
    with pytest.raises(ConfigError, match=f"'{preset}'.*(is WordPiece|another model's)"):
        released_tokenizer(tokenizer, preset)


def test_tokenizers_that_cannot_follow_rules_are_refused(roberta: RobertaTokenizer, tmp_path: Path) -> None:
    for preset in ("dpr", "seed"):
        with pytest.raises(ConfigError, match="RobertaTokenizer is byte-level BPE"):
            released_tokenizer(roberta, preset)
    with pytest.raises(ConfigError, match="ByT5Tokenizer has no fast form"):
        released_tokenizer(ByT5Tokenizer(), "ance")
    with pytest.raises(ConfigError, match="only SEED-Encoder's is made from a path"):
        released_tokenizer(tmp_path, "ance")


def test_a_dropped_end_with_truncation_on_the_left_is_refused(roberta: RobertaTokenizer) -> None:
    tokenizer = released_tokenizer(roberta, "ance,drop_end=true")
    tokenizer.truncation_side = "left"
    with pytest.raises(ConfigError, match="truncation_drops_end goes with truncation_side='right'"):
        text_encoder(tokenizer, 8)
