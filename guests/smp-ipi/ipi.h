/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the parts of smp-ipi share: the counts of interrupts that each CPU got, by kind. */
#ifndef IPI_H
#define IPI_H

#include "guest.h"
#include "smp/apic.h"
#include "smp/atomic.h"
#include "smp/irq.h"
#include "smp/smp.h"

#define VECTOR_FIXED 0x30
#define VECTOR_LOWEST 0x51
#define VECTOR_PING 0x42
#define VECTOR_PONG 0x43
#define VECTOR_TIMER 0x60
#define VECTOR_LOW 0x35
#define VECTOR_HIGH 0x75

enum kind { FIXED, LOWEST, NMI, PING, PONG, TIMER, NR_KINDS };

extern u64 rounds, ticks, restarts;

/* Written by the CPU itself, read by all. */
extern u64 got[MAX_CPUS][NR_KINDS];

u64 got_by_all(enum kind kind);

/* Wait until `cpu` has got `n` of a kind in all; then it must be exactly that. */
void wait_for(u64 cpu, enum kind kind, u64 n);

/* modes.c: destinations and delivery modes. ping.c: round trips. timer.c, restart.c */
void test_modes(void);
void test_priorities(void);
void test_ping(void);
void test_timers(void);
void test_restarts(void);

#endif
