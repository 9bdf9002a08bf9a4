"""A failing sequence as a file: JSON with the machine it ran on, what was seen, and the operations."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from ...config import MAX_VCPUS, MMUS
from ...errors import ConfigError
from ...params import DEFAULT_PARAMS, KvmParams, parse_kvm_params
from .run import Failure
from .setup import DIRTY_LOGS, Setup
from .shapes import Operation, problem_with

FORMAT, VERSION = "shadowvm oracle case", 1


def case_text(setup: Setup, failure: Failure) -> str:
    """The contents of the file, one operation a line."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "machine": {
            "smp": setup.smp,
            "mmu": setup.mmu,
            "host_memory": setup.host_memory,
            "kvm_params": changed_params(setup.params),
            "check": setup.check,
            "thp": setup.thp,
            "dirty_log": setup.dirty_log,
        },
        "failure": failure.text,
    }
    lines = ",\n".join(f"    {json.dumps(operation)}" for operation in failure.operations)
    return json.dumps(head, indent=2)[:-2] + f',\n  "operations": [\n{lines}\n  ]\n}}\n'


def changed_params(params: KvmParams) -> dict[str, int]:
    """The knobs that are not at their default."""
    values = {each.name: getattr(params, each.name) for each in fields(KvmParams)}
    return {name: value for name, value in values.items() if value != getattr(DEFAULT_PARAMS, name)}


def read_case(path: str) -> tuple[Setup, list[Operation]]:
    """What is in a file.

    Raises:
        ConfigError: it cannot be read, or is no case; one line says where.
    """
    try:
        with open(path, encoding="utf-8") as file:
            case = json.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON: {error}") from None
    if not isinstance(case, dict) or case.get("format") != FORMAT:
        raise ConfigError(f"{path}: not a case of the oracle")
    if case.get("version") != VERSION:
        raise ConfigError(f"{path}: version {case.get('version')!r} of the format; this program reads {VERSION}")
    setup = _setup(path, case.get("machine"))
    operations = case.get("operations")
    if not isinstance(operations, list):
        raise ConfigError(f"{path}: there are no operations")
    for number, operation in enumerate(operations):
        problem = problem_with(operation, setup.smp)
        if problem:
            raise ConfigError(f"{path}: operation {number}: {problem}")
    return setup, operations


def _setup(path: str, machine: Any) -> Setup:
    if not isinstance(machine, dict):
        raise ConfigError(f"{path}: there is no machine")
    smp, mmu, memory = machine.get("smp"), machine.get("mmu"), machine.get("host_memory")
    if type(smp) is not int or not 1 <= smp <= MAX_VCPUS:
        raise ConfigError(f"{path}: machine: smp is no number of CPUs")
    if mmu not in MMUS:
        raise ConfigError(f"{path}: machine: mmu is none of {', '.join(MMUS)}")
    if type(memory) is not int:
        raise ConfigError(f"{path}: machine: host_memory is no number of bytes")
    params, check, thp = machine.get("kvm_params", {}), machine.get("check", False), machine.get("thp", False)
    if not isinstance(params, dict) or type(check) is not bool or type(thp) is not bool:
        raise ConfigError(f"{path}: machine: kvm_params is no table, or check or thp neither true nor false")
    dirty_log = machine.get("dirty_log", DIRTY_LOGS[0])
    if dirty_log not in DIRTY_LOGS:
        raise ConfigError(f"{path}: machine: dirty_log is none of {', '.join(DIRTY_LOGS)}")
    try:
        knobs = parse_kvm_params([f"{name}={value}" for name, value in params.items()])
    except ConfigError as error:
        raise ConfigError(f"{path}: machine: {error}") from None
    return Setup(smp, mmu, memory, knobs, check, thp, dirty_log)
