/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Everything that an x86 kernel does to its page tables: entries of all levels made, changed,
 * restricted and cleared, with invlpg or CR3 loads where the architecture asks for them; page
 * faults with exact address and error code; tables freed, used as data, and the other way round.
 * Contents are checked through other mappings of the same frames.
 */
#include "churn.h"

static u64 pages = DEFAULT_pages, rounds = DEFAULT_rounds;
static u64 spaces = DEFAULT_spaces, switches = DEFAULT_switches;

static u64 run_round(struct window *w, u64 block, u64 round)
{
	u64 checksum = 0;

	for (u64 i = 0; i < w->pages; i++)
		w->tag[i] = mix(i + (round << 32));
	map_and_remap(w);
	change_rights(w);
	punch_holes(w);
	edit_upper_levels(w);
	split_large_page(w, block);
	for (u64 i = 0; i < w->pages; i++) {
		check_stamp(w->frame[i], w->tag[i]);
		checksum = checksum_add(checksum, *(u64 *)w->frame[i]);
	}
	unmap_all(w);
	return checksum + switch_spaces(spaces, switches);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "pages", &pages, 16, 1UL << 16 },
		{ "spaces", &spaces, 1, 1UL << 16 },
		{ "switches", &switches, 0, 1UL << 32 },
		{ "rounds", &rounds, 1, 1UL << 32 },
	};
	struct window w = { .base = FIRST_GVA };
	u64 block, checksum = 0;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	w.pages = pages;
	w.frame = ram_alloc(pages * sizeof(u64), 8);
	w.tag = ram_alloc(pages * sizeof(u64), 8);
	block = (u64)ram_alloc(LARGE_PAGE_SIZE, LARGE_PAGE_SIZE);
	w.root = space_create();
	write_cr3(w.root);
	for (u64 round = 0; round < rounds; round++)
		checksum = checksum_add(checksum, run_round(&w, block, round));
	printf("%lu pages, %lu rounds, %lu page faults\n", pages, rounds, faults_taken());
	finish(checksum_add(checksum, faults_taken()), true);
}
