/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "irq.h"

#include "apic.h"
#include "tables.h"

extern const u8 irq_stubs[];

#define STUB_SIZE 16

static void on_wake(struct trap_frame *frame)
{
	(void)frame;
	apic_eoi();
}

/* There is nothing in service then, so no EOI (SDM vol. 3, 11.9). */
static void on_spurious(struct trap_frame *frame)
{
	(void)frame;
}

void irq_init(void)
{
	struct table_register idtr;
	struct gate *idt;

	__asm__ volatile("sidt %0" : "=m"(idtr));
	idt = (struct gate *)idtr.base;
	for (u64 vector = FIRST_IRQ; vector <= LAST_IRQ; vector++) {
		u64 stub = (u64)irq_stubs + (vector - FIRST_IRQ) * STUB_SIZE;

		idt[vector] = idt[VECTOR_PF];
		idt[vector].offset_low = (u16)stub;
		idt[vector].offset_mid = (u16)(stub >> 16);
		idt[vector].offset_high = (u32)(stub >> 32);
	}
	set_handler(VECTOR_WAKE, on_wake);
	set_handler(VECTOR_SPURIOUS, on_spurious);
}
