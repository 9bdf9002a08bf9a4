/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The stages on upper-level entries, large pages, and several address spaces. */
#include "churn.h"

#define GIB (1UL << 30)
#define PAGES_PER_SPACE 64
#define ALIAS_DISTANCE 128 /* entries; beyond the window at every level, and canonical at level 4 */
#define LARGE_STEP (16 * PAGE_SIZE)

static void flush(void)
{
	write_cr3(read_cr3());
}

/* Not present, read-only and no-execute come from the upper level alone; the last level allows everything. */
static void restrict_at(struct window *w, int level)
{
	u64 gva = gva_of(w, 3), *entry = table_entry(w->root, gva, level, false), saved = *entry;
	u64 *leaf = table_entry(w->root, gva, 1, false);

	check_stamp(gva, w->tag[3]);
	*entry = 0;
	flush();
	begin_fault(gva, 0, entry, saved);
	check_stamp(gva, w->tag[3]);
	end_fault();
	stamp(gva, w->tag[3]);
	*entry = saved & ~PT_WRITABLE;
	flush();
	check_stamp(gva, w->tag[3]);
	begin_fault(gva, PF_PRESENT | PF_WRITE, entry, saved);
	stamp(gva, w->tag[3] = mix(w->tag[3]));
	end_fault();
	put_code(gva + 64, 3);
	*leaf &= ~PT_NX;
	flush();
	run_code(gva + 64, 3);
	*entry = saved | PT_NX;
	flush();
	begin_fault(gva + 64, PF_PRESENT | PF_FETCH, entry, saved);
	run_code(gva + 64, 3);
	end_fault();
	*leaf |= PT_NX;
	invlpg(gva);
}

/*
 * The whole tree below an entry shows at a second place; what changes below shows at both; then the
 * second place goes.
 */
static void alias_at(struct window *w, int level)
{
	u64 distance = level_size(level) * ALIAS_DISTANCE, gva = gva_of(w, 5), frame = frame_alloc();
	u64 *entry = table_entry(w->root, w->base, level, false);
	u64 *second = table_entry(w->root, w->base + distance, level, true);

	if (*second)
		fail("the place for the alias is taken");
	*second = *entry;
	check_stamp(gva + distance, w->tag[5]);
	stamp(gva + distance, w->tag[5] = mix(w->tag[5]));
	check_stamp(gva, w->tag[5]);
	stamp(frame, ~w->tag[5]);
	map_page(w->root, gva + distance, frame, RIGHTS);
	invlpg(gva);
	invlpg(gva + distance);
	check_stamp(gva, ~w->tag[5]);
	check_stamp(gva + distance, ~w->tag[5]);
	map_page(w->root, gva, w->frame[5], RIGHTS);
	flush();
	check_stamp(gva + distance, w->tag[5]);
	stamp(gva, w->tag[5]);
	*second = 0;
	flush();
	begin_fault(gva + distance, 0, second, *entry);
	check_stamp(gva + distance, w->tag[5]);
	end_fault();
	*second = 0;
	flush();
	if (level < 4)
		prune_tables(w->root, w->base + distance);
	frame_free(frame);
}

void edit_upper_levels(struct window *w)
{
	for (int level = 2; level <= 4; level++) {
		restrict_at(w, level);
		alias_at(w, level);
	}
}

static void check_block(u64 gva, u64 block, u64 tag)
{
	for (u64 at = 0; at < LARGE_PAGE_SIZE; at += LARGE_STEP) {
		check_stamp(gva + at, tag + at);
		check_stamp(block + at, tag + at);
	}
}

static void stamp_block(u64 gva, u64 tag)
{
	for (u64 at = 0; at < LARGE_PAGE_SIZE; at += LARGE_STEP)
		stamp(gva + at, tag + at);
}

/* One 2 MiB page over `block`, then 512 small ones over the same memory, then the large one again. */
void split_large_page(struct window *w, u64 block)
{
	u64 gva = w->base + GIB, *entry = table_entry(w->root, gva, 2, true), table = frame_alloc();

	*entry = block | RIGHTS | PT_PAGE_SIZE;
	stamp_block(gva, w->tag[0]);
	check_block(gva, block, w->tag[0]);
	for (u64 i = 0; i < 512; i++)
		((u64 *)table)[i] = (block + i * PAGE_SIZE) | RIGHTS;
	*entry = table | PT_PRESENT | PT_WRITABLE;
	flush();
	check_block(gva, block, w->tag[0]);
	stamp_block(gva, w->tag[1]);
	*entry = block | RIGHTS | PT_PAGE_SIZE;
	flush();
	check_block(gva, block, w->tag[1]);
	*entry = 0;
	flush();
	frame_free(table);
	prune_tables(w->root, gva);
}

static void make_space(struct window *w, u64 tag)
{
	w->root = space_create();
	w->base = FIRST_GVA;
	for (u64 i = 0; i < PAGES_PER_SPACE; i++) {
		u64 frame = frame_alloc();

		*(u64 *)frame = tag + i;
		map_page(w->root, gva_of(w, i), frame, RIGHTS);
	}
}

static void destroy_space(struct window *w)
{
	for (u64 i = 0; i < PAGES_PER_SPACE; i++)
		frame_free(unmap_page(w->root, gva_of(w, i)) & PT_ADDR_MASK);
	space_destroy(w->root);
}

/*
 * The same addresses mean other pages in every space; each visit counts in all of them. Returns the
 * sum of the counts.
 */
u64 switch_spaces(u64 spaces, u64 switches)
{
	struct window *w = ram_alloc(spaces * sizeof(*w), 8);
	u64 home = read_cr3(), sum = 0;

	for (u64 s = 0; s < spaces; s++)
		make_space(&w[s], s << 32);
	for (u64 turn = 0; turn < switches; turn++) {
		write_cr3(w[turn % spaces].root);
		for (u64 i = 0; i < PAGES_PER_SPACE; i++)
			*(volatile u64 *)(FIRST_GVA + i * PAGE_SIZE) += 1UL << 16;
	}
	write_cr3(home);
	for (u64 s = 0; s < spaces; s++) {
		u64 visits = switches / spaces + (s < switches % spaces);

		for (u64 i = 0; i < PAGES_PER_SPACE; i++) {
			u64 frame = *table_entry(w[s].root, gva_of(&w[s], i), 1, false) & PT_ADDR_MASK;

			if (*(u64 *)frame != (s << 32) + i + (visits << 16))
				fail("space %lu page %lu holds 0x%lx", s, i, *(u64 *)frame);
			sum += *(u64 *)frame;
		}
		destroy_space(&w[s]);
	}
	return sum;
}
