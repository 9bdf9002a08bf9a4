/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The local APIC of the CPU that runs, through its page (xAPIC) or its MSRs (x2APIC): SDM vol. 3,
 * chapter 11. Registers are named by their offset in the page, in both modes. Destinations are APIC
 * IDs or logical IDs without the shift of xAPIC registers.
 */
#ifndef SMP_APIC_H
#define SMP_APIC_H

#include "types.h"

#define APIC_BASE 0xfee00000UL
#define APIC_ID 0x20
#define APIC_TPR 0x80
#define APIC_EOI 0xb0
#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define APIC_SVR 0xf0
#define APIC_ISR 0x100
#define APIC_IRR 0x200
#define APIC_ICR 0x300
#define APIC_ICR_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_TIMER_COUNT 0x380
#define APIC_TIMER_CURRENT 0x390
#define APIC_TIMER_DIVIDE 0x3e0

#define APIC_LVT_MASKED (1u << 16)
#define APIC_TIMER_PERIODIC (1u << 17)
#define APIC_DFR_FLAT 0xffffffffu
#define APIC_DFR_CLUSTER 0x0fffffffu

#define ICR_LOWEST (1u << 8)
#define ICR_NMI (4u << 8)
#define ICR_INIT (5u << 8)
#define ICR_STARTUP (6u << 8)
#define ICR_LOGICAL (1u << 11)
#define ICR_BUSY (1u << 12)
#define ICR_ASSERT (1u << 14)
#define ICR_LEVEL (1u << 15)
#define ICR_SELF (1u << 18)
#define ICR_ALL (2u << 18)
#define ICR_OTHERS (3u << 18)

/* CPUID promises x2APIC mode. */
bool apic_has_x2apic(void);

/* From now on every apic_enable() goes to x2APIC mode. */
void apic_use_x2apic(void);
bool apic_is_x2apic(void);

/* Software enable, task priority 0, the local interrupts masked. */
void apic_enable(void);

u32 apic_read(u32 offset);
void apic_write(u32 offset, u32 value);
u32 apic_id(void);
void apic_eoi(void);

/* Send `command`, the low half of the ICR, and wait until it has gone. */
void apic_send(u32 destination, u32 command);

#endif
