/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Random pointer chase. The order is one cycle through all nodes: a full-period congruential
 * generator over the next power of two, disguised by a bijection (a conjugate of a cycle is a
 * cycle), where indexes beyond the last node are passed over. So the list is built in sequence, and
 * the way can be followed a second time by arithmetic alone.
 */
#include "guest.h"

struct node {
	u64 next; /* the address of the next node */
	u64 tag;
};

static u64 nodes = DEFAULT_nodes, stride = DEFAULT_stride, steps = DEFAULT_steps, seed = DEFAULT_seed;
static u64 mask, odd, odd_inverse;
static unsigned half;

static void choose_order(void)
{
	unsigned bits = 2;

	while ((1UL << bits) < nodes)
		bits++;
	mask = (1UL << bits) - 1;
	half = (bits + 1) / 2;
	odd = mix(seed ^ GOLDEN) | 1;
	odd_inverse = odd;
	/*
	 * Newton's iteration doubles the number of right low bits; odd * odd = 1 (mod 8) gives the
	 * first three.
	 */
	for (int i = 0; i < 5; i++)
		odd_inverse *= 2 - odd * odd_inverse;
}

static u64 disguise(u64 x)
{
	x = x * odd & mask;
	x ^= x >> half;
	return x * odd & mask;
}

/* The inverse: x ^= x >> half undoes itself because 2 * half covers all bits. */
static u64 undisguise(u64 x)
{
	x = x * odd_inverse & mask;
	x ^= x >> half;
	return x * odd_inverse & mask;
}

/* A multiplier of 1 (mod 4) and an odd increment give the full period (Hull and Dobell, 1962). */
static u64 next_index(u64 index)
{
	u64 x = undisguise(index);

	do {
		x = (x * 0x5851f42d4c957f2dUL + 0x14057b7ef767814fUL) & mask;
		index = disguise(x);
	} while (index >= nodes);
	return index;
}

static u64 tag_of(u64 index)
{
	return mix(index + seed);
}

static u64 follow_memory(const struct node *node, u64 base)
{
	u64 checksum = 0;

	for (u64 i = 0; i < steps; i++) {
		checksum = checksum_add(checksum, node->tag ^ (node->next - base));
		node = (const struct node *)node->next;
	}
	return checksum;
}

static u64 follow_arithmetic(void)
{
	u64 checksum = 0, index = 0;

	for (u64 i = 0; i < steps; i++) {
		u64 next = next_index(index);

		checksum = checksum_add(checksum, tag_of(index) ^ (next * stride));
		index = next;
	}
	return checksum;
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "nodes", &nodes, 2, 1UL << 32 },
		{ "stride", &stride, sizeof(struct node), 1UL << 30 },
		{ "steps", &steps, 1, 1UL << 40 },
		{ "seed", &seed, 0, ~0UL },
	};
	u64 base, checksum, expected;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	if (stride % sizeof(struct node))
		usage("stride=%lu: not a multiple of %lu", stride, sizeof(struct node));
	choose_order();
	base = (u64)ram_alloc(nodes * stride, PAGE_SIZE);
	for (u64 i = 0; i < nodes; i++) {
		struct node *node = (struct node *)(base + i * stride);

		*node = (struct node){ base + next_index(i) * stride, tag_of(i) };
	}
	checksum = follow_memory((const struct node *)base, base);
	expected = follow_arithmetic();
	printf("followed %lu steps through %lu nodes\n", steps, nodes);
	if (checksum != expected)
		fail("checksum 0x%016lx, by arithmetic 0x%016lx", checksum, expected);
	finish(checksum, true);
}
