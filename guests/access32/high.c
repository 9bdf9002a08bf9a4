/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "high.h"

#include "boot.h"
#include "console.h"
#include "cpu.h"
#include "window.h"

#define HIGH (1ull << 32)
#define PSE36_SHIFT 19 /* bit 32 of an address is bit 13 of the entry */
#define WORDS 1024u

static volatile u32 *word(u32 n)
{
	return (volatile u32 *)(WINDOW + 4 * n);
}

static void map_window(u64 entry)
{
	set_entry(2, entry);
	invlpg(WINDOW);
}

/* Through a large page to high memory, beside the page below 4 GiB whose address differs in bit 32 alone. */
void run_high(struct matrix *m)
{
	const u64 large = PS | W | P | A | D, low = LARGE_FRAME | large;
	const u64 high = LARGE_FRAME | (m->has.wide ? HIGH : HIGH >> PSE36_SHIFT) | large;

	for (u32 n = 0; n < WORDS; n++)
		*(volatile u32 *)(WINDOW_PAGE + 4 * n) = n;
	map_window(high);
	for (u32 n = 0; n < WORDS; n++)
		*word(n) = ~n;
	map_window(low);
	for (u32 n = 0; n < WORDS; n++)
		m->failures += *word(n) != n;
	map_window(high);
	if (m->has.wide) {
		map_window(target(2, false) | W | P | A);
		set_entry(1, HIGH | WINDOW_PAGE | W | P | A | D);
		invlpg(WINDOW);
	}
	for (u32 n = 0; n < WORDS; n++) {
		m->failures += *word(n) != ~n;
		m->checksum = checksum_add(m->checksum, *word(n));
	}
	m->tried += 4 * WORDS;
	fill_page();
}
