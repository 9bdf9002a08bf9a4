"""The access matrices: every right in every paging mode beside the guests' own oracle, and that they notice mistakes.

A sample of each; guests/README.md has the commands for all of it.
"""

from __future__ import annotations

from functools import cache

import pytest

from shadowvm.config import MIB
from shadowvm.kvm import intercept
from shadowvm.kvm.mmu import guest_walker, leaf_walk, page_fault, paging_mode, permission, role, spte
from shadowvm.machine import Machine
from shadowvm.params import KvmParams
from tests.guest_run import config_for, run_checked
from tests.lab.broken import Edit, break_functions

FOUR, FIVE = ("access64", "levels=4 exact=1"), ("access64", "levels=5 exact=1")
TWO, PAE = ("access32", "pae=0 exact=1"), ("access32", "pae=1 exact=1")


def run(guest: str, append: str, cpu: str = "max", memory: int = 64 * MIB, **more: object) -> tuple[int, str]:
    """Exit status and output, with plenty of host memory."""
    output = bytearray()
    config = config_for(guest, append, cpu=cpu, memory=memory, swap=64 * MIB, timeout_instructions=200_000_000, **more)
    machine = Machine(config, output.append)
    try:
        return machine.run().status, output.decode()
    finally:
        machine.close()


@pytest.mark.parametrize(
    ("guest", "step", "least"), [(FOUR, 211, 35_000), (FIVE, 307, 29_000), (TWO, 31, 8_000), (PAE, 307, 30_000)]
)
def test_each_access_does_what_the_manual_says(guest: tuple[str, str], step: int, least: int) -> None:
    status, output = run(guest[0], f"{guest[1]} step={step}")
    assert status == 0, output
    assert sum(int(line.split()[-4]) for line in output.splitlines() if "failures" in line) > least


@cache
def with_plenty(guest: str, append: str) -> bytes:
    return checked(guest, append, 64 * MIB)


def checked(guest: str, append: str, host_memory: int) -> bytes:
    result = run_checked(config_for(guest, append, cpu="max", host_memory=host_memory))
    assert result.law is None, result.report
    assert result.outcome is not None
    assert result.outcome.status == 0, result.output
    if host_memory < 8 * MIB:
        assert result.machine.host.vmstat.pswpout > 100
    return result.output


@pytest.mark.parametrize("host_memory", [4 * MIB, 2 * MIB], ids=["4M", "2M"])
@pytest.mark.parametrize(("guest", "step"), [(FOUR, 12007), (FIVE, 20011), (TWO, 8009), (PAE, 24007)])
def test_little_memory_changes_nothing(guest: tuple[str, str], step: int, host_memory: int) -> None:
    append = f"{guest[1]} step={step} churn=2"
    assert checked(guest[0], append, host_memory) == with_plenty(guest[0], append)


@pytest.mark.parametrize("without", ["pku", "smap", "smep", "pdpe1gb", "nx", "pku,-smap,-smep,-pdpe1gb", "la57,-smep"])
@pytest.mark.parametrize("guest", [FOUR, PAE])
def test_a_cpu_that_lacks_a_feature_does_what_the_manual_says(guest: tuple[str, str], without: str) -> None:
    status, output = run(guest[0], f"{guest[1]} step=4001", cpu=f"max,-{without}")
    assert status == 0, output


@pytest.mark.parametrize("pae", [0, 1])
def test_memory_above_4_gib_is_reached_by_pse36_and_by_pae(pae: int) -> None:
    status, output = run("access32", f"pae={pae} exact=1 high=1 step=99991", memory=6 << 30)
    assert status == 0, output
    assert "above 4 GiB: 4096 combinations, 0 failures" in output


