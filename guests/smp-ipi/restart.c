/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * INIT takes an AP out of whatever it does: halted with and without interrupts, or in a loop; the
 * start-up IPI begins again from the trampoline, with the APIC as after INIT and nothing pending.
 */
#include "ipi.h"

enum state { IDLE, HALTED, LOOPING, NR_STATES };

static u64 entered;

static void never_return(u64 how)
{
	irq_disable();
	atomic_xadd(&entered, 1);
	for (;;)
		if (how == HALTED)
			__asm__ volatile("hlt");
		else
			cpu_relax();
}

static void check_apic(u64 id)
{
	if (apic_id() != id || cpu_id() != id)
		cpu_fail("CPU %lu starts with APIC ID %u", id, apic_id());
	if (apic_read(APIC_IRR + 0x10 * (VECTOR_FIXED / 32)) || apic_read(APIC_TIMER_COUNT))
		cpu_fail("CPU %lu: INIT leaves an interrupt or the timer", id);
}

/* An interrupt that is sent while the AP has interrupts off is forgotten at INIT. */
static void restart(u32 id, enum state state)
{
	u64 before = got[id][FIXED], seen = load_acquire(&entered);

	if (state != IDLE) {
		smp_call(id, never_return, state);
		spin_until(load_acquire(&entered) > seen, "a CPU to enter its loop");
		apic_send(id, ICR_ASSERT | VECTOR_FIXED);
	}
	cpu_start(id);
	smp_call(id, check_apic, id);
	smp_wait(id);
	wait_for(id, FIXED, before);
	apic_send(id, ICR_ASSERT | VECTOR_FIXED);
	wait_for(id, FIXED, before + 1);
}

void test_restarts(void)
{
	for (u64 i = 0; i < restarts; i++)
		for (u32 id = 1; id < nr_cpus; id++)
			restart(id, (enum state)((i + id) % NR_STATES));
	printf("INIT and start-up: %lu times\n", restarts);
}
