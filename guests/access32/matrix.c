/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "matrix.h"

#include "attempt.h"
#include "boot.h"
#include "console.h"
#include "cpu.h"
#include "idt.h"
#include "window.h"

#define CR4_SMEP (1u << 20)
#define CR4_SMAP (1u << 21)
#define SETTINGS 64
#define WAYS (2 * LOAD_DESCRIPTOR + 2)
#define ABSENT 2u
#define FEW 8u
#define FAILURES_SHOWN 8
#define CHURN_AREA 0x400000u
#define CHURN_SIZE 0x800000u

/* The finalizer of murmur3 (Appleby). */
static u32 mix(u32 x)
{
	x = (x ^ x >> 16) * 0x85ebca6bu;
	x = (x ^ x >> 13) * 0xc2b2ae35u;
	return x ^ x >> 16;
}

static u32 with(u32 value, u32 bit, bool on)
{
	return on ? value | bit : value & ~bit;
}

void set_control(const struct cpu *cpu, const struct cpu *has)
{
	u32 cr4 = with(read_cr4(), CR4_PSE, cpu->pse);

	cr4 = with(cr4, CR4_SMEP, cpu->smep);
	write_cr0(with(read_cr0(), CR0_WP, cpu->wp));
	write_cr4(with(cr4, CR4_SMAP, cpu->smap));
	if (has->nxe)
		set_efer(cpu->nxe ? EFER_NXE : 0);
	write_cr3(read_cr3());
}

/* Bits that the CPU must ignore: some of them, differently each time. */
static u64 ignored(const struct cpu *cpu, int level, u64 entry, u32 n)
{
	u64 noise = mix(n) & (AVAILABLE | PWT | PCD | G);

	if (level == 1)
		return noise | (mix(n) & PS);
	if (!is_leaf(cpu, level, entry))
		return noise | (mix(n) & (cpu->wide || cpu->pse ? 0 : PS));
	return noise | (mix(n) & LARGE_PAT);
}

/* Bits of a number as W, U, A, D or nothing, NX and a physical-address bit that the CPU does not have. */
static u64 rights_of(u32 n, u64 last)
{
	u64 low = P | (n & 1 ? W : 0) | (n & 2 ? U : 0) | (n & 4 ? A : 0) | (n & 8 ? last : 0);

	return low | (n & 16 ? NX : 0) | (n & 32 ? 1ull << 51 : 0);
}

/* Bits that are reserved in PAE mode: one of each kind, the second three in large pages only. */
static const u64 reserved_pae[] = { 1ull << 40, 1ull << 52, 1ull << 62, 1ull << 13, 1ull << 20, 1ull << 58 };

/* How many values single_entry() has. */
static u32 values_of(const struct cpu *cpu, int level, bool leaf)
{
	u32 plain = leaf ? 16 : 8, special = level == 1 || !leaf ? 3 : 6;

	if (cpu->wide)
		return ABSENT + plain * 4 + special * FEW;
	return ABSENT + plain + (leaf && level == 2 ? FEW : 0);
}

/* The value of an entry, without its address: not present in two ways, then rights, then reserved bits. */
static u64 single_entry(const struct cpu *cpu, int level, bool leaf, u32 n)
{
	u64 large = leaf && level == 2 ? PS : 0;
	u32 plain = (leaf ? 16u : 8u) * (cpu->wide ? 4 : 1), high;

	if (n < ABSENT)
		return n ? (cpu->wide ? ~P & ~bits(51, 12) : 0xffe) : 0;
	n -= ABSENT;
	if (n < plain && leaf)
		return rights_of(n, D) | large;
	high = n / 8;
	if (n < plain)
		return rights_of(n % 8 | high << 4, 0);
	n -= plain;
	if (!cpu->wide)
		return rights_of(n, 0) | large | 1u << 21;
	return rights_of(n % FEW, 0) | large | reserved_pae[n / FEW];
}

static u32 compare(const struct matrix *m, const struct cpu *cpu, const u64 *entries, enum kind kind, u32 error, int leaf)
{
	for (int level = cpu->levels; level; level--) {
		u64 may, must = marks(kind, error, level, leaf, &may), found = get_entry(level);

		if (!m->exact && level == leaf && level > 1 && error != ALLOWED && entries[level] & P)
			may = A;
		if ((found & ~may) != ((entries[level] | must) & ~may) || (entries[level] & ~found))
			return (u32)level;
	}
	return 0;
}

static u32 address_of(enum kind kind)
{
	if (is_implicit(kind))
		return LDT_AT + 8 * (kind == MARK_DESCRIPTOR);
	return kind == FETCH ? 0 : DATA_AT;
}

/* The error code, or ALLOWED; anything else than a page fault at the right address is none of them. */
static u32 error_of(const struct matrix *m, const struct attempt *found, u32 address, enum kind kind)
{
	if (found->vector == NONE)
		return ALLOWED;
	if (found->vector != TRAP_PF || found->cr2 < address || found->cr2 > address + (is_implicit(kind) ? 7 : 0))
		return ~ALLOWED - 1 - found->vector;
	return !m->exact && found->error & E_RSVD ? found->error | E_P : found->error;
}

static bool data_is_right(enum kind kind, u32 before, u32 value, u32 error, u32 read)
{
	u32 now = *page_word(DATA_AT), done = kind == WRITE ? value : kind == MODIFY ? before + value : before;

	if (kind == MARK_DESCRIPTOR && error == ALLOWED && !(*page_word(LDT_AT + 12) & 0x100))
		return false;
	if (kind == READ && error == ALLOWED && read != before)
		return false;
	return now == (error == ALLOWED ? done : before);
}

