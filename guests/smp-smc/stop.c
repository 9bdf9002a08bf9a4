/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The safe way: all other CPUs wait in an interrupt handler while the function is rewritten, and
 * execute a serializing instruction before they go on (SDM vol. 3, 9.1.3).
 */
#include "patch.h"

#define VECTOR_STOP 0x44

static u64 stopped, releases;

static void on_stop(struct trap_frame *frame)
{
	u64 seen = load_acquire(&releases);

	(void)frame;
	atomic_xadd(&stopped, 1);
	spin_until(load_acquire(&releases) != seen, "its release by the writer");
	serialize();
	apic_eoi();
}

void stop_init(void)
{
	set_handler(VECTOR_STOP, on_stop);
}

void patch_stopped(u64 i)
{
	u64 code = alias_of(code_of(i));

	store_release(&stopped, 0UL);
	if (nr_cpus > 1)
		apic_send(0, ICR_OTHERS | ICR_ASSERT | VECTOR_STOP);
	spin_until(load_acquire(&stopped) == nr_cpus - 1, "all CPUs to stop");
	put_constant(code, value_of(i, version[i] / 2 + 1));
	serialize();
	store_release(&version[i], version[i] + 2);
	store_release(&releases, releases + 1);
}
