/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "window.h"

#include "guest.h"

#define ENTRIES 512
#define ALIASES 2 /* in the page table of CPL 3 */
#define RET 0xc3
#define DATA_DPL3 0x00cff2000000ffffull
#define ACCESSED (1ull << 40)
#define USER (P | W | U)

typedef u64 table[ENTRIES] __attribute__((aligned(PAGE_SIZE)));

extern u8 _user_start[];

static table roots[2], second_root, window_tables[MAX_LEVELS], user_tables[3];
static u8 user_stack[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

u64 *entry_of[MAX_LEVELS + 1];
u64 window, page = WINDOW_PAGE;
static u64 *root;
static int top;

/* Two pages of CPL 3, code and stack, behind entry 1 of the PML4. */
static void map_user(u64 *pml4)
{
	pml4[USER_AT >> 39] = (u64)user_tables[2] | USER;
	user_tables[2][0] = (u64)user_tables[1] | USER;
	user_tables[1][0] = (u64)user_tables[0] | USER;
	user_tables[0][0] = (u64)_user_start | P | U;
	user_tables[0][1] = (u64)user_stack | USER;
}

/* Small pages of the window's tables, behind those of CPL 3. */
static void map_aliases(void)
{
	for (int level = 1; level < MAX_LEVELS; level++)
		user_tables[0][ALIASES + level] = (u64)window_tables[level] | W | P;
}

/* The four that paths below a page of 1 GiB lead to. */
static void fill_pages(void)
{
	for (u32 path = 0; path < 4; path++) {
		u64 at = WINDOW_PAGE ^ (path & 1) << 12 ^ (path & 2) << 20;

		*(volatile u32 *)at = RET;
		*(volatile u32 *)(at + DATA_AT) = path;
		*(volatile u64 *)(at + LDT_AT) = DATA_DPL3 | ACCESSED;
	}
}

u64 build_tables(int levels)
{
	u64 *pml4 = roots[0], *pml5 = roots[1];

	top = levels;
	root = levels == 5 ? pml5 : pml4;
	pml4[0] = *(u64 *)(read_cr3() & PT_ADDR_MASK);
	map_user(pml4);
	map_aliases();
	if (levels == 5)
		pml5[0] = (u64)pml4 | USER;
	second_root[0] = root[0];
	second_root[1] = root[1];
	fill_pages();
	for (int level = 1; level <= levels; level++)
		entry_of[level] = path_entry(level, 0, 0);
	window = path_address(0);
	return (u64)root;
}

u64 root_of(u32 number)
{
	return number ? (u64)second_root : (u64)root;
}

static unsigned index_at(int level, u32 path)
{
	static const unsigned index[] = { 0, INDEX1, INDEX2, INDEX3, INDEX4, INDEX5 };

	return index[level] ^ (path >> (level - 1) & 1);
}

u64 *path_entry(int level, u32 path, u32 number)
{
	u64 *table = level < top ? window_tables[level] : number ? second_root : root;

	return &table[index_at(level, path)];
}

u64 path_address(u32 path)
{
	u64 address = 0;

	for (int level = 1; level <= top; level++)
		address |= (u64)index_at(level, path) << (3 + 9 * level);
	return address;
}

void use_path(const struct cpu *cpu, u32 path, u32 number)
{
	bool below = false;

	window = path_address(path);
	page = WINDOW_PAGE;
	for (int level = cpu->levels; level; level--) {
		entry_of[level] = path_entry(level, path, number);
		if (below)
			page ^= (u64)(path >> (level - 1) & 1) << (3 + 9 * level);
		below |= is_leaf(cpu, level, *entry_of[level]);
	}
}

u64 alias_of(const u64 *entry)
{
	u64 address = (u64)entry;

	for (int level = 1; level < top; level++)
		if ((address & ~(PAGE_SIZE - 1)) == (u64)window_tables[level])
			return USER_AT + (u64)(ALIASES + level) * PAGE_SIZE + (address & (PAGE_SIZE - 1));
	return address;
}

u64 target(int level, bool leaf)
{
	return leaf ? WINDOW_PAGE & -(1ull << (3 + 9 * level)) : (u64)window_tables[level - 1];
}

void reset_descriptor(void)
{
	*(volatile u64 *)page_word(LDT_AT + 8) = DATA_DPL3;
}
