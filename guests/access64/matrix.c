/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "matrix.h"

#include "check.h"
#include "guest.h"
#include "long.h"
#include "window.h"

#define SETTINGS 64
#define RIGHTS_OF_ONE 64
#define KEYS 5
#define FEW 8
#define LOWEST_RESERVED 13

static u32 step;

/* Bits that the CPU must ignore: some of them, differently each time. */
static u64 ignored(const struct cpu *cpu, int level, u64 entry, u32 n)
{
	u64 noise = mix(n) & (AVAILABLE | PWT | PCD | bits(58, 52));

	if (!is_leaf(cpu, level, entry))
		return noise | (mix(n) & bits(62, KEY_SHIFT)) | (mix(n) & (level == 4 || level == 5 ? 0 : G)) |
		       (mix(n) & D);
	return noise | (mix(n) & (level == 1 ? G | PS : G));
}

/* Six bits of a number as W, U, A, NX, a physical-address bit that the CPU does not have, and D or PS. */
static u64 rights_of(u32 n, u64 last)
{
	return P | (n & 1 ? W : 0) | (n & 2 ? U : 0) | (n & 4 ? A : 0) | (n & 8 ? NX : 0) | (n & 16 ? 1ull << 51 : 0) |
	       (n & 32 ? last : 0);
}

/* W, U and NX. */
static u64 few_rights_of(u32 n)
{
	return P | (n & 1 ? W : 0) | (n & 2 ? U : 0) | (n & 4 ? NX : 0);
}

/* How many values the entry of `level` has that single_entry() gives. */
static u32 values_of(int level, int leaf)
{
	if (level > leaf)
		return 2 + RIGHTS_OF_ONE;
	return 2 + RIGHTS_OF_ONE * KEYS + (level > 1 ? 3 * FEW : 0);
}

/*
 * The value of an entry under test, without its address: not present in two ways, then rights; of a
 * leaf with every key setting, then with the bits that only large pages have. *key: see set_key().
 */
static u64 single_entry(int level, int leaf, u32 n, u32 *key)
{
	static const u64 large[] = { LARGE_PAT, 1ull << LOWEST_RESERVED, 0 };

	*key = 0;
	if (n < 2)
		return n ? ~P & ~bits(51, 12) : 0;
	n -= 2;
	if (level > leaf)
		return rights_of(n, level > 3 ? PS : D);
	if (n < RIGHTS_OF_ONE * KEYS) {
		*key = n / RIGHTS_OF_ONE;
		return rights_of(n % RIGHTS_OF_ONE, D);
	}
	n -= RIGHTS_OF_ONE * KEYS;
	return few_rights_of(n % FEW) | (n / FEW < 2 ? large[n / FEW] : 1ull << (level == 2 ? 20 : 29));
}

/*
 * Key setting 0 is key 0, which PKRU always allows; 1 to 4 are some other key with AD and WD as in
 * the number less one. PKRU says the opposite of all other keys.
 */
static u64 set_key(struct cpu *cpu, u32 setting, u32 n)
{
	u32 key = setting ? 1 + n % 15 : 0, field = setting ? setting - 1 : 0;
	u32 pkru = 0x55555555u * (3 - field) & ~3u;

	if (cpu->pke && setting)
		pkru = (pkru & ~(3u << 2 * key)) | field << 2 * key;
	if (cpu->pke && pkru != cpu->pkru)
		wrpkru(cpu->pkru = pkru);
	return (u64)key << KEY_SHIFT;
}

/*
 * One access with these entries, then two more in other ways, with another EFLAGS.AC and PKRU: what
 * the CPU keeps of the first may not serve them if it is not allowed to.
 */
