/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "idt.h"

#include "boot.h"
#include "cpu.h"
#include "serial.h"
#include "tables.h"

#define NR_GATES (VECTOR_SYSCALL + 1)
#define GATE_INTERRUPT 0x8e
#define GATE_DPL3 0x60
#define TSS_AVAILABLE 0x89

extern u64 gdt[];
extern const u64 trap_stubs[NR_EXCEPTIONS];
extern u8 trap_stub_syscall[];

static struct gate idt[NR_GATES];
static struct tss tss;
static trap_handler handlers[NR_GATES];
static u8 ist_stack[PAGE_SIZE] __attribute__((aligned(16)));

void trap_dispatch(struct trap_frame *frame);

static void set_gate(u8 vector, u64 offset, u8 type, u8 ist)
{
	idt[vector] = (struct gate){
		.offset_low = (u16)offset,
		.selector = KERNEL_CS,
		.ist = ist,
		.type = type,
		.offset_mid = (u16)(offset >> 16),
		.offset_high = (u32)(offset >> 32),
	};
}

static void load_tss(void)
{
	u64 base = (u64)&tss, *descriptor = &gdt[TSS_SELECTOR / 8];

	tss.ist[IST_DF - 1] = (u64)(ist_stack + sizeof(ist_stack));
	tss.iomap_base = sizeof(tss);
	descriptor[0] = (sizeof(tss) - 1) | (base & 0xffffff) << 16 | (base >> 24 & 0xff) << 56;
	descriptor[0] |= (u64)TSS_AVAILABLE << 40;
	descriptor[1] = base >> 32;
	__asm__ volatile("ltr %w0" : : "r"(TSS_SELECTOR) : "memory");
}

void idt_init(void)
{
	struct table_register idtr = { sizeof(idt) - 1, (u64)idt };

	load_tss();
	for (int vector = 0; vector < NR_EXCEPTIONS; vector++)
		set_gate((u8)vector, trap_stubs[vector], GATE_INTERRUPT, vector == VECTOR_DF ? IST_DF : 0);
	set_gate(VECTOR_SYSCALL, (u64)trap_stub_syscall, GATE_INTERRUPT | GATE_DPL3, 0);
	__asm__ volatile("lidt %0" : : "m"(idtr));
}

void set_handler(u8 vector, trap_handler handler)
{
	handlers[vector] = handler;
}

void set_rsp0(u64 rsp)
{
	tss.rsp[0] = rsp;
}

void unexpected_trap(const struct trap_frame *frame)
{
	printf(GUEST_NAME ": trap vector=%lu error=0x%lx rip=%p cr2=%p cs=0x%lx\n", frame->vector,
	       frame->error_code, (void *)frame->rip, (void *)read_cr2(), frame->cs);
	exit_guest(EXIT_TRAP);
}

void trap_dispatch(struct trap_frame *frame)
{
	trap_handler handler = handlers[frame->vector];

	if (!handler)
		unexpected_trap(frame);
	handler(frame);
}