RIGHTS = permission._rights_refuse
KEY = permission._key_refuses
MARK = guest_walker._update_accessed_dirty_bits
WITHOUT_WP = page_fault._cr0_wp_clear_access
BROKEN: list[tuple[str, tuple[str, str], int, Edit]] = [
    ("SMAP whatever EFLAGS.AC", FOUR, 997, (RIGHTS, " and vcpu.smap_active", "")),
    ("WP always", TWO, 997, (RIGHTS, " and vcpu.cr0 & CR0_WP != 0", "")),
    ("keys ask WP of nobody", FOUR, 997, (KEY, "(pferr & PFERR_USER or vcpu.cr0 & CR0_WP)", "True")),
    ("keys for fetches", FOUR, 997, (KEY, "pferr & PFERR_FETCH or ", "")),
    ("keys for supervisor pages", FOUR, 997, (permission.permission_fault, "access & ACC_USER_MASK and ", "")),
    ("no PK in the error code", FIVE, 997, (permission.permission_fault, "| PFERR_PK", "")),
    ("no key in an spte", FOUR, 499, (page_fault.mmu_set_spte, "vcpu.walker.pkey) | kvm", "0) | kvm")),
    ("no key in a role", FOUR, 499, (page_fault._child_role, "vcpu.walker.pkey if direct else 0", "0")),
    ("no key from a direct page", FOUR, 211, (leaf_walk._direct, "walker.pkey = sp.pkey", "walker.pkey = 0")),
    ("no U despite keys", FOUR, 211, (WITHOUT_WP, "(CR4_SMAP | CR4_PKE)", "CR4_SMAP")),
    ("no U despite SMAP", FOUR, 211, (WITHOUT_WP, "(CR4_SMAP | CR4_PKE)", "CR4_PKE")),
    ("X despite SMEP", FOUR, 211, (WITHOUT_WP, "if vcpu.cr4 & CR4_SMEP else access", "if False else access")),
    ("WP not in the role", FOUR, 211, (role.kvm_calc_cpu_role, "1 << _CR0_WP", "0")),
    ("SMEP not in the role", FOUR, 211, (role.kvm_calc_cpu_role, "role |= 1 << _SMEP_ANDNOT_WP", "pass")),
    ("keys not in the role", FOUR, 211, (role.kvm_calc_cpu_role, "role |= 1 << _PKE_ANDNOT_WP", "pass")),
    ("SMAP not in the role", FOUR, 211, (role.kvm_calc_cpu_role, "role |= 1 << _SMAP_ANDNOT_WP", "pass")),
    ("NX not in the role", FOUR, 211, (role.kvm_calc_cpu_role, "role |= 1 << _EFER_NX", "pass")),
    ("NX not reserved", PAE, 4001, (paging_mode.rsvd_bits, "0 if efer & EFER_NX else PT_NX", "0")),
    ("bit 21 not reserved", TWO, 211, (guest_walker._walk_addr32, "pte & vcpu.rsvd_large[2]", "False")),
    ("no A above the leaf", PAE, 4001, (MARK, "old | PT_ACCESSED", "old | PT_ACCESSED * (level == walker.level)")),
    ("D for reads", FOUR, 997, (MARK, "level == walker.level and pferr & PFERR_WRITE", "level == walker.level")),
    ("D in all levels", FOUR, 997, (MARK, "level == walker.level and pferr & PFERR_WRITE", "pferr & PFERR_WRITE")),
    ("stores unseen", FIVE, 997, (guest_walker.protect_clean_gpte, "walker.ptes[walker.level] & PT_DIRTY", "True")),
    ("I/D always", TWO, 997, (guest_walker._walk_error, "(nx or vcpu.cr4 & CR4_SMEP)", "True")),
    ("rights of a leaf", FOUR, 997, (guest_walker._walk_addr64, "access &= pte & ACC_W_U if", "access = pte & 6 if")),
    ("NX ignored", FOUR, 997, (spte.make_spte, "if access & ACC_EXEC_MASK", "if True")),
    ("pointers from memory", PAE, 99991, (intercept._load_pdptrs, "if is_pae and changed", "if is_pae")),
    ("pointers for ever", PAE, 99991, (intercept._load_pdptrs, "register == 3 or", "")),
]


@pytest.mark.parametrize(("guest", "step", "edit"), [each[1:] for each in BROKEN], ids=[each[0] for each in BROKEN])
def test_a_mistake_is_noticed(monkeypatch: pytest.MonkeyPatch, guest: tuple[str, str], step: int, edit: Edit) -> None:
    break_functions(monkeypatch, [edit])
    # The knobs decide which leftovers of other combinations an access meets; the steps were chosen for these.
    status, output = run(guest[0], f"{guest[1]} step={step}", kvm_params=KvmParams(unsync=0, prefetch=0))
    assert status in (1, 33), output
    assert "FAILED" in output or "trap vector=14" in output
