/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "walk.h"

#include "guest.h"
#include "long.h"
#include "window.h"

#define ACCESSES 3
#define EXPLICIT_WAYS (2 * LOAD_DESCRIPTOR)
#define ROOTS 2

struct state {
	struct cpu cpu;
	const struct cpu *has;
	u64 random;
	u32 root, paths;
	int highest_leaf;
	/* Pages are global; then only one root is used, since they outlive a CR3. */
	bool global;
};

static u32 draw(struct state *s, u32 below)
{
	return (u32)(random_next(&s->random) >> 32) % below;
}

/* Rights that refuse something in one entry of a few, so that most accesses get far. */
static u64 random_entry(struct state *s, int level)
{
	bool leaf = level == 1 || (level <= s->highest_leaf && draw(s, 3) == 0);
	u64 entry = P | W | U | (leaf && level > 1 ? PS : 0);

	if (draw(s, 3) == 0)
		entry &= ~(draw(s, 2) ? W : U);
	if (draw(s, 6) == 0)
		entry |= NX;
	if (draw(s, 12) == 0)
		entry |= level > 3 ? PS : 1ull << 51;
	if (draw(s, 12) == 0)
		entry &= ~P;
	if (draw(s, 2))
		entry |= draw(s, 2) ? A : leaf ? A | D : 0;
	if (leaf)
		entry |= (u64)draw(s, 16) << KEY_SHIFT | (s->global && draw(s, 2) ? G : 0);
	return entry | target(level, leaf);
}

/* How an entry is stored. */
static void store(struct state *s, u64 *identity, u64 value)
{
	volatile u64 *entry = (u64 *)(draw(s, 2) ? (u64)identity : alias_of(identity));
	u64 old = *entry;

	switch (draw(s, 6)) {
	case 0:
		for (int i = 0; i < 8; i++)
			((volatile u8 *)entry)[i] = value >> 8 * i;
		break;
	case 1:
		((volatile u32 *)entry)[1] = value >> 32;
		((volatile u32 *)entry)[0] = (u32)value;
		break;
	case 2:
		__asm__ volatile("lock cmpxchgq %2, %1" : "+a"(old), "+m"(*entry) : "r"(value));
		break;
	case 3:
		__asm__ volatile("xchgq %0, %1" : "+r"(value), "+m"(*entry));
		break;
	case 4:
		__asm__ volatile("rep movsb" : : "S"(&value), "D"(entry), "c"(8) : "memory");
		break;
	default:
		*entry = value;
	}
}

/* What the TLB may hold of any path is gone. */
static void invalidate(struct state *s)
{
	switch (draw(s, s->global ? 2 : 3)) {
	case 0:
		for (u32 path = 0; path < s->paths; path++)
			invlpg(path_address(path));
		break;
	case 1:
		flush_all();
		break;
	default:
		write_cr3(root_of(s->root));
	}
}

/* No invalidation is needed for an entry that was not present (SDM vol. 3, 4.10.4.3). */
static void change_entry(struct state *s)
{
	int level = 1 + (int)draw(s, (u32)s->cpu.levels);
	u64 *entry = path_entry(level, draw(s, 2) << (level - 1), s->root), old = *entry;

	store(s, entry, random_entry(s, level));
	if (old & P || draw(s, 8) == 0)
		invalidate(s);
}

/* QEMU 7.2 does not look at its TLB when CR4.PKE changes. */
static void change_control(const struct tally *t, struct state *s)
{
	bool pke = s->cpu.pke;

	struct cpu *cpu = &s->cpu;

	switch (draw(s, 5)) {
	case 0:
		cpu->wp = !cpu->wp;
		break;
	case 1:
		cpu->smep = s->has->smep && !cpu->smep;
		break;
	case 2:
		cpu->smap = s->has->smap && !cpu->smap;
		break;
	case 3:
		cpu->pke = s->has->pke && !cpu->pke;
		break;
	default:
		cpu->nxe = s->has->nxe && !cpu->nxe;
	}
	set_control(cpu, s->has);
	if (!t->exact && cpu->pke != pke)
		flush_all();
}

