/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The window: one linear address, with a page table and a page directory of its own in PAE mode, and
 * what is behind it. A leaf of any size maps WINDOW_PAGE there; without paging it is that page.
 */
#ifndef WINDOW_H
#define WINDOW_H

#include "../access64/oracle.h"

#define WINDOW_OFFSET 0x12c000u /* in large pages of both sizes */
#define WINDOW (0x81400000u + WINDOW_OFFSET)
#define LARGE_FRAME 0x1800000u
#define WINDOW_PAGE (LARGE_FRAME + WINDOW_OFFSET)
#define DATA_AT 0x7f8u
#define LDT_AT 0x400u
#define LDT_SELECTOR(n) ((n) * 8 + 4 + 3)
#define USER_AT 0x40000000u
#define USER_STACK_TOP (USER_AT + 0x2000u)

extern u8 _user_start[], user_stack[PAGE_SIZE];

/* What CR3 names in PAE mode. */
extern u64 pointers[4];

/* Make the tables of a mode; returns what CR3 must be. */
u32 build_tables(bool pae);

/* What an entry of `level` points at: the page table, or with `leaf` the frame that has the page. */
u64 target(int level, bool leaf);

u64 get_entry(int level);
void set_entry(int level, u64 value);

/* The page through the identity map. */
static inline volatile u32 *page_word(u32 offset)
{
	return (volatile u32 *)(WINDOW_PAGE + offset);
}

/* RET, and descriptors of a data segment for CPL 3: the first accessed, the second not. */
void fill_page(void);
void reset_descriptor(void);

#endif
