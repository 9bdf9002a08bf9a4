/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A ticket lock: first come, first served. Not for interrupt handlers. */
#ifndef SMP_SPINLOCK_H
#define SMP_SPINLOCK_H

#include "atomic.h"
#include "smp.h"

struct spinlock {
	u32 next, owner;
};

static inline void spin_lock(struct spinlock *lock)
{
	u32 ticket = atomic_xadd32(&lock->next, 1);

	spin_until(load_acquire(&lock->owner) == ticket, "a lock");
}

static inline void spin_unlock(struct spinlock *lock)
{
	store_release(&lock->owner, lock->owner + 1);
}

#endif
