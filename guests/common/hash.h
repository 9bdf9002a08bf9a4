/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Deterministic numbers: a 64-bit mixer, the generator made from it, and the running checksum. */
#ifndef HASH_H
#define HASH_H

#include "types.h"

#define GOLDEN 0x9e3779b97f4a7c15UL

/* The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words. */
static inline u64 mix(u64 x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebUL;
	return x ^ (x >> 31);
}

static inline u64 random_next(u64 *state)
{
	*state += GOLDEN;
	return mix(*state);
}

/* Order matters: for every word, checksum = rotl(checksum, 5) * odd + word. */
static inline u64 checksum_add(u64 checksum, u64 word)
{
	return (checksum << 5 | checksum >> 59) * 0x100000001b3UL + word;
}

#endif
