/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * PAE paging (SDM vol. 3, 4.4). Every combination of P, W, U and NX in both levels, with 4 KiB and
 * 2 MiB pages, CR0.WP and EFER.NXE on and off, is accessed in every way; error code, CR2 and the
 * accessed and dirty bits must be what the manual says. Then reserved bits, and a 2 MiB page that is
 * split into 512 and mapped the other way round.
 */
#include "guest.h"

#define P 0x01u
#define W 0x02u
#define U 0x04u
#define A 0x20u
#define D 0x40u
#define PS 0x80u
#define NX (1ull << 63)

#define LARGE_SIZE 0x200000u
#define KERNEL_PAGES 8 /* 16 MiB */
#define USER_CODE_AT 0x40000000u
#define USER_STACK_AT 0x40001000u
#define WINDOW 0x80000000u
#define LARGE_FRAME 0x800000u
#define ENTRIES 512u

typedef u64 table[ENTRIES] __attribute__((aligned(PAGE_SIZE)));

extern u8 _user_start[];

static u64 pointers[4] __attribute__((aligned(32)));
static table kernel_directory, user_directory, user_table, window_directory, window_table;
static u32 page[1024] __attribute__((aligned(PAGE_SIZE)));
static u32 user_stack[1024] __attribute__((aligned(PAGE_SIZE)));
static u64 checksum;
static bool exact = DEFAULT_exact;

static void build_tables(void)
{
	for (u32 n = 0; n < KERNEL_PAGES; n++)
		kernel_directory[n] = n * LARGE_SIZE | PS | W | P;
	pointers[0] = (u32)kernel_directory | P;
	pointers[USER_CODE_AT >> 30] = (u32)user_directory | P;
	pointers[WINDOW >> 30] = (u32)window_directory | P;
	user_directory[0] = (u32)user_table | U | W | P;
	user_table[0] = (u32)_user_start | U | P;
	user_table[1] = (u32)user_stack | U | W | P;
	for (u32 n = 0; n < ARRAY_SIZE(page); n++)
		page[n] = ((u32 *)LARGE_FRAME)[n] = PROBE_PATTERN;
}

/* Bits 0-2 of a number as P, W, U, bit 3 as NX. */
static u64 rights_of(u32 n)
{
	return (n & (P | W | U)) | (n & 8 ? NX : 0);
}

struct mode {
	bool wp, nxe, user;
	enum access access;
};

static u32 expected(u64 pde, u64 pte, const struct mode *mode)
{
	u32 error = (mode->access == WRITE ? PF_WRITE : 0) | (mode->user ? PF_USER : 0);

	if (mode->access == FETCH && mode->nxe)
		error |= PF_FETCH;
	if (!(pde & P))
		return error;
	if (pde & NX && !mode->nxe)
		return error | PF_RSVD | PF_PRESENT;
	if (!(pte & P))
		return error;
	if (pte & NX && !mode->nxe)
		return error | PF_RSVD | PF_PRESENT;
	if (mode->user && !(pde & pte & U))
		return error | PF_PRESENT;
	if (mode->access == WRITE && !(pde & pte & W) && (mode->user || mode->wp))
		return error | PF_PRESENT;
	if (mode->access == FETCH && (pde | pte) & NX)
		return error | PF_PRESENT;
	return NO_FAULT;
}

/* One access to the window; `leaf` is the entry that gets a dirty bit. */
static void check(u64 *leaf, u32 wanted, const struct mode *mode)
{
	u64 pde = window_directory[0], pte = *leaf;
	u32 found, dirty = mode->access == WRITE ? A | D : A;

	invlpg(WINDOW);
	found = probe(WINDOW, mode->access, mode->user);
	if (!exact && found != NO_FAULT && found & PF_RSVD)
		found |= PF_PRESENT;
	if (found != wanted)
		fail("pde %L pte %L access %d user %d: error 0x%x instead of 0x%x", pde, pte, mode->access, mode->user, found,
		     wanted);
	if (found == NO_FAULT && (!(window_directory[0] & A) || (*leaf & (A | D)) != dirty))
		fail("pde %L pte %L access %d user %d: A or D wrong", pde, pte, mode->access, mode->user);
	if (found != NO_FAULT && *leaf & D)
		fail("pde %L pte %L access %d user %d: dirty after a fault", pde, pte, mode->access, mode->user);
	checksum = checksum_add(checksum, found);
}

