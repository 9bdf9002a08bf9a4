/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cross-modifying code. CPUs take turns as the writer. First it rewrites all functions as data and
 * sets a flag, and the others serialize and run them; then it rewrites some of a few that the others
 * run all the time, with all of them stopped (stop.c) and without (poke.c). Who calls a function
 * whose version stays the same over the call must get that version's value.
 */
#include "patch.h"

u64 pages = DEFAULT_pages, first, *version;

static u64 turns = DEFAULT_turns, patches = DEFAULT_patches;
static u64 flag, turns_over;
static struct barrier barrier;

static void wrong(u64 i, u64 value, u64 seen)
{
	cpu_fail("CPU %u: function %lu of version %lu.%lu returns 0x%lx", cpu_id(), i, seen / 2, seen % 2 * 5, value);
}

/*
 * Call a function that may be rewritten meanwhile. Then its value is one of the versions from the one
 * before the call to the one after it; a version under way may show as a breakpoint.
 */
static void call(u64 i, u64 at)
{
	u64 before = load_acquire(&version[i]), value, after;
	bool changing;

	value = ((u64(*)(void))at)();
	after = load_acquire(&version[i]);
	changing = before != after || after % 2;
	if (value == BREAKPOINT && changing)
		return;
	for (u64 generation = before / 2; generation <= (after + 1) / 2; generation++)
		if (value == value_of(i, generation))
			return;
	wrong(i, value, before);
}

/* As data, from the alias in every second turn; then the flag. */
static void rewrite_all(u64 turn)
{
	for (u64 i = 0; i < pages; i++) {
		u64 code = turn % 2 ? alias_of(code_of(i)) : code_of(i);

		put_byte(code, 0xb8);
		put_constant(code, value_of(i, version[i] / 2 + 1));
		put_byte(code + 5, 0xc3);
		version[i] += 2;
	}
	store_release(&flag, turn);
}

static void run_all(u64 turn)
{
	spin_until(load_acquire(&flag) == turn, "the writer's flag");
	serialize();
	for (u64 i = 0; i < pages; i++)
		call(i, (turn + i) % 3 ? code_of(i) : alias_of(code_of(i)));
}

static u64 hot(u64 k)
{
	return k % min_u64(NR_HOT, pages);
}

/* Functions in the writer's own order; each is run by the writer as soon as it is new. */
static void rewrite_some(u64 turn)
{
	for (u64 k = 0; k < 2 * patches; k++) {
		u64 i = hot(mix(turn * 2 * patches + k));

		if (k % 2)
			patch_stopped(i);
		else
			patch_by_breakpoint(i);
		call(i, code_of(i));
	}
	store_release(&turns_over, turn);
}

static void run_some(u64 turn)
{
	for (u64 k = 0; load_acquire(&turns_over) != turn; k++)
		call(hot(k), code_of(hot(k)));
}

static void take_turns(u64 unused)
{
	(void)unused;
	for (u64 turn = 1; turn <= turns; turn++) {
		bool writer = turn % nr_cpus == cpu_id();

		barrier_wait(&barrier);
		if (writer)
			rewrite_all(turn);
		run_all(turn);
		barrier_wait(&barrier);
		if (writer)
			rewrite_some(turn);
		else
			run_some(turn);
	}
}

static void map_code(void)
{
	u64 frames = pages + 1, root = space_create();

	first = (u64)ram_alloc(frames * PAGE_SIZE, PAGE_SIZE);
	version = ram_alloc(pages * sizeof(*version), PAGE_SIZE);
	memset(version, 0, pages * sizeof(*version));
	for (u64 i = 0; i < frames; i++)
		map_page(root, FIRST_GVA + i * PAGE_SIZE, first + i * PAGE_SIZE, PT_PRESENT | PT_WRITABLE);
	write_cr3(root);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "pages", &pages, 1, 1UL << 18 },
		{ "turns", &turns, 1, 1UL << 32 },
		{ "patches", &patches, 0, 1UL << 32 },
	};
	u64 checksum = 0;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	map_code();
	stop_init();
	poke_init();
	smp_start(false);
	smp_call_all(take_turns, 0);
	for (u64 i = 0; i < pages; i++) {
		u64 value = ((u64(*)(void))code_of(i))();

		if (value != value_of(i, version[i] / 2))
			wrong(i, value, version[i]);
		checksum = checksum_add(checksum, value);
	}
	printf("%lu pages of code, %lu turns as the writer, %lu patches in each\n", pages, turns, 2 * patches);
	finish(checksum, true);
}
