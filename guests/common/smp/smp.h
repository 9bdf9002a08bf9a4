/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * More than one CPU. smp_start() wakes the others by INIT and start-up IPIs; from then on they wait,
 * halted, for smp_call(). APIC IDs are taken to be 0 to N-1, the boot CPU's 0.
 *
 * Interrupts are on everywhere after smp_start(). Exception and interrupt handlers are common to
 * all CPUs (idt.h, irq.h); each CPU has its own stack, GDT, TSS and #DF stack. printf() is for one CPU
 * at a time; cpu_fail() may be called by several at once. fail() and set_rsp0() are for CPU 0 alone.
 *
 * Whoever waits counts: after SPIN_LIMIT looks it is a deadlock and the guest fails. The limit is
 * many times what a guest waits when each CPU in turn runs a million instructions.
 */
#ifndef SMP_H
#define SMP_H

#include "idt.h"
#include "processor.h"
#include "tables.h"

#define MAX_CPUS 16
#define SPIN_LIMIT (1UL << 27)

typedef void (*cpu_fn)(u64 arg);

/* One CPU, at GS:0 while it runs. fn, arg: what it is to call while `busy`. */
struct cpu {
	struct cpu *self;
	u32 id;
	u32 online, busy;
	cpu_fn fn;
	u64 arg;
	u64 stack_top;
	u64 gdt[TSS_SELECTOR / 8 + 2];
	struct tss tss;
};

struct barrier {
	u64 arrived, generation;
};

extern u32 nr_cpus;

static inline struct cpu *this_cpu(void)
{
	struct cpu *cpu;

	__asm__ volatile("movq %%gs:0, %0" : "=r"(cpu));
	return cpu;
}

static inline u32 cpu_id(void)
{
	return this_cpu()->id;
}

/* Start all CPUs that the machine has; `x2apic`: in x2APIC mode, which must be there. */
void smp_start(bool x2apic);

/*
 * INIT and a start-up IPI for one AP, which forgets what it was doing; returns when it waits for calls
 * again.
 */
void cpu_start(u32 id);

/* Call fn(arg) on a CPU that is idle, or directly if it is this one. Does not wait for it. */
void smp_call(u32 id, cpu_fn fn, u64 arg);
void smp_wait(u32 id);

/* Call fn(arg) on every CPU, this one included, and wait for all. */
void smp_call_all(cpu_fn fn, u64 arg);

/* Wait until all CPUs are here. */
void barrier_wait(struct barrier *barrier);

/* As fail(), on any CPU; of several at once the first one speaks. */
_Noreturn void cpu_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The CPU's share of `total`: the shares of all CPUs add up to it. */
static inline u64 share_of(u64 total, u64 cpu)
{
	return total * (cpu + 1) / nr_cpus - total * cpu / nr_cpus;
}

#define spin_until(condition, what)                                                                \
	do {                                                                                       \
		for (u64 spins = 0; !(condition); spins++) {                                       \
			if (spins == SPIN_LIMIT)                                                   \
				cpu_fail("CPU %u waits for %s without end", cpu_id(), what);       \
			cpu_relax();                                                               \
		}                                                                                  \
	} while (0)

#endif
