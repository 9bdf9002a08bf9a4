/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * 32-bit paging (SDM vol. 3, 4.3). Every combination of P, W and U in both levels, with 4 KiB and
 * 4 MiB pages, is accessed in every way; error code, CR2 and the accessed and dirty bits must be what
 * the manual says. Then what is special: CR4.PSE off, a reserved bit, aliases, demand paging, and
 * paging turned off and on.
 */
#include "guest.h"

#define P 0x01u
#define W 0x02u
#define U 0x04u
#define A 0x20u
#define D 0x40u
#define PS 0x80u
#define RIGHTS (P | W | U)
#define PSE_RESERVED (1u << 21)

#define KERNEL_TABLES 4 /* 16 MiB */
#define USER_CODE_AT 0x40000000u
#define USER_STACK_AT 0x40001000u
#define WINDOW 0x80000000u
#define DEMAND 0xc0000000u
#define FIRST_FRAME 0x400000u
#define LARGE_FRAME 0x800000u
#define DEMAND_PAGES 1024u
#define ENTRIES 1024u

typedef u32 table[ENTRIES] __attribute__((aligned(PAGE_SIZE)));

extern u8 _user_start[];

static table directory, kernel_tables[KERNEL_TABLES], user_table, window_table, demand_table;
static u32 page[ENTRIES] __attribute__((aligned(PAGE_SIZE)));
static u32 user_stack[ENTRIES] __attribute__((aligned(PAGE_SIZE)));
static u32 demanded;
static u64 checksum;
static bool exact = DEFAULT_exact;

static u32 *pde_of(u32 gva)
{
	return &directory[gva >> 22];
}

static void build_tables(void)
{
	for (u32 n = 0; n < KERNEL_TABLES * ENTRIES; n++)
		kernel_tables[n / ENTRIES][n % ENTRIES] = n * PAGE_SIZE | W | P;
	for (u32 n = 0; n < KERNEL_TABLES; n++)
		directory[n] = (u32)kernel_tables[n] | W | P;
	*pde_of(USER_CODE_AT) = (u32)user_table | U | W | P;
	user_table[0] = (u32)_user_start | U | P;
	user_table[1] = (u32)user_stack | U | W | P;
	for (u32 n = 0; n < ENTRIES; n++)
		page[n] = ((u32 *)LARGE_FRAME)[n] = PROBE_PATTERN;
}

/* What the manual says about rights that are the AND of both levels. */
static u32 expected(u32 pde, u32 pte, enum access access, bool user, bool wp)
{
	u32 error = (access == WRITE ? PF_WRITE : 0) | (user ? PF_USER : 0), rights = pde & pte;

	if (!(rights & P))
		return error;
	if (user && !(rights & U))
		return error | PF_PRESENT;
	if (access == WRITE && !(rights & W) && (user || wp))
		return error | PF_PRESENT;
	return NO_FAULT;
}

/* One access with these entries. `leaf` is the one that gets a dirty bit. */
static void check(u32 pde, u32 pte, u32 *leaf, u32 wanted, enum access access, bool user)
{
	u32 found;

	invlpg(WINDOW);
	found = probe(WINDOW, access, user);
	if (!exact && found != NO_FAULT && found & PF_RSVD)
		found |= PF_PRESENT;
	if (found != wanted)
		fail("pde 0x%x pte 0x%x access %d user %d: error 0x%x instead of 0x%x", pde, pte, access, user, found, wanted);
	if (found == NO_FAULT && (!(*pde_of(WINDOW) & A) || (*leaf & (A | D)) != (access == WRITE ? A | D : A)))
		fail("pde 0x%x pte 0x%x access %d user %d: A or D wrong", pde, pte, access, user);
	if (found != NO_FAULT && *leaf & D)
		fail("pde 0x%x pte 0x%x access %d user %d: dirty after a fault", pde, pte, access, user);
	checksum = checksum_add(checksum, found);
}

static u32 small_pages(bool wp)
{
	u32 n;

	for (n = 0; n < 8 * 8 * 6; n++) {
		u32 pde = n / 48 & RIGHTS, pte = n / 6 % 8 & RIGHTS;
		enum access access = n % 3;
		bool user = n / 3 & 1;

		*pde_of(WINDOW) = (u32)window_table | pde;
		window_table[0] = (u32)page | pte;
		check(pde, pte, &window_table[0], expected(pde, pte, access, user, wp), access, user);
	}
	return n;
}

