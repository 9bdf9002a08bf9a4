/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "check.h"

#include "guest.h"
#include "probe.h"
#include "window.h"

#define FAILURES_SHOWN 8
#define CHURN_AREA (8 * MIB)

/* The level whose entry is not what it must be, or 0. QEMU 7.2 sets A in the leaf of a large page that it then refuses. */
static u32 compare(const struct tally *t, const struct cpu *cpu, const u64 *entries, enum kind kind, u32 error, int leaf)
{
	for (int level = cpu->levels; level; level--) {
		u64 may, must = marks(kind, error, level, leaf, &may), found = *(volatile u64 *)entry_of[level];

		if (!t->exact && level == leaf && level > 1 && error != ALLOWED && entries[level] & P)
			may = A;
		if ((found & ~may) != ((entries[level] | must) & ~may) || (entries[level] & ~found))
			return (u32)level;
	}
	return 0;
}

static void show(struct tally *t, const struct cpu *cpu, const u64 *entries, enum kind kind, bool user)
{
	if (t->failures++ >= FAILURES_SHOWN)
		return;
	printf("kind %d user %d wp %d nxe %d smep %d smap %d ac %d pke %d pkru %08x\n", kind, user, cpu->wp, cpu->nxe,
	       cpu->smep, cpu->smap, cpu->ac, cpu->pke, cpu->pkru);
	for (int level = cpu->levels; level; level--)
		printf("  entry %d: %016lx, then %016lx\n", level, entries[level], *entry_of[level]);
}

static u32 address_of(enum kind kind)
{
	if (is_implicit(kind))
		return LDT_AT + 8 * (kind == MARK_DESCRIPTOR);
	return kind == FETCH ? 0 : DATA_AT;
}

/* The error code, or ALLOWED; anything else than a page fault at the right address is none of them. */
static u32 error_of(const struct probed *found, enum kind kind)
{
	u64 address = window + address_of(kind);
	u64 slack = is_implicit(kind) ? 7 : 0;

	if (found->vector == NONE)
		return ALLOWED;
	if (found->vector != VECTOR_PF || found->cr2 < address || found->cr2 > address + slack)
		return ~ALLOWED - 1 - found->vector;
	return found->error;
}

/* What the access did to memory and registers. */
static bool data_is_right(enum kind kind, u32 before, u32 value, u32 error, u64 read)
{
	u32 now = *page_word(DATA_AT), done = kind == WRITE ? value : kind == MODIFY ? before + value : before;

	if (kind == MARK_DESCRIPTOR && error == ALLOWED && !(*page_word(LDT_AT + 12) & 0x100))
		return false;
	if (kind == READ && error == ALLOWED && (u32)read != before)
		return false;
	return now == (error == ALLOWED ? done : before);
}

/* QEMU 7.2 leaves P out of the error code of a reserved bit. */
static u32 as_the_manual(const struct tally *t, u32 error)
{
	return !t->exact && error != ALLOWED && error & E_RSVD ? error | E_P : error;
}

static void churn(u32 pages)
{
	static u8 *area;
	static u64 next;

	if (pages && !area)
		area = ram_alloc(CHURN_AREA, PAGE_SIZE);
	for (; pages; pages--, next = (next + PAGE_SIZE) % CHURN_AREA)
		*(volatile u64 *)(area + next) = next;
}

void check_access(struct tally *t, const struct cpu *cpu, const u64 *entries, u32 way, u32 n)
{
	enum kind kind = way >= 2 * LOAD_DESCRIPTOR ? LOAD_DESCRIPTOR + way % 2 : way / 2;
	bool user = way & 1 || is_implicit(kind);
	u32 value = is_implicit(kind) ? LDT_SELECTOR(kind == MARK_DESCRIPTOR) : n * 0x9e3779b1u;
	u32 before, wanted, as_write, error, wrong;
	const struct probed *found;
	int leaf;

	if (kind == MARK_DESCRIPTOR)
		reset_descriptor();
	before = *page_word(DATA_AT);
	wanted = verdict(cpu, entries, kind, user, &leaf, &as_write);
	found = probe(window + address_of(kind), kind, user, cpu->ac, value);
	error = as_read_first(as_the_manual(t, error_of(found, kind)), wanted, as_write);
	wrong = compare(t, cpu, entries, kind, wanted, leaf);
	churn(t->churn);
	t->tried++;
	t->checksum = checksum_add(t->checksum, error);
	if (error == wanted && !wrong && data_is_right(kind, before, value, error, found->value))
		return;
	show(t, cpu, entries, kind, user);
	if (t->failures <= FAILURES_SHOWN)
		printf("  error %x instead of %x, entry %u, data %08x was %08x\n", error, wanted, wrong, *page_word(DATA_AT),
		       before);
}