static u32 all_rights(bool wp, bool nxe)
{
	u32 accesses = 0;

	for (u32 n = 0; n < 17 * 16; n++) {
		bool large = n >= 256;
		u64 pde = rights_of(n & 15), pte = large ? P | W | U : rights_of(n >> 4 & 15);

		for (u32 way = 0; way < 6; way++, accesses++) {
			struct mode mode = { wp, nxe, way & 1, way >> 1 };

			window_directory[0] = large ? LARGE_FRAME | PS | pde : (u32)window_table | pde;
			window_table[0] = (u32)page | pte;
			check(large ? &window_directory[0] : &window_table[0], expected(pde, pte, &mode), &mode);
		}
	}
	return accesses;
}

/* Bit 62 of every entry and bits 20:13 of a 2 MiB page are reserved. */
static void reserved_bits(void)
{
	const struct mode mode = { true, true, false, READ };

	window_directory[0] = (u32)window_table | W | P;
	window_table[0] = (u32)page | 1ull << 62 | W | P;
	check(&window_table[0], PF_RSVD | PF_PRESENT, &mode);
	window_directory[0] = (u32)window_table | 1ull << 62 | W | P;
	window_table[0] = (u32)page | W | P;
	check(&window_table[0], PF_RSVD | PF_PRESENT, &mode);
	window_directory[0] = LARGE_FRAME | 1u << 13 | PS | W | P;
	check(&window_directory[0], PF_RSVD | PF_PRESENT, &mode);
	printf("3 reserved bits: error 9\n");
}

static void split(void)
{
	volatile u32 *words = (volatile u32 *)WINDOW;
	const u32 per_page = PAGE_SIZE / sizeof(u32);

	window_directory[0] = LARGE_FRAME | PS | W | P;
	invlpg(WINDOW);
	for (u32 n = 0; n < ENTRIES * per_page; n += 8)
		words[n] = n * 0x9e3779b9u;
	for (u32 n = 0; n < ENTRIES; n++)
		window_table[n] = (LARGE_FRAME + (ENTRIES - 1 - n) * PAGE_SIZE) | NX | P;
	window_directory[0] = (u32)window_table | P;
	write_cr3(read_cr3());
	for (u32 n = 0; n < ENTRIES * per_page; n += 8) {
		u32 was = (ENTRIES - 1 - n / per_page) * per_page + n % per_page;

		if (words[n] != was * 0x9e3779b9u)
			fail("word %u of the split page is 0x%x", n, words[n]);
		checksum = checksum_add(checksum, words[n]);
	}
	printf("a 2 MiB page split into 512\n");
}

int main(int argc, char **argv)
{
	u32 accesses = 0;

	parse_flag(argc, argv, "exact", &exact);
	build_tables();
	probe_init(USER_CODE_AT, USER_STACK_AT + PAGE_SIZE);
	write_cr4(CR4_PAE);
	write_cr3((u32)pointers);
	write_cr0(read_cr0() | CR0_PG);
	for (int n = 0; n < 4; n++) {
		write_cr0(n & 1 ? read_cr0() | CR0_WP : read_cr0() & ~CR0_WP);
		set_efer(n & 2 ? EFER_NXE : 0);
		write_cr3((u32)pointers);
		accesses += all_rights(n & 1, n & 2);
	}
	printf("%u accesses, each as the manual says\n", accesses);
	reserved_bits();
	split();
	finish(checksum);
}
