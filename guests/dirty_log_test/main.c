/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * For dirty logging, after the idea of KVM's selftest of that name: in each iteration every writer
 * stores the iteration's number to random pages, each to a word of its own in the page. A page that
 * a log calls clean must hold what it held when it was last found dirty.
 *
 * Writers are shared out among the CPUs. What each word must hold is kept beside, and compared
 * before every store and at the end: memory that went back to an older state shows here, too.
 */
#include "guest.h"
#include "smp/atomic.h"
#include "smp/smp.h"

#define WORDS_PER_PAGE (PAGE_SIZE / sizeof(u64))

static u64 pages = DEFAULT_pages, iterations = DEFAULT_iterations, writes = DEFAULT_writes;
static u64 writers = DEFAULT_writers, seed = DEFAULT_seed;

static u64 *memory;
static u32 *expected; /* [writer * pages + page] */
static u64 *random;   /* state of each writer */
static struct barrier between;

static u64 *word_of(u64 writer, u64 page)
{
	return memory + page * WORDS_PER_PAGE + writer;
}

static void check(u64 writer, u64 page)
{
	u64 found = *word_of(writer, page), right = expected[writer * pages + page];

	if (found != right)
		cpu_fail("page %lu word %lu: iteration %lu, not %lu", page, writer, found, right);
}

static void iterate(u64 writer, u64 iteration)
{
	for (u64 i = 0; i < writes; i++) {
		u64 page = random_next(&random[writer]) % pages;

		check(writer, page);
		*(volatile u64 *)word_of(writer, page) = iteration;
		expected[writer * pages + page] = (u32)iteration;
	}
}

static void work(u64 unused)
{
	(void)unused;
	for (u64 iteration = 1; iteration <= iterations; iteration++) {
		for (u64 writer = cpu_id(); writer < writers; writer += nr_cpus)
			iterate(writer, iteration);
		barrier_wait(&between);
	}
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "pages", &pages, 1, 1UL << 20 },       { "iterations", &iterations, 1, 1UL << 30 },
		{ "writes", &writes, 1, 1UL << 30 },     { "writers", &writers, 1, WORDS_PER_PAGE },
		{ "seed", &seed, 0, ~0UL },
	};
	u64 checksum = 0;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	memory = ram_alloc(pages * PAGE_SIZE, PAGE_SIZE);
	expected = ram_alloc(writers * pages * sizeof(*expected), PAGE_SIZE);
	random = ram_alloc(writers * sizeof(*random), PAGE_SIZE);
	memset(memory, 0, pages * PAGE_SIZE);
	memset(expected, 0, writers * pages * sizeof(*expected));
	for (u64 writer = 0; writer < writers; writer++)
		random[writer] = mix(seed + writer);
	smp_start(false);
	smp_call_all(work, 0);
	for (u64 page = 0; page < pages; page++)
		for (u64 writer = 0; writer < writers; writer++) {
			check(writer, page);
			checksum = checksum_add(checksum, *word_of(writer, page));
		}
	printf("%lu writers stored to %lu pages in %lu iterations\n", writers, pages, iterations);
	finish(checksum, true);
}
