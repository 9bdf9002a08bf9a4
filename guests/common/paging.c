/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "paging.h"

#include "cpu.h"
#include "ram.h"

#define ENTRIES 512
#define TABLE_FLAGS (PT_PRESENT | PT_WRITABLE | PT_USER)

static u64 *table_of(u64 entry)
{
	return (u64 *)(entry & PT_ADDR_MASK);
}

static unsigned index_of(u64 gva, int level)
{
	return gva >> (3 + 9 * level) & (ENTRIES - 1);
}

u64 space_create(void)
{
	u64 root = frame_alloc_zeroed();

	table_of(root)[0] = table_of(read_cr3())[0];
	return root;
}

static void free_tables(u64 entry, int level)
{
	for (int i = 0; level > 1 && i < ENTRIES; i++) {
		u64 below = table_of(entry)[i];

		if (below & PT_PRESENT && !(below & PT_PAGE_SIZE))
			free_tables(below, level - 1);
	}
	frame_free(entry & PT_ADDR_MASK);
}

void space_destroy(u64 root)
{
	for (int i = 1; i < ENTRIES; i++)
		if (table_of(root)[i] & PT_PRESENT)
			free_tables(table_of(root)[i], 3);
	frame_free(root & PT_ADDR_MASK);
}

u64 *table_entry(u64 root, u64 gva, int level, bool make)
{
	u64 *table = table_of(root);

	for (int at = 4; at > level; at--) {
		u64 *entry = &table[index_of(gva, at)];

		if (!(*entry & PT_PRESENT) && make)
			*entry = frame_alloc_zeroed() | TABLE_FLAGS;
		if (!(*entry & PT_PRESENT) || *entry & PT_PAGE_SIZE)
			return NULL;
		table = table_of(*entry);
	}
	return &table[index_of(gva, level)];
}

u64 map_page(u64 root, u64 gva, u64 gpa, u64 flags)
{
	u64 *entry = table_entry(root, gva, 1, true), old = *entry;

	*entry = gpa | flags;
	return old;
}

u64 unmap_page(u64 root, u64 gva)
{
	u64 *entry = table_entry(root, gva, 1, false), old = entry ? *entry : 0;

	if (entry)
		*entry = 0;
	return old;
}

static bool is_empty(const u64 *table)
{
	for (int i = 0; i < ENTRIES; i++)
		if (table[i])
			return false;
	return true;
}

int prune_tables(u64 root, u64 gva)
{
	int freed = 0;

	for (int level = 2; level <= 4; level++) {
		u64 *entry = table_entry(root, gva, level, false);

		if (!entry || !(*entry & PT_PRESENT) || *entry & PT_PAGE_SIZE)
			continue;
		if (!is_empty(table_of(*entry)))
			break;
		frame_free(*entry & PT_ADDR_MASK);
		*entry = 0;
		freed++;
	}
	return freed;
}
