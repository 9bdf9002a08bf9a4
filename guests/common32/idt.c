/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "idt.h"

#include "boot.h"
#include "console.h"
#include "cpu.h"
#include "selectors.h"

#define VECTORS 0x81
#define STUBS 33 /* vectors 0-31, then TRAP_CALL */
#define STUB_SIZE 16
#define GATE 0x8e00
#define GATE_DPL3 0xee00

struct gate {
	u16 low, selector, type, high;
};
struct tss {
	u32 link, esp0, ss0, rest[22];
	u16 trap, io_map;
};

extern const u8 trap_stubs[];
extern u64 gdt[];

static struct gate idt[VECTORS];
static trap_handler handlers[VECTORS];
static struct tss tss;

void trap(struct trap_frame *frame);

void trap(struct trap_frame *frame)
{
	if (handlers[frame->vector]) {
		handlers[frame->vector](frame);
		return;
	}
	printf(GUEST_NAME ": trap %u error 0x%x at 0x%x, CR2 0x%x\n", frame->vector, frame->error, frame->eip, read_cr2());
	exit_guest(EXIT_TRAP);
}

void set_handler(u32 vector, trap_handler handler)
{
	handlers[vector] = handler;
}

void idt_init(void)
{
	struct {
		u16 limit;
		const void *base;
	} __attribute__((packed)) idt_register = { sizeof(idt) - 1, idt };

	for (u32 n = 0; n < STUBS; n++) {
		u32 vector = n < 32 ? n : TRAP_CALL, stub = (u32)(trap_stubs + n * STUB_SIZE);

		idt[vector] = (struct gate){ (u16)stub, KERNEL_CODE, n < 32 ? GATE : GATE_DPL3, (u16)(stub >> 16) };
	}
	__asm__ volatile("lidt %0" : : "m"(idt_register));
}

void tss_init(u32 esp0)
{
	u32 base = (u32)&tss, limit = sizeof(tss) - 1;

	tss.esp0 = esp0;
	tss.ss0 = KERNEL_DATA;
	tss.io_map = sizeof(tss);
	gdt[TSS_SELECTOR / 8] = (u64)(base >> 24) << 56 | 0x89ull << 40 | (u64)(base & 0xffffff) << 16 | limit;
	__asm__ volatile("ltr %w0" : : "r"(TSS_SELECTOR));
}
