/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "control.h"

#include "guest.h"
#include "probe.h"

#define PE (1ull << 0)
#define NW (1ull << 29)
#define PG (1ull << 31)
#define PAE (1ull << 5)
#define LA57 (1ull << 12)
#define PKE (1ull << 22)
#define LME (1ull << 8)
#define SVME (1ull << 12)
#define BIT(n) (1ull << (n))

/* A load of the register's value with bits turned; OK must leave it as it was but for what `loaded` says. */
struct load {
	enum control what;
	u64 turned, loaded;
	u32 vector;
};

static void fail_load(struct tally *t, const struct load *load, u64 now)
{
	printf("control %d turned %016lx: vector %d instead of %d, value %016lx\n", load->what, load->turned,
	       (int)probe_result()->vector, (int)load->vector, now);
	t->failures++;
}

static void try_load(struct tally *t, const struct load *load)
{
	u64 before = read_control(load->what), now;

	probe_control(load->what, before ^ load->turned);
	now = read_control(load->what);
	t->tried++;
	t->checksum = checksum_add(t->checksum, load->vector);
	if (probe_result()->vector != load->vector || now != (before ^ load->loaded) ||
	    (load->vector != NONE && load->vector != VECTOR_UD && probe_result()->error))
		fail_load(t, load, now);
	probe_control(load->what, before);
}

static const struct load loads[] = {
	{ CONTROL_CR0, 0, 0, NONE },
	{ CONTROL_CR0, PG, 0, VECTOR_GP },
	{ CONTROL_CR0, PE, 0, VECTOR_GP },
	{ CONTROL_CR0, PE | PG, 0, VECTOR_GP },
	{ CONTROL_CR0, NW, 0, VECTOR_GP },
	{ CONTROL_CR0, BIT(32), 0, VECTOR_GP },
	{ CONTROL_CR0, BIT(63), 0, VECTOR_GP },
	{ CONTROL_CR0, BIT(6) | BIT(15) | BIT(17) | BIT(28), 0, NONE },
	{ CONTROL_CR3, BIT(63), 0, VECTOR_GP },
	{ CONTROL_CR3, BIT(62), 0, VECTOR_GP },
	{ CONTROL_CR3, BIT(52), 0, VECTOR_GP },
	{ CONTROL_CR3, BIT(51), 0, VECTOR_GP },
	{ CONTROL_CR3, BIT(3) | BIT(4), BIT(3) | BIT(4), NONE },
	{ CONTROL_CR4, PAE, 0, VECTOR_GP },
	{ CONTROL_CR4, LA57, 0, VECTOR_GP },
	{ CONTROL_CR4, BIT(15), 0, VECTOR_GP },
	{ CONTROL_CR4, BIT(31), 0, VECTOR_GP },
	{ CONTROL_CR4, BIT(32), 0, VECTOR_GP },
	{ CONTROL_CR4, BIT(63), 0, VECTOR_GP },
	{ CONTROL_EFER, LME, 0, VECTOR_GP },
	{ CONTROL_EFER, SVME, 0, VECTOR_GP },
	{ CONTROL_EFER, BIT(1), 0, VECTOR_GP },
	{ CONTROL_EFER, BIT(63), 0, VECTOR_GP },
};

static const struct load key_loads[] = {
	{ CONTROL_PKRU, 0xffffffff, 0xffffffff, NONE },
	{ CONTROL_PKRU_ECX, 0, 0, VECTOR_GP },
	{ CONTROL_PKRU, BIT(32), 0, VECTOR_GP },
	{ CONTROL_PKRU, BIT(63), 0, VECTOR_GP },
};

/* What a CPU without keys does with CR4.PKE, and one with them when CR4.PKE is clear. */
static void try_keys(struct tally *t, const struct cpu *has)
{
	const struct load pke = { CONTROL_CR4, PKE, 0, VECTOR_GP }, pkru = { CONTROL_PKRU, 0, 0, VECTOR_UD };
	u64 cr4 = read_control(CONTROL_CR4) | PKE;

	if (!has->pke) {
		try_load(t, &pke);
		try_load(t, &pkru);
		return;
	}
	probe_control(CONTROL_CR4, cr4);
	for (u32 n = 0; n < ARRAY_SIZE(key_loads); n++)
		try_load(t, &key_loads[n]);
	probe_control(CONTROL_CR4, cr4 & ~PKE);
	try_load(t, &pkru);
}

/* QEMU 7.2 refuses few of them. */
void run_control(struct tally *t, const struct cpu *has)
{
	struct load beyond = { CONTROL_CR3, BIT(has->maxphyaddr), 0, VECTOR_GP };

	for (u32 n = 0; n < ARRAY_SIZE(loads); n++)
		try_load(t, &loads[n]);
	try_load(t, &beyond);
	try_keys(t, has);
}

static void try_address(struct tally *t, u64 address, int kind, bool user, u32 vector)
{
	const struct probed *found = probe(address, kind, user, false, 0);
	u32 expected = vector == VECTOR_PF ? (user ? E_U : 0) | (kind == WRITE || kind == PUSH ? E_W : 0) : 0;
	u32 error = vector == VECTOR_PF ? found->error & ~(E_FETCH | (kind == MODIFY ? E_W : 0)) : found->error;

	t->tried++;
	t->checksum = checksum_add(t->checksum, vector);
	if (found->vector == vector && error == expected && (vector != VECTOR_PF || found->cr2 == address))
		return;
	printf("address %016lx kind %d user %d: vector %d error %x instead of vector %d\n", address, kind, user,
	       (int)found->vector, found->error, (int)vector);
	t->failures++;
}

/* The ends of the hole, and of what is a hole with four levels only. QEMU 7.2 knows no #SS here. */
void run_canonical(struct tally *t, const struct cpu *has)
{
	const u64 low = BIT(has->levels == 5 ? 56 : 47), page = PAGE_SIZE;
	const u64 holes[] = { low, low + 0x123450, -low - 8, -low - page, BIT(62), BIT(63) };
	const u64 others[] = { low - page, -low, BIT(has->levels == 5 ? 50 : 45), -BIT(40) };

	for (int kind = READ; kind <= LOAD_GS_RBP; kind++) {
		bool stack = kind == PUSH || kind == LOAD_RBP;

		if (kind == LOAD_DESCRIPTOR || kind == MARK_DESCRIPTOR)
			continue;
		for (int user = kind >= PUSH; user < 2; user++) {
			for (u32 n = 0; n < ARRAY_SIZE(holes); n++)
				if (!stack || t->exact)
					try_address(t, holes[n], kind, user, stack ? VECTOR_SS : VECTOR_GP);
			for (u32 n = 0; n < ARRAY_SIZE(others); n++)
				try_address(t, others[n], kind, user, VECTOR_PF);
		}
	}
}