static void show(struct matrix *m, const struct cpu *cpu, const u64 *entries, enum kind kind, bool user, u32 error, u32 wanted)
{
	if (m->failures++ >= FAILURES_SHOWN)
		return;
	printf("kind %d user %d wp %d nxe %d smep %d smap %d ac %d pse %d: error %x instead of %x\n", kind, user, cpu->wp,
	       cpu->nxe, cpu->smep, cpu->smap, cpu->ac, cpu->pse, error, wanted);
	for (int level = cpu->levels; level; level--)
		printf("  entry %d: %L, then %L\n", level, entries[level], get_entry(level));
}

static void churn(u32 pages)
{
	static u32 next;

	for (; pages; pages--, next = (next + PAGE_SIZE) % CHURN_SIZE)
		*(volatile u32 *)(CHURN_AREA + next) = next;
}

static void check_access(struct matrix *m, const struct cpu *cpu, const u64 *entries, u32 way, u32 n)
{
	enum kind kind = way >= 2 * LOAD_DESCRIPTOR ? LOAD_DESCRIPTOR + way % 2 : way / 2;
	bool user = way & 1 || is_implicit(kind);
	u32 value = is_implicit(kind) ? LDT_SELECTOR(kind == MARK_DESCRIPTOR) : n * 0x9e3779b1u;
	u32 before, error, wanted = ALLOWED, as_write = ALLOWED;
	u32 address = (cpu->levels ? WINDOW : WINDOW_PAGE) + address_of(kind);
	const struct attempt *found;
	int leaf = 0;

	if (kind == MARK_DESCRIPTOR)
		reset_descriptor();
	before = *page_word(DATA_AT);
	if (cpu->levels)
		wanted = verdict(cpu, entries, kind, user, &leaf, &as_write);
	found = attempt(address, kind, user, cpu->ac, value);
	error = as_read_first(error_of(m, found, address, kind), wanted, as_write);
	churn(m->churn);
	m->tried++;
	m->checksum = checksum_add(m->checksum, error);
	if (error != wanted || compare(m, cpu, entries, kind, wanted, leaf) ||
	    !data_is_right(kind, before, value, error, found->value))
		show(m, cpu, entries, kind, user, error, wanted);
}

/* One access with these entries, then another two in other ways and with another EFLAGS.AC. */
static void three_accesses(struct matrix *m, const struct cpu *cpu, const u64 *entries, u32 way, u32 n)
{
	struct cpu now = *cpu;
	u64 current[3];

	for (int level = cpu->levels; level; level--)
		set_entry(level, entries[level]);
	invlpg(WINDOW);
	check_access(m, cpu, entries, way, n);
	for (u32 again = 1; again < 3; again++) {
		u32 other = mix(n * 4 + again);

		for (int level = cpu->levels; level; level--)
			current[level] = get_entry(level);
		now.ac = other >> 31;
		check_access(m, &now, current, other % WAYS, n + again);
	}
}

static void all_ways(struct matrix *m, const struct cpu *cpu, const u64 *entries, u32 *n)
{
	for (u32 way = 0; way < WAYS; way++, ++*n)
		if (*n % m->step == 0)
			three_accesses(m, cpu, entries, way, *n);
}

static u64 complete(const struct cpu *cpu, int level, bool leaf, u32 value, u32 n)
{
	u64 entry = single_entry(cpu, level, leaf, value) | target(level, leaf);

	return entry & P ? entry | ignored(cpu, level, entry, n) : entry;
}

/* Skip what no step falls on, without building it. */
static bool is_sampled(const struct matrix *m, u32 *n)
{
	u32 past = *n % m->step;

	if (!past || m->step - past < WAYS)
		return true;
	*n += WAYS;
	return false;
}

static void small_pages(struct matrix *m, const struct cpu *cpu, u32 *n)
{
	u64 entries[3];

	for (u32 upper = 0; upper < values_of(cpu, 2, false); upper++)
		for (u32 lower = 0; lower < values_of(cpu, 1, true); lower++) {
			if (!is_sampled(m, n))
				continue;
			entries[2] = complete(cpu, 2, false, upper, *n);
			entries[1] = complete(cpu, 1, true, lower, *n);
			all_ways(m, cpu, entries, n);
		}
}

static void large_pages(struct matrix *m, const struct cpu *cpu, u32 *n)
{
	u64 entries[3] = { 0 };

	for (u32 value = 0; value < values_of(cpu, 2, true); value++) {
		if (!is_sampled(m, n))
			continue;
		entries[2] = complete(cpu, 2, true, value, *n);
		all_ways(m, cpu, entries, n);
	}
}

void run_matrix(struct matrix *m)
{
	static const u64 none[3];
	u32 n = 0;

	for (u32 setting = 0; setting < SETTINGS; setting++) {
		struct cpu cpu = m->has;

		cpu.wp = setting & 1;
		cpu.ac = setting >> 1 & 1;
		cpu.nxe &= setting >> 2 & 1;
		cpu.smep &= setting >> 3 & 1;
		cpu.smap &= setting >> 4 & 1;
		cpu.pse = setting >> 5 & 1;
		set_control(&cpu, &m->has);
		if (!cpu.levels)
			all_ways(m, &cpu, none, &n);
		if (cpu.levels)
			small_pages(m, &cpu, &n);
		if (cpu.levels && (cpu.wide || cpu.pse))
			large_pages(m, &cpu, &n);
	}
}
