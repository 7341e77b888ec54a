"""Options of sampling become settings; what was fitted for a model is found; what does not go together is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import omnigen2

from pipelines.common.omnigen2_settings import omnigen2_settings
from pipelines.evaluate.config import EvalConfig
from pipelines.generate.config import GenerateConfig
from sigma_data.errors import ConfigError
from sigma_model.sampling.settings import CacheMethod, SamplingSettings, Solver, StepCaching
from sigma_model.sampling.tea_file import TEA_FILE


def config(**changes: Any) -> GenerateConfig:
    return GenerateConfig(prompt="x", **changes)


def test_without_the_options_every_step_is_computed() -> None:
    assert config().sampling == SamplingSettings()


def test_options_of_the_cache_are_settings(tmp_path: Path) -> None:
    found = config(cache="taylor", cache_every=5, cache_order=2, sampler="dpmpp", guidance_threshold=0.1).sampling
    assert found.cache == StepCaching(CacheMethod.TAYLOR, every=5, order=2)
    assert (found.sampler, found.guidance_threshold) == (Solver.DPMPP, 0.1)
    (tmp_path / TEA_FILE).write_text(json.dumps({"polynomial": [3.0, 0.0], "threshold": 0.3}))
    assert config(cache="tea", model=str(tmp_path)).sampling.cache == StepCaching(
        CacheMethod.TEA, threshold=0.3, polynomial=(3.0, 0.0)
    )
    given = config(cache="tea", model="tiny", base=str(tmp_path), cache_threshold=0.7).sampling.cache
    assert (given.threshold, given.polynomial) == (0.7, (3.0, 0.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache_threshold": 0.1}, "--cache-threshold belongs to --cache tea"),
        ({"cache_every": 3, "cache": "tea"}, "--cache-every belongs to --cache taylor"),
        ({"cache_order": 2}, "--cache-order belongs to --cache taylor or tea"),
        ({"cache": "taylor", "sampler": "heun"}, "use euler or dpmpp"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**changes).sampling  # noqa: B018


def test_omnigen2_takes_the_same_options(tmp_path: Path) -> None:
    model = str(omnigen2.directory(tmp_path))
    found = omnigen2_settings(config(model=model, cache="taylor", sampler="dpmpp", guidance_threshold=0.2)).sampling
    assert found.reuse == StepCaching(CacheMethod.TAYLOR)
    assert (found.sampler, found.cache, found.guidance_threshold) == (Solver.DPMPP, None, 0.2)
    with pytest.raises(ConfigError, match="leave out --cache"):
        omnigen2_settings(config(model=model, cache="taylor", step_cache="teacache"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"solver": "dpmsolver++"}, Solver.DPMPP),
        ({"solver": "dpmsolver++", "sampler": "euler"}, Solver.DPMPP),
        ({"solver": "heun", "sampler": "dpmpp"}, Solver.DPMPP),
        ({"solver": None, "sampler": "heun"}, Solver.HEUN),
        ({"solver": None}, Solver.EULER),
        ({"sampler": "dpmsolver++"}, Solver.DPMPP),
    ],
)
def test_the_sampler_by_its_former_name_is_still_read(given: dict[str, Any], wanted: Solver) -> None:
    assert config(**given).sampler is wanted


def test_an_unknown_sampler_is_refused() -> None:
    for given in ({"sampler": "ddim"}, {"solver": "ddim"}):
        with pytest.raises(ValidationError, match="dpmpp"):
            config(**given)


def test_an_evaluation_records_what_leaves_steps_out_and_nulls_without() -> None:
    from pipelines.evaluate.run_folder import flat

    names = ("sampler", "cache", "cache_every", "cache_order", "cache_threshold", "guidance_threshold")
    options = EvalConfig(benchmark="world:x", out=Path("out"), model="tiny", nproc=1).options()
    assert [flat(options.generation)[name] for name in names] == [None] * len(names)
    options = EvalConfig(
        benchmark="world:x", out=Path("out"), model="tiny", nproc=1, cache=CacheMethod.TEA, sampler=Solver.DPMPP
    ).options()
    found = flat(options.generation)
    assert [found[name] for name in names[:4]] == ["dpmpp", "tea", None, 1]
    assert found["cache_polynomial"] is not None and found["cache_threshold"] > 0
