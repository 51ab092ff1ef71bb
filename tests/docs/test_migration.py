"""docs/migration.md: every flag of the original's scripts is there, and everything it names is here."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main

from ance_fast.cli.main import app
from ance_fast.data.sources import FORMS
from ance_fast.training.config import AnceConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")

# What the scripts of microsoft/ANCE take, by the letters that the page gives them.
_TRAINER = """data_dir ann_dir model_type model_name_or_path task_name output_dir config_name tokenizer_name cache_dir
    max_seq_length max_query_length triplet do_lower_case log_dir optimizer per_gpu_train_batch_size
    gradient_accumulation_steps learning_rate weight_decay adam_epsilon max_grad_norm max_steps warmup_steps
    logging_steps save_steps no_cuda seed fp16 fp16_opt_level load_optimizer_scheduler single_warmup local_rank
    server_ip server_port"""
_MINER = """data_dir training_dir init_model_dir last_checkpoint_dir model_type output_dir cache_dir end_output_num
    max_seq_length max_query_length max_doc_character per_gpu_eval_batch_size ann_chunk_factor topk_training
    negative_sample ann_measure_topk_mrr only_keep_latest_embedding_file no_cuda local_rank server_ip server_port"""
SCRIPTS = {
    "P": """data_dir out_data_dir model_type model_name_or_path max_seq_length max_query_length max_doc_character
        data_type""",
    "Q": "out_data_dir model_type model_name_or_path max_seq_length data_type question_dir wiki_dir answer_dir",
    "W": """data_dir train_model_type model_name_or_path task_name output_dir config_name tokenizer_name cache_dir
        max_seq_length do_train do_eval evaluate_during_training do_lower_case log_dir eval_type optimizer scheduler
        per_gpu_train_batch_size per_gpu_eval_batch_size gradient_accumulation_steps learning_rate weight_decay
        adam_epsilon max_grad_norm num_train_epochs max_steps warmup_steps logging_steps logging_steps_per_eval
        save_steps eval_all_checkpoints no_cuda overwrite_output_dir overwrite_cache seed fp16 fp16_opt_level
        expected_train_size load_optimizer_scheduler local_rank server_ip server_port""",
    "G": f"{_MINER} inference config_name tokenizer_name",
    "T": _TRAINER,
    "H": f"{_MINER} passage_path test_qa_path trivia_test_qa_path",
    "D": f"{_TRAINER} num_epoch",
}
FLAGS = {(script, flag) for script, names in SCRIPTS.items() for flag in names.split()}


def _rows() -> list[tuple[str, list[str], str]]:
    part = PAGE.partition("## Every flag")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| `")]
    return [(flag.strip().strip("`"), scripts.split(), here.strip()) for flag, scripts, here in cells]


ROWS = _rows()
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_flag_of_every_script_is_mapped_or_dropped_once() -> None:
    found = [(script, flag) for flag, scripts, _ in ROWS for script in scripts]
    assert set(found) == FLAGS
    assert len(found) == len(FLAGS), sorted(pair for pair in found if found.count(pair) > 1)


def test_what_is_dropped_has_a_reason_and_everything_else_names_what_takes_its_place() -> None:
    for flag, scripts, here in ROWS:
        if here.startswith("dropped"):
            assert re.match(r"dropped: (\S+ ){2}", here), flag
        else:
            assert re.search(r"`(\w+ --[\w-]+|ance-fast \w+|AnceConfig\.\w+|[\w-]+:(?:DIR|FILE)[^`]*)`", here), (
                flag,
                scripts,
            )


@pytest.mark.parametrize("command", sorted({name for name, _ in re.findall(r"`(\w+) (--[\w-]+)`", PAGE)}))
def test_every_option_it_names_exists(command: str) -> None:
    known = {option for parameter in COMMANDS[command].params for option in parameter.opts}
    named = {option for name, option in re.findall(r"`(\w+) (--[\w-]+)`", PAGE) if name == command}
    assert named <= known, named - known


def test_every_command_setting_and_form_it_names_exists() -> None:
    commands = set(re.findall(r"`(?:ance-fast )([\w-]+)", PAGE))
    assert commands
    assert commands <= COMMANDS.keys()
    settings = set(re.findall(r"AnceConfig\.(\w+)", PAGE))
    assert settings
    assert settings <= {field.name for field in fields(AnceConfig)}
    forms = re.findall(r"`([\w-]+):(?:DIR|FILE)(?:\?(\w+)=[^`]*)?`", PAGE)
    assert forms
    for form, option in forms:
        assert form in FORMS
        assert not option or option in FORMS[form].options, (form, option)


def test_the_defaults_it_names_are_those_of_the_settings() -> None:
    part = PAGE.partition("## Defaults that differ")[2].partition("\n## ")[0]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in part.splitlines()[3:]]
    named = {row[3]: row[4] for row in rows if len(row) == 5 and row[3] in AnceConfig.__dataclass_fields__}
    assert len(named) == part.count("\n|") - 2
    config = AnceConfig("run")
    assert named == {name: str(getattr(config, name)) for name in named}
    assert {"optimizer", "learning_rate", "weight_decay", "topk", "triples_per_query", "query_chunks", "loss"} <= set(
        named
    )
    flags = {row[0] for row in rows if len(row) == 5} & {flag for _, flag in FLAGS}
    assert len(flags) > 10
