/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pointers.h"

#include "attempt.h"
#include "boot.h"
#include "console.h"
#include "cpu.h"
#include "window.h"

#define CR0_CD (1u << 30)
#define CR0_TS (1u << 3)
#define CR4_PGE (1u << 7)
#define CR4_SMEP (1u << 20)
#define WINDOW_POINTER (WINDOW >> 30)
#define UNUSED_POINTER 3

static void expect(struct matrix *m, bool found, bool wanted, const char *what, u32 number)
{
	m->tried++;
	m->checksum = checksum_add(m->checksum, found);
	if (found == wanted)
		return;
	m->failures++;
	printf("pointers: %s %x: %d\n", what, number, found);
}

/* Whether the window can be read, which is so while its pointer is in the register. */
static bool is_mapped(void)
{
	invlpg(WINDOW);
	return attempt(WINDOW + DATA_AT, READ, false, false, 0)->vector == NONE;
}

/* A pointer that is present may have these bits only: P, PWT, PCD, the ignored ones and an address. */
static void reserved(struct matrix *m)
{
	const u64 allowed = P | PWT | PCD | AVAILABLE | bits(m->has.maxphyaddr - 1, 12);
	u32 cr3 = read_cr3();

	for (u32 bit = 1; bit < 64; bit++) {
		pointers[UNUSED_POINTER] = P | 1ull << bit;
		expect(m, cr3_refused(cr3), !(allowed >> bit & 1), "CR3, reserved bit", bit);
		pointers[UNUSED_POINTER] = 1ull << bit;
		expect(m, cr3_refused(cr3), false, "CR3, not present, bit", bit);
	}
	pointers[UNUSED_POINTER] = P | W;
	expect(m, cr0_refused(read_cr0() ^ CR0_WP), false, "CR0.WP loads", 0);
	expect(m, cr0_refused(read_cr0() ^ CR0_TS), false, "CR0.TS loads", 0);
	expect(m, cr0_refused(read_cr0() ^ CR0_CD), true, "CR0.CD with a reserved bit", 0);
	expect(m, cr4_refused(read_cr4() ^ CR4_PGE), true, "CR4.PGE with a reserved bit", 0);
	expect(m, cr4_refused(read_cr4() ^ CR4_PSE), true, "CR4.PSE with a reserved bit", 0);
	write_cr0(read_cr0() & ~CR0_PG);
	expect(m, cr0_refused(read_cr0() | CR0_PG), true, "CR0.PG with a reserved bit", 0);
	expect(m, read_cr0() & CR0_PG, false, "CR0.PG was set", 0);
	expect(m, cr4_refused(read_cr4() ^ CR4_PGE), false, "CR4.PGE without paging", 0);
	write_cr4(read_cr4() ^ CR4_PGE);
	pointers[UNUSED_POINTER] = 0;
	write_cr0(read_cr0() | CR0_PG);
}

/* One control register write with the window's pointer cleared in memory, then with it there again. */
static void loads(struct matrix *m, bool (*load)(u32), u32 (*read)(void), u32 turned, bool wanted)
{
	const u64 pointer = pointers[WINDOW_POINTER];

	expect(m, is_mapped(), true, "before", turned);
	pointers[WINDOW_POINTER] = 0;
	expect(m, is_mapped(), true, "the register follows memory", turned);
	expect(m, load(read() ^ turned), false, "refused", turned);
	expect(m, is_mapped(), !wanted, "loaded by", turned);
	pointers[WINDOW_POINTER] = pointer;
	expect(m, is_mapped(), !wanted, "the register follows memory again", turned);
	load(read() ^ turned);
	write_cr3(read_cr3());
}

static u32 cr0(void)
{
	return read_cr0();
}

static u32 cr3(void)
{
	return read_cr3();
}

static u32 cr4(void)
{
	return read_cr4();
}

void run_pointers(struct matrix *m)
{
	set_entry(1, target(1, true) | P | W | A | D);
	set_entry(2, target(2, false) | P | W | A);
	reserved(m);
	loads(m, cr3_refused, cr3, 0, true);
	loads(m, cr0_refused, cr0, CR0_WP, false);
	loads(m, cr0_refused, cr0, CR0_TS, false);
	loads(m, cr0_refused, cr0, CR0_CD, true);
	loads(m, cr4_refused, cr4, CR4_PGE, true);
	loads(m, cr4_refused, cr4, CR4_PSE, true);
	if (m->has.smep)
		loads(m, cr4_refused, cr4, CR4_SMEP, true);
}
