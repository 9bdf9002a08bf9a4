/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every vector that arrives is written to a log; then `handler`, if it is not NULL, acts. Cases
 * compare the log with what the manuals say (Intel SDM vol. 3, chapter 11; 8259A, 8254, 82093AA,
 * MC146818). Lines are raised by pc-testdev's ports 0x2000 + n. Nothing is timed: where a device
 * counts by itself, a case waits for what must come.
 */
#ifndef IRQS_H
#define IRQS_H

#include "guest.h"

#define LINE_PORT 0x2000
#define PIC1 0x20
#define PIC2 0xa0
#define PIC1_BASE 0x20
#define PIC2_BASE 0x28
#define ELCR1 0x4d0
#define ELCR2 0x4d1

#define APIC_BASE 0xfee00000UL
#define APIC_ID 0x20
#define APIC_VERSION 0x30
#define APIC_TPR 0x80
#define APIC_PPR 0xa0
#define APIC_EOI 0xb0
#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define APIC_SVR 0xf0
#define APIC_ISR 0x100
#define APIC_TMR 0x180
#define APIC_IRR 0x200
#define APIC_ESR 0x280
#define APIC_ICR 0x300
#define APIC_ICR_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_LVT_LINT1 0x360
#define APIC_LVT_ERROR 0x370
#define APIC_INITIAL 0x380
#define APIC_CURRENT 0x390
#define APIC_DIVIDE 0x3e0

#define MODE_NMI 0x400
#define MODE_EXTINT 0x700
#define MASKED 0x10000
#define SELF 0x40000
#define SPURIOUS 0xff
#define IOAPIC_BASE 0xfec00000UL
#define IOAPIC_PINS 24

#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0

#define MAX_LOG 64

struct irq_frame {
	u64 rip, cs, rflags, rsp, ss;
};

struct test {
	const char *name;
	void (*run)(void);
	bool exact;
};

struct group {
	const struct test *tests;
	u64 count;
};

#define RUN(function) { #function, function, false },
#define RUN_EXACT(function) { #function, function, true },

extern bool exact;
extern u8 log[MAX_LOG];
extern u64 nr_log, last_rip, depth;
extern void (*handler)(u64 vector, struct irq_frame *frame);

void on_vector(u64 vector, struct irq_frame *frame);

/* chips.c: all controllers as every case finds them: PICs masked, APIC on, IOAPIC masked, lines low. */
void reset_chips(void);
void pic_init(u8 icw4);
void pic_mask(u16 mask);
void pic_eoi(u64 vector);
u8 pic_read(u16 port, u8 command);
void raise_line(int line);
void lower_line(int line);
u32 apic_read(u32 reg);
void apic_write(u32 reg, u32 value);
void apic_eoi(void);
/* A bit of the 256 in ISR, TMR or IRR. */
bool apic_bit(u32 reg, u8 vector);
void self_ipi(u8 vector);
u32 ioapic_read(u8 reg);
void ioapic_write(u8 reg, u32 value);
/* Redirection entry of a pin; `flags` are bits 0-31, `destination` bits 56-63. */
void ioapic_route(int pin, u32 flags, u8 destination);

/* Handlers that end the interrupt, with IF clear. */
void end_pic(u64 vector, struct irq_frame *frame);
void end_apic(u64 vector, struct irq_frame *frame);

/* Let in what is pending, then close again. */
void open_window(void);

bool expect(const char *what, u64 found, u64 wanted);
/* The log must be these vectors; it is emptied. */
#define expect_log(...)                                                                 \
	check_log((const u8[]){ __VA_ARGS__ }, sizeof((const u8[]){ __VA_ARGS__ }))
void check_log(const u8 *wanted, u64 count);
void expect_nothing(void);
/* Wait with interrupts on until the log has `count` vectors, at most a few seconds. */
bool wait_for(u64 count);

static inline u64 rdmsr(u32 index)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 index, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline u64 rdtsc(void)
{
	u32 low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

static inline void cli(void)
{
	__asm__ volatile("cli" : : : "memory");
}

static inline void sti(void)
{
	__asm__ volatile("sti" : : : "memory");
}

#endif
