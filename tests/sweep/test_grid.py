"""The grid is what Hydra's own sweeper makes of the same overrides."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from numarep.spec import RunSpec, SpecError, parse
from numarep.sweep.executor import parse_executor
from numarep.sweep.grid import expand
from numarep.sweep.studies import folder, groups, studies

GRIDS: list[list[str]] = [
    [],
    ["workload=kill,fork_1", "cache_state=hot,cold"],
    ["workload=glob(m*)", "seed=range(1,4)"],
    ["workload=glob(*,exclude=[mount*,fork*])"],
    ["machine.core.ghz=choice(2.0,2.6)", "machine.latency.l1_cycles=range(3.0,5.0,0.5)"],
    ["kernel.name='a,b',\"c d\"", "cpu_node=0"],
    ["machine.l1i={ways:4},{size_bytes:65536,ways:16}"],
    ["machine.latency.dram_ns=[[90.0,140.0],[140.0,90.0]]", "seed=sort(3,1,2)"],
    ["workload.iterations=${seed},2", "seed=5,6"],
    ["+workload.extra=1,2"],
    ["++workload.iterations=7", "replication=none,series", "kernel.pti=true,false"],
    ["seed=1", "seed=2,3"],
    ["machine=e7_4850_v3,genoa_9224_nps2", "kernel=glob(*)", "replication=lazy,series"],
]


def hydras_points(overrides: Sequence[str]) -> list[object]:
    """What `hydra -m` would run, one composition a point."""
    with initialize_config_dir(str(folder("conf").absolute()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        last = {
            override.get_key_element(): override
            for override in parser.parse_overrides([*overrides])
        }
        jobs = BasicSweeper.split_arguments(list(last.values()), max_batch_size=None)[0]
        points = [OmegaConf.to_container(compose("config", job), resolve=True) for job in jobs]
    return [{key: value for key, value in point.items() if key != "executor"} for point in points]


@pytest.mark.parametrize("overrides", GRIDS, ids=" ".join)
def test_grid_is_hydras(overrides: list[str]) -> None:
    points = expand(["study=single", *overrides]).points
    expected = hydras_points(overrides)
    assert len(points) == len(expected)
    assert all(point in expected for point in points)


def test_users_axes_replace_the_studys() -> None:
    study = expand(["seed=7", "workload=kill"])
    assert {point["seed"] for point in study.points} == {7}
    assert {point["workload"]["name"] for point in study.points} == {"kill"}
    assert len(study.points) == 2 * 2 * 2


def test_default_study_covers_the_published_table() -> None:
    study = expand([])
    assert study.name == "seed_table"
    assert study.out == Path("results/seed_table")
    assert len(study.points) == 7 * 2 * 2 * 2 * 2


def test_a_studys_baseline_runs_at_every_point_without_its_policys_axes() -> None:
    points = expand(["study=ablation", "workload=kill", "replication=lazy"]).points
    plain = [point for point in points if point["replication"]["name"] == "none"]
    assert [point["cache_state"] for point in plain] == ["hot", "cold"]
    assert plain[0]["replication"] == expand(["study=single"]).points[0]["replication"]
    assert len(points) == 2 + 2 * 2**4


@pytest.mark.parametrize("name", studies())
def test_every_study_expands_and_parses(name: str) -> None:
    study = expand([f"study={name}"])
    assert study.points
    for point in study.points:
        parse(RunSpec, point)


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group, options in groups().items() for option in options],
)
def test_every_option_composes_and_parses(group: str, option: str) -> None:
    study = expand(["study=single", f"{group}={option}"])
    parse(RunSpec, study.points[0])
    parse_executor(study.executor)
    content = yaml.safe_load((folder("conf") / group / f"{option}.yaml").read_text())
    assert content.get("name", content.get("kind")) == option


def test_a_list_of_studies_is_their_points_with_axes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "numarep.sweep.studies.folder",
        lambda name: tmp_path if name == "sweeps" else folder(name),
    )
    (tmp_path / "both.yaml").write_text("studies: {one: {}, other: {seed: [3, 4], cpu_node: 0}}")
    (tmp_path / "one.yaml").write_text("axes: {seed: '1,2'}\nbaseline: none")
    (tmp_path / "other.yaml").write_text("axes: {cpu_node: '0,1', cache_state: cold}")
    (tmp_path / "all.yaml").write_text("studies: {both: {}}")
    study = expand(["study=both", "workload=kill"])
    other = expand(["study=other", "workload=kill", "seed=3,4", "cpu_node=0"])
    assert study.points == expand(["study=one", "workload=kill"]).points + other.points
    assert study.out == Path("results/both")
    (tmp_path / "both.yaml").write_text("studies: {one: {}, other: {machine.cores: 3}}")
    with pytest.raises(SpecError, match=r"other: machine\.cores: no such key"):
        expand(["study=both"])
    with pytest.raises(SpecError, match="both is a list of studies itself"):
        expand(["study=all"])


@pytest.mark.parametrize(
    "axes", ["[1, 2]", "axes: 3", "axes: {seed: 1}\nruns: 2", "axes: {seed: 1", ""]
)
def test_a_study_file_of_another_shape_is_refused(
    axes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(axes)
    monkeypatch.setattr(
        "numarep.sweep.studies.folder", lambda name: tmp_path if name == "sweeps" else folder(name)
    )
    with pytest.raises(SpecError, match=r"mine\.yaml"):
        expand(["study=mine"])
