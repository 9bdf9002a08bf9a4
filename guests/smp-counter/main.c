/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All CPUs count in the same memory: under locks here, by single locked instructions in insn.c. The
 * totals are the same however many CPUs there are and in whatever order they run. The counters lie
 * on many pages, which are not neighbours in physical memory, so that a locked access may fault and
 * may have halves far apart.
 */
#include "counter.h"

u64 count = DEFAULT_count, locked = DEFAULT_locked, pages = DEFAULT_pages, checksum;
enum place place;

static method running;
static struct barrier begin;
static struct spinlock ticket_lock;
static u64 byte_lock;

static void run_share(u64 total)
{
	u64 cpu = cpu_id();

	barrier_wait(&begin);
	running(total * cpu / nr_cpus, share_of(total, cpu));
}

void run_method(method run, u64 total)
{
	running = run;
	smp_call_all(run_share, total);
}

u64 once(u64 increments)
{
	return increments;
}

void check_counters(const char *name, u64 total, u64 (*expected)(u64 increments))
{
	for (u64 k = 0; k < pages; k++) {
		u64 wanted = expected(visits(total, k)), found = *counter_on(k);

		if (found != wanted)
			fail("%s: counter %lu is %lu, not %lu", name, k, found, wanted);
		counter_on(k)[0] = counter_on(k)[1] = 0;
		checksum = checksum_add(checksum, found);
	}
	printf("%-20s %lu\n", name, total);
}

/*
 * A load, an addition and a store, for where a lock protects them; not one instruction, which no
 * other CPU of an emulator might come between.
 */
static void increment(u64 *counter)
{
	u64 value = *(volatile u64 *)counter;

	__asm__ volatile("" : "+r"(value));
	*(volatile u64 *)counter = value + 1;
}

static void under_ticket_lock(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++) {
		spin_lock(&ticket_lock);
		increment(counter_of(k));
		spin_unlock(&ticket_lock);
	}
}

static void under_xchg_lock(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++) {
		spin_until(!load_acquire(&byte_lock) && !atomic_xchg(&byte_lock, 1), "the xchg lock");
		increment(counter_of(k));
		store_release(&byte_lock, 0UL);
	}
}

/* Lamport's bakery needs no locked instruction, only stores that come before later loads. */
static struct {
	u64 choosing, number;
} bakery[MAX_CPUS];

static void bakery_lock(u64 me)
{
	u64 last = 0;

	store_full(&bakery[me].choosing, 1);
	for (u64 i = 0; i < nr_cpus; i++)
		last = load_acquire(&bakery[i].number) > last ? bakery[i].number : last;
	store_full(&bakery[me].number, last + 1);
	store_full(&bakery[me].choosing, 0);
	for (u64 i = 0; i < nr_cpus; i++) {
		u64 other;

		spin_until(!load_acquire(&bakery[i].choosing), "a number at the bakery");
		spin_until(!(other = load_acquire(&bakery[i].number)) || other > last + 1 ||
				   (other == last + 1 && i >= me),
			   "its turn at the bakery");
	}
}

static void under_bakery_lock(u64 first, u64 n)
{
	u64 me = cpu_id();

	for (u64 k = first; k < first + n; k++) {
		bakery_lock(me);
		increment(counter_of(k));
		store_release(&bakery[me].number, 0UL);
	}
}

static void count_under(const char *name, method run, u64 total)
{
	run_method(run, total);
	check_counters(name, total, once);
}

/* Increments may get lost, but none comes from nowhere; how many get lost is not printed. */
static void without_lock(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++)
		increment(counter_of(k));
}

static void count_without_lock(void)
{
	u64 sum = 0;

	place = ALIGNED;
	run_method(without_lock, count);
	for (u64 k = 0; k < pages; k++)
		sum += *counter_on(k);
	if (sum > count || (nr_cpus == 1 && sum < count))
		fail("%lu increments without a lock make %lu", count, sum);
}

/* Neighbouring pages are `pages` / 2 frames apart; one more lies behind the last counter. */
static void map_window(void)
{
	u64 frames = pages + 1, first = (u64)ram_alloc(frames * PAGE_SIZE, PAGE_SIZE), root = space_create();

	for (u64 i = 0; i < frames; i++) {
		u64 frame = i % 2 ? frames / 2 - i / 2 - 1 : frames / 2 + i / 2;

		map_page(root, FIRST_GVA + i * PAGE_SIZE, first + frame * PAGE_SIZE, PT_PRESENT | PT_WRITABLE);
	}
	write_cr3(root);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "count", &count, 1, 1UL << 32 },
		{ "locked", &locked, 1, 1UL << 32 },
		{ "pages", &pages, 1, 1UL << 20 },
	};

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	map_window();
	smp_start(false);
	count_under("ticket lock", under_ticket_lock, locked);
	count_under("bakery lock", under_bakery_lock, locked);
	count_under("xchg lock", under_xchg_lock, count);
	count_by_instructions();
	count_without_lock();
	finish(checksum, true);
}
