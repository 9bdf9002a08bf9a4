/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Destinations and delivery modes (SDM vol. 3, 11.6). A test names who must get the interrupt; all
 * others must not. Logical IDs: in flat mode a bit each for CPUs 0-7; in cluster mode CPU n is bit
 * n % 4 of cluster n / 4; an x2APIC's is bit n % 16 of cluster n / 16.
 */
#include "ipi.h"

static void add_expected(u64 targets, enum kind kind, u64 *expected)
{
	for (u64 cpu = 0; cpu < nr_cpus; cpu++)
		if (targets >> cpu & 1)
			expected[cpu]++;
	for (u64 cpu = 0; cpu < nr_cpus; cpu++)
		wait_for(cpu, kind, expected[cpu]);
}

static u64 all(void)
{
	return (1UL << nr_cpus) - 1;
}

/* Shorthands and physical destinations. */
static void send_physical(enum kind kind, u32 command)
{
	static u64 expected[NR_KINDS][MAX_CPUS];

	for (u64 i = 0; i < rounds; i++) {
		u32 target = (u32)(i % nr_cpus);

		apic_send(target, command);
		add_expected(1UL << target, kind, expected[kind]);
		apic_send(0, command | ICR_OTHERS);
		add_expected(all() & ~1UL, kind, expected[kind]);
		if (kind == FIXED) {
			apic_send(0, command | ICR_SELF);
			add_expected(1, kind, expected[kind]);
			apic_send(0, command | ICR_ALL);
			add_expected(all(), kind, expected[kind]);
			apic_send(apic_is_x2apic() ? ~0u : 0xffu, command);
			add_expected(all(), kind, expected[kind]);
		}
	}
}

/* The destination that names the CPUs of `set`, which one message can name. */
static u32 logical_id(u64 set, bool flat)
{
	if (apic_is_x2apic() || flat)
		return (u32)set;
	for (u32 cluster = 0; cluster < MAX_CPUS / 4; cluster++)
		if (set >> 4 * cluster & 15)
			return cluster << 4 | (set >> 4 * cluster & 15);
	return 0;
}

static void set_logical_id(u64 flat)
{
	if (apic_is_x2apic()) {
		if (apic_read(APIC_LDR) != 1u << cpu_id())
			cpu_fail("CPU %u has the logical ID 0x%x", cpu_id(), apic_read(APIC_LDR));
		return;
	}
	apic_write(APIC_DFR, flat ? APIC_DFR_FLAT : APIC_DFR_CLUSTER);
	apic_write(APIC_LDR, logical_id(1UL << cpu_id(), flat) << 24);
}

/*
 * A set of CPUs that one message can name: all of the same cluster, or all below 8, but not 0-7 of
 * more: all bits set means everybody.
 */
static u64 random_set(u64 i, bool flat)
{
	u64 set = mix(i) & all();

	if (!apic_is_x2apic())
		set &= flat ? nr_cpus > 8 ? 0x7f : 0xff : 15UL << 4 * (i % DIV_ROUND_UP(nr_cpus, 4));
	return set ? set : 1;
}

static void send_logical(bool flat)
{
	static u64 sent;
	u64 expected[MAX_CPUS], before;

	smp_call_all(set_logical_id, flat);
	for (u64 cpu = 0; cpu < nr_cpus; cpu++)
		expected[cpu] = got[cpu][FIXED];
	for (u64 i = 0; i < rounds; i++) {
		u64 set = random_set(i, flat);

		apic_send(logical_id(set, flat), ICR_LOGICAL | ICR_ASSERT | VECTOR_FIXED);
		add_expected(set, FIXED, expected);
		before = got_by_all(LOWEST);
		apic_send(logical_id(set, flat), ICR_LOGICAL | ICR_LOWEST | ICR_ASSERT | VECTOR_LOWEST);
		spin_until(got_by_all(LOWEST) > before, "a lowest-priority interrupt");
		if (got_by_all(LOWEST) != before + 1)
			fail("%lu CPUs got one lowest-priority interrupt", got_by_all(LOWEST) - before);
	}
	sent += rounds;
	if (got_by_all(LOWEST) != sent)
		fail("%lu CPUs got %lu lowest-priority interrupts", got_by_all(LOWEST), sent);
}

void test_modes(void)
{
	send_physical(FIXED, ICR_ASSERT | VECTOR_FIXED);
	printf("fixed, physical: right %lu times\n", rounds);
	send_physical(NMI, ICR_ASSERT | ICR_NMI);
	printf("NMI: right %lu times\n", rounds);
	send_logical(true);
	printf("logical, flat: right %lu times\n", rounds);
	send_logical(false);
	printf("logical, clusters: right %lu times\n", rounds);
}

static u64 order[4], taken;

static void on_ordered(struct trap_frame *frame)
{
	if (taken < ARRAY_SIZE(order))
		order[taken] = frame->vector;
	taken++;
	apic_eoi();
}

static void expect_order(u64 first, u64 second, const char *what)
{
	if (taken != 2 || order[0] != first || order[1] != second)
		cpu_fail("%s: %lu interrupts, 0x%lx and 0x%lx", what, taken, order[0], order[1]);
	taken = 0;
}

/* Three IPIs to itself, two of them of one vector, while interrupts are off; then while TPR holds. */
static void interrupt_myself(u64 unused)
{
	static const u32 vectors[] = { VECTOR_LOW, VECTOR_HIGH, VECTOR_LOW };

	(void)unused;
	irq_disable();
	for (u64 i = 0; i < ARRAY_SIZE(vectors); i++)
		apic_send(0, ICR_SELF | ICR_ASSERT | vectors[i]);
	irq_enable();
	spin_until(load_acquire(&taken) >= 2, "its own interrupts");
	expect_order(VECTOR_HIGH, VECTOR_LOW, "interrupts in order of priority");
	apic_write(APIC_TPR, VECTOR_LOW & 0xf0);
	apic_send(0, ICR_SELF | ICR_ASSERT | VECTOR_LOW);
	apic_send(0, ICR_SELF | ICR_ASSERT | VECTOR_HIGH);
	spin_until(load_acquire(&taken) >= 1, "an interrupt above TPR");
	if (!(apic_read(APIC_IRR + 0x10 * (VECTOR_LOW / 32)) >> VECTOR_LOW % 32 & 1))
		cpu_fail("an interrupt below TPR does not stay in IRR");
	apic_write(APIC_TPR, 0);
	spin_until(load_acquire(&taken) >= 2, "an interrupt that TPR held");
	expect_order(VECTOR_HIGH, VECTOR_LOW, "interrupts around TPR");
}

void test_priorities(void)
{
	set_handler(VECTOR_LOW, on_ordered);
	set_handler(VECTOR_HIGH, on_ordered);
	for (u32 id = 0; id < nr_cpus; id++) {
		smp_call(id, interrupt_myself, 0);
		smp_wait(id);
	}
	printf("priorities: right\n");
}
