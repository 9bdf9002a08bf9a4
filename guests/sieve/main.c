/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sieve of Eratosthenes over a byte per number, segment by segment, so that a segment's pages are
 * worked on while they are there. The count is checked against Legendre's recurrence over the
 * values limit/k, which never looks at the sieve.
 */
#include "guest.h"

static u64 limit = DEFAULT_limit, segment = DEFAULT_segment;

static u64 isqrt(u64 n)
{
	u64 root = 0;

	for (u64 bit = 1UL << 31; bit; bit >>= 1)
		if ((root + bit) * (root + bit) <= n)
			root += bit;
	return root;
}

static void cross_out(u8 *composite, u64 prime, u64 from, u64 to)
{
	u64 start = (from + prime - 1) / prime * prime;

	if (start < prime * prime)
		start = prime * prime;
	for (u64 n = start; n < to; n += prime)
		composite[n] = 1;
}

/*
 * Sieve [from, to). A segment is at least 4096 numbers, so the primes up to its end's square root
 * are in it or before it.
 */
static void sieve_segment(u8 *composite, u64 from, u64 to)
{
	u64 root = isqrt(to - 1);

	memset(composite + from, 0, to - from);
	for (u64 n = from; n < 2 && n < to; n++)
		composite[n] = 1;
	for (u64 prime = 2; prime <= root; prime++)
		if (!composite[prime])
			cross_out(composite, prime, from, to);
}

/*
 * Primes <= n: count(v) starts as v - 1, and each prime p takes away what it is the least factor
 * of, for all v = n/k at once.
 */
static u64 count_primes(u64 n)
{
	u64 root = isqrt(n), *small, *large;

	small = ram_alloc((root + 1) * sizeof(u64), 8);
	large = ram_alloc((root + 1) * sizeof(u64), 8);
	for (u64 i = 1; i <= root; i++) {
		small[i] = i - 1;
		large[i] = n / i - 1;
	}
	for (u64 p = 2; p <= root; p++) {
		u64 before = small[p - 1], last = min_u64(root, n / (p * p));

		if (small[p] == before)
			continue;
		for (u64 i = 1; i <= last; i++)
			large[i] -= (i * p <= root ? large[i * p] : small[n / (i * p)]) - before;
		for (u64 i = root; i >= p * p; i--)
			small[i] -= small[i / p] - before;
	}
	return large[1];
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "limit", &limit, 16, 1UL << 40 },
		{ "segment", &segment, PAGE_SIZE, 1UL << 40 },
	};
	u64 primes = 0, last = 0, checksum = 0, expected;
	u8 *composite;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	composite = ram_alloc(limit, PAGE_SIZE);
	for (u64 from = 0; from < limit; from += segment)
		sieve_segment(composite, from, min_u64(from + segment, limit));
	for (u64 n = 0; n < limit; n++) {
		if (composite[n])
			continue;
		checksum = checksum_add(checksum, n);
		last = n;
		primes++;
	}
	printf("%lu primes below %lu, the last is %lu\n", primes, limit, last);
	expected = count_primes(limit - 1);
	if (primes != expected)
		fail("the recurrence counts %lu primes", expected);
	finish(checksum, true);
}
