/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "self.h"

#include "guest.h"
#include "long.h"
#include "window.h"

#define SELF 0x1feull

/* Where the entry of level `depth` that the window's translation uses is seen through the root as its own entry. */
static volatile u64 *own_view(int levels, int depth)
{
	int width = 12 + 9 * levels;
	u64 address = window & (bits(width - 1, 0));

	for (int i = 0; i < depth; i++)
		address = (address >> 9 & bits(width - 10, 3)) | SELF << (width - 9);
	return (volatile u64 *)((s64)(address << (64 - width)) >> (64 - width));
}

static void expect(struct tally *t, bool right, int depth, u64 value)
{
	t->tried++;
	if (right)
		return;
	t->failures++;
	printf("own entry of level %d: %016lx wrong\n", depth, value);
}

/* Store a leaf's entry through the root's own entry; the entry above it, a page's then, becomes dirty. */
static void one_store(struct tally *t, const struct cpu *cpu, u64 value, u32 n)
{
	u64 entries[MAX_LEVELS + 1];

	*entry_of[2] &= ~D;
	invlpg((u64)own_view(cpu->levels, 1));
	*own_view(cpu->levels, 1) = value;
	invlpg(window);
	expect(t, *entry_of[1] == value, 1, *entry_of[1]);
	expect(t, (*entry_of[2] & (A | D)) == (A | D), 2, *entry_of[2]);
	for (int depth = 1; depth <= cpu->levels; depth++)
		expect(t, (*own_view(cpu->levels, depth) & ~(A | D)) == (*entry_of[depth] & ~(A | D)), depth, value);
	for (u32 i = 0; i < 2; i++) {
		for (int level = cpu->levels; level; level--)
			entries[level] = *entry_of[level];
		check_access(t, cpu, entries, mix(2 * n + i) % (2 * LOAD_DESCRIPTOR), n);
	}
}

void run_self(struct tally *t, const struct cpu *has, u32 steps)
{
	const u64 own = SELF << 3;
	struct cpu cpu = *has;

	*(u64 *)(root_of(0) + own) = root_of(0) | P | W | (has->nxe ? NX : 0);
	use_path(&cpu, 0, 0);
	for (int level = cpu.levels; level; level--)
		*entry_of[level] = target(level, level == 1) | P | W | U;
	cpu.ac = false;
	set_control(&cpu, has);
	if (cpu.pke)
		wrpkru(cpu.pkru = 0xfffffff0);
	flush_all();
	for (u32 n = 0; n < steps; n++)
		one_store(t, &cpu, target(1, true) | P | (mix(n) & (W | U | A | D | NX | bits(62, KEY_SHIFT))), n);
	*(u64 *)(root_of(0) + own) = 0;
	flush_all();
}
