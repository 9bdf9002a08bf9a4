/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Quicksort with an explicit stack: median of three, smaller part first, insertion sort for short
 * runs. A quarter of the keys repeat. Verified: the order, and sum and xor of mixed keys before and
 * after, which only the same multiset gives.
 */
#include "guest.h"

#define SHORT_RUN 16
#define MAX_DEPTH 64

struct run {
	u64 *first, *last;
};

struct multiset {
	u64 sum, xor;
};

static u64 keys = DEFAULT_keys, seed = DEFAULT_seed;

static struct multiset multiset_of(const u64 *key, u64 n)
{
	struct multiset set = { 0, 0 };

	for (u64 i = 0; i < n; i++) {
		u64 mixed = mix(key[i]);

		set.sum += mixed;
		set.xor ^= mixed * (mixed | 1);
	}
	return set;
}

static void swap(u64 *a, u64 *b)
{
	u64 word = *a;

	*a = *b;
	*b = word;
}

static void insertion_sort(u64 *first, u64 *last)
{
	for (u64 *at = first + 1; at <= last; at++) {
		u64 key = *at, *to = at;

		for (; to > first && to[-1] > key; to--)
			*to = to[-1];
		*to = key;
	}
}

static u64 median_of_three(u64 *first, u64 *last)
{
	u64 *middle = first + (last - first) / 2;

	if (*middle < *first)
		swap(middle, first);
	if (*last < *first)
		swap(last, first);
	if (*last < *middle)
		swap(last, middle);
	return *middle;
}

/* Hoare's partition: returns the last of the lower part, never `last` itself. */
static u64 *partition(u64 *first, u64 *last)
{
	u64 pivot = median_of_three(first, last);

	for (;; first++, last--) {
		while (*first < pivot)
			first++;
		while (*last > pivot)
			last--;
		if (first >= last)
			return last;
		swap(first, last);
	}
}

static void sort(u64 *key, u64 n)
{
	struct run stack[MAX_DEPTH], run = { key, key + n - 1 };
	int depth = 0;

	for (;;) {
		if (run.last - run.first < SHORT_RUN) {
			insertion_sort(run.first, run.last);
			if (!depth)
				return;
			run = stack[--depth];
			continue;
		}
		u64 *middle = partition(run.first, run.last);
		struct run low = { run.first, middle }, high = { middle + 1, run.last };
		bool low_first = middle - run.first < run.last - middle;

		stack[depth++] = low_first ? high : low;
		run = low_first ? low : high;
	}
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "keys", &keys, 2, 1UL << 37 },
		{ "seed", &seed, 0, ~0UL },
	};
	struct multiset before, after;
	u64 *key, state, checksum = 0;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	key = ram_alloc(keys * sizeof(u64), PAGE_SIZE);
	state = mix(seed);
	for (u64 i = 0; i < keys; i++)
		key[i] = i % 4 == 3 ? key[i - 1 - key[i - 1] % 3] : random_next(&state);
	before = multiset_of(key, keys);
	sort(key, keys);
	after = multiset_of(key, keys);
	for (u64 i = 0; i < keys; i++) {
		if (i && key[i - 1] > key[i])
			fail("keys %lu and %lu are out of order", i - 1, i);
		checksum = checksum_add(checksum, key[i]);
	}
	if (before.sum != after.sum || before.xor != after.xor)
		fail("the keys are not the same ones as before");
	printf("sorted %lu keys\n", keys);
	finish(checksum, true);
}