/* One access in the present state. */
static void try_way(struct tally *t, struct state *s, u32 way, u32 n)
{
	u64 entries[MAX_LEVELS + 1];

	for (int level = s->cpu.levels; level; level--)
		entries[level] = *entry_of[level];
	check_access(t, &s->cpu, entries, way, n);
}

static void change_key_rights(struct state *s)
{
	if (s->cpu.pke)
		wrpkru(s->cpu.pkru = draw(s, ~0u) & (draw(s, 2) ? ~0u << 2 : 0xff00ff00u));
}

/* Accesses through a few paths after a change of something. */
static void change_and_try(struct tally *t, struct state *s, u32 n)
{
	u32 what = draw(s, 8);

	if (what == 0)
		change_control(t, s);
	else if (what == 1 && !s->global)
		write_cr3(root_of(s->root = draw(s, ROOTS)));
	else if (what < 7)
		change_entry(s);
	for (u32 i = 0; i < ACCESSES; i++) {
		use_path(&s->cpu, draw(s, s->paths), s->root);
		s->cpu.ac = draw(s, 2);
		if (draw(s, 4) == 0)
			change_key_rights(s);
		try_way(t, s, draw(s, EXPLICIT_WAYS), n + i);
	}
}

/*
 * Nothing but CR0.WP keeps the supervisor from storing to the leaf of this path, a user's page that
 * is read-only and has a key that allows everything so far.
 */
static void make_read_only(struct state *s, u32 path)
{
	int leaf = 1 + (int)draw(s, (u32)s->highest_leaf);

	s->cpu.wp = s->cpu.smep = s->cpu.smap = false;
	s->cpu.pke = s->has->pke && draw(s, 2);
	set_control(&s->cpu, s->has);
	if (s->cpu.pke)
		wrpkru(s->cpu.pkru = 0);
	for (int level = s->cpu.levels; level >= leaf; level--) {
		u64 rights = P | U | (level > leaf ? W : 0) | (level == leaf && leaf > 1 ? PS : 0);

		if (level == leaf)
			rights |= (u64)draw(s, 16) << KEY_SHIFT;
		store(s, path_entry(level, path, s->root), target(level, level == leaf) | rights);
	}
	flush_all();
}

/*
 * One access, often a store of the supervisor's, which without CR0.WP makes the most of a page; then
 * another control bit or PKRU, and every access: what was built for the one mode may not serve the other.
 */
static void toggle_and_try(struct tally *t, struct state *s, u32 n)
{
	u32 first = draw(s, EXPLICIT_WAYS), path = draw(s, s->paths);

	if (draw(s, 2))
		make_read_only(s, path);
	use_path(&s->cpu, path, s->root);
	s->cpu.ac = draw(s, 2);
	try_way(t, s, draw(s, 2) ? 2 * WRITE : first, n);
	if (draw(s, s->cpu.pke ? 2 : 8) == 0)
		change_key_rights(s);
	else
		change_control(t, s);
	for (u32 i = 0; i < EXPLICIT_WAYS; i++)
		try_way(t, s, (first + i) % EXPLICIT_WAYS, n + i);
}

void run_walk(struct tally *t, const struct cpu *has, u32 steps)
{
	struct state s = { .cpu = *has, .has = has, .paths = 1u << has->levels };

	s.highest_leaf = highest_leaf(t, has);
	for (int global = 0; global < 2; global++) {
		s.global = global;
		write_cr3(root_of(s.root = 0));
		set_control(&s.cpu, has);
		for (int level = has->levels; level; level--)
			for (u32 which = 0; which < 2 * ROOTS; which++)
				*path_entry(level, (which & 1) << (level - 1), which / 2) = random_entry(&s, level);
		flush_all();
		if (s.cpu.pke)
			wrpkru(s.cpu.pkru = 0);
		for (u32 n = 0; n < steps; n++)
			if (draw(&s, 4))
				change_and_try(t, &s, n * EXPLICIT_WAYS);
			else
				toggle_and_try(t, &s, n * EXPLICIT_WAYS);
	}
	write_cr3(root_of(0));
	use_path(has, 0, 0);
}
