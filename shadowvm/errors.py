"""Exceptions. An outcome of a run (a triple fault, out of memory) is a value, never one of these."""

from __future__ import annotations


class ShadowvmError(Exception):
    """Base of everything that shadowvm raises on purpose."""


class ConfigError(ShadowvmError):
    """The user asked for something impossible: one line that says what and where. The CLI exits with 125."""


class KvmError(ShadowvmError):
    """A KVM ioctl was refused. errno: as the ioctl would give it, positive."""

    def __init__(self, errno: int, text: str) -> None:
        super().__init__(text)
        self.errno = errno


class ModelBug(ShadowvmError):
    """shadowvm broke one of its own rules: a BUG_ON() of the simulated kernel."""


class InvariantViolation(ModelBug):
    """The sanitizer found two sides that disagree. law: the name of what they break (lab/invariants/laws.py)."""

    def __init__(self, report: str, law: str = "") -> None:
        super().__init__(report)
        self.law = law


class SwapIOError(ShadowvmError):
    """The real swap file failed: a short or failed read or write. The CLI exits with 126."""
