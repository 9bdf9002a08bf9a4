/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Virtual-8086 mode (SDM vol. 3, chapter 20): segments by 16, IOPL-sensitive instructions, the way out and back. */
#include "traps32.h"

#define RUN_CODE(name) run_code(V86, name, name##_end)

static void iopl3(void)
{
	case_flags = FLAG_IOPL3;
}

static void one_port(void)
{
	own_tss.map[0xe0 / 8] = 0xfe;
}

#define V86_ROWS(X, EXACT)                                                                    \
	X(v86_int_iopl0, V86, NULL, "nop", "int $0x82", "", GP, 0, AT)                           \
	X(v86_int_iopl3, V86, iopl3, "nop", "int $0x82", "", CALL, NONE, NEXT)                   \
	X(v86_int3, V86, NULL, "nop", "int3", "", BP, NONE, NEXT)                                \
	X(v86_into, V86, NULL, "movb $0x7f, %al\nincb %al", "into", "", OF, NONE, NEXT)          \
	X(v86_cli, V86, NULL, "", "cli", "", GP, 0, AT)                                          \
	X(v86_sti, V86, NULL, "", "sti", "", GP, 0, AT)                                          \
	X(v86_pushf, V86, NULL, "", "pushfw", "", GP, 0, AT)                                     \
	X(v86_popf, V86, NULL, "", "popfw", "", GP, 0, AT)                                       \
	X(v86_iret, V86, NULL, "", "iretw", "", GP, 0, AT)                                       \
	X(v86_cli_iopl3, V86, iopl3, "cli", "int $0x81", "", DONE, NONE, NEXT)                   \
	X(v86_hlt, V86, iopl3, "", "hlt", "", GP, 0, AT)                                         \
	X(v86_lgdt, V86, iopl3, "", "lgdtw (0)", "", GP, 0, AT)                                  \
	X(v86_mov_cr0, V86, iopl3, "", "movl %cr0, %eax", "", GP, 0, AT)                         \
	X(v86_in, V86, iopl3, "", "inb $0xe1, %al", "", GP, 0, AT)                               \
	X(v86_in_map, V86, one_port, "inb $0xe0, %al", "ud2", "", UD, NONE, AT)                  \
	X(v86_ud_lldt, V86, iopl3, "", "lldt %ax", "", UD, NONE, AT)                             \
	X(v86_ud_arpl, V86, iopl3, "", ".byte 0x63, 0xc0", "", UD, NONE, AT)                     \
	X(v86_de, V86, NULL, "xorw %cx, %cx", "divw %cx", "", DE, NONE, AT)

V86_ROWS(TEXT, TEXT)

/* All segment registers are pushed, and null inside. */
CODE(v86_segments_code, ".code16", "movw $0x1234, %ax\nmovw %ax, %fs\nud2");

static u32 inside[4];

static void note_segments(struct frame *frame)
{
	__asm__ volatile("movl %%fs, %0; movl %%gs, %1" : "=r"(inside[0]), "=r"(inside[1]));
	inside[2] = frame->ds;
	inside[3] = frame->es;
}

static void v86_segments(void)
{
	event_hook = note_segments;
	RUN_CODE(v86_segments_code);
	expect("vector", events[0].vector, UD);
	expect("VM in the saved flags", events[0].eflags & FLAG_VM, FLAG_VM);
	expect("saved CS", events[0].cs & 0xffff, LOW_CODE >> 4);
	expect("saved ES", events[0].v86[0] & 0xffff, 0x1111);
	expect("saved DS", events[0].v86[1] & 0xffff, 0x2222);
	expect("saved FS", events[0].v86[2] & 0xffff, 0x1234);
	expect("saved GS", events[0].v86[3] & 0xffff, 0x4444);
	for (int i = 0; i < 4; i++)
		expect("a data segment inside", inside[i] & 0xffff, 0);
}

/* Addresses are segment * 16 + offset; IP and SP have 16 bits. */
CODE(v86_address_code, ".code16", "movw $0x1fff, %ax\nmovw %ax, %ds\nmovw $0x10, %bx\nmovw $0xabcd, (%bx)\nmovw $0x2000, %ax\n"
	"movw %ax, %es\nmovw %es:0, %ax\nud2");

static void v86_addresses(void)
{
	RUN_CODE(v86_address_code);
	expect("vector", events[0].vector, UD);
	expect("AX", events[0].eax & 0xffff, 0xabcd);
	expect("memory", *(u16 *)0x20000, 0xabcd);
}

/* From a handler back into the mode, and a step in it. */
CODE(v86_back_code, ".code16", "nop\nint3\nmovw $0x77, %cx\nud2");

static void v86_and_back(void)
{
	RUN_CODE(v86_back_code);
	expect("the number of events", nr_events, 2);
	expect("vector", events[1].vector, UD);
	expect("CX", events[1].ecx & 0xffff, 0x77);
	expect("ES after IRET", events[1].v86[0] & 0xffff, 0x1111);
	expect("GS after IRET", events[1].v86[3] & 0xffff, 0x4444);
}

CODE(v86_step_code, ".code16", "nop\nnop\nud2");

static void v86_single_step(void)
{
	case_flags = FLAG_TF;
	RUN_CODE(v86_step_code);
	expect_event(0, DB, NONE, 1);
	expect_event(1, DB, NONE, 2);
	expect_event(2, UD, NONE, 2);
	expect("saved TF", events[2].eflags & FLAG_TF, FLAG_TF);
}

/* The gate's code must be of CPL 0. */
static void v86_conforming_gate(void)
{
	own_idt[UD].selector = S_CONFORMING;
	RUN_CODE(v86_step_code);
	expect_event(0, GP, S_CONFORMING | 1, 2);
}

static const struct test tests[] = {
	V86_ROWS(ROW, EXACT_ROW) RUN(v86_segments) RUN(v86_addresses) RUN(v86_and_back) RUN(v86_single_step)
	RUN_EXACT(v86_conforming_gate)
};
const struct group v86_group = { tests, sizeof(tests) / sizeof(tests[0]) };
