/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Counting by single locked instructions, at every kind of address. */
#include "counter.h"

struct pair {
	u64 low, high;
};

static u64 found_sum, wins;

static void by_inc(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++)
		__asm__ volatile("lock incq %0" : "+m"(*counter_of(k)) : : "memory", "cc");
}

/* Each number from 0 on is found once on each counter. */
static void by_xadd(u64 first, u64 n)
{
	u64 sum = 0;

	for (u64 k = first; k < first + n; k++)
		sum += atomic_xadd(counter_of(k), 1);
	atomic_xadd(&found_sum, sum);
}

static void by_cmpxchg(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++) {
		u64 *counter = counter_of(k), old = *(volatile u64 *)counter, found;

		while ((found = atomic_cmpxchg(counter, old, old + 1)) != old)
			old = found;
	}
}

static void by_cmpxchg8b(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++) {
		u64 *counter = counter_of(k), old = *(volatile u64 *)counter, new;
		u32 low = (u32)old, high = (u32)(old >> 32);
		bool done;

		do {
			new = ((u64)high << 32 | low) + 1;
			__asm__ volatile("lock cmpxchg8b %1"
					 : "=@ccz"(done), "+m"(*counter), "+a"(low), "+d"(high)
					 : "b"((u32)new), "c"((u32)(new >> 32))
					 : "memory");
		} while (!done);
	}
}

/* Two words that change together: the second is always a multiple of the first. */
static void by_cmpxchg16b(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++) {
		struct pair *pair = (struct pair *)counter_of(k), old = { 0, 0 };
		bool done;

		do {
			if (old.high != old.low * GOLDEN)
				cpu_fail("cmpxchg16b finds %lx and %lx", old.low, old.high);
			__asm__ volatile("lock cmpxchg16b %1"
					 : "=@ccz"(done), "+m"(*pair), "+a"(old.low), "+d"(old.high)
					 : "b"(old.low + 1), "c"((old.low + 1) * GOLDEN)
					 : "memory");
		} while (!done);
	}
}

/* One more, by way of numbers that carry through all bytes. */
static void by_add_and_sub(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++) {
		u64 *counter = counter_of(k), excess = mix(k);

		__asm__ volatile("lock addq %1, %0" : "+m"(*counter) : "r"(excess + 1) : "memory", "cc");
		__asm__ volatile("lock subq %1, %0" : "+m"(*counter) : "r"(excess) : "memory", "cc");
	}
}

/* A byte, a word and a doubleword of one counter; none of them may carry into the next. */
static void by_parts(u64 first, u64 n)
{
	for (u64 k = first; k < first + n; k++) {
		u8 *counter = (u8 *)counter_of(k);

		__asm__ volatile("lock incb %0" : "+m"(counter[0]) : : "memory", "cc");
		__asm__ volatile("lock addw $1, %0" : "+m"(*(u16 *)(counter + 2)) : : "memory", "cc");
		__asm__ volatile("lock decl %0" : "+m"(*(u32 *)(counter + 4)) : : "memory", "cc");
	}
}

/* Each CPU has a bit of its own; NOT and XOR change those of the others, twice. */
static void by_logic(u64 first, u64 n)
{
	u64 bit = 1UL << cpu_id();

	for (u64 k = first; k < first + n; k++) {
		u64 *counter = counter_of(k);

		__asm__ volatile("lock orq %1, %0" : "+m"(*counter) : "r"(bit << 32) : "memory", "cc");
		__asm__ volatile("lock xorq %1, %0" : "+m"(*counter) : "r"(bit) : "memory", "cc");
		__asm__ volatile("lock notw 2(%0)" : : "r"(counter) : "memory");
		if (!(*(volatile u64 *)counter & bit << 32))
			cpu_fail("lock or: the bit of CPU %u is lost", cpu_id());
		__asm__ volatile("lock notw 2(%0)" : : "r"(counter) : "memory");
		__asm__ volatile("lock xorq %1, %0" : "+m"(*counter) : "r"(bit) : "memory", "cc");
		__asm__ volatile("lock andq %1, %0" : "+m"(*counter) : "r"(~(bit << 32)) : "memory", "cc");
	}
}

