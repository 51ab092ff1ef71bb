"""The sampler's settings and their short form."""

from __future__ import annotations

import pytest

from ance_fast.errors import ConfigError
from ance_fast.training import AnceConfig, SamplerConfig


def test_a_preset_can_be_changed_after_commas() -> None:
    config = SamplerConfig.parse("ance-tele, per_source=none, sources=index+momentum, contents=true, weighting=softmax")
    assert config.sources == ("index", "momentum")
    assert (config.rank_max, config.per_source, config.contents, config.weighting) == (200, None, True, "softmax")
    assert SamplerConfig.parse("nv-retriever,keep=4,percentage=0.9") == SamplerConfig(
        scores="cosine", percentage=0.9, keep=4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpr", "begin with one of ance, star, ance-tele, nv-retriever, simans"),
        ("ance,keep", "'keep' is not NAME=VALUE"),
        ("ance,depth=3", "'depth=3' is not NAME=VALUE"),
        ("ance,keep=many", "'many' is not int"),
        ("ance,contents=perhaps", "'perhaps' is not bool"),
        ("ance,keep=0", "keep=0: must be at least 1"),
        ("ance,scores=raw", "scores='raw': choose inner_product"),
        ("ance,weighting=best", "weighting='best': choose uniform"),
        ("ance,rank_min=5,rank_max=5", "no rank lies between"),
        ("ance,percentage=95", "above 0 and at most 1"),
        ("ance,min_score=2,max_score=1", "min_score=2.0 is above max_score=1.0"),
        ("simans,a=-1", "a=-1.0: must not be negative"),
        ("ance,temperature=0", "temperature=0.0: must be positive"),
        ("ance,sources=index+index", "between 1 and 8 different ones"),
    ],
)
def test_settings_that_cannot_hold_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnceConfig(output_dir="unused", sampler=text)


def test_a_run_samples_as_the_paper_does_by_default() -> None:
    assert SamplerConfig.parse(AnceConfig(output_dir="unused").sampler) == SamplerConfig()