static u32 large_pages(bool wp)
{
	u32 n;

	for (n = 0; n < 8 * 6; n++) {
		u32 pde = n / 6 & RIGHTS;
		enum access access = n % 3;
		bool user = n / 3 & 1;

		*pde_of(WINDOW) = LARGE_FRAME | PS | pde;
		check(pde, PS, pde_of(WINDOW), expected(pde, RIGHTS, access, user, wp), access, user);
	}
	return n;
}

static void special(void)
{
	u32 *one = (u32 *)WINDOW, *two = (u32 *)(WINDOW + PAGE_SIZE);

	*pde_of(WINDOW) = LARGE_FRAME | PSE_RESERVED | PS | U | W | P;
	check(*pde_of(WINDOW), 0, pde_of(WINDOW), PF_RSVD | PF_PRESENT, READ, false);
	printf("reserved bit of a 4 MiB page: error 9\n");

	*pde_of(WINDOW) = (u32)window_table | PS | W | P;
	window_table[0] = window_table[1] = (u32)page | W | P;
	write_cr4(read_cr4() & ~CR4_PSE);
	invlpg(WINDOW);
	invlpg(WINDOW + PAGE_SIZE);
	*(volatile u32 *)one = 0x12345678;
	if (*(volatile u32 *)two != 0x12345678 || page[0] != 0x12345678)
		fail("without CR4.PSE, an entry with PS set is no page table");
	write_cr4(read_cr4() | CR4_PSE);
	printf("without CR4.PSE bit 7 of a directory entry means nothing\n");
}

/* A frame for each page that is touched. Frames go backwards, so that no page is where it would be without paging. */
static void demand_fault(struct trap_frame *frame)
{
	u32 index = (read_cr2() - DEMAND) / PAGE_SIZE;

	if (index >= DEMAND_PAGES || frame->error != PF_WRITE)
		fail("unexpected #PF at 0x%x, error 0x%x", read_cr2(), frame->error);
	demand_table[index] = FIRST_FRAME + (DEMAND_PAGES - 1 - index) * PAGE_SIZE;
	demand_table[index] |= W | P;
	demanded++;
}

static void demand_paging(void)
{
	volatile u32 *words = (volatile u32 *)DEMAND;
	const u32 per_page = PAGE_SIZE / sizeof(u32);

	*pde_of(DEMAND) = (u32)demand_table | W | P;
	set_handler(TRAP_PF, demand_fault);
	for (u32 n = 0; n < DEMAND_PAGES * per_page; n += 16)
		words[n] = n * 0x9e3779b9u;
	for (u32 n = 0; n < DEMAND_PAGES * per_page; n += 16) {
		if (words[n] != n * 0x9e3779b9u)
			fail("page %u lost its content", n / per_page);
		checksum = checksum_add(checksum, words[n]);
	}
	printf("%u pages on demand\n", demanded);

	write_cr0(read_cr0() & ~CR0_PG);
	if (*(volatile u32 *)FIRST_FRAME != (DEMAND_PAGES - 1) * per_page * 0x9e3779b9u)
		fail("without paging the last page is not in the first frame");
	write_cr0(read_cr0() | CR0_PG);
	if (words[16] != 16 * 0x9e3779b9u)
		fail("paging does not come back");
	printf("paging off and on again\n");
}

int main(int argc, char **argv)
{
	u32 accesses = 0;

	parse_flag(argc, argv, "exact", &exact);
	build_tables();
	probe_init(USER_CODE_AT, USER_STACK_AT + PAGE_SIZE);
	write_cr4(CR4_PSE);
	write_cr3((u32)directory);
	write_cr0(read_cr0() | CR0_PG);
	for (int wp = 0; wp < 2; wp++) {
		write_cr0(wp ? read_cr0() | CR0_WP : read_cr0() & ~CR0_WP);
		accesses += small_pages(wp);
		accesses += large_pages(wp);
	}
	printf("%u accesses, each as the manual says\n", accesses);
	special();
	demand_paging();
	finish(checksum);
}
