/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sieve of Eratosthenes over a byte per odd number. The boot CPU finds the primes up to the limit's
 * square root; then all CPUs fetch segments from a common counter, cross out, and count what is
 * left. A second pass, with other segments, counts again and sums up the squares. The count is checked against
 * Legendre's formula, which never looks at the sieve, and every CPU's counts against the whole.
 */
#include "guest.h"
#include "smp/atomic.h"
#include "smp/smp.h"

static u64 limit = DEFAULT_limit, segment = DEFAULT_segment;

/* composite[i] is about 2 * i + 1; 1 is taken for 2, so that byte 0 counts as a prime. */
static u8 *composite;
static u64 odds;
static u32 *base;
static u64 nr_base;

/* Of one pass: the next segment, and what all CPUs found. */
static struct {
	u64 next, primes, sum;
} pass[2];
static u64 primes_of[MAX_CPUS], segments_of[MAX_CPUS];
static struct barrier between;

static u64 number_at(u64 i)
{
	return i ? 2 * i + 1 : 2;
}

/* Odd primes p with p * p < limit, by division. */
static void find_base(void)
{
	u64 candidates = 1;

	for (u64 p = 3; p * p < limit; p += 2)
		candidates++;
	base = ram_alloc(candidates * sizeof(u32), PAGE_SIZE);
	for (u64 p = 3; p * p < limit; p += 2) {
		u64 i = 0;

		while (i < nr_base && (u64)base[i] * base[i] <= p && p % base[i])
			i++;
		if (i == nr_base || (u64)base[i] * base[i] > p)
			base[nr_base++] = (u32)p;
	}
}

/* Bytes [from, to): odd multiples of p from p * p on are p bytes apart. */
static void sieve_segment(u64 from, u64 to)
{
	memset(composite + from, 0, to - from);
	for (u64 k = 0; k < nr_base; k++) {
		u64 p = base[k], i = p * p / 2;

		if (i < from)
			i += (from - i + p - 1) / p * p;
		for (; i < to; i += p)
			composite[i] = 1;
	}
}

static u64 count_segment(u64 from, u64 to)
{
	u64 primes = 0;

	for (u64 i = from; i < to; i++)
		primes += !composite[i];
	return primes;
}

/* Segment numbers from the pass's counter, until none is left. */
static u64 fetch(int which, u64 size, u64 *from, u64 *to)
{
	u64 number = atomic_xadd(&pass[which].next, 1);

	*from = min_u64(number * size, odds);
	*to = min_u64(*from + size, odds);
	return *to - *from;
}

static void work(u64 unused)
{
	u64 from, to, sum = 0, size = segment / 2 + 1, me = cpu_id();

	(void)unused;
	while (fetch(0, segment, &from, &to)) {
		sieve_segment(from, to);
		primes_of[me] += count_segment(from, to);
		segments_of[me]++;
	}
	atomic_xadd(&pass[0].primes, primes_of[me]);
	barrier_wait(&between);
	while (fetch(1, size, &from, &to)) {
		atomic_xadd(&pass[1].primes, count_segment(from, to));
		for (u64 i = from; i < to; i++)
			if (!composite[i])
				sum += number_at(i) * number_at(i);
	}
	atomic_xadd(&pass[1].sum, sum);
}

/* How many primes of `base` are not above x. */
static u64 base_up_to(u64 x)
{
	u64 low = 0, high = nr_base;

	while (low < high) {
		u64 middle = (low + high) / 2;

		if (base[middle] <= x)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * Odd numbers in 1..x that none of the first `a` primes of `base` divides: phi(x, a) =
 * phi(x, a - 1) - phi(x / p, a - 1), p being the last of them. A prime whose square is above x
 * takes away only itself.
 */
static u64 phi(u64 x, u64 a)
{
	u64 count = x - x / 2;

	for (u64 k = 0; k < a; k++) {
		if ((u64)base[k] * base[k] > x) {
			u64 last = min_u64(a, base_up_to(x));

			return count - (last > k ? last - k : 0);
		}
		count -= phi(x / base[k], k);
	}
	return count;
}

static void check(u64 primes)
{
	u64 segments = 0, expected = phi(limit - 1, nr_base) + nr_base, sum = 0;

	for (u64 id = 0; id < nr_cpus; id++) {
		segments += segments_of[id];
		sum += primes_of[id];
	}
	if (primes != expected)
		fail("%lu primes, but Legendre's formula gives %lu", primes, expected);
	if (primes != sum || primes != pass[1].primes)
		fail("the CPUs count %lu primes, and %lu in the second pass", sum, pass[1].primes);
	if (segments != DIV_ROUND_UP(odds, segment))
		fail("the CPUs sieved %lu segments", segments);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "limit", &limit, 16, 1UL << 32 },
		{ "segment", &segment, 64, 1UL << 32 },
	};

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	odds = limit / 2;
	composite = ram_alloc(odds, PAGE_SIZE);
	find_base();
	smp_start(false);
	smp_call_all(work, 0);
	check(pass[0].primes);
	printf("%lu primes below %lu, the sum of their squares is %lu\n", pass[0].primes, limit, pass[1].sum);
	finish(checksum_add(pass[0].primes, pass[1].sum), true);
}