static u64 bits(void)
{
	return min_u64(count, pages * PAGE_SIZE * 4);
}

/*
 * Half of the bits lie side by side, half are spread over the other pages. They are numbered from
 * the middle of the pages, so that half the numbers are negative. CPUs go through each run of 64 from
 * another one on.
 */
static u64 bit_at(u64 k)
{
	u64 there = pages * PAGE_SIZE * 8, turned = k | 63;

	turned = turned < bits() ? (k & ~63UL) | ((k + cpu_id() * 8) & 63) : k;
	if (turned % 2)
		return turned / 2 - there / 2;
	return bits() + turned / 2 * ((there - bits()) / bits()) - there / 2;
}

static u64 *middle(void)
{
	return counter_on(0) + pages * PAGE_SIZE / 2 / sizeof(u64);
}

/* All CPUs try to set every bit, and one of them does. */
static void by_bts(u64 first, u64 n)
{
	(void)first, (void)n;
	for (u64 k = 0; k < bits(); k++)
		if (!atomic_bts(middle(), bit_at(k)))
			atomic_xadd(&wins, 1);
}

static void by_btr(u64 first, u64 n)
{
	(void)first, (void)n;
	for (u64 k = 0; k < bits(); k++)
		if (atomic_btr(middle(), bit_at(k)))
			atomic_xadd(&wins, 1);
}

/* Every bit is flipped once by each CPU. */
static void by_btc(u64 first, u64 n)
{
	(void)first, (void)n;
	for (u64 k = 0; k < bits(); k++)
		__asm__ volatile("lock btcq %1, %0" : "+m"(*middle()) : "r"(bit_at(k)) : "memory", "cc");
}

static u64 parts(u64 increments)
{
	return (increments & 0xff) | (increments & 0xffff) << 16 | (0 - increments) << 32;
}

static u64 nothing(u64 increments)
{
	return increments & 0;
}

static void check_xadd(const char *name)
{
	u64 expected = 0;

	for (u64 k = 0; k < pages; k++) {
		u64 increments = visits(count, k);

		expected += increments * (increments - 1) / 2;
	}
	if (found_sum != expected)
		fail("%s: what it finds adds up to %lu, not %lu", name, found_sum, expected);
	found_sum = 0;
}

static void count_at(enum place where, const char *xadd, const char *cmpxchg)
{
	place = where;
	run_method(by_xadd, count);
	check_xadd(xadd);
	check_counters(xadd, count, once);
	run_method(by_cmpxchg, count);
	check_counters(cmpxchg, count, once);
}

static void check_wins(const char *name, u64 wanted)
{
	if (wins != wanted)
		fail("%s: %lu bits changed, not %lu", name, wins, wanted);
	printf("%-20s %lu\n", name, bits());
	wins = 0;
}

static void count_bits(void)
{
	place = ALIGNED;
	run_method(by_bts, count);
	check_wins("bts", bits());
	run_method(by_btr, count);
	check_wins("btr", bits());
	run_method(by_btc, count);
	run_method(by_btr, count);
	check_wins("btc", nr_cpus % 2 ? bits() : 0);
}

void count_by_instructions(void)
{
	static const struct {
		const char *name;
		method run;
		enum place place;
		u64 (*expected)(u64 increments);
	} methods[] = {
		{ "inc", by_inc, ALIGNED, once },
		{ "add, sub", by_add_and_sub, ACROSS_PAGE, once },
		{ "or, and, xor, not", by_logic, ALIGNED, nothing },
		{ "byte, word, dword", by_parts, ACROSS_LINE, parts },
		{ "cmpxchg8b", by_cmpxchg8b, ACROSS_PAGE, once },
		{ "cmpxchg16b", by_cmpxchg16b, ALIGNED, once },
	};

	for (u64 i = 0; i < ARRAY_SIZE(methods); i++) {
		place = methods[i].place;
		run_method(methods[i].run, count);
		check_counters(methods[i].name, count, methods[i].expected);
	}
	count_at(ALIGNED, "xadd", "cmpxchg");
	count_at(ACROSS_LINE, "xadd, two lines", "cmpxchg, two lines");
	count_at(ACROSS_PAGE, "xadd, two pages", "cmpxchg, two pages");
	count_bits();
}
