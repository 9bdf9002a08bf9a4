/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Local APICs: interprocessor interrupts by every destination and delivery mode, each counted at the
 * CPUs that must get it and at those that must not; round trips between halted CPUs; timers; INIT.
 * CPU 0 sends in most of the tests, and the lines say what is the same for any number of CPUs.
 */
#include "ipi.h"

u64 rounds = DEFAULT_rounds, ticks = DEFAULT_ticks, restarts = DEFAULT_restarts;
u64 got[MAX_CPUS][NR_KINDS];

static u64 x2apic = DEFAULT_x2apic, modes = DEFAULT_modes;

static void count(enum kind kind)
{
	u64 *mine = &got[cpu_id()][kind];

	store_release(mine, *mine + 1);
}

static void on_fixed(struct trap_frame *frame)
{
	count(frame->vector == VECTOR_FIXED ? FIXED : LOWEST);
	apic_eoi();
}

static void on_nmi(struct trap_frame *frame)
{
	(void)frame;
	count(NMI);
}

u64 got_by_all(enum kind kind)
{
	u64 sum = 0;

	for (u64 cpu = 0; cpu < nr_cpus; cpu++)
		sum += load_acquire(&got[cpu][kind]);
	return sum;
}

void wait_for(u64 cpu, enum kind kind, u64 n)
{
	spin_until(load_acquire(&got[cpu][kind]) >= n, "an interrupt to arrive");
	if (got[cpu][kind] != n)
		fail("CPU %lu has got %lu interrupts of kind %d, not %lu", cpu, got[cpu][kind], kind, n);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "rounds", &rounds, 1, 1UL << 40 },
		{ "ticks", &ticks, 0, 1UL << 32 },
		{ "restarts", &restarts, 0, 1UL << 32 },
		{ "modes", &modes, 0, 1 },
		{ "x2apic", &x2apic, 0, 1 },
	};

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	set_handler(VECTOR_FIXED, on_fixed);
	set_handler(VECTOR_LOWEST, on_fixed);
	set_handler(VECTOR_NMI, on_nmi);
	smp_start(x2apic);
	if (apic_id() != 0)
		fail("the boot CPU's APIC ID is %u", apic_id());
	if (modes)
		test_modes();
	if (modes)
		test_priorities();
	test_ping();
	test_timers();
	test_restarts();
	finish(checksum_add(rounds << 32 | ticks, restarts), true);
}
