/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The window: one linear address with a table of its own at every level, and what is behind it.
 *
 * A leaf of any size maps WINDOW_PAGE at the window. The page holds a RET at its begin, a word of
 * data, and two descriptors of a data segment for CPL 3: the first accessed, the second not.
 */
#ifndef WINDOW_H
#define WINDOW_H

#include "oracle.h"

#define INDEX5 3ull
#define INDEX4 0x7full
#define INDEX3 0x1a5ull
#define INDEX2 11ull
#define INDEX1 0x12cull
#define BELOW5 (INDEX4 << 39 | INDEX3 << 30 | INDEX2 << 21 | INDEX1 << 12)
#define WINDOW_PAGE (INDEX2 << 21 | INDEX1 << 12)
#define DATA_AT 0x7f8u
#define LDT_AT 0x400u
#define LDT_SELECTOR(n) ((n) * 8 + 4 + 3)

#define USER_AT (1ull << 39)
#define USER_STACK_TOP (USER_AT + 0x2000)

/* By level: the entry that the window's translation uses. */
extern u64 *entry_of[MAX_LEVELS + 1];
/* The same address in both modes but for bits 56:48, and the page behind it. */
extern u64 window, page;

/* Make the tables; returns the root. There is another root with the same kernel and user. */
u64 build_tables(int levels);
u64 root_of(u32 number);

/*
 * The other windows: in each level's table, and in both roots, the entry beside the window's is one
 * too. Bit l - 1 of `path` chooses it at level l, so that up to 32 addresses share tables.
 */
u64 *path_entry(int level, u32 path, u32 root);
u64 path_address(u32 path);

/*
 * Make a path the window: entry_of, window and page. Where the path goes beside the window's index
 * below a large page, it leads to another page with the same content.
 */
void use_path(const struct cpu *cpu, u32 path, u32 root);

/* Where the kernel has the window's tables a second time, in small pages. */
u64 alias_of(const u64 *entry);

/* What an entry of `level` points at: the next table, or with `leaf` the frame that has the page. */
u64 target(int level, bool leaf);

/* The page through the identity map. */
static inline volatile u32 *page_word(u32 offset)
{
	return (volatile u32 *)(page + offset);
}

/* The second descriptor becomes what it was: not accessed. */
void reset_descriptor(void);

#endif
