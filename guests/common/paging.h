/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * 4-level page tables of our own, made of frames from ram.h.
 *
 * A new address space shares PML4 slot 0 (the boot identity map of the low 4 GiB, supervisor only)
 * with all others; map other things from FIRST_GVA on. The functions change entries only: invlpg or
 * write_cr3 is the caller's affair, as on the machine. Upper-level entries are made with W and U
 * set and NX clear, so that the last level decides.
 */
#ifndef PAGING_H
#define PAGING_H

#include "types.h"

#define PT_PRESENT (1UL << 0)
#define PT_WRITABLE (1UL << 1)
#define PT_USER (1UL << 2)
#define PT_ACCESSED (1UL << 5)
#define PT_DIRTY (1UL << 6)
#define PT_PAGE_SIZE (1UL << 7)
#define PT_NX (1UL << 63)
#define PT_ADDR_MASK 0x000ffffffffff000UL

#define FIRST_GVA (1UL << 39)
#define LARGE_PAGE_SIZE (2 * MIB)

static inline u64 level_size(int level)
{
	return 1UL << (3 + 9 * level);
}

/* The root of a new address space. */
u64 space_create(void);

/*
 * Free every table below slot 0's neighbours and the root itself; not the frames they map. Must not
 * be the current CR3.
 */
void space_destroy(u64 root);

/*
 * The entry for `gva` in the table of `level` (1 = page table, 4 = PML4). Missing tables above are
 * made when `make`; otherwise NULL when one is missing or a large page covers the address.
 */
u64 *table_entry(u64 root, u64 gva, int level, bool make);

/* Set the last-level entry; `flags` includes PT_PRESENT. Returns the old entry. */
u64 map_page(u64 root, u64 gva, u64 gpa, u64 flags);

/* Clear the last-level entry; returns the old one (0: nothing was mapped). */
u64 unmap_page(u64 root, u64 gva);

/* Free the tables of levels 1..3 that cover `gva` and have become empty; returns how many. */
int prune_tables(u64 root, u64 gva);

#endif