static void three_accesses(struct tally *m, const struct cpu *cpu, const u64 *entries, u32 way, u32 n)
{
	struct cpu now = *cpu;
	u64 current[MAX_LEVELS + 1];

	for (int level = cpu->levels; level; level--)
		if (*entry_of[level] != entries[level])
			*(volatile u64 *)entry_of[level] = entries[level];
	invlpg(window);
	check_access(m, cpu, entries, way, n);
	for (u32 again = 1; again < 3; again++) {
		u64 other = mix(n * 4ull + again);

		for (int level = cpu->levels; level; level--)
			current[level] = *entry_of[level];
		now.ac = other >> 32 & 1;
		if (now.pke)
			wrpkru(now.pkru = (u32)(other >> 33) & ~3u);
		check_access(m, &now, current, other % WAYS, n + again);
	}
	if (cpu->pke)
		wrpkru(cpu->pkru);
}

static void all_ways(struct tally *m, const struct cpu *cpu, const u64 *entries, u32 *n)
{
	for (u32 way = 0; way < WAYS; way++, ++*n)
		if (*n % step == 0)
			three_accesses(m, cpu, entries, way, *n);
}

/* Entries that allow everything, down to a leaf of `leaf`. */
static void permissive(const struct cpu *cpu, int leaf, u64 *entries)
{
	for (int level = cpu->levels; level; level--)
		entries[level] = level < leaf ? 0 : target(level, level == leaf) | P | W | U | (level == leaf && level > 1 ? PS : 0);
}

/* Skip what no step falls on, without building it. */
static bool is_sampled(u32 *n)
{
	u32 next = (*n + step - 1) / step * step;

	if (next - *n < WAYS)
		return true;
	*n += WAYS;
	return false;
}

static void one_level(struct tally *m, struct cpu *cpu, int level, int leaf, u32 *n)
{
	u64 entries[MAX_LEVELS + 1];
	u32 key;

	permissive(cpu, leaf, entries);
	for (u32 value = 0; value < values_of(level, leaf); value++) {
		u64 entry = single_entry(level, leaf, value, &key), large = level == leaf && level > 1 ? PS : 0;

		if (!is_sampled(n))
			continue;
		entry |= target(level, level == leaf) | large;
		if (entry & P)
			entry |= ignored(cpu, level, entry, *n) & ~(level == leaf ? 0 : D);
		entries[level] = entry;
		if (level == leaf)
			entries[level] = (entry & ~bits(62, KEY_SHIFT)) | set_key(cpu, key, *n);
		all_ways(m, cpu, entries, n);
	}
}

static void two_levels(struct tally *m, struct cpu *cpu, int upper, int lower, int leaf, u32 *n)
{
	u64 entries[MAX_LEVELS + 1];

	permissive(cpu, leaf, entries);
	for (u32 value = 0; value < FEW * FEW; value++) {
		if (!is_sampled(n))
			continue;
		entries[upper] = target(upper, false) | few_rights_of(value / FEW);
		entries[lower] = target(lower, lower == leaf) | few_rights_of(value % FEW) | (lower == leaf && leaf > 1 ? PS : 0);
		all_ways(m, cpu, entries, n);
	}
}

static void all_entries(struct tally *m, struct cpu *cpu, u32 *n)
{
	for (int leaf = 1; leaf <= highest_leaf(m, cpu); leaf++) {
		for (int level = cpu->levels; level >= leaf; level--)
			one_level(m, cpu, level, leaf, n);
		for (int upper = cpu->levels; upper > leaf; upper--)
			for (int lower = upper - 1; lower >= leaf; lower--)
				two_levels(m, cpu, upper, lower, leaf, n);
	}
}

void run_matrix(struct tally *m, const struct cpu *has, u32 every)
{
	u32 n = 0;

	step = every;
	for (u32 setting = 0; setting < SETTINGS; setting++) {
		struct cpu cpu = *has;

		cpu.wp = setting & 1;
		cpu.ac = setting >> 1 & 1;
		cpu.nxe &= setting >> 2 & 1;
		cpu.smep &= setting >> 3 & 1;
		cpu.smap &= setting >> 4 & 1;
		cpu.pke &= setting >> 5 & 1;
		cpu.pkru = 0;
		set_control(&cpu, has);
		if (cpu.pke)
			wrpkru(0);
		all_entries(m, &cpu, &n);
	}
}
