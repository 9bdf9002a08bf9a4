/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "window.h"

#define RAM_TABLES 8 /* 32 MiB */
#define ENTRIES 1024u
#define ENTRIES_PAE 512u
#define LARGE_PAE 0x200000u
#define RET 0xc3
#define DATA_DPL3 0x00cff2000000ffffull
#define ACCESSED (1ull << 40)
#define USER (P | W | U)

typedef u32 table[ENTRIES] __attribute__((aligned(PAGE_SIZE)));
typedef u64 table_pae[ENTRIES_PAE] __attribute__((aligned(PAGE_SIZE)));

u64 pointers[4] __attribute__((aligned(32)));
static table directory, ram_tables[RAM_TABLES], user_table, window_table;
static table_pae ram_directory, user_directory, user_table_pae, window_directory, window_table_pae;
u8 user_stack[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static bool wide;

static u32 build_two_levels(void)
{
	for (u32 n = 0; n < RAM_TABLES * ENTRIES; n++)
		ram_tables[n / ENTRIES][n % ENTRIES] = n * PAGE_SIZE | W | P;
	for (u32 n = 0; n < RAM_TABLES; n++)
		directory[n] = (u32)ram_tables[n] | W | P;
	directory[USER_AT >> 22] = (u32)user_table | USER;
	user_table[0] = (u32)_user_start | U | P;
	user_table[1] = (u32)user_stack | USER;
	return (u32)directory;
}

static u32 build_pae(void)
{
	for (u32 n = 0; n < RAM_TABLES * 2; n++)
		ram_directory[n] = n * LARGE_PAE | PS | W | P;
	pointers[0] = (u32)ram_directory | P;
	pointers[USER_AT >> 30] = (u32)user_directory | P;
	pointers[WINDOW >> 30] = (u32)window_directory | P;
	user_directory[0] = (u32)user_table_pae | USER;
	user_table_pae[0] = (u32)_user_start | U | P;
	user_table_pae[1] = (u32)user_stack | USER;
	return (u32)pointers;
}

u32 build_tables(bool pae)
{
	wide = pae;
	fill_page();
	return pae ? build_pae() : build_two_levels();
}

static volatile u64 *wide_entry(int level)
{
	return level == 2 ? &window_directory[WINDOW >> 21 & 511] : &window_table_pae[WINDOW >> 12 & 511];
}

static volatile u32 *entry(int level)
{
	return level == 2 ? &directory[WINDOW >> 22] : &window_table[WINDOW >> 12 & 1023];
}

u64 target(int level, bool leaf)
{
	if (leaf)
		return level == 1 ? WINDOW_PAGE : LARGE_FRAME;
	return wide ? (u32)window_table_pae : (u32)window_table;
}

u64 get_entry(int level)
{
	return wide ? *wide_entry(level) : *entry(level);
}

void set_entry(int level, u64 value)
{
	if (wide && *wide_entry(level) != value)
		*wide_entry(level) = value;
	if (!wide && *entry(level) != (u32)value)
		*entry(level) = (u32)value;
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
