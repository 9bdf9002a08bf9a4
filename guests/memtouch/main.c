/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sequential fill and verify. Each pass verifies a page against the pass before and overwrites it;
 * the last pattern is verified at the end. The pattern depends on pass and offset, so a lost, late
 * or misplaced page shows.
 */
#include "guest.h"

#define WORDS_PER_PAGE (PAGE_SIZE / sizeof(u64))

static u64 size = DEFAULT_size, passes = DEFAULT_passes;

/* The first word of a page's pattern; the following ones grow by an odd step of the pass. */
static u64 first_word(u64 page, u64 pass)
{
	return mix(page * GOLDEN + pass);
}

static u64 step_of(u64 pass)
{
	return mix(~pass) | 1;
}

static void fill_page(u64 *words, u64 page, u64 pass)
{
	u64 word = first_word(page, pass), step = step_of(pass);

	for (u64 i = 0; i < WORDS_PER_PAGE; i++, word += step)
		words[i] = word;
}

/* The sum of the page's words, after comparing each with the pattern. */
static u64 verify_page(const u64 *words, u64 page, u64 pass)
{
	u64 word = first_word(page, pass), step = step_of(pass), sum = 0;

	for (u64 i = 0; i < WORDS_PER_PAGE; i++, word += step) {
		if (words[i] != word)
			fail("pass %lu page %lu word %lu: 0x%016lx, not 0x%016lx", pass, page, i,
			     words[i], word);
		sum += words[i];
	}
	return sum;
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "size", &size, PAGE_SIZE, 1UL << 40 },
		{ "passes", &passes, 1, 1UL << 32 },
	};
	u64 pages, *memory, checksum = 0;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	pages = DIV_ROUND_UP(size, PAGE_SIZE);
	memory = ram_alloc(pages * PAGE_SIZE, PAGE_SIZE);
	for (u64 pass = 0; pass <= passes; pass++) {
		for (u64 page = 0; page < pages; page++) {
			u64 *words = memory + page * WORDS_PER_PAGE;

			if (pass > 0)
				checksum = checksum_add(checksum, verify_page(words, page, pass - 1));
			if (pass < passes)
				fill_page(words, page, pass);
		}
	}
	printf("touched %lu pages in %lu passes\n", pages, passes);
	finish(checksum, true);
}
