/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The timer of every CPU at once: one-shot, periodic, masked, and counting down. */
#include "ipi.h"

#define SHORT 20000u
#define DIVIDE_BY_1 0xbu

static struct barrier together;

static void on_timer(struct trap_frame *frame)
{
	u64 *mine = &got[cpu_id()][TIMER];

	(void)frame;
	store_release(mine, *mine + 1);
	apic_eoi();
}

static void wait_for_ticks(u64 n)
{
	u64 *mine = &got[cpu_id()][TIMER];

	spin_until(load_acquire(mine) >= n, "its timer");
}

/* Every shot is one interrupt; the count stays at 0 after it. */
static void one_shot(void)
{
	apic_write(APIC_LVT_TIMER, VECTOR_TIMER);
	for (u64 i = 1; i <= ticks; i++) {
		apic_write(APIC_TIMER_COUNT, SHORT);
		wait_for_ticks(i);
		if (got[cpu_id()][TIMER] != i || apic_read(APIC_TIMER_CURRENT))
			cpu_fail("CPU %u: %lu one-shot ticks, not %lu", cpu_id(), got[cpu_id()][TIMER], i);
	}
}

/* Goes on by itself, until it is masked. */
static void periodic(void)
{
	u64 at_least = got[cpu_id()][TIMER] + ticks, last;

	apic_write(APIC_LVT_TIMER, APIC_TIMER_PERIODIC | VECTOR_TIMER);
	apic_write(APIC_TIMER_COUNT, SHORT);
	wait_for_ticks(at_least);
	apic_write(APIC_LVT_TIMER, APIC_LVT_MASKED | VECTOR_TIMER);
	apic_write(APIC_TIMER_COUNT, 0);
	last = got[cpu_id()][TIMER];
	barrier_wait(&together);
	if (got[cpu_id()][TIMER] > last + 1)
		cpu_fail("CPU %u: %lu ticks of a masked timer", cpu_id(), got[cpu_id()][TIMER] - last);
}

static void count_down(void)
{
	u32 first, second;

	apic_write(APIC_TIMER_COUNT, ~0u);
	first = apic_read(APIC_TIMER_CURRENT);
	spin_until((second = apic_read(APIC_TIMER_CURRENT)) != first, "its timer to count");
	if (second > first)
		cpu_fail("CPU %u: the timer counts from %u to %u", cpu_id(), first, second);
	apic_write(APIC_TIMER_COUNT, 0);
	if (apic_read(APIC_TIMER_CURRENT))
		cpu_fail("CPU %u: a stopped timer counts", cpu_id());
}

static void use_timer(u64 unused)
{
	(void)unused;
	apic_write(APIC_TIMER_DIVIDE, DIVIDE_BY_1);
	barrier_wait(&together);
	one_shot();
	periodic();
	count_down();
}

void test_timers(void)
{
	set_handler(VECTOR_TIMER, on_timer);
	smp_call_all(use_timer, 0);
	printf("timers: %lu shots, and periods\n", ticks);
}
