/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Round trips: CPU 0 sends a ping and halts until the pong has come; the other one halts until the
 * ping, and its handler sends the pong. With one CPU it sends both to itself.
 */
#include "ipi.h"

#define MARK_PORT	0x80
#define MARK_PING	'w'
#define MARK_END	0xff

static u64 partner;

static void count_and_eoi(enum kind kind)
{
	u64 *mine = &got[cpu_id()][kind];

	store_release(mine, *mine + 1);
	apic_eoi();
}

static void on_ping(struct trap_frame *frame)
{
	(void)frame;
	count_and_eoi(PING);
	apic_send(0, ICR_ASSERT | VECTOR_PONG);
}

static void on_pong(struct trap_frame *frame)
{
	(void)frame;
	count_and_eoi(PONG);
}

/* Halt until `n` of a kind have come; whatever else ends the HLT is no matter. */
static void halt_until(enum kind kind, u64 n)
{
	for (u64 spins = 0; load_acquire(&got[cpu_id()][kind]) < n; spins++) {
		irq_disable();
		if (load_acquire(&got[cpu_id()][kind]) < n)
			irq_enable_and_halt();
		irq_enable();
		if (spins == SPIN_LIMIT)
			cpu_fail("CPU %u is woken without end", cpu_id());
	}
}

static void play(u64 before)
{
	halt_until(PING, before + rounds);
}

/* tools/bench times the eighths of many round trips by these marks. */
static void mark_eighth(u64 i)
{
	if (rounds % 8 == 0 && (i - 1) % (rounds / 8) == 0)
		outb(i > rounds ? MARK_END : MARK_PING, MARK_PORT);
}

void test_ping(void)
{
	set_handler(VECTOR_PING, on_ping);
	set_handler(VECTOR_PONG, on_pong);
	partner = nr_cpus - 1;
	if (partner)
		smp_call((u32)partner, play, got[partner][PING]);
	for (u64 i = 1; i <= rounds; i++) {
		mark_eighth(i);
		apic_send((u32)partner, ICR_ASSERT | VECTOR_PING);
		halt_until(PONG, i);
		if (load_acquire(&got[partner][PING]) != i)
			fail("%lu pings for %lu pongs", got[partner][PING], i);
	}
	mark_eighth(rounds + 1);
	smp_wait((u32)partner);
	printf("ping and pong: %lu round trips\n", rounds);
}
