from __future__ import annotations

from itertools import product

from shadowvm.kvm.mmu.role import kvm_calc_cpu_role, pack_role, role_text, unpack_role
from shadowvm.x86 import CR0_PG, CR0_WP, CR4_PAE, CR4_PKE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NX

LONG = kvm_calc_cpu_role(CR0_PG | CR0_WP, CR4_PAE, EFER_LMA | EFER_NX)


def test_fields_survive_packing_and_different_fields_are_different_roles() -> None:
    seen = set()
    for level, access, direct, quadrant in product(range(1, 6), range(8), (False, True), range(4)):
        role = pack_role(LONG, level, access, direct, quadrant)
        fields = unpack_role(role)
        assert (fields.level, fields.access, fields.direct, fields.quadrant) == (level, access, direct, quadrant)
        assert fields.efer_nx
        assert fields.cr0_wp
        seen.add(role)
    assert len(seen) == 5 * 8 * 2 * 4


def test_direct_pages_of_different_keys_are_different() -> None:
    roles = {key: pack_role(LONG, 1, direct=True, pkey=key << 59) for key in range(16)}
    assert len(set(roles.values())) == 16
    assert all(unpack_role(role).pkey == key << 59 for key, role in roles.items())
    assert roles[0] == pack_role(LONG, 1, direct=True)


def test_smep_smap_and_keys_count_only_without_write_protection() -> None:
    for wp, smep, smap, pke in product((0, 1), repeat=4):
        cr4 = CR4_PAE | smep * CR4_SMEP | smap * CR4_SMAP | pke * CR4_PKE
        fields = unpack_role(pack_role(kvm_calc_cpu_role(CR0_PG | wp * CR0_WP, cr4, EFER_NX), 4))
        assert fields.cr0_wp == bool(wp)
        assert fields.smep_andnot_wp == bool(smep and not wp)
        assert fields.smap_andnot_wp == bool(smap and not wp)
        assert fields.pke_andnot_wp == bool(pke and not wp)


def test_a_pae_guest_shares_no_page_with_a_64_bit_one() -> None:
    assert unpack_role(kvm_calc_cpu_role(CR0_PG | CR0_WP, CR4_PAE, EFER_NX)).pae
    assert not unpack_role(LONG).pae


def test_without_paging_there_is_no_role() -> None:
    assert kvm_calc_cpu_role(CR0_WP, CR4_PAE | CR4_SMEP, EFER_NX) == 0


def test_text_is_the_kernels() -> None:
    assert role_text(pack_role(LONG, 4)) == "l4 8-byte q0 wux nxe ad"
    assert role_text(pack_role(0, 1, 0, direct=True)) == "l1 8-byte q0 direct --- !nxe ad"
