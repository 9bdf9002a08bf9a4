/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "window.h"

#include "guest.h"

#define ENTRIES 512
#define RET 0xc3
#define DATA_DPL3 0x00cff2000000ffffull
#define ACCESSED (1ull << 40)
#define USER (P | W | U)

typedef u64 table[ENTRIES] __attribute__((aligned(PAGE_SIZE)));

extern u8 _user_start[];

static table roots[2], window_tables[MAX_LEVELS], user_tables[3];
static u8 user_stack[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

u64 *entry_of[MAX_LEVELS + 1];
u64 window;

/* Two pages of CPL 3, code and stack, behind entry 1 of the PML4. */
static void map_user(u64 *pml4)
{
	pml4[USER_AT >> 39] = (u64)user_tables[2] | USER;
	user_tables[2][0] = (u64)user_tables[1] | USER;
	user_tables[1][0] = (u64)user_tables[0] | USER;
	user_tables[0][0] = (u64)_user_start | P | U;
	user_tables[0][1] = (u64)user_stack | USER;
}

u64 build_tables(int levels)
{
	static const u64 index[] = { 0, INDEX1, INDEX2, INDEX3, INDEX4, INDEX5 };
	u64 *pml4 = roots[0], *pml5 = roots[1];

	pml4[0] = *(u64 *)(read_cr3() & PT_ADDR_MASK);
	map_user(pml4);
	for (int level = 1; level < MAX_LEVELS; level++)
		entry_of[level] = &window_tables[level][index[level]];
	entry_of[levels] = levels == 5 ? &pml5[INDEX5] : &pml4[INDEX4];
	window = levels == 5 ? INDEX5 << 48 | BELOW5 : BELOW5;
	if (levels == 5)
		pml5[0] = (u64)pml4 | USER;
	fill_page();
	return (u64)(levels == 5 ? pml5 : pml4);
}

u64 target(int level, bool leaf)
{
	return leaf ? WINDOW_PAGE & -(1ull << (3 + 9 * level)) : (u64)window_tables[level - 1];
}

void fill_page(void)
{
	*page_word(0) = RET;
	*page_word(DATA_AT) = 0;
	*(volatile u64 *)page_word(LDT_AT) = DATA_DPL3 | ACCESSED;
	reset_descriptor();
}

void reset_descriptor(void)
{
	*(volatile u64 *)page_word(LDT_AT + 8) = DATA_DPL3;
}
