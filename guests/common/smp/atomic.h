/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Locked instructions by name, so that a guest tests the one that it means. XCHG with memory is
 * locked by itself (SDM vol. 3, 9.1.2.1). load_acquire() and store_release() are plain moves.
 */
#ifndef SMP_ATOMIC_H
#define SMP_ATOMIC_H

#include "types.h"

#define load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_release(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)

/* A store that is visible to all before any load after it. */
static inline void store_full(u64 *p, u64 value)
{
	__asm__ volatile("xchgq %0, %1" : "+r"(value), "+m"(*p) : : "memory");
}

static inline u64 atomic_xadd(u64 *p, u64 add)
{
	__asm__ volatile("lock xaddq %0, %1" : "+r"(add), "+m"(*p) : : "memory");
	return add;
}

static inline u32 atomic_xadd32(u32 *p, u32 add)
{
	__asm__ volatile("lock xaddl %0, %1" : "+r"(add), "+m"(*p) : : "memory");
	return add;
}

static inline u64 atomic_xchg(u64 *p, u64 value)
{
	__asm__ volatile("xchgq %0, %1" : "+r"(value), "+m"(*p) : : "memory");
	return value;
}

/* If *p is `old`, it becomes `new`; the value found. */
static inline u64 atomic_cmpxchg(u64 *p, u64 old, u64 new)
{
	__asm__ volatile("lock cmpxchgq %2, %1" : "+a"(old), "+m"(*p) : "r"(new) : "memory", "cc");
	return old;
}

/* The bit string at `p` goes on beyond its first word, as far as `bit` says; the bit found. */
static inline bool atomic_bts(u64 *p, u64 bit)
{
	bool found;

	__asm__ volatile("lock btsq %2, %1" : "=@ccc"(found), "+m"(*p) : "r"(bit) : "memory");
	return found;
}

static inline bool atomic_btr(u64 *p, u64 bit)
{
	bool found;

	__asm__ volatile("lock btrq %2, %1" : "=@ccc"(found), "+m"(*p) : "r"(bit) : "memory");
	return found;
}

#endif
