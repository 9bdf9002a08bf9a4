"""Every mutation is found under its law, and its run is clean without it; what a user of `shadowvm mutate` sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shadowvm.cli.main import main
from shadowvm.errors import ConfigError, ModelBug
from shadowvm.lab.invariants import LAWS
from shadowvm.lab.mutate import notifier
from shadowvm.lab.mutate.gallery import FAMILIES, GALLERY, find_mutations
from shadowvm.lab.mutate.mutation import Mutation, run_mutation
from shadowvm.lab.mutate.patch import Edit, Swap, changed
from shadowvm.mm import vmscan

Capture = pytest.CaptureFixture[str]
NAME = "flush-after-unlock"


@pytest.mark.parametrize("mutation", GALLERY.values(), ids=GALLERY)
def test_found_with_the_bug_and_clean_without(mutation: Mutation) -> None:
    result = run_mutation(mutation)
    assert result.clean_without, result.clean.text
    assert result.found, f"{result.broken.law}: {result.broken.text}"
    assert result.broken.events > 0


def test_names_are_unique_and_laws_exist() -> None:
    assert len(GALLERY) == sum(len(family.MUTATIONS) for family in FAMILIES)
    for mutation in GALLERY.values():
        assert set(mutation.laws) <= set(LAWS), mutation.name


def test_runs_are_the_same_every_time() -> None:
    mutation = GALLERY["age-returns-0"]
    assert run_mutation(mutation).as_dict() == run_mutation(mutation).as_dict()


def test_a_change_ends_with_its_block() -> None:
    before = vmscan.put_page
    with changed(Swap(vmscan.put_page, lambda host, page: None)):
        assert vmscan.put_page is not before
    assert vmscan.put_page is before


@pytest.mark.parametrize(
    ("function", "old", "text"),
    [(vmscan.kswapd, "no such line", "kswapd has 0 times: no such line"), (vmscan.kswapd, "host", "kswapd has")],
)
def test_an_edit_that_does_not_fit_fails_at_once(function: object, old: str, text: str) -> None:
    with pytest.raises(ModelBug, match=text), changed(Edit(function, old, "pass")):  # type: ignore[arg-type]
        pass


def test_a_function_that_nobody_uses_is_not_replaced_in_silence() -> None:
    with pytest.raises(ModelBug, match="nobody uses"), changed(Swap(lambda: None, lambda: None)):
        pass


@pytest.mark.parametrize("text", ["", "no-such", f"{NAME},no-such", "ALL"])
def test_an_unknown_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no mutation"):
        find_mutations(text)


def test_list_names_commit_law_and_what_breaks(capfd: Capture) -> None:
    assert main(["mutate", "--list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(GALLERY)
    for line, mutation in zip(lines, GALLERY.values(), strict=True):
        assert line.split()[1:3] == [mutation.commit or "-", mutation.laws[0]]
        assert line.endswith(mutation.breaks)


def test_run_writes_what_it_found_as_json(capfd: Capture, tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert main(["mutate", "--run", f"{NAME},no-release", "--json", str(report)]) == 0
    assert f"{NAME}: found under I16 after" in capfd.readouterr().out
    mutations = json.loads(report.read_text())["mutations"]
    assert [sorted(each) for each in mutations] == [
        ["clean_without", "commit", "events", "found", "invariant", "name"]
    ] * 2
    assert [(each["name"], each["invariant"], each["found"], each["clean_without"]) for each in mutations] == [
        (NAME, "I16", True, True),
        ("no-release", "I7", True, True),
    ]


def test_json_on_stdout_is_alone_there(capfd: Capture) -> None:
    assert main(["mutate", "--run", NAME, "--json", "-"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["mutations"][0]["name"] == NAME
    assert NAME in err


def test_a_bug_that_is_not_found_fails_the_run(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    harmless = Mutation(NAME, "", "", ("I16",), (), notifier.PAGED_OUT)
    monkeypatch.setitem(GALLERY, NAME, harmless)
    assert main(["mutate", "--run", NAME]) == 1
    assert capfd.readouterr().out == f"{NAME}: not found: nothing instead of I16\n"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--run", "no-such"), "'no-such' is no mutation"),
        (("--run", NAME, "--json", "/nowhere/report"), "No such file"),
        ((), "one of the arguments --list --run is required"),
        (("--list", "--run", NAME), "not allowed with"),
    ],
)
def test_bad_use_is_one_line(capfd: Capture, args: tuple[str, ...], text: str) -> None:
    assert main(["mutate", *args]) == 125
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert text in err
